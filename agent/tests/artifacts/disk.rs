//! The file system is full, or too small.

use std::fs;
use std::path::Path;

use coracle::artifacts::ArtifactError;
use coracle_core::backoff::Retry;
use coracle_testbed::faulty::Fault;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::bed::{Bed, ID, ZIP, artifacts, files, install, pinned, run, tree, wanted};
use crate::zips::{Entry, noise, zip};

/// A small file system in memory, gone with this value.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new(mib: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = format!("size={mib}m,mode=0755");
        mount(Some("tmpfs"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))
            .expect("this test mounts a tmpfs: it needs root");
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if let Err(error) = umount2(self.0.path(), MntFlags::MNT_DETACH) {
            eprintln!("cannot unmount {}: {error}", self.0.path().display());
        }
    }
}

#[test]
fn what_does_not_fit_is_not_begun() {
    let bed = Bed::new();
    let disk = SmallDisk::new(8);
    let artifacts = artifacts(disk.path(), &bed.config);
    let large = zip(&[Entry::stored("noise", &noise(9 << 20))]);
    let digest = bed.serve(&large);
    let error = run(install(&artifacts, &pinned(ID, &digest))).unwrap_err();
    assert!(matches!(error, ArtifactError::NoRoom { .. }), "{error}");
    assert_eq!(error.retry(), Retry::Backoff);
    assert!(files(tree(disk.path())).is_empty());
    // Nor where it is not known before how long it is.
    bed.server.fail_always(ZIP, Fault::Chunked);
    let error = run(install(&artifacts, &pinned(ID, &digest))).unwrap_err();
    assert!(matches!(error, ArtifactError::NoRoom { .. }), "{error}");
    assert!(files(tree(disk.path())).is_empty());
}

#[test]
fn what_is_downloaded_and_does_not_fit_unpacked_waits_for_room() {
    let bed = Bed::new();
    let disk = SmallDisk::new(8);
    let artifacts = artifacts(disk.path(), &bed.config);
    let mut content = noise(1 << 20);
    content.resize(5 << 20, 0);
    bed.serve(&zip(&[Entry::file("half", &content)]));
    let filler = disk.path().join("filler");
    fs::write(&filler, noise(3 << 20)).unwrap();
    let error = run(install(&artifacts, &wanted(ID))).unwrap_err();
    assert!(matches!(error, ArtifactError::NoRoom { .. }), "{error}");
    assert!(error.to_string().contains("bytes are needed"), "{error}");
    let left = files(tree(disk.path()));
    assert_eq!(left.len(), 3, "the ZIP with its note, and not more: {left:?}");
    let asked = bed.server.count(ZIP);
    fs::remove_file(&filler).unwrap();
    run(install(&artifacts, &wanted(ID))).unwrap();
    assert_eq!(bed.server.count(ZIP), asked + 1, "only the digest was asked for again");
}

#[test]
fn idle_downloads_make_room() {
    let bed = Bed::new();
    let disk = SmallDisk::new(8);
    let artifacts = artifacts(disk.path(), &bed.config);
    let large = zip(&[Entry::stored("noise", &noise(3 << 20))]);
    bed.serve(&large);
    let digest = bed.serve_at("/org/example/meter/1/meter-1.zip", &large);
    bed.server.fail(ZIP, 6, Fault::CutAfter(400_000));
    run(install(&artifacts, &pinned(ID, &digest))).unwrap_err();
    assert_eq!(files(tree(disk.path())).len(), 2);
    run(install(&artifacts, &pinned("org.example:meter:1", &digest))).unwrap();
    assert_eq!(files(tree(disk.path())).len(), 2, "{:?}", tree(disk.path()));
}
