//! Situations as tables, and properties over random ones.

use expect_test::{Expect, expect};
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::backoff::Retry;
use crate::desired::{Desired, RestartPolicy, parse_sound};
use crate::image::Digest;
use crate::name::WorkloadName;
use crate::observed::{Busy, Exit};
use crate::record::{Record, RecordId};

/// Orders in one line: `NAME:IMAGE+IMAGE*REPLICAS/POLICY`, separated by blanks; a container for each
/// image, called main, c1, c2.
fn desired(generation: u64, text: &str) -> Desired {
    let workload = |word: &str| {
        let (word, policy) = word.split_once('/').unwrap_or((word, "always"));
        let (word, replicas) = word.split_once('*').unwrap_or((word, "1"));
        let (name, images) = word.split_once(':').unwrap();
        let container = |(i, image): (usize, &str)| {
            let name = if i == 0 { "main".into() } else { format!("c{i}") };
            json!({ "name": name, "image": format!("r.x/{image}:1") })
        };
        let containers: Vec<_> = images.split('+').enumerate().map(container).collect();
        json!({ "name": name, "network": "none", "restart": policy,
                "replicas": replicas.parse::<u32>().unwrap(),
                "containers": containers })
    };
    let workloads: Vec<_> = text.split_whitespace().map(workload).collect();
    let document = json!({ "schema": 1, "generation": generation, "workloads": workloads,
                           "gateway": "3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11" });
    parse_sound(&document)
}

fn orders(previous: &str, current: &str) -> Orders {
    Orders { previous: desired(1, previous), current: desired(2, current), ..Orders::default() }
}

fn at(seconds: u64) -> Now {
    Now { monotonic: Duration::from_secs(seconds), wall: Duration::from_secs(1_000_000 + seconds) }
}

fn image(name: &str) -> ImageRef {
    ImageRef::parse(&format!("r.x/{name}:1")).unwrap()
}

fn digest() -> Digest {
    Digest::parse(&format!("sha256:{}", "0".repeat(64))).unwrap()
}

fn with_images(names: &[&str]) -> Observed {
    Observed {
        containers: Some(BTreeMap::new()),
        images: names.iter().map(|name| (image(name), digest())).collect(),
        ..Observed::default()
    }
}

const RUNNING: Task = Task::Running { pid: 7 };

fn stopped(code: u32, at_nanos: u64) -> Task {
    Task::Stopped(Exit { code, at_nanos })
}

/// Puts the first container of replica `index` of an ordered workload into the world.
fn add(observed: &mut Observed, from: &Desired, name: &str, index: u32, task: Task) {
    add_container(observed, from, name, index, 0, task);
}

/// Puts a container of a replica into the world, with what is around it.
fn add_container(
    observed: &mut Observed,
    from: &Desired,
    name: &str,
    index: u32,
    at: usize,
    task: Task,
) {
    let workload = from.workloads.values().find(|workload| workload.name.as_str() == name).unwrap();
    let replica = ReplicaId { workload: workload.name.clone(), index };
    let containers = &workload.pod.containers;
    let name = containers[at % containers.len()].name.clone();
    let id = replica.container(&name);
    let definition = workload.definition.clone();
    observed.pods.insert(replica.clone(), pod(workload));
    let limits = containers[at % containers.len()].limits.label().into();
    let generation = from.generation;
    let container = Container { replica, name, generation, definition, limits, task };
    observed.containers.as_mut().unwrap().insert(id, container);
}

fn pod(workload: &Workload) -> observed::Pod {
    observed::Pod {
        definition: workload.definition.clone(),
        in_place: workload.pod.in_place.clone(),
        serves_identity: workload.pod.identity.is_some(),
        shares_ports: workload.shares_ports(),
        address: None,
    }
}

/// An image without registry and tag, or an artifact.
fn short(software: &Software) -> &str {
    match software {
        Software::Image(image) => image.repository(),
        Software::Artifact(artifact) => artifact.id.name(),
    }
}

