//! Without the network.

use coracle_protocol::reported::ConditionStatus;
use coracle_testbed::process::is_alive;

use super::{SOON, gateway_running, pids, sigkill, tasks};

#[test]
fn losing_the_network_stops_nothing_and_what_dies_offline_is_started_again() {
    let (mut gateway, before) = gateway_running(&["one", "two"]);
    gateway.broker.kill().unwrap();
    gateway.registry.kill().unwrap();
    gateway
        .wait("the condition", SOON, |status| {
            let link = status.condition("link")?;
            (link.status == ConditionStatus::False && !status.connected()).then_some(())
        })
        .unwrap();
    sigkill(before[0]);
    let new = gateway.wait_replaced("one", before[0]).unwrap();
    assert!(is_alive(new));
    let status = gateway.wait_converged(1).unwrap();
    assert_eq!(status.pid("two"), Some(before[1]));
    assert_eq!(status.replica("one").unwrap().restarts, 1);
    assert_eq!(status.replica("one").unwrap().last_exit.as_ref().unwrap().code, 137);
    let link = status.link.unwrap();
    assert!(link.reason.is_some() && link.next_try.is_some(), "{link:?}");
}

#[test]
fn a_cold_boot_without_network_starts_everything() {
    let names = ["one", "two", "three"];
    let (mut gateway, before) = gateway_running(&names);
    gateway.broker.kill().unwrap();
    gateway.registry.kill().unwrap();
    gateway.power_off().unwrap();
    assert!(!before.iter().any(|pid| is_alive(*pid)), "a power cut leaves nothing");
    gateway.power_on().unwrap();
    let after = pids(&mut gateway, 1, &names);
    assert!(after.iter().all(|pid| is_alive(*pid)));
    assert_eq!(tasks(&gateway).len(), names.len());
}

#[test]
fn reconnecting_recreates_nothing() {
    let (mut gateway, _) = gateway_running(&["one", "two"]);
    let before = tasks(&gateway);
    for kill in [false, true] {
        match kill {
            true => gateway.broker.kill().unwrap(),
            false => gateway.broker.stop().unwrap(),
        }
        gateway.wait("the loss", SOON, |status| (!status.connected()).then_some(())).unwrap();
        gateway.broker.start_again().unwrap();
        gateway.wait("the link", SOON, |status| status.connected().then_some(())).unwrap();
    }
    gateway.wait_converged(1).unwrap();
    assert_eq!(tasks(&gateway), before);
    let started = gateway.events().unwrap().iter().filter(|e| e.kind == "started").count();
    assert_eq!(started, 2);
}
