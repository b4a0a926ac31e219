//! Files of every released version of the records stay readable for ever.

use std::fs;
use std::path::{Path, PathBuf};

use coracle::store::Talk;

use super::support::{
    NONE, container, container_change, copy, open, order, record, talk, talk_changes, wait,
    workload, workload_change, workload_record,
};

/// LMDB's files differ with the size of a word: there are golden ones for both.
pub(crate) fn golden(version: u32, bits: u32) -> PathBuf {
    let name = match bits {
        64 => format!("schema-{version}"),
        _ => format!("schema-{version}-32-bit"),
    };
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/store/golden").join(name)
}

/// The content of every golden directory since version 4; those before know of no talk with the fleet,
/// and those before version 3 end with order 2 and have no records of workloads.
fn fill(dir: &Path) {
    let (store, _) = open(dir);
    wait(async {
        store.accept(order(1), NONE).await.unwrap();
        store.accept(order(2), NONE).await.unwrap();
        store.record((0..3).map(|i| container_change(i, Some(i))).collect()).await.unwrap();
        assert_eq!(store.reserve_sequence("boot", 0).await.unwrap(), 1..1025);
        store.accept(order(3), [1].into()).await.unwrap();
        store.accept(order(4), [1, 2].into()).await.unwrap();
        store.record((0..3).map(|i| workload_change(i, Some(i))).collect()).await.unwrap();
        store.record(talk_changes()).await.unwrap();
        store.close().await;
    });
}

#[test]
#[cfg(target_endian = "little")]
fn a_store_of_every_version_opens_with_everything_in_it() {
    for version in 1..=coracle::store::SCHEMA {
        let source = golden(version, usize::BITS);
        if version == coracle::store::SCHEMA && !source.exists() {
            // Written once, when the version is new; then it is checked in and never changes.
            fill(&source);
            panic!("{} was missing and has been written: check it in", source.display());
        }
        let dir = tempfile::tempdir().unwrap();
        copy(&source, dir.path());
        let (store, loaded) = open(dir.path());
        assert_eq!(loaded.trouble, None);
        let (newest, kept, workloads) =
            if version < 3 { (2, vec![], 0) } else { (4, vec![2, 1], 3) };
        assert_eq!(loaded.current, Some(order(newest)));
        assert_eq!(loaded.previous, Some(order(newest - 1)));
        assert_eq!(loaded.kept, kept.into_iter().map(order).collect::<Vec<_>>());
        assert_eq!(loaded.highest_generation, newest);
        assert_eq!(loaded.histories, (0..3).map(|i| (container(i), record(i))).collect());
        let workloads = (0..workloads).map(|i| (workload(i), workload_record(i))).collect();
        assert_eq!(loaded.workloads, workloads);
        assert_eq!(loaded.talk, if version < 4 { Talk::default() } else { talk() });
        let block = wait(store.reserve_sequence("boot", 0)).unwrap();
        assert_eq!(block.start, 1025);
        wait(store.close());
    }
}

#[test]
#[cfg(target_endian = "little")]
fn a_store_of_the_other_word_size_is_set_aside_and_the_orders_come_from_their_plain_files() {
    let other = if usize::BITS == 64 { 32 } else { 64 };
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path());
    copy(&golden(1, other), dir.path());
    let (store, loaded) = open(dir.path());
    let trouble = loaded.trouble.unwrap();
    assert!(trouble.contains(&format!("it was written by a {other}-bit program")), "{trouble}");
    assert_eq!((loaded.current, loaded.highest_generation), (None, 0));
    let orders: Vec<_> = loaded.candidates.into_iter().map(|candidate| candidate.order).collect();
    assert_eq!(orders, [order(4), order(3)]);
    assert!(loaded.kept.is_empty() && loaded.workloads.is_empty());
    wait(async {
        store.accept(order(4), NONE).await.unwrap();
        store.accept(order(5), NONE).await.unwrap();
        store.close().await;
    });
    let (store, loaded) = open(dir.path());
    assert_eq!((loaded.current, loaded.trouble), (Some(order(5)), None));
    wait(store.close());
    assert!(dir.path().join("store.damaged-1").exists());
}

#[test]
fn a_store_of_a_newer_version_is_set_aside_with_a_clear_word() {
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path());
    write_version(&dir.path().join("store.mdb"), coracle::store::SCHEMA + 1);
    let (store, loaded) = open(dir.path());
    let trouble = loaded.trouble.unwrap();
    let known = coracle::store::SCHEMA;
    let newer = known + 1;
    let said =
        format!("its records are of version {newer}; this agent knows versions up to {known}");
    assert!(trouble.contains(&said), "{trouble}");
    assert_eq!(loaded.candidates[0].order, order(4));
    wait(store.close());
    assert!(fs::metadata(dir.path().join("store.damaged-1")).is_ok());
}

/// Replaces the version in an LMDB file, checksum included: the record is short and stands as it is
/// in the file.
fn write_version(path: &Path, version: u32) {
    let framed = |version: u8| {
        let mut key = b"meta/schema\0".to_vec();
        key.push(version);
        let digest = ring::digest::digest(&ring::digest::SHA256, &key);
        [&b"meta/schema"[..], &digest.as_ref()[..8], &[version]].concat()
    };
    let (old, new) = (framed(coracle::store::SCHEMA as u8), framed(version as u8));
    let mut bytes = fs::read(path).unwrap();
    let mut replaced = 0;
    for at in 0..bytes.len() - old.len() {
        if bytes[at..].starts_with(&old) {
            bytes[at..at + new.len()].copy_from_slice(&new);
            replaced += 1;
        }
    }
    assert!(replaced > 0, "the version was not found in the file");
    fs::write(path, bytes).unwrap();
}