/// A plan in one line.
fn show(plan: &Plan) -> String {
    let mut words: Vec<String> = plan
        .actions
        .iter()
        .map(|action| match action {
            Action::Pull { software } => format!("pull {}", short(software)),
            Action::Start(s) => {
                format!(
                    "start {} as {} g{}",
                    match s.container.name.as_str() {
                        "main" => s.replica.to_string(),
                        name => format!("{}.{name}", s.replica),
                    },
                    short(&s.container.software),
                    s.generation
                )
            }
            Action::Stop(stop) => format!("stop {}", stop.id),
            Action::RemoveArtifact { artifact } => format!("remove {artifact}"),
            Action::Remove { id, .. } => format!("remove {id}"),
            Action::Refresh(refresh) => format!("refresh {}", refresh.replica),
            Action::Adjust(adjust) => format!("adjust {} to {}", adjust.id, adjust.limits.label()),
            Action::Clear { replica } => format!("clear {replica}"),
            Action::RemoveImage { image } => format!("forget {}", image.repository()),
        })
        .collect();
    words.extend(plan.blocked.iter().map(|blocked| {
        let until = blocked.until.map(|until| format!(" until {}", until.as_secs()));
        format!("({} blocked: {}{})", blocked.replica, blocked.reason, until.unwrap_or_default())
    }));
    words.join("; ")
}

#[track_caller]
fn check(orders: &Orders, observed: &Observed, history: &History, now: Now, expected: Expect) {
    expected.assert_eq(&show(&reconcile(orders, observed, history, now)));
}

fn no_history() -> History {
    History::default()
}

#[test]
fn nothing_is_done_while_containerd_cannot_be_reached() {
    let observed = Observed::default();
    check(
        &orders("", "web:a"),
        &observed,
        &no_history(),
        at(0),
        expect!["(web.0 blocked: containerd cannot be reached)"],
    );
}

#[test]
fn without_any_orders_nothing_is_touched() {
    let mut observed = with_images(&["a"]);
    add(&mut observed, &desired(1, "web:a"), "web", 0, RUNNING);
    check(&Orders::default(), &observed, &no_history(), at(0), expect![""]);
}

#[test]
fn what_is_missing_is_fetched_then_started() {
    let orders = orders("", "web:a db:b*2");
    check(
        &orders,
        &with_images(&["b"]),
        &no_history(),
        at(0),
        expect![
            "start db.0 as b g2; start db.1 as b g2; pull a; (web.0 blocked: its image is being fetched)"
        ],
    );
    let mut observed = with_images(&["a", "b"]);
    add(&mut observed, &orders.current, "db", 0, RUNNING);
    check(
        &orders,
        &observed,
        &no_history(),
        at(0),
        expect!["start db.1 as b g2; start web.0 as a g2"],
    );
}

#[test]
fn an_image_is_fetched_once_for_all_who_want_it() {
    let mut observed = with_images(&[]);
    check(
        &orders("", "one:a two:a"),
        &observed,
        &no_history(),
        at(0),
        expect![
            "pull a; (one.0 blocked: its image is being fetched); (two.0 blocked: its image is being fetched)"
        ],
    );
    observed.pulling.insert(Software::Image(image("a")));
    check(
        &orders("", "one:a"),
        &observed,
        &no_history(),
        at(0),
        expect!["(one.0 blocked: its image is being fetched)"],
    );
}

#[test]
fn what_runs_as_ordered_is_left_alone_whatever_generation_made_it() {
    let orders = orders("web:a", "web:a");
    let mut observed = with_images(&["a"]);
    add(&mut observed, &orders.previous, "web", 0, RUNNING);
    check(&orders, &observed, &no_history(), at(0), expect![""]);
    observed.images.clear();
    check(
        &orders,
        &observed,
        &no_history(),
        at(0),
        expect!["pull a; (web.0 blocked: its image is being fetched)"],
    );
}

#[test]
fn the_old_definition_runs_until_the_new_image_is_there() {
    let orders = orders("web:a", "web:b");
    let mut observed = with_images(&["a"]);
    add(&mut observed, &orders.previous, "web", 0, RUNNING);
    check(
        &orders,
        &observed,
        &no_history(),
        at(0),
        expect!["pull b; (web.0 blocked: its image is being fetched)"],
    );
    observed.images.insert(image("b"), digest());
    check(&orders, &observed, &no_history(), at(0), expect!["stop web.0.main"]);
    observed.containers.as_mut().unwrap().clear();
    check(&orders, &observed, &no_history(), at(0), expect!["clear web.0"]);
    observed.pods.clear();
    check(&orders, &observed, &no_history(), at(0), expect!["start web.0 as b g2"]);
}

