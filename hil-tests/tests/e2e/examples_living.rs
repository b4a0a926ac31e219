//! The orders in `docs/examples` about how workloads live: each from order to running, through one
//! update, to removed, with nothing left behind on the gateway.

use std::collections::{BTreeMap, BTreeSet};

use coracle_hil::callers::{Callers, Load};
use coracle_hil::service::PORT;
use coracle_hil::{Status, orders};
use coracle_protocol::reported::ReplicaState;
use coracle_testbed::image::{Builder, GREETING};
use coracle_testbed::process::is_alive;
use coracle_testbed::{Image, wait_for};

use super::examples::{Stage, memory_limit, pid_of, tools, web};
use super::{LONG, converged, tasks};

type Named = (&'static str, &'static str, Image);

fn web_2() -> Named {
    ("web", "2", Builder::lighttpd("version 2").unwrap().build().unwrap())
}

fn http_tools() -> Named {
    ("http-tools", "1", Builder::curl().unwrap().build().unwrap())
}

const UPDATED_IMAGE: (&str, &str) = ("/web:1", "/web:2");

/// Process ids of a workload's replicas.
fn pids(status: &Status, name: &str) -> BTreeSet<u32> {
    status.workload(name).unwrap().replicas.iter().map(|replica| replica.pid.unwrap()).collect()
}

/// Calls a service of one image, which is replaced by another while nobody is to notice.
fn updated_unnoticed(stage: &mut Stage, file: &str) -> (Status, Status) {
    stage.publish(2, file, &[]);
    let before = converged(&mut stage.gateway, 2);
    let callers = Callers::begin(stage.gateway.place(), PORT, Load { long: 0, short: 1 });
    let answers = |version: &str| {
        let page = format!("{GREETING} (version {version})");
        let some = || callers.so_far().answers.get(&page).filter(|seen| seen.count > 20).map(drop);
        wait_for(&page, LONG, some).unwrap();
    };
    answers("1");
    stage.publish(3, file, &[UPDATED_IMAGE]);
    let after = converged(&mut stage.gateway, 3);
    answers("2");
    let seen = callers.end();
    assert_eq!(seen.broken, Vec::<String>::new());
    assert_eq!(seen.answers.len(), 2, "{:?}", seen.answers);
    (before, after)
}

#[test]
fn a_replicated_service() {
    let mut stage = Stage::new(&[web(), web_2()]);
    let (before, after) = updated_unnoticed(&mut stage, "replicas.yaml");
    let (old, new) = (pids(&before, "api"), pids(&after, "api"));
    assert!(old.len() == 3 && new.len() == 3 && old.is_disjoint(&new), "{old:?} {new:?}");
    assert!(after.workload("api").unwrap().replicas.iter().all(|replica| replica.ready));
    stage.clear();
}

#[test]
fn one_that_is_never_missing() {
    let mut stage = Stage::new(&[web(), web_2()]);
    let (before, after) = updated_unnoticed(&mut stage, "blue-green.yaml");
    assert!(pids(&before, "shop").is_disjoint(&pids(&after, "shop")));
    // The second one beside the first, until the first was gone.
    let index = |status: &Status| status.replica("shop").unwrap().index;
    assert_ne!(index(&before), index(&after));
    stage.clear();
}

/// Which workloads have a process, by containerd's word.
fn running(stage: &Stage) -> BTreeSet<String> {
    let name = |(id, _): (String, i32)| id.split('.').next().unwrap().to_owned();
    tasks(&stage.gateway).into_iter().map(name).collect()
}

#[test]
fn a_chain_of_dependencies() {
    const CHAIN: [&str; 3] = ["database", "api", "meter"];
    let mut stage = Stage::new(&[tools(), http_tools()]);
    stage.publish(2, "chain.yaml", &[]);
    let before = converged(&mut stage.gateway, 2);
    assert_eq!(before.replica("migrate").unwrap().state, ReplicaState::Completed);
    stage.said("api", "serves by schema 1");
    let started: Vec<String> = {
        let events = stage.gateway.events().unwrap();
        events.into_iter().filter(|e| e.kind == "started").filter_map(|e| e.replica).collect()
    };
    assert_eq!(started, ["database.0", "migrate.0", "api.0", "meter.0"]);

    stage.publish(3, "chain.yaml", &[("SCHEMA: \"1\"", "SCHEMA: \"2\"")]);
    let after = converged(&mut stage.gateway, 3);
    stage.said("api", "serves by schema 2");
    assert_eq!(before.pid("database"), after.pid("database"));
    for name in ["api", "meter"] {
        assert_ne!(before.pid(name), after.pid(name), "{name}");
    }

    // A service that ends and comes back takes with it who asked for that, and nobody else.
    let meter = after.pid("meter").unwrap();
    super::sigkill(after.pid("api").unwrap());
    wait_for("the meter to stop", LONG, || (!is_alive(meter)).then_some(())).unwrap();
    let again = converged(&mut stage.gateway, 3);
    assert_eq!(again.pid("database"), after.pid("database"));

    let nothing = orders::order(stage.gateway.id(), 4, Vec::new());
    stage.gateway.order(&nothing).unwrap();
    let down = || {
        let there = running(&stage);
        let first_gone = CHAIN.iter().position(|name| !there.contains(*name)).unwrap_or(3);
        let rest = &CHAIN[first_gone..];
        assert!(rest.iter().all(|name| !there.contains(*name)), "left: {there:?}");
        there.is_empty().then_some(())
    };
    wait_for("all to be gone", LONG, down).unwrap();
    stage.clear();
}

#[test]
fn everything_together() {
    let mut stage = Stage::new(&[tools(), web(), web_2()]);
    let order = |stage: &mut Stage, generation: u64| {
        let version = format!("VERSION: \"{}\"", generation - 1);
        stage.publish(generation, "everything.yaml", &[("VERSION: \"1\"", &version)]);
        converged(&mut stage.gateway, generation)
    };
    let before = order(&mut stage, 2);
    stage.page("http://127.0.0.1:8080/", "page 1");
    stage.page("http://127.0.0.1:8081/", GREETING);
    let pages = before.workload("pages").unwrap();
    assert!(pages.replicas.len() == 3 && pages.replicas.iter().all(|replica| replica.ready));
    for (container, mib) in [("pages.0.server", 32), ("pages.2.beat", 16), ("front.0.main", 64)] {
        let limit = memory_limit(pid_of(&stage.gateway, container));
        assert_eq!(limit, (mib << 20).to_string(), "{container}");
    }

    let callers = Callers::begin(stage.gateway.place(), PORT, Load { long: 0, short: 1 });
    let after = order(&mut stage, 3);
    let seen = callers.end();
    assert_eq!(seen.broken, Vec::<String>::new());
    stage.page("http://127.0.0.1:8080/", "page 2");
    let jobs = |status: &Status| status.replica("prepare").unwrap().last_exit.clone().unwrap();
    assert!(jobs(&before).at <= jobs(&after).at && jobs(&after).code == 0);
    for name in ["pages", "front"] {
        assert!(pids(&before, name).is_disjoint(&pids(&after, name)), "{name}");
    }
    assert_eq!(before.pid("sweeper"), after.pid("sweeper"), "there were always enough pages");
    // Each old replica was told in its own way.
    let closed = stage.gateway.state_dir.join("volumes/named/log/closed");
    let mut told: BTreeMap<String, u32> = BTreeMap::new();
    for line in std::fs::read_to_string(closed).unwrap().lines() {
        *told.entry(line.to_owned()).or_default() += 1;
    }
    assert_eq!(told.values().sum::<u32>(), 3, "{told:?}");
    stage.clear();
}
