//! Brokers that misbehave, each written out packet by packet (MQTT 5.0, OASIS standard).

use std::io::Write as _;
use std::time::{Duration, Instant};

use coracle::link::{Document, LinkEvent};
use coracle_protocol::GatewayId;
use rustls::HandshakeKind;

use crate::bed::{self, Gateway, KEEP_ALIVE, SOON, gateway_of};
use crate::scripted::{Hostile, NEW_SESSION, OLD_SESSION, PINGREQ};

#[test]
fn tls_sessions_are_resumed() {
    let broker = Hostile::new();
    let _gateway = gateway_of(&broker);
    for wanted in [HandshakeKind::Full, HandshakeKind::Resumed, HandshakeKind::Resumed] {
        let mut peer = broker.accept(&NEW_SESSION);
        peer.grant();
        assert_eq!(peer.0.conn.handshake_kind(), Some(wanted));
    }
}

#[test]
fn a_broker_whose_certificate_is_for_another_name_is_not_trusted() {
    let broker = Hostile::new();
    let id = GatewayId::random();
    let mut config = bed::config(&broker.pki, id, broker.port());
    config.host = "127.0.0.2".into();
    let gateway = Gateway::start(config, id);
    assert!(broker.connection().read().is_err());
    let said = gateway.disconnected(SOON);
    assert!(said.contains("for another name than link.host"), "{said}");
}

#[test]
fn a_document_over_the_brokers_limit_is_told_and_the_link_goes_on() {
    let broker = Hostile::new();
    let gateway = gateway_of(&broker);
    gateway.handle.set_presence("p".repeat(300).into_bytes());
    gateway.set_reported("small");
    // CONNACK with Maximum Packet Size (0x27) 200.
    let mut peer = broker.accept(&[0x20, 8, 0, 0, 5, 0x27, 0, 0, 0, 200]);
    peer.grant();
    let (packet, payload) = peer.publish();
    assert_eq!(payload, "small");
    peer.acknowledge(packet);
    let reason = gateway.wait("what was not published", SOON, |event| match event {
        LinkEvent::NotPublished { document: Document::Presence, reason } => Some(reason),
        LinkEvent::Disconnected { reason, .. } => panic!("{reason}"),
        _ => None,
    });
    assert!(reason.contains("larger than the 200"), "{reason}");
    gateway.set_reported("next");
    assert_eq!(peer.publish().1, "next");
}

#[test]
fn an_acknowledgement_of_nothing_ends_the_connection_and_not_the_link() {
    for packet in [7u16, 16, 17, 60_000] {
        let broker = Hostile::new();
        let gateway = gateway_of(&broker);
        gateway.set_reported("report");
        let mut peer = broker.accept(&NEW_SESSION);
        peer.grant();
        peer.publish();
        peer.acknowledge(packet.to_be_bytes());
        let reason = gateway.disconnected(SOON);
        assert!(reason.contains("broke the protocol"), "{reason}");
        let mut peer = broker.accept(&OLD_SESSION);
        peer.grant();
        assert_eq!(peer.publish().1, "report");
    }
}

#[test]
fn after_a_lost_session_it_subscribes_and_publishes_the_newest() {
    let broker = Hostile::new();
    let gateway = gateway_of(&broker);
    gateway.set_reported("old");
    let mut peer = broker.accept(&NEW_SESSION);
    peer.grant();
    assert_eq!(peer.publish().1, "old");
    gateway.set_reported("older than the newest");
    gateway.set_reported("newest");
    drop(peer);
    gateway.disconnected(SOON);
    let mut peer = broker.accept(&NEW_SESSION);
    peer.grant();
    let (packet, payload) = peer.publish();
    assert_eq!(payload, "newest");
    peer.acknowledge(packet);
    // Nothing of the earlier connection comes after it.
    let (kind, _) = peer.read().unwrap();
    assert_eq!(kind, PINGREQ);
}

#[test]
fn a_broker_that_takes_one_packet_at_a_time_gets_one_at_a_time() {
    let broker = Hostile::new();
    let gateway = gateway_of(&broker);
    gateway.handle.set_presence(b"presence".as_slice());
    gateway.set_reported("0");
    // Receive Maximum (0x21) 1.
    let mut peer = broker.accept(&[0x20, 6, 0, 0, 3, 0x21, 0, 1]);
    peer.grant();
    let (packet, payload) = peer.publish();
    assert_eq!(payload, "presence");
    peer.acknowledge(packet);
    for n in 0..40 {
        let (packet, payload) = peer.publish();
        assert_eq!(payload, n.to_string());
        gateway.set_reported(&(n + 1).to_string());
        peer.acknowledge(packet);
    }
}