#[test]
fn the_containers_of_a_pod_start_one_after_another_and_are_replaced_together() {
    let orders = orders("web:a+b", "web:a+c");
    let mut observed = with_images(&["a", "b", "c"]);
    let plan = |observed: &Observed| show(&reconcile(&orders, observed, &no_history(), at(0)));
    assert_eq!(plan(&observed), "start web.0 as a g2");
    add_container(&mut observed, &orders.current, "web", 0, 0, RUNNING);
    assert_eq!(plan(&observed), "start web.0.c1 as c g2");
    add_container(&mut observed, &orders.current, "web", 0, 1, RUNNING);
    assert_eq!(plan(&observed), "");

    let mut observed = with_images(&["a", "b", "c"]);
    add_container(&mut observed, &orders.previous, "web", 0, 0, RUNNING);
    add_container(&mut observed, &orders.previous, "web", 0, 1, RUNNING);
    assert_eq!(plan(&observed), "stop web.0.c1");
    observed.containers.as_mut().unwrap().pop_first();
    assert_eq!(plan(&observed), "stop web.0.main");
    observed.containers.as_mut().unwrap().clear();
    assert_eq!(plan(&observed), "clear web.0");
    observed.pods.clear();
    assert_eq!(plan(&observed), "start web.0 as a g2");
}

#[test]
fn one_container_that_ends_is_started_again_beside_the_others() {
    let orders = orders("", "web:a+b");
    let mut observed = with_images(&["a", "b"]);
    add_container(&mut observed, &orders.current, "web", 0, 0, RUNNING);
    add_container(&mut observed, &orders.current, "web", 0, 1, stopped(1, 9));
    check(&orders, &observed, &no_history(), at(0), expect!["start web.0.c1 as b g2"]);
}

#[test]
fn what_is_left_around_containers_is_taken_down() {
    let orders = orders("", "web:a");
    let mut observed = with_images(&["a"]);
    add(&mut observed, &desired(1, "gone:a"), "gone", 0, RUNNING);
    add(&mut observed, &orders.current, "web", 0, RUNNING);
    let plan = |observed: &Observed| show(&reconcile(&orders, observed, &no_history(), at(0)));
    assert_eq!(plan(&observed), "stop gone.0.main");
    observed.containers.as_mut().unwrap().pop_first();
    assert_eq!(plan(&observed), "clear gone.0");
    observed.pods.pop_first();
    assert_eq!(plan(&observed), "");
    let around = observed.pods.values_mut().next().unwrap();
    around.in_place = "other".into();
    assert_eq!(plan(&observed), "refresh web.0");
}

#[test]
fn a_job_that_is_done_keeps_no_network() {
    let orders = orders("", "job:a/never");
    let mut observed = with_images(&["a"]);
    add(&mut observed, &orders.current, "job", 0, stopped(0, 9));
    let mut history = no_history();
    history.learn(&observed, at(1), |id, definition| orders.policy(id, definition));
    let stored: Vec<_> = history.take_changes().into_iter().map(|(id, _)| id).collect();
    history.stored(&stored);
    let plan = |observed: &Observed| show(&reconcile(&orders, observed, &history, at(1)));
    assert_eq!(plan(&observed), "remove job.0.main");
    observed.containers.as_mut().unwrap().clear();
    assert_eq!(plan(&observed), "clear job.0");
    observed.pods.clear();
    assert_eq!(plan(&observed), "");
}

#[test]
fn a_cold_boot_offline_starts_the_old_definition_if_the_new_image_never_came() {
    let orders = orders("web:a", "web:b");
    let mut history = no_history();
    history.pull_failed(&Software::Image(image("b")), "no network", Retry::Backoff, at(0));
    let mut observed = with_images(&["a"]);
    add(&mut observed, &orders.previous, "web", 0, Task::Absent);
    check(
        &orders,
        &observed,
        &history,
        at(0),
        expect![
            "start web.0 as a g1; (web.0 blocked: image r.x/b:1 could not be fetched: no network until 0)"
        ],
    );
    check(
        &orders,
        &observed,
        &history,
        at(2),
        expect!["pull b; start web.0 as a g1; (web.0 blocked: its image is being fetched)"],
    );
}

