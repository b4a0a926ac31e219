use coracle_protocol::GatewayId;
use coracle_protocol::limits::MAX_PACKET_BYTES;
use coracle_protocol::topic::{Kind, Topic};

use crate::bed::{Bed, SOON};

#[test]
fn an_order_comes_again_until_it_is_acknowledged() {
    let bed = Bed::new();
    let gateway = bed.gateway();
    assert!(!gateway.connected());
    bed.broker.retained("warm/up", SOON / 20).unwrap();
    bed.publish_order("first", false);
    assert_eq!(gateway.order().0, "first");
    gateway.crash();

    let gateway = bed.gateway();
    assert!(gateway.connected());
    let (order, token) = gateway.order();
    assert_eq!(order, "first");
    gateway.handle.acknowledge(token);
    bed.publish_order("second", false);
    let (order, token) = gateway.order();
    assert_eq!(order, "second");
    gateway.handle.acknowledge(token);
    // Leaving waits for the farewell's acknowledgement, so the order's was sent before.
    gateway.leave();

    bed.publish_order("while away", false);
    let gateway = bed.gateway();
    assert!(gateway.connected());
    assert_eq!(gateway.order().0, "while away");
}

#[test]
fn the_retained_order_comes_with_every_connection() {
    let bed = Bed::new();
    bed.publish_order("newest", true);
    for session_present in [false, true, true] {
        let gateway = bed.gateway();
        assert_eq!(gateway.connected(), session_present);
        let (order, token) = gateway.order();
        assert_eq!(order, "newest");
        gateway.handle.acknowledge(token);
        gateway.leave();
    }
}

#[test]
fn an_acknowledgement_of_an_earlier_connection_is_void() {
    let mut bed = Bed::new();
    let gateway = bed.gateway();
    gateway.connected();
    bed.publish_order("order", false);
    let (_, earlier) = gateway.order();
    bed.broker.stop().unwrap();
    gateway.disconnected(SOON);
    bed.broker.start_again().unwrap();
    assert!(gateway.connected());
    let (order, _unused) = gateway.order();
    assert_eq!(order, "order");
    gateway.handle.acknowledge(earlier);
    gateway.crash();

    let gateway = bed.gateway();
    gateway.connected();
    assert_eq!(gateway.order().0, "order");
}

#[test]
fn an_order_over_the_packet_limit_does_not_wedge_the_link() {
    let bed = Bed::new();
    let gateway = bed.gateway();
    gateway.connected();
    let huge = "x".repeat(MAX_PACKET_BYTES + 1000);
    bed.publish_order(&huge, true);
    bed.publish_order("live", false);
    let (order, token) = gateway.order();
    assert_eq!(order, "live");
    gateway.handle.acknowledge(token);
    gateway.leave();

    // The huge one is retained: it is offered again with every subscription.
    let gateway = bed.gateway();
    gateway.connected();
    bed.publish_order("later", false);
    assert_eq!(gateway.order().0, "later");
    let lost = gateway.pending().into_iter().find(|e| format!("{e:?}").contains("Disconnected"));
    assert!(lost.is_none(), "{lost:?}");
}

#[test]
fn the_largest_order_and_many_unacknowledged_ones_are_delivered() {
    let bed = Bed::new();
    let gateway = bed.gateway();
    gateway.connected();
    let largest = "x".repeat(coracle_protocol::limits::MAX_PUBLISHED_BYTES);
    bed.publish_order(&largest, false);
    let (order, token) = gateway.order();
    assert_eq!(order.len(), largest.len());
    gateway.handle.acknowledge(token);
    let mut owed = Vec::new();
    for n in 0..30 {
        bed.publish_order(&n.to_string(), false);
    }
    // Acknowledged in the reverse order, as far as the broker goes on without: 8 at a time.
    for n in 0..30 {
        let (order, token) = gateway.order();
        assert_eq!(order, n.to_string());
        owed.push(token);
        if owed.len() == 8 {
            owed.drain(..).rev().for_each(|token| gateway.handle.acknowledge(token));
        }
    }
}

#[test]
fn orders_of_other_gateways_and_removed_orders_are_not_delivered() {
    let bed = Bed::new();
    let gateway = bed.gateway();
    gateway.connected();
    let other = Topic::new(GatewayId::random(), Kind::Desired).to_string();
    bed.broker.publish(&other, b"not ours", true).unwrap();
    bed.publish_order("", true);
    bed.publish_order("ours", false);
    assert_eq!(gateway.order().0, "ours");
}
