//! Updates as tables, and whole updates in a gateway in memory on which anything may happen.

use std::collections::BTreeMap;

use expect_test::{Expect, expect};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::desired::{Desired, parse_sound};
use crate::history::WorkloadRecord;
use crate::image::Digest;
use crate::name::ContainerId;
use crate::observed::{Busy, Container, Exit, Health, Pod};
use crate::plan::{Action, Plan, Why};
use crate::reconcile::reconcile;
use crate::record::{Record, RecordId};
use crate::traffic::traffic;

/// A slot by one word: `n` new or `o` old, then `+` available, `.` not, `_` no container at all, then
/// its index.
fn slots(text: &str) -> Vec<Slot<'static>> {
    let slot = |word: &str| Slot {
        replica: ReplicaId { workload: name(), index: word[2..].parse().unwrap() },
        holds: None,
        is_new: word.starts_with('n'),
        empty: word[1..].starts_with('_'),
        undecided: false,
        ready: word[1..].starts_with('+'),
        available: word[1..].starts_with('+'),
    };
    text.split_whitespace().map(slot).collect()
}

fn name() -> WorkloadName {
    WorkloadName::parse("web").unwrap()
}

/// `REPLICAS` and options: `uN` max_unavailable, `sN` surge, `bg` blue-green.
fn workload(text: &str) -> Workload {
    let mut words = text.split_whitespace();
    let replicas: u32 = words.next().unwrap().parse().unwrap();
    let mut update = json!({});
    for word in words {
        match word {
            "bg" => update["strategy"] = json!("blue-green"),
            _ if word.starts_with('u') => {
                update["max_unavailable"] = json!(word[1..].parse::<u32>().unwrap());
            }
            _ => update["surge"] = json!(word[1..].parse::<u32>().unwrap()),
        }
    }
    let desired = desired(1, vec![web("a", replicas, &update)]);
    desired.workloads.into_values().next().unwrap()
}

fn web(image: &str, replicas: u32, update: &Value) -> Value {
    json!({ "name": "web", "network": "pod", "replicas": replicas, "update": update,
            "ports": { "http": { "host": 8080 } },
            "containers": [{ "image": format!("r.x/{image}:1"),
                             "ports": [{ "name": "http", "port": 80 }],
                             "probes": { "readiness": { "tcp": { "port": 80 } } } }] })
}

fn desired(generation: u64, workloads: Vec<Value>) -> Desired {
    parse_sound(&json!({ "schema": 1, "generation": generation, "workloads": workloads,
                         "gateway": "3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11" }))
}

#[track_caller]
fn check(update: &str, there: &str, expected: Expect) {
    let Moves { retire, start } = moves(&workload(update), &slots(there), true);
    expected.assert_eq(&format!("retire {retire:?} start {start:?}"));
}

#[test]
fn replicas_are_replaced_one_by_one() {
    check("3", "o+0 o+1 o+2", expect!["retire {0} start []"]);
    check("3", "o+1 o+2", expect!["retire {} start [0]"]);
    check("3", "n.0 o+1 o+2", expect!["retire {} start []"]);
    check("3", "n+0 o+1 o+2", expect!["retire {1} start []"]);
    check("3", "n+0 n+1 o+2", expect!["retire {2} start []"]);
    check("3", "n+0 n+1 n+2", expect!["retire {} start []"]);
    check("1", "o+0", expect!["retire {0} start []"]);
}

#[test]
fn what_is_of_no_use_goes_first_and_counts_as_missing() {
    check("3", "o+0 o+1 o.2", expect!["retire {2} start []"]);
    check("3", "n.0 o+1 o.2", expect!["retire {} start []"]);
    check("3", "o.0 o.1 o.2", expect!["retire {0} start []"]);
    check("3", "o_0 o+1 o+2", expect!["retire {0} start []"]);
    check("3", "o_0 o+1 n.2", expect!["retire {0} start []"]);
    check("3 u3", "o+0 o+1 o+2", expect!["retire {0, 1, 2} start []"]);
}

