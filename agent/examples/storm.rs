//! `scripts/storm`: what happens when a broker with very many gateways is killed and comes back.
//!
//! In: arguments. Out: figures on standard output. Starts mosquitto with mutual TLS and as many
//! gateways' links as asked, kills the broker, starts it again, and so on; says how long it took
//! until all were back and how many attempts failed.
//!
//! A simulated link is a connection like the agent's own (TLS with a client certificate, CONNECT with
//! a last will, one subscription to four topics, the answers waited for) and waits between its
//! attempts as the agent does: by [`coracle::link::delay`]. It sends and gets nothing else. All have
//! one certificate, so that a run needs no 19,000 of them, and client ids of their own.

#![allow(clippy::disallowed_methods, reason = "it measures real time")]

use std::io::ErrorKind;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use coracle::link::delay::{Cause, STABLE, jitter, retry_delay};
use coracle_protocol::topic::{Kind, Topic};
use coracle_protocol::{GatewayId, Presence};
use coracle_testbed::{Pki, Place, Process};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// As the agent's.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_secs(600);
/// Connections of one source address: there are no more than 28,000 ports for it.
const OF_ONE_ADDRESS: usize = 5000;

/// Simulates the links of very many gateways whose broker is killed
#[derive(Debug, Parser)]
#[command(name = "storm", bin_name = "scripts/storm")]
struct Arguments {
    /// How many gateways
    #[arg(long, value_name = "N", default_value_t = 19_000, value_parser = clap::value_parser!(u32).range(1..=19_500))]
    gateways: u32,
    /// How often the broker is killed in one storm; each time but the first when half are back
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=5))]
    kills: u32,
    /// How many seconds after a kill the broker is started again
    #[arg(long, value_name = "SECONDS", default_value_t = 1)]
    away: u64,
    /// The reconnect window, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    window: u64,
    /// Connections a second at the beginning
    #[arg(long, value_name = "N", default_value_t = 400, value_parser = clap::value_parser!(u32).range(1..=5000))]
    rate: u32,
}

/// What is counted over all links.
#[derive(Debug, Default)]
struct Counts {
    connected: AtomicU64,
    failed: AtomicU64,
    /// Failed attempts by kind: refused at once, ended while connecting, timed out.
    refused: AtomicU64,
    broken: AtomicU64,
    timed_out: AtomicU64,
}

/// Window of the delay before the first kill, when nothing is measured yet.
const GATHERING: Duration = Duration::from_secs(2);

struct World {
    /// The broker was killed: from now on the links wait as the agent does.
    storming: AtomicBool,
    counts: Counts,
    port: u16,
    window: Duration,
    tls: TlsConnector,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ran = runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(run(&arguments)));
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("storm: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &Arguments) -> Result<()> {
    let place = Place::new()?;
    let pki = Pki::new(&place.run().join("pki"))?;
    let port = coracle_testbed::free_port()?;
    let configuration = place.run().join("mosquitto.conf");
    std::fs::write(&configuration, settings(&place, &pki, port))?;
    let mut broker = start(&place, &configuration, port).await?;
    let window = Duration::from_secs(arguments.window);
    let tls = TlsConnector::from(Arc::new(client_config(&pki)?));
    let world =
        Arc::new(World { storming: false.into(), counts: Counts::default(), port, window, tls });

    let wanted = u64::from(arguments.gateways);
    let began = Instant::now();
    let mut pace = tokio::time::interval(Duration::from_secs(1) / arguments.rate);
    for number in 0..arguments.gateways {
        pace.tick().await;
        tokio::spawn(live(Arc::clone(&world), number as usize));
    }
    until(&world, wanted).await.context("while the gateways came for the first time")?;
    say(&format!("{wanted} connected in {:.0} s", began.elapsed().as_secs_f64()));
    println!("memory of the broker: {} MB", resident(broker.pid())? / 1024);

    world.storming.store(true, Ordering::Relaxed);
    let before = Figures::of(&world.counts);
    let killed = Instant::now();
    for kill in 1..=arguments.kills {
        broker.kill()?;
        say(&format!("kill {kill}: the broker is gone"));
        tokio::time::sleep(Duration::from_secs(arguments.away)).await;
        broker = start(&place, &configuration, port).await?;
        say(&format!("it is back after {:.1} s", killed.elapsed().as_secs_f64()));
        let enough = if kill == arguments.kills { wanted } else { wanted / 2 };
        watch(&world, wanted, enough, killed, before.failed).await?;
    }
    let took = killed.elapsed();
    let figures = Figures::of(&world.counts).since(&before);
    println!(
        "{wanted} gateways, {} kill(s), broker away for {} s each time, window {} s: all back \
         {:.0} s after the first kill; {} failed attempts ({} refused, {} ended while connecting, {} timed out)",
        arguments.kills,
        arguments.away,
        arguments.window,
        took.as_secs_f64(),
        figures.failed,
        figures.refused,
        figures.broken,
        figures.timed_out,
    );
    let met = took <= Duration::from_secs(150) && figures.failed < 2000;
    println!(
        "within 150 s and with fewer than 2000 failed attempts: {}",
        if met { "yes" } else { "no" }
    );
    Ok(())
}

