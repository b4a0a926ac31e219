//! The link to the broker: why it does not stand, and coming back.

use coracle_hil::{Gateway, Options, orders};

use super::{SOON, gateway_running, order, pids, sleepers};

#[test]
fn a_certificate_that_the_broker_refuses_is_named_and_orders_by_hand_still_work() {
    for kind in ["expired", "foreign"] {
        let mut gateway = Gateway::prepare(Options::default()).unwrap();
        let name = gateway.id().to_string();
        gateway.identity = match kind {
            "expired" => gateway.pki.expired(&name).unwrap(),
            _ => gateway.pki.foreign(&name).unwrap(),
        };
        gateway.start_agent().unwrap();
        let link = gateway
            .wait("the reason", SOON, |status| {
                let link = status.link.clone()?;
                (link.reason.is_some() && link.next_try.is_some()).then_some(link)
            })
            .unwrap();
        let reason = link.reason.unwrap().to_lowercase();
        assert!(!link.connected && reason.contains("certificate"), "{kind}: {reason}");
        let order = orders::order(gateway.id(), 1, sleepers(&gateway, &["one"]));
        let signed = gateway.signer().unwrap().sign(&order);
        assert!(gateway.apply(&signed).unwrap().accepted);
        gateway.wait_converged(1).unwrap();
    }
}

#[test]
fn an_order_given_while_the_gateway_was_away_arrives_when_it_is_back() {
    let (mut gateway, before) = gateway_running(&["one"]);
    gateway.stop_agent().unwrap();
    let workloads = sleepers(&gateway, &["one", "two"]);
    order(&gateway, 2, workloads.clone());
    gateway.broker.stop().unwrap();
    gateway.start_agent().unwrap();
    gateway.wait("the reason", SOON, |status| status.link.clone()?.reason).unwrap();
    gateway.broker.start_again().unwrap();
    assert_eq!(pids(&mut gateway, 2, &["one", "two"])[0], before[0]);

    // A broker that dies between two orders loses neither.
    gateway.broker.stop().unwrap();
    gateway.broker.start_again().unwrap();
    order(&gateway, 3, workloads);
    assert_eq!(pids(&mut gateway, 3, &["one"]), before);
}