#[test]
fn with_a_surge_new_ones_come_first_and_stay_where_they_are() {
    check("2 s1 u0", "o+0 o+1", expect!["retire {} start [2]"]);
    check("2 s1 u0", "o+0 o+1 n.2", expect!["retire {} start []"]);
    check("2 s1 u0", "o+0 o+1 n+2", expect!["retire {0} start []"]);
    check("2 s1 u0", "o+1 n+2", expect!["retire {} start [0]"]);
    check("2 s1 u0", "n+0 o+1 n+2", expect!["retire {1} start []"]);
    check("2 s1 u0", "n+0 n+2", expect!["retire {} start []"]);
    check("1 s1 u0", "o.0", expect!["retire {} start [1]"]);
    check("1 s1 u0", "o.0 n+1", expect!["retire {0} start []"]);
}

#[test]
fn blue_and_green_are_both_there_until_all_new_ones_can_be_relied_on() {
    check("2 bg", "o+0 o+1", expect!["retire {} start [2, 3]"]);
    check("2 bg", "o+0 o+1 n+2 n.3", expect!["retire {} start []"]);
    check("2 bg", "o+0 o+1 n+2 n+3", expect!["retire {0, 1} start []"]);
    check("2 bg", "n+2 n+3", expect!["retire {} start []"]);
    check("2 bg", "o+0 o+1 o+2 o+3 o+4", expect!["retire {2, 3, 4} start []"]);
    check("1 bg", "o+1", expect!["retire {} start [0]"]);
}

#[test]
fn more_and_fewer_replicas_are_no_update() {
    check("3", "n+0", expect!["retire {} start [1, 2]"]);
    check("2", "n+0 n+1 n+2 n+3", expect!["retire {2, 3} start []"]);
    check("2", "n.0 n+1 n+2", expect!["retire {0} start []"]);
    check("2", "o+0 o+1 o+2 o+3", expect!["retire {0, 2, 3} start []"]);
}

#[test]
fn nothing_is_replaced_by_what_cannot_start() {
    let Moves { retire, .. } = moves(&workload("3"), &slots("o+0 o+1 o.2"), false);
    assert!(retire.is_empty());
}

/// What becomes of a replica of an image.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Good,
    /// Ends at once.
    Crashes,
    /// Runs and never gets ready.
    Sick,
}

fn kind(image: &str) -> Kind {
    match image.rsplit('/').next().unwrap().as_bytes()[0] {
        b'c' => Kind::Crashes,
        b's' => Kind::Sick,
        _ => Kind::Good,
    }
}

/// A gateway in memory: what containerd, the kernel and the store would hold, and the agent's own
/// memory, which a restart loses.
struct World {
    orders: Orders,
    observed: Observed,
    history: History,
    stored: BTreeMap<RecordId, Record>,
    images: BTreeMap<ContainerId, Kind>,
    clock: u64,
    pid: u32,
    exits: u64,
    /// Of the orders that were in force, all.
    kept: Vec<Desired>,
    log: Vec<String>,
}

impl World {
    fn new() -> Self {
        Self {
            orders: Orders::default(),
            observed: Observed { containers: Some(BTreeMap::new()), ..Observed::default() },
            history: History::default(),
            stored: BTreeMap::new(),
            images: BTreeMap::new(),
            clock: 0,
            pid: 1,
            exits: 0,
            kept: Vec::new(),
            log: Vec::new(),
        }
    }

    fn now(&self) -> Now {
        let wall = Duration::from_secs(1_000_000 + self.clock);
        Now { monotonic: Duration::from_secs(self.clock), wall }
    }

    fn order(&mut self, workloads: Vec<Value>) {
        let generation = self.orders.current.generation + 1;
        let next = desired(generation, workloads);
        for image in next.workloads.values().flat_map(Workload::images) {
            let digest = Digest::parse(&format!("sha256:{}", "0".repeat(64))).unwrap();
            self.observed.images.insert(image.clone(), digest);
        }
        self.kept.push(next.clone());
        let now = self.now();
        settle(&self.orders, &self.observed, &mut self.history, now);
        self.orders.advance(next, &self.history, &self.observed);
        self.history.ordered(&self.orders.current);
        self.history.try_changed_units(&self.orders.current, &self.orders.previous);
        self.log.push(format!("order {generation}"));
        self.store();
    }

