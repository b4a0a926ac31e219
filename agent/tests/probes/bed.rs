//! A place for network namespaces, servers in them, and probes that are made there.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use coracle::probes::{Commands, ProbeTarget, run};
use coracle_core::artifact::Software;
use coracle_core::desired::{Check, Container, Limits, Probe, Probes};
use coracle_core::image::ImageRef;
use coracle_core::name::{ContainerId, ContainerName};
use coracle_core::observed::Health;
use coracle_core::probe::{Answer, Before};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

/// Longest time for anything that happens soon.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// Where namespaces are.
pub(crate) struct Place {
    dir: tempfile::TempDir,
}

/// Held by every test, and by one that measures what the process as a whole has, for itself.
static TESTS: RwLock<()> = RwLock::new(());

/// Beside others, runs a test where its mounts are gone with it, with a gateway's network of
/// its own.
pub(crate) fn run_at<F: Future<Output = ()>>(test: impl FnOnce(Place) -> F + Send) {
    let _beside_others = TESTS.read().unwrap_or_else(PoisonError::into_inner);
    run_here(test);
}

/// The same, and nothing else meanwhile.
pub(crate) fn run_alone<F: Future<Output = ()>>(test: impl FnOnce(Place) -> F + Send) {
    let _alone = TESTS.write().unwrap_or_else(PoisonError::into_inner);
    run_here(test);
}

fn run_here<F: Future<Output = ()>>(test: impl FnOnce(Place) -> F + Send) {
    let thread = || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("run as root");
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        let dir = tempfile::tempdir().unwrap();
        mount(Some("run"), dir.path(), Some("tmpfs"), MsFlags::empty(), none).unwrap();
        loopback_up();
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let test = test(Place { dir });
        tokio.block_on(async { timeout(SOON * 6, test).await.expect("in time") });
    };
    let ended = std::thread::scope(|scope| scope.spawn(thread).join());
    ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

fn loopback_up() {
    let ip = Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
    assert!(ip.success());
}

impl Place {
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A network with a loopback interface, kept by a mount.
    pub(crate) fn network(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        File::create(&path).unwrap();
        let own = Path::new("/proc/thread-self/ns/net");
        std::thread::scope(|scope| {
            let make = || {
                unshare(CloneFlags::CLONE_NEWNET).unwrap();
                loopback_up();
                mount(Some(own), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
            };
            scope.spawn(make).join().unwrap();
        });
        path
    }
}

/// Runs `work` in a network.
pub(crate) fn inside<T: Send>(netns: &Path, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(File::open(netns).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
            work()
        });
        thread.join().unwrap()
    })
}

/// Listens in a network; nobody accepts.
pub(crate) fn listen(netns: &Path, address: &str) -> TcpListener {
    let address: SocketAddr = address.parse().unwrap();
    let listener = inside(netns, || TcpListener::bind(address).unwrap());
    listener.set_nonblocking(true).unwrap();
    listener
}

/// Serves every connection to a listener, until this is dropped.
pub(crate) fn serve<F>(
    listener: TcpListener,
    server: impl Fn(TcpStream) -> F + Send + 'static,
) -> Served
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    Served(tokio::spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            connections.spawn(server(stream));
            while connections.try_join_next().is_some() {}
        }
    }))
}

/// A server.
pub(crate) struct Served(JoinHandle<()>);

