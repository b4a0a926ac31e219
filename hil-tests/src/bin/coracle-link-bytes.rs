//! `coracle-link-bytes`: what an idle gateway's link costs in bytes on the wire. In: arguments.
//! Out: a table on standard output, one for each profile; progress on standard error.
//!
//! Each profile has a gateway with the shipped agent and a broker on a network of its own, whose
//! loopback is made like a wire: packets of at most 1500 bytes, none joined. Every IP packet
//! between the two is counted there, heads and bare acknowledgements with it. What a packet holds
//! is told by its size, since all is encrypted: a TLS 1.3 record is 22 bytes longer than what is in
//! it, and nothing else is as short as MQTT's ping.

use std::fmt::Write as _;
use std::os::fd::AsRawFd as _;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, ensure};
use clap::Parser;
use coracle_hil::{Gateway, Options};
use coracle_testbed::Result;
use coracle_testbed::process::run;
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

/// What is sent in this time after the connection is made belongs to making it.
const CONNECTING: Duration = Duration::from_secs(30);
const DAY: f64 = 86_400.0;
const PATIENCE: Duration = Duration::from_secs(60);
/// The type of a packet that leaves; on loopback each is seen a second time as it arrives.
const LEAVING: u8 = 4;
/// A PINGREQ or PINGRESP (2 bytes, MQTT 5.0 section 3.12) as a record of TLS 1.3: a head of 5
/// bytes, the type and a tag of 16 (RFC 8446 section 5.2).
const PING: usize = 24;

/// Measures what an idle gateway's link costs a day, in bytes on the wire
///
/// Needs root. Starts its own containerds, brokers and agents and ends them again.
#[derive(Debug, Parser)]
#[command(name = "coracle-link-bytes", bin_name = "scripts/link-bytes")]
struct Arguments {
    /// Minutes that each link is watched, all at once
    #[arg(long, value_name = "N", default_value_t = 45, value_parser = clap::value_parser!(u64).range(1..=1440))]
    minutes: u64,
    /// A keep-alive in seconds, for a profile of its own; may be given several times
    #[arg(long, value_name = "SECONDS", default_values_t = [300, 1200])]
    keep_alive: Vec<u16>,
    /// Further lines at the top of each agent's configuration
    #[arg(long, value_name = "TOML", default_value = "")]
    lines: String,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let duration = Duration::from_secs(60 * arguments.minutes);
    let measured = std::thread::scope(|scope| {
        let lines = &arguments.lines;
        let profiles = arguments.keep_alive.iter();
        let threads: Vec<_> =
            profiles.map(|&seconds| scope.spawn(move || watch(seconds, duration, lines))).collect();
        let joined = threads.into_iter().map(|thread| match thread.join() {
            Ok(table) => table,
            Err(_) => Err(anyhow!("a measurement panicked")),
        });
        joined.collect::<Vec<_>>()
    });
    let mut code = ExitCode::SUCCESS;
    for table in measured {
        match table {
            Ok(table) => println!("{table}"),
            Err(error) => {
                eprintln!("link-bytes: {error:#}");
                code = ExitCode::FAILURE;
            }
        }
    }
    code
}

/// Watches one gateway's link, and gives its table.
fn watch(keep_alive_seconds: u16, duration: Duration, lines: &str) -> Result<String> {
    let options = Options { keep_alive_seconds, private_network: true, ..Options::default() };
    let mut gateway = Gateway::prepare(options)?;
    gateway.lines = lines.to_owned();
    let place = gateway.place().clone();
    let wire = ["mtu", "1500", "gso_max_size", "1500", "gso_max_segs", "1"];
    run(place.command("ip").args(["link", "set", "dev", "lo"]).args(wire), PATIENCE)?;

    let port = gateway.broker.port();
    let over = Arc::new(AtomicBool::new(false));
    let (begun, ended) = (Instant::now(), Arc::clone(&over));
    let there = place.clone();
    let capture = std::thread::spawn(move || there.in_network(|| capture(port, begun, &ended))?);
    gateway.start_agent()?;
    gateway.wait("the link to stand", PATIENCE, |status| status.connected().then_some(()))?;
    eprintln!("link-bytes: keep-alive {keep_alive_seconds} s: watching for {duration:?}");
    let end = begun + duration;
    while Instant::now() < end {
        ensure!(gateway.agent_is_running(), "the agent ended: {}", gateway.agent_log());
        std::thread::sleep((end - Instant::now()).min(Duration::from_secs(1)));
    }
    let connected = gateway.status()?.connected();
    over.store(true, Ordering::Relaxed);
    let packets = capture.join().map_err(|_| anyhow!("the capture panicked"))??;
    ensure!(connected, "the link did not stand at the end");
    let told = own_counters(&gateway).context("cannot ask the agent for its own figures")?;
    Ok(table(keep_alive_seconds, duration, &packets) + &told)
}

/// What the agent says of its link.
fn own_counters(gateway: &Gateway) -> Result<String> {
    let mut command = Command::new(coracle_testbed::bin("coracle")?);
    command.arg("--socket").arg(gateway.socket()).args(["status", "--json"]);
    let printed = coracle_testbed::process::run_with_input(&mut command, &[], PATIENCE)?.stdout;
    let status: serde_json::Value = serde_json::from_slice(&printed)?;
    Ok(format!("  the agent's own figures: {}\n", status["link"]))
}