struct Figures {
    failed: u64,
    refused: u64,
    broken: u64,
    timed_out: u64,
}

impl Figures {
    fn of(counts: &Counts) -> Self {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let (refused, broken) = (of(&counts.refused), of(&counts.broken));
        Self { failed: of(&counts.failed), refused, broken, timed_out: of(&counts.timed_out) }
    }

    fn since(&self, before: &Self) -> Self {
        Self {
            failed: self.failed - before.failed,
            refused: self.refused - before.refused,
            broken: self.broken - before.broken,
            timed_out: self.timed_out - before.timed_out,
        }
    }
}

fn say(text: &str) {
    eprintln!("storm: {text}");
}

/// Says every ten seconds how many are back, until `enough` are.
async fn watch(
    world: &World,
    wanted: u64,
    enough: u64,
    since: Instant,
    failed_before: u64,
) -> Result<()> {
    // Those that have not noticed yet are still counted as connected.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut told = Instant::now();
    loop {
        let connected = world.counts.connected.load(Ordering::Relaxed);
        if told.elapsed() >= Duration::from_secs(10) || connected >= enough {
            told = Instant::now();
            let failed = world.counts.failed.load(Ordering::Relaxed) - failed_before;
            let seconds = since.elapsed().as_secs_f64();
            say(&format!(
                "after {seconds:.0} s: {connected} of {wanted} connected, {failed} failed so far"
            ));
        }
        if connected >= enough {
            return Ok(());
        }
        ensure!(since.elapsed() < PATIENCE, "only {connected} were back after {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn until(world: &World, wanted: u64) -> Result<()> {
    let began = Instant::now();
    while world.counts.connected.load(Ordering::Relaxed) < wanted {
        let connected = world.counts.connected.load(Ordering::Relaxed);
        ensure!(began.elapsed() < PATIENCE, "only {connected} came in {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// One gateway's link, for ever: as `Link::run` does it.
async fn live(world: Arc<World>, number: usize) {
    let mut failures = 0;
    loop {
        let lasted = match connect(&world, number).await {
            Ok(stream) => {
                world.counts.connected.fetch_add(1, Ordering::Relaxed);
                let since = Instant::now();
                stay(stream).await;
                world.counts.connected.fetch_sub(1, Ordering::Relaxed);
                since.elapsed()
            }
            Err(kind) => {
                world.counts.failed.fetch_add(1, Ordering::Relaxed);
                let count = match kind {
                    Failure::Refused => &world.counts.refused,
                    Failure::Broken => &world.counts.broken,
                    Failure::TimedOut => &world.counts.timed_out,
                };
                count.fetch_add(1, Ordering::Relaxed);
                Duration::ZERO
            }
        };
        if !world.storming.load(Ordering::Relaxed) {
            tokio::time::sleep(GATHERING.mul_f64(jitter())).await;
            continue;
        }
        if lasted >= STABLE {
            failures = 0;
        }
        let delay = retry_delay(world.window, failures, Cause::Other, jitter());
        failures = failures.saturating_add(1);
        tokio::time::sleep(delay).await;
    }
}

enum Failure {
    Refused,
    Broken,
    TimedOut,
}

async fn connect(
    world: &World,
    number: usize,
) -> Result<TlsStream<tokio::net::TcpStream>, Failure> {
    let connected = tokio::time::timeout(CONNECT_TIMEOUT, handshake(world, number)).await;
    match connected {
        Err(_) => Err(Failure::TimedOut),
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => Err(Failure::Refused),
        Ok(Err(_)) => Err(Failure::Broken),
    }
}

async fn handshake(
    world: &World,
    number: usize,
) -> std::io::Result<TlsStream<tokio::net::TcpStream>> {
    let socket = TcpSocket::new_v4()?;
    let source = 2 + u8::try_from(number / OF_ONE_ADDRESS).unwrap_or(0);
    socket.bind((std::net::Ipv4Addr::new(127, 0, 0, source), 0).into())?;
    let stream = socket.connect((std::net::Ipv4Addr::LOCALHOST, world.port).into()).await?;
    stream.set_nodelay(true)?;
    let name = ServerName::try_from("localhost").map_err(std::io::Error::other)?;
    let mut stream = world.tls.connect(name, stream).await?;
    let gateway = gateway(number);
    stream.write_all(&connect_packet(gateway)?).await?;
    answer(&mut stream, 0x20).await?;
    stream.write_all(&subscribe_packet(gateway)).await?;
    answer(&mut stream, 0x90).await?;
    Ok(stream)
}

/// Reads one packet of that type with good reason codes.
async fn answer(stream: &mut TlsStream<tokio::net::TcpStream>, wanted: u8) -> std::io::Result<()> {
    let kind = stream.read_u8().await?;
    let length = stream.read_u8().await?;
    // Both answers are short; a longer one would need more bytes of length.
    let mut body = vec![0; usize::from(length & 0x7f)];
    stream.read_exact(&mut body).await?;
    let refused = match wanted {
        0x20 => body.get(1).is_none_or(|code| *code != 0),
        _ => body.iter().skip(3).any(|code| *code >= 0x80),
    };
    if kind != wanted || length >= 0x80 || refused {
        return Err(std::io::Error::other(format!("answered {kind:#x} {body:?}")));
    }
    Ok(())
}

/// Until the connection is lost.
async fn stay(mut stream: TlsStream<tokio::net::TcpStream>) {
    let mut buffer = [0; 64];
    while matches!(stream.read(&mut buffer).await, Ok(read) if read > 0) {}
}

fn gateway(number: usize) -> GatewayId {
    let text = format!("00000000-0000-4000-8000-{number:012}");
    text.parse().unwrap_or_else(|_| GatewayId::random())
}

/// MQTT 5.0 section 3.1: what the agent sends, with keep-alive 300 s.
fn connect_packet(gateway: GatewayId) -> std::io::Result<Vec<u8>> {
    let mut body = vec![0, 4, b'M', b'Q', b'T', b'T', 5, 0b0010_1100, 1, 44];
    // Session expiry 3600 s, receive maximum 8.
    body.extend([8, 0x11, 0, 0, 0x0e, 0x10, 0x21, 0, 8]);
    text(&mut body, &gateway.to_string());
    body.push(0);
    text(&mut body, &Topic::new(gateway, Kind::Status).to_string());
    let will = serde_json::to_string(&Presence::offline(gateway))?;
    text(&mut body, &will);
    Ok(frame(0x10, &body))
}

fn subscribe_packet(gateway: GatewayId) -> Vec<u8> {
    let mut body = vec![0, 1, 0];
    for kind in Kind::TO_GATEWAY {
        text(&mut body, &Topic::new(gateway, kind).to_string());
        body.push(1);
    }
    frame(0x82, &body)
}

fn frame(first: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    let mut left = body.len();
    loop {
        let low = (left & 0x7f) as u8;
        left >>= 7;
        frame.push(if left == 0 { low } else { low | 0x80 });
        if left == 0 {
            break;
        }
    }
    frame.extend(body);
    frame
}

fn text(body: &mut Vec<u8>, text: &str) {
    body.extend((text.len() as u16).to_be_bytes());
    body.extend(text.as_bytes());
}

fn client_config(pki: &Pki) -> Result<ClientConfig> {
    let own = pki.client("gateway")?;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(pki.ca())?)?;
    let chain: Vec<_> = CertificateDer::pem_file_iter(&own.cert)?.collect::<Result<_, _>>()?;
    let key = PrivateKeyDer::from_pem_file(&own.key)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    // One for all would make of each handshake a short one; after a kill there are none to resume.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

async fn start(place: &Place, configuration: &Path, port: u16) -> Result<Process> {
    let mut command = Command::new(coracle_testbed::installed("mosquitto")?);
    command.arg("-c").arg(configuration);
    let mut process = place.spawn("mosquitto", &command)?;
    let began = Instant::now();
    // Looked for in the list of sockets: a connection would be one more of those that storm it.
    while !listens(port)? {
        if !process.is_running() || began.elapsed() > CONNECT_TIMEOUT {
            bail!("the broker does not listen: {}", process.log());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(process)
}

/// proc(5): state 0A is LISTEN.
fn listens(port: u16) -> Result<bool> {
    let wanted = format!("0100007F:{port:04X} 00000000:0000 0A");
    let sockets = std::fs::read_to_string("/proc/net/tcp")?;
    Ok(sockets.lines().any(|line| line.contains(&wanted)))
}

fn resident(pid: i32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// What it keeps is kept in memory: a kill loses all, which is the harder case.
fn settings(place: &Place, pki: &Pki, port: u16) -> String {
    let (ca, server) = (pki.ca(), pki.server());
    format!(
        "user root
persistence false
persistence_location {}/
log_dest none
listener {port} 127.0.0.1
cafile {}
certfile {}
keyfile {}
require_certificate true
use_identity_as_username true
allow_anonymous false
",
        place.data().display(),
        ca.display(),
        server.cert.display(),
        server.key.display(),
    )
}