#[test]
fn what_no_order_names_is_removed() {
    let orders = orders("", "web:a");
    let old = desired(1, "web:a*2 gone:a dead:a");
    let mut observed = with_images(&["a"]);
    add(&mut observed, &old, "web", 0, RUNNING);
    add(&mut observed, &old, "web", 1, RUNNING);
    add(&mut observed, &old, "gone", 0, RUNNING);
    add(&mut observed, &old, "dead", 0, stopped(0, 1));
    check(
        &orders,
        &observed,
        &no_history(),
        at(0),
        expect!["remove dead.0.main; stop gone.0.main; stop web.1.main"],
    );
}

#[test]
fn images_that_no_order_names_are_forgotten_once_all_ordered_ones_are_there() {
    let orders = orders("web:b", "web:a");
    let mut observed = with_images(&["a", "b", "c"]);
    check(&orders, &observed, &no_history(), at(0), expect!["start web.0 as a g2"]);
    add(&mut observed, &orders.current, "web", 0, RUNNING);
    check(&orders, &observed, &no_history(), at(0), expect!["forget c"]);
}

#[test]
fn one_action_at_a_time_for_each_replica() {
    let orders = orders("", "web:a*3");
    let mut observed = with_images(&["a"]);
    check(
        &orders,
        &observed,
        &no_history(),
        at(0),
        expect!["start web.0 as a g2; start web.1 as a g2; start web.2 as a g2"],
    );
    let workload = orders.current.workloads.values().next().unwrap();
    let replica = ReplicaId { workload: workload.name.clone(), index: 0 };
    observed.busy.insert(replica, {
        let starting = Some(workload.pod.containers[0].name.clone());
        Busy { starting, leaves_running: true }
    });
    check(
        &orders,
        &observed,
        &no_history(),
        at(0),
        expect!["start web.1 as a g2; start web.2 as a g2"],
    );
}

#[test]
fn replicas_are_replaced_one_by_one() {
    let orders = orders("web:a*2", "web:b*2");
    let mut observed = with_images(&["a", "b"]);
    add(&mut observed, &orders.previous, "web", 0, RUNNING);
    add(&mut observed, &orders.previous, "web", 1, RUNNING);
    check(&orders, &observed, &no_history(), at(0), expect!["stop web.0.main"]);
}

#[test]
fn leftovers_of_an_interrupted_start_are_started_anew_and_paused_tasks_left_alone() {
    let orders = orders("", "a:a b:a c:a");
    let mut observed = with_images(&["a"]);
    add(&mut observed, &orders.current, "a", 0, Task::Created);
    add(&mut observed, &orders.current, "b", 0, Task::Absent);
    add(&mut observed, &orders.current, "c", 0, Task::Unknown);
    check(
        &orders,
        &observed,
        &no_history(),
        at(0),
        expect![
            "start a.0 as a g2; start b.0 as a g2; (c.0 blocked: its task is paused or in an unknown state)"
        ],
    );
}

#[test]
fn restarts_are_immediate_once_then_wait_and_hold_no_shim_meanwhile() {
    let orders = orders("", "web:a");
    let mut observed = with_images(&["a"]);
    let mut history = no_history();
    add(&mut observed, &orders.current, "web", 0, stopped(1, 10));
    history.learn(&observed, at(5), |id, definition| orders.policy(id, definition));
    check(&orders, &observed, &history, at(5), expect!["start web.0 as a g2"]);
    add(&mut observed, &orders.current, "web", 0, stopped(1, 20));
    history.learn(&observed, at(6), |id, definition| orders.policy(id, definition));
    let changes: Vec<_> = history.take_changes().into_iter().map(|(id, _)| id).collect();
    history.stored(&changes);
    check(&orders, &observed, &history, at(6), expect!["remove web.0.main"]);
    observed.containers.as_mut().unwrap().clear();
    check(
        &orders,
        &observed,
        &history,
        at(6),
        expect!["(web.0 blocked: ended with exit code 1 until 6)"],
    );
    check(&orders, &observed, &history, at(7), expect!["start web.0 as a g2"]);
}