    fn store(&mut self) {
        let mut ids = Vec::new();
        for (id, record) in self.history.take_changes() {
            match record {
                Some(record) => drop(self.stored.insert(id.clone(), record)),
                None => drop(self.stored.remove(&id)),
            }
            ids.push(id);
        }
        self.history.stored(&ids);
    }

    /// The agent dies and comes again: it knows what the store has and sees what exists.
    fn restart_agent(&mut self) {
        self.log.push("restart".into());
        let (mut containers, mut workloads) = (BTreeMap::new(), BTreeMap::new());
        for (id, record) in &self.stored {
            match (id, record) {
                (RecordId::Container(id), Record::Container(record)) => {
                    containers.insert(id.clone(), record.clone());
                }
                (RecordId::Workload(name), Record::Workload(record)) => {
                    workloads.insert(name.clone(), record.clone());
                }
                other => panic!("{other:?}"),
            }
        }
        self.history = History::new(containers, workloads, 1);
        self.orders.good.clear();
        self.history.try_changed_units(&self.orders.current, &self.orders.previous);
        self.orders.find_good(&self.kept, &self.history);
        self.observed.busy.clear();
        self.observed.health.clear();
        for (id, container) in self.observed.containers.iter().flatten() {
            if let Task::Running { pid } = container.task {
                let (started, live, ready, proven) = (true, true, true, false);
                let good = Health { pid, started, live, ready, proven, message: None };
                self.observed.health.insert(id.clone(), good);
            }
        }
    }

    fn power_cut(&mut self) {
        for container in self.observed.containers.iter_mut().flat_map(|all| all.values_mut()) {
            container.task = Task::Absent;
        }
        self.observed.pods.clear();
        self.observed.traffic = Default::default();
        self.restart_agent();
    }

    fn kill(&mut self, at: usize) {
        let containers = self.observed.containers.as_mut().unwrap();
        let Some(id) = containers.keys().nth(at % containers.len().max(1)).cloned() else { return };
        let container = containers.get_mut(&id).unwrap();
        if matches!(container.task, Task::Running { .. }) {
            self.exits += 1;
            container.task = Task::Stopped(Exit { code: 137, at_nanos: self.exits });
            self.log.push(format!("kill {id}"));
        }
    }

    /// What really does its work.
    fn serving(&self) -> usize {
        let containers = self.observed.containers.iter().flatten();
        let serves = |(id, c): &(&ContainerId, &Container)| {
            matches!(c.task, Task::Running { .. }) && self.images[*id] == Kind::Good
        };
        containers.filter(serves).count()
    }

