//! Containers see what was made for them, and nothing more.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use coracle::config::Config;
use coracle::mounts::Bind;
use coracle::runtime::{self, Runtime as _, Surroundings};
use coracle::workload_identity::{
    DIR_IN_CONTAINER, Identities, IdentityRequest, SOCKET_IN_CONTAINER,
};
use coracle_core::desired::{Mount, MountSource};
use coracle_core::observed::Task;

use super::bed::{Bed, order, stop};
use super::support::{
    Gateway, SECRET, anonymous, config_map, container, name, named, replica, wanted,
};
use crate::on_every_containerd;

on_every_containerd!(
    every_kind_of_mount_is_seen_as_ordered,
    a_config_map_changes_under_a_running_container,
    a_workload_reaches_its_identity_and_nobody_else_does,
);

pub(crate) fn surroundings(binds: Vec<Bind>) -> Surroundings {
    let binds = binds
        .into_iter()
        .map(|Bind { source, path, options }| runtime::Bind { source, path, options })
        .collect();
    Surroundings { binds, ..Surroundings::default() }
}

async fn every_kind_of_mount_is_seen_as_ordered(bed: Bed) {
    let gateway = Gateway::new();
    let host = tempfile::tempdir_in("/run").unwrap();
    fs::write(host.path().join("from-host"), "host").unwrap();
    let read_only = Mount {
        read_only: true,
        ..wanted("/host", MountSource::Host(host.path().to_str().unwrap().into()))
    };
    let all = [
        named("/data", "web-data"),
        anonymous("/scratch", "scratch"),
        config_map("/etc/web", &[("a.conf", "one"), ("b.conf", "two")], false),
        wanted("/etc/keys/pw", MountSource::Secret(name("pw"))),
        wanted("/etc/coracle/config.json", MountSource::File("{\"x\":1}".into())),
        read_only,
    ];
    let binds = gateway.mounts.make(&replica("web"), &container(), &all).await.unwrap();
    // Every line is a question; as a user that has no rights of its own.
    let script = "exec >/data/out 2>/dev/null; id -u; cat /etc/web/a.conf /etc/web/b.conf; echo; \
        cat /etc/keys/pw; echo; cat /etc/coracle/config.json; echo; cat /host/from-host; echo; \
        echo x >/scratch/x && echo scratch-written; \
        echo x >/etc/web/new || echo map-is-read-only; echo x >/etc/keys/pw || echo secret-is-read-only; \
        echo x >/etc/coracle/config.json || echo file-is-read-only; \
        echo x >/host/new || echo host-is-read-only; \
        grep -c ' /data .*nosuid,nodev' /proc/self/mounts; echo end";
    let start = order("web", |container| {
        container.command = Some(["/bin/sh", "-c", script].map(String::from).into());
        container.user = Some("12345:54321".into());
        container.readonly_root = true;
    });
    bed.start_in(&surroundings(binds), &start).await;
    bed.task_becomes(&start.id, |task| !matches!(task, Task::Running { .. })).await;
    let said = fs::read_to_string(gateway.volume("web-data").join("out")).unwrap();
    let expected = [
        "12345",
        "onetwo",
        SECRET,
        "{\"x\":1}",
        "host",
        "scratch-written",
        "map-is-read-only",
        "secret-is-read-only",
        "file-is-read-only",
        "host-is-read-only",
        "1",
        "end",
    ];
    assert_eq!(said.lines().collect::<Vec<_>>(), expected);
    assert!(gateway.anonymous(&replica("web")).join("scratch/x").exists());
    bed.runtime.stop(&stop(&start, Duration::ZERO)).await.unwrap();
    gateway.mounts.remove(&replica("web")).await.unwrap();
    assert!(!gateway.anonymous(&replica("web")).exists());
    assert!(gateway.volume("web-data").join("out").exists());
    bed.assert_empty();
}

