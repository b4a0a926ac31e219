//! Updates that fail, by what really goes wrong on gateways: they are taken back, said why, and stay
//! so until an order says something else. What served before serves all the while.

use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};

use coracle_hil::callers::{Callers, Load};
use coracle_hil::service::{self, PORT};
use coracle_hil::{Gateway, Status, orders};
use coracle_protocol::desired::{
    Dependency, DependencyCondition, HostPort, Network, Update, Workload,
};
use coracle_protocol::reported::{ReplicaState, UpdateReport, UpdateState};
use coracle_testbed::{http, wait_for};

use super::examples::Stage;
use super::{LONG, converged, order};

const LOAD: Load = Load { long: 10, short: 1 };

/// A gateway whose registry has version 1 and 2, one that crashes, and one that is never ready.
fn stage() -> Stage {
    let stage = Stage::new(&[]);
    let versions: [(&str, &[&str]); 4] =
        [("1", &[]), ("2", &[]), ("crashes", &["CRASH=7"]), ("sick", &["OFF=ready"])];
    service::push(&stage.gateway, &versions).unwrap();
    stage
}

fn giving_up_after(mut workload: Workload, healthy_within_seconds: u32) -> Workload {
    let update = workload.update.take().unwrap_or_default();
    workload.update = Some(Update { healthy_within_seconds, ..update });
    workload
}

/// Waits until an update was taken back and all replicas are ready by an earlier order.
fn taken_back(gateway: &mut Gateway, name: &str, generation: u64) -> UpdateReport {
    gateway
        .wait("the update to be taken back", LONG, |status| {
            let workload = status.workload(name)?;
            let update = workload.update.as_ref()?;
            let back = update.state == UpdateState::RolledBack
                && workload.replicas.iter().all(|r| r.ready && r.generation == Some(generation));
            back.then(|| update.clone())
        })
        .unwrap()
}

fn pids(status: &Status, name: &str) -> Vec<Option<u32>> {
    status.workload(name).unwrap().replicas.iter().map(|replica| replica.pid).collect()
}

#[test]
fn an_image_that_crashes_is_taken_back_and_stays_so_until_an_order_changes_it() {
    let mut stage = stage();
    let version = |stage: &Stage, version| service::replicated(&stage.gateway, "api", version, 3);
    let other = |stage: &Stage| {
        let mut other = service::workload(&stage.gateway, "other", "1");
        other.ports.clear();
        other.containers[0].ports[0].optional = true;
        other
    };
    let first = version(&stage, "1");
    order(&stage.gateway, 2, vec![first]);
    let before = converged(&mut stage.gateway, 2);
    let callers = Callers::begin(stage.gateway.place(), PORT, LOAD);
    let crashes = version(&stage, "crashes");
    order(&stage.gateway, 3, vec![crashes.clone()]);
    let update = taken_back(&mut stage.gateway, "api", 2);
    let reason = update.reason.unwrap();
    assert!(reason.contains("exit code 7") && reason.contains("api."), "{reason}");
    assert_eq!(update.updated, 0);
    let kinds: Vec<String> =
        stage.gateway.events().unwrap().into_iter().map(|event| event.kind).collect();
    assert_eq!(kinds.iter().filter(|kind| *kind == "rolled-back").count(), 1, "{kinds:?}");
    let settled = stage.gateway.status().unwrap();
    // One of three was replaced, and is back.
    let kept = pids(&before, "api").into_iter().filter(|pid| pids(&settled, "api").contains(pid));
    assert_eq!(kept.count(), 2);

    stage.gateway.kill_agent().unwrap();
    stage.gateway.start_agent().unwrap();
    let again = taken_back(&mut stage.gateway, "api", 2);
    assert_eq!(again.reason.as_ref(), Some(&reason));
    let more = other(&stage);
    order(&stage.gateway, 4, vec![crashes, more.clone()]);
    stage
        .gateway
        .wait("the other one", LONG, |status| {
            status.replica("other").filter(|replica| replica.ready).map(drop)
        })
        .unwrap();
    let still = taken_back(&mut stage.gateway, "api", 2);
    assert_eq!(still.reason.as_ref(), Some(&reason));
    assert_eq!(pids(&stage.gateway.status().unwrap(), "api"), pids(&settled, "api"));

    let second = version(&stage, "2");
    order(&stage.gateway, 5, vec![second, more]);
    let after = converged(&mut stage.gateway, 5);
    assert!(after.workload("api").unwrap().update.is_none());
    let seen = callers.end();
    assert_eq!(seen.broken, Vec::<String>::new());
    assert!(seen.of("1") > 0 && seen.of("2") > 0 && seen.of("crashes") == 0, "{:?}", seen.answers);
    stage.clear();
}

#[test]
fn an_image_that_is_never_ready_is_taken_back_when_its_time_is_over() {
    let mut stage = stage();
    let version = |stage: &Stage, version| {
        giving_up_after(service::replicated(&stage.gateway, "api", version, 2), 3)
    };
    let first = version(&stage, "1");
    order(&stage.gateway, 2, vec![first]);
    converged(&mut stage.gateway, 2);
    let callers = Callers::begin(stage.gateway.place(), PORT, LOAD);
    let sick = version(&stage, "sick");
    order(&stage.gateway, 3, vec![sick]);
    let reason = taken_back(&mut stage.gateway, "api", 2).reason.unwrap();
    // What was waited for, how long, and what the probe said.
    assert!(reason.contains("not ready within 3 s") && reason.contains("503"), "{reason}");
    let page = stage.gateway.coracle(&["status"]).unwrap();
    let page = String::from_utf8_lossy(&page.stdout).into_owned();
    assert!(page.contains("not ready within 3 s"), "{page}");
    let seen = callers.end();
    assert_eq!(seen.broken, Vec::<String>::new());
    assert_eq!(seen.of("sick"), 0);
    stage.clear();
}

