//! The LMDB file is not what it should be.

use std::fs;
use std::path::Path;
use std::time::Duration;

use coracle::store::{CheckOutcome, Origin, check_with};
use proptest::prelude::RngCore;
use proptest::test_runner::{RngAlgorithm, TestRng};

use super::scenario::{acknowledged, child};
use super::support::{
    NONE, check, container_change, copy, open, open_with, order, this_program, wait,
    workload_change,
};

/// A directory with orders up to 30, some kept, and many records, closed.
fn filled(dir: &Path) {
    let (store, _) = open(dir);
    wait(async {
        for generation in 1..=30 {
            store.accept(order(generation), (20..30).collect()).await.unwrap();
            let index = generation as u32 * 10;
            store
                .record((index..index + 10).map(|i| container_change(i, Some(i))).collect())
                .await
                .unwrap();
            let number = generation as u32;
            store.record(vec![workload_change(number, Some(number))]).await.unwrap();
        }
        store.close().await;
    });
    assert_eq!(check(&dir.join("store.mdb")), CheckOutcome::Intact);
}

/// An agent started on `dir` in a process of its own goes on from order 30, whatever the file is.
fn goes_on(dir: &Path, what: &str) {
    for last in [33, 36] {
        let output = child(dir, 3).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{what}: {}\n{stderr}", output.status);
        assert_eq!(acknowledged(&output.stdout), last, "{what}");
    }
}

#[test]
fn a_truncated_file_is_set_aside_and_the_order_comes_from_its_plain_file() {
    let root = tempfile::tempdir().unwrap();
    let source = root.path().join("source");
    filled(&source);
    let whole = fs::read(source.join("store.mdb")).unwrap();
    let pages = whole.len() / 4096;
    let lengths = [0, 1, 100, 4095, 4096, 8191, 8192, 8193]
        .into_iter()
        .chain((3..pages).step_by(4).map(|page| page * 4096))
        .chain([whole.len() - 4096, whole.len() - 1]);
    let mut set_aside = 0;
    for length in lengths {
        let dir = root.path().join(format!("{length}"));
        copy(&source, &dir);
        fs::write(dir.join("store.mdb"), &whole[..length]).unwrap();
        let (store, loaded) = open(&dir);
        if loaded.trouble.is_some() {
            set_aside += 1;
            assert!(dir.join("store.damaged-1").exists(), "{length}");
            assert_eq!(loaded.highest_generation, 0);
            let candidate = &loaded.candidates[0];
            assert_eq!((candidate.origin, &candidate.order), (Origin::OrderFile, &order(30)));
            assert_eq!(loaded.candidates[1].origin, Origin::PreviousOrderFile);
            assert_eq!(loaded.candidates[1].order, order(29));
        } else {
            // The pages that are gone were free.
            assert_eq!(loaded.current, Some(order(30)), "{length}");
        }
        wait(store.close());
        goes_on(&dir, &format!("truncated to {length}"));
        fs::remove_dir_all(dir).unwrap();
    }
    assert!(set_aside > 8, "{set_aside}");
}

#[test]
fn a_file_with_random_damage_never_ends_the_agent_and_never_loses_the_order() {
    let root = tempfile::tempdir().unwrap();
    let source = root.path().join("source");
    filled(&source);
    let whole = fs::read(source.join("store.mdb")).unwrap();
    let mut random = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut below = |limit: usize| (random.next_u64() % limit as u64) as usize;
    let mut set_aside = 0;
    for case in 0..40 {
        let mut bytes = whole.clone();
        let page = below(bytes.len() / 4096) * 4096;
        match case % 4 {
            // Around the page's header and its list of nodes.
            0 => (0..8).for_each(|_| bytes[page + below(64)] = below(256) as u8),
            1 => (0..4).for_each(|_| bytes[page + below(4096)] = below(256) as u8),
            2 => bytes[page..page + 4096].fill(if case % 8 == 2 { 0 } else { 0xff }),
            _ => {
                let other = below(whole.len() / 4096) * 4096;
                bytes[page..page + 4096].copy_from_slice(&whole[other..other + 4096]);
            }
        }
        let dir = root.path().join(format!("case-{case}"));
        copy(&source, &dir);
        fs::write(dir.join("store.mdb"), &bytes).unwrap();
        goes_on(&dir, &format!("case {case}, page {}", page / 4096));
        set_aside += u32::from(dir.join("store.damaged-1").exists());
        fs::remove_dir_all(dir).unwrap();
    }
    assert!(set_aside > 6, "{set_aside}");
}

/// Puts another byte into the middle of every copy of a text in a file.
fn spoil(path: &Path, text: &str) {
    let mut bytes = fs::read(path).unwrap();
    let found = |at: &usize| bytes[*at..].starts_with(text.as_bytes());
    let places: Vec<_> = (0..bytes.len()).filter(found).collect();
    assert!(!places.is_empty(), "{text} is not in the file");
    for at in places {
        bytes[at + text.len() / 2] ^= 1;
    }
    fs::write(path, bytes).unwrap();
}

