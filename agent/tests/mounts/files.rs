//! Making, changing, listing, sweeping and removing, without containers.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use coracle::mounts::MountError;
use coracle_core::backoff::Retry;
use coracle_core::desired::MountSource;
use coracle_core::name::ContainerName;

use super::support::{
    Gateway, SECRET, anonymous, config_map, container, mounts, name, named, replica, run, tree,
    wanted,
};

#[test]
fn everything_is_made_taken_over_and_removed() {
    let gateway = Gateway::new();
    let web = replica("web");
    let all = [
        anonymous("/tmp/x", "tmp"),
        named("/data", "web-data"),
        config_map("/etc/web", &[("a.conf", "1"), ("b.conf", "2")], false),
        config_map("/etc/live", &[("c.conf", "3")], true),
        wanted("/key", MountSource::Secret(name("pw"))),
        wanted("/etc/coracle/config.json", MountSource::File("{}".into())),
        wanted("/host", MountSource::Host("/usr".into())),
    ];
    let binds = run(gateway.mounts.make(&web, &container(), &all)).unwrap();
    let read = |at: usize, name: &str| fs::read_to_string(binds[at].source.join(name)).unwrap();
    assert_eq!((read(2, "a.conf"), read(2, "b.conf")), ("1".into(), "2".into()));
    assert_eq!(read(3, "c.conf"), "3");
    assert_eq!(fs::read_to_string(&binds[4].source).unwrap(), SECRET);
    assert_eq!(fs::read_to_string(&binds[5].source).unwrap(), "{}");
    let options = |at: usize| binds[at].options.join(",");
    assert_eq!(options(0), "bind,rprivate,rw,nosuid,nodev");
    assert_eq!(options(6), "bind,rprivate,rw,nosuid,nodev");
    for at in 2..=5 {
        assert_eq!(options(at), "bind,rprivate,ro,nosuid,nodev,noexec");
    }
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().mode() & 0o7777;
    assert_eq!(mode(&binds[0].source), 0o777);
    assert_eq!(mode(&binds[4].source), 0o444);
    for closed in ["volumes/named", "volumes/anonymous"] {
        assert_eq!(mode(&gateway.state.path().join(closed)), 0o700);
    }
    assert_eq!(mode(&gateway.run.path().join("pods")), 0o700);

    // A second time changes nothing, and what was written to volumes stays.
    fs::write(binds[0].source.join("x"), "kept").unwrap();
    fs::write(binds[1].source.join("x"), "kept").unwrap();
    fs::set_permissions(&binds[1].source, fs::Permissions::from_mode(0o750)).unwrap();
    let before = tree(gateway.run.path());
    assert_eq!(run(gateway.mounts.make(&web, &container(), &all)).unwrap(), binds);
    assert_eq!(tree(gateway.run.path()), before);
    assert_eq!(fs::read_to_string(binds[1].source.join("x")).unwrap(), "kept");
    assert_eq!(mode(&binds[1].source), 0o750);

    // What is no longer wanted goes.
    run(gateway.mounts.make(&web, &container(), &all[1..2])).unwrap();
    assert!(!binds[4].source.exists() && !binds[2].source.exists());

    run(gateway.mounts.remove(&web)).unwrap();
    run(gateway.mounts.remove(&web)).unwrap();
    assert!(!gateway.pod(&web).exists() && !gateway.anonymous(&web).exists());
    assert_eq!(fs::read_to_string(gateway.volume("web-data").join("x")).unwrap(), "kept");
    assert!(gateway.mounts.list().unwrap().is_empty());
}

#[test]
fn what_cannot_be_made_is_refused_with_its_reason() {
    let gateway = Gateway::new();
    let make = |source: MountSource| {
        let web = replica("web");
        let made = run(gateway.mounts.make(&web, &container(), &[wanted("/x", source)]));
        made.unwrap_err()
    };
    let error = make(MountSource::Secret(name("unknown")));
    assert_eq!(error.retry(), Retry::Rarely);
    let error = make(MountSource::Host("/no/such/path".into()));
    assert_eq!(error.to_string(), "host path /no/such/path is not there");
    // A link in the place of a volume is not followed.
    fs::create_dir_all(gateway.volume("x").parent().unwrap()).unwrap();
    symlink("/etc", gateway.volume("evil")).unwrap();
    let error = make(MountSource::Named(name("evil")));
    assert!(matches!(error, MountError::Io { .. }), "{error}");
}

