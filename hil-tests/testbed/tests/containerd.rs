//! Every containerd runs containers, outlives its own death and leaves nothing behind.

#![allow(clippy::unwrap_used, reason = "clippy.toml allows it inside #[test] functions only")]

use std::time::Duration;

use coracle_testbed::image::{Builder, Compression, Layer, Platform};
use coracle_testbed::process::is_alive;
use coracle_testbed::{Containerd, Image, Index, Place, Registry, Version, place, wait_for};

const NAMESPACE: &str = "testbed";
const LIMIT: Duration = Duration::from_secs(20);

fn life_of(version: Version, expected: &str) {
    let place = Place::new().unwrap();
    let name = place.name().to_owned();
    let mut containerd = Containerd::start(&place, version).unwrap();
    assert!(containerd.version().unwrap().contains(expected), "{:?}", containerd.version());

    containerd.import(NAMESPACE, &Image::busybox().unwrap(), "local/busybox:1").unwrap();
    assert_eq!(containerd.images(NAMESPACE).unwrap(), ["local/busybox:1"]);
    containerd.run(NAMESPACE, "local/busybox:1", "one", &[]).unwrap();
    containerd.run(NAMESPACE, "local/busybox:1", "two", &["sleep", "1000"]).unwrap();
    let tasks = containerd.tasks(NAMESPACE).unwrap();
    assert_eq!(tasks.len(), 2, "{tasks:?}");
    assert!(tasks.iter().all(|task| task.status == "RUNNING" && is_alive(task.pid)), "{tasks:?}");
    assert_eq!(containerd.shims().len(), 2);

    containerd.kill().unwrap();
    assert!(tasks.iter().all(|task| is_alive(task.pid)));
    containerd.start_again().unwrap();
    assert_eq!(containerd.tasks(NAMESPACE).unwrap(), tasks, "adopted after SIGKILL");

    // One shim dies with its container left alive: the hardest to find.
    let shim = containerd.shims()[0];
    containerd.kill_shim(shim).unwrap();
    wait_for("containerd to notice", LIMIT, || (containerd.shims().len() == 1).then_some(()))
        .unwrap();

    drop(containerd);
    // The place's own cgroup, empty by now, stays for others until the place ends.
    let contents = place.contents();
    assert!(contents.iter().all(|line| line.starts_with("cgroup ")), "{contents:?}");
    assert!(!tasks.iter().any(|task| is_alive(task.pid)), "containers ended");
    place.close().unwrap();
    assert_eq!(place::leftovers(&name), Vec::<String>::new());
}

#[test]
fn containerd_1_6_lives_and_leaves_nothing() {
    life_of(Version::V1_6, "1.6.");
}

#[test]
fn containerd_1_7_lives_and_leaves_nothing() {
    life_of(Version::V1_7, "1.7.");
}

#[test]
fn containerd_2_1_lives_and_leaves_nothing() {
    life_of(Version::V2_1, " 2.");
}

#[test]
fn equal_names_in_two_containerds_do_not_meet() {
    let place = Place::new().unwrap();
    let beds = [Version::System, Version::System].map(|v| Containerd::start(&place, v).unwrap());
    for containerd in &beds {
        containerd.import(NAMESPACE, &Image::busybox().unwrap(), "local/busybox:1").unwrap();
        let cgroup = format!("{}/{}", place.cgroup(), containerd.address().display());
        let args = ["--namespace", NAMESPACE, "run", "--detach", "--cgroup", &cgroup];
        containerd.ctr(&[&args[..], &["local/busybox:1", "same"]].concat()).unwrap();
    }
    let [first, second] = beds;
    drop(first);
    assert_eq!(second.tasks(NAMESPACE).unwrap().len(), 1);
    assert!(is_alive(second.tasks(NAMESPACE).unwrap()[0].pid));
}