#[test]
fn for_one_damaged_record_of_any_kind_the_file_is_set_aside() {
    let root = tempfile::tempdir().unwrap();
    let source = root.path().join("source");
    filled(&source);
    // In the value of workload 29, and in keys.
    let reason = "x".repeat(29 * 31 % 301);
    for (case, text) in [
        ("reason", reason.as_str()),
        ("workload", "workload/web-17"),
        ("history", "history/web-1.170.main"),
        ("kept", "order/kept/25"),
    ] {
        let dir = root.path().join(case);
        copy(&source, &dir);
        spoil(&dir.join("store.mdb"), text);
        let (store, loaded) = open(&dir);
        let trouble = loaded.trouble.unwrap();
        assert!(trouble.contains("set aside"), "{case}: {trouble}");
        assert!(trouble.contains("does not fit its checksum"), "{case}: {trouble}");
        assert!(loaded.workloads.is_empty() && loaded.kept.is_empty(), "{case}");
        assert_eq!(loaded.candidates[0].order, order(30), "{case}");
        wait(store.close());
        goes_on(&dir, case);
    }
}

#[test]
fn damaged_files_are_kept_and_do_not_pile_up() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    for round in 1..=4 {
        fs::write(dir.path().join("store.mdb"), format!("nonsense {round}")).unwrap();
        let (store, loaded) = open(dir.path());
        let trouble = loaded.trouble.unwrap();
        assert!(trouble.contains("set aside"), "{trouble}");
        wait(store.close());
    }
    let kept = |n| fs::read_to_string(dir.path().join(format!("store.damaged-{n}"))).ok();
    assert_eq!(
        [1, 2, 3, 4].map(kept),
        [None, None, Some("nonsense 3".into()), Some("nonsense 4".into())]
    );
}

#[test]
fn without_a_good_order_file_the_previous_one_and_the_factory_orders_remain() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    let factory = dir.path().join("factory.json");
    fs::write(&factory, order(1).envelope).unwrap();
    fs::write(dir.path().join("store.mdb"), "nonsense").unwrap();
    fs::write(dir.path().join("order.json"), "{\"payload").unwrap();
    let (store, loaded) = open_with(dir.path(), Some(&factory));
    let found: Vec<_> = loaded.candidates.iter().map(|c| (c.origin, c.order.generation)).collect();
    assert_eq!(found, [(Origin::PreviousOrderFile, 29), (Origin::Factory, 1)]);
    let trouble = loaded.trouble.unwrap();
    assert!(trouble.contains("order.json: (document)"), "{trouble}");
    wait(store.close());
}

#[test]
fn a_check_that_hangs_counts_as_damage_and_one_that_cannot_be_done_does_not() {
    let mut sleeper = std::process::Command::new("sleep");
    sleeper.arg("1000");
    let outcome = check_with(sleeper, Duration::from_millis(50));
    assert!(matches!(outcome, CheckOutcome::Damaged(_)), "{outcome:?}");
    let outcome = check_with(std::process::Command::new("/nonexistent"), Duration::from_secs(9));
    assert!(matches!(outcome, CheckOutcome::Unavailable(_)), "{outcome:?}");
    let mut killed = std::process::Command::new("sh");
    killed.args(["-c", "kill -9 $$"]);
    let outcome = check_with(killed, Duration::from_secs(9));
    assert!(matches!(outcome, CheckOutcome::Unavailable(_)), "{outcome:?}");
    let mut not_understood = std::process::Command::new("sh");
    not_understood.args(["-c", "exit 2"]);
    let outcome = check_with(not_understood, Duration::from_secs(9));
    assert!(matches!(outcome, CheckOutcome::Unavailable(_)), "{outcome:?}");
    let mut died = std::process::Command::new("sh");
    died.args(["-c", "kill -BUS $$"]);
    let outcome = check_with(died, Duration::from_secs(9));
    assert_eq!(outcome, CheckOutcome::Damaged("its check died of SIGBUS".into()));
    let missing = this_program("no::such::test");
    assert_eq!(check_with(missing, Duration::from_secs(9)), CheckOutcome::Intact);
}

#[test]
fn a_store_that_cannot_be_checked_is_left_alone_and_used_as_soon_as_it_can() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    let able = Arc::new(AtomicBool::new(false));
    let seen = able.clone();
    let (store, loaded) = coracle::store::Store::open(dir.path(), None, move |path| {
        if seen.load(Ordering::SeqCst) {
            check(path)
        } else {
            CheckOutcome::Unavailable("no memory".into())
        }
    })
    .unwrap();
    assert!(loaded.unwritable.unwrap().contains("no memory"));
    assert_eq!(loaded.candidates[0].order, order(30));
    wait(async {
        assert!(store.accept(order(31), NONE).await.is_err());
        able.store(true, Ordering::SeqCst);
        store.accept(order(30), NONE).await.unwrap();
        store.accept(order(31), NONE).await.unwrap();
        store.close().await;
    });
    let (store, loaded) = open(dir.path());
    assert_eq!((loaded.current, loaded.histories.len()), (Some(order(31)), 300));
    assert_eq!((loaded.kept.len(), loaded.workloads.len()), (0, 30));
    assert_eq!(loaded.trouble, None);
    wait(store.close());
}