#[test]
fn for_a_dependency_that_never_comes_a_new_version_waits_and_the_old_one_serves() {
    let mut stage = stage();
    let needs = |mut workload: Workload, what: &str| {
        let condition = DependencyCondition::Healthy;
        let dependency = Dependency { condition, ..Dependency::default() };
        workload.depends_on.insert(what.into(), dependency);
        workload
    };
    let inner = |mut workload: Workload| {
        workload.ports.clear();
        workload.containers[0].ports[0].optional = true;
        workload
    };
    let first = service::workload(&stage.gateway, "api", "1");
    order(&stage.gateway, 2, vec![first]);
    let before = converged(&mut stage.gateway, 2);

    let sick = inner(service::workload(&stage.gateway, "database", "sick"));
    let second = needs(service::workload(&stage.gateway, "api", "2"), "database");
    let late = needs(inner(service::workload(&stage.gateway, "late", "1")), "database");
    order(&stage.gateway, 3, vec![sick, second.clone(), late.clone()]);
    stage
        .gateway
        .wait("both to wait", LONG, |status| {
            let says = |reason: Option<&String>| {
                reason.is_some_and(|reason| reason.contains("waits for database: 0 of 1"))
            };
            let late = status.replica("late")?;
            let waits = late.state == ReplicaState::Pending && says(late.reason.as_ref());
            let update = status.workload("api")?.update.as_ref()?;
            let old = update.state == UpdateState::Progressing
                && status.pid("api") == before.pid("api")
                && status.replica("api")?.ready;
            let runs = status.replica("database")?.state == ReplicaState::Running;
            (waits && old && runs).then_some(())
        })
        .unwrap();
    stage.page(&format!("http://127.0.0.1:{PORT}/"), "1 api-0");
    // Also an old one that ends is what it was, and does not wait for what the new one needs.
    super::sigkill(before.pid("api").unwrap());
    stage.gateway.wait_replaced("api", before.pid("api").unwrap()).unwrap();
    stage.page(&format!("http://127.0.0.1:{PORT}/"), "1 api-0");

    let well = inner(service::workload(&stage.gateway, "database", "1"));
    order(&stage.gateway, 4, vec![well, second, late]);
    converged(&mut stage.gateway, 4);
    stage.page(&format!("http://127.0.0.1:{PORT}/"), "2 api-0");
    stage.clear();
}

#[test]
fn a_port_that_is_stolen_while_updating_takes_the_update_back_and_comes_back_when_it_is_free() {
    const TAKEN: u16 = 7300;
    let mut stage = stage();
    let version = |stage: &Stage, version: &str| {
        let mut workload = service::workload(&stage.gateway, "api", version);
        workload.network = Some(Network::Host);
        workload.ports.insert("http".into(), HostPort { host: TAKEN, address: None });
        let container = &mut workload.containers[0];
        container.ports[0].port = TAKEN;
        container.env.insert("PORT".into(), TAKEN.to_string());
        let probe = container.probes.readiness.as_mut().unwrap();
        probe.http.as_mut().unwrap().port = TAKEN;
        workload
    };
    let first = version(&stage, "1");
    order(&stage.gateway, 2, vec![first]);
    converged(&mut stage.gateway, 2);
    let place = stage.gateway.place().clone();
    let ends = AtomicBool::new(false);
    let second = version(&stage, "2");
    std::thread::scope(|scope| {
        let thief = scope.spawn(|| {
            let steal = || {
                wait_for("the port to be free", LONG, || {
                    let taken = TcpListener::bind(("0.0.0.0", TAKEN)).ok();
                    taken.filter(|_| !ends.load(Ordering::SeqCst))
                })
            };
            place.in_network(steal).unwrap()
        });
        order(&stage.gateway, 3, vec![second.clone()]);
        let stolen = thief.join().unwrap().unwrap();
        let reason = stage.gateway.wait("the update to be taken back", LONG, |status| {
            let workload = status.workload("api")?;
            let update = workload.update.as_ref()?;
            // The old one cannot have it either, and says so.
            let tries = workload.replicas.first()?.restarts >= 2;
            let back = update.state == UpdateState::RolledBack && tries;
            back.then(|| update.reason.clone())
        });
        ends.store(true, Ordering::SeqCst);
        let reason = reason.unwrap().unwrap();
        assert!(reason.contains("ended with exit code 1"), "{reason}");
        drop(stolen);
    });
    taken_back(&mut stage.gateway, "api", 2);
    let get = || http::get(&format!("http://127.0.0.1:{TAKEN}/")).ok().map(|page| page.text());
    let page = stage.gateway.place().in_network(get).unwrap().unwrap();
    assert!(page.starts_with("1 "), "{page}");
    let mut third = second;
    third.containers[0].env.insert("AGAIN".into(), "yes".into());
    let again = orders::order(stage.gateway.id(), 4, vec![third]);
    stage.gateway.order(&again).unwrap();
    converged(&mut stage.gateway, 4);
    stage.clear();
}