#[test]
fn every_kind_of_layer_unpacks_everywhere() {
    let lower = Layer::busybox().unwrap().file("/gone", 0o644, b"x").file("/d/old", 0o644, b"x");
    let upper = Layer::new().whiteout("/gone").opaque("/d").file("/d/new", 0o644, b"y");
    let script = "test ! -e /gone && test ! -e /d/old && test -e /d/new && exec id -un";
    for compression in [Compression::Gzip, Compression::Zstd, Compression::Plain] {
        let image = Builder::new()
            .layer(lower.clone(), compression)
            .layer(upper.clone(), compression)
            .env(&["PATH=/bin"])
            .user("keeper")
            .cmd(&["sh", "-c", script])
            .build()
            .unwrap();
        for version in Version::ALL {
            let place = Place::new().unwrap();
            let registry = Registry::start(&place).unwrap();
            let other = Builder::busybox(compression).unwrap().platform(Platform::linux("s390x"));
            let index = Index::new(vec![other.build().unwrap(), image.clone()]);
            let digest = registry.push(&index, "kinds", "1").unwrap();
            let containerd = Containerd::start(&place, version).unwrap();
            let reference = registry.pinned("kinds", &digest);
            pull(&containerd, &reference);
            let cgroup = format!("{}/kinds", place.cgroup());
            let args = ["--namespace", NAMESPACE, "run", "--rm", "--cgroup", &cgroup];
            let said = containerd.ctr(&[&args[..], &[&reference, "kinds"]].concat()).unwrap();
            assert_eq!(said, "keeper\n", "{version:?} {compression:?}");
        }
    }
}

fn pull(containerd: &Containerd, reference: &str) {
    let args = ["--namespace", NAMESPACE, "images", "pull", "--plain-http", reference];
    containerd.ctr(&args).unwrap();
}

#[test]
fn the_web_server_image_serves_its_page() {
    let place = Place::new().unwrap();
    let registry = Registry::start(&place).unwrap();
    let image = Image::lighttpd().unwrap();
    assert!(image.layers.len() >= 2);
    registry.push(&image, "web/lighttpd", "1").unwrap();
    let containerd = Containerd::start(&place, Version::System).unwrap();
    let reference = registry.reference("web/lighttpd", "1");
    pull(&containerd, &reference);
    let port = coracle_testbed::free_port().unwrap();
    let cgroup = format!("{}/web", place.cgroup());
    let environment = format!("PORT={port}");
    let args = ["--namespace", NAMESPACE, "run", "--detach", "--net-host", "--cgroup", &cgroup];
    containerd.ctr(&[&args[..], &["--env", &environment, &reference, "web"]].concat()).unwrap();
    let url = format!("http://127.0.0.1:{port}/");
    let page = wait_for("the page", LIMIT, || coracle_testbed::http::get(&url).ok()).unwrap();
    assert_eq!((page.status, page.text().as_str()), (200, "Hello from Coracle (version 1)\n"));
    let pid = containerd.tasks(NAMESPACE).unwrap()[0].pid;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains("Uid:\t33\t33"), "{status}");
}

#[test]
fn the_broker_and_the_tools_of_the_images_run() {
    let place = Place::new().unwrap();
    let containerd = Containerd::start(&place, Version::System).unwrap();
    for (name, image, program) in [
        ("mosquitto", Builder::mosquitto().unwrap(), &["/usr/sbin/mosquitto", "-h"][..]),
        ("clients", Builder::mosquitto_clients().unwrap(), &["mosquitto_sub", "--help"]),
        ("curl", Builder::curl().unwrap(), &["curl", "--version"]),
    ] {
        containerd.import("test", &image.build().unwrap(), name).unwrap();
        let mut args = vec!["--namespace", "test", "run", "--rm", name, name];
        args.extend(program);
        // It says how it is used; whether that is a success, each sees in its own way.
        let said = containerd.ctr(&args).unwrap_or_else(|error| format!("{error:#}"));
        assert!(said.contains(program[0].rsplit('/').next().unwrap()), "{name}: {said}");
        assert!(!said.contains("error while loading"), "{name}: {said}");
    }
}