/// One IP packet between the agent and the broker.
struct Packet {
    at: Duration,
    /// From the gateway.
    up: bool,
    /// With its heads.
    bytes: usize,
    /// Without them.
    payload: usize,
    /// Opens or ends a TCP connection (SYN, FIN or RST).
    edge: bool,
}

/// Every packet from and to `port` until `ended`; over its own loopback.
fn capture(port: u16, begun: Instant, ended: &AtomicBool) -> Result<Vec<Packet>> {
    let all = SockProtocol::EthAll;
    let socket = socket(AddressFamily::Packet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, all)?;
    setsockopt(&socket, ReceiveTimeout, &TimeVal::milliseconds(200))?;
    let (mut packets, mut buffer) = (Vec::new(), [0; 2048]);
    while !ended.load(Ordering::Relaxed) {
        match recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut buffer) {
            Ok((length, from)) => {
                let leaving = from.is_some_and(|from| from.pkttype() == LEAVING);
                let packet = parse(buffer.get(..length).unwrap_or_default(), port, begun.elapsed());
                packets.extend(packet.filter(|_| leaving));
            }
            Err(nix::Error::EAGAIN | nix::Error::EINTR) => {}
            Err(error) => return Err(error).context("cannot capture"),
        }
    }
    Ok(packets)
}

/// IPv4 (RFC 791) with TCP (RFC 9293).
fn parse(bytes: &[u8], port: u16, at: Duration) -> Option<Packet> {
    let two =
        |bytes: &[u8], at: usize| Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
    let first = *bytes.first()?;
    if first >> 4 != 4 || *bytes.get(9)? != 6 {
        return None;
    }
    let total = usize::from(two(bytes, 2)?);
    let head = usize::from(first & 15) * 4;
    let tcp = bytes.get(head..)?;
    let (from, to) = (two(tcp, 0)?, two(tcp, 2)?);
    if from != port && to != port {
        return None;
    }
    let tcp_head = usize::from(tcp.get(12)? >> 4) * 4;
    let payload = total.checked_sub(head + tcp_head)?;
    Some(Packet { at, up: to == port, bytes: total, payload, edge: tcp.get(13)? & 0b111 != 0 })
}

#[derive(Default)]
struct Sum {
    packets: usize,
    bytes: usize,
}

impl Sum {
    fn add(&mut self, packet: &Packet) {
        self.packets += 1;
        self.bytes += packet.bytes;
    }
}

fn table(keep_alive: u16, duration: Duration, packets: &[Packet]) -> String {
    let opened = packets.iter().find(|packet| packet.edge).map_or(Duration::ZERO, |p| p.at);
    let idle_from = opened + CONNECTING;
    let (mut connecting, mut pings, mut bare, mut up, mut down) =
        (Sum::default(), Sum::default(), Sum::default(), Sum::default(), Sum::default());
    for packet in packets {
        let sum = match packet {
            packet if packet.at < idle_from => &mut connecting,
            Packet { payload: 0, .. } => &mut bare,
            Packet { payload: PING, .. } => &mut pings,
            Packet { up: true, .. } => &mut up,
            _ => &mut down,
        };
        sum.add(packet);
    }
    let idle = duration.saturating_sub(idle_from).as_secs_f64().max(1.0);
    let a_day = |sum: &Sum| sum.bytes as f64 * DAY / idle / 1000.0;
    let mut text = format!(
        "keep-alive {keep_alive} s, watched for {:.0} s of which {idle:.0} s idle\n  {:<34}{:>8}{:>9}{:>12}\n",
        duration.as_secs_f64(),
        "while idle",
        "packets",
        "bytes",
        "kB a day",
    );
    let mut all = Sum::default();
    for (name, sum) in [
        ("pings and their answers", &pings),
        ("messages of the gateway", &up),
        ("messages and answers of the broker", &down),
        ("bare acknowledgements of TCP", &bare),
    ] {
        all.packets += sum.packets;
        all.bytes += sum.bytes;
        row(&mut text, name, sum, a_day(sum));
    }
    row(&mut text, "in all", &all, a_day(&all));
    row(&mut text, "connecting, once", &connecting, connecting.bytes as f64 / 1000.0);
    let edges = packets.iter().filter(|packet| packet.edge && packet.at >= idle_from).count();
    if edges > 0 {
        // A ping or report more or less is then not what this is about.
        text.push_str(&format!("  the link was lost meanwhile: {edges} packets open or end it\n"));
    }
    let mut sizes = std::collections::BTreeMap::<(bool, usize), usize>::new();
    let idle = packets.iter().filter(|p| p.at >= idle_from && p.payload != 0 && p.payload != PING);
    idle.for_each(|packet| *sizes.entry((!packet.up, packet.payload)).or_default() += 1);
    let sizes = sizes.into_iter().map(|((down, payload), count)| {
        format!("{count} x {payload} {}", if down { "down" } else { "up" })
    });
    let sizes: Vec<_> = sizes.collect();
    if !sizes.is_empty() {
        text.push_str(&format!("  sizes without heads: {}\n", sizes.join(", ")));
    }
    text
}

fn row(text: &mut String, name: &str, sum: &Sum, kilobytes: f64) {
    // Writing to a string cannot fail.
    writeln!(text, "  {name:<34}{:>8}{:>9}{kilobytes:>12.1}", sum.packets, sum.bytes).ok();
}
