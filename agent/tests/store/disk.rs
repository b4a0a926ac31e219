//! The file system is full or read-only.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use coracle::store::{Origin, StoreError, StoredOrder};
use coracle_core::backoff::Retry;
use coracle_protocol::limits::MAX_ENVELOPE_BYTES;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::support::{NONE, container_change, open, order, until, wait};

/// A small file system in memory, gone with this value.
struct SmallDisk {
    dir: tempfile::TempDir,
}

impl SmallDisk {
    fn new(kib: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = format!("size={kib}k,mode=0700");
        mount(Some("tmpfs"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))
            .expect("this test mounts a tmpfs: it needs root");
        Self { dir }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn remount(&self, flags: MsFlags) {
        let none = None::<&str>;
        // A child that another test has just forked holds our files for a moment, until it executes.
        until("the file system is not busy", || {
            mount(none, self.path(), none, MsFlags::MS_REMOUNT | flags, none).is_ok()
        });
    }

    /// Takes all space but about `spare` bytes.
    fn fill(&self, spare: u64) -> PathBuf {
        let path = self.path().join("filler");
        let mut file = OpenOptions::new().create(true).append(true).open(&path).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
        let size = file.metadata().unwrap().len();
        file.set_len(size.saturating_sub(spare)).unwrap();
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if let Err(error) = umount2(self.dir.path(), MntFlags::MNT_DETACH) {
            eprintln!("cannot unmount {}: {error}", self.dir.path().display());
        }
    }
}

fn disk_full(error: &StoreError) -> bool {
    matches!(error, StoreError::DiskFull { .. }) && matches!(error.retry(), Retry::After(_))
}

#[test]
fn on_a_full_disk_orders_are_refused_clearly_and_accepted_once_there_is_space() {
    let disk = SmallDisk::new(1024);
    let dir = disk.path().join("state");
    let (store, _) = open(&dir);
    wait(async {
        for generation in 1..=3 {
            store.accept(order(generation), NONE).await.unwrap();
        }
        let filler = disk.fill(0);
        // Larger than what LMDB can take from its own free pages.
        let large = StoredOrder::new(4, vec![b'x'; 120_000]);
        for _ in 0..3 {
            let error = store.accept(large.clone(), NONE).await.unwrap_err();
            assert!(disk_full(&error), "{}", error.chain());
        }
        let many: Vec<_> = (0..2000).map(|i| container_change(i, Some(i))).collect();
        let error = store.record(many.clone()).await.unwrap_err();
        assert!(disk_full(&error), "{}", error.chain());
        fs::remove_file(filler).unwrap();
        store.record(many).await.unwrap();
        store.accept(large.clone(), NONE).await.unwrap();
        store.close().await;
    });
    let (store, loaded) = open(&dir);
    assert_eq!(loaded.trouble, None);
    assert_eq!(loaded.current.unwrap().generation, 4);
    assert_eq!(loaded.previous, Some(order(3)));
    assert_eq!(loaded.histories.len(), 2000);
    wait(store.close());
}

/// At each amount of space left an order, larger ones with more to be kept beside it, is stored with
/// all of that or refused with nothing changed. Says how many were stored.
fn accept_at_every_amount_of_space(
    disk: &SmallDisk,
    spares: impl Iterator<Item = u64>,
    order: impl Fn(u64) -> StoredOrder,
    keep: impl Fn(u64) -> BTreeSet<u64>,
) -> u64 {
    let dir = disk.path().join("state");
    let (mut newest, mut kept) = (0, Vec::new());
    let (store, _) = open(&dir);
    wait(store.close());
    for spare in spares {
        let filler = disk.fill(spare);
        let (store, loaded) = open(&dir);
        assert_eq!(loaded.highest_generation, newest, "{spare}");
        assert_eq!(loaded.current, (newest > 0).then(|| order(newest)), "{spare}");
        match wait(store.accept(order(newest + 1), keep(newest + 1))) {
            Ok(()) => {
                newest += 1;
                kept = keep(newest).into_iter().rev().filter(|older| older + 1 < newest).collect();
                kept.truncate(8);
            }
            Err(error) => assert!(disk_full(&error), "{spare}: {}", error.chain()),
        }
        wait(store.close());
        fs::remove_file(filler).unwrap();
        let (store, loaded) = open(&dir);
        assert_eq!(loaded.highest_generation, newest, "{spare}");
        assert_eq!(loaded.previous, (newest > 1).then(|| order(newest - 1)), "{spare}");
        let found: Vec<_> = loaded.kept.iter().map(|order| order.generation).collect();
        assert_eq!(found, kept, "{spare}");
        assert!(loaded.kept.iter().all(|kept| *kept == order(kept.generation)), "{spare}");
        assert_eq!(loaded.trouble, None);
        wait(store.close());
        let file = fs::read(dir.join("order.json")).ok();
        assert_eq!(file, (newest > 0).then(|| order(newest).envelope), "{spare}");
    }
    newest
}

#[test]
fn at_every_amount_of_space_left_an_order_is_either_stored_whole_or_refused() {
    let disk = SmallDisk::new(512);
    let spares = (0..160).map(|pages| pages * 4096);
    let stored = accept_at_every_amount_of_space(&disk, spares, order, |_| NONE);
    assert!((20..160).contains(&stored), "{stored}");
}

#[test]
fn the_same_with_as_many_kept_orders_of_the_largest_size_as_there_may_be() {
    let disk = SmallDisk::new(36 * 1024);
    let largest = |generation: u64| {
        let mut envelope = order(generation).envelope;
        envelope.resize(MAX_ENVELOPE_BYTES, b' ');
        StoredOrder::new(generation, envelope)
    };
    let spares = (0..12).map(|step| step * 270 * 4096);
    let all = |generation| (1..generation).collect();
    let stored = accept_at_every_amount_of_space(&disk, spares, largest, all);
    assert!((5..12).contains(&stored), "{stored}");
}

#[test]
fn a_full_disk_at_the_first_start_is_a_clear_condition_and_heals() {
    let disk = SmallDisk::new(256);
    let dir = disk.path().join("state");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("order.json"), order(5).envelope).unwrap();
    let filler = disk.fill(0);
    let (store, loaded) = open(&dir);
    let trouble = loaded.unwritable.unwrap();
    assert!(trouble.contains("no space left"), "{trouble}");
    assert_eq!(loaded.candidates[0].order, order(5));
    wait(async {
        assert!(disk_full(&store.accept(order(5), NONE).await.unwrap_err()));
        fs::remove_file(filler).unwrap();
        store.accept(order(5), NONE).await.unwrap();
        store.accept(order(6), NONE).await.unwrap();
        store.close().await;
    });
    let (store, loaded) = open(&dir);
    assert_eq!((loaded.current, loaded.trouble), (Some(order(6)), None));
    wait(store.close());
}

