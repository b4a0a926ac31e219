use std::fs;
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;

use coracle::store::{Origin, Store, StoreError, StoredOrder};
use coracle_core::desired::DefinitionHash;
use coracle_core::history::{FailedUpdate, Stopped, WorkloadRecord};
use coracle_core::record::{Record, RecordId};
use coracle_protocol::limits::MAX_ENVELOPE_BYTES;

use super::support::{
    NONE, check, container, container_change, open, open_with, order, record, wait, workload,
    workload_change, workload_record,
};

fn mode(path: &std::path::Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn what_was_accepted_and_recorded_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("state");
    let (store, loaded) = open(&dir);
    assert!(loaded.current.is_none() && loaded.candidates.is_empty());
    assert_eq!((loaded.highest_generation, loaded.trouble), (0, None));
    wait(async {
        for generation in [3, 4, 9] {
            store.accept(order(generation), NONE).await.unwrap();
        }
        let records = (0..40).map(|i| container_change(i, Some(i))).collect();
        store.record(records).await.unwrap();
        store.record((0..30).map(|i| workload_change(i, Some(i))).collect()).await.unwrap();
        let changes = vec![
            container_change(7, None),
            container_change(8, Some(99)),
            workload_change(5, None),
            workload_change(6, Some(98)),
        ];
        store.record(changes).await.unwrap();
        store.close().await;
    });

    let (store, loaded) = open(&dir);
    assert_eq!(loaded.trouble, None);
    assert_eq!(loaded.current, Some(order(9)));
    assert_eq!(loaded.previous, Some(order(4)));
    assert_eq!(loaded.highest_generation, 9);
    assert_eq!(loaded.histories.len(), 39);
    assert_eq!(loaded.histories[&container(8)], record(99));
    assert!(!loaded.histories.contains_key(&container(7)));
    assert_eq!(loaded.workloads.len(), 29);
    assert_eq!(loaded.workloads[&workload(6)], workload_record(98));
    assert_eq!(loaded.workloads[&workload(7)], workload_record(7));
    assert!(!loaded.workloads.contains_key(&workload(5)));
    assert!(loaded.kept.is_empty());
    assert!(loaded.candidates.is_empty());
    wait(store.close());

    assert_eq!(fs::read(dir.join("order.json")).unwrap(), order(9).envelope);
    assert_eq!(fs::read(dir.join("order.previous.json")).unwrap(), order(4).envelope);
    assert_eq!(mode(&dir), 0o700);
    for file in ["store.mdb", "order.json", "order.previous.json"] {
        assert_eq!(mode(&dir.join(file)), 0o600, "{file}");
    }
}

#[test]
fn generations_only_rise() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    wait(async {
        store.accept(order(5), NONE).await.unwrap();
        for older in [1, 4] {
            let refused = store.accept(order(older), NONE).await.unwrap_err();
            assert!(matches!(refused, StoreError::NotNewer { highest: 5, .. }), "{refused}");
        }
        let other = StoredOrder::new(5, b"other content".to_vec());
        let refused = store.accept(other, NONE).await.unwrap_err();
        assert!(matches!(refused, StoreError::NotNewer { generation: 5, highest: 5 }));
        let before = store.metrics();
        store.accept(order(5), NONE).await.unwrap();
        assert_eq!(store.metrics(), before, "the same order again writes nothing");
        store.close().await;
    });
    let (store, loaded) = open(dir.path());
    assert_eq!((loaded.current, loaded.previous), (Some(order(5)), None));
    wait(store.close());
}

#[test]
fn older_orders_are_kept_for_as_long_as_they_are_needed() {
    let dir = tempfile::tempdir().unwrap();
    let holds = |newest: u64, kept: &[u64]| {
        let (store, loaded) = open(dir.path());
        assert_eq!(loaded.current, Some(order(newest)));
        assert_eq!(loaded.previous, (newest > 1).then(|| order(newest - 1)));
        let kept: Vec<_> = kept.iter().map(|generation| order(*generation)).collect();
        assert_eq!(loaded.kept, kept, "with {newest}");
        store
    };
    let accept = |newest: u64, keep: &[u64], kept: &[u64]| {
        let (store, _) = open(dir.path());
        wait(async {
            store.accept(order(newest), keep.iter().copied().collect()).await.unwrap();
            store.close().await;
        });
        wait(holds(newest, kept).close());
    };
    accept(1, &[1, 2], &[]);
    accept(2, &[1, 2], &[]);
    accept(3, &[1, 2], &[1]);
    accept(4, &[1, 2, 77], &[2, 1]);
    accept(5, &[2, 4, 5], &[2]);
    accept(6, &[4], &[4]);

    let store = holds(6, &[4]);
    wait(async {
        let before = store.metrics();
        store.accept(order(6), NONE).await.unwrap();
        assert_eq!(store.metrics(), before, "the same order again writes nothing");
        store.accept(order(5), NONE).await.unwrap_err();
        store.close().await;
    });
    wait(holds(6, &[4]).close());
    accept(7, &[], &[]);
}