#[test]
fn the_same_end_counts_once_and_a_healthy_while_forgives() {
    let orders = orders("", "web:a");
    let mut observed = with_images(&["a"]);
    let mut history = no_history();
    let mut failures = |observed: &Observed, now| {
        history.learn(observed, now, |id, definition| orders.policy(id, definition));
        let workload = orders.current.workloads.values().next().unwrap();
        let replica = ReplicaId { workload: workload.name.clone(), index: 0 };
        let id = replica.container(&workload.pod.containers[0].name);
        history.container(&id, &workload.definition).unwrap().record.failures
    };
    add(&mut observed, &orders.current, "web", 0, stopped(1, 10));
    assert_eq!(failures(&observed, at(1)), 1);
    assert_eq!(failures(&observed, at(2)), 1);
    add(&mut observed, &orders.current, "web", 0, RUNNING);
    assert_eq!(failures(&observed, at(3)), 1);
    add(&mut observed, &orders.current, "web", 0, stopped(1, 20));
    assert_eq!(failures(&observed, at(10)), 2);
    add(&mut observed, &orders.current, "web", 0, RUNNING);
    assert_eq!(failures(&observed, at(11)), 2);
    add(&mut observed, &orders.current, "web", 0, stopped(1, 30));
    assert_eq!(failures(&observed, at(80)), 1);
}

#[test]
fn an_end_is_for_want_of_memory_only_near_a_kill() {
    let orders = orders("", "web:a");
    let mut observed = with_images(&["a"]);
    let mut history = no_history();
    let id = ContainerId::from_listed("web.0.main");
    let definition = orders.current.workloads.values().next().unwrap().definition.clone();
    let mut ends = |history: &mut History, killed, now, code, nanos| {
        add(&mut observed, &orders.current, "web", 0, RUNNING);
        history.learn(&observed, at(killed), |id, definition| orders.policy(id, definition));
        history.out_of_memory(&id, at(killed));
        add(&mut observed, &orders.current, "web", 0, stopped(code, nanos));
        history.learn(&observed, at(now), |id, definition| orders.policy(id, definition));
        history.container(&id, &definition).unwrap().out_of_memory
    };
    assert!(ends(&mut history, 10, 11, 137, 1), "the main process was killed");
    assert!(ends(&mut history, 20, 25, 1, 2), "a child was, and the main process gave up");
    assert!(!ends(&mut history, 30, 300, 1, 3), "a child was, long ago");
    add(&mut observed, &orders.current, "web", 0, stopped(137, 4));
    history.learn(&observed, at(400), |id, definition| orders.policy(id, definition));
    assert!(!history.container(&id, &definition).unwrap().out_of_memory, "killed by somebody");
}

#[test]
fn jobs_that_ended_are_not_started_again_unless_redefined() {
    for (policy, code, ends) in
        [("never", 0, true), ("never", 3, true), ("on-failure", 0, true), ("on-failure", 3, false)]
    {
        let orders = orders("other:b", &format!("job:a/{policy}"));
        let mut observed = with_images(&["a", "b"]);
        let mut history = no_history();
        add(&mut observed, &orders.current, "job", 0, stopped(code, 10));
        history.learn(&observed, at(5), |id, definition| orders.policy(id, definition));
        let changes = history.take_changes();
        let replicas: Vec<_> = changes.iter().map(|(id, _)| id.clone()).collect();
        let record = |(id, record)| match (id, record) {
            (RecordId::Container(id), Some(Record::Container(record))) => (id, record),
            other => panic!("{other:?}"),
        };
        let records = changes.into_iter().map(record).collect();
        let plan = |history: &History| show(&reconcile(&orders, &observed, history, at(5)));
        assert_eq!(plan(&history), if ends { "" } else { "start job.0 as a g2" }, "not stored yet");
        history.stored(&replicas);
        let stored = if ends { "remove job.0.main" } else { "start job.0 as a g2" };
        assert_eq!(plan(&history), stored, "{policy}");
        let after_reboot = History::new(records, BTreeMap::new(), 1);
        let gone = with_images(&["a", "b"]);
        let again = show(&reconcile(&orders, &gone, &after_reboot, at(0)));
        assert_eq!(again.contains("start"), !ends, "{policy} {code}: {again}");
        let redefined = Orders { current: desired(3, &format!("job:b/{policy}")), ..orders };
        let again = show(&reconcile(&redefined, &gone, &after_reboot, at(0)));
        assert_eq!(again, "start job.0 as b g3");
        let always = Orders { current: desired(3, "job:a/always"), ..Orders::default() };
        let again = show(&reconcile(&always, &gone, &after_reboot, at(0)));
        assert_eq!(again, "start job.0 as a g3", "the policy alone was changed");
    }
}

