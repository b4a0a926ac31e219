//! The page in many situations, as it is seen.

use coracle_protocol::reported::{ExitReport, ReplicaState, ReportedState};
use coracle_protocol::{Code, Refusal};
use expect_test::{Expect, expect};

use super::*;
use crate::status::PullStatus;

pub(in crate::cli) const NOW: Timestamp = Timestamp::from_unix(1_772_366_400);
pub(in crate::cli) const PLAIN: Style = Style { width: Some(80), colour: false, utf8: false };

fn at(seconds_from_now: i64) -> Timestamp {
    Timestamp::from_unix(NOW.unix().saturating_add_signed(seconds_from_now))
}

fn idle() -> Status {
    Status {
        reported: ReportedState {
            schema: 1,
            gateway: "3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11".parse().unwrap(),
            boot_id: "b".into(),
            sequence: 1,
            agent_version: "0.1.0".into(),
            generation_seen: 0,
            generation_applied: 0,
            phase: Phase::Idle,
            refused: None,
            unknown_fields: Vec::new(),
            conditions: vec![condition("containerd", ConditionStatus::True, "containerd 1.6.20")],
            workloads: Vec::new(),
        },
        link: None,
        pulls: Vec::new(),
    }
}

fn condition(name: &str, status: ConditionStatus, message: &str) -> Condition {
    let (name, message) = (name.into(), message.into());
    Condition { name, status, reason: "reachable".into(), message, since: at(-125) }
}

fn workload(name: &str, replicas: Vec<ReplicaReport>) -> WorkloadReport {
    WorkloadReport {
        name: name.into(),
        phase: Phase::Converged,
        image: format!("registry.example/{name}:1.27"),
        image_digest: None,
        replicas,
    }
}

fn replica(state: ReplicaState) -> ReplicaReport {
    ReplicaReport {
        index: 0,
        state,
        pid: None,
        generation: Some(7),
        restarts: 0,
        last_exit: None,
        reason: None,
        next_try: None,
    }
}

fn running(pid: u32) -> ReplicaReport {
    ReplicaReport { pid: Some(pid), ..replica(ReplicaState::Running) }
}

fn ordered(phase: Phase, workloads: Vec<WorkloadReport>) -> Status {
    let mut status = idle();
    status.reported.generation_seen = 7;
    status.reported.generation_applied = 7;
    status.reported.phase = phase;
    status.reported.workloads = workloads;
    status.link = Some(LinkStatus {
        broker: "broker.example:8883".into(),
        connected: true,
        reason: None,
        next_try: None,
    });
    status
}

/// One replica of each kind.
pub(in crate::cli) fn degraded() -> Status {
    let exit = |code, ago: i64| Some(ExitReport { code, at: at(-ago) });
    let mut status = ordered(
        Phase::Degraded,
        vec![
            workload("cam", vec![ReplicaReport { index: 0, ..replica(ReplicaState::Pulling) }]),
            workload(
                "db",
                vec![ReplicaReport {
                    restarts: 5,
                    last_exit: exit(1, 4),
                    reason: Some("ended with exit code 1".into()),
                    next_try: Some(at(12)),
                    ..replica(ReplicaState::BackOff)
                }],
            ),
            workload(
                "migrate",
                vec![ReplicaReport {
                    last_exit: exit(0, 4000),
                    ..replica(ReplicaState::Completed)
                }],
            ),
            workload(
                "probe",
                vec![ReplicaReport { last_exit: exit(2, 4000), ..replica(ReplicaState::Failed) }],
            ),
            workload(
                "web",
                vec![
                    ReplicaReport { restarts: 2, last_exit: exit(137, 190), ..running(4711) },
                    ReplicaReport { index: 1, ..replica(ReplicaState::Starting) },
                ],
            ),
        ],
    );
    status.reported.workloads[1].image =
        format!("registry.example/team/database@sha256:{}", "0123456789abcdef".repeat(4));
    status.pulls = vec![PullStatus {
        image: "registry.example/cam:1.27".into(),
        phase: "downloading".into(),
        bytes_done: 5_456_700,
        bytes_total: Some(12_690_000),
    }];
    status
}

fn check(status: &Status, expect: Expect) {
    let page = render(status, NOW, &PLAIN);
    assert!(page.lines().all(|line| line.chars().count() <= 80), "{page}");
    assert!(page.lines().all(|line| line.trim_end() == line), "{page}");
    expect.assert_eq(&page);
}

