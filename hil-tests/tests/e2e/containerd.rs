//! containerd comes, goes and comes back.

use coracle_hil::{Gateway, Options};
use coracle_protocol::reported::ConditionStatus;
use coracle_testbed::process::is_alive;

use super::{SOON, gateway_running, order, pids, sigkill, sleepers, tasks};

#[test]
fn without_containerd_the_agent_waits_with_a_condition_and_goes_on_when_it_appears() {
    let mut gateway = Gateway::prepare(Options::default()).unwrap();
    gateway.containerd.stop().unwrap();
    gateway.start_agent().unwrap();
    gateway.wait("the link", SOON, |status| status.connected().then_some(())).unwrap();
    let workloads = sleepers(&gateway, &["one"]);
    order(&mut gateway, 1, workloads);
    gateway
        .wait("the condition", SOON, |status| {
            let containerd = status.condition("containerd")?;
            let waits = containerd.status == ConditionStatus::False
                && containerd.reason == "not-reachable"
                && status.reported.generation_applied == 1;
            waits.then_some(())
        })
        .unwrap();
    gateway.containerd.start_again().unwrap();
    let status = gateway.wait_converged(1).unwrap();
    assert_eq!(status.condition("containerd").unwrap().status, ConditionStatus::True);
}

#[test]
fn restarting_containerd_restarts_nothing_and_later_ends_are_still_seen() {
    let (mut gateway, before) = gateway_running(&["one", "two"]);
    let tasks_before = tasks(&gateway);
    gateway.containerd.restart().unwrap();
    gateway.containerd.kill().unwrap();
    gateway
        .wait("the condition", SOON, |status| {
            let containerd = status.condition("containerd")?;
            (containerd.status == ConditionStatus::False).then_some(())
        })
        .unwrap();
    assert!(before.iter().all(|pid| is_alive(*pid)));
    gateway.containerd.start_again().unwrap();
    gateway
        .wait("containerd to be seen again", SOON, |status| {
            let containerd = status.condition("containerd")?;
            (containerd.status == ConditionStatus::True).then_some(())
        })
        .unwrap();
    assert_eq!(pids(&mut gateway, 1, &["one", "two"]), before);
    assert_eq!(tasks(&gateway), tasks_before);

    sigkill(before[0]);
    gateway.wait_replaced("one", before[0]).unwrap();
    let status = gateway.wait_converged(1).unwrap();
    assert_eq!(status.pid("two"), Some(before[1]));
}
