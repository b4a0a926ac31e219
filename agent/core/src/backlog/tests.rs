#![allow(clippy::unwrap_used, reason = "tests end at the first surprise")]

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

const LIMIT: usize = 8 * 1024;

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn empty() -> Backlog {
    Backlog::restore(None, BTreeMap::new(), [7; 16], true)
}

fn add(backlog: &mut Backlog, now: u64, kind: &str, message: &str) {
    backlog.add(seconds(now), Timestamp::from_unix(now), kind, None, message);
}

fn gateway() -> GatewayId {
    "3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11".parse().unwrap()
}

fn read(batch: &Batch) -> Events {
    serde_json::from_slice(&batch.payload).unwrap()
}

/// What is sent now, as `sequence:kind`.
fn sent(backlog: &mut Backlog, now: u64) -> Vec<String> {
    let Some(batch) = backlog.batch(gateway(), LIMIT, seconds(now)) else { return Vec::new() };
    backlog.delivered(&batch.sequences, seconds(now));
    let events = read(&batch).events;
    events.iter().map(|event| format!("{}:{}", event.sequence, event.kind)).collect()
}

fn receipt(backlog: &mut Backlog, now: u64, sequences: &[(u64, u64)]) {
    let stream = hexadecimal(&backlog.stream);
    backlog.received(&ReceivedEvents { stream, sequences: sequences.to_vec() }, seconds(now));
}

/// Writes what is to be written, with success; what was written.
fn write(backlog: &mut Backlog) -> Vec<RecordId> {
    let ids: Vec<_> = backlog.take_changes().into_iter().map(|(id, _)| id).collect();
    backlog.stored(&ids);
    ids
}

#[test]
fn what_is_important_goes_first_and_the_rest_is_spread() {
    let mut backlog = empty();
    add(&mut backlog, 0, "started", "");
    add(&mut backlog, 0, "order-accepted", "");
    add(&mut backlog, 0, "link-up", "");
    assert_eq!(sent(&mut backlog, 0), Vec::<String>::new(), "there is no connection");
    backlog.connected(seconds(1), seconds(20));
    assert_eq!(sent(&mut backlog, 1), ["2:order-accepted"]);
    assert_eq!(sent(&mut backlog, 1), Vec::<String>::new());
    assert_eq!(backlog.due(seconds(1)), Some(seconds(21)));
    assert_eq!(sent(&mut backlog, 21), ["1:started"]);
}

#[test]
fn what_has_no_receipt_is_sent_again_with_growing_pauses() {
    let mut backlog = empty();
    backlog.connected(seconds(0), seconds(0));
    add(&mut backlog, 0, "started", "");
    assert_eq!(sent(&mut backlog, 0).len(), 1);
    let mut at = 0;
    let doubled = [60, 120, 240, 480, 960, 1920];
    let days = [24 * 3600; 3];
    for pause in doubled.into_iter().chain([3600; 24]).chain(days) {
        at += pause;
        assert_eq!(backlog.due(seconds(at - pause)), Some(seconds(at)));
        assert_eq!(sent(&mut backlog, at - 1), Vec::<String>::new());
        assert_eq!(sent(&mut backlog, at).len(), 1);
    }
    backlog.disconnected();
    assert_eq!((backlog.due(seconds(at)), sent(&mut backlog, at + 9000).len()), (None, 0));
    backlog.connected(seconds(at + 9000), seconds(0));
    assert_eq!(sent(&mut backlog, at + 9000).len(), 1);
    receipt(&mut backlog, at + 9001, &[(0, u64::MAX)]);
    assert!(backlog.is_empty());
    assert_eq!(backlog.due(seconds(at + 9001)), None);
    assert_eq!(backlog.long_pauses, 0, "somebody answers");
}

#[test]
fn over_budget_what_is_not_important_goes_once_an_hour() {
    let mut backlog = empty();
    backlog.connected(seconds(0), seconds(0));
    let mut packets = (0, 0);
    for minute in 0..300 {
        let now = minute * 60;
        add(&mut backlog, now, "started", "");
        if minute % 100 == 50 {
            add(&mut backlog, now, "rolled-back", "");
        }
        backlog.over_budget();
        while let Some(batch) = backlog.batch(gateway(), LIMIT, seconds(now)) {
            backlog.delivered(&batch.sequences, seconds(now));
            let events = read(&batch).events;
            packets.0 += usize::from(events.iter().any(|event| event.kind == "started"));
            packets.1 += usize::from(events.iter().any(|event| event.kind == "rolled-back"));
            let held: Vec<_> = batch.sequences.iter().map(|at| (*at, *at)).collect();
            receipt(&mut backlog, now, &held);
            backlog.over_budget();
        }
    }
    assert_eq!(packets, (5, 3));
}