    fn situation(&self) -> Situation<'_> {
        let (orders, observed, history) = (&self.orders, &self.observed, &self.history);
        Situation { orders, observed, history, now: self.now() }
    }

    /// Learns and decides.
    fn decide(&mut self) -> Plan {
        let now = self.now();
        let orders = &self.orders;
        self.history.learn(&self.observed, now, |id, hash| orders.policy(id, hash));
        for (_, reason) in learn(orders, &self.observed, &mut self.history, now) {
            self.log.push(format!("rolled back: {reason}"));
        }
        self.store();
        let plan = reconcile(&self.orders, &self.observed, &self.history, now);
        let mut seen = BTreeSet::new();
        for replica in plan.actions.iter().filter_map(Action::replica) {
            assert!(seen.insert(replica), "{replica} twice: {:?}", plan.actions);
        }
        plan
    }

    /// What probes and the kernel do meanwhile.
    fn settle_probes(&mut self) {
        for (id, container) in self.observed.containers.iter().flatten() {
            let Task::Running { pid } = container.task else { continue };
            let ready = self.images[id] == Kind::Good;
            let message = (!ready).then(|| "no answer within 1 s".to_owned());
            let health = Health { pid, started: true, live: true, ready, proven: true, message };
            self.observed.health.insert(id.clone(), health);
        }
        self.observed.traffic = traffic(&self.situation());
    }

    fn carry_out(&mut self, action: &Action) {
        let containers = self.observed.containers.as_mut().unwrap();
        match action {
            Action::RemoveArtifact { artifact } => {
                self.observed.artifacts.remove(artifact).unwrap();
            }
            Action::RemoveImage { image } => drop(self.observed.images.remove(image).unwrap()),
            Action::Pull { .. } | Action::Refresh(_) | Action::Adjust(_) => panic!("{action:?}"),
            Action::Start(start) => {
                let live = containers.values().filter(|c| c.replica == start.replica);
                let live = live.filter(|c| matches!(c.task, Task::Running { .. })).count();
                assert_eq!(live, 0, "a second live task of {}", start.id);
                self.pid += 1;
                let pod = Pod {
                    definition: start.definition.clone(),
                    in_place: "".into(),
                    serves_identity: false,
                    shares_ports: start.shares_ports,
                    address: Some([10, 88, 0, u8::try_from(self.pid % 250).unwrap()].into()),
                };
                self.observed.pods.insert(start.replica.clone(), pod);
                let image = start.container.software.to_string();
                let kind = kind(&image);
                self.images.insert(start.id.clone(), kind);
                self.exits += 1;
                let task = match kind {
                    Kind::Crashes => Task::Stopped(Exit { code: 1, at_nanos: self.exits }),
                    _ => Task::Running { pid: self.pid },
                };
                let container = Container {
                    replica: start.replica.clone(),
                    name: start.container.name.clone(),
                    generation: start.generation,
                    definition: start.definition.clone(),
                    limits: "".into(),
                    task,
                };
                containers.insert(start.id.clone(), container);
                let now = self.now();
                self.history.started(&start.id, &start.definition, RestartPolicy::Always, now);
            }
            Action::Stop(stop) => {
                assert_eq!(stop.why, Why::Unwanted);
                containers.remove(&stop.id).unwrap();
            }
            Action::Remove { id, .. } => {
                let removed = containers.remove(id).unwrap();
                assert!(!matches!(removed.task, Task::Running { .. }));
            }
            Action::Clear { replica } => {
                assert!(containers.values().all(|container| container.replica != *replica));
                assert!(self.observed.pods.remove(replica).is_some());
            }
        }
    }

    /// One decision, and as many of its actions as `mask` has bits for. Nothing that does its work
    /// is ended if fewer than promised were left.
    fn step(&mut self, mask: u32) -> Plan {
        let plan = self.decide();
        let wanted = self.orders.current.workloads.get(&name());
        let least =
            wanted.map_or(0, |w| (w.replicas - w.update.max_unavailable.min(w.replicas)) as usize);
        for (i, action) in plan.actions.iter().enumerate() {
            if mask & (1 << (i % 32)) == 0 {
                continue;
            }
            let before = self.serving();
            let shown = self.describe();
            // After a restart it may be that nobody knows what a replica is.
            let known = !shown.contains("unknown");
            self.log.push(shown);
            self.log.push(format!("{}: {action:?}", self.clock).chars().take(90).collect());
            self.carry_out(action);
            let after = self.serving();
            let log = &self.log;
            let kept = after >= before || after >= least || !known;
            assert!(kept, "{after} serve, {least} promised: {log:#?}");
        }
        self.settle_probes();
        if plan.actions.is_empty() {
            self.clock += 1;
        }
        plan
    }

    /// Goes on until nothing is to be done any more.
    fn rest(&mut self) -> Plan {
        for _ in 0..600 {
            let plan = self.step(u32::MAX);
            if let (true, Some(wake)) = (plan.actions.is_empty(), plan.wake_at) {
                self.clock = self.clock.max(wake.as_secs());
            }
            // Once more with what probes said meanwhile.
            let rests = |plan: &Plan| plan.actions.is_empty() && plan.wake_at.is_none();
            if rests(&plan) && rests(&self.decide()) {
                return plan;
            }
        }
        let plan = self.decide();
        panic!("no rest: {plan:?} {:#?}", &self.log[self.log.len().saturating_sub(20)..]);
    }

    /// Its replicas as they are judged.
    fn describe(&self) -> String {
        let Some(wanted) = self.orders.current.workloads.get(&name()) else { return String::new() };
        let situation = self.situation();
        let slots = situation.slots(wanted, &situation.target(wanted));
        let word = |slot: &Slot<'_>| {
            let new = if slot.is_new { "new" } else { "old" };
            let known = if slot.holds.is_some() { "" } else { " unknown" };
            let of = if slot.available { " available" } else { "" };
            let ready = if slot.ready { " ready" } else { "" };
            format!("{}: {new}{known}{ready}{of}", slot.replica)
        };
        slots.iter().map(word).collect::<Vec<_>>().join(", ")
    }

    /// Which images run, and whether ports lead to them.
    fn show(&self) -> String {
        let containers = self.observed.containers.iter().flatten();
        let word = |(id, container): (&ContainerId, &Container)| {
            let known = self.orders.definition(&container.replica, &container.definition);
            let image = known.map(|known| known.pod.containers[0].software.to_string());
            let image = image.unwrap_or("?".into());
            let image = image.trim_start_matches("r.x/").trim_end_matches(":1").to_owned();
            let led = if self.observed.traffic.leads_to(&container.replica) { "*" } else { "" };
            format!("{}{led}={image}", id.as_str().trim_end_matches(".main"))
        };
        let shown: Vec<_> = containers.map(word).collect();
        let failed = self.history.failed_update(&name()).map(|f| format!(" ({})", f.reason));
        shown.join(" ") + &failed.unwrap_or_default()
    }
}

