//! Those who talk over shared ports: servers in pods that tell who they are, clients on the gateway
//! and on another machine.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use coracle::network::{NetworkRequest, Networks, PodNetwork, PortMapping};
use coracle_core::desired::{Network, Protocol};
use coracle_core::name::{ReplicaId, ResourceName, WorkloadName};
use coracle_core::traffic::{SharedPort, Target, Traffic};
use nix::sched::{CloneFlags, unshare};

use super::host::{inside, pause, replica, request, sh};

/// How long anything may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(5);

/// How many short connections one client makes at most.
const SHORT_ONES: usize = 200_000;

/// The port of the gateway that is shared out.
pub(crate) const SHARED: u16 = 8080;

/// The gateway's address for the other machine.
pub(crate) const OUTSIDE: &str = "192.0.2.1";
/// The other machine's address.
pub(crate) const FAR: &str = "192.0.2.2";
/// The gateway's address for pods.
pub(crate) const GATEWAY: &str = "10.88.0.1";
pub(crate) const LOOPBACK: &str = "127.0.0.1";

/// Another machine, with one cable to the gateway; it knows nothing of pods.
#[derive(Debug)]
pub(crate) struct Machine {
    _namespace: File,
    pub(crate) netns: PathBuf,
}

impl Machine {
    pub(crate) fn plug_in() -> Self {
        let thread = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        let namespace = thread.join().unwrap();
        let netns = format!("/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd());
        sh(&format!(
            "ip link add outside type veth peer name inside
             ip addr add {OUTSIDE}/24 dev outside; ip link set outside up
             ip link set inside netns {netns}
             nsenter --net={netns} ip link set lo up
             nsenter --net={netns} ip addr add {FAR}/24 dev inside
             nsenter --net={netns} ip link set inside up"
        ));
        Self { _namespace: namespace, netns: netns.into() }
    }

    pub(crate) fn unplug(self) {
        sh("ip link del outside");
    }
}

/// A replica: its network, and a server of its own that answers each line or packet with the
/// replica's name and the address that it came from. It ends with this.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) replica: ReplicaId,
    pub(crate) pod: PodNetwork,
    open: Arc<AtomicUsize>,
    ending: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

pub(crate) fn web(index: u32, port: PortMapping) -> NetworkRequest {
    let mut web = request("web", Network::Pod);
    web.replica = replica("web", index);
    web.host_name = web.replica.host_name();
    web.ports = vec![port];
    web.shared_ports = true;
    web
}

impl Server {
    pub(crate) async fn start(networks: &Networks, request: &NetworkRequest) -> Self {
        let pod = networks.ensure(request).await.unwrap();
        Self::serve(request.replica.clone(), pod, request.ports[0].container_port)
    }

    pub(crate) fn serve(replica: ReplicaId, pod: PodNetwork, port: u16) -> Self {
        let (tcp, udp) = inside(pod.netns.as_ref().unwrap(), || {
            let all: SocketAddr = ([0_u16; 8], port).into();
            (TcpListener::bind(all).unwrap(), UdpSocket::bind(all).unwrap())
        });
        tcp.set_nonblocking(true).unwrap();
        udp.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let (open, ending) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let name = replica.to_string();
        let threads = vec![
            std::thread::spawn({
                let (open, ending, name) = (open.clone(), ending.clone(), name.clone());
                move || accept(&tcp, &name, &open, &ending)
            }),
            std::thread::spawn({
                let ending = ending.clone();
                move || answer_packets(&udp, &name, &ending)
            }),
        ];
        Self { replica, pod, open, ending, threads }
    }

    pub(crate) fn netns(&self) -> &Path {
        self.pod.netns.as_ref().unwrap()
    }

    pub(crate) fn target(&self) -> Target {
        Target { replica: self.replica.clone(), address: self.pod.address.unwrap(), port: 80 }
    }

    /// Waits until nobody is connected any more.
    pub(crate) fn is_left_by_all(&self) {
        for _ in 0..200 {
            // Those that the server has not noticed yet count too.
            let waiting = inside(self.netns(), connections);
            if waiting == 0 && self.open.load(Ordering::SeqCst) == 0 {
                return;
            }
            pause();
        }
        panic!("{} is still connected to", self.replica);
    }
}

/// How many connections to port 80 there are that have not ended on both sides.
fn connections() -> usize {
    let tables =
        ["tcp", "tcp6"].map(|name| fs::read_to_string(format!("/proc/thread-self/net/{name}")));
    let tables = tables.map(|table| table.unwrap());
    let lines = tables.iter().flat_map(|table| table.lines().skip(1));
    let words = lines.map(|line| line.split_whitespace().collect::<Vec<_>>());
    // Neither TIME_WAIT nor the server that listens.
    words.filter(|words| words[1].ends_with(":0050") && !["06", "0A"].contains(&words[3])).count()
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            // One that failed has said so.
            thread.join().ok();
        }
    }
}