#[test]
fn a_fleet_that_never_answers_costs_one_packet_a_pause() {
    let mut backlog = empty();
    backlog.connected(seconds(0), seconds(0));
    (0..300).for_each(|n| add(&mut backlog, 0, "started", &n.to_string()));
    let mut bytes = 0;
    for now in 0..86_400 {
        while let Some(batch) = backlog.batch(gateway(), LIMIT, seconds(now)) {
            bytes += batch.payload.len();
            backlog.delivered(&batch.sequences, seconds(now));
        }
    }
    assert!(bytes < 300_000, "{bytes}");
}

#[test]
fn receipts_of_another_stream_say_nothing() {
    let mut backlog = empty();
    add(&mut backlog, 0, "started", "");
    let stream = hexadecimal(&[8; 16]);
    let received = ReceivedEvents { stream, sequences: vec![(0, 9)] };
    backlog.received(&received, seconds(1));
    assert_eq!(backlog.len(), 1);
}

#[test]
fn receipts_for_what_was_never_sent_say_nothing() {
    let mut backlog = empty();
    backlog.connected(seconds(0), seconds(30));
    add(&mut backlog, 0, "started", "");
    add(&mut backlog, 0, "order-accepted", "");
    // A broker took it, and the connection was lost before it said so.
    let batch = backlog.batch(gateway(), LIMIT, seconds(0)).unwrap();
    assert_eq!(batch.sequences, [2]);
    add(&mut backlog, 0, "order-accepted", "");
    receipt(&mut backlog, 1, &[(0, u64::MAX)]);
    assert_eq!(backlog.events.keys().copied().collect::<Vec<_>>(), [1, 3]);
    // What an agent before this one sent is not known.
    let record = BacklogRecord { stream: [7; 16], next: 100, dropped: 0 };
    let events = backlog.events.iter().map(|(at, kept)| (*at, kept.record.clone())).collect();
    let mut backlog = Backlog::restore(Some(record), events, [8; 16], true);
    receipt(&mut backlog, 1, &[(3, 3)]);
    assert_eq!(backlog.events.keys().copied().collect::<Vec<_>>(), [1]);
}

#[test]
fn when_full_the_oldest_that_matter_least_go_and_are_counted() {
    let mut backlog = empty();
    add(&mut backlog, 0, "started", "");
    add(&mut backlog, 0, "order-accepted", "");
    (0..MOST - 2).for_each(|_| add(&mut backlog, 0, "order-accepted", ""));
    assert_eq!((backlog.len(), backlog.dropped()), (MOST, 0));
    add(&mut backlog, 0, "order-accepted", "");
    assert_eq!(backlog.events.keys().next(), Some(&2), "the one that is not important went");
    add(&mut backlog, 0, "started", "");
    assert_eq!(backlog.events.keys().next(), Some(&2), "what is important does not give way to it");
    add(&mut backlog, 0, "order-accepted", "");
    assert_eq!(backlog.events.keys().next(), Some(&3));
    assert_eq!((backlog.len(), backlog.dropped()), (MOST, 3));
    backlog.connected(seconds(0), seconds(0));
    assert_eq!(read(&backlog.batch(gateway(), LIMIT, seconds(0)).unwrap()).dropped, 3);
}

#[test]
fn packets_keep_to_their_limit_whatever_is_in_them() {
    for limit in [300, 1000, 4000, 100_000] {
        let mut backlog = empty();
        backlog.connected(seconds(0), seconds(0));
        (0..100).for_each(|_| add(&mut backlog, 0, "ended", &"\"ä".repeat(500)));
        let mut count = 0;
        while let Some(batch) = backlog.batch(gateway(), limit, seconds(0)) {
            assert!(batch.payload.len() <= limit, "{} of {limit}", batch.payload.len());
            assert!(batch.sequences.len() <= MAX_EVENTS);
            backlog.delivered(&batch.sequences, seconds(0));
            count += batch.sequences.len();
        }
        assert_eq!(count, 100);
    }
}

