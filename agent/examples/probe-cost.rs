//! What probing costs: 50 network namespaces, each with a listener that is asked every 5 s, over TCP
//! and then over HTTP. Prints JSON for `scripts/bench`: processor time of the probing thread in
//! milliseconds a minute, and what its memory grew by in KiB. Needs root.
//!
//! `cargo run --release -p coracle --example probe-cost [SECONDS]`: how long each is measured, 60 if
//! not given.

use std::error::Error;
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use coracle::probes::{Commands, ProbeTarget, run};
use coracle_core::artifact::Software;
use coracle_core::desired::{Check, Container, Limits, Probe, Probes};
use coracle_core::image::ImageRef;
use coracle_core::name::{ContainerId, ContainerName};
use coracle_core::probe::Answer;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

const PODS: usize = 50;
const PERIOD: Duration = Duration::from_secs(5);
const ALL_READY_LIMIT: Duration = Duration::from_secs(30);

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> Result<()> {
    let seconds = std::env::args().nth(1).map_or(Ok(60), |seconds| seconds.parse())?;
    let dir = Path::new("/run/coracle-probe-cost");
    // Whatever is mounted here is gone with this process.
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    fs::create_dir_all(dir)?;
    mount(Some("run"), dir, Some("tmpfs"), MsFlags::empty(), none)?;
    let pods = (0..PODS).map(|n| pod(dir.join(n.to_string())));
    let (networks, listeners): (Vec<_>, Vec<_>) =
        pods.collect::<Result<Vec<_>>>()?.into_iter().unzip();

    let measured = Duration::from_secs(seconds);
    let (tcp, tcp_growth) = measure(&networks, &Check::Tcp { port: 80 }, measured)?;
    serve(listeners)?;
    let http = Check::Http { port: 80, path: "/healthz".into(), headers: Default::default() };
    let (http, http_growth) = measure(&networks, &http, measured)?;
    let line = json!({
        "pods": PODS,
        "period_seconds": PERIOD.as_secs(),
        "tcp_milliseconds_a_minute": tcp,
        "tcp_growth_kib": tcp_growth,
        "http_milliseconds_a_minute": http,
        "http_growth_kib": http_growth,
    });
    println!("{line}");
    fs::remove_dir(dir).or_else(|_| Ok(()))
}

/// A network with a loopback interface and a listener.
fn pod(path: PathBuf) -> Result<(PathBuf, TcpListener)> {
    File::create(&path)?;
    let made = std::thread::scope(|scope| {
        let make = || -> Result<TcpListener> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            let ip = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status()?;
            if !ip.success() {
                return Err("a loopback interface cannot be set up".into());
            }
            let own = Path::new("/proc/thread-self/ns/net");
            mount(Some(own), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
            Ok(TcpListener::bind("127.0.0.1:80")?)
        };
        scope.spawn(make).join()
    });
    let listener = made.map_err(|_| "a network could not be made")??;
    Ok((path, listener))
}

/// Answers requests, in a thread that does not count.
fn serve(listeners: Vec<TcpListener>) -> Result<()> {
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let serve = async move {
        for listener in listeners {
            if listener.set_nonblocking(true).is_err() {
                return;
            }
            let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
            tokio::spawn(async move {
                while let Ok((mut stream, _)) = listener.accept().await {
                    let mut request = [0; 1024];
                    if stream.read(&mut request).await.is_ok() {
                        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                        stream.write_all(answer).await.ok();
                    }
                }
            });
        }
        std::future::pending::<()>().await;
    };
    std::thread::spawn(move || tokio.block_on(serve));
    Ok(())
}

fn measure(networks: &[PathBuf], check: &Check, measured: Duration) -> Result<(f64, i64)> {
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio.block_on(async {
        let targets = networks.iter().map(|network| target(network, check));
        let (targets, receiver) = watch::channel(targets.collect::<Result<Vec<_>>>()?);
        let (sender, mut verdicts) = mpsc::channel(64);
        let probing = tokio::spawn(run(NoCommands, receiver, sender));
        let all_ready = async {
            let mut ready = 0;
            while ready < PODS {
                ready += usize::from(verdicts.recv().await.is_some_and(|(_, health)| health.ready));
            }
        };
        timeout(ALL_READY_LIMIT, all_ready).await?;
        sleep(PERIOD * 2).await;
        let before = (processor_time()?, memory()?);
        sleep(measured).await;
        let after = (processor_time()?, memory()?);
        drop(targets);
        probing.await?;
        let minutes = measured.as_secs_f64() / 60.0;
        let milliseconds = (after.0 - before.0).as_secs_f64() * 1000.0 / minutes;
        Ok((milliseconds, after.1 - before.1))
    })
}

fn target(network: &Path, check: &Check) -> Result<ProbeTarget> {
    let readiness = Some(Probe {
        check: check.clone(),
        initial_delay: Duration::ZERO,
        period: PERIOD,
        timeout: Duration::from_secs(1),
        failure_threshold: 3,
        success_threshold: 1,
    });
    let probes = Probes { readiness, ..Probes::default() };
    let container = Container {
        name: ContainerName::parse("main").map_err(|error| error.to_string())?,
        software: Software::Image(
            ImageRef::parse("registry.example/web:1").map_err(|error| error.to_string())?,
        ),
        command: None,
        args: None,
        env: Default::default(),
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
    Ok(ProbeTarget {
        id: ContainerId::from_listed(&network.display().to_string()),
        pid: 1,
        container: Arc::new(container),
        netns: Some(network.to_owned()),
        before: coracle_core::probe::Before::default(),
    })
}

#[derive(Clone, Copy, Debug)]
struct NoCommands;

impl Commands for NoCommands {
    async fn run(&self, _: &ContainerId, _: &[String], _: Duration) -> Answer {
        Answer::Unknown
    }
}

/// Of this thread, so far: to the nanosecond, with what the kernel did for it.
fn processor_time() -> Result<Duration> {
    let stat = fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanos = stat.split_whitespace().next().ok_or("no schedstat")?;
    Ok(Duration::from_nanos(nanos.parse()?))
}

/// Resident memory of this process that is nobody else's, in KiB.
fn memory() -> Result<i64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).ok_or("no RssAnon")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
