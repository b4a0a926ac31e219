//! What is known to go wrong with MQTT clients, each met and survived.

use std::io::Write as _;
use std::time::{Duration, Instant};

use coracle::link::{Delivery, LinkEvent, Parcel};
use coracle_protocol::GatewayId;
use coracle_protocol::topic::{Kind, Topic};

use crate::bed::{self, Gateway, KEEP_ALIVE, SOON, gateway_of};
use crate::scripted::{
    CONNECT, Hostile, NEW_SESSION, OLD_SESSION, PINGREQ, PUBLISH, SUBSCRIBE, publish,
};

fn parcel(ticket: u64) -> Parcel {
    let payload = format!("parcel {ticket}").into_bytes();
    let (reply, correlation, acknowledged) = (None, Vec::new(), true);
    Parcel { ticket, kind: Kind::Events, reply, correlation, payload, acknowledged }
}

/// A large one that nobody acknowledges.
fn unacknowledged(ticket: u64) -> Parcel {
    Parcel { payload: vec![b'x'; 120_000], acknowledged: false, ..parcel(ticket) }
}

/// A PUBLISH of QoS 1 without properties.
fn message(topic: &str, packet: u16, payload: &[u8]) -> Vec<u8> {
    publish(0x32, topic, packet, &[], payload)
}

#[test]
fn what_was_in_flight_when_the_session_was_lost_is_handed_back() {
    let broker = Hostile::new();
    let gateway = gateway_of(&broker);
    let mut peer = broker.accept(&NEW_SESSION);
    peer.grant();
    gateway.connected();
    gateway.handle.send(parcel(1)).unwrap();
    peer.publish();
    gateway.handle.send(parcel(2)).unwrap();
    drop(peer);
    assert_eq!(gateway.delivery(1), Delivery::Lost);
    assert_eq!(gateway.delivery(2), Delivery::Lost);
    let mut peer = broker.accept(&NEW_SESSION);
    peer.grant();
    gateway.connected();
    gateway.handle.send(parcel(1)).unwrap();
    let (packet, payload) = peer.publish();
    assert_eq!(payload, "parcel 1");
    peer.acknowledge(packet);
    assert_eq!(gateway.delivery(1), Delivery::Done);
}

#[test]
fn a_peer_that_stops_reading_is_left_after_one_and_a_half_keep_alives() {
    let broker = Hostile::new();
    let gateway = gateway_of(&broker);
    let mut peer = broker.accept(&NEW_SESSION);
    peer.grant();
    gateway.connected();
    // More than the kernels of both sides hold.
    let (mut moved, mut ticket) = (Instant::now(), 0);
    let reason = 'stuck: loop {
        ticket += u64::from(gateway.handle.send(unacknowledged(ticket)).is_ok());
        for event in gateway.pending() {
            match event {
                LinkEvent::Parcel { delivery: Delivery::Done, .. } => moved = Instant::now(),
                LinkEvent::Disconnected { reason, .. } => break 'stuck reason,
                _ => {}
            }
        }
        assert!(moved.elapsed() < SOON, "it is stuck");
        std::thread::yield_now();
    };
    assert!(reason.contains("nothing was heard"), "{reason}");
    let limit = Duration::from_secs(KEEP_ALIVE.into()).mul_f64(1.5) + Duration::from_secs(2);
    assert!(moved.elapsed() <= limit, "{:?}", moved.elapsed());
    assert!(ticket > 4, "{ticket}");
    drop(peer);
    broker.accept(&NEW_SESSION).grant();
}

#[test]
fn a_peer_that_is_slow_to_read_is_still_heard() {
    let broker = Hostile::new();
    let id = GatewayId::random();
    let gateway = Gateway::start(bed::config(&broker.pki, id, broker.port()), id);
    let mut peer = broker.accept(&NEW_SESSION);
    peer.grant();
    gateway.connected();
    // It reads nothing, so what is published piles up, and yet what it sends is delivered.
    let (mut moved, mut ticket) = (Instant::now(), 0);
    while moved.elapsed() < Duration::from_millis(500) {
        if gateway.handle.send(unacknowledged(ticket)).is_ok() {
            (moved, ticket) = (Instant::now(), ticket + 1);
        }
        std::thread::yield_now();
    }
    let desired = Topic::new(id, Kind::Desired).to_string();
    peer.send(&message(&desired, 3, b"order"));
    assert_eq!(gateway.order().0, "order");
}

