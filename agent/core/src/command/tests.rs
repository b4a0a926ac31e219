use proptest::prelude::*;
use serde_json::json;

use super::*;

const GATEWAY: &str = "3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11";

fn gateway() -> GatewayId {
    GATEWAY.parse().unwrap()
}

/// The `number`th command of a second.
fn id(second: u64, number: u16) -> CommandId {
    let millis = second * 1000;
    format!("{:08x}-{:04x}-7000-8000-{number:012x}", millis >> 16, millis & 0xffff).parse().unwrap()
}

fn arrived(id: CommandId, expires_at: u64, action: serde_json::Value) -> Arrived {
    let at = Timestamp::from_unix(expires_at);
    let document = json!({ "schema": 1, "id": id, "gateway": GATEWAY, "expires_at": at,
                           "action": action });
    read(document.to_string().as_bytes(), gateway()).unwrap()
}

/// Commands with a store whose transactions are all or nothing.
#[derive(Clone, Default)]
struct World {
    commands: Commands,
    stored: BTreeMap<CommandId, CommandRecord>,
    all: CommandsRecord,
}

impl World {
    fn store(&mut self, changes: &Changes) {
        for (id, record) in changes {
            match (id, record) {
                (RecordId::Command(id), Some(Record::Command(record))) => {
                    self.stored.insert(*id, record.clone());
                }
                (RecordId::Command(id), None) => drop(self.stored.remove(id)),
                (_, Some(Record::Commands(all))) => self.all = all.clone(),
                other => panic!("{other:?}"),
            }
        }
    }

    fn both(&mut self, changes: &Changes) {
        self.store(changes);
        self.commands.apply(changes);
    }

    fn arrive(&mut self, arrived: Arrived, now: u64) -> Arrival {
        let arrival = self.commands.arrive(arrived, None, Vec::new(), |kind| kind != "reboot", now);
        if let Arrival::New(changes) | Arrival::Refused(_, changes) = &arrival {
            self.both(changes);
        }
        arrival
    }

    fn crash(&mut self) {
        self.commands = Commands::restore(self.stored.clone(), self.all.clone());
    }

    fn states(&self) -> String {
        let state = |(_, _, record): (_, _, &CommandRecord)| {
            format!("{:?} {}", record.state, record.reason).trim().to_lowercase()
        };
        let mut all: Vec<_> = self.commands.all().map(state).collect();
        all.reverse();
        all.join(", ")
    }
}

/// Commands `(second of making, expiry, action)` that come one after the other at second 1000.
fn check(arriving: &[(u64, u64, serde_json::Value)], wanted: &str) {
    let mut world = World::default();
    for (number, (second, expires, action)) in (0..).zip(arriving) {
        world.arrive(arrived(id(*second, number), *expires, action.clone()), 1000);
    }
    assert_eq!(world.states(), wanted, "{arriving:?}");
}

#[test]
fn what_comes_waits_or_is_ended_with_its_reason() {
    let stop = json!({ "kind": "stop-workload", "workload": "web" });
    let start = json!({ "kind": "start-workload", "workload": "web" });
    let other = json!({ "kind": "start-workload", "workload": "db" });
    let logs = json!({ "kind": "read-logs", "workload": "web" });
    let follow =
        |lease: u32| json!({ "kind": "follow-logs", "workload": "web", "lease_seconds": lease });
    let month = 30 * 24 * 60 * 60;
    check(&[(900, 1001, stop.clone())], "accepted");
    check(&[(900, 1000, stop.clone())], "expired");
    check(&[(900, 900 + month, stop.clone())], "accepted");
    check(&[(900, 901 + month, stop.clone())], "rejected expires-too-late");
    check(&[(900, 2000, json!({ "kind": "reboot" }))], "rejected not-allowed");
    check(&[(900, 2000, json!({ "kind": "launch" }))], "rejected unknown-kind");
    check(&[(900, 2000, json!({}))], "rejected unknown-kind");
    check(&[(900, 2000, json!({ "kind": "stop-workload" }))], "rejected malformed");
    check(&[(900, 2000, follow(600))], "accepted");
    check(&[(900, 2000, follow(601))], "rejected malformed");
    check(&[(900, 2000, follow(0))], "rejected malformed");
    // Of two about the same the newer one alone is done, in whatever order they come.
    check(&[(900, 2000, stop.clone()), (901, 2000, start.clone())], "superseded, accepted");
    check(&[(901, 2000, stop.clone()), (900, 2000, start.clone())], "superseded, accepted");
    check(&[(900, 2000, stop.clone()), (900, 2000, start.clone())], "superseded, accepted");
    check(&[(900, 2000, stop), (901, 2000, other)], "accepted, accepted");
    check(&[(900, 2000, logs.clone()), (901, 2000, logs)], "accepted, accepted");
}

