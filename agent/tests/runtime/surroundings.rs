//! What others make for a container is what it finds.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use coracle::runtime::{Bind, Device, Runtime as _, RuntimeError, Surroundings};
use coracle_core::backoff::Retry;
use coracle_core::desired::Seccomp;
use coracle_protocol::desired::Network;
use prost_types::Any;

use crate::bed::{Bed, SOON, alive, kill_process, order, pod, script, stop};
use crate::confinement::{output, output_in};
use crate::on_every_containerd;

on_every_containerd!(
    containers_of_a_replica_share_a_network,
    files_names_and_output_are_where_they_should_be,
    devices_are_given_as_asked_and_no_others,
    capabilities_and_seccomp_profiles_are_as_asked,
    a_restart_may_change_the_runtimes_options,
);

async fn containers_of_a_replica_share_a_network(bed: Bed) {
    let mut one = order("one", |_| {});
    one.pod = pod(Network::None, (*one.container).clone());
    let first = bed.start(&one).await;
    let netns = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    let around = Surroundings {
        netns: Some(format!("/proc/{first}/ns/net").into()),
        ..Surroundings::default()
    };
    let mut two = order("two", |_| {});
    two.pod = pod(Network::None, (*two.container).clone());
    let second = bed.start_in(&around, &two).await;
    assert_eq!(netns(first), netns(second));
    assert_ne!(netns(first), fs::read_link("/proc/self/ns/net").unwrap());
    for kind in ["ipc", "uts", "pid", "mnt"] {
        let of = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
        assert_ne!(of(first), of(second), "{kind}");
    }
    for start in [one, two] {
        bed.runtime.stop(&stop(&start, Duration::ZERO)).await.unwrap();
    }
    bed.assert_empty();
}

async fn files_names_and_output_are_where_they_should_be(bed: Bed) {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    };
    let hosts = file("hosts", "10.1.2.3 neighbour\n");
    let resolv = file("resolv.conf", "nameserver 10.1.2.4\n");
    let config = file("config.json", "{\"a\": 1}");
    file("data/kept", "old");
    let bind = |source: &str, path: &str, options: &[&str]| Bind {
        source: dir.path().join(source),
        path: path.into(),
        options: options.iter().map(|&option| option.to_owned()).collect(),
    };
    let log = dir.path().join("log");
    let around = Surroundings {
        host_name: "hall-3".into(),
        hosts: Some(hosts),
        resolv_conf: Some(resolv),
        // The one below another one first: it must not be hidden.
        binds: vec![
            bind("config.json", "/data/etc/config.json", &["bind", "ro"]),
            bind("data", "/data", &["bind", "rw"]),
        ],
        env: [("COLOUR".into(), "sea green".into())].into(),
        log: Some(format!("file://{}", log.display())),
        ..Surroundings::default()
    };
    assert!(config.exists());
    // Whole lines only: two pipes lead to one file, and what comes through the other may be between
    // any two pieces.
    let what = "hostname; echo $COLOUR; cat /etc/hosts /etc/resolv.conf; \
        echo \"$(cat /data/kept /data/etc/config.json)\"; echo new >/data/made; \
        { echo x >>/data/etc/config.json || echo read-only; \
        echo x >>/etc/hosts || echo read-only; } 2>/data/refusals; \
        cat /proc/self/mountinfo >/data/mounts; echo to-stderr >&2; echo finished";
    let start = script("web", &format!("{what}; exec sleep 86400"));
    let pid = bed.start_in(&around, &start).await;
    // The file is complete when the end of both is there.
    let said = coracle_testbed::wait_for("the output", SOON, || {
        let said = fs::read_to_string(&log).ok()?;
        (said.contains("to-stderr\n") && said.contains("finished\n")).then_some(said)
    });
    let said = said.unwrap();
    assert!(alive(pid));
    bed.runtime.stop(&stop(&start, Duration::ZERO)).await.unwrap();
    let (errors, said): (Vec<_>, Vec<_>) = said.lines().partition(|line| *line == "to-stderr");
    assert_eq!(said[..4], ["hall-3", "sea green", "10.1.2.3 neighbour", "nameserver 10.1.2.4"]);
    assert_eq!(said[4..], ["old{\"a\": 1}", "read-only", "read-only", "finished"]);
    assert_eq!(errors, ["to-stderr"]);
    let refusals = fs::read_to_string(dir.path().join("data/refusals")).unwrap();
    assert_eq!(refusals.matches("Read-only file system").count(), 2, "{refusals}");
    assert_eq!(fs::read_to_string(dir.path().join("data/made")).unwrap(), "new\n");
    let mounts = fs::read_to_string(dir.path().join("data/mounts")).unwrap();
    let data = mounts.lines().find(|line| line.contains(" /data ")).unwrap();
    assert!(data.contains("nosuid"), "{data}");
    bed.assert_empty();
}

