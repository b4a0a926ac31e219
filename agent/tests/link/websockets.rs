//! The link over WebSockets: mosquitto's, and some that misbehave.

use std::io::{BufRead as _, BufReader, Write as _};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use coracle_protocol::GatewayId;
use coracle_protocol::limits::MAX_PUBLISHED_BYTES;
use coracle_protocol::topic::Kind;

use crate::bed::{self, Bed, Gateway, SOON};
use crate::scripted::{Hostile, NEW_SESSION, Peer};

#[test]
fn orders_and_reports_go_over_a_websocket() {
    let bed = Bed::new();
    let port = bed.broker.websocket_port();
    let mut config = bed.config();
    (config.port, config.websocket_path) = (port, Some("/mqtt".into()));
    let gateway = Gateway::start(config, bed.id);
    gateway.connected();
    let listener = bed.broker.listen(&bed.topic(Kind::Reported)).unwrap();
    gateway.set_reported("report");
    listener.wait("the report", SOON, |m| m.payload == b"report").unwrap();
    let large = "l".repeat(90_000);
    gateway.set_reported(&large);
    listener.wait("the large report", SOON, |m| m.payload == large.as_bytes()).unwrap();
    bed.publish_order("order", false);
    let (order, token) = gateway.order();
    assert_eq!(order, "order");
    gateway.handle.acknowledge(token);
    let largest = "x".repeat(MAX_PUBLISHED_BYTES);
    bed.publish_order(&largest, false);
    let (order, token) = gateway.order();
    assert_eq!(order.len(), largest.len());
    gateway.handle.acknowledge(token);
    gateway.stays_quiet(std::time::Duration::from_secs(u64::from(bed::KEEP_ALIVE) * 2 + 1));
    gateway.leave();
}

/// What the link says of a server that answers its request for a WebSocket like this.
fn check(answer: &[u8], said: &str) {
    let broker = Hostile::new();
    let id = GatewayId::random();
    let mut config = bed::config(&broker.pki, id, broker.port());
    config.websocket_path = Some("/mqtt".into());
    let gateway = Gateway::start(config, id);
    let mut peer = broker.connection();
    peer.0.write_all(answer).unwrap();
    peer.0.flush().unwrap();
    let reason = gateway.disconnected(2 * SOON);
    assert!(reason.contains(said), "{said}: {reason}");
}

#[test]
fn a_server_without_websockets_is_told() {
    let none = "offers no WebSocket for MQTT at /mqtt";
    check(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", none);
    check(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", none);
    check(b"\x20\x03\x00\x00\x00\r\n\r\n", none);
    // Another's answer: the key is not ours.
    check(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
          Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
        none,
    );
}

#[test]
fn a_server_that_answers_without_end_costs_no_memory() {
    let broker = Hostile::new();
    let id = GatewayId::random();
    let mut config = bed::config(&broker.pki, id, broker.port());
    config.websocket_path = Some("/mqtt".into());
    let gateway = Gateway::start(config, id);
    let mut peer = broker.connection();
    let mut sent = 0;
    if peer.0.write_all(b"HTTP/1.1 101 Switching Protocols\r\n").is_ok() {
        while peer.0.write_all(&[b'a'; 1000]).is_ok() {
            sent += 1000;
            assert!(sent < 50_000_000, "it is read without end");
        }
    }
    let reason = gateway.disconnected(2 * SOON);
    assert!(reason.contains("says too much") || reason.contains("no WebSocket"), "{reason}");
}

/// The next connection, after the upgrade to a WebSocket (RFC 6455 section 4.2.2).
fn upgraded(broker: &Hostile) -> Peer {
    let mut peer = broker.connection();
    let lines = BufReader::new(&mut peer.0).lines().map_while(Result::ok);
    let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
    assert_eq!(head[0], "GET /mqtt HTTP/1.1");
    let field = |name: &str| {
        let fields = head.iter().filter_map(|line| line.split_once(": "));
        let mut found = fields.filter(|(known, _)| known.eq_ignore_ascii_case(name));
        found.next().unwrap_or_else(|| panic!("no {name}: {head:?}")).1
    };
    assert_eq!(field("sec-websocket-protocol"), "mqtt");
    let key = format!("{}258EAFA5-E914-47DA-95CA-C5AB0DC85B11", field("sec-websocket-key"));
    let digest = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, key.as_bytes());
    let accept = STANDARD.encode(digest);
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Protocol: mqtt\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    peer.send(answer.as_bytes());
    peer
}

/// A short frame that is not masked (section 5.2).
fn frame(first: u8, content: &[u8]) -> Vec<u8> {
    [&[first, u8::try_from(content.len()).unwrap()], content].concat()
}

#[test]
fn frames_need_not_be_packets_and_bad_ones_end_the_connection() {
    let close = frame(0x88, &1001u16.to_be_bytes());
    // 1 GiB of binary message, of which nothing comes.
    let endless = [&[0x82, 127][..], &(1u64 << 30).to_be_bytes()].concat();
    for (bad, said) in [
        (frame(0x81, b"text"), "broke"),
        (endless, "broke"),
        (frame(0x82, b"\xff\xff\xff\xff\xff\xff"), "broke the protocol"),
        (frame(0x83, b"reserved"), "broke"),
        (close, "closed the connection"),
    ] {
        let broker = Hostile::new();
        let id = GatewayId::random();
        let mut config = bed::config(&broker.pki, id, broker.port());
        config.websocket_path = Some("/mqtt".into());
        let gateway = Gateway::start(config, id);
        let mut peer = upgraded(&broker);
        // A CONNACK in two messages with a ping between them, the second one in two fragments.
        peer.send(&frame(0x82, &NEW_SESSION[..1]));
        peer.send(&frame(0x89, b"ping"));
        peer.send(&frame(0x02, &NEW_SESSION[1..3]));
        peer.send(&frame(0x80, &NEW_SESSION[3..]));
        gateway.connected();
        peer.send(&bad);
        let reason = gateway.disconnected(SOON);
        assert!(reason.contains(said), "{said}: {reason}");
    }
}
