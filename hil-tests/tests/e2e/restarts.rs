//! Processes that end.

use std::time::Duration;

use coracle_hil::{Gateway, Options, Status, orders};
use coracle_protocol::desired::RestartPolicy;
use coracle_protocol::reported::{Phase, ReplicaState};

use super::{LONG, SOON, busybox, order};

#[test]
fn a_process_that_ends_at_once_is_restarted_at_once_and_then_with_visible_backoff() {
    let mut gateway = Gateway::prepare(Options::default()).unwrap();
    gateway.start_agent().unwrap();
    let image = busybox(&gateway);
    order(&gateway, 1, vec![orders::script("ends", &image, "exit 3")]);
    let replica = gateway
        .wait("the backoff", SOON, |status| {
            let replica = status.replica("ends")?;
            let waits = replica.state == ReplicaState::BackOff && replica.restarts >= 1;
            waits.then(|| replica.clone())
        })
        .unwrap();
    assert!(replica.reason.is_some() && replica.next_try.is_some(), "{replica:?}");
    assert_eq!(replica.last_exit.unwrap().code, 3);
    assert_eq!(gateway.status().unwrap().reported.phase, Phase::Degraded);
    gateway
        .wait("further restarts", SOON, |status| {
            (status.replica("ends")?.restarts >= 3).then_some(())
        })
        .unwrap();
    let kinds: Vec<String> = gateway.events().unwrap().into_iter().map(|e| e.kind).collect();
    assert!(kinds.iter().any(|kind| kind == "ended"), "{kinds:?}");
}

#[test]
fn restart_policies_are_kept_also_over_a_restart_of_the_agent() {
    let mut gateway = Gateway::prepare(Options::default()).unwrap();
    gateway.start_agent().unwrap();
    let image = busybox(&gateway);
    let job = |name: &str, text: &str, restart| {
        orders::restarting(orders::script(name, &image, text), restart)
    };
    let workloads = vec![
        job("done", "exit 0", RestartPolicy::Never),
        job("failed", "exit 1", RestartPolicy::Never),
        job("good", "exit 0", RestartPolicy::OnFailure),
        job("bad", "exit 1", RestartPolicy::OnFailure),
    ];
    order(&gateway, 1, workloads);
    let mut settled = |restarts: u32| {
        gateway
            .wait("the jobs to end", SOON, |status| {
                let state = |name| status.replica(name).map(|replica| replica.state);
                let settled = state("done") == Some(ReplicaState::Completed)
                    && state("failed") == Some(ReplicaState::Failed)
                    && state("good") == Some(ReplicaState::Completed)
                    && status.replica("bad")?.restarts >= restarts;
                settled.then(|| status.clone())
            })
            .unwrap()
    };
    let status = settled(1);
    for name in ["done", "failed", "good"] {
        assert_eq!(status.replica(name).unwrap().restarts, 0, "{name}");
    }
    gateway.kill_agent().unwrap();
    gateway.start_agent().unwrap();
    let after = gateway
        .wait("the jobs to be known", SOON, |status| {
            (status.replica("bad")?.restarts >= 2).then(|| status.clone())
        })
        .unwrap();
    let outcome = |status: &Status, name| {
        let replica = status.replica(name).unwrap().clone();
        (replica.state, replica.restarts, replica.last_exit)
    };
    for name in ["done", "failed", "good"] {
        assert_eq!(outcome(&after, name), outcome(&status, name), "{name}");
    }
}

/// Waits until a crashing container has been started again so often and rests; gives how often it
/// was, and whether it rests for so many seconds at least.
fn rests_after(gateway: &mut Gateway, restarts: u32, seconds: u64) -> (u32, bool) {
    gateway
        .wait("the container to rest", LONG, |status| {
            let replica = status.replica("ends")?;
            let rests = replica.state == ReplicaState::BackOff && replica.restarts >= restarts;
            let (next, last) = (replica.next_try?, replica.last_exit.as_ref()?.at);
            // Both are told in whole seconds.
            let long = next >= last.after(Duration::from_secs(seconds - 1));
            rests.then_some((replica.restarts, long))
        })
        .unwrap()
}

#[test]
fn what_crashes_goes_on_waiting_longer_after_a_restart_of_the_agent_and_a_reboot() {
    let mut gateway = Gateway::prepare(Options::default()).unwrap();
    gateway.start_agent().unwrap();
    let image = busybox(&gateway);
    order(&gateway, 1, vec![orders::script("ends", &image, "exit 3")]);
    let (before, _) = rests_after(&mut gateway, 3, 1);
    gateway.kill_agent().unwrap();
    gateway.start_agent().unwrap();
    // Tried at once, and then with the pause that is due to the fourth failure in a row.
    let (again, long) = rests_after(&mut gateway, before + 1, 2);
    assert!(long, "after {again} restarts");
    gateway.power_off().unwrap();
    gateway.power_on().unwrap();
    let (booted, long) = rests_after(&mut gateway, again + 1, 4);
    assert!(long, "after {booted} restarts");
    let started = gateway.events().unwrap().iter().filter(|event| event.kind == "started").count();
    assert!(started <= 2, "no storm: {started} starts since the boot");
}
