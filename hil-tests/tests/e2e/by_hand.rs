//! Workloads that somebody stops, drains, starts and restarts at the gateway.

use std::collections::BTreeSet;

use coracle_hil::callers::{Callers, Load};
use coracle_hil::gateway::stderr;
use coracle_hil::service::{self, PORT};
use coracle_hil::{Gateway, Status};
use coracle_protocol::reported::{Phase, ReplicaState};
use coracle_testbed::wait_for;

use super::examples::Stage;
use super::{LONG, converged, gateway_running, order, pids, tasks};

/// `coracle OPERATION NAMES… --wait 60`, which must end well.
fn operate(gateway: &Gateway, operation: &str, names: &[&str]) -> String {
    let output = gateway.coracle(&[&[operation], names, &["--wait", "60"]].concat()).unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{operation} {names:?}: {said}{}", stderr(&output));
    said
}

/// Whether a workload is stopped by hand, with nothing of it running.
fn is_stopped(status: &Status, name: &str) -> bool {
    let workload = status.workload(name).unwrap();
    let stopped = |state| state == ReplicaState::Stopped;
    workload.stopped.is_some() && workload.replicas.iter().all(|replica| stopped(replica.state))
}

#[test]
fn what_was_stopped_by_hand_stays_stopped_over_restart_and_cold_boot_until_it_is_started() {
    let names = ["one", "two", "three"];
    let (mut gateway, before) = gateway_running(&names);
    operate(&gateway, "stop", &["one"]);
    operate(&gateway, "drain", &["two"]);
    let check = |gateway: &mut Gateway| {
        let status = converged(gateway, 1);
        assert!(is_stopped(&status, "one") && is_stopped(&status, "two"), "{status:#?}");
        let drained = |name| status.workload(name).unwrap().stopped.as_ref().unwrap().drained;
        assert!(!drained("one") && drained("two"));
        assert_eq!(tasks(gateway).len(), 1);
        let page = gateway.coracle(&["status"]).unwrap();
        let page = String::from_utf8_lossy(&page.stdout).into_owned();
        assert!(page.contains("stopped"), "{page}");
        status
    };
    assert_eq!(check(&mut gateway).pid("three"), Some(before[2]));
    gateway.kill_agent().unwrap();
    gateway.start_agent().unwrap();
    assert_eq!(check(&mut gateway).pid("three"), Some(before[2]));
    // An order that leaves them as they are does not start them either.
    let same = super::sleepers(&gateway, &names);
    order(&gateway, 2, same);
    converged(&mut gateway, 2);
    assert_eq!(tasks(&gateway).len(), 1);
    gateway.broker.kill().unwrap();
    gateway.registry.kill().unwrap();
    gateway.power_off().unwrap();
    gateway.power_on().unwrap();
    let status = converged(&mut gateway, 2);
    assert!(is_stopped(&status, "one") && is_stopped(&status, "two"), "{status:#?}");
    assert_eq!(tasks(&gateway).len(), 1);

    operate(&gateway, "start", &["one", "two"]);
    let after = pids(&mut gateway, 2, &names);
    assert_eq!(tasks(&gateway).len(), 3);
    assert!(gateway.status().unwrap().workload("one").unwrap().stopped.is_none());
    operate(&gateway, "restart", &["one"]);
    let again = pids(&mut gateway, 2, &names);
    assert!(again[0] != after[0] && again[1..] == after[1..], "{after:?} {again:?}");

    let unknown = gateway.coracle(&["stop", "nobody"]).unwrap();
    assert_eq!(unknown.status.code(), Some(1), "{}", stderr(&unknown));
}

#[test]
fn a_restart_by_hand_goes_one_by_one_and_a_drain_lets_what_is_open_go_on() {
    let mut stage = Stage::new(&[]);
    service::push(&stage.gateway, &[("1", &[])]).unwrap();
    let api = service::replicated(&stage.gateway, "api", "1", 3);
    order(&stage.gateway, 2, vec![api]);
    let before = converged(&mut stage.gateway, 2);
    let of = |status: &Status| -> BTreeSet<Option<u32>> {
        status.workload("api").unwrap().replicas.iter().map(|replica| replica.pid).collect()
    };
    let callers = Callers::begin(stage.gateway.place(), PORT, Load { long: 30, short: 1 });
    operate(&stage.gateway, "restart", &["api"]);
    let after = converged(&mut stage.gateway, 2);
    assert!(of(&before).is_disjoint(&of(&after)), "{:?} {:?}", of(&before), of(&after));
    let some = callers.so_far().short() + 100;
    wait_for("further answers", LONG, || (callers.so_far().short() > some).then_some(())).unwrap();
    let seen = callers.end();
    assert_eq!(seen.broken, Vec::<String>::new());
    assert!(seen.farewells.len() >= 30, "{}", seen.farewells.len());

    // Long ones alone: new ones are refused from now on.
    let callers = Callers::begin(stage.gateway.place(), PORT, Load { long: 6, short: 0 });
    wait_for("all to be connected", LONG, || (callers.so_far().echoes > 60).then_some(())).unwrap();
    let output = stage.gateway.coracle(&["drain", "api"]).unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    stage
        .gateway
        .wait("all to be stopped", LONG, |status| {
            let none = status.reported.phase == Phase::Converged;
            (none && is_stopped(status, "api")).then_some(())
        })
        .unwrap();
    let seen = callers.end();
    assert_eq!(seen.farewells.len(), 6, "each went on until it was told to leave: {seen:?}");
    let refused = |what: &String| what.contains("not connected");
    assert!(seen.broken.iter().all(refused), "{:#?}", seen.broken);
    operate(&stage.gateway, "start", &["api"]);
    stage.page(&format!("http://127.0.0.1:{PORT}/"), "1 api-");
    stage.clear();
}
