//! A hundred thousand things that a broker may do to a link: it recovers, everything handed to it has
//! an outcome, and its memory stays flat.
//!
//! The test runs in a process of its own, so that the memory that is measured is the link's and the
//! scripted broker's and nobody else's.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::Command;
use std::sync::mpsc;
use std::thread;

use coracle::config::Endpoint;
use coracle::link::{Link, LinkEvent, LinkHandle, Parcel};
use coracle_protocol::GatewayId;
use coracle_protocol::topic::{Kind, Topic};

use crate::bed;
use crate::scripted::{
    CONNECT, Hostile, NEW_SESSION, OLD_SESSION, Peer, SUBSCRIBE, packet, private_kb, publish,
};

const SEED: u64 = 0x2545_f491_4f6c_dd1d;
const EVENTS: usize = 100_000;

/// After how many events memory is measured first: caches are full by then.
const WARM: usize = 20_000;

/// What memory may differ by: buffers of threads that the measure finds in use.
const TOLERANCE_KB: u64 = 768;

/// Tells the process of its own what it is.
const ALONE: &str = "CORACLE_STORM";

/// xorshift64 (Marsaglia 2003).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() >> 16).unwrap() % end
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next().to_be_bytes()[3]).collect()
    }
}

/// The broker of the storm.
struct Storm {
    broker: Hostile,
    id: GatewayId,
    random: Random,
    done: usize,
    samples: Vec<u64>,
}

impl Storm {
    fn topic(&self, kind: Kind) -> String {
        Topic::new(self.id, kind).to_string()
    }

    fn count(&mut self) {
        self.done += 1;
        if self.done >= WARM && self.done.is_multiple_of(10_000) {
            self.samples.push(private_kb());
        }
    }

    /// Something that a link has to bear.
    fn bearable(&mut self) -> Vec<u8> {
        let id = u16::try_from(1 + self.random.below(8)).unwrap();
        let (desired, commands) = (self.topic(Kind::Desired), self.topic(Kind::Commands));
        let length = self.random.below(600);
        let payload = self.random.bytes(length);
        match self.random.below(10) {
            // New, the same again, retained ones of old, with QoS 0, and for nobody.
            0 => publish(0x32, &desired, id, &[], &payload),
            1 => publish(0x3a, &desired, id, &[], b"duplicate"),
            2 => publish(0x33, &desired, id, &[], b"stale"),
            3 => publish(0x30, &desired, id, &[], &payload),
            4 => publish(0x32, "coracle/1/somebody/desired", id, &[], &payload),
            5 => {
                // Correlation data (0x09) that is too long, a response topic (0x08) of another
                // gateway, a user property (0x26) that means nothing.
                let correlation = self.random.bytes(120);
                let reply = b"coracle/1/else/results/x";
                let properties = [
                    &[0x09, 0, 120][..],
                    &correlation,
                    &[0x08, 0, 24],
                    reply,
                    &[0x26, 0, 1, b'a', 0, 1, b'b'],
                ];
                let properties = properties.concat();
                // One byte holds up to 127.
                let properties =
                    if properties.len() > 127 { &properties[..123] } else { &properties };
                publish(0x32, &commands, id, properties, &payload)
            }
            6 => publish(0x30, &self.topic(Kind::Receipts), id, &[], &payload),
            7 => publish(0x32, &self.topic(Kind::Chunks), id, &[], &payload),
            8 => publish(0x32, &commands, id, &[0x02, 0, 0, 0, 0], &payload),
            _ => vec![0xd0, 0],
        }
    }

    /// Something after which a link has to end the connection.
    fn unbearable(&mut self) -> Vec<u8> {
        let desired = self.topic(Kind::Desired);
        let random = self.random.bytes(24);
        match self.random.below(14) {
            0 => packet(0x40, &[0xff, 0xfe]),
            1 => packet(0x90, &[0x77, 0x77, 0, 1, 1, 1, 1]),
            2 => publish(0x34, &desired, 1, &[], b"QoS 2"),
            3 => publish(0x36, &desired, 1, &[], b"QoS 3"),
            4 => publish(0x32, &desired, 1, &[0x23, 0, 1], b"alias"),
            5 => publish(0x32, &desired, 1, &[0x7e, 0, 1], b"unknown property"),
            6 => publish(0x32, &desired, 0, &[], b"packet id 0"),
            7 => [vec![0x32, 0xff, 0xff, 0x7f], random].concat(),
            8 => vec![0x32, 0xff, 0xff, 0xff, 0xff, 0xff],
            9 => packet(0xe0, &[0x80 | (random[0] & 0x3f)]),
            10 => {
                let text = b"nowhere:1 \0 else";
                let length = u8::try_from(text.len()).unwrap();
                packet(0xe0, &[&[0x9c, length + 3, 0x1c, 0, length][..], text].concat())
            }
            11 => NEW_SESSION.to_vec(),
            12 => packet(0x40, &[0, 1, 0, 0x80]),
            _ => [vec![0xf0, 24], random].concat(),
        }
    }