#[test]
fn topic_aliases_are_neither_used_nor_taken() {
    let broker = Hostile::new();
    let gateway = gateway_of(&broker);
    // Topic Alias Maximum (0x22) 10.
    let mut peer = broker.accept(&[0x20, 6, 0, 0, 3, 0x22, 0, 10]);
    peer.grant();
    for n in 0..3 {
        gateway.set_reported(&n.to_string());
        let body = peer.expect(PUBLISH);
        let topic = usize::from(u16::from_be_bytes([body[0], body[1]]));
        assert!(body[2..2 + topic].ends_with(b"/reported"));
        assert_eq!(body[4 + topic], 0, "no properties");
        peer.acknowledge([body[2 + topic], body[3 + topic]]);
    }
    // A message with alias 1 (0x23), which was not allowed.
    peer.send(&[0x32, 9, 0, 1, b'x', 0, 9, 3, 0x23, 0, 1]);
    let reason = gateway.disconnected(SOON);
    assert!(reason.contains("topic alias"), "{reason}");
    broker.accept(&OLD_SESSION).grant();
}

#[test]
fn one_acknowledgement_too_many_and_then_a_lost_session_wedge_nothing() {
    let broker = Hostile::new();
    let gateway = gateway_of(&broker);
    gateway.set_reported("one");
    let mut peer = broker.accept(&NEW_SESSION);
    peer.grant();
    let (packet, _) = peer.publish();
    peer.acknowledge(packet);
    gateway.set_reported("two");
    let (second, _) = peer.publish();
    assert_ne!(packet, second);
    // The first again, while the second is in flight.
    peer.acknowledge(packet);
    let reason = gateway.disconnected(SOON);
    assert!(reason.contains("acknowledgement of something that was not sent"), "{reason}");
    let mut peer = broker.accept(&NEW_SESSION);
    peer.grant();
    let (packet, payload) = peer.publish();
    assert_eq!(payload, "two");
    peer.acknowledge(packet);
    gateway.set_reported("three");
    assert_eq!(peer.publish().1, "three");
}

#[test]
fn a_receive_maximum_that_shrinks_loses_nothing() {
    let broker = Hostile::new();
    let gateway = gateway_of(&broker);
    let mut peer = broker.accept(&NEW_SESSION);
    peer.grant();
    gateway.connected();
    gateway.handle.set_presence(b"presence".as_slice());
    gateway.set_reported("report");
    peer.publish();
    drop(peer);
    gateway.disconnected(SOON);
    // Receive Maximum (0x21) 1, the session present.
    let mut peer = broker.accept(&[0x20, 6, 1, 0, 3, 0x21, 0, 1]);
    peer.grant();
    gateway.connected();
    gateway.handle.send(parcel(1)).unwrap();
    let mut came = Vec::new();
    for _ in 0..3 {
        let (packet, payload) = peer.publish();
        came.push(payload);
        peer.acknowledge(packet);
    }
    came.sort();
    assert_eq!(came, ["parcel 1", "presence", "report"]);
    assert_eq!(gateway.delivery(1), Delivery::Done);
}

#[test]
fn a_farewell_waits_for_its_turn_where_the_broker_takes_one_at_a_time() {
    let broker = Hostile::new();
    let gateway = gateway_of(&broker);
    gateway.set_reported("report");
    let mut peer = broker.accept(&[0x20, 6, 0, 0, 3, 0x21, 0, 1]);
    peer.grant();
    let (packet, _) = peer.publish();
    let left = std::thread::spawn(move || gateway.leave());
    // Nothing comes before the report is acknowledged.
    peer.0.sock.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(peer.read().is_err());
    peer.0.sock.set_read_timeout(Some(SOON)).unwrap();
    peer.acknowledge(packet);
    let (packet, payload) = peer.publish();
    assert!(payload.contains("offline"), "{payload}");
    peer.acknowledge(packet);
    assert!(peer.expect(14).is_empty());
    left.join().unwrap();
}