#[test]
fn what_is_not_for_this_gateway_is_not_answered() {
    let refused = |document: serde_json::Value| {
        read(document.to_string().as_bytes(), gateway()).unwrap_err().to_string()
    };
    let at = "2026-11-29T09:00:00Z";
    let other = "4f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11";
    let whole = json!({ "schema": 1, "id": id(9, 1), "gateway": other, "expires_at": at,
                        "action": { "kind": "report" } });
    assert_eq!(refused(whole), format!("it is for gateway {other}"));
    assert!(refused(json!({ "schema": 1 })).contains("it is no command: missing field"));
    assert!(refused(json!([])).contains("it is no command"));
    let newer = json!({ "schema": 2, "id": id(9, 1), "gateway": GATEWAY, "expires_at": at,
                        "deed": "x" });
    let newer = read(newer.to_string().as_bytes(), gateway()).unwrap();
    assert_eq!(newer.action.unwrap_err().reason, "unknown-schema");
}

#[test]
fn a_command_that_is_known_is_not_taken_in_again() {
    let mut world = World::default();
    let report = |number| arrived(id(900, number), 2000, json!({ "kind": "report" }));
    assert!(matches!(world.arrive(report(1), 1000), Arrival::New(_)));
    assert_eq!(world.arrive(report(1), 1001), Arrival::Known);
    let change = world.commands.begin(id(900, 1), "boot", 1001).unwrap();
    world.both(&vec![change]);
    assert_eq!(world.commands.begin(id(900, 1), "boot", 1001), None, "begun once");
    let change = world.commands.end(id(900, 1), End::succeeded("done"), 1002).unwrap();
    world.both(&vec![change]);
    assert_eq!(world.arrive(report(1), 1003), Arrival::Known);
    assert_eq!(world.commands.end(id(900, 1), End::interrupted(), 1003), None, "ended once");
    let result = world.commands.result(id(900, 1), gateway()).unwrap();
    assert_eq!((result.state, result.at.unix()), (CommandState::Succeeded, 1002));
    assert_eq!(result.message.as_deref(), Some("done"));
    let (_, kind, record) = world.commands.all().next().unwrap();
    assert_eq!((kind.kind.as_str(), record.received), ("report", false));
}

#[test]
fn one_that_was_held_back_does_not_undo_what_a_newer_one_did() {
    let of = |kind: &str, name: &str| match kind {
        "install-artifact" | "remove-artifact" => json!({ "kind": kind, "artifact": name }),
        _ => json!({ "kind": kind, "workload": name }),
    };
    let artifact = "install-artifact";
    for (newer, second, older, wanted) in [
        (of("start-workload", "web"), 900, of("stop-workload", "web"), "superseded"),
        (of("restart-workload", "web"), 900, of("drain-workload", "web"), "superseded"),
        (of("start-workload", "web"), 901, of("stop-workload", "web"), "accepted"),
        (of("start-workload", "web"), 900, of("stop-workload", "db"), "accepted"),
        (of("start-workload", "web"), 900, of("restart-workload", "web"), "accepted"),
        (of("read-logs", "web"), 900, of("stop-workload", "web"), "accepted"),
        (of(artifact, "a:b:1"), 900, of("remove-artifact", "a:b:1"), "superseded"),
    ] {
        for (end, wanted) in [(End::succeeded(""), wanted), (End::failed("x", ""), "accepted")] {
            let mut world = World::default();
            world.arrive(arrived(id(901, 1), 2000, newer.clone()), 1000);
            let change = world.commands.end(id(901, 1), end, 1000).unwrap();
            world.both(&vec![change]);
            world.arrive(arrived(id(second, 2), 2000, older.clone()), 1000);
            let state = world.commands.record(id(second, 2)).unwrap().state;
            assert_eq!(format!("{state:?}").to_lowercase(), wanted, "{older} after {newer}");
        }
    }
}