#[test]
fn flash_is_written_at_once_for_what_matters_and_else_with_others() {
    let mut backlog = empty();
    assert_eq!(backlog.write_due(), None);
    add(&mut backlog, 10, "started", "");
    assert_eq!(backlog.write_due(), Some(seconds(70)));
    add(&mut backlog, 20, "ended", "");
    assert_eq!(backlog.write_due(), Some(seconds(70)));
    add(&mut backlog, 30, "order-accepted", "");
    assert_eq!(backlog.write_due(), Some(seconds(30)));
    let written = write(&mut backlog);
    let event = RecordId::Event;
    assert_eq!(written, [event(1), event(2), event(3), RecordId::Backlog]);
    assert_eq!(backlog.write_due(), None);
    assert_eq!(write(&mut backlog), []);
    // What the fleet has before it is written never is.
    add(&mut backlog, 40, "started", "");
    backlog.connected(seconds(40), seconds(0));
    assert_eq!(sent(&mut backlog, 40).len(), 4);
    receipt(&mut backlog, 41, &[(4, 4)]);
    assert_eq!(write(&mut backlog), []);
    receipt(&mut backlog, 42, &[(1, 2)]);
    assert_eq!(backlog.write_due(), Some(seconds(42 + 3600)));
    add(&mut backlog, 43, "order-accepted", "");
    assert_eq!(write(&mut backlog), [event(1), event(2), event(5)]);
}

#[test]
fn what_could_not_be_written_is_written_later() {
    let mut backlog = empty();
    add(&mut backlog, 0, "order-accepted", "");
    let ids: Vec<_> = backlog.take_changes().into_iter().map(|(id, _)| id).collect();
    add(&mut backlog, 1, "order-accepted", "");
    assert_eq!(backlog.take_changes(), [], "one write at a time");
    assert_eq!(backlog.write_due(), None);
    backlog.not_stored(&ids, seconds(30));
    assert_eq!(backlog.write_due(), Some(seconds(30)));
    assert_eq!(write(&mut backlog), [RecordId::Event(1), RecordId::Event(2), RecordId::Backlog]);
}

#[test]
fn records_keep_to_what_the_store_takes() {
    let mut backlog = empty();
    let long = "\u{10ffff}".repeat(3000);
    backlog.add(seconds(0), Timestamp::from_unix(u64::MAX), &long, Some(&long), &long);
    let kept = &backlog.events[&1].record;
    assert!(kept.message.len() + kept.kind.len() + kept.replica.as_ref().unwrap().len() < 2000);
}

/// What may happen to a gateway and what it sends.
#[derive(Clone, Debug)]
enum Step {
    Happen(usize, bool),
    Wait(u64),
    Connect(u64),
    Disconnect,
    /// The gateway sends a packet; the broker takes it and loses it, or not.
    Send {
        lost: bool,
        acknowledged: bool,
    },
    /// The fleet gets the packet of this number, and perhaps gets it again.
    Deliver(usize, bool),
    /// The gateway gets the receipt of this number, or it is lost.
    Receive(usize, bool),
    Write(bool),
    /// The agent dies, with or without a write under way.
    Crash(bool),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (1..300usize, any::<bool>()).prop_map(|(n, important)| Step::Happen(n, important)),
        4 => (1..5usize, any::<bool>()).prop_map(|(n, important)| Step::Happen(n, important)),
        3 => (0..200u64).prop_map(Step::Wait),
        2 => (0..30u64).prop_map(Step::Connect),
        1 => Just(Step::Disconnect),
        6 => (any::<bool>(), any::<bool>())
            .prop_map(|(lost, acknowledged)| Step::Send { lost, acknowledged }),
        6 => (any::<usize>(), any::<bool>()).prop_map(|(n, again)| Step::Deliver(n, again)),
        4 => (any::<usize>(), any::<bool>()).prop_map(|(n, lost)| Step::Receive(n, lost)),
        3 => any::<bool>().prop_map(Step::Write),
        1 => any::<bool>().prop_map(Step::Crash),
    ]
}

struct World {
    backlog: Backlog,
    now: u64,
    streams: u8,
    happened: u64,
    /// Of what happened: lost with the agent before it was written.
    excused: BTreeSet<u64>,
    dropped: u64,
    store: (Option<BacklogRecord>, BTreeMap<u64, EventRecord>),
    broker: Vec<Events>,
    fleet: HashMap<(String, u64), String>,
    receipts: Vec<ReceivedEvents>,
}

impl World {
    fn new() -> Self {
        Self {
            backlog: empty(),
            now: 0,
            streams: 7,
            happened: 0,
            excused: BTreeSet::new(),
            dropped: 0,
            store: (None, BTreeMap::new()),
            broker: Vec::new(),
            fleet: HashMap::new(),
            receipts: Vec::new(),
        }
    }

    fn happen(&mut self, important: bool) {
        let kind = if important { "order-accepted" } else { "started" };
        let before = self.backlog.dropped();
        add(&mut self.backlog, self.now, kind, &self.happened.to_string());
        self.dropped += self.backlog.dropped() - before;
        self.happened += 1;
        assert!(self.backlog.len() <= MOST);
        // What the store still has to forget is bounded by what it holds, which is checked there.
    }