async fn a_config_map_changes_under_a_running_container(bed: Bed) {
    let gateway = Gateway::new();
    let pod = |content: &str| {
        vec![named("/data", "out"), config_map("/etc/web", &[("a", content), ("b", content)], true)]
    };
    let web = replica("web");
    let binds = gateway.mounts.make(&web, &container(), &pod("1")).await.unwrap();
    // Of one directory that it opened, both files are of one version.
    let script = "while :; do cd -P /etc/web/..data; a=$(cat a) && b=$(cat b) && \
        if [ \"$a\" = \"$b\" ]; then echo $a >/data/seen; else echo $a $b >>/data/mix; fi; done";
    let start = order("web", |container| {
        container.command = Some(["/bin/sh", "-c", script].map(String::from).into());
    });
    let pid = bed.start_in(&surroundings(binds), &start).await;
    let seen = |content: &str| {
        let file = gateway.volume("out").join("seen");
        let content = content.to_owned();
        move || (fs::read_to_string(&file).is_ok_and(|text| text.trim() == content)).then_some(())
    };
    coracle_testbed::wait_for("the first version", super::bed::SOON, seen("1")).unwrap();
    for round in 2..=20 {
        let content = round.to_string();
        let pod = [(container(), pod(&content))];
        assert!(gateway.mounts.refresh(&web, &pod, &content).await.unwrap());
        coracle_testbed::wait_for("the next version", super::bed::SOON, seen(&content)).unwrap();
    }
    assert!(!gateway.volume("out").join("mix").exists());
    assert_eq!(bed.task(&start.id).await, Some(Task::Running { pid }));
    bed.runtime.stop(&stop(&start, Duration::ZERO)).await.unwrap();
    bed.assert_empty();
}

/// What a user without rights gets from a socket: the answer's body.
async fn ask(path: PathBuf, user: (u32, u32)) -> std::io::Result<String> {
    let asking = move || {
        nix::unistd::setfsgid(user.1.into());
        nix::unistd::setfsuid(user.0.into());
        let mut stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(super::bed::SOON))?;
        stream.write_all(b"GET /v1/identity HTTP/1.1\r\nhost: x\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text.split_once("\r\n\r\n").unwrap().1.to_owned())
    };
    // A thread of its own: the user of files is a thread's.
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || drop(sender.send(asking())));
    receiver.await.unwrap()
}

async fn a_workload_reaches_its_identity_and_nobody_else_does(bed: Bed) {
    let gateway = Gateway::new();
    let config = Config {
        state_dir: gateway.state.path().to_owned(),
        runtime_dir: gateway.run.path().to_owned(),
        ..Config::default()
    };
    let serving = || Identities::new(&config, gateway.secrets.clone());
    let web = replica("web");
    let request = IdentityRequest { replica: web.clone(), project: None, grants: Vec::new() };
    gateway.mounts.make(&web, &container(), &[]).await.unwrap();
    let identities = serving();
    let dir = identities.serve(&request).unwrap();
    let options = ["bind", "rprivate", "ro", "nosuid", "nodev", "noexec"].map(String::from);
    let bind = Bind { source: dir.clone(), path: DIR_IN_CONTAINER.into(), options: options.into() };
    let start = order("web", |container| container.user = Some("12345:54321".into()));
    let pid = bed.start_in(&surroundings(vec![bind]), &start).await;
    bed.task_becomes(&start.id, |task| task == Task::Running { pid }).await;
    let inside = || PathBuf::from(format!("/proc/{pid}/root{SOCKET_IN_CONTAINER}"));
    let said = ask(inside(), (12345, 54321)).await.unwrap();
    assert!(said.contains("/workload/web/replica/0"), "{said}");
    let error = ask(dir.join("socket"), (12345, 54321)).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
    // The agent is restarted; the container is not.
    drop(identities);
    let again = serving();
    again.serve(&request).unwrap();
    let said = ask(inside(), (12345, 54321)).await.unwrap();
    assert!(said.contains("/workload/web/replica/0"), "{said}");
    bed.runtime.stop(&stop(&start, Duration::ZERO)).await.unwrap();
    again.remove(&web).unwrap();
    gateway.mounts.remove(&web).await.unwrap();
    assert!(!gateway.pod(&web).exists());
    bed.assert_empty();
}
