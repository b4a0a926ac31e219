use std::fs;
use std::os::unix::fs::PermissionsExt;

use coracle::store::{Origin, Store, StoreError, StoredOrder};
use coracle_protocol::limits::MAX_ENVELOPE_BYTES;

use super::support::{check, open, open_with, order, record, replica, wait};

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
            store.accept(order(generation)).await.unwrap();
        }
        let records = (0..40).map(|i| (replica(i), Some(record(i)))).collect();
        store.record(records).await.unwrap();
        store.record(vec![(replica(7), None), (replica(8), Some(record(99)))]).await.unwrap();
        store.close().await;
    });

    let (store, loaded) = open(&dir);
    assert_eq!(loaded.trouble, None);
    assert_eq!(loaded.current, Some(order(9)));
    assert_eq!(loaded.previous, Some(order(4)));
    assert_eq!(loaded.highest_generation, 9);
    assert_eq!(loaded.histories.len(), 39);
    assert_eq!(loaded.histories[&replica(8)], record(99));
    assert!(!loaded.histories.contains_key(&replica(7)));
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
        store.accept(order(5)).await.unwrap();
        for older in [1, 4] {
            let refused = store.accept(order(older)).await.unwrap_err();
            assert!(matches!(refused, StoreError::NotNewer { highest: 5, .. }), "{refused}");
        }
        let other = StoredOrder::new(5, b"other content".to_vec());
        let refused = store.accept(other).await.unwrap_err();
        assert!(matches!(refused, StoreError::NotNewer { generation: 5, highest: 5 }));
        let before = store.metrics();
        store.accept(order(5)).await.unwrap();
        assert_eq!(store.metrics(), before, "the same order again writes nothing");
        store.close().await;
    });
    let (store, loaded) = open(dir.path());
    assert_eq!((loaded.current, loaded.previous), (Some(order(5)), None));
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
        store.accept(order(1)).await.unwrap();
        store.record(vec![(replica(0), Some(record(1)))]).await.unwrap();
        let counted = store.metrics();
        let size = order(1).envelope.len() as u64;
        assert_eq!((counted.order.commits, counted.order_file.commits), (1, 1));
        assert_eq!(counted.order_file.bytes, size);
        assert!((size..size + 20_000).contains(&counted.order.bytes), "{counted:?}");
        assert_eq!(counted.history.commits, 1);
        // A leaf, a leaf of the free list, and the changed part of a meta page.
        assert!((4096..13_000).contains(&counted.history.bytes), "{counted:?}");
        store.record(vec![(replica(0), Some(record(1))), (replica(1), None)]).await.unwrap();
        assert_eq!(store.metrics(), counted);
        store.close().await;
    });
}

#[test]
fn what_is_too_large_is_refused_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    wait(async {
        store.accept(order(1)).await.unwrap();
        let large = StoredOrder::new(2, vec![b' '; MAX_ENVELOPE_BYTES + 1]);
        let refused = store.accept(large).await.unwrap_err();
        assert!(matches!(refused, StoreError::TooLarge { .. }), "{refused}");
        let refused = store.reserve_sequence(&"b".repeat(65), 0).await.unwrap_err();
        assert!(matches!(refused, StoreError::TooLarge { .. }), "{refused}");
        store.accept(StoredOrder::new(2, vec![b' '; MAX_ENVELOPE_BYTES])).await.unwrap();
        store.close().await;
    });
}

#[test]
fn there_is_a_limit_to_the_number_of_histories_and_the_map_holds_as_many() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    let records =
        |range: std::ops::Range<u32>| range.map(|i| (replica(i), Some(record(i)))).collect();
    wait(async {
        store.record(records(0..19_000)).await.unwrap();
        let refused = store.record(records(19_000..21_000)).await.unwrap_err();
        assert!(matches!(refused, StoreError::TooMany { .. }), "{refused}");
        for generation in 1..5 {
            store
                .accept(StoredOrder::new(generation, vec![b' '; MAX_ENVELOPE_BYTES]))
                .await
                .unwrap();
            store
                .record((0..19_000).map(|i| (replica(i), Some(record(i + 1)))).collect())
                .await
                .unwrap();
            store.record(records(0..19_000)).await.unwrap();
        }
        store.close().await;
    });
    let (store, loaded) = open(dir.path());
    assert_eq!((loaded.histories.len(), loaded.trouble), (19_000, None));
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
        assert!(matches!(other.accept(order(1)).await, Err(StoreError::Closed)));
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
        store.accept(candidate.order.clone()).await.unwrap();
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
        store.accept(order(1)).await.unwrap();
        store.accept(order(2)).await.unwrap();
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