    fn write(&mut self, works: bool) {
        let changes = self.backlog.take_changes();
        let ids: Vec<_> = changes.iter().map(|(id, _)| id.clone()).collect();
        if !works {
            self.backlog.not_stored(&ids, seconds(self.now));
            return;
        }
        self.apply(changes);
        self.backlog.stored(&ids);
    }

    fn apply(&mut self, changes: Vec<(RecordId, Option<Record>)>) {
        for change in changes {
            match change {
                (RecordId::Event(at), Some(Record::Event(record))) => {
                    self.store.1.insert(at, record);
                }
                (RecordId::Event(at), None) => drop(self.store.1.remove(&at)),
                (RecordId::Backlog, Some(Record::Backlog(record))) => {
                    self.store.0 = Some(record);
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(self.store.1.len() <= 1024, "{} in the store", self.store.1.len());
    }

    fn crash(&mut self, writing: bool) {
        if writing {
            let changes = self.backlog.take_changes();
            self.apply(changes);
        }
        for (at, kept) in &self.backlog.events {
            if !self.store.1.contains_key(at) {
                self.excused.insert(kept.record.message.parse().unwrap());
            }
        }
        self.streams += 1;
        let (record, events) = self.store.clone();
        self.backlog = Backlog::restore(record, events, [self.streams; 16], true);
    }

    fn send(&mut self, lost: bool, acknowledged: bool) -> bool {
        let now = seconds(self.now);
        let Some(batch) = self.backlog.batch(gateway(), LIMIT, now) else { return false };
        assert!(batch.payload.len() <= LIMIT);
        if !lost {
            self.broker.push(read(&batch));
        }
        if acknowledged {
            self.backlog.delivered(&batch.sequences, now);
        } else {
            self.backlog.disconnected();
        }
        true
    }

    fn deliver(&mut self, n: usize, again: bool) {
        if self.broker.is_empty() {
            return;
        }
        let n = n % self.broker.len();
        let packet = match again {
            true => self.broker[n].clone(),
            false => self.broker.remove(n),
        };
        for event in &packet.events {
            let key = (packet.stream.clone(), event.sequence);
            let known = self.fleet.insert(key, event.message.clone());
            assert!(known.is_none_or(|known| known == event.message), "a number came twice");
        }
        let ranges = packet.events.iter().map(|event| (event.sequence, event.sequence));
        let received =
            ReceivedEvents { stream: packet.stream.clone(), sequences: ranges.collect() };
        self.receipts.push(received);
    }

    fn receive(&mut self, n: usize, lost: bool) {
        if self.receipts.is_empty() {
            return;
        }
        let receipt = self.receipts.remove(n % self.receipts.len());
        if !lost {
            self.backlog.received(&receipt, seconds(self.now));
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Happen(times, important) => (0..times).for_each(|_| self.happen(important)),
            Step::Wait(time) => self.now += time,
            Step::Connect(spread) => self.backlog.connected(seconds(self.now), seconds(spread)),
            Step::Disconnect => self.backlog.disconnected(),
            Step::Send { lost, acknowledged } => drop(self.send(lost, acknowledged)),
            Step::Deliver(n, again) => self.deliver(n, again),
            Step::Receive(n, lost) => self.receive(n, lost),
            Step::Write(works) => self.write(works),
            Step::Crash(writing) => self.crash(writing),
        }
    }

    /// From now on all goes well, and the gateway wakes only when it asked to.
    fn come_to_rest(&mut self) {
        self.broker.clear();
        self.receipts.clear();
        self.backlog.connected(seconds(self.now), seconds(10));
        for _ in 0..2000 {
            if self.backlog.write_due().is_some_and(|at| at <= seconds(self.now)) {
                self.write(true);
            }
            if self.send(false, true) {
                self.deliver(0, false);
                self.receive(0, false);
                continue;
            }
            let now = seconds(self.now);
            let moments = [self.backlog.due(now), self.backlog.write_due()];
            match moments.into_iter().flatten().min() {
                Some(at) => self.now = self.now.max(at.as_secs()),
                None => break,
            }
        }
        assert!(self.backlog.is_empty(), "{} are left", self.backlog.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

    #[test]
    fn every_event_arrives_that_was_not_counted_as_dropped(
        steps in prop::collection::vec(any_step(), 0..60)
    ) {
        let mut world = World::new();
        steps.iter().for_each(|step| world.step(step));
        world.come_to_rest();
        let arrived: BTreeSet<u64> =
            world.fleet.values().map(|message| message.parse().unwrap()).collect();
        let missing = (0..world.happened)
            .filter(|n| !arrived.contains(n) && !world.excused.contains(n))
            .count();
        prop_assert!(missing as u64 <= world.dropped, "{missing} of {}", world.dropped);
    }
}
