//! The process dies: at every named point, and at any moment.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;

use coracle::fault::{FAULT_VARIABLE, STORE_POINTS};

use super::golden::golden;
use super::scenario::{acknowledged, child, kept, newest};
use super::support::{copy, open, order, wait};

/// Exactly one complete order is there, with all that was to be kept with it; a container and a
/// workload were recorded together; nothing acknowledged was lost. `first` is the first order that the
/// LMDB file had.
fn check_after_death(dir: &Path, acknowledged: u64, first: u64, what: &str) -> u64 {
    let (store, loaded) = open(dir);
    let newest = newest(&loaded);
    let expected = loaded.current.as_ref().map(|current| kept(current.generation, first));
    let expected: Vec<_> = expected.unwrap_or_default().into_iter().map(order).collect();
    assert_eq!(loaded.kept, expected, "{what}");
    let containers = loaded.histories.values().map(|record| record.failures).max();
    let workloads = loaded.workloads.values().filter_map(|record| record.failed.as_ref());
    let workloads = workloads.map(|failed| failed.generation as u32).max();
    assert_eq!(containers, workloads, "{what}");
    assert!(newest >= acknowledged, "{what}: {newest} < {acknowledged}");
    let current = match (&loaded.current, loaded.candidates.first()) {
        (Some(current), _) => Some(current),
        (None, candidate) => candidate.map(|candidate| &candidate.order),
    };
    match current {
        Some(current) => {
            assert_eq!(current.generation, newest, "{what}");
            assert_eq!(*current, order(newest), "{what}");
        }
        None => assert_eq!(newest, 0, "{what}"),
    }
    wait(store.close());
    if newest > 0 && loaded.current.is_some() {
        assert_eq!(fs::read(dir.join("order.json")).unwrap(), order(newest).envelope, "{what}");
    }
    newest
}

#[test]
fn after_an_abort_at_any_point_one_complete_order_is_there_and_generations_never_fall() {
    for point in STORE_POINTS {
        let dir = tempfile::tempdir().unwrap();
        let (mut lowest, mut first) = (0, 1);
        for count in [1, 2] {
            // Reached only while a store is made, set aside or migrated, which has a test of its own.
            match *point {
                "migrate.before_commit" => continue,
                "set_aside.renamed" if count == 2 => continue,
                "set_aside.renamed" => {
                    assert!(child(dir.path(), 3).output().unwrap().status.success());
                    fs::write(dir.path().join("store.mdb"), vec![1; 40_000]).unwrap();
                    (lowest, first) = (3, 3);
                }
                point if point.starts_with("create.") && count == 2 => continue,
                _ => {}
            }
            let what = format!("{point}:{count}");
            let output = child(dir.path(), 3).env(FAULT_VARIABLE, &what).output().unwrap();
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.signal(), Some(6), "{what} was not reached: {stderr}");
            lowest = lowest.max(acknowledged(&output.stdout));
            lowest = check_after_death(dir.path(), lowest, first, &what);
        }
        let output = child(dir.path(), 2).output().unwrap();
        assert!(output.status.success(), "{point}: {}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(acknowledged(&output.stdout), lowest + 2, "{point}");
        check_after_death(dir.path(), lowest + 2, first, point);
    }
}

#[test]
#[cfg(target_endian = "little")]
fn a_migration_that_was_cut_off_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    copy(&golden(2, usize::BITS), dir.path());
    let before = fs::read(dir.path().join("store.mdb")).unwrap();
    let output =
        child(dir.path(), 1).env(FAULT_VARIABLE, "migrate.before_commit").output().unwrap();
    assert_eq!(output.status.signal(), Some(6));
    assert_eq!(fs::read(dir.path().join("store.mdb")).unwrap(), before);
    let (store, loaded) = open(dir.path());
    assert_eq!(loaded.trouble, None);
    assert_eq!((loaded.current, loaded.previous), (Some(order(2)), Some(order(1))));
    assert_eq!((loaded.histories.len(), loaded.workloads.len()), (3, 0));
    wait(store.close());
    assert!(child(dir.path(), 3).output().unwrap().status.success());
    let (store, loaded) = open(dir.path());
    assert_eq!((loaded.current, loaded.previous), (Some(order(5)), Some(order(4))));
    assert_eq!(loaded.kept, kept(5, 1).into_iter().map(order).collect::<Vec<_>>());
    wait(store.close());
}

#[test]
fn after_a_kill_at_any_moment_one_complete_order_is_there_and_generations_never_fall() {
    let dir = tempfile::tempdir().unwrap();
    let mut lowest = 0;
    for round in 0..12_usize {
        let mut child = child(dir.path(), 1_000_000).stderr(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // Another number of lines each time, from the opening on.
        for line in lines.by_ref().take(4 + round * 3) {
            lowest = lowest.max(acknowledged(line.unwrap().as_bytes()));
        }
        child.kill().unwrap();
        for line in lines.map_while(Result::ok) {
            lowest = lowest.max(acknowledged(line.as_bytes()));
        }
        child.wait().unwrap();
        lowest = check_after_death(dir.path(), lowest, 1, &format!("round {round}"));
    }
    assert!(lowest > 12, "{lowest}");
}
