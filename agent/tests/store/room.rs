//! The fixed size of the map is enough for the most that may be stored, however it changes.

use std::fs;

use coracle::store::{MAP_BYTES, Store, StoredOrder};
use coracle_core::backlog::EventRecord;
use coracle_core::command::CommandRecord;
use coracle_core::desired::DefinitionHash;
use coracle_core::history::{ContainerRecord, FailedUpdate, Stopped, WorkloadRecord};
use coracle_core::name::{ContainerId, WorkloadName};
use coracle_core::record::{Record, RecordId};
use coracle_protocol::CommandState;
use coracle_protocol::limits::MAX_ENVELOPE_BYTES;
use proptest::prelude::RngCore;
use proptest::test_runner::{RngAlgorithm, TestRng};

use super::support::{open, wait};

type Change = (RecordId, Option<Record>);

/// The largest record there is, under the longest name.
fn container(index: u32) -> Change {
    let id = format!("{}.{}.{}", "w".repeat(40), 1000 + index % 1000, name(index, 30));
    let record = ContainerRecord {
        definition: Some(DefinitionHash::from_label(&"f".repeat(32))),
        failures: u32::MAX,
        restarts: u32::MAX,
        last_exit: Some((u32::MAX, u64::MAX)),
        ended: true,
    };
    (RecordId::Container(ContainerId::from_listed(&id)), Some(Record::Container(record)))
}

/// The largest record there is, under the longest name.
fn workload(index: u32) -> Change {
    let definition = DefinitionHash::from_label(&"f".repeat(32));
    let reason = "\u{1F6F6}".repeat(300);
    let failed = FailedUpdate { definition: definition.clone(), generation: u64::MAX, reason };
    let record = WorkloadRecord {
        good: Some(definition),
        failed: Some(failed),
        stopped: Some(Stopped { drained: true, since: u64::MAX }),
    };
    let name = WorkloadName::parse(&name(index, 40)).unwrap();
    (RecordId::Workload(name), Some(Record::Workload(record)))
}

fn name(index: u32, length: usize) -> String {
    format!("{index:0length$}")
}

/// A command with a record of nearly the largest size.
fn command(index: u32) -> Change {
    let id = format!("019a2b3c-4d5e-7f60-8123-{index:012x}").parse().unwrap();
    let record = CommandRecord {
        state: CommandState::Accepted,
        at: u64::MAX,
        command: vec![b'x'; 4096],
        reply: None,
        correlation: vec![0; 128],
        boot_id: "b".repeat(36),
        reason: String::new(),
        message: "\u{1F6F6}".repeat(300),
        result: vec![b'x'; 2048],
        received: false,
    };
    (RecordId::Command(id), Some(Record::Command(record)))
}

/// An event with a record of nearly the largest size.
fn event(index: u32) -> Change {
    let record = EventRecord {
        at: u64::MAX,
        kind: "k".repeat(40),
        replica: Some("r".repeat(45)),
        message: "\u{1F6F6}".repeat(450),
    };
    (RecordId::Event(index.into()), Some(Record::Event(record)))
}

/// Another record under the same name, as large.
fn changed((id, record): &Change) -> Change {
    let other = DefinitionHash::from_label(&"e".repeat(32));
    let record = match record.clone() {
        Some(Record::Container(record)) => {
            Record::Container(ContainerRecord { definition: Some(other), ..record })
        }
        Some(Record::Workload(record)) => {
            Record::Workload(WorkloadRecord { good: Some(other), ..record })
        }
        Some(Record::Command(record)) => Record::Command(CommandRecord { at: 1, ..record }),
        Some(Record::Event(record)) => Record::Event(EventRecord { at: 1, ..record }),
        other => panic!("not one of these: {other:?}"),
    };
    (id.clone(), Some(record))
}

fn largest_order(generation: u64) -> StoredOrder {
    StoredOrder::new(generation, vec![b'0' + (generation % 10) as u8; MAX_ENVELOPE_BYTES])
}

/// Accepts orders of the largest size, with as many kept as may be.
async fn accept(store: &Store, generations: std::ops::Range<u64>) {
    for generation in generations {
        store.accept(largest_order(generation), (0..generation).collect()).await.unwrap();
    }
}

#[test]
fn the_most_that_may_be_stored_fits_and_can_be_replaced_as_a_whole() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("store.mdb");
    let size = || fs::metadata(&file).unwrap().len();
    let (store, _) = open(dir.path());
    let talk = (0..512).map(command).chain((0..1_024).map(event));
    let mut all: Vec<_> =
        (0..20_000).map(container).chain((0..2_000).map(workload)).chain(talk).collect();
    let mut random = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    for at in (1..all.len()).rev() {
        all.swap(at, (random.next_u64() % (at as u64 + 1)) as usize);
    }
    wait(async {
        // In a random order, which leaves pages half empty, between orders.
        for (part, generation) in all.chunks(2_000).zip(1..) {
            store.record(part.to_vec()).await.unwrap();
            accept(&store, generation..generation + 1).await;
        }
        // All at once, again and again: the pages of the last two transactions are not free yet.
        for round in 1..4 {
            store.record(all.iter().map(changed).collect()).await.unwrap();
            store.record(all.clone()).await.unwrap();
            accept(&store, round * 100..round * 100 + 12).await;
        }
        store.close().await;
    });
    println!("the file has {} MiB", size() >> 20);
    assert!(size() < MAP_BYTES as u64 * 2 / 3, "{}", size());
    let (store, loaded) = open(dir.path());
    assert_eq!((loaded.histories.len(), loaded.workloads.len()), (20_000, 2_000));
    assert_eq!((loaded.talk.commands.len(), loaded.talk.events.len()), (512, 1_024));
    assert_eq!(loaded.kept.len(), 8);
    assert_eq!(loaded.trouble, None);
    wait(store.close());
}