fn updated(update: Value, from: &str, to: &str) -> World {
    let mut world = World::new();
    world.order(vec![web(from, 2, &update)]);
    world.rest();
    world.order(vec![web(to, 2, &update)]);
    world.rest();
    world
}

#[test]
fn a_good_update_ends_with_the_new_one_everywhere() {
    let show = |update| updated(update, "a", "b").show();
    expect!["web.0*=b web.1*=b"].assert_eq(&show(json!({})));
    expect!["web.0*=b web.2*=b"].assert_eq(&show(json!({ "surge": 1, "max_unavailable": 0 })));
    expect!["web.2*=b web.3*=b"].assert_eq(&show(json!({ "strategy": "blue-green" })));
}

#[test]
fn an_update_that_crashes_or_never_gets_ready_is_taken_back_and_stays_so() {
    for update in [
        json!({}),
        json!({ "surge": 1, "max_unavailable": 0 }),
        json!({ "strategy": "blue-green" }),
    ] {
        for (to, why) in [
            ("crash", "ended with exit code 1, 3 times in a row"),
            ("sick", "no answer within 1 s"),
        ] {
            let mut world = updated(update.clone(), "a", to);
            let shown = world.show();
            assert!(shown.contains(why) && shown.matches("*=a").count() == 2, "{shown}");
            let before = world.log.len();
            world.restart_agent();
            world.settle_probes();
            world.rest();
            assert_eq!(world.show(), shown);
            assert_eq!(world.log.len(), before + 1, "{:?}", &world.log[before..]);
            // Another workload changes: this one stays as it is, and knows what to return to.
            let other = json!({ "name": "other", "network": "none",
                                "containers": [{ "image": "r.x/o:1" }] });
            world.order(vec![web(to, 2, &update), other.clone()]);
            world.rest();
            world.restart_agent();
            world.settle_probes();
            world.rest();
            assert!(world.show().contains(&shown[..7]), "{}", world.show());
            assert_eq!(world.show().matches("*=a").count(), 2, "{}", world.show());
            world.order(vec![web("b", 2, &update), other]);
            world.rest();
            assert_eq!(world.show().matches("*=b").count(), 2, "{}", world.show());
        }
    }
}

/// Two workloads of one unit; the second one may be left out.
fn pair(web_image: &str, half: Option<&str>) -> Vec<Value> {
    let mut first = web(web_image, 2, &json!({}));
    first["unit"] = json!("pair");
    let second = half.map(|image| {
        json!({ "name": "half", "network": "none", "unit": "pair",
                "containers": [{ "image": format!("r.x/{image}:1") }] })
    });
    [first].into_iter().chain(second).collect()
}

