//! What is kept on disk is damaged, or cannot be kept.

use std::fs::OpenOptions;
use std::process::Command;
use std::time::Duration;

use coracle_hil::{Gateway, Options};
use coracle_protocol::reported::ConditionStatus;
use coracle_testbed::process::run;

use super::{SOON, gateway_running, order, pids, sleepers};

#[test]
fn a_truncated_store_is_set_aside_and_the_order_taken_from_the_file_beside_it() {
    let (mut gateway, before) = gateway_running(&["one"]);
    gateway.stop_agent().unwrap();
    let store = gateway.state_dir.join("store.mdb");
    let length = std::fs::metadata(&store).unwrap().len();
    OpenOptions::new().write(true).open(&store).unwrap().set_len(length / 2).unwrap();
    gateway.broker.kill().unwrap();
    gateway.start_agent().unwrap();
    assert_eq!(pids(&mut gateway, 1, &["one"]), before, "without the broker, nothing restarted");
    let kinds = gateway.events().unwrap();
    assert!(kinds.iter().any(|event| event.kind == "orders-restored"), "{kinds:?}");
    let names: Vec<_> = std::fs::read_dir(&gateway.state_dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(names.iter().any(|name| name.starts_with("store.damaged-")), "{names:?}");

    gateway.broker.start_again().unwrap();
    let workloads = sleepers(&gateway, &["one"]);
    order(&gateway, 2, workloads);
    assert_eq!(pids(&mut gateway, 2, &["one"]), before, "the new store takes orders");
}

#[test]
fn on_a_full_disk_an_order_is_refused_as_not_stored_and_taken_when_there_is_room() {
    let mut gateway = Gateway::prepare(Options::default()).unwrap();
    let disk = gateway.place().run().join("disk");
    std::fs::create_dir(&disk).unwrap();
    let mut mount = Command::new("mount");
    mount.args(["-t", "tmpfs", "-o", "size=2m", "coracle-test"]).arg(&disk);
    run(&mut mount, Duration::from_secs(10)).unwrap();
    // The agent lives in containerd's mount namespace, which hears of later mounts only where
    // the machine shares them: it is told in its own as well.
    let mut inside = gateway.containerd.inside("mountpoint");
    if run(inside.arg("-q").arg(&disk), Duration::from_secs(10)).is_err() {
        let mut mount = gateway.containerd.inside("mount");
        mount.args(["-t", "tmpfs", "-o", "size=2m", "coracle-test"]).arg(&disk);
        run(&mut mount, Duration::from_secs(10)).unwrap();
    }
    let seen = gateway.place().run().join("disk/state");
    gateway.state_dir = seen;
    gateway.start_agent().unwrap();
    let one = sleepers(&gateway, &["one"]);
    order(&gateway, 1, one.clone());
    let before = pids(&mut gateway, 1, &["one"]);

    let ballast = format!("dd if=/dev/zero of={}/ballast bs=4k 2>/dev/null; :", disk.display());
    let mut fill = gateway.containerd.inside("sh");
    run(fill.args(["-c", &ballast]), Duration::from_secs(20)).unwrap();
    // Large, so that it does not fit into what the store has spare.
    let mut two = sleepers(&gateway, &["one", "two"]);
    for n in 0..8 {
        two[1].containers[0].env.insert(format!("PADDING_{n}"), "x".repeat(8000));
    }
    order(&gateway, 2, two);
    let status = gateway
        .wait("the refusal", SOON, |status| {
            status.refused_with("not-stored").map(|_| status.clone())
        })
        .unwrap();
    assert_eq!(status.reported.generation_applied, 1);
    assert_eq!(status.condition("store").unwrap().status, ConditionStatus::False);
    assert_eq!(status.pid("one"), Some(before[0]));

    let mut free = gateway.containerd.inside("rm");
    run(free.arg(disk.join("ballast")), Duration::from_secs(10)).unwrap();
    gateway
        .wait("the order to be stored", Duration::from_secs(60), |status| {
            (status.reported.generation_applied == 2).then_some(())
        })
        .unwrap();
    assert_eq!(pids(&mut gateway, 2, &["one"]), before);
}
