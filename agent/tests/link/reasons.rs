//! What a broker says when it refuses or ends a connection, and what the link makes of it.

use std::time::Duration;

use coracle::config::Endpoint;
use coracle::link::{Hints, LinkEvent};
use coracle_protocol::GatewayId;

use crate::bed::{self, Gateway, gateway_of};
use crate::scripted::{CONNECT, Hostile, NEW_SESSION, PINGREQ};

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

/// A CONNACK that refuses, with a server reference (0x1c) if there is one.
fn refusal(code: u8, reference: &str) -> Vec<u8> {
    let length = u8::try_from(reference.len()).unwrap();
    let properties = if length == 0 { vec![] } else { vec![0x1c, 0, length] };
    let properties = [properties, reference.into()].concat();
    let size = u8::try_from(properties.len()).unwrap();
    [vec![0x20, 3 + size, 0, code, size], properties].concat()
}

/// A DISCONNECT of the same.
fn farewell(code: u8, reference: &str) -> Vec<u8> {
    let refused = refusal(code, reference);
    [vec![0xe0, refused[1] - 1], refused[3..].to_vec()].concat()
}

/// How long the link waits after this CONNACK, with a window of 10 s.
fn after_refusal(code: u8) -> (String, Duration) {
    let broker = Hostile::new();
    let gateway = gateway_of(&broker);
    gateway.handle.hint(Hints { reconnect_window: Some(seconds(10.0)) });
    let _peer = broker.accept(&refusal(code, ""));
    gateway.lost()
}

/// How long the link waits after this DISCONNECT, with a window of 10 s.
fn after_farewell(code: u8) -> (String, Duration) {
    let broker = Hostile::new();
    let gateway = gateway_of(&broker);
    gateway.handle.hint(Hints { reconnect_window: Some(seconds(10.0)) });
    let mut peer = broker.accept(&NEW_SESSION);
    peer.grant();
    peer.send(&farewell(code, ""));
    gateway.lost()
}

#[test]
fn a_busy_broker_is_left_alone_for_longer() {
    for code in [0x88, 0x89, 0x97, 0x9f] {
        let (reason, delay) = after_refusal(code);
        assert!(delay >= seconds(5.0) && delay <= seconds(20.0), "{code:x} {reason}: {delay:?}");
    }
    for code in [0x89, 0x97] {
        let (reason, delay) = after_farewell(code);
        assert!(delay >= seconds(5.0) && delay <= seconds(20.0), "{code:x} {reason}: {delay:?}");
    }
}

#[test]
fn a_broker_that_shuts_down_is_not_asked_at_once() {
    let (reason, delay) = after_farewell(0x8b);
    assert!(reason.contains("ServerShuttingDown"), "{reason}");
    assert!(delay >= seconds(2.5) && delay <= seconds(10.0), "{delay:?}");
}

#[test]
fn a_broker_that_does_not_want_this_gateway_is_asked_seldom() {
    for code in [0x85, 0x86, 0x87, 0x8a, 0x8c] {
        let (reason, delay) = after_refusal(code);
        assert!(delay >= seconds(50.0) && delay <= seconds(100.0), "{code:x} {reason}: {delay:?}");
    }
    let (reason, delay) = after_farewell(0x87);
    assert!(delay >= seconds(50.0), "{reason}: {delay:?}");
}

#[test]
fn somebody_else_with_this_identity_is_named_and_not_pushed_out_at_once() {
    let (reason, delay) = after_farewell(0x8e);
    assert!(reason.contains("another client connected with this gateway's identity"), "{reason}");
    assert!(delay >= seconds(5.0) && delay <= seconds(10.0), "{delay:?}");
}

#[test]
fn a_window_from_the_fleet_takes_the_place_of_the_configured_one() {
    let broker = Hostile::new();
    let gateway = gateway_of(&broker);
    // The configured window is 1 s; of 300 s, a delay under 1 s is drawn once in 300 times, and the
    // lower edge for brokers that shut down is a quarter.
    gateway.handle.hint(Hints { reconnect_window: Some(seconds(300.0)) });
    let mut peer = broker.accept(&NEW_SESSION);
    peer.grant();
    peer.send(&farewell(0x8b, ""));
    let (_, delay) = gateway.lost();
    assert!(delay >= seconds(75.0) && delay <= seconds(300.0), "{delay:?}");
}

fn endpoint(broker: &Hostile) -> String {
    format!("localhost:{}", broker.port())
}

