//! Durable before acknowledged.

use std::time::Duration;

use coracle_hil::orders;
use coracle_protocol::topic::Kind;
use coracle_testbed::wait_for;

use super::{gateway_running, sleepers};

/// The order is not retained: the broker gives it once, until it is acknowledged. An agent that
/// acknowledged before it stored would lose it.
#[test]
fn an_order_is_never_lost_when_the_agent_is_killed_right_after_it_came() {
    let (mut gateway, before) = gateway_running(&["keeper"]);
    let signer = gateway.signer().unwrap();
    let topic = gateway.topic(Kind::Desired);
    // What is retained would be given again at each start.
    gateway.broker.publish(&topic, b"", true).unwrap();
    let workloads = sleepers(&gateway, &["keeper"]);
    let moments = [0, 1, 2, 3, 4, 5, 7, 10, 15, 25, 50];
    for (generation, millis) in (2..).zip(moments) {
        gateway.wait("the link", super::SOON, |status| status.connected().then_some(())).unwrap();
        let order = orders::order(gateway.id(), generation, workloads.clone());
        gateway.broker.publish(&topic, &signer.sign(&order), false).unwrap();
        let moment = Duration::from_millis(millis);
        // Ends at the moment: nothing is waited for but time, which is what varies here.
        assert!(wait_for("", moment, || None::<()>).is_err());
        gateway.kill_agent().unwrap();
        gateway.start_agent().unwrap();
        let status = gateway.wait_converged(generation).unwrap();
        assert_eq!(status.pid("keeper"), Some(before[0]), "killed after {millis} ms");
    }
}
