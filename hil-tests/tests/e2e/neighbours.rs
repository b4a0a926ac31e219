//! What is not ours.

use coracle_hil::gateway::NAMESPACE;
use coracle_testbed::{Containerd, Image};

use super::{gateway_running, order, tasks};

const OTHER: &str = "other";

fn foreign_tasks(containerd: &Containerd) -> Vec<(String, i32)> {
    let of = |namespace| containerd.tasks(namespace).unwrap();
    let foreign = of(OTHER).into_iter().chain(of(NAMESPACE));
    let foreign = foreign.filter(|task| task.id.contains("foreign") || task.id == "one.0.main");
    foreign.map(|task| (task.id, task.pid)).collect()
}

#[test]
fn containers_without_our_label_and_other_namespaces_are_never_touched() {
    let (mut gateway, _) = gateway_running(&["one"]);
    let image = Image::busybox().unwrap();
    for namespace in [NAMESPACE, OTHER] {
        gateway.containerd.import(namespace, &image, "local/foreign:1").unwrap();
        gateway.containerd.run(namespace, "local/foreign:1", "foreign", &[]).unwrap();
    }
    // As one of ours would be called, next door.
    gateway.containerd.run(OTHER, "local/foreign:1", "one.0.main", &[]).unwrap();
    let ours = |id: &str, pid: i32, all: &[(String, i32)]| all.contains(&(id.to_owned(), pid));
    let before: Vec<_> = foreign_tasks(&gateway.containerd);
    let one = gateway.status().unwrap().pid("one").unwrap();
    assert!(ours("one.0.main", one, &before), "{before:?}");

    order(&mut gateway, 2, Vec::new());
    gateway.wait_converged(2).unwrap();
    gateway.kill_agent().unwrap();
    gateway.start_agent().unwrap();
    gateway.wait_converged(2).unwrap();

    let expected: Vec<_> =
        before.into_iter().filter(|(id, pid)| (id.as_str(), *pid) != ("one.0.main", one)).collect();
    assert_eq!(foreign_tasks(&gateway.containerd), expected);
    assert_eq!(tasks(&gateway).len(), 1, "ours is gone, the foreign one is there");
    for namespace in [NAMESPACE, OTHER] {
        let images = gateway.containerd.images(namespace).unwrap();
        assert!(images.contains(&"local/foreign:1".to_owned()), "{namespace}: {images:?}");
    }
}