#[test]
fn of_too_many_kept_orders_the_oldest_go() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    wait(async {
        for generation in 1..=20 {
            store.accept(order(generation), (0..=generation).collect()).await.unwrap();
        }
        store.close().await;
    });
    let (store, loaded) = open(dir.path());
    assert_eq!((loaded.current, loaded.previous), (Some(order(20)), Some(order(19))));
    assert_eq!(loaded.kept, [18, 17, 16, 15, 14, 13, 12, 11].map(order));
    assert_eq!(loaded.trouble, None);
    wait(store.close());
}

#[test]
fn report_sequences_rise_within_a_boot_and_cost_few_writes() {
    let dir = tempfile::tempdir().unwrap();
    let reserve = |boot: &'static str, at_least| {
        let (store, _) = open(dir.path());
        wait(async {
            let block = store.reserve_sequence(boot, at_least).await.unwrap();
            assert_eq!(store.metrics().sequence.commits, 1);
            store.close().await;
            block
        })
    };
    assert_eq!(reserve("boot-a", 0), 1..1025);
    assert_eq!(reserve("boot-a", 0), 1025..2049);
    assert_eq!(reserve("boot-a", 5000), 5000..6024);
    assert_eq!(reserve("boot-b", 0), 1..1025);
}

#[test]
fn every_byte_is_counted_by_cause_and_nothing_new_costs_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    let setup = store.metrics();
    assert_eq!(setup.setup.commits, 1);
    assert!((8192..40_000).contains(&setup.setup.bytes), "{setup:?}");
    wait(async {
        store.accept(order(1), NONE).await.unwrap();
        store.record(vec![container_change(0, Some(1))]).await.unwrap();
        let counted = store.metrics();
        let size = order(1).envelope.len() as u64;
        assert_eq!((counted.order.commits, counted.order_file.commits), (1, 1));
        assert_eq!(counted.order_file.bytes, size);
        assert!((size..size + 20_000).contains(&counted.order.bytes), "{counted:?}");
        assert_eq!(counted.history.commits, 1);
        // A leaf, a leaf of the free list, and the changed part of a meta page.
        assert!((4096..13_000).contains(&counted.history.bytes), "{counted:?}");
        store.record(vec![container_change(0, Some(1)), container_change(1, None)]).await.unwrap();
        assert_eq!(store.metrics(), counted);

        store
            .record(vec![container_change(2, Some(1)), workload_change(0, Some(1))])
            .await
            .unwrap();
        let with_workload = store.metrics();
        assert_eq!((with_workload.workload.commits, counted.workload.commits), (1, 0));
        assert_eq!(with_workload.history, counted.history);
        assert!((4096..13_000).contains(&with_workload.workload.bytes), "{with_workload:?}");
        store.record(vec![workload_change(0, Some(1)), workload_change(1, None)]).await.unwrap();
        assert_eq!(store.metrics(), with_workload);

        store.accept(order(2), NONE).await.unwrap();
        let before = store.metrics().order.bytes;
        store.accept(order(3), [1].into()).await.unwrap();
        let written = store.metrics().order.bytes - before;
        let size: u64 =
            [1, 2, 3].map(|generation| order(generation).envelope.len() as u64).iter().sum();
        assert!((size..size + 24_000).contains(&written), "{written} for {size}");
        store.close().await;
    });
}

#[test]
fn what_is_too_large_is_refused_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    wait(async {
        store.accept(order(1), NONE).await.unwrap();
        let large = StoredOrder::new(2, vec![b' '; MAX_ENVELOPE_BYTES + 1]);
        let refused = store.accept(large, NONE).await.unwrap_err();
        assert!(matches!(refused, StoreError::TooLarge { .. }), "{refused}");
        let refused = store.reserve_sequence(&"b".repeat(65), 0).await.unwrap_err();
        assert!(matches!(refused, StoreError::TooLarge { .. }), "{refused}");
        store.accept(StoredOrder::new(2, vec![b' '; MAX_ENVELOPE_BYTES]), NONE).await.unwrap();
        let reason = "x".repeat(1500);
        let changes = vec![container_change(0, Some(1)), workload_failed(0, reason)];
        let refused = store.record(changes).await.unwrap_err();
        assert!(matches!(refused, StoreError::TooLarge { .. }), "{refused}");
        // The longest that the core lets through: 300 characters of the longest there are.
        store.record(vec![workload_failed(1, "\u{1F6F6}".repeat(300))]).await.unwrap();
        store.close().await;
    });
    let (store, loaded) = open(dir.path());
    assert_eq!((loaded.histories.len(), loaded.workloads.len()), (0, 1));
    wait(store.close());
}

