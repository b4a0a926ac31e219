//! A place ends with its owner, however the owner ends.

use std::process::{Command, Stdio};
use std::time::Duration;

use coracle_testbed::{Containerd, Image, Place, Version, place, wait_for};

const CHILD: &str = "CORACLE_TESTBED_CHILD";

/// Run by the next test as a process of its own, which is killed; by itself it does nothing.
#[test]
fn owner_that_will_be_killed() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let place = Place::new().unwrap();
    let containerd = Containerd::start(&place, Version::System).unwrap();
    containerd.import("testbed", &Image::busybox().unwrap(), "local/busybox:1").unwrap();
    containerd.run("testbed", "local/busybox:1", "one", &[]).unwrap();
    place.spawn("sleeper", Command::new("sleep").arg("1000")).map(std::mem::forget).unwrap();
    std::fs::write(std::env::var_os(CHILD).unwrap(), place.name()).unwrap();
    std::thread::sleep(Duration::from_secs(600));
}

#[test]
fn the_next_place_sweeps_what_a_killed_owner_left() {
    let mine = Place::new().unwrap();
    let told = mine.run().join("name");
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "owner_that_will_be_killed"]).env(CHILD, &told);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut owner = command.spawn().unwrap();
    let name = wait_for("the owner's place", Duration::from_secs(60), || {
        std::fs::read_to_string(&told).ok().filter(|name| !name.is_empty())
    });
    owner.kill().unwrap();
    owner.wait().unwrap();
    let name = name.unwrap();
    let daemon = "/containerd --config";
    wait_for("the daemon to die with its owner", Duration::from_secs(20), || {
        (!place::leftovers(&name).join("\n").contains(daemon)).then_some(())
    })
    .unwrap();
    let left = place::leftovers(&name);
    let has = |what: &str| left.iter().any(|line| line.contains(what));
    assert!(has("containerd-shim") && has("cgroup") && has("directory"), "{left:?}");

    let next = Place::new().unwrap();
    // Another test's new place may have been at it first.
    wait_for("the sweep", Duration::from_secs(20), || {
        place::leftovers(&name).is_empty().then_some(())
    })
    .unwrap();
    drop(next);
}

#[test]
fn a_living_owner_keeps_its_place() {
    let mine = Place::new().unwrap();
    let swept = place::sweep_dead_owners().unwrap();
    assert!(!swept.iter().any(|name| name == mine.name()));
    assert!(mine.run().is_dir() && mine.data().is_dir());
}

#[test]
fn a_place_ends_its_children_and_cgroups() {
    let mine = Place::new().unwrap();
    let name = mine.name().to_owned();
    let sleeper = mine.spawn("sleeper", Command::new("sleep").arg("1000")).unwrap();
    let pid = sleeper.pid();
    std::mem::forget(sleeper);
    assert!(place::leftovers(&name).iter().any(|line| line.contains(&format!("process {pid}"))));
    assert!(mine.clone().close().is_err(), "still in use");
    mine.close().unwrap();
    assert_eq!(place::leftovers(&name), Vec::<String>::new());
}