#[test]
fn no_orders_yet() {
    check(
        &idle(),
        expect![[r#"
        Gateway     3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11, agent 0.1.0
        Orders      none yet; give some by `coracle apply FILE`
        Link        none configured; orders are given locally
        containerd  reachable (1.6.20)
    "#]],
    );
    let mut linked = idle();
    linked.link = Some(LinkStatus {
        broker: "broker.example:8883".into(),
        connected: false,
        reason: Some(
            "invalid peer certificate: certificate not valid for name broker.example".into(),
        ),
        next_try: Some(at(200)),
    });
    check(
        &linked,
        expect![[r#"
            Gateway     3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11, agent 0.1.0
            Orders      none yet; they come over the link, or by `coracle apply`
            Link        not connected to broker.example:8883: invalid peer certificate:
                        certificate not valid for name broker.example; next try in
                        3 min 20 s
            containerd  reachable (1.6.20)
        "#]],
    );
}

#[test]
fn everything_as_ordered() {
    check(
        &ordered(Phase::Converged, vec![workload("web", vec![running(4711)])]),
        expect![[r#"
        Gateway     3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11, agent 0.1.0
        Orders      generation 7 in force, 1 workload: converged
        Link        connected to broker.example:8883
        containerd  reachable (1.6.20)

        WORKLOAD  STATE    DETAILS
        web.0     running  pid 4711
    "#]],
    );
    check(
        &ordered(Phase::Converged, vec![]),
        expect![[r#"
        Gateway     3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11, agent 0.1.0
        Orders      generation 7 in force, 0 workloads: converged
        Link        connected to broker.example:8883
        containerd  reachable (1.6.20)
    "#]],
    );
}

#[test]
fn each_state_says_why_and_when() {
    check(
        &degraded(),
        expect![[r#"
            Gateway     3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11, agent 0.1.0
            Orders      generation 7 in force, 5 workloads: degraded
            Link        connected to broker.example:8883
            containerd  reachable (1.6.20)

            WORKLOAD   STATE      DETAILS
            migrate.0  completed  ended with exit code 0, 1 h 6 min ago
            web.0      running    pid 4711; restarted 2 times; last ended by SIGKILL,
                                  3 min 10 s ago
            cam.0      pulling    downloading, 43 % of 12.1 MiB
            web.1      starting
            db.0       back-off   ended with exit code 1; next try in 12 s; restarted 5
                                  times
            probe.0    failed     ended with exit code 2, 1 h 6 min ago; not tried again:
                                  its restart policy is never
        "#]],
    );
}

#[test]
fn a_refused_order_gives_every_reason() {
    let mut status = ordered(Phase::Converged, vec![workload("web", vec![running(4711)])]);
    status.reported.generation_seen = 8;
    status.reported.refused = Some(Refused {
        generation: Some(8),
        digest: "d".into(),
        refusals: vec![
            Refusal::new(
                "/workloads/0/containers/0/image",
                Code::INVALID_IMAGE,
                "image reference needs its registry, such as registry.example/web:1.27",
            ),
            Refusal::whole(Code::UNSIGNED, "the order carries no signature"),
        ],
        omitted: 3,
    });
    status.reported.unknown_fields = (0..5).map(|i| format!("/workloads/{i}/colour")).collect();
    check(
        &status,
        expect![[r#"
            Gateway     3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11, agent 0.1.0
            Orders      generation 7 in force, 1 workload: converged
                        generation 8 was refused:
                          /workloads/0/containers/0/image: image reference needs its
                          registry, such as registry.example/web:1.27 [invalid-image]
                          the order carries no signature [unsigned]
                          and 3 more
                        /workloads/0/colour was ignored: this agent does not know the field
                        /workloads/1/colour was ignored: this agent does not know the field
                        /workloads/2/colour was ignored: this agent does not know the field
                        2 more were ignored
            Link        connected to broker.example:8883
            containerd  reachable (1.6.20)

            WORKLOAD  STATE    DETAILS
            web.0     running  pid 4711
        "#]],
    );
}

#[test]
fn replicas_of_which_the_same_can_be_said_share_a_line() {
    let waiting = |index, seconds| ReplicaReport {
        index,
        reason: Some("ended with exit code 1".into()),
        next_try: Some(at(seconds)),
        ..replica(ReplicaState::BackOff)
    };
    let replicas = vec![waiting(0, 9), waiting(1, 9), waiting(2, 9), waiting(3, 5), waiting(5, 5)];
    check(
        &ordered(Phase::Degraded, vec![workload("web", replicas)]),
        expect![[r#"
        Gateway     3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11, agent 0.1.0
        Orders      generation 7 in force, 1 workload: degraded
        Link        connected to broker.example:8883
        containerd  reachable (1.6.20)

        WORKLOAD  STATE     DETAILS
        web.0-2   back-off  ended with exit code 1; next try in 9 s
        web.3     back-off  ended with exit code 1; next try in 5 s
        web.5     back-off  ended with exit code 1; next try in 5 s
    "#]],
    );
}

#[test]
fn without_containerd_nothing_can_start() {
    let waiting = ReplicaReport {
        reason: Some("containerd cannot be reached".into()),
        ..replica(ReplicaState::Pending)
    };
    let mut status = ordered(Phase::Progressing, vec![workload("web", vec![waiting])]);
    status.reported.conditions = vec![
        condition(
            "containerd",
            ConditionStatus::False,
            "cannot connect to /run/containerd/containerd.sock: no such file or directory",
        ),
        condition("store-of-orders", ConditionStatus::Unknown, ""),
    ];
    check(
        &status,
        expect![[r#"
            Gateway     3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11, agent 0.1.0
            Orders      generation 7 in force, 1 workload: progressing
            Link        connected to broker.example:8883
            containerd  NOT GOOD for 2 min 5 s: cannot connect to
                        /run/containerd/containerd.sock: no such file or directory
            store-of-orders
                        unknown: reachable

            WORKLOAD  STATE    DETAILS
            web.0     pending  containerd cannot be reached
        "#]],
    );
}

#[test]
fn long_names_and_long_reasons_stay_within_the_line() {
    let long = ReplicaReport {
        reason: Some(format!(
            "image registry.example/{}@sha256:{} could not be fetched: \x1b[2J connection refused",
            "a".repeat(30),
            "0".repeat(64)
        )),
        next_try: Some(at(271)),
        ..replica(ReplicaState::BackOff)
    };
    check(
        &ordered(
            Phase::Degraded,
            vec![
                workload("web", vec![running(4711)]),
                workload("a-workload-with-the-longest-name-allowed", vec![long]),
            ],
        ),
        expect![[r#"
            Gateway     3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11, agent 0.1.0
            Orders      generation 7 in force, 2 workloads: degraded
            Link        connected to broker.example:8883
            containerd  reachable (1.6.20)

            WORKLOAD  STATE     DETAILS
            web.0     running   pid 4711
            a-workload-with-the-longest-name-allowed.0
                      back-off  image
                                registry.example/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa@sha256:00000
                                00000000000000000000000000000000000000000000000000000000000
                                could not be fetched: ?[2J connection refused; next try in
                                4 min 31 s
        "#]],
    );
}

#[test]
fn thirty_workloads_fit_a_screen() {
    let mut status = degraded();
    let more = (0..25).map(|i| workload(&format!("service-{i}"), vec![running(5000 + i)]));
    status.reported.workloads.extend(more);
    assert!(render(&status, NOW, &PLAIN).lines().count() <= 23);
    check(
        &status,
        expect![[r#"
            Gateway     3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11, agent 0.1.0
            Orders      generation 7 in force, 30 workloads: degraded
            Link        connected to broker.example:8883
            containerd  reachable (1.6.20)

            As ordered (27 of 31): migrate.0 web.0 service-0.0 service-1.0 service-2.0
            service-3.0 service-4.0 service-5.0 service-6.0 service-7.0 service-8.0
            service-9.0 service-10.0 service-11.0 service-12.0 service-13.0 service-14.0
            service-15.0 service-16.0 service-17.0 service-18.0 service-19.0 service-20.0
            service-21.0 service-22.0 service-23.0 service-24.0

            WORKLOAD  STATE     DETAILS
            cam.0     pulling   downloading, 43 % of 12.1 MiB
            web.1     starting
            db.0      back-off  ended with exit code 1; next try in 12 s; restarted 5 times
            probe.0   failed    ended with exit code 2, 1 h 6 min ago; not tried again: its
                                restart policy is never
        "#]],
    );
}

#[test]
fn colour_and_programs_get_the_same_words() {
    let page = render(&degraded(), NOW, &Style { width: None, colour: true, utf8: true });
    assert!(page.contains("\x1b[31mback-off\x1b[0m"), "{page}");
    let plain = render(&degraded(), NOW, &Style { width: None, colour: false, utf8: true });
    assert_eq!(plain.lines().count(), page.lines().count());
}

#[test]
fn progress_in_one_line() {
    let line = |status: &Status| progress(status, &PLAIN);
    assert_eq!(line(&idle()), "idle");
    assert_eq!(line(&ordered(Phase::Converged, vec![])), "everything is as ordered");
    expect!["cam.0 pulling 40 %, db.0 back-off, probe.0 failed and 1 more"]
        .assert_eq(&line(&degraded()));
}
