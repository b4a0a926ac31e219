//! From one order to the next.

use coracle_hil::gateway::free_port;
use coracle_hil::{Gateway, Options, orders};
use coracle_protocol::desired::{ExecAction, Limits, Probe, Update, UpdateStrategy};
use coracle_protocol::reported::ReplicaState;
use coracle_testbed::faulty::Fault;
use coracle_testbed::image::Builder;
use coracle_testbed::process::is_alive;
use coracle_testbed::{FaultyRegistry, http, wait_for};

use super::examples::{limit, memory_limit};
use super::{SOON, gateway_running, order, pids, sigkill, sleepers, tasks};

fn page(port: u16) -> Option<String> {
    http::get(&format!("http://127.0.0.1:{port}/")).ok().map(|response| response.text())
}

#[test]
fn the_old_version_runs_and_is_restarted_until_the_new_image_is_there() {
    let registry = FaultyRegistry::start().unwrap();
    let mut gateway = Gateway::prepare(Options::default()).unwrap();
    gateway.registries.push(registry.address());
    gateway.start_agent().unwrap();
    for version in ["1", "2"] {
        let image = Builder::lighttpd(&format!("version {version}")).unwrap().build().unwrap();
        registry.put(&image, "web", version);
    }
    let port = free_port().unwrap();
    let web = |version| orders::web("web", &registry.reference("web", version), port);
    order(&gateway, 1, vec![web("1")]);
    let old = pids(&mut gateway, 1, &["web"])[0];
    wait_for("the first page", SOON, || page(port).filter(|p| p.contains("version 1"))).unwrap();

    registry.fail_always("/blobs/", Fault::Slow(1));
    order(&gateway, 2, vec![web("2")]);
    gateway
        .wait("the pull", SOON, |status| {
            let replica = status.replica("web")?;
            let pulls = status.reported.generation_applied == 2 && !status.pulls.is_empty();
            (pulls && replica.pid == u32::try_from(old).ok()).then_some(())
        })
        .unwrap();
    sigkill(old);
    let stand_in = gateway.wait_replaced("web", old).unwrap();
    wait_for("the first page again", SOON, || page(port).filter(|p| p.contains("version 1")))
        .unwrap();

    registry.heal();
    // Going on from the stalled download is not what is shown here: a new order begins anew.
    gateway.kill_agent().unwrap();
    gateway.start_agent().unwrap();
    wait_for("the second page", SOON * 2, || page(port).filter(|p| p.contains("version 2")))
        .unwrap();
    let new = pids(&mut gateway, 2, &["web"])[0];
    assert!(new != stand_in && !is_alive(stand_in));
}

#[test]
fn what_is_no_longer_ordered_is_stopped_and_gone_and_the_rest_left_alone() {
    let (mut gateway, before) = gateway_running(&["one", "two"]);
    let one = sleepers(&gateway, &["one"]);
    order(&gateway, 2, one);
    assert_eq!(pids(&mut gateway, 2, &["one"]), before[..1]);
    assert!(!is_alive(before[1]));
    assert_eq!(tasks(&gateway), [("one.0.main".to_owned(), before[0])]);
}

#[test]
fn replicas_are_added_and_taken_away() {
    let (mut gateway, before) = gateway_running(&["one"]);
    let mut scaled = sleepers(&gateway, &["one"]);
    scaled[0].replicas = 3;
    order(&gateway, 2, scaled.clone());
    let status = gateway.wait_converged(2).unwrap();
    let replicas = &status.workload("one").unwrap().replicas;
    assert!(replicas.len() == 3 && replicas.iter().all(|r| r.state == ReplicaState::Running));
    assert_eq!(status.pid("one"), Some(before[0]), "the first is left alone");
    scaled[0].replicas = 1;
    order(&gateway, 3, scaled);
    assert_eq!(pids(&mut gateway, 3, &["one"]), before);
    assert_eq!(tasks(&gateway).len(), 1);
}

#[test]
fn limits_probes_and_the_way_to_update_change_under_what_runs() {
    let names = ["limited", "asked", "updated"];
    let (mut gateway, before) = gateway_running(&names);
    let mut changed = sleepers(&gateway, &names);
    changed[0].containers[0].limits =
        Limits { memory_mib: Some(64), cpu_millis: Some(250), pids: Some(20) };
    let command = vec!["true".to_owned()];
    let exec = Some(ExecAction { command });
    let probe = Probe { exec, period_seconds: 1, timeout_seconds: 20, ..Probe::default() };
    changed[1].containers[0].probes.readiness = Some(probe);
    let strategy = UpdateStrategy::BlueGreen;
    changed[2].update = Some(Update { strategy, ..Update::default() });
    changed[2].stop.as_mut().unwrap().drain_seconds = Some(1);
    order(&gateway, 2, changed.clone());
    assert_eq!(pids(&mut gateway, 2, &names), before);
    let pid = before[0];
    assert_eq!(memory_limit(pid), (64 << 20).to_string());
    assert_eq!(limit(pid, ("pids", "pids.max"), "pids.max"), "20");
    let quota = limit(pid, ("cpu", "cpu.cfs_quota_us"), "cpu.max");
    assert!(quota.starts_with("25000"), "{quota}");

    // Less than before, more than before, and none.
    changed[0].containers[0].limits =
        Limits { memory_mib: Some(32), cpu_millis: None, pids: Some(40) };
    order(&gateway, 3, changed.clone());
    assert_eq!(pids(&mut gateway, 3, &names), before);
    assert_eq!(memory_limit(pid), (32 << 20).to_string());
    assert_eq!(limit(pid, ("pids", "pids.max"), "pids.max"), "40");
    let quota = limit(pid, ("cpu", "cpu.cfs_quota_us"), "cpu.max");
    assert!(quota.starts_with("-1") || quota.starts_with("max"), "{quota}");
    // A new agent finds them as they are.
    gateway.kill_agent().unwrap();
    gateway.start_agent().unwrap();
    assert_eq!(pids(&mut gateway, 3, &names), before);
    let adjusted = gateway.events().unwrap().iter().filter(|e| e.kind == "adjusted").count();
    assert_eq!(adjusted, 0);

    // The way to update is there when it is needed: the new one comes beside the old one.
    changed[2].containers[0].env.insert("NEW".into(), "yes".into());
    order(&gateway, 4, changed);
    let after = pids(&mut gateway, 4, &names);
    assert!(after[2] != before[2] && after[..2] == before[..2], "{before:?} {after:?}");
    assert_eq!(gateway.status().unwrap().replica("updated").unwrap().index, 1);
}