#[test]
fn a_message_of_any_allowed_size_arrives_and_a_larger_one_ends_the_connection() {
    let broker = Hostile::new();
    let id = GatewayId::random();
    let gateway = Gateway::start(bed::config(&broker.pki, id, broker.port()), id);
    let desired = Topic::new(id, Kind::Desired).to_string();
    let mut peer = broker.accept(&NEW_SESSION);
    peer.grant();
    for size in [1, 10_240, 10_241, 100_000, 130_000] {
        peer.send(&message(&desired, 1, &vec![b'x'; size]));
        assert_eq!(gateway.order().0.len(), size);
    }
    // The link hangs up when it has seen the length.
    peer.0.write_all(&message(&desired, 1, &vec![b'x'; 131_072])).ok();
    let reason = gateway.disconnected(SOON);
    assert!(reason.contains("larger than the 131072 allowed"), "{reason}");
    // The retained one is there as ever; the link does not spin on it without pause.
    let mut peer = broker.accept(&OLD_SESSION);
    peer.grant();
    peer.send(&message(&desired, 1, b"small"));
    assert_eq!(gateway.order().0, "small");
}

#[test]
fn a_packet_that_ends_too_soon_is_an_error_and_not_passed_over() {
    // A PUBACK with a reason code and a property length that never ends; a SUBACK without codes; a
    // PUBLISH without its property length.
    for bad in [&[0x40, 4, 0, 1, 0, 0x80][..], &[0x90, 3, 0, 1, 0], &[0x30, 3, 0, 1, b'x']] {
        let broker = Hostile::new();
        let gateway = gateway_of(&broker);
        let mut peer = broker.accept(&NEW_SESSION);
        peer.grant();
        peer.send(bad);
        let reason = gateway.disconnected(SOON);
        assert!(reason.contains("broke the protocol"), "{bad:x?}: {reason}");
    }
}

/// Ends a connection at some state of the protocol; the next one works.
fn end(certificates: &Hostile, at: &str, script: impl Fn(&Hostile)) {
    let broker = certificates.another();
    let gateway = gateway_of(&broker);
    gateway.set_reported("report");
    script(&broker);
    let reason = gateway.disconnected(SOON);
    let known = ["closed the connection", "cannot reach the broker", "no TLS connection"];
    assert!(known.iter().any(|known| reason.contains(known)), "{at}: {reason}");
    let mut peer = broker.accept(&OLD_SESSION);
    peer.grant();
    let (packet, payload) = peer.publish();
    assert_eq!(payload, "report", "{at}");
    peer.acknowledge(packet);
    assert_eq!(peer.read().unwrap().0, PINGREQ, "{at}");
}

#[test]
fn a_connection_may_end_at_any_state_of_the_protocol() {
    let pki = Hostile::new();
    let served = |broker: &Hostile| {
        let mut peer = broker.accept(&NEW_SESSION);
        peer.grant();
        peer
    };
    std::thread::scope(|all| {
        all.spawn(|| end(&pki, "before TLS", |broker| drop(broker.socket())));
        all.spawn(|| {
            end(&pki, "half of a TLS record", |broker| {
                broker.socket().write_all(&[0x16, 3, 3, 1, 0, 2, 0]).unwrap();
            })
        });
        all.spawn(|| {
            end(&pki, "after CONNECT", |broker| {
                broker.connection().expect(CONNECT);
            })
        });
        all.spawn(|| {
            end(&pki, "half of a CONNACK", |broker| {
                drop(broker.accept(&NEW_SESSION[..3]));
            })
        });
        all.spawn(|| end(&pki, "after CONNACK", |broker| drop(broker.accept(&NEW_SESSION))));
        all.spawn(|| {
            end(&pki, "after SUBSCRIBE", |broker| {
                broker.accept(&NEW_SESSION).expect(SUBSCRIBE);
            })
        });
        all.spawn(|| {
            end(&pki, "half of a SUBACK", |broker| {
                let mut peer = broker.accept(&NEW_SESSION);
                let asked = peer.expect(SUBSCRIBE);
                peer.send(&[0x90, 7, asked[0], asked[1], 0, 1]);
            })
        });
        all.spawn(|| end(&pki, "after SUBACK", |broker| drop(served(broker))));
        all.spawn(|| end(&pki, "after PUBLISH", |broker| drop(served(broker).publish())));
        all.spawn(|| {
            end(&pki, "half of a PUBACK", |broker| {
                let mut peer = served(broker);
                let (packet, _) = peer.publish();
                peer.send(&[0x40, 2, packet[0]]);
            })
        });
        all.spawn(|| {
            end(&pki, "half of a PUBLISH", |broker| {
                served(broker).send(&[0x32, 100, 0, 40, b'c']);
            })
        });
    });
}
