use std::collections::BTreeMap;
use std::time::Duration;

use expect_test::expect;
use serde_json::json;

use super::*;
use crate::artifact::Software;
use crate::backoff::Retry;
use crate::desired::{Desired, parse_sound};
use crate::history::Stopped;
use crate::image::{Digest, ImageRef};
use crate::observed::{Busy, Health};
use crate::reconcile::reconcile;

const GATEWAY: &str = "3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11";

fn desired(workloads: u32) -> Desired {
    let workload = |i| {
        json!({ "name": format!("web{i}"), "network": "none",
                "containers": [{ "image": "r.x/a:1" }] })
    };
    let workloads: Vec<_> = (0..workloads).map(workload).collect();
    parse_sound(
        &json!({ "schema": 1, "gateway": GATEWAY, "generation": 7, "workloads": workloads }),
    )
}

fn now() -> Now {
    Now { monotonic: Duration::from_secs(10), wall: Duration::from_secs(1_800_000_000) }
}

fn report_of(current: Desired, observed: &Observed, history: &History) -> ReportedState {
    let orders = Orders { current, ..Orders::default() };
    let plan = reconcile(&orders, observed, history, now());
    let mut conditions = Conditions::default();
    conditions.set("containerd", ConditionStatus::True, "reachable", "containerd 1.6.20", now());
    report(&Facts {
        gateway: GATEWAY.parse().unwrap(),
        boot_id: "b",
        agent_version: "0.1.0",
        generation_seen: 7,
        refused: None,
        unknown_fields: &[],
        conditions: &conditions,
        orders: &orders,
        observed,
        history,
        plan: &plan,
        now: now(),
    })
}

fn reachable() -> Observed {
    Observed { containers: Some(BTreeMap::new()), ..Observed::default() }
}

#[test]
fn without_orders_a_gateway_is_idle() {
    let report = report_of(Desired::default(), &reachable(), &History::default());
    assert_eq!(report.phase, Phase::Idle);
}