/// Takes connections until it is to end, and all of them have ended.
fn accept(tcp: &TcpListener, name: &str, open: &AtomicUsize, ending: &AtomicBool) {
    std::thread::scope(|scope| {
        while !ending.load(Ordering::SeqCst) {
            match tcp.accept() {
                Ok((stream, peer)) => {
                    open.fetch_add(1, Ordering::SeqCst);
                    scope.spawn(move || {
                        // A client that is gone is no failure of the server's.
                        answer_lines(stream, name, peer, ending).ok();
                        open.fetch_sub(1, Ordering::SeqCst);
                    });
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => wait_for_client(tcp),
                Err(error) => panic!("{name}: {error}"),
            }
        }
    });
}

fn wait_for_client(tcp: &TcpListener) {
    use nix::poll::{PollFd, PollFlags, poll};
    use std::os::fd::AsFd;
    poll(&mut [PollFd::new(tcp.as_fd(), PollFlags::POLLIN)], 50_u8).unwrap();
}

fn answer_lines(
    stream: TcpStream,
    name: &str,
    peer: SocketAddr,
    ending: &AtomicBool,
) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_millis(200)))?;
    let (mut lines, mut line) = (BufReader::new(stream.try_clone()?), String::new());
    let answer = format!("{name} {}\n", peer.ip().to_canonical());
    loop {
        match lines.read_line(&mut line) {
            Ok(0) => return Ok(()),
            Ok(_) => {
                line.clear();
                (&stream).write_all(answer.as_bytes())?;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if ending.load(Ordering::SeqCst) {
                    return Ok(());
                }
            }
            Err(error) => return Err(error),
        }
    }
}

fn answer_packets(udp: &UdpSocket, name: &str, ending: &AtomicBool) {
    let mut buffer = [0; 100];
    while !ending.load(Ordering::SeqCst) {
        if let Ok((_, peer)) = udp.recv_from(&mut buffer) {
            udp.send_to(format!("{name} {}\n", peer.ip().to_canonical()).as_bytes(), peer).ok();
        }
    }
}

/// All of them get the shared port.
pub(crate) fn traffic<'a>(servers: impl IntoIterator<Item = &'a Server>) -> Traffic {
    shared(servers.into_iter().map(Server::target).collect())
}

pub(crate) fn shared(targets: Vec<Target>) -> Traffic {
    let port = |protocol| SharedPort {
        workload: WorkloadName::parse("web").unwrap(),
        name: ResourceName::parse("http").unwrap(),
        protocol,
        host: SHARED,
        address: None,
        targets: targets.clone(),
    };
    Traffic(vec![port(Protocol::Tcp), port(Protocol::Udp)])
}

/// A connection that stays, and who is at its other end.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: BufReader<TcpStream>,
    /// The replica, and how it sees the caller.
    pub(crate) answer: (String, String),
}

impl Connection {
    pub(crate) fn open(to: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&to, LIMIT)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_nodelay(true)?;
        let mut connection = Self { stream: BufReader::new(stream), answer: Default::default() };
        connection.answer = connection.ask()?;
        Ok(connection)
    }

    /// Says a line and gets the answer.
    pub(crate) fn ask(&mut self) -> io::Result<(String, String)> {
        self.stream.get_ref().write_all(b"?\n")?;
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        parse(&line)
    }

    pub(crate) fn close(mut self) -> io::Result<()> {
        self.stream.get_ref().shutdown(Shutdown::Write)?;
        let mut rest = String::new();
        match self.stream.read_line(&mut rest)? {
            0 => Ok(()),
            _ => Err(io::Error::other(format!("says {rest:?} when it is to end"))),
        }
    }
}

fn parse(line: &str) -> io::Result<(String, String)> {
    let parts = line.trim_end().split_once(' ');
    let (name, peer) = parts.ok_or_else(|| io::Error::other(format!("answered {line:?}")))?;
    Ok((name.to_owned(), peer.to_owned()))
}

/// One connection: who answers, and how he sees the caller.
pub(crate) fn ask_once(to: &str, port: u16) -> io::Result<(String, String)> {
    let connection = Connection::open((to.parse::<IpAddr>().unwrap(), port).into())?;
    let answer = connection.answer.clone();
    connection.close()?;
    Ok(answer)
}

/// Who answers how often, and how those who answer see the caller.
pub(crate) fn ask_often(to: &str, times: usize) -> (BTreeMap<String, usize>, String) {
    let (mut counts, mut seen) = (BTreeMap::new(), String::new());
    for _ in 0..times {
        let (name, peer) = ask_once(to, SHARED).unwrap();
        *counts.entry(name).or_default() += 1;
        assert!(seen.is_empty() || seen == peer, "seen as {seen} and as {peer}");
        seen = peer;
    }
    (counts, seen)
}