impl Drop for Served {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Reads a request to its end.
pub(crate) async fn read_request(stream: &mut TcpStream) -> String {
    let mut request = Vec::new();
    let mut chunk = [0; 1024];
    while !request.ends_with(b"\r\n\r\n") {
        match stream.read(&mut chunk).await {
            Ok(0) | Err(_) => break,
            Ok(length) => request.extend_from_slice(&chunk[..length]),
        }
    }
    String::from_utf8(request).unwrap()
}

/// Answers every request with these bytes, and closes.
pub(crate) fn answer(listener: TcpListener, bytes: impl Into<Vec<u8>>) -> Served {
    let bytes = Arc::new(bytes.into());
    serve(listener, move |mut stream| {
        let bytes = Arc::clone(&bytes);
        async move {
            read_request(&mut stream).await;
            // A client may have heard enough.
            stream.write_all(&bytes).await.ok();
        }
    })
}

pub(crate) fn tcp(port: u16) -> Check {
    Check::Tcp { port }
}

pub(crate) fn http(port: u16, path: &str) -> Check {
    Check::Http { port, path: path.into(), headers: BTreeMap::new() }
}

pub(crate) fn exec(command: &str) -> Check {
    Check::Exec(vec![command.into()])
}

/// Asked every 0.2 s, failed after two bad answers, no answer after 1 s.
pub(crate) fn probe(check: Check) -> Option<Probe> {
    Some(Probe {
        check,
        initial_delay: Duration::ZERO,
        period: Duration::from_millis(200),
        timeout: Duration::from_secs(1),
        failure_threshold: 2,
        success_threshold: 1,
    })
}

pub(crate) fn readiness(check: Check) -> Probes {
    Probes { readiness: probe(check), ..Probes::default() }
}

/// A new container `NAME.0.main`.
pub(crate) fn target(name: &str, pid: u32, netns: Option<&Path>, probes: Probes) -> ProbeTarget {
    let container = Container {
        name: ContainerName::parse("main").unwrap(),
        software: Software::Image(ImageRef::parse("registry.example/web:1").unwrap()),
        command: None,
        args: None,
        env: BTreeMap::new(),
        working_dir: None,
        user: None,
        readonly_root: false,
        mounts: Vec::new(),
        limits: Limits::default(),
        devices: Vec::new(),
        capabilities: Default::default(),
        seccomp: Default::default(),
        probes,
    };
    ProbeTarget {
        id: ContainerId::from_listed(&format!("{name}.0.main")),
        pid,
        container: Arc::new(container),
        netns: netns.map(Path::to_owned),
        before: Before::default(),
    }
}

/// Probes under way.
pub(crate) struct Probing {
    targets: watch::Sender<Vec<ProbeTarget>>,
    verdicts: mpsc::Receiver<(ContainerId, Health)>,
    task: JoinHandle<()>,
}

impl Probing {
    pub(crate) fn start(commands: impl Commands, targets: Vec<ProbeTarget>) -> Self {
        let (targets, receiver) = watch::channel(targets);
        let (sender, verdicts) = mpsc::channel(16);
        let task = tokio::spawn(run(commands, receiver, sender));
        Self { targets, verdicts, task }
    }

    pub(crate) fn set(&self, targets: Vec<ProbeTarget>) {
        self.targets.send_replace(targets);
    }

    /// The next verdict in words, such as `started live (readiness probe: GET / answered 503)`.
    pub(crate) async fn next(&mut self) -> String {
        words(&self.any().await.1)
    }

    pub(crate) async fn any(&mut self) -> (ContainerId, Health) {
        timeout(SOON, self.verdicts.recv()).await.expect("a verdict in time").unwrap()
    }

    /// Waits for a verdict.
    pub(crate) async fn becomes(&mut self, wanted: &str) {
        let mut seen = Vec::new();
        loop {
            let verdict = timeout(SOON, self.verdicts.recv()).await;
            let Ok(verdict) = verdict else { panic!("{wanted:?} is not among {seen:?}") };
            let verdict = words(&verdict.unwrap().1);
            if verdict == wanted {
                return;
            }
            seen.push(verdict);
        }
    }

    /// No verdict that has not been taken.
    pub(crate) fn is_quiet(&mut self) -> bool {
        self.verdicts.is_empty()
    }

    /// Ends with those who give targets.
    pub(crate) async fn end(self) {
        drop(self.targets);
        timeout(SOON, self.task).await.expect("it ends").unwrap();
    }
}

pub(crate) fn words(health: &Health) -> String {
    let words = [(health.started, "started"), (health.live, "live"), (health.ready, "ready")];
    let words: Vec<_> = words.iter().filter(|(is, _)| *is).map(|(_, word)| *word).collect();
    let message = health.message.as_ref().map(|message| format!(" ({message})"));
    words.join(" ") + &message.unwrap_or_default()
}

/// No commands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NoCommands;

impl Commands for NoCommands {
    async fn run(&self, _: &ContainerId, _: &[String], _: Duration) -> Answer {
        panic!("no command is to be run")
    }
}

/// Descriptors that are open.
pub(crate) fn descriptors() -> usize {
    fs::read_dir("/proc/thread-self/fd").unwrap().count()
}

/// Names of this process's threads.
pub(crate) fn threads() -> Vec<String> {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok()).collect()
}
