//! The page in many situations, as it is seen.

use coracle_protocol::reported::{
    ContainerReport, ExitReport, ReplicaState, ReportedState, StoppedReport, UpdateReport,
};
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
            omitted_workloads: 0,
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
        link_bytes_today: None,
        pulls: Vec::new(),
    }
}

fn condition(name: &str, status: ConditionStatus, message: &str) -> Condition {
    let (name, message) = (name.into(), message.into());
    Condition { name, status, reason: "reachable".into(), message, since: at(-125) }
}

pub(in crate::cli) fn workload(name: &str, replicas: Vec<ReplicaReport>) -> WorkloadReport {
    WorkloadReport {
        name: name.into(),
        phase: Phase::Converged,
        image: format!("registry.example/{name}:1.27"),
        image_digest: None,
        further_images: Vec::new(),
        update: None,
        stopped: None,
        replicas,
    }
}

pub(in crate::cli) fn replica(state: ReplicaState) -> ReplicaReport {
    ReplicaReport {
        index: 0,
        state,
        ready: state == ReplicaState::Running,
        pid: None,
        generation: Some(7),
        restarts: 0,
        last_exit: None,
        reason: None,
        next_try: None,
        address: None,
        containers: Vec::new(),
    }
}

pub(in crate::cli) fn running(pid: u32) -> ReplicaReport {
    ReplicaReport { pid: Some(pid), ..replica(ReplicaState::Running) }
}

pub(in crate::cli) fn ordered(phase: Phase, workloads: Vec<WorkloadReport>) -> Status {
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
    let exit = |code, ago: i64| Some(ExitReport { code, at: at(-ago), out_of_memory: false });
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
    expect!["db.0 not ready, ui 2 of 3 replaced, web update taken back"]
        .assert_eq(&line(&exceptions()));
    let mut stopped = exceptions();
    stopped.reported.phase = Phase::Converged;
    expect!["everything is as ordered, but for what is stopped by hand"].assert_eq(&line(&stopped));
}

fn unready(reason: &str) -> ReplicaReport {
    ReplicaReport { ready: false, reason: Some(reason.into()), ..running(4713) }
}

fn update(state: UpdateState, updated: u32, reason: Option<&str>) -> Option<UpdateReport> {
    Some(UpdateReport { state, updated, replicas: 3, reason: reason.map(Into::into) })
}

/// Three replicas of generation 4 that run.
fn three() -> Vec<ReplicaReport> {
    let of = |index| ReplicaReport { index, generation: Some(4), ..running(4711 + index) };
    (0..3).map(of).collect()
}

/// One workload of each kind that runs, or not, otherwise than ordered.
pub(in crate::cli) fn exceptions() -> Status {
    let taken_back = Some("web.0: ended with exit code 1, 3 times in a row");
    let waits = Some("waits for db: 0 of 1 replicas are ready");
    let stopped = |drained, ago: i64| Some(StoppedReport { drained, since: at(-ago) });
    let rests = |index| ReplicaReport { index, ..replica(ReplicaState::Stopped) };
    ordered(
        Phase::Degraded,
        vec![
            WorkloadReport {
                stopped: stopped(true, 7500),
                ..workload("api", vec![rests(0), rests(1), rests(2)])
            },
            WorkloadReport {
                phase: Phase::Progressing,
                ..workload("db", vec![unready("GET /healthz answered 503")])
            },
            WorkloadReport { stopped: stopped(false, 190), ..workload("job", vec![rests(0)]) },
            WorkloadReport {
                phase: Phase::Progressing,
                update: update(UpdateState::Progressing, 2, waits),
                ..workload("ui", three())
            },
            WorkloadReport {
                phase: Phase::Degraded,
                update: update(UpdateState::RolledBack, 0, taken_back),
                ..workload("web", three())
            },
        ],
    )
}