async fn devices_are_given_as_asked_and_no_others(bed: Bed) {
    let device = |path: &str, to: &str, access: &str| Device {
        path: path.into(),
        to: to.into(),
        access: access.into(),
    };
    let around = Surroundings {
        devices: vec![
            device("/dev/fuse", "/dev/mine", "rw"),
            device("/dev/loop-control", "/dev/deep/looker", "r"),
        ],
        ..Surroundings::default()
    };
    // A user who is in no group of the gateway's.
    let web = order("web", |c| c.user = Some("1234".into()));
    let what = "ls -ln /dev/mine | cut -c1-3; : <>/dev/mine && echo opened; \
        : </dev/deep/looker && echo looked; ( : >/dev/deep/looker ) 2>/dev/null || echo no-write";
    let said = output_in(&around, &bed, web, what).await;
    assert_eq!(said, "crw\nopened\nlooked\nno-write\n");
    // The same devices, made by root in a container that was not given them.
    let what = "mknod /tmp/fuse c 10 229 && ( : <>/tmp/fuse ) 2>/dev/null || echo refused";
    assert_eq!(output(&bed, order("web", |_| {}), what).await, "refused\n");

    let gone = Surroundings {
        devices: vec![device("/dev/no-such-device", "/dev/x", "rw")],
        ..Surroundings::default()
    };
    let web = order("web", |_| {});
    let error = bed.runtime.start(&web, &bed.root, &gone).await.unwrap_err();
    assert!(matches!(error, RuntimeError::Device { .. }), "{error}");
    assert!(matches!(error.retry(), Retry::Backoff));
    bed.assert_empty();
}

async fn capabilities_and_seccomp_profiles_are_as_asked(bed: Bed) {
    let status = |said: &str, key: &str| {
        let line = said.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(":\t"));
        line.unwrap().to_owned()
    };
    let show = "cat /proc/self/status";
    let added = |user: Option<&str>| {
        order("web", |c| {
            c.user = user.map(str::to_owned);
            c.capabilities.add = vec!["CAP_SYS_TIME".into()];
            c.capabilities.drop = vec!["ALL".into()];
        })
    };
    for user in [None, Some("1234")] {
        let said = output(&bed, added(user), show).await;
        for set in ["CapEff", "CapPrm", "CapBnd"] {
            assert_eq!(status(&said, set), "0000000002000000", "{set} of {user:?}");
        }
    }
    // The filter lets through what the capability is for. The clock is set to what it shows.
    let set = "date -s \"$(date '+%Y-%m-%d %H:%M:%S')\" >/dev/null && echo set";
    assert_eq!(output(&bed, added(Some("1234")), set).await, "set\n");

    let none = order("web", |c| c.capabilities.drop = vec!["ALL".into()]);
    assert_eq!(status(&output(&bed, none, show).await, "CapEff"), "0000000000000000");

    let free = order("web", |c| c.seccomp = Seccomp::Unconfined);
    let said = output(&bed, free, show).await;
    assert_eq!((status(&said, "Seccomp"), status(&said, "NoNewPrivs")), ("0".into(), "1".into()));

    let dir = tempfile::tempdir().unwrap();
    let profile = dir.path().join("no-mkdir.json");
    let text = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]}"#;
    fs::write(&profile, text).unwrap();
    fs::set_permissions(&profile, fs::Permissions::from_mode(0o600)).unwrap();
    let around = Surroundings { seccomp: Some(profile.clone()), ..Surroundings::default() };
    let named = order("web", |c| c.seccomp = Seccomp::Named("no-mkdir".into()));
    let what = "mkdir /tmp/x; touch /tmp/y && echo touched";
    let said = output_in(&around, &bed, named.clone(), what).await;
    assert!(said.contains("No space left on device") && said.ends_with("touched\n"), "{said}");
    fs::remove_file(&profile).unwrap();
    let error = bed.runtime.start(&named, &bed.root, &around).await.unwrap_err();
    assert!(matches!(error, RuntimeError::Seccomp { .. }), "{error}");
    bed.assert_empty();
}

async fn a_restart_may_change_the_runtimes_options(bed: Bed) {
    let mut events = bed.follow().await;
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("other-runc");
    let marker = dir.path().join("used");
    let text = format!("#!/bin/sh\n: >{}\nexec runc \"$@\"\n", marker.display());
    fs::write(&program, text).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    // Field 6 of containerd.runc.v1.Options: binary_name.
    let name = program.to_str().unwrap();
    let mut value = vec![6 << 3 | 2, u8::try_from(name.len()).unwrap()];
    value.extend(name.as_bytes());
    let other = Surroundings {
        runtime_options: Some(Any { type_url: "containerd.runc.v1.Options".into(), value }),
        ..Surroundings::default()
    };
    let web = order("web", |_| {});
    for (around, used) in [(&Surroundings::default(), false), (&other, true), (&other, true)] {
        let pid = bed.start_in(around, &web).await;
        assert_eq!(marker.exists(), used);
        kill_process(pid);
        events.exited(&web.id).await;
    }
    bed.runtime.remove(&web.id).await.unwrap();
    bed.assert_empty();
}