#[test]
fn what_cannot_be_removed_rests_and_is_tried_again() {
    let orders = orders("", "");
    let mut observed = with_images(&[]);
    add(&mut observed, &desired(1, "gone:a"), "gone", 0, RUNNING);
    let mut history = no_history();
    let replica = observed.containers.as_ref().unwrap().values().next().unwrap().replica.clone();
    history.end_failed(&replica, "no such luck", at(0));
    check(&orders, &observed, &history, at(0), expect!["(gone.0 blocked: no such luck until 0)"]);
    check(&orders, &observed, &history, at(1), expect!["stop gone.0.main"]);
}

#[test]
fn what_cannot_be_taken_down_holds_up_nothing_else() {
    let orders = orders("", "web:a");
    let mut observed = with_images(&["a"]);
    let workload = orders.current.workloads.values().next().unwrap();
    let surplus = ReplicaId { workload: workload.name.clone(), index: 1 };
    observed.pods.insert(surplus.clone(), pod(workload));
    let mut history = no_history();
    check(&orders, &observed, &history, at(0), expect!["clear web.1; start web.0 as a g2"]);
    history.end_failed(&surplus, "a plugin fails", at(0));
    check(
        &orders,
        &observed,
        &history,
        at(0),
        expect!["start web.0 as a g2; (web.1 blocked: a plugin fails until 0)"],
    );
}

#[test]
fn a_port_is_given_on_only_when_its_holder_gave_it_up() {
    let with_port = |name: &str, port: u16| {
        json!({ "name": name, "network": "pod", "ports": { "p": { "host": port } },
                "containers": [{ "image": "r.x/a:1", "ports": [{ "name": "p", "port": 80 }] }] })
    };
    let desired = |generation: u64, workloads: Vec<serde_json::Value>| {
        parse_sound(&json!({ "schema": 1, "generation": generation, "workloads": workloads,
                             "gateway": "3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11" }))
    };
    let previous = desired(1, vec![with_port("a", 80), with_port("b", 81)]);
    let current = desired(2, vec![with_port("a", 81), with_port("b", 80)]);
    let orders = Orders { previous, current, ..Orders::default() };
    let mut observed = with_images(&["a"]);
    add(&mut observed, &orders.previous, "a", 0, RUNNING);
    check(
        &orders,
        &observed,
        &no_history(),
        at(0),
        expect!["stop a.0.main; (b.0 blocked: a has not given up one of its ports yet)"],
    );
    observed.containers.as_mut().unwrap().clear();
    observed.pods.clear();
    check(
        &orders,
        &observed,
        &no_history(),
        at(0),
        expect!["start a.0 as a g2; start b.0 as a g2"],
    );
}

#[test]
fn a_plan_wakes_for_its_earliest_next_try() {
    let orders = orders("", "web:a db:b");
    let mut history = no_history();
    history.pull_failed(
        &Software::Image(image("a")),
        "x",
        Retry::After(Duration::from_secs(40)),
        at(0),
    );
    history.pull_failed(
        &Software::Image(image("b")),
        "x",
        Retry::After(Duration::from_secs(30)),
        at(0),
    );
    let plan = reconcile(&orders, &with_images(&[]), &history, at(1));
    assert_eq!(plan.wake_at, Some(Duration::from_secs(30)));
}

/// A gateway in memory on which plans can be carried out.
#[derive(Clone, Debug)]
struct World {
    observed: Observed,
    history: History,
    clock: u64,
}

