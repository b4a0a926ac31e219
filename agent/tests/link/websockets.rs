//! The link over WebSockets: mosquitto's, and some that misbehave.

use std::io::Write as _;

use coracle_protocol::GatewayId;
use coracle_protocol::limits::MAX_ENVELOPE_BYTES;
use coracle_protocol::topic::Kind;

use crate::bed::{self, Bed, Gateway, SOON};
use crate::scripted::Hostile;

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
    let largest = "x".repeat(MAX_ENVELOPE_BYTES);
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
