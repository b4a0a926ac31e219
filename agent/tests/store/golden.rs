//! Files of every released version of the records stay readable for ever.

use std::fs;
use std::path::{Path, PathBuf};

use super::support::{copy, open, order, record, replica, wait};

fn golden(version: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/store/golden/schema-{version}"))
}

/// The content of every golden directory.
fn fill(dir: &Path) {
    let (store, _) = open(dir);
    wait(async {
        store.accept(order(1)).await.unwrap();
        store.accept(order(2)).await.unwrap();
        store.record((0..3).map(|i| (replica(i), Some(record(i)))).collect()).await.unwrap();
        assert_eq!(store.reserve_sequence("boot", 0).await.unwrap(), 1..1025);
        store.close().await;
    });
}

/// LMDB's files differ with the size of a word and of a page; the golden ones are those of 64-bit
/// gateways.
#[test]
#[cfg(all(target_pointer_width = "64", target_endian = "little"))]
fn a_store_of_every_version_opens_with_everything_in_it() {
    for version in 1..=coracle::store::SCHEMA {
        let source = golden(version);
        if version == coracle::store::SCHEMA && !source.exists() {
            // Written once, when the version is new; then it is checked in and never changes.
            fill(&source);
            panic!("{} was missing and has been written: check it in", source.display());
        }
        let dir = tempfile::tempdir().unwrap();
        copy(&source, dir.path());
        let (store, loaded) = open(dir.path());
        assert_eq!(loaded.trouble, None);
        assert_eq!((loaded.current, loaded.previous), (Some(order(2)), Some(order(1))));
        assert_eq!(loaded.highest_generation, 2);
        assert_eq!(loaded.histories, (0..3).map(|i| (replica(i), record(i))).collect());
        let block = wait(store.reserve_sequence("boot", 0)).unwrap();
        assert_eq!(block.start, 1025);
        wait(store.close());
    }
}

#[test]
fn a_store_of_a_newer_version_is_set_aside_with_a_clear_word() {
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path());
    write_version(&dir.path().join("store.mdb"), coracle::store::SCHEMA + 1);
    let (store, loaded) = open(dir.path());
    let trouble = loaded.trouble.unwrap();
    assert!(
        trouble.contains("its records are of version 2; this agent knows versions up to 1"),
        "{trouble}"
    );
    assert_eq!(loaded.candidates[0].order, order(2));
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
