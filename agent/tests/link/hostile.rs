//! Brokers that misbehave, each written out packet by packet (MQTT 5.0, OASIS standard).

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use coracle::link::{Document, LinkEvent};
use coracle_protocol::GatewayId;
use coracle_testbed::{Pki, Place};
use rustls::{HandshakeKind, ServerConfig, ServerConnection, StreamOwned};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::bed::{self, Gateway, KEEP_ALIVE, SOON};

const CONNECT: u8 = 1;
const PUBLISH: u8 = 3;
const SUBSCRIBE: u8 = 8;
const PINGREQ: u8 = 12;

const NEW_SESSION: [u8; 5] = [0x20, 3, 0, 0, 0];
const OLD_SESSION: [u8; 5] = [0x20, 3, 1, 0, 0];

struct Hostile {
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    pki: Pki,
    _place: Place,
}

impl Hostile {
    fn new() -> Self {
        let (place, pki) = bed::place_and_pki();
        let server = pki.server();
        let chain = CertificateDer::pem_file_iter(&server.cert).unwrap();
        let key = PrivateKeyDer::from_pem_file(&server.key).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain.map(Result::unwrap).collect(), key)
            .unwrap();
        let listener = TcpListener::bind("0.0.0.0:0").unwrap();
        Self { listener, tls: Arc::new(tls), pki, _place: place }
    }

    fn gateway(&self) -> Gateway {
        let id = GatewayId::random();
        let port = self.listener.local_addr().unwrap().port();
        Gateway::start(bed::config(&self.pki, id, port), id)
    }

    /// The next connection, after its CONNECT was answered with `connack`.
    fn accept(&self, connack: &[u8]) -> Peer {
        let mut peer = self.connection();
        peer.expect(CONNECT);
        peer.send(connack);
        peer
    }

    fn connection(&self) -> Peer {
        self.listener.set_nonblocking(true).unwrap();
        let socket = coracle_testbed::wait_for("a connection", 2 * SOON, || {
            self.listener.accept().ok().map(|(socket, _)| socket)
        });
        let socket = socket.unwrap();
        socket.set_nonblocking(false).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        let connection = ServerConnection::new(Arc::clone(&self.tls)).unwrap();
        Peer(StreamOwned::new(connection, socket))
    }
}

struct Peer(StreamOwned<ServerConnection, TcpStream>);

impl Peer {
    fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
        self.0.flush().unwrap();
    }

    /// The next packet: type and body.
    fn read(&mut self) -> std::io::Result<(u8, Vec<u8>)> {
        let mut byte = [0];
        self.0.read_exact(&mut byte)?;
        let (kind, mut length, mut shift) = (byte[0] >> 4, 0, 0);
        loop {
            self.0.read_exact(&mut byte)?;
            length |= usize::from(byte[0] & 0x7f) << shift;
            shift += 7;
            if byte[0] & 0x80 == 0 {
                break;
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        Ok((kind, body))
    }

    /// The next packet, which is to be of this type; pings are answered.
    fn expect(&mut self, wanted: u8) -> Vec<u8> {
        loop {
            let (kind, body) = self.read().unwrap();
            if kind == wanted {
                return body;
            }
            assert_eq!(kind, PINGREQ, "{body:?}");
            self.send(&[0xd0, 0]);
        }
    }

    /// Answers the subscription, in however many packets it comes: QoS 1 on every topic.
    fn grant(&mut self) {
        self.answer_subscription(&[1; 4]);
    }

    /// Answers the subscription with one code for each of its topics.
    fn answer_subscription(&mut self, mut codes: &[u8]) {
        while !codes.is_empty() {
            let body = self.expect(SUBSCRIBE);
            let (now, later) = codes.split_at(filters(&body));
            let length = u8::try_from(3 + now.len()).unwrap();
            self.send(&[&[0x90, length, body[0], body[1], 0], now].concat());
            codes = later;
        }
    }

    /// The next publish: packet id and payload (no properties).
    fn publish(&mut self) -> ([u8; 2], String) {
        let body = self.expect(PUBLISH);
        let at = 2 + usize::from(u16::from_be_bytes([body[0], body[1]]));
        let payload = String::from_utf8(body[at + 3..].to_vec()).unwrap();
        ([body[at], body[at + 1]], payload)
    }

    fn acknowledge(&mut self, [high, low]: [u8; 2]) {
        self.send(&[0x40, 2, high, low]);
    }
}

/// How many topics a SUBSCRIBE without properties asks for.
fn filters(body: &[u8]) -> usize {
    let (mut at, mut count) = (3, 0);
    while at < body.len() {
        at += 3 + usize::from(u16::from_be_bytes([body[at], body[at + 1]]));
        count += 1;
    }
    count
}

#[test]
fn tls_sessions_are_resumed() {
    let broker = Hostile::new();
    let _gateway = broker.gateway();
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
    let mut config = bed::config(&broker.pki, id, broker.listener.local_addr().unwrap().port());
    config.host = "127.0.0.2".into();
    let gateway = Gateway::start(config, id);
    assert!(broker.connection().read().is_err());
    let said = gateway.disconnected(SOON);
    assert!(said.contains("for another name than link.host"), "{said}");
}

#[test]
fn a_document_over_the_brokers_limit_is_told_and_the_link_goes_on() {
    let broker = Hostile::new();
    let gateway = broker.gateway();
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
        let gateway = broker.gateway();
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
    let gateway = broker.gateway();
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
    let gateway = broker.gateway();
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
    let gateway = broker.gateway();
    let _peer = broker.accept(&[0x20, 6, 0, 0, 3, 0x21, 0, 0]);
    let reason = gateway.disconnected(SOON);
    assert!(reason.contains("receive maximum of 0"), "{reason}");
}

#[test]
fn a_server_keep_alive_of_nothing_does_not_make_it_ping_without_pause() {
    let broker = Hostile::new();
    let gateway = broker.gateway();
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
    let gateway = broker.gateway();
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
    let gateway = broker.gateway();
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
    let gateway = broker.gateway();
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
    let gateway = broker.gateway();
    let mut peer = broker.accept(&NEW_SESSION);
    peer.grant();
    peer.send(&[0x32, 7, 0, 1, b'x', 0, 9, 0, b'!']);
    assert_eq!(peer.expect(4), [0, 9]);
    let orders = gateway.pending().into_iter().filter(|e| matches!(e, LinkEvent::Desired { .. }));
    assert_eq!(orders.count(), 0);
}
