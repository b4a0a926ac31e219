//! The process dies at every named point; the next one goes on from there.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use coracle::config::ArtifactsConfig;
use coracle::fault::{ARTIFACTS_POINTS, FAULT_VARIABLE};

use crate::bed::{Bed, ID, artifacts, id, install, repository, run, tree, wanted};
use crate::runtime::{at, from_artifact, texts};
use crate::zips::{Entry, good, noise, zip};

const PLACE: &str = "CORACLE_TEST_ARTIFACTS_PLACE";
const SERVER: &str = "CORACLE_TEST_ARTIFACTS_SERVER";

fn config(server: &str) -> ArtifactsConfig {
    let repositories = vec![repository(&format!("http://{server}"))];
    ArtifactsConfig { repositories, ..ArtifactsConfig::default() }
}

/// The scenario, in a child that is told where to die.
#[test]
fn child_that_dies() {
    let Ok(place) = std::env::var(PLACE) else { return };
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0).unwrap();
    let artifacts = artifacts(Path::new(&place), &config(&std::env::var(SERVER).unwrap()));
    let dirs = artifacts.runtime_dirs();
    run(async {
        install(&artifacts, &wanted(ID)).await.unwrap();
        let place = at("a.gauge.alice.line");
        let fill = [from_artifact("conf", "etc"), texts("", &[("a", "1"), ("b", "1")])];
        dirs.ensure(&place, (0, 0), &fill).await.unwrap();
        dirs.purge(&place).await.unwrap();
        artifacts.remove(&id(ID)).await.unwrap();
    });
}

#[test]
fn after_a_death_at_any_point_an_artifact_is_whole_or_not_there_and_everything_can_be_made() {
    let bed = Bed::new();
    bed.serve(&good());
    for point in ARTIFACTS_POINTS {
        for count in 1..=2 {
            let place = tempfile::tempdir().unwrap();
            let what = format!("{point}:{count}");
            let output = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "crash::child_that_dies", "--nocapture", "--test-threads=1"])
                .env(PLACE, place.path())
                .env(SERVER, bed.server.address())
                .env(FAULT_VARIABLE, &what)
                .output()
                .unwrap();
            if count == 2 && output.status.success() {
                continue; // It is passed once only.
            }
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.signal(), Some(6), "{what} was not reached: {stderr}");
            check(place.path(), &bed, &what);
        }
    }
}

fn check(place: &Path, bed: &Bed, what: &str) {
    let artifacts = artifacts(place, &config(&bed.server.address()));
    let dirs = artifacts.runtime_dirs();
    let listed = artifacts.list().unwrap();
    let dir = artifacts.directory(&id(ID));
    // What is there is listed, and whole.
    assert_eq!(dir.exists(), listed.contains_key(&id(ID)), "{what}");
    if dir.exists() {
        whole(&dir, what);
    }
    let seen = run(dirs.list()).unwrap();
    // What a service changed before the crash is not ours to change after it.
    let service = dirs.directory(&at("a.gauge.alice.line"));
    for place in seen.keys() {
        fs::write(dirs.directory(place).join("b"), "mine").unwrap();
    }
    run(artifacts.sweep()).unwrap();
    run(async {
        install(&artifacts, &wanted(ID)).await.unwrap();
        let fill = [from_artifact("conf", "etc"), texts("", &[("a", "1"), ("b", "1")])];
        dirs.ensure(&at("a.gauge.alice.line"), (0, 0), &fill).await.unwrap();
    });
    whole(&dir, what);
    assert!(service.join("a").exists() && service.join("conf/gauge.conf").exists(), "{what}");
    let b = fs::read_to_string(service.join("b")).unwrap();
    assert_eq!(b, if seen.is_empty() { "1" } else { "mine" }, "{what}");
    run(async {
        dirs.purge(&at("a.gauge.alice.line")).await.unwrap();
        artifacts.remove(&id(ID)).await.unwrap();
        artifacts.sweep().await.unwrap();
    });
    let left: Vec<_> = tree(place).into_keys().collect();
    let mut expected = vec!["downloads/", "runtime/", "runtime/.filled/", "software/"];
    expected.retain(|path| left.iter().any(|left| left == path));
    assert_eq!(left, expected, "{what}");
}

fn whole(dir: &Path, what: &str) {
    let mut found = tree(dir);
    assert!(found.remove(".coracle-artifact.json").is_some(), "{what}");
    let found: Vec<_> = found.into_keys().collect();
    assert_eq!(found, ["bin/", "bin/gauge", "etc/", "etc/gauge.conf", "gauge"], "{what}");
}

/// Killed at whatever moment, a download goes on, and nothing half is ever installed.
#[test]
fn after_kills_at_any_moment_it_is_installed_in_the_end() {
    let bed = Bed::new();
    let entries: Vec<_> =
        (0..30).map(|n| Entry::stored(&format!("files/{n}"), &noise(100_000))).collect();
    bed.serve(&zip(&entries));
    let place = tempfile::tempdir().unwrap();
    let mut kills = 0;
    for round in 0..200_u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash::child_that_installs", "--test-threads=1"])
            .env(PLACE, place.path())
            .env(SERVER, bed.server.address())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // Later each time, so that every moment has its turn.
        std::thread::sleep(Duration::from_millis(4 * round));
        let ended = child.try_wait().unwrap();
        let artifacts = artifacts(place.path(), &bed.config);
        if let Some(status) = ended {
            assert!(status.success());
            let installed = artifacts.list().unwrap();
            assert_eq!(installed[&id(ID)].entries, 31);
            assert!(kills > 0);
            return;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
        if artifacts.directory(&id(ID)).exists() {
            assert_eq!(artifacts.list().unwrap()[&id(ID)].entries, 31);
            let files = fs::read_dir(artifacts.directory(&id(ID)).join("files")).unwrap();
            assert_eq!(files.count(), 30);
        }
    }
    panic!("not installed after {kills} kills");
}

#[test]
fn child_that_installs() {
    let Ok(place) = std::env::var(PLACE) else { return };
    let artifacts = artifacts(Path::new(&place), &config(&std::env::var(SERVER).unwrap()));
    run(install(&artifacts, &wanted(ID))).unwrap();
}