    /// One connection, from its beginning to some end.
    fn connection(&mut self) -> std::io::Result<()> {
        self.count();
        match self.random.below(24) {
            0 => {
                drop(self.broker.socket());
                return Ok(());
            }
            1 => {
                let noise = self.random.bytes(40);
                return self.broker.socket().write_all(&noise);
            }
            _ => {}
        }
        let mut peer = self.broker.connection();
        expect(&mut peer, CONNECT)?;
        match self.random.below(24) {
            0 => return Ok(()),
            1 => return say(&mut peer, &NEW_SESSION[..2]),
            2 => return say(&mut peer, &[0x20, 3, 0, 0x89, 0]),
            3 => {
                let noise = self.unbearable();
                return say(&mut peer, &noise);
            }
            4 => return say(&mut peer, &[0x20, 6, 0, 0, 3, 0x21, 0, 0]),
            n if n % 2 == 0 => say(&mut peer, &NEW_SESSION)?,
            _ => say(&mut peer, &OLD_SESSION)?,
        }
        if self.random.below(24) == 0 {
            return Ok(());
        }
        let asked = expect(&mut peer, SUBSCRIBE)?;
        match self.random.below(24) {
            0 => return Ok(()),
            1 => return say(&mut peer, &[0x90, 7, asked[0], asked[1], 0, 0x87, 1, 1, 1]),
            2 => say(&mut peer, &[0x90, 7, asked[0], asked[1], 0, 1, 0x87, 0x80, 1])?,
            _ => say(&mut peer, &[0x90, 7, asked[0], asked[1], 0, 1, 1, 1, 1])?,
        }
        for _ in 0..30 + self.random.below(100) {
            self.count();
            let packet = self.bearable();
            say(&mut peer, &packet)?;
        }
        self.count();
        if self.random.below(3) > 0 {
            let packet = self.unbearable();
            say(&mut peer, &packet)?;
        }
        Ok(())
    }
}

fn say(peer: &mut Peer, bytes: &[u8]) -> std::io::Result<()> {
    peer.0.write_all(bytes)?;
    peer.0.flush()
}

fn expect(peer: &mut Peer, wanted: u8) -> std::io::Result<Vec<u8>> {
    let (kind, body) = peer.read()?;
    assert_eq!(kind, wanted);
    Ok(body)
}

/// The gateway's side: everything is acknowledged, and a parcel is always on its way. What became of
/// them is counted; the end of it comes by `told`.
async fn agent(
    handle: LinkHandle,
    mut events: tokio::sync::mpsc::Receiver<LinkEvent>,
    told: mpsc::Sender<Vec<u8>>,
) {
    let (mut ticket, mut open) = (0, BTreeMap::new());
    while let Some(event) = events.recv().await {
        match event {
            LinkEvent::Desired { envelope, token } => {
                handle.acknowledge(token);
                if envelope.starts_with(b"last") && told.send(envelope).is_err() {
                    return;
                }
            }
            LinkEvent::Command { token, correlation, .. } => {
                assert!(correlation.len() <= 128);
                handle.acknowledge(token);
            }
            LinkEvent::Parcel { ticket, .. } => {
                assert_eq!(open.remove(&ticket), Some(()), "parcel {ticket} came back twice");
            }
            _ => {}
        }
        handle.set_reported(format!("report {ticket}").into_bytes());
        while open.len() < 3 {
            ticket += 1;
            let parcel = Parcel {
                ticket,
                kind: Kind::Events,
                reply: None,
                correlation: Vec::new(),
                payload: vec![b'p'; 100],
                acknowledged: ticket % 2 == 0,
            };
            if handle.send(parcel).is_err() {
                break;
            }
            open.insert(ticket, ());
        }
    }
}

#[test]
fn memory_stays_flat_over_a_hundred_thousand_hostile_events() {
    if std::env::var_os(ALONE).is_none() {
        let name = thread::current().name().unwrap().to_owned();
        let mut command = Command::new(std::env::current_exe().unwrap());
        let output =
            command.args(["--exact", &name, "--nocapture"]).env(ALONE, "1").output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}\n{said}");
        println!("{text}");
        return;
    }
    println!("seed {SEED:#x}");
    let id = GatewayId::random();
    let broker = Hostile::new();
    let mut config = bed::config(&broker.pki, id, broker.port());
    config.alternatives = vec![Endpoint { host: "nowhere.invalid".into(), port: 1 }];
    let (link, handle, events) = Link::new(config, id, b"offline".to_vec());
    let link = link.without_pauses();
    let (told, tells) = mpsc::channel();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            tokio::join!(link.run(std::future::pending()), agent(handle, events, told));
        });
    });
    let mut storm = Storm { broker, id, random: Random(SEED), done: 0, samples: Vec::new() };
    let (mut connections, mut cut) = (0, 0);
    while storm.done < EVENTS {
        connections += 1;
        // The link may hang up first.
        cut += usize::from(storm.connection().is_err());
    }
    println!(
        "{} events over {connections} connections, {cut} of them ended by the link; private kB: {:?}",
        storm.done, storm.samples
    );
    // A broker that behaves: all works again. Connections that wait to be accepted come first.
    let desired = storm.topic(Kind::Desired);
    let mut peer = loop {
        let mut peer = storm.broker.connection();
        if expect(&mut peer, CONNECT).is_ok() {
            break peer;
        }
    };
    peer.send(&NEW_SESSION);
    peer.grant();
    peer.send(&publish(0x32, &desired, 3, &[], b"last"));
    assert_eq!(tells.recv().unwrap(), b"last");
    let (mut acknowledged, mut reported) = (false, false);
    while !(acknowledged && reported) {
        let (kind, body) = peer.read().unwrap();
        acknowledged |= kind == 4 && body[..2] == [0, 3];
        if kind == 3 {
            let topic = usize::from(u16::from_be_bytes([body[0], body[1]]));
            reported |= body[2..2 + topic].ends_with(b"reported");
            // QoS 0 parcels have no id; their frames begin otherwise, which is not seen here.
            let payload = &body[2 + topic..];
            if !payload.starts_with(&[0, b'p']) {
                peer.acknowledge([payload[0], payload[1]]);
            }
        }
    }
    let first = storm.samples[0];
    let last = *storm.samples.last().unwrap();
    assert!(last <= first + TOLERANCE_KB, "from {first} kB to {last} kB: {:?}", storm.samples);
}
