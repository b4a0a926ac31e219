use std::time::{Duration, Instant};

use crate::bed::{Bed, KEEP_ALIVE, SOON};

#[test]
fn a_broker_that_is_killed_and_comes_back_is_found_again() {
    let mut bed = Bed::new();
    let gateway = bed.gateway();
    gateway.connected();
    bed.broker.kill().unwrap();
    let first = gateway.disconnected(SOON);
    assert!(first.contains("closed the connection"), "{first}");
    let later = gateway.disconnected(SOON);
    assert!(later.contains("cannot reach the broker localhost:"), "{later}");
    assert!(later.contains("refused"), "{later}");
    bed.broker.start_again().unwrap();
    gateway.connected();
    bed.publish_order("order", false);
    assert_eq!(gateway.order().0, "order");
}

#[test]
fn a_black_hole_is_noticed_after_one_and_a_half_keep_alives() {
    let mut bed = Bed::new();
    let gateway = bed.gateway();
    gateway.connected();
    bed.broker.cut().unwrap();
    let cut = Instant::now();
    let reason = gateway.disconnected(SOON);
    let took = cut.elapsed();
    assert!(reason.contains("nothing was heard"), "{reason}");
    let limit = Duration::from_secs(KEEP_ALIVE.into()).mul_f64(1.5) + Duration::from_secs(2);
    assert!(took <= limit, "{took:?}");
    bed.broker.restore().unwrap();
    gateway.connected();
}

#[test]
fn an_idle_link_stays_up() {
    let bed = Bed::new();
    let gateway = bed.gateway();
    gateway.connected();
    gateway.stays_quiet(Duration::from_secs(u64::from(KEEP_ALIVE) * 3));
    bed.publish_order("order", false);
    assert_eq!(gateway.order().0, "order");
}

#[test]
fn two_gateways_with_one_identity_push_each_other_out_ever_more_slowly() {
    let bed = Bed::new();
    let first = bed.gateway();
    first.connected();
    let second = bed.gateway();
    second.connected();
    let began = Instant::now();
    for _ in 0..3 {
        first.disconnected(2 * SOON);
        first.connected();
    }
    // Both draw from windows of 1, 2 and 4 s: without backoff this takes 50 ms.
    assert!(began.elapsed() > Duration::from_millis(300), "{:?}", began.elapsed());
}
