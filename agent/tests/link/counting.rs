//! What the link counts against what the kernel says went over its connection.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;

use coracle::link::{Delivery, Parcel, Usage};
use coracle_core::budget::{Bytes, TrafficKind};
use coracle_protocol::topic::Kind;

use crate::bed::{Bed, Gateway, KEEP_ALIVE, SOON};

/// Headers of IPv4 and TCP with timestamps.
const HEADERS: u64 = 52;

/// The connections of a relay, which end when they are cleared.
type Open = Arc<Mutex<Vec<TcpStream>>>;

/// Hands everything on between a gateway and a broker, one connection after the other.
fn relay(broker: u16) -> (u16, Open) {
    let open = Open::default();
    let connections = Arc::clone(&open);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for gateway in listener.incoming() {
            let gateway = gateway.unwrap();
            let broker = TcpStream::connect(("127.0.0.1", broker)).unwrap();
            for stream in [&gateway, &broker] {
                stream.set_nodelay(true).unwrap();
            }
            connections.lock().unwrap().push(gateway.try_clone().unwrap());
            let (from, to) = (gateway.try_clone().unwrap(), broker.try_clone().unwrap());
            thread::spawn(move || hand_on(from, to));
            thread::spawn(move || hand_on(broker, gateway));
        }
    });
    (port, open)
}

fn hand_on(mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    to.shutdown(std::net::Shutdown::Both).ok();
}

/// What the kernel counted on the gateway's connection to the relay: its TCP_INFO by ss(8).
fn kernel(port: u16) -> Bytes {
    let filter = format!("127.0.0.1:{port}");
    let output = Command::new("ss").args(["-tinpHO", "dst", &filter]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    println!("{text}");
    // Of this process: others use the same addresses.
    let ours = format!("pid={},", std::process::id());
    let lines: Vec<&str> = text.lines().filter(|line| line.contains(&ours)).collect();
    assert_eq!(lines.len(), 1, "{text}");
    let value = |name: &str| {
        let mut words = lines[0].split_whitespace();
        let value = words.find_map(|word| word.strip_prefix(name)?.strip_prefix(':'));
        value.unwrap_or("0").parse::<u64>().unwrap()
    };
    Bytes {
        sent: value("bytes_acked") + HEADERS * value("segs_out"),
        received: value("bytes_received") + HEADERS * value("segs_in"),
    }
}

fn within_a_tenth(what: &str, counted: u64, real: u64) {
    println!("{what}: counted {counted}, really {real}");
    assert!(counted.abs_diff(real) * 10 <= real, "{what}: counted {counted}, really {real}");
}

fn between(later: Usage, earlier: Usage, kind: TrafficKind) -> u64 {
    let (later, earlier) = (later.of(kind), earlier.of(kind));
    later.sent + later.received - earlier.sent - earlier.received
}

#[test]
fn the_count_is_what_went_over_the_wire() {
    let bed = Bed::new();
    let (port, _) = relay(bed.broker.port());
    let mut config = bed.config();
    config.port = port;
    let gateway = Gateway::start(config, bed.id);
    gateway.connected();
    let check = |what: &str| {
        // Nothing is under way.
        thread::sleep(std::time::Duration::from_millis(100));
        let (counted, real) = (gateway.handle.usage().total(), kernel(port));
        within_a_tenth(&format!("{what}, sent"), counted.sent, real.sent);
        within_a_tenth(&format!("{what}, received"), counted.received, real.received);
        gateway.handle.usage()
    };
    let listener = bed.broker.listen("coracle/#").unwrap();
    gateway.handle.set_presence(vec![b'p'; 300]);
    listener.wait("presence", SOON, |m| m.payload.len() == 300).unwrap();
    let connected = check("connected");

    for n in 0..10 {
        gateway.set_reported(&format!("{n}{}", "r".repeat(700)));
        let first = n.to_string().into_bytes();
        listener.wait("the report", SOON, |m| m.payload.starts_with(&first)).unwrap();
    }
    let reported = check("reports");
    assert!(between(reported, connected, TrafficKind::Reports) > 10 * 800);
    assert_eq!(between(reported, connected, TrafficKind::Orders), 0);

    for n in 0..10 {
        bed.publish_order(&format!("{n}{}", "o".repeat(900)), false);
        let (_, token) = gateway.order();
        gateway.handle.acknowledge(token);
    }
    let ordered = check("orders");
    assert!(between(ordered, reported, TrafficKind::Orders) > 10 * 1000);
    assert_eq!(between(ordered, reported, TrafficKind::Reports), 0);

    for ticket in 0..10 {
        let (reply, correlation, payload) = (None, Vec::new(), vec![b'h'; 80]);
        let kind = Kind::Health;
        let parcel = Parcel { ticket, kind, reply, correlation, payload, acknowledged: false };
        gateway.handle.send(parcel).unwrap();
        assert_eq!(gateway.delivery(ticket), Delivery::Done);
    }
    let healthy = check("health");
    let health = between(healthy, ordered, TrafficKind::Health);
    assert!((10 * 200..10 * 300).contains(&health), "{health}");

    let (reply, correlation, payload) = (None, Vec::new(), vec![b'l'; 48 * 1024]);
    let kind = Kind::Output;
    let parcel = Parcel { ticket: 99, kind, reply, correlation, payload, acknowledged: true };
    gateway.handle.send(parcel).unwrap();
    assert_eq!(gateway.delivery(99), Delivery::Done);
    let logged = check("output");
    assert!(between(logged, healthy, TrafficKind::Logs) > 48 * 1024);

    gateway.stays_quiet(std::time::Duration::from_secs(u64::from(KEEP_ALIVE) * 2 + 1));
    let idle = check("signs of life");
    let alive = between(idle, logged, TrafficKind::KeepAlive);
    assert!((204..=3 * 204).contains(&alive), "{alive}");
    assert_eq!(alive % 204, 0, "each is 204 bytes");
}

#[test]
fn a_connection_with_a_known_broker_costs_less_than_the_first() {
    let bed = Bed::new();
    let (port, open) = relay(bed.broker.port());
    let mut config = bed.config();
    config.port = port;
    let gateway = Gateway::start(config, bed.id);
    let all = || {
        let Bytes { sent, received } = gateway.handle.usage().total();
        sent + received
    };
    let mut costs = Vec::new();
    for _ in 0..3 {
        let before = all();
        gateway.connected();
        gateway.set_reported(&costs.len().to_string());
        let topic = bed.topic(Kind::Reported);
        let reported = costs.len().to_string().into_bytes();
        let listener = bed.broker.listen(&topic).unwrap();
        listener.wait("the report", SOON, |m| m.payload == reported).unwrap();
        for stream in open.lock().unwrap().drain(..) {
            stream.shutdown(std::net::Shutdown::Both).unwrap();
        }
        gateway.disconnected(SOON);
        costs.push(all() - before);
    }
    println!("the first connection costs {} bytes, later ones {:?}", costs[0], &costs[1..]);
    assert!(costs[1] * 10 < costs[0] * 8, "{costs:?}");
}