impl World {
    fn carry_out(&mut self, action: &Action) {
        if let Action::Start(start) = action {
            assert!(self.observed.has(&start.container.software));
        }
        let containers = self.observed.containers.as_mut().unwrap();
        match action {
            Action::Pull { software } => {
                self.observed.came(software.clone(), digest());
                self.history.pulled(software);
            }
            Action::Start(start) => {
                let mut siblings = containers.iter().filter(|(_, c)| c.replica == start.replica);
                assert!(siblings.clone().all(|(_, c)| c.definition == start.definition));
                let live = siblings.any(|(id, container)| {
                    *id == start.id && matches!(container.task, Task::Running { .. })
                });
                assert!(!live, "a second live task of {}", start.id);
                let around = observed::Pod {
                    definition: start.definition.clone(),
                    in_place: start.pod.in_place.clone(),
                    serves_identity: start.pod.identity.is_some(),
                    shares_ports: start.shares_ports,
                    address: None,
                };
                let before = self.observed.pods.insert(start.replica.clone(), around);
                assert!(before.is_none_or(|before| before.definition == start.definition));
                let container = Container {
                    replica: start.replica.clone(),
                    name: start.container.name.clone(),
                    generation: start.generation,
                    definition: start.definition.clone(),
                    limits: start.container.limits.label().into(),
                    task: RUNNING,
                };
                containers.insert(start.id.clone(), container);
                let policy = RestartPolicy::Always;
                self.history.started(&start.id, &start.definition, policy, at(self.clock));
            }
            Action::Stop(Stop { id, .. }) => {
                assert!(containers.remove(id).is_some());
            }
            Action::Remove { id, .. } => {
                let removed = containers.remove(id).unwrap();
                assert!(!matches!(removed.task, Task::Running { .. }));
            }
            Action::Clear { replica } => {
                assert!(containers.values().all(|container| container.replica != *replica));
                assert!(self.observed.pods.remove(replica).is_some());
            }
            Action::Refresh(refresh) => {
                let around = self.observed.pods.get_mut(&refresh.replica).unwrap();
                around.in_place = refresh.pod.in_place.clone();
                around.serves_identity = refresh.pod.identity.is_some();
            }
            Action::Adjust(adjust) => {
                containers.get_mut(&adjust.id).unwrap().limits = adjust.limits.label().into();
            }
            Action::RemoveArtifact { artifact } => {
                self.observed.artifacts.remove(artifact).unwrap();
            }
            Action::RemoveImage { image } => {
                assert!(self.observed.images.remove(image).is_some());
            }
        }
    }

    /// Decides and acts until there is nothing to do; only the first action of each plan is done,
    /// as if the agent were interrupted after it.
    fn settle(&mut self, orders: &Orders) -> Plan {
        for _ in 0..200 {
            let now = at(self.clock);
            self.history.learn(&self.observed, now, |id, definition| orders.policy(id, definition));
            rollout::learn(orders, &self.observed, &mut self.history, now);
            let stored: Vec<_> =
                self.history.take_changes().into_iter().map(|(replica, _)| replica).collect();
            self.history.stored(&stored);
            let plan = reconcile(orders, &self.observed, &self.history, now);
            match (plan.actions.first(), plan.wake_at) {
                (Some(action), _) => self.carry_out(action),
                (None, Some(wake)) => self.clock = wake.as_secs().max(self.clock) + 1,
                (None, None) => return plan,
            }
        }
        let plan = reconcile(orders, &self.observed, &self.history, at(self.clock));
        panic!("does not settle: {} after {} s: {plan:?}", show(&plan), self.clock);
    }
}

fn runs_as(workload: &Workload, container: &Container) -> bool {
    matches!(container.task, Task::Running { .. }) && container.definition == workload.definition
}

fn any_task() -> impl Strategy<Value = Task> {
    prop_oneof![
        Just(Task::Absent),
        Just(Task::Created),
        Just(RUNNING),
        (0u32..3, 1u64..100).prop_map(|(code, at)| stopped(code, at)),
    ]
}

fn any_orders() -> impl Strategy<Value = String> {
    let policy = prop_oneof![Just("always"), Just("on-failure"), Just("never")];
    let images = prop::sample::select(vec!["a", "b", "c", "a+b", "b+c", "c+a+b"]);
    let one = (0..4usize, images, 1..4u32, policy);
    prop::collection::btree_map(0..4usize, one, 0..4).prop_map(|workloads| {
        let word = |(name, (_, image, replicas, policy))| {
            format!("{}:{image}*{replicas}/{policy} ", ["w", "x", "y", "z"][name])
        };
        workloads.into_iter().map(word).collect()
    })
}