#[test]
fn records_are_bounded_and_what_is_forgotten_is_not_done_again() {
    let mut world = World::default();
    let list = |second| arrived(id(second, 0), 9000, json!({ "kind": "list-artifacts" }));
    for second in 0..MOST as u64 {
        assert!(matches!(world.arrive(list(second), 1000), Arrival::New(_)));
    }
    // All are open: there is no room, and the answer stays the same.
    let late = MOST as u64;
    let Arrival::Refused(end, changes) = world.arrive(list(late), 1000) else { panic!() };
    assert_eq!((end.reason, changes.len()), ("too-many", 1));
    let Arrival::Refused(end, changes) = world.arrive(list(late), 1000) else { panic!() };
    assert_eq!((end.reason, changes.len()), ("forgotten", 0));

    // One has ended, and the fleet does not hold its result: still no room.
    let change = world.commands.end(id(3, 0), End::succeeded(""), 1001).unwrap();
    world.both(&vec![change]);
    assert!(matches!(world.arrive(list(late + 1), 1000), Arrival::Refused(..)));
    let changes = world.commands.received(&[id(3, 0), id(3, 0), id(4, 0), id(8000, 0)]);
    assert_eq!(changes.len(), 1, "an open one cannot be received");
    world.both(&changes);
    assert_eq!(world.commands.received(&[id(3, 0)]), [], "once");
    assert!(matches!(world.arrive(list(late + 2), 1000), Arrival::New(_)));
    assert_eq!(world.commands.record(id(3, 0)), None);
    let Arrival::Refused(end, _) = world.arrive(list(3), 1000) else { panic!() };
    assert_eq!(end.reason, "forgotten");
    assert_eq!(world.arrive(list(4), 1000), Arrival::Known);

    // Without a receipt it goes a day after its end.
    let change = world.commands.end(id(7, 0), End::succeeded(""), 1001).unwrap();
    world.both(&vec![change]);
    let kind = Kind { expires_at: Some(u64::MAX), ..Kind::default() };
    world.commands.known.get_mut(&id(7, 0)).unwrap().record.command = json(&kind);
    let day = 1001 + DAY;
    let new = |second| arrived(id(second, 1), day + 9, json!({ "kind": "list-artifacts" }));
    assert!(matches!(world.arrive(new(day - 2), day - 1), Arrival::Refused(..)));
    assert!(matches!(world.arrive(new(day), day), Arrival::New(_)));
    assert_eq!(world.commands.known.len(), MOST);

    // Or when it has expired.
    let change = world.commands.end(id(9, 0), End::succeeded(""), day).unwrap();
    world.both(&vec![change]);
    assert!(matches!(world.arrive(new(day + 1), day), Arrival::New(_)));
    assert_eq!(world.commands.record(id(9, 0)), None);
}

#[test]
fn one_from_the_future_does_not_keep_out_others() {
    let list = |second| arrived(id(second, 0), second + 9000, json!({ "kind": "list-artifacts" }));
    let far = 1000 + 2 * DAY;
    let mut world = World::default();
    for second in (1..MOST as u64).chain([far]) {
        assert!(matches!(world.arrive(list(second), 1000), Arrival::New(_)));
    }
    let end = |world: &mut World, id| {
        let change = world.commands.end(id, End::succeeded(""), 1001).unwrap();
        world.both(&vec![change]);
        world.both(&world.commands.received(&[id]));
    };
    // Neither by being refused nor by being forgotten.
    let Arrival::Refused(too_many, changes) = world.arrive(list(far + 1), 1000) else { panic!() };
    assert_eq!((too_many.reason, changes.len()), ("too-many", 0));
    end(&mut world, id(far, 0));
    assert!(matches!(world.arrive(list(1000), 1000), Arrival::Refused(..)));
    end(&mut world, id(5, 0));
    assert!(matches!(world.arrive(list(1001), 1000), Arrival::New(_)));
    assert_eq!(world.commands.known.len(), MOST);
}