#[test]
fn a_unit_is_taken_back_and_tried_again_as_one() {
    for killed in [false, true] {
        let mut world = World::new();
        world.order(pair("a", Some("x")));
        world.rest();
        expect!["half.0=x web.0*=a web.1*=a"].assert_eq(&world.show());
        // One half fails, and may do so long after the other one is there.
        for half in ["crash", "sick-of-it"] {
            let half_fails = pair("b", Some(half));
            world.order(half_fails.clone());
            let mut sick = half_fails;
            sick[1]["containers"][0]["probes"] = json!({ "readiness": { "tcp": { "port": 1 } } });
            if half != "crash" {
                world.order(sick);
            }
            if killed {
                (0..4).for_each(|_| drop(world.step(u32::MAX)));
                world.restart_agent();
                world.settle_probes();
            }
            world.rest();
            let shown = world.show();
            assert!(shown.starts_with("half.0=x web.0*=a web.1*=a"), "{shown}");
            assert!(shown.contains("half, which is of the same unit: half.0: "), "{shown}");
        }
        // What failed with it is tried again with what is to mend it, though it is as before; also if
        // the power goes before anything but the order was stored.
        world.order(pair("b", Some("y")));
        if killed {
            world.power_cut();
            world.settle_probes();
        }
        world.rest();
        expect!["half.0=y web.0*=b web.1*=b"].assert_eq(&world.show());
        world.restart_agent();
        world.settle_probes();
        world.rest();
        expect!["half.0=y web.0*=b web.1*=b"].assert_eq(&world.show());
    }
}

#[test]
fn what_is_new_in_a_unit_takes_the_others_back_as_well() {
    let mut world = World::new();
    world.order(pair("a", None));
    world.rest();
    world.order(pair("b", Some("crash")));
    for _ in 0..60 {
        let plan = world.step(u32::MAX);
        if let (true, Some(wake)) = (plan.actions.is_empty(), plan.wake_at) {
            world.clock = world.clock.max(wake.as_secs());
        }
    }
    // It is tried for ever itself: there is nothing that it could return to.
    let shown = world.show();
    assert!(shown.contains("web.0*=a web.1*=a (half, which is of the same unit: "), "{shown}");
    world.order(pair("b", Some("y")));
    world.rest();
    expect!["half.0=y web.0*=b web.1*=b"].assert_eq(&world.show());
}

#[test]
fn the_first_definition_is_tried_for_ever() {
    let mut world = World::new();
    world.order(vec![web("crash", 1, &json!({}))]);
    for _ in 0..100 {
        let plan = world.step(u32::MAX);
        world.clock = world.clock.max(plan.wake_at.map_or(0, |wake| wake.as_secs()));
    }
    assert!(world.history.failed_update(&name()).is_none());
    assert!(world.log.iter().filter(|line| line.contains("Start")).count() > 5);
}

#[test]
fn what_is_made_anew_is_made_anew_one_by_one() {
    let mut world = World::new();
    world.order(vec![web("a", 3, &json!({}))]);
    world.rest();
    let pids = |world: &World| -> BTreeSet<u32> {
        let containers = world.observed.containers.iter().flatten();
        containers
            .map(|(_, c)| match c.task {
                Task::Running { pid } => pid,
                _ => 0,
            })
            .collect()
    };
    let before = pids(&world);
    let replica = |index| ReplicaId { workload: name(), index };
    world.history.make_anew((0..3).map(replica));
    world.rest();
    assert!(before.is_disjoint(&pids(&world)));
    assert_eq!(world.serving(), 3);
}

#[test]
fn a_replica_that_is_busy_stopping_is_no_target() {
    let mut world = World::new();
    world.order(vec![web("a", 2, &json!({}))]);
    world.rest();
    let replica = ReplicaId { workload: name(), index: 0 };
    world.observed.busy.insert(replica, Busy { starting: None, leaves_running: false });
    world.settle_probes();
    expect!["web.0=a web.1*=a"].assert_eq(&world.show());
}

#[test]
fn ports_of_an_old_definition_lead_to_its_replicas_as_long_as_there_are_any() {
    let mut world = World::new();
    world.order(vec![web("a", 2, &json!({}))]);
    world.rest();
    let mut changed = web("b", 2, &json!({}));
    changed["ports"]["http"]["host"] = json!(9090);
    world.order(vec![changed]);
    while !world.observed.containers.iter().flatten().any(|(_, c)| c.generation == 2) {
        world.step(u32::MAX);
    }
    let shown: Vec<_> =
        world.observed.traffic.0.iter().map(|port| (port.host, port.targets.len())).collect();
    assert_eq!(shown, [(9090, 1), (8080, 1)]);
    world.rest();
    let shown: Vec<_> =
        world.observed.traffic.0.iter().map(|port| (port.host, port.targets.len())).collect();
    assert_eq!(shown, [(9090, 2)]);
}