prop_compose! {
    fn any_world()(
        previous in any_orders(),
        current in any_orders(),
        older in any_orders(),
        images in prop::collection::btree_set(0..3usize, 0..4),
        tasks in prop::collection::vec((0..3usize, 0..4usize, 0..4u32, 0..3usize, any_task()), 0..16),
        left in prop::collection::vec((0..3usize, 0..4usize, 0..4u32), 0..4),
    ) -> (Orders, World) {
        let orders = orders(&previous, &current);
        let images: Vec<&str> = images.into_iter().map(|i| ["a", "b", "c"][i]).collect();
        let mut observed = with_images(&images);
        let older = desired(1, &older);
        let sources = [&orders.current, &orders.previous, &older];
        let names = ["w", "x", "y", "z"].map(|name| WorkloadName::parse(name).unwrap());
        for (source, name, index) in left {
            if let Some(workload) = sources[source].workloads.get(&names[name]) {
                let replica = ReplicaId { workload: workload.name.clone(), index };
                observed.pods.insert(replica, pod(workload));
            }
        }
        // All containers of a replica are of one definition: the next is never begun before.
        let mut definitions = BTreeMap::new();
        for (source, name, index, at, task) in tasks {
            if sources[source].workloads.contains_key(&names[name]) {
                let source = *definitions.entry((name, index)).or_insert(source);
                add_container(&mut observed, sources[source], names[name].as_str(), index, at, task);
            }
        }
        (orders, World { observed, history: no_history(), clock: 0 })
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..Default::default() })]

    #[test]
    fn converges_from_every_observed_state_and_then_rests((orders, mut world) in any_world()) {
        let plan = world.settle(&orders);
        prop_assert_eq!(&plan, &Plan::default(), "a second plan is empty");
        for workload in orders.current.workloads.values() {
            let (observed, history) = (&world.observed, &world.history);
            let situation = Situation { orders: &orders, observed, history, now: at(world.clock) };
            let there = rollout::replicas(&situation, workload);
            prop_assert_eq!(there.len(), workload.replicas as usize);
            for replica in there {
                for container in &workload.pod.containers {
                    let id = replica.container(&container.name);
                    let finished = world
                        .history
                        .container(&id, &workload.definition)
                        .is_some_and(|known| known.record.is_finished(workload.restart));
                    let there = world.observed.containers.as_ref().unwrap().get(&id);
                    let runs = there.is_some_and(|there| runs_as(workload, there));
                    prop_assert!(runs != finished, "{} runs: {}, finished: {}", id, runs, finished);
                }
            }
        }
        for (replica, around) in &world.observed.pods {
            let workload = orders.current.workloads.get(&replica.workload);
            prop_assert!(workload.is_some_and(|workload| workload.definition == around.definition));
        }
        let of = |w: &Workload| w.replicas as usize * w.pod.containers.len();
        let wanted: usize = orders.current.workloads.values().map(of).sum();
        prop_assert!(world.observed.containers.unwrap().len() <= wanted);
    }

    #[test]
    fn a_plan_never_holds_two_actions_for_one_replica((orders, world) in any_world()) {
        let plan = reconcile(&orders, &world.observed, &world.history, at(0));
        let mut seen = BTreeSet::new();
        for replica in plan.actions.iter().filter_map(Action::replica) {
            prop_assert!(seen.insert(replica), "{} twice in {}", replica, show(&plan));
        }
    }

    #[test]
    fn what_runs_as_ordered_is_never_stopped((orders, world) in any_world()) {
        let plan = reconcile(&orders, &world.observed, &world.history, at(0));
        for action in &plan.actions {
            let Action::Stop(stop) = action else { continue };
            let container = &world.observed.containers.as_ref().unwrap()[&stop.id];
            let wanted = orders.current.workloads.get(&container.replica.workload);
            let healthy = wanted.is_some_and(|workload| {
                runs_as(workload, container) && container.replica.index < workload.replicas
            });
            prop_assert!(!healthy, "{}", show(&plan));
        }
    }

    #[test]
    fn losing_every_image_stops_nothing_that_is_ordered((orders, mut world) in any_world()) {
        world.observed.images.clear();
        let plan = reconcile(&orders, &world.observed, &world.history, at(0));
        for action in &plan.actions {
            let Action::Stop(stop) = action else { continue };
            let container = &world.observed.containers.as_ref().unwrap()[&stop.id];
            let ordered = orders.current.workloads.get(&container.replica.workload);
            let surplus = ordered.is_none_or(|workload| container.replica.index >= workload.replicas);
            prop_assert!(surplus || container.task == Task::Created, "{}", show(&plan));
        }
    }
}