#[derive(Clone, Debug)]
enum Step {
    Arrive(u16, u8),
    Begin(u16),
    End(u16, bool),
    Expire(u64),
    Receive(u16),
    Crash,
    /// The next transaction is cut off before its commit.
    Lose,
}

fn step() -> impl Strategy<Value = Step> {
    let which = 0..8u16;
    prop_oneof![
        4 => (which.clone(), 0..4u8).prop_map(|(number, kind)| Step::Arrive(number, kind)),
        3 => which.clone().prop_map(Step::Begin),
        3 => (which.clone(), any::<bool>()).prop_map(|(number, good)| Step::End(number, good)),
        1 => (0..3000u64).prop_map(Step::Expire),
        1 => which.prop_map(Step::Receive),
        2 => Just(Step::Crash),
        1 => Just(Step::Lose),
    ]
}

proptest! {
    /// Whatever comes, in whatever order, with crashes and transactions that are lost: a command is
    /// begun at most once, its final state never changes, and after a crash each that was begun is
    /// there to be settled.
    #[test]
    fn each_command_is_begun_at_most_once_and_ends_in_one_state(
        steps in prop::collection::vec(step(), 1..80)
    ) {
        let actions = [
            json!({ "kind": "stop-workload", "workload": "web" }),
            json!({ "kind": "install-artifact", "artifact": "a:b:1" }),
            json!({ "kind": "list-artifacts" }),
            json!({ "kind": "launch" }),
        ];
        let mut world = World::default();
        let mut lose = false;
        let mut begun: BTreeMap<CommandId, u32> = BTreeMap::new();
        let mut ended: BTreeMap<CommandId, CommandState> = BTreeMap::new();
        let mut here: BTreeSet<CommandId> = BTreeSet::new();
        for step in steps {
            let mut changes = Vec::new();
            let mut beginning = None;
            match step {
                Step::Arrive(number, kind) => {
                    // The action of a command never changes: it is signed.
                    let action = &actions[usize::from(number) % 4];
                    let arrived = arrived(id(900, number), 2000 + u64::from(kind), action.clone());
                    let arrival = world.commands.arrive(arrived, None, Vec::new(), |_| true, 1000);
                    if let Arrival::New(new) = arrival {
                        changes = new;
                    }
                }
                Step::Begin(number) => {
                    changes.extend(world.commands.begin(id(900, number), "boot", 1000));
                    beginning = (!changes.is_empty()).then(|| id(900, number));
                }
                Step::End(number, good) => {
                    let end = if good { End::succeeded("") } else { End::failed("x", "") };
                    changes.extend(world.commands.end(id(900, number), end, 1000));
                }
                Step::Expire(now) => {
                    let late = world.commands.expired(now);
                    let end = |(id, end)| world.commands.end(id, end, now);
                    changes.extend(late.into_iter().filter_map(end));
                }
                Step::Receive(number) => changes = world.commands.received(&[id(900, number)]),
                Step::Lose => lose = true,
                Step::Crash => {
                    world.crash();
                    here.clear();
                    // What was begun by an agent that is no more is settled, and never begun again.
                    let open: Vec<_> = world.commands.running().map(|(id, ..)| id).collect();
                    for id in open {
                        prop_assert!(!here.contains(&id));
                        let change = world.commands.end(id, End::interrupted(), 1000).unwrap();
                        world.both(&vec![change]);
                    }
                }
            }
            if changes.is_empty() {
                continue;
            }
            if std::mem::take(&mut lose) {
                world.crash();
                here.clear();
                continue;
            }
            world.both(&changes);
            if let Some(id) = beginning {
                *begun.entry(id).or_default() += 1;
                here.insert(id);
            }
            for (id, record) in &world.stored {
                let before = ended.get(id).copied();
                if record.state.is_final() {
                    prop_assert!(before.is_none_or(|state| state == record.state));
                    ended.insert(*id, record.state);
                } else {
                    prop_assert_eq!(before, None, "it came back");
                }
            }
            prop_assert!(begun.values().all(|times| *times == 1));
            let memory: BTreeMap<_, _> =
                world.commands.known.iter().map(|(id, known)| (*id, known.record.clone())).collect();
            prop_assert_eq!(&memory, &world.stored);
        }
    }
}