#[test]
fn on_a_read_only_file_system_everything_is_read_and_nothing_accepted() {
    let disk = SmallDisk::new(1024);
    let dir = disk.path().join("state");
    let (store, _) = open(&dir);
    wait(async {
        store.accept(order(1), NONE).await.unwrap();
        store.accept(order(2), NONE).await.unwrap();
        store.record(vec![container_change(1, Some(1))]).await.unwrap();
        store.close().await;
    });
    disk.remount(MsFlags::MS_RDONLY);
    let (store, loaded) = open(&dir);
    let trouble = loaded.unwritable.unwrap();
    assert!(trouble.contains("cannot write the state"), "{trouble}");
    assert_eq!((loaded.current, loaded.previous), (Some(order(2)), Some(order(1))));
    assert_eq!((loaded.highest_generation, loaded.histories.len()), (2, 1));
    wait(async {
        let error = store.accept(order(3), NONE).await.unwrap_err();
        assert!(matches!(error, StoreError::NotWritable { .. }), "{}", error.chain());
        disk.remount(MsFlags::empty());
        store.accept(order(3), NONE).await.unwrap();
        store.close().await;
    });
    let (store, loaded) = open(&dir);
    assert_eq!((loaded.current, loaded.trouble), (Some(order(3)), None));
    wait(store.close());
}

#[test]
fn a_damaged_store_on_a_read_only_file_system_leaves_the_order_file() {
    let disk = SmallDisk::new(1024);
    let dir = disk.path().join("state");
    let (store, _) = open(&dir);
    wait(async {
        store.accept(order(1), NONE).await.unwrap();
        store.close().await;
    });
    fs::write(dir.join("store.mdb"), vec![0; 9000]).unwrap();
    disk.remount(MsFlags::MS_RDONLY);
    let (store, loaded) = open(&dir);
    assert!(loaded.current.is_none());
    let candidate = &loaded.candidates[0];
    assert_eq!((candidate.origin, &candidate.order), (Origin::OrderFile, &order(1)));
    wait(store.close());
}
