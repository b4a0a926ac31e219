//! A host for one test, and what can be seen of it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::future::Future;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use coracle::config::Config;
use coracle::network::{NetworkRequest, Networks, PortMapping};
use coracle_core::desired::{DefinitionHash, Network, Protocol};
use coracle_core::name::{ReplicaId, WorkloadName};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

/// A network and a mount namespace, for the thread that the test runs in and all that it starts.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) config: Config,
}

/// Runs a test on a new host.
pub(crate) fn on_a_host<T: Send>(test: impl FnOnce(&Host) -> T + Send) -> T {
    let dir = tempfile::tempdir().unwrap();
    let result = std::thread::scope(|scope| {
        scope
            .spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("run as root");
                let none = None::<&str>;
                mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
                mount(Some("run"), dir.path(), Some("tmpfs"), MsFlags::empty(), none).unwrap();
                sh("ip link set lo up");
                test(&Host { config: config(dir.path()) })
            })
            .join()
    });
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// The configuration of an agent with this runtime directory.
pub(crate) fn config(runtime_dir: &Path) -> Config {
    let runtime_dir = runtime_dir.join("coracle");
    fs::create_dir_all(&runtime_dir).unwrap();
    Config { runtime_dir, ..Config::default() }
}

impl Host {
    pub(crate) fn networks(&self) -> Networks {
        Networks::new(&self.config)
    }

    pub(crate) fn path(&self, of: &str) -> PathBuf {
        self.config.runtime_dir.join(of)
    }

    /// Everything that a pod may leave behind, in lines.
    pub(crate) fn state(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut add = |what: &str, text: &str| {
            lines.extend(text.lines().map(|line| format!("{what}: {}", line.trim())));
        };
        // Of IPv6 only what is made on purpose: the kernel's own comes a moment later.
        add("address", &sh("ip -o -4 addr"));
        add("link", &sh("ip -o link | cut -d: -f2"));
        add("route", &sh("ip -o -4 route show table all"));
        add("neighbour", &sh("ip -o -4 neigh"));
        for family in ["iptables", "ip6tables"] {
            add(family, &sh(&format!("{family}-save | sed -e '/^#/d' -e 's/ \\[.*//'")));
        }
        add("nft", &sh("nft list tables | grep coracle || true"));
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let ours = self.config.runtime_dir.display().to_string();
        for mount in mounts.lines().filter(|mount| mount.contains(&ours)) {
            add("mount", mount.split(' ').nth(4).unwrap());
        }
        add(
            "file",
            &sh(&format!("find {ours} ! -type d ! -name lock ! -name 'last_reserved_ip*'")),
        );
        for setting in ["ip_forward", "conf/all/forwarding", "conf/all/route_localnet"] {
            add(setting, &fs::read_to_string(format!("/proc/sys/net/ipv4/{setting}")).unwrap());
        }
        lines.sort();
        lines
    }

    /// The state comes to be this one: the kernel takes apart what was removed in its own time.
    pub(crate) fn comes_back_to(&self, before: &[String], when: &str) {
        let mut now = self.state();
        for _ in 0..100 {
            if now == before {
                return;
            }
            pause();
            now = self.state();
        }
        let (new, gone): (Vec<_>, Vec<_>) = (
            now.iter().filter(|line| !before.contains(line)).collect(),
            before.iter().filter(|line| !now.contains(line)).collect(),
        );
        panic!("{when}: left behind: {new:#?}; missing: {gone:#?}; now {now:#?}");
    }

    /// The state after pods have come and gone once: the chains that plugins share are there.
    pub(crate) fn used(&self) -> Vec<String> {
        wait(async {
            let networks = self.networks();
            networks.sweep().await;
            let mut first = request("first", Network::Pod);
            first.ports = vec![port(1, 1, Protocol::Tcp), port(2, 2, Protocol::Udp)];
            networks.ensure(&first).await.unwrap();
            networks.remove(&first.replica).await.unwrap();
        });
        let mut state = self.state();
        for _ in 0..100 {
            if !state.iter().any(|line| line.contains("veth")) {
                break;
            }
            pause();
            state = self.state();
        }
        state
    }
}

pub(crate) fn pause() {
    #[expect(clippy::disallowed_methods, reason = "between looks at a state that is waited for")]
    std::thread::sleep(Duration::from_millis(50));
}

pub(crate) fn wait<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// What a command says; it must be good.
pub(crate) fn sh(script: &str) -> String {
    let output = Command::new("/bin/sh").args(["-euc", script]).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn replica(workload: &str, index: u32) -> ReplicaId {
    ReplicaId { workload: WorkloadName::parse(workload).unwrap(), index }
}

pub(crate) fn request(workload: &str, kind: Network) -> NetworkRequest {
    NetworkRequest {
        replica: replica(workload, 0),
        definition: DefinitionHash::from_label("0123"),
        kind,
        host_name: format!("{workload}-0"),
        ports: Vec::new(),
        shared_ports: false,
        names: vec![workload.into(), format!("{workload}-0")],
    }
}

pub(crate) fn port(container_port: u16, host_port: u16, protocol: Protocol) -> PortMapping {
    let name = format!("port-{host_port}");
    PortMapping { name, container_port, host_port, host_address: None, protocol }
}

/// Runs `work` in the network namespace of `netns`.
pub(crate) fn inside<T: Send>(netns: &Path, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(File::open(netns).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
            work()
        });
        thread.join().unwrap()
    })
}

/// A server in a network namespace that tells each client its own address; it ends with the test.
pub(crate) fn serve(netns: &Path, port: u16) {
    let (tcp, udp) = inside(netns, || {
        let address: SocketAddr = ([0, 0, 0, 0], port).into();
        (TcpListener::bind(address).unwrap(), UdpSocket::bind(address).unwrap())
    });
    std::thread::spawn(move || {
        for stream in tcp.incoming() {
            let mut stream = stream.unwrap();
            let peer = stream.peer_addr().unwrap().ip().to_string();
            stream.write_all(peer.as_bytes()).unwrap();
        }
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 100];
        while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
            udp.send_to(peer.ip().to_string().as_bytes(), peer).unwrap();
        }
    });
}

/// How the server at `address` sees the caller, in TCP and in UDP.
pub(crate) fn ask(address: IpAddr, port: u16) -> std::io::Result<(String, String)> {
    let limit = Duration::from_secs(2);
    let mut stream = TcpStream::connect_timeout(&(address, port).into(), limit)?;
    stream.set_read_timeout(Some(limit))?;
    let mut tcp = String::new();
    stream.read_to_string(&mut tcp)?;
    let udp = UdpSocket::bind(("0.0.0.0", 0))?;
    udp.set_read_timeout(Some(limit))?;
    udp.send_to(b"?", (address, port))?;
    let mut buffer = [0; 100];
    let (length, _) = udp.recv_from(&mut buffer)?;
    Ok((tcp, String::from_utf8_lossy(&buffer[..length]).into_owned()))
}

/// Addresses by name in a hosts file.
pub(crate) fn names(hosts: &Path) -> BTreeMap<String, Vec<String>> {
    let text = fs::read_to_string(hosts).unwrap();
    let mut names: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let Some(address) = words.next() else { continue };
        for name in words {
            names.entry(name.into()).or_default().push(address.into());
        }
    }
    names
}
