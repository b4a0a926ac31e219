use std::collections::BTreeMap;
use std::time::Duration;

use expect_test::expect;
use serde_json::json;

use super::*;
use crate::backoff::Retry;
use crate::desired::{Desired, parse_sound};
use crate::image::{Digest, ImageRef};
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
    let orders = Orders { current, previous: Desired::default() };
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
    history.pull_failed(&image, "the registry answered 429", an_hour, now());
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
    let container = Container {
        replica: replica.clone(),
        generation: 6,
        definition: workload.definition.clone(),
        task: Task::Running { pid: 42 },
    };
    let id = replica.container(&workload.container.name);
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
        history.start_failed(&replica, &workload.definition, &error, Retry::Backoff, now());
    }
    let mut observed = reachable();
    let digest = Digest::parse(&format!("sha256:{}", "1".repeat(64))).unwrap();
    observed.images.insert(ImageRef::parse("r.x/a:1").unwrap(), digest);
    let report = report_of(wanted, &observed, &history);
    assert!(serde_json::to_vec(&report).unwrap().len() > MAX_REPORT_BYTES);
    let bytes = encode(&report);
    assert!(bytes.len() <= MAX_REPORT_BYTES, "{}", bytes.len());
    let read: ReportedState = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(read.workloads.len(), 256);
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
    let bytes = encode(&report);
    assert!(bytes.len() <= MAX_REPORT_BYTES, "{}", bytes.len());
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
