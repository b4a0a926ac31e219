//! Named volumes: measured, kept, removed when asked to.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::symlink;

use coracle::mounts::MountError;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use super::support::{Gateway, anonymous, container, named, replica, run, tree};

#[test]
fn volumes_are_listed_with_size_and_users() {
    let gateway = Gateway::new();
    let web = replica("web");
    run(gateway.mounts.make(&web, &container(), &[named("/a", "data")])).unwrap();
    run(gateway.mounts.make(
        &replica("db"),
        &container(),
        &[named("/a", "data"), named("/b", "old")],
    ))
    .unwrap();
    run(gateway.mounts.remove(&replica("db"))).unwrap();
    let data = gateway.volume("data");
    fs::create_dir(data.join("inner")).unwrap();
    fs::write(data.join("inner/a"), vec![1; 1024 * 1024]).unwrap();
    fs::hard_link(data.join("inner/a"), data.join("inner/b")).unwrap();
    symlink("/", data.join("all")).unwrap();
    let users = BTreeMap::from([("old".to_owned(), BTreeSet::from(["batch".to_owned()]))]);
    let volumes = run(gateway.mounts.volumes(users)).unwrap();
    assert_eq!(
        volumes.iter().map(|volume| volume.name.as_str()).collect::<Vec<_>>(),
        ["data", "old"]
    );
    let [data, old] = &volumes[..] else { panic!("{volumes:?}") };
    assert!((1024 * 1024..1024 * 1024 + 64 * 1024).contains(&data.bytes), "{data:?}");
    assert!(data.complete && old.complete && old.bytes < 64 * 1024, "{volumes:?}");
    assert_eq!((data.mounted_by.join(","), data.used_by.len()), ("web.0".into(), 0));
    assert_eq!((old.mounted_by.len(), old.used_by.join(",")), (0, "batch".into()));
    assert!(data.last_used.is_some() && old.last_used.is_some());
}

#[test]
fn a_volume_goes_only_when_nobody_uses_it() {
    let gateway = Gateway::new();
    let web = replica("web");
    run(gateway.mounts.make(&web, &container(), &[named("/a", "data")])).unwrap();
    fs::write(gateway.volume("data").join("x"), "kept").unwrap();
    let remove = |name: &str, users: &[&str]| {
        let users = users.iter().map(|user| (*user).to_owned()).collect();
        run(gateway.mounts.remove_volume(name, users))
    };
    let error = remove("data", &[]).unwrap_err();
    assert_eq!(error.to_string(), "volume data is in use by web.0");
    run(gateway.mounts.remove(&web)).unwrap();
    let error = remove("data", &["web"]).unwrap_err();
    assert_eq!(error.to_string(), "volume data is in use by web");
    assert_eq!(fs::read_to_string(gateway.volume("data").join("x")).unwrap(), "kept");
    remove("data", &[]).unwrap();
    assert!(!tree(gateway.state.path()).keys().any(|path| path.contains("data")));
    for nobody in ["data", "..", "../anonymous", ".new-x", ""] {
        let error = remove(nobody, &[]).unwrap_err();
        assert!(matches!(error, MountError::NoVolume { .. }), "{nobody}: {error}");
    }
    assert!(gateway.state.path().join("volumes/named").exists());
}

#[test]
fn whatever_a_container_left_can_be_removed_and_what_cannot_stops_nobody() {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    let gateway = Gateway::new();
    let web = replica("web");
    let volume =
        || run(gateway.mounts.make(&web, &container(), &[anonymous("/t", "tmp")])).unwrap();
    let place = volume().remove(0).source;
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("kept"), "").unwrap();
    symlink(outside.path(), place.join("link")).unwrap();
    // Deeper than there are descriptors, and than a path can be long.
    let mut dir = nix::dir::Dir::open(&place, OFlag::O_DIRECTORY, Mode::empty()).unwrap();
    for _ in 0..5000 {
        nix::sys::stat::mkdirat(&dir, "d", Mode::S_IRWXU).unwrap();
        dir = nix::dir::Dir::openat(&dir, "d", OFlag::O_DIRECTORY, Mode::empty()).unwrap();
    }
    drop(dir);
    run(gateway.mounts.remove(&web)).unwrap();
    let all = gateway.state.path().join("volumes/anonymous");
    assert_eq!(fs::read_dir(&all).unwrap().count(), 0);
    assert!(outside.path().join("kept").exists());

    // Another file system is not entered; what holds it is hidden, and goes when it can.
    let mut held = Vec::new();
    for round in 0..2 {
        let place = volume().remove(0).source.join("held");
        fs::create_dir(&place).unwrap();
        let none = None::<&str>;
        if mount(Some("tmpfs"), &place, Some("tmpfs"), MsFlags::empty(), none).is_err() {
            return; // No rights to mount.
        }
        fs::write(place.join("kept"), "").unwrap();
        run(gateway.mounts.remove(&web)).unwrap();
        held.push(all.join(format!(".gone-{round}/tmp/held")));
        assert!(!gateway.anonymous(&web).exists());
    }
    assert!(gateway.mounts.list().unwrap().is_empty());
    let swept = run(gateway.mounts.sweep());
    let kept = held.iter().all(|place| place.join("kept").exists());
    let places = fs::read_dir(&all).unwrap().map(|entry| entry.unwrap().path());
    for place in places {
        for path in [place.join("tmp/held"), place.join(".gone-1")] {
            let _ = umount2(&path, MntFlags::MNT_DETACH);
        }
    }
    assert!(kept && swept.is_err(), "{swept:?}");
    run(gateway.mounts.sweep()).unwrap();
    assert_eq!(fs::read_dir(&all).unwrap().count(), 0);
}
