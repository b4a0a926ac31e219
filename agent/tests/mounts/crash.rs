//! The process dies at every named point; the next one goes on from there.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use coracle::fault::{FAULT_VARIABLE, MOUNTS_POINTS};
use coracle::mounts::Mounts;
use coracle::secrets::Secrets;
use coracle_core::desired::{Mount, MountSource};
use coracle_protocol::GatewayId;

use super::support::{anonymous, config_map, container, mounts, named, replica, run, tree, wanted};

const PLACE: &str = "CORACLE_TEST_MOUNTS_PLACE";

fn on(place: &Path) -> Mounts {
    let state = place.join("state");
    let secrets = Arc::new(Secrets::new(&state, GatewayId::nil()));
    mounts(&state, &place.join("run"), secrets)
}

fn pod(content: &str) -> Vec<Mount> {
    vec![
        anonymous("/tmp/x", "tmp"),
        named("/data", "data"),
        config_map("/live", &[("a", content), (content, "new")], true),
        config_map("/fixed", &[("a", "1")], false),
        wanted("/config.json", MountSource::File(content.into())),
    ]
}

/// The scenario, in a child that is told where to die.
#[test]
fn child_that_dies() {
    let Ok(place) = std::env::var(PLACE) else { return };
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0).unwrap();
    let mounts = on(Path::new(&place));
    let web = replica("web");
    run(mounts.make(&web, &container(), &pod("one"))).unwrap();
    run(mounts.refresh(&web, &[(container(), pod("one"))], "one")).unwrap();
    run(mounts.refresh(&web, &[(container(), pod("two"))], "two")).unwrap();
    run(mounts.remove(&web)).unwrap();
    run(mounts.remove_volume("data", Default::default())).unwrap();
}

#[test]
fn after_a_death_at_any_point_everything_can_be_made_and_removed() {
    for point in MOUNTS_POINTS {
        for count in 1..=2 {
            let place = tempfile::tempdir().unwrap();
            let what = format!("{point}:{count}");
            let output = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "crash::child_that_dies", "--nocapture", "--test-threads=1"])
                .env(PLACE, place.path())
                .env(FAULT_VARIABLE, &what)
                .output()
                .unwrap();
            if count == 2 && output.status.success() {
                continue; // It is passed once only.
            }
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.signal(), Some(6), "{what} was not reached: {stderr}");
            check(place.path(), &what);
        }
    }
}

fn check(place: &Path, what: &str) {
    let mounts = on(place);
    let web = replica("web");
    // Whatever it shows now, a config map is of one version.
    let shown: Vec<_> = tree(place)
        .into_keys()
        .filter(|path| path.contains("/live-") && path.ends_with("/..data"))
        .collect();
    for path in shown {
        let dir = place.join(path);
        let a = fs::read_to_string(dir.join("a")).unwrap();
        assert_eq!(fs::read_to_string(dir.join(&a)).unwrap(), "new", "{what}");
        // What is noted is what is shown.
        let noted = mounts.list().unwrap()[&web].in_place.clone();
        assert!(noted.is_empty() || noted == a, "{what}: {noted} is noted, {a} is there");
    }
    let binds = run(mounts.make(&web, &container(), &pod("three"))).unwrap();
    let read = |at: usize, name: &str| fs::read_to_string(binds[at].source.join(name)).unwrap();
    assert_eq!((read(2, "a"), read(2, "three")), ("three".into(), "new".into()), "{what}");
    assert!(!binds[2].source.join("one").exists(), "{what}");
    assert_eq!(read(3, "a"), "1", "{what}");
    assert_eq!(fs::read_to_string(&binds[4].source).unwrap(), "three", "{what}");
    let mode = |at: usize| {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(&binds[at].source).unwrap().mode() & 0o7777
    };
    assert_eq!((mode(0), mode(1), mode(4)), (0o777, 0o777, 0o444), "{what}");
    assert_eq!(mounts.list().unwrap()[&web].in_place, "", "{what}");
    run(mounts.sweep()).unwrap();
    run(mounts.remove(&web)).unwrap();
    run(mounts.remove_volume("data", Default::default())).unwrap();
    run(mounts.sweep()).unwrap();
    let left: Vec<_> = tree(place).into_keys().collect();
    let expected = [
        "run/",
        "run/pods/",
        "run/pods/boot-id",
        "state/",
        "state/volumes/",
        "state/volumes/anonymous/",
        "state/volumes/named/",
        "state/volumes/used/",
    ];
    assert_eq!(left, expected, "{what}");
}