#[test]
fn secrets_never_reach_a_disk() {
    let gateway = Gateway::new();
    let exe = std::env::current_exe().unwrap();
    let disk = tempfile::tempdir_in(exe.parent().unwrap()).unwrap();
    let mounts = mounts(gateway.state.path(), disk.path(), gateway.secrets.clone());
    if mounts.check_memory().is_ok() {
        return; // Everything is in memory here.
    }
    let secret = [wanted("/key", MountSource::Secret(name("pw")))];
    let error = run(mounts.make(&replica("web"), &container(), &secret)).unwrap_err();
    assert!(error.to_string().contains("runtime_dir must be on tmpfs"), "{error}");
    assert!(tree(disk.path()).values().all(|content| !content.contains(SECRET)));
    // Without secrets all is well there.
    run(mounts.make(&replica("web"), &container(), &[config_map("/c", &[("a", "1")], true)]))
        .unwrap();
}

#[test]
fn config_maps_change_in_place_and_the_list_tells() {
    let gateway = Gateway::new();
    let web = replica("web");
    let pod = |content: &str| {
        let list = vec![
            config_map("/live", &[("a", content)], true),
            config_map("/fixed", &[("a", content)], false),
        ];
        vec![(container(), list)]
    };
    let listed = || gateway.mounts.list().unwrap()[&web].in_place.clone();
    let refresh =
        |content: &str| run(gateway.mounts.refresh(&web, &pod(content), content)).unwrap();
    let binds = run(gateway.mounts.make(&web, &container(), &pod("1")[0].1)).unwrap();
    assert_eq!(listed(), "");
    assert!(!refresh("1"));
    assert_eq!(listed(), "1");
    assert!(refresh("2"));
    assert!(!refresh("2"));
    assert_eq!(listed(), "2");
    assert_eq!(fs::read_to_string(binds[0].source.join("a")).unwrap(), "2");
    assert_eq!(fs::read_to_string(binds[1].source.join("a")).unwrap(), "1");
    // Whoever changes it takes the note away first.
    run(gateway.mounts.make(&web, &container(), &pod("3")[0].1)).unwrap();
    assert_eq!(listed(), "");
    // One that was never made is not begun.
    let mut two = pod("3");
    two.push((ContainerName::parse("later").unwrap(), two[0].1.clone()));
    assert!(!run(gateway.mounts.refresh(&web, &two, "3")).unwrap());
    assert_eq!(listed(), "3");
    assert!(!gateway.pod(&web).join("containers/later").exists());
    // What was deleted under a container is not taken for new.
    fs::remove_dir_all(gateway.pod(&web).join("containers").join(container().as_str()).as_path())
        .unwrap();
    fs::create_dir(gateway.pod(&web).join("containers").join(container().as_str())).unwrap();
    let again = || run(gateway.mounts.refresh(&web, &pod("4"), "4")).unwrap_err();
    assert!(matches!(again(), MountError::MapGone { .. }));
    assert_eq!(listed(), "");
    fs::remove_dir_all(gateway.pod(&web)).unwrap();
    assert!(matches!(again(), MountError::MapGone { .. }));
    assert!(gateway.mounts.list().unwrap().is_empty());
}

#[test]
fn what_another_boot_and_crashes_left_is_swept_and_volumes_stay() {
    let gateway = Gateway::new();
    let (web, old) = (replica("web"), replica("old"));
    let all = [
        anonymous("/t", "tmp"),
        named("/d", "data"),
        wanted("/k", MountSource::Secret(name("pw"))),
    ];
    for replica in [&web, &old] {
        run(gateway.mounts.make(replica, &container(), &all)).unwrap();
    }
    let sweep = || run(gateway.mounts.sweep()).unwrap();
    sweep();
    // Nobody knew of which boot that was.
    assert!(!gateway.pod(&web).exists());
    assert!(gateway.anonymous(&web).exists() && gateway.anonymous(&old).exists());
    run(gateway.mounts.make(&web, &container(), &all)).unwrap();
    let pods = gateway.run.path().join("pods");
    let volumes = gateway.state.path().join("volumes");
    let left =
        [pods.join(".gone-x.0"), volumes.join("named/.new-x"), volumes.join("named/.gone-y")];
    left.iter().for_each(|path| fs::create_dir_all(path.join("inner")).unwrap());
    sweep();
    assert!(gateway.pod(&web).exists() && gateway.volume("data").exists());
    assert!(left.iter().all(|path| !path.exists()));
    fs::write(pods.join("boot-id"), "another").unwrap();
    sweep();
    assert!(!gateway.pod(&web).exists());
    assert_eq!(tree(&pods).len(), 1, "{:?}", tree(&pods));
}