#[test]
fn what_is_stopped_updated_taken_back_or_not_ready_cannot_be_missed() {
    check(
        &exceptions(),
        expect![[r#"
        Gateway     3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11, agent 0.1.0
        Orders      generation 7 in force, 5 workloads: degraded
                    stopped by hand: api, job
                    update taken back: web
        Link        connected to broker.example:8883
        containerd  reachable (1.6.20)

        WORKLOAD  STATE        DETAILS
        ui.0      running      pid 4711
        ui.1      running      pid 4712
        ui.2      running      pid 4713
        web.0     running      pid 4711
        web.1     running      pid 4712
        web.2     running      pid 4713
        api.0-2   stopped      drained by hand 2 h ago
        job.0     stopped      stopped by hand 3 min ago
        ui        updating     2 of 3 replicas replaced; waits for db: 0 of 1 replicas
                               are ready
        db.0      running      not ready: GET /healthz answered 503; pid 4713
        web       rolled-back  update taken back: web.0: ended with exit code 1, 3 times
                               in a row; runs generation 4
    "#]],
    );
    let mut status = exceptions();
    let more = (0..25).map(|i| workload(&format!("service-{i}"), vec![running(5000 + i)]));
    status.reported.workloads.extend(more);
    assert!(render(&status, NOW, &PLAIN).lines().count() <= 23);
    check(
        &status,
        expect![[r#"
        Gateway     3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11, agent 0.1.0
        Orders      generation 7 in force, 30 workloads: degraded
                    stopped by hand: api, job
                    update taken back: web
        Link        connected to broker.example:8883
        containerd  reachable (1.6.20)

        As ordered (31 of 36): ui.0 ui.1 ui.2 web.0 web.1 web.2 service-0.0 service-1.0
        service-2.0 service-3.0 service-4.0 service-5.0 service-6.0 service-7.0
        service-8.0 service-9.0 service-10.0 service-11.0 service-12.0 service-13.0
        service-14.0 service-15.0 service-16.0 service-17.0 service-18.0 service-19.0
        service-20.0 service-21.0 service-22.0 service-23.0 service-24.0

        WORKLOAD  STATE        DETAILS
        api.0-2   stopped      drained by hand 2 h ago
        job.0     stopped      stopped by hand 3 min ago
        ui        updating     2 of 3 replicas replaced; waits for db: 0 of 1 replicas
                               are ready
        db.0      running      not ready: GET /healthz answered 503; pid 4713
        web       rolled-back  update taken back: web.0: ended with exit code 1, 3 times
                               in a row; runs generation 4
    "#]],
    );
}

#[test]
fn what_is_stopped_by_hand_counts_as_ordered_and_is_seen_all_the_same() {
    let mut status = exceptions();
    status.reported.phase = Phase::Converged;
    status.reported.workloads.truncate(1);
    check(
        &status,
        expect![[r#"
        Gateway     3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11, agent 0.1.0
        Orders      generation 7 in force, 1 workload: converged
                    stopped by hand: api
        Link        connected to broker.example:8883
        containerd  reachable (1.6.20)

        WORKLOAD  STATE    DETAILS
        api.0-2   stopped  drained by hand 2 h ago
    "#]],
    );
    let stopping = &mut status.reported.workloads[0];
    stopping.stopped = Some(StoppedReport { drained: false, since: at(-4) });
    stopping.replicas[2] = ReplicaReport { index: 2, ..running(4713) };
    stopping.replicas[2].state = ReplicaState::Stopping;
    check(
        &status,
        expect![[r#"
        Gateway     3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11, agent 0.1.0
        Orders      generation 7 in force, 1 workload: converged
                    stopped by hand: api
        Link        connected to broker.example:8883
        containerd  reachable (1.6.20)

        WORKLOAD  STATE     DETAILS
        api.0-1   stopped   stopped by hand 4 s ago
        api.2     stopping  stopped by hand 4 s ago; pid 4713
    "#]],
    );
}

#[test]
fn an_update_that_waits_for_its_image_says_how_much_of_it_is_there() {
    let mut status = exceptions();
    let reason = Some("its image is being fetched");
    status.reported.workloads.retain(|workload| workload.name == "ui");
    status.reported.workloads[0].update = update(UpdateState::Progressing, 0, reason);
    check(
        &status,
        expect![[r#"
        Gateway     3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11, agent 0.1.0
        Orders      generation 7 in force, 1 workload: degraded
        Link        connected to broker.example:8883
        containerd  reachable (1.6.20)

        WORKLOAD  STATE     DETAILS
        ui.0      running   pid 4711
        ui.1      running   pid 4712
        ui.2      running   pid 4713
        ui        updating  0 of 3 replicas replaced; its image is being fetched
    "#]],
    );
    status.pulls = degraded().pulls;
    status.pulls[0].image = "registry.example/ui:1.27".into();
    check(
        &status,
        expect![[r#"
        Gateway     3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11, agent 0.1.0
        Orders      generation 7 in force, 1 workload: degraded
        Link        connected to broker.example:8883
        containerd  reachable (1.6.20)

        WORKLOAD  STATE     DETAILS
        ui.0      running   pid 4711
        ui.1      running   pid 4712
        ui.2      running   pid 4713
        ui        updating  0 of 3 replicas replaced; downloading, 43 % of 12.1 MiB
    "#]],
    );
    expect!["ui pulling 40 %"].assert_eq(&progress(&status, &PLAIN));
}

#[test]
fn a_pod_that_is_not_ready_says_which_container_is_to_blame() {
    let container = |name: &str| ContainerReport {
        name: name.into(),
        state: ReplicaState::Running,
        pid: Some(4711),
        restarts: 0,
        last_exit: None,
        reason: None,
        next_try: None,
    };
    let mut pod = unready("side: connection to port 9000 refused");
    pod.containers = vec![container("main"), container("side")];
    pod.address = Some("10.88.0.5".parse().unwrap());
    pod.restarts = 1;
    pod.last_exit = Some(ExitReport { code: 137, at: at(-190), out_of_memory: false });
    let status = ordered(Phase::Progressing, vec![workload("web", vec![pod])]);
    check(
        &status,
        expect![[r#"
        Gateway     3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11, agent 0.1.0
        Orders      generation 7 in force, 1 workload: progressing
        Link        connected to broker.example:8883
        containerd  reachable (1.6.20)

        WORKLOAD  STATE    DETAILS
        web.0     running  not ready: side: connection to port 9000 refused; 2 of 2
                           containers; at 10.88.0.5; restarted once; last ended by
                           SIGKILL, 3 min 10 s ago
    "#]],
    );
}

#[test]
fn nothing_is_left_to_wait_for_once_only_updates_were_taken_back() {
    let mut status = exceptions();
    assert_eq!(given_up(&status), [""; 0]);
    status.reported.workloads.retain(|workload| !["db", "ui"].contains(&workload.name.as_str()));
    assert_eq!(given_up(&status), ["web"]);
    status.reported.workloads[2].replicas[1] = unready("GET /healthz answered 503");
    assert_eq!(given_up(&status), [""; 0]);
}