#[test]
fn a_receive_maximum_of_nothing_is_an_error() {
    let broker = Hostile::new();
    let gateway = gateway_of(&broker);
    let _peer = broker.accept(&[0x20, 6, 0, 0, 3, 0x21, 0, 0]);
    let reason = gateway.disconnected(SOON);
    assert!(reason.contains("receive maximum of 0"), "{reason}");
}

#[test]
fn a_server_keep_alive_of_nothing_does_not_make_it_ping_without_pause() {
    let broker = Hostile::new();
    let gateway = gateway_of(&broker);
    // Server Keep Alive (0x13) 0.
    let mut peer = broker.accept(&[0x20, 6, 0, 0, 3, 0x13, 0, 0]);
    peer.grant();
    let (began, mut pings) = (Instant::now(), 0);
    while began.elapsed() < Duration::from_secs(2 * u64::from(KEEP_ALIVE) + 1) {
        let (kind, _) = peer.read().unwrap();
        assert_eq!(kind, PINGREQ);
        peer.send(&[0xd0, 0]);
        pings += 1;
    }
    assert!((2..=5).contains(&pings), "{pings} pings");
    gateway.set_reported("alive");
    assert_eq!(peer.publish().1, "alive");
}

#[test]
fn a_broker_that_answers_pings_and_nothing_else_is_left() {
    let broker = Hostile::new();
    let gateway = gateway_of(&broker);
    gateway.set_reported("report");
    let mut peer = broker.accept(&NEW_SESSION);
    peer.grant();
    peer.publish();
    while let Ok((kind, _)) = peer.read() {
        assert_eq!(kind, PINGREQ);
        peer.send(&[0xd0, 0]);
    }
    let reason = gateway.disconnected(SOON);
    assert!(reason.contains("did not acknowledge"), "{reason}");
    broker.accept(&OLD_SESSION).grant();
}

#[test]
fn refusals_are_told_in_the_brokers_words() {
    let broker = Hostile::new();
    let gateway = gateway_of(&broker);
    let _peer = broker.accept(&[0x20, 3, 0, 0x87, 0]);
    let reason = gateway.disconnected(SOON);
    assert!(reason.contains("refused the connection: NotAuthorized"), "{reason}");

    let mut peer = broker.accept(&NEW_SESSION);
    peer.answer_subscription(&[0x87, 1, 1, 1]);
    let reason = gateway.disconnected(SOON);
    assert!(reason.contains("refused the subscription to coracle/1/"), "{reason}");
    assert!(reason.contains("NotAuthorized"), "{reason}");

    let mut peer = broker.accept(&NEW_SESSION);
    peer.grant();
    // DISCONNECT, session taken over.
    peer.send(&[0xe0, 2, 0x8e, 0]);
    let reason = gateway.disconnected(SOON);
    assert!(reason.contains("closed the connection: SessionTakenOver"), "{reason}");
}

#[test]
fn nonsense_ends_the_connection_and_not_the_link() {
    let broker = Hostile::new();
    let gateway = gateway_of(&broker);
    // xorshift64 (Marsaglia 2003): the same nonsense every time.
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_be_bytes()
    };
    for _ in 0..4 {
        let mut peer = broker.accept(&NEW_SESSION);
        // A well-formed frame of every type around random content, until the link hangs up.
        for kind in (0u8..16).cycle().take(2000) {
            let content = random();
            let length = usize::from(content[7] % 8);
            let mut frame = vec![kind << 4 | (content[6] & 0x0f), u8::try_from(length).unwrap()];
            frame.extend_from_slice(&content[..length]);
            if peer.0.write_all(&frame).and_then(|()| peer.0.flush()).is_err() {
                break;
            }
        }
        drop(peer);
        gateway.disconnected(SOON);
    }
    broker.accept(&NEW_SESSION).grant();
}

#[test]
fn a_topic_that_was_not_asked_for_is_acknowledged_and_dropped() {
    let broker = Hostile::new();
    let gateway = gateway_of(&broker);
    let mut peer = broker.accept(&NEW_SESSION);
    peer.grant();
    peer.send(&[0x32, 7, 0, 1, b'x', 0, 9, 0, b'!']);
    assert_eq!(peer.expect(4), [0, 9]);
    let orders = gateway.pending().into_iter().filter(|e| matches!(e, LinkEvent::Desired { .. }));
    assert_eq!(orders.count(), 0);
}