#[test]
fn a_failed_pull_says_why_and_when_the_next_try_is() {
    let image = ImageRef::parse("r.x/a:1").unwrap();
    let mut history = History::default();
    let an_hour = Retry::After(Duration::from_secs(3600));
    history.pull_failed(
        &Software::Image(image.clone()),
        "the registry answered 429",
        an_hour,
        now(),
    );
    let report = report_of(desired(1), &reachable(), &history);
    assert_eq!(report.phase, Phase::Degraded);
    expect![[r#"
        {
          "index": 0,
          "state": "back-off",
          "reason": "image r.x/a:1 could not be fetched: the registry answered 429",
          "next_try": "2027-01-15T09:00:00Z"
        }"#]]
    .assert_eq(&serde_json::to_string_pretty(&report.workloads[0].replicas[0]).unwrap());
}

#[test]
fn what_runs_is_shown_with_process_and_digest() {
    let mut observed = reachable();
    let digest = Digest::parse(&format!("sha256:{}", "1".repeat(64))).unwrap();
    observed.images.insert(ImageRef::parse("r.x/a:1").unwrap(), digest);
    let wanted = desired(1);
    let workload = wanted.workloads.values().next().unwrap();
    let replica = ReplicaId { workload: workload.name.clone(), index: 0 };
    let name = workload.pod.containers[0].name.clone();
    let id = replica.container(&name);
    let container = Container {
        replica: replica.clone(),
        name,
        generation: 6,
        definition: workload.definition.clone(),
        limits: "".into(),
        task: Task::Running { pid: 42 },
    };
    observed.containers.as_mut().unwrap().insert(id, container);
    let report = report_of(wanted, &observed, &History::default());
    assert_eq!(report.phase, Phase::Converged);
    let shown = &report.workloads[0];
    assert_eq!(shown.replicas[0].state, ReplicaState::Running);
    assert_eq!((shown.replicas[0].pid, shown.replicas[0].generation), (Some(42), Some(6)));
    assert!(shown.image_digest.is_some());
}

#[test]
fn the_largest_report_stays_within_its_limit() {
    let mut history = History::default();
    let wanted = desired(256);
    for workload in wanted.workloads.values() {
        let replica = ReplicaId { workload: workload.name.clone(), index: 0 };
        let error = "e".repeat(1000);
        let id = replica.container(&workload.pod.containers[0].name);
        history.start_failed(&id, &workload.definition, &error, Retry::Backoff, now());
    }
    let mut observed = reachable();
    let digest = Digest::parse(&format!("sha256:{}", "1".repeat(64))).unwrap();
    observed.images.insert(ImageRef::parse("r.x/a:1").unwrap(), digest);
    let report = report_of(wanted, &observed, &history);
    assert!(serde_json::to_vec(&report).unwrap().len() > MAX_REPORT_BYTES);
    let bytes = encode(&report, usize::MAX);
    assert!(bytes.len() <= MAX_REPORT_BYTES, "{}", bytes.len());
    let read: ReportedState = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(read.workloads.len(), 256);
}

#[test]
fn a_report_keeps_to_what_a_broker_takes_and_counts_what_it_leaves_out() {
    let mut report = report_of(desired(200), &reachable(), &History::default());
    report.workloads[150].phase = Phase::Degraded;
    let names = ["kernel", "containerd", "store"];
    report.conditions = names
        .into_iter()
        .map(|name| Condition {
            name: name.into(),
            status: if name == "store" { ConditionStatus::False } else { ConditionStatus::True },
            reason: "reason".into(),
            message: "m".repeat(500),
            since: Timestamp::from_unix(0),
        })
        .collect();
    for limit in [800, 1500, 4000, 20_000] {
        let bytes = encode(&report, limit);
        assert!(bytes.len() <= limit, "{} of {limit}", bytes.len());
        let read: ReportedState = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(read.workloads.len() + read.omitted_workloads as usize, 200);
        assert!(read.conditions.iter().any(|condition| condition.name == "store"));
    }
}

#[test]
fn even_the_longest_image_references_fit_a_report() {
    let mut report = report_of(desired(256), &reachable(), &History::default());
    for workload in &mut report.workloads {
        workload.image = "i".repeat(512);
        workload.image_digest = Some("d".repeat(71));
        workload.replicas[0].state = ReplicaState::BackOff;
    }
    report.unknown_fields = vec!["u".repeat(200); 32];
    let refusal = Refusal::new("p".repeat(300), coracle_protocol::Code::MALFORMED, "m".repeat(300));
    report.refused = Some(refused(Some(9), "0".repeat(64), vec![refusal; 40]));
    let bytes = encode(&report, usize::MAX);
    assert!(bytes.len() <= MAX_REPORT_BYTES, "{}", bytes.len());
}

#[test]
fn even_long_reasons_of_updates_that_were_taken_back_fit_a_report() {
    let mut report = report_of(desired(256), &reachable(), &History::default());
    for workload in &mut report.workloads {
        let (state, reason) = (UpdateState::RolledBack, Some("r".repeat(300)));
        workload.update = Some(UpdateReport { state, updated: 0, replicas: 1, reason });
        workload.image = "i".repeat(512);
    }
    let bytes = encode(&report, usize::MAX);
    assert!(bytes.len() <= MAX_REPORT_BYTES, "{}", bytes.len());
    let read: ReportedState = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(read.workloads.len(), 256);
    assert!(read.workloads.iter().all(|workload| workload.update.is_some()));
}

/// A pod of two containers, both with a readiness probe.
fn pod() -> Desired {
    let container = |name: &str| {
        json!({ "name": name, "image": "r.x/a:1",
                "probes": { "readiness": { "tcp": { "port": 80 } } } })
    };
    let web = json!({ "name": "web", "network": "none", "replicas": 2,
                      "containers": [container("main"), container("side")] });
    parse_sound(&json!({ "schema": 1, "gateway": GATEWAY, "generation": 7, "workloads": [web] }))
}

/// The first replica of the only workload, all its containers running.
fn running(wanted: &Desired) -> Observed {
    let mut observed = reachable();
    let digest = Digest::parse(&format!("sha256:{}", "1".repeat(64))).unwrap();
    observed.images.insert(ImageRef::parse("r.x/a:1").unwrap(), digest);
    let workload = wanted.workloads.values().next().unwrap();
    let replica = ReplicaId { workload: workload.name.clone(), index: 0 };
    for (pid, container) in (42..).zip(&workload.pod.containers) {
        let id = replica.container(&container.name);
        let there = Container {
            replica: replica.clone(),
            name: container.name.clone(),
            generation: 7,
            definition: workload.definition.clone(),
            limits: "".into(),
            task: Task::Running { pid },
        };
        observed.containers.as_mut().unwrap().insert(id.clone(), there);
        let good =
            Health { pid, started: true, live: true, ready: true, proven: true, message: None };
        observed.health.insert(id, good);
    }
    observed
}

#[test]
fn a_replica_that_is_not_ready_says_which_container_is_to_blame() {
    let wanted = pod();
    let mut observed = running(&wanted);
    let shown = |observed: &Observed| {
        let report = report_of(wanted.clone(), observed, &History::default());
        let replica = report.workloads[0].replicas[0].clone();
        (replica.state, replica.ready, replica.reason)
    };
    assert_eq!(shown(&observed), (ReplicaState::Running, true, None));
    let health = observed.health.values_mut().last().unwrap();
    (health.ready, health.message) = (false, Some("readiness probe: refused".into()));
    let reason = Some("side: readiness probe: refused".into());
    assert_eq!(shown(&observed), (ReplicaState::Running, false, reason));
    observed.health.pop_first();
    let reason = Some("main: its probes have not answered yet".into());
    assert_eq!(shown(&observed), (ReplicaState::Running, false, reason));
}

#[test]
fn what_is_stopped_by_hand_counts_as_ordered_when_nothing_of_it_runs() {
    let wanted = pod();
    let mut observed = running(&wanted);
    let mut history = History::default();
    let name = wanted.workloads.keys().next().unwrap();
    let since = now().wall.as_secs() - 60;
    history.set_stopped(name, Some(Stopped { drained: true, since }));
    let shown = |observed: &Observed| {
        let report = report_of(wanted.clone(), observed, &history);
        let workload = &report.workloads[0];
        let stopped = workload.stopped.as_ref().map(|s| (s.drained, s.since.unix()));
        assert_eq!(stopped, Some((true, since)));
        let states: Vec<_> = workload.replicas.iter().map(|replica| replica.state).collect();
        (workload.phase, states)
    };
    let (_, states) = shown(&observed);
    assert_eq!(states, [ReplicaState::Running, ReplicaState::Stopped]);
    let replica = ReplicaId { workload: name.clone(), index: 0 };
    observed.busy.insert(replica, Busy { starting: None, leaves_running: false });
    let stopping = [ReplicaState::Stopping, ReplicaState::Stopped];
    assert_eq!(shown(&observed), (Phase::Progressing, stopping.to_vec()));
    observed.busy.clear();
    observed.containers.as_mut().unwrap().clear();
    assert_eq!(shown(&observed), (Phase::Converged, vec![ReplicaState::Stopped; 2]));
}

#[test]
fn a_condition_keeps_its_time_until_its_status_changes() {
    let mut conditions = Conditions::default();
    let later = Now { wall: now().wall + Duration::from_secs(60), ..now() };
    conditions.set("link", ConditionStatus::False, "down", "x", now());
    conditions.set("link", ConditionStatus::False, "refused", "y", later);
    assert_eq!(conditions.0["link"].since.unix(), now().wall.as_secs());
    assert_eq!(conditions.0["link"].reason, "refused");
    conditions.set("link", ConditionStatus::True, "up", "z", later);
    assert_eq!(conditions.0["link"].since.unix(), later.wall.as_secs());
}