fn workload_failed(index: u32, reason: String) -> (RecordId, Option<Record>) {
    let definition = DefinitionHash::from_label(&"f".repeat(32));
    let failed = FailedUpdate { definition: definition.clone(), generation: u64::MAX, reason };
    let record = WorkloadRecord {
        good: Some(definition),
        failed: Some(failed),
        stopped: Some(Stopped { drained: true, since: u64::MAX }),
    };
    (RecordId::Workload(workload(index)), Some(Record::Workload(record)))
}

#[test]
fn a_record_of_another_kind_than_its_name_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    wait(async {
        let wrong = vec![
            container_change(0, Some(1)),
            (RecordId::Container(container(1)), workload_change(0, Some(1)).1),
        ];
        let refused = store.record(wrong).await.unwrap_err();
        assert!(matches!(refused, StoreError::OtherKind { .. }), "{refused}");
        let wrong = vec![(RecordId::Workload(workload(0)), container_change(0, Some(1)).1)];
        let refused = store.record(wrong).await.unwrap_err();
        assert!(matches!(refused, StoreError::OtherKind { .. }), "{refused}");
        store.close().await;
    });
    let (store, loaded) = open(dir.path());
    assert!(loaded.histories.is_empty() && loaded.workloads.is_empty());
    wait(store.close());
}

#[test]
fn there_is_a_limit_to_the_number_of_records_of_each_kind() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    let containers = |range: Range<u32>| range.map(|i| container_change(i, Some(i))).collect();
    let workloads = |range: Range<u32>| range.map(|i| workload_change(i, Some(i))).collect();
    wait(async {
        store.record(containers(0..20_000)).await.unwrap();
        store.record(workloads(0..2_000)).await.unwrap();
        for more in [containers(20_000..20_001), workloads(2_000..2_001)] {
            let refused = store.record(more).await.unwrap_err();
            assert!(matches!(refused, StoreError::TooMany { .. }), "{refused}");
        }
        store
            .record(vec![workload_change(0, None), workload_change(2_000, Some(1))])
            .await
            .unwrap();
        store.close().await;
    });
    let (store, loaded) = open(dir.path());
    assert_eq!((loaded.histories.len(), loaded.workloads.len()), (20_000, 2_000));
    assert_eq!(loaded.trouble, None);
    wait(store.close());
}

#[test]
fn a_second_agent_is_refused_until_the_first_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    let refused = Store::open(dir.path(), None, check).unwrap_err();
    assert!(matches!(refused, StoreError::InUse { .. }), "{refused}");
    assert!(refused.to_string().contains("in use by another agent"), "{refused}");
    wait(store.close());
    wait(open(dir.path()).0.close());
}

#[test]
fn a_closed_store_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    let other = store.clone();
    wait(async {
        store.close().await;
        assert!(matches!(other.accept(order(1), NONE).await, Err(StoreError::Closed)));
    });
}

#[test]
fn factory_orders_are_a_candidate_until_there_is_an_order() {
    let dir = tempfile::tempdir().unwrap();
    let factory = dir.path().join("factory.json");
    fs::write(&factory, order(1).envelope).unwrap();
    let state = dir.path().join("state");
    let (store, loaded) = open_with(&state, Some(&factory));
    assert_eq!(loaded.trouble, None);
    let [candidate] = &loaded.candidates[..] else { panic!("{loaded:?}") };
    assert_eq!((candidate.origin, &candidate.order), (Origin::Factory, &order(1)));
    wait(async {
        store.accept(candidate.order.clone(), NONE).await.unwrap();
        store.close().await;
    });
    let (store, loaded) = open(&state);
    assert_eq!(loaded.current, Some(order(1)));
    assert!(loaded.candidates.is_empty());
    wait(store.close());
}

#[test]
fn a_missing_or_old_order_file_is_written_again_from_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    wait(async {
        store.accept(order(1), NONE).await.unwrap();
        store.accept(order(2), NONE).await.unwrap();
        store.close().await;
    });
    let file = dir.path().join("order.json");
    for content in [None, Some(order(1).envelope)] {
        fs::remove_file(&file).unwrap();
        if let Some(content) = content {
            fs::write(&file, content).unwrap();
        }
        let (store, loaded) = open(dir.path());
        assert_eq!(loaded.current, Some(order(2)));
        wait(store.close());
        assert_eq!(fs::read(&file).unwrap(), order(2).envelope);
    }
}