/// Two brokers; the gateway is configured with the first and may go to the second.
fn two() -> (Hostile, Hostile, Gateway) {
    let first = Hostile::new();
    let second = first.another();
    let id = GatewayId::random();
    let mut config = bed::config(&first.pki, id, first.port());
    config.alternatives = vec![Endpoint::try_from(endpoint(&second)).unwrap()];
    (first, second, Gateway::start(config, id))
}

#[test]
fn a_server_that_is_allowed_is_gone_to_and_come_back_from() {
    for (code, connected) in [(0x9c, false), (0x9d, false), (0x9c, true), (0x9d, true)] {
        let (first, second, gateway) = two();
        let reference = format!("evil.example:8883 {}", endpoint(&second));
        if connected {
            let mut peer = first.accept(&NEW_SESSION);
            peer.grant();
            peer.send(&farewell(code, &reference));
        } else {
            first.accept(&refusal(code, &reference));
        }
        let (reason, delay) = gateway.lost();
        assert!(reason.contains(&format!("going to {}", endpoint(&second))), "{reason}");
        assert!(delay <= seconds(2.0), "{delay:?}");
        let mut peer = second.accept(&NEW_SESSION);
        peer.grant();
        gateway.set_reported("here");
        assert_eq!(peer.publish().1, "here");
        drop(peer);
        // What was configured is asked again.
        first.accept(&NEW_SESSION).grant();
    }
}

#[test]
fn a_server_that_is_not_allowed_is_named_and_not_gone_to() {
    let (first, second, gateway) = two();
    for (reference, said) in [
        ("evil.example:8883", "it names evil.example:8883, which is not in link.alternatives"),
        ("", "it names no server"),
    ] {
        first.accept(&refusal(0x9c, reference));
        let (reason, _) = gateway.lost();
        assert!(reason.contains("UseAnotherServer"), "{reason}");
        assert!(reason.contains(said), "{reason}");
    }
    first.accept(&NEW_SESSION).grant();
    second.listener.set_nonblocking(true).unwrap();
    assert!(second.listener.accept().is_err(), "it went where it may not");
}

#[test]
fn two_servers_do_not_send_a_gateway_to_and_fro_without_pause() {
    let (first, second, gateway) = two();
    gateway.handle.hint(Hints { reconnect_window: Some(seconds(3600.0)) });
    first.accept(&refusal(0x9c, &endpoint(&second)));
    assert!(gateway.lost().1 <= seconds(2.0));
    second.accept(&refusal(0x9c, &endpoint(&first)));
    // Drawn from an hour: 2 s or less come once in 1,800 times.
    let (reason, delay) = gateway.lost();
    assert!(delay > seconds(2.0), "{reason}: {delay:?}");
}

#[test]
fn a_refused_topic_is_told_once_and_orders_still_come() {
    let broker = Hostile::new();
    let gateway = gateway_of(&broker);
    for told in [true, false] {
        let mut peer = broker.accept(&NEW_SESSION);
        peer.answer_subscription(&[1, 0x87, 1, 0x80]);
        gateway.set_reported(if told { "first" } else { "second" });
        let (packet, _) = peer.publish();
        peer.acknowledge(packet);
        drop(peer);
        let mut refused = Vec::new();
        gateway.wait("the end of the connection", 2 * bed::SOON, |event| match event {
            LinkEvent::NotSubscribed { topic, reason } => {
                refused.push(format!("{} {reason}", topic.rsplit_once('/').unwrap().1));
                None
            }
            LinkEvent::Disconnected { .. } => Some(()),
            _ => None,
        });
        let expected: &[&str] =
            if told { &["commands NotAuthorized", "chunks Unspecified"] } else { &[] };
        assert_eq!(refused, expected);
    }
}

#[test]
fn the_keep_alive_that_the_broker_asks_for_is_kept_to() {
    let broker = Hostile::new();
    let id = GatewayId::random();
    let mut config = bed::config(&broker.pki, id, broker.port());
    config.keep_alive_seconds = 1200;
    let _gateway = Gateway::start(config, id);
    let mut peer = broker.connection();
    let body = peer.expect(CONNECT);
    assert_eq!(u16::from_be_bytes([body[8], body[9]]), 1200);
    // Server Keep Alive (0x13) 1: shorter than any that may be configured.
    peer.send(&[0x20, 6, 0, 0, 3, 0x13, 0, 1]);
    peer.grant();
    let began = std::time::Instant::now();
    for _ in 0..3 {
        assert_eq!(peer.read().unwrap().0, PINGREQ);
        peer.send(&[0xd0, 0]);
    }
    assert!(began.elapsed() < seconds(6.0), "{:?}", began.elapsed());
}
