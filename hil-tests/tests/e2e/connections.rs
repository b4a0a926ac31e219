//! Updates without a dropped connection: a hundred long ones and thousands of short ones, from the
//! gateway itself and from another machine, while what they talk to is replaced.

use std::time::Duration;

use coracle_hil::callers::{Callers, Load, Seen};
use coracle_hil::service::{self, PORT};
use coracle_protocol::desired::{Stop, Update, UpdateStrategy, Workload};
use coracle_protocol::reported::UpdateState;
use coracle_testbed::wait_for;

use super::examples::Stage;
use super::{LONG, converged, order};

const LOAD: Load = Load { long: 100, short: 2 };

/// How long a replica goes on that gets nothing new.
const DRAIN: Duration = Duration::from_secs(2);

/// Version 1 and 2, and one that is never ready.
fn stage() -> Stage {
    let stage = Stage::new(&[]);
    service::push(&stage.gateway, &[("1", &[]), ("2", &[]), ("bad", &["OFF=ready"])]).unwrap();
    stage
}

/// Waits until callers had as many answers of a version as tells that all of it is well.
fn answers(callers: &Callers, version: &str, many: u64) {
    let enough = || (callers.so_far().of(version) >= many).then_some(());
    wait_for(&format!("{many} answers of version {version}"), LONG, enough).unwrap();
}

/// None refused, reset, or cut; and what was open went on for as long as it was promised to.
fn assert_unbroken(seen: &Seen) {
    assert!(
        seen.broken.is_empty(),
        "{} broken: {:#?}",
        seen.broken.len(),
        &seen.broken[..3.min(seen.broken.len())]
    );
    for farewell in &seen.farewells {
        let last = seen.answers[&farewell.whose].last;
        let went_on = farewell.at.saturating_duration_since(last);
        // A short one may take a while to be told of.
        let enough = went_on + Duration::from_millis(500) >= DRAIN;
        assert!(enough, "{} left {went_on:?} after the last short one", farewell.whose);
    }
}

fn drained(workload: Workload) -> Workload {
    let drain_seconds = u32::try_from(DRAIN.as_secs()).ok();
    Workload {
        stop: Some(Stop { drain_seconds, grace_seconds: 20, ..Stop::default() }),
        ..workload
    }
}

fn giving_up(workload: Workload) -> Workload {
    let update = workload.update.clone().unwrap();
    Workload { update: Some(Update { healthy_within_seconds: 3, ..update }), ..workload }
}

#[test]
fn a_rolling_update_drops_no_connection_and_neither_does_a_rollback() {
    let mut stage = stage();
    let version = |stage: &Stage, version: &str| {
        drained(service::replicated(&stage.gateway, "api", version, 3))
    };
    let first = version(&stage, "1");
    order(&stage.gateway, 2, vec![first]);
    converged(&mut stage.gateway, 2);
    let callers = Callers::begin(stage.gateway.place(), PORT, LOAD);
    answers(&callers, "1", 500);

    let second = version(&stage, "2");
    order(&stage.gateway, 3, vec![second.clone()]);
    let status = converged(&mut stage.gateway, 3);
    assert!(status.workload("api").unwrap().replicas.iter().all(|r| r.generation == Some(3)));
    answers(&callers, "2", 500);
    let farewells = callers.so_far().farewells.len();
    assert!(farewells >= LOAD.long, "all long ones were on version 1; {farewells} left");

    let bad = giving_up(version(&stage, "bad"));
    order(&stage.gateway, 4, vec![bad]);
    stage
        .gateway
        .wait("the rollback", LONG, |status| {
            let update = status.workload("api")?.update.as_ref()?;
            let settled = status
                .workload("api")?
                .replicas
                .iter()
                .filter(|r| r.ready && r.generation == Some(3))
                .count()
                == 3;
            (update.state == UpdateState::RolledBack && settled).then_some(())
        })
        .unwrap();
    let before = callers.so_far().of("2");
    answers(&callers, "2", before + 200);
    let seen = callers.end();
    assert_unbroken(&seen);
    assert_eq!(seen.of("bad"), 0);
    assert!(seen.short() >= 2000, "{} short ones", seen.short());
    stage.clear();
}

#[test]
fn a_single_workload_is_replaced_blue_green_without_a_dropped_connection() {
    let mut stage = stage();
    let version = |stage: &Stage, version: &str| {
        let mut workload = drained(service::workload(&stage.gateway, "api", version));
        let update = workload.update.take().unwrap();
        workload.update = Some(Update { strategy: UpdateStrategy::BlueGreen, ..update });
        workload
    };
    let first = version(&stage, "1");
    order(&stage.gateway, 2, vec![first]);
    converged(&mut stage.gateway, 2);
    let callers = Callers::begin(stage.gateway.place(), PORT, LOAD);
    answers(&callers, "1", 500);
    let second = version(&stage, "2");
    order(&stage.gateway, 3, vec![second]);
    converged(&mut stage.gateway, 3);
    answers(&callers, "2", 500);
    let bad = giving_up(version(&stage, "bad"));
    order(&stage.gateway, 4, vec![bad]);
    stage
        .gateway
        .wait("the rollback", LONG, |status| {
            let workload = status.workload("api")?;
            let settled = workload.replicas.len() == 1 && workload.replicas[0].ready;
            (workload.update.as_ref()?.state == UpdateState::RolledBack && settled).then_some(())
        })
        .unwrap();
    let seen = callers.end();
    assert_unbroken(&seen);
    assert!(seen.short() >= 1000 && seen.of("bad") == 0, "{:?}", seen.answers);
    assert!(seen.farewells.len() >= LOAD.long, "{} left", seen.farewells.len());
    stage.clear();
}