/// Something that happens in the middle of an update.
#[derive(Clone, Debug)]
enum Happens {
    Step(u32),
    Kill(usize),
    Restart,
    PowerCut,
    Wait(u64),
    Order(usize),
    Stop(bool),
}

fn anything() -> impl Strategy<Value = Happens> {
    prop_oneof![
        8 => any::<u32>().prop_map(Happens::Step),
        3 => Just(Happens::Step(u32::MAX)),
        2 => (0..8usize).prop_map(Happens::Kill),
        1 => Just(Happens::Restart),
        1 => Just(Happens::PowerCut),
        1 => (1..400u64).prop_map(Happens::Wait),
        1 => (0..6usize).prop_map(Happens::Order),
        1 => any::<bool>().prop_map(Happens::Stop),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 400,
        failure_persistence: None,
        max_shrink_time: 20_000,
        ..Default::default()
    })]

    #[test]
    fn whatever_happens_in_an_update_it_ends_and_never_fewer_serve_than_promised(
        replicas in 1..5u32,
        unavailable in 0..3u32,
        surge in 0..3u32,
        blue_green in any::<bool>(),
        happens in prop::collection::vec(anything(), 0..60),
    ) {
        let update = match blue_green {
            true => json!({ "strategy": "blue-green" }),
            false => {
                let unavailable = if surge == 0 { unavailable.max(1) } else { unavailable };
                json!({ "max_unavailable": unavailable, "surge": surge })
            }
        };
        let mut world = World::new();
        world.order(vec![web("a", replicas, &update)]);
        world.rest();
        let images = ["a", "b", "crash", "sick", "d", "crash2"];
        let mut last = 0;
        for one in &happens {
            match one {
                Happens::Step(mask) => drop(world.step(*mask)),
                Happens::Kill(at) => world.kill(*at),
                // Probes have not answered yet.
                Happens::Restart => {
                    world.restart_agent();
                    world.observed.traffic = traffic(&world.situation());
                }
                Happens::PowerCut => world.power_cut(),
                // Time in which the agent does what it has to.
                Happens::Wait(seconds) => {
                    let until = world.clock + seconds;
                    while world.clock < until {
                        let plan = world.step(u32::MAX);
                        let wake = plan.wake_at.map_or(until, |wake| wake.as_secs() + 1);
                        if plan.actions.is_empty() {
                            world.clock = wake.clamp(world.clock, until);
                        }
                    }
                }
                Happens::Order(at) => {
                    last = *at;
                    world.order(vec![web(images[*at], replicas, &update)]);
                }
                Happens::Stop(stop) => {
                    let stopped = crate::history::Stopped { drained: true, since: 0 };
                    // Ends what serves, as told.
                    if !stop {
                        world.history.set_stopped(&name(), None);
                    } else if world.serving() == 0 {
                        world.history.set_stopped(&name(), Some(stopped));
                    }
                }
            }
        }
        world.history.set_stopped(&name(), None);
        // One that never was healthy is tried for ever, which is no rest.
        let record: WorkloadRecord = world.history.workload_record(&name());
        prop_assert!(record.good.is_some());
        world.rest();
        let good = kind(images[last]) == Kind::Good;
        let failed = world.history.failed_update(&name());
        // One that was killed again and again is none that could be told from a bad one.
        let killed = failed.is_some_and(|failed| failed.reason.contains("exit code 137"));
        prop_assert!(killed || failed.is_some() != good, "{}", world.show());
        prop_assert_eq!(world.serving(), replicas as usize, "{}", world.show());
        let led = world.show().matches("*=").count();
        let shares = world.orders.current.workloads[&name()].shares_ports();
        prop_assert_eq!(led, if shares { replicas as usize } else { 0 }, "{}", world.show());
    }
}