/// A sender of UDP packets that keeps its port.
#[derive(Debug)]
pub(crate) struct Sender(UdpSocket);

impl Sender {
    pub(crate) fn at(netns: &Path, to: &str) -> Self {
        inside(netns, || Self::here(to))
    }

    pub(crate) fn here(to: &str) -> Self {
        let to: IpAddr = to.parse().unwrap();
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        socket.connect((to, SHARED)).unwrap();
        Self(socket)
    }

    pub(crate) fn ask(&self) -> io::Result<(String, String)> {
        self.0.send(b"?")?;
        let mut buffer = [0; 100];
        let length = self.0.recv(&mut buffer)?;
        parse(&String::from_utf8_lossy(&buffer[..length]))
    }
}

/// Connections without end, made and used by threads until they are told to stop.
#[derive(Debug, Default)]
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    /// Who is to be left by connections that stay.
    leaving: Arc<Mutex<Vec<String>>>,
    /// How many round trips there were.
    pub(crate) answers: Arc<AtomicUsize>,
    pub(crate) connections: Arc<AtomicUsize>,
    /// What went wrong.
    failed: Arc<Mutex<Vec<String>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// One short connection after the other.
    pub(crate) fn short(&mut self, netns: Option<&Path>, to: &'static str) {
        let (stop, connections) = (self.stop.clone(), self.connections.clone());
        self.run(netns, move || {
            for _ in 0..SHORT_ONES {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                ask_once(to, SHARED).map_err(|error| format!("short one to {to}: {error}"))?;
                connections.fetch_add(1, Ordering::SeqCst);
            }
            Ok(())
        });
    }

    /// Many connections that stay, all in use; those to whom is to be left end and begin anew.
    pub(crate) fn long(&mut self, netns: Option<&Path>, to: &'static str, count: usize) {
        let (stop, leaving) = (self.stop.clone(), self.leaving.clone());
        let answers = self.answers.clone();
        self.run(netns, move || {
            let failed = |error: io::Error| format!("long one to {to}: {error}");
            let open = || Connection::open((to.parse::<IpAddr>().unwrap(), SHARED).into());
            let mut all =
                (0..count).map(|_| open()).collect::<io::Result<Vec<_>>>().map_err(failed)?;
            while !stop.load(Ordering::SeqCst) {
                for connection in &mut all {
                    let answer = connection.ask().map_err(failed)?;
                    if answer != connection.answer {
                        return Err(format!("{:?} became {answer:?}", connection.answer));
                    }
                    answers.fetch_add(1, Ordering::SeqCst);
                    if leaving.lock().unwrap().contains(&answer.0) {
                        let new = open().map_err(failed)?;
                        std::mem::replace(connection, new).close().map_err(failed)?;
                    }
                }
            }
            all.into_iter().try_for_each(Connection::close).map_err(failed)
        });
    }

    fn run(
        &mut self,
        netns: Option<&Path>,
        work: impl FnOnce() -> Result<(), String> + Send + 'static,
    ) {
        let netns = netns.map(|path| File::open(path).unwrap());
        let failed = self.failed.clone();
        self.threads.push(std::thread::spawn(move || {
            if let Some(netns) = netns {
                nix::sched::setns(netns, CloneFlags::CLONE_NEWNET).unwrap();
            }
            // So many short connections need more ports than there are.
            fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "1").unwrap();
            if let Err(error) = work() {
                failed.lock().unwrap().push(error);
            }
        }));
    }

    /// Waits until there were so many more answers on long connections and so many more short ones.
    pub(crate) fn goes_on(&self, answers: usize, connections: usize) {
        let now = |count: &AtomicUsize| count.load(Ordering::SeqCst);
        let wanted = (now(&self.answers) + answers, now(&self.connections) + connections);
        for _ in 0..600 {
            self.is_well();
            if now(&self.answers) >= wanted.0 && now(&self.connections) >= wanted.1 {
                return;
            }
            pause();
        }
        panic!("no more connections");
    }

    /// Who stays connected is to leave this one.
    pub(crate) fn leave(&self, server: &Server) {
        self.leaving.lock().unwrap().push(server.replica.to_string());
    }

    /// Whoever is connected may stay.
    pub(crate) fn stay(&self) {
        self.leaving.lock().unwrap().clear();
    }

    fn is_well(&self) {
        let failed = self.failed.lock().unwrap();
        assert!(failed.is_empty(), "{failed:#?}");
    }

    /// Ends all; none may have failed.
    pub(crate) fn end(mut self) -> (usize, usize) {
        self.stop.store(true, Ordering::SeqCst);
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
        self.is_well();
        let count = |count: &AtomicUsize| count.load(Ordering::SeqCst);
        (count(&self.answers), count(&self.connections))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            // Somebody else has failed.
            thread.join().ok();
        }
    }
}
