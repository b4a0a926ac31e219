//! Start, list, end, restart, stop, remove; and who is left alone.

use std::time::{Duration, Instant};

use coracle::runtime::{Root, Runtime as _, RuntimeError, Surroundings};
use coracle_core::desired::DefinitionHash;
use coracle_core::observed::Task;
use coracle_testbed::image::{Builder, Compression};

use crate::bed::{Bed, NAMESPACE, SOON, alive, kill_process, order, script, stop};
use crate::on_every_containerd;

on_every_containerd!(
    a_container_lives_and_is_restarted,
    stopping_asks_waits_and_kills,
    paused_containers_can_be_stopped,
    others_are_left_alone,
);

async fn a_container_lives_and_is_restarted(bed: Bed) {
    let mut events = bed.follow().await;
    let mut web = order("web", |_| {});
    let pid = bed.start(&web).await;
    assert!(alive(pid));
    let listed = bed.runtime.list().await.unwrap();
    let container = &listed[&web.id];
    assert_eq!(container.replica, web.replica);
    assert_eq!(container.generation, 1);
    assert_eq!(container.definition.as_str(), "first");
    assert_eq!(container.task, Task::Running { pid });

    let second = bed.runtime.start(&web, &bed.root, &Surroundings::default()).await;
    assert!(matches!(second, Err(RuntimeError::Live { pid: live, .. }) if live == pid));
    let removed = bed.runtime.remove(&web.id).await;
    assert!(matches!(removed, Err(RuntimeError::Live { pid: live, .. }) if live == pid));
    assert_eq!(bed.containerd.shims().len(), 1);
    assert!(alive(pid));

    let exec = ["-n", NAMESPACE, "tasks", "exec", "--exec-id", "probe", web.id.as_str(), "true"];
    bed.containerd.ctr(&exec).unwrap();
    kill_process(pid);
    let (ended, exit) = events.exited(&web.id).await;
    assert_eq!((ended, exit.code), (pid, 137), "the end of another process in it is not told");
    assert!(exit.at_nanos > 1_600_000_000_000_000_000);
    assert_eq!(bed.task(&web.id).await, Some(Task::Stopped(exit)), "list and event agree");

    web.generation = 2;
    web.definition = DefinitionHash::from_label("second");
    let again = bed.start(&web).await;
    assert_ne!(again, pid);
    let listed = bed.runtime.list().await.unwrap();
    let container = &listed[&web.id];
    assert_eq!((container.generation, container.definition.as_str()), (2, "second"));
    assert_eq!(container.task, Task::Running { pid: again });
    assert_eq!(bed.snapshots().len(), 1, "the old snapshot is gone");

    kill_process(again);
    events.exited(&web.id).await;
    bed.runtime.remove(&web.id).await.unwrap();
    bed.runtime.remove(&web.id).await.unwrap();
    bed.runtime.stop(&stop(&web, SOON)).await.unwrap();
    bed.assert_empty();
}

async fn stopping_asks_waits_and_kills(bed: Bed) {
    let mut events = bed.follow().await;
    let obliging = "trap 'exit 3' TERM; trap 'exit 4' USR1; trap 'exit 5' USR2; : >/dev/shm/ready
        while :; do sleep 0.02; done";
    let stubborn = "trap '' TERM; : >/dev/shm/ready; while :; do sleep 0.02; done";
    let builder = Builder::busybox(Compression::Plain).unwrap().stop_signal("SIGUSR1");
    let with_signal = bed.import(&builder.build().unwrap(), "registry.example/usr1:1");
    let grace = Duration::from_millis(600);

    let a = script("a", obliging);
    let pid = bed.start(&a).await;
    ready(pid);
    bed.runtime.stop(&stop(&a, SOON)).await.unwrap();
    assert_eq!(events.exited(&a.id).await.1.code, 3);

    let pid = bed
        .runtime
        .start(&a, &Root::Image(with_signal.clone()), &Surroundings::default())
        .await
        .unwrap();
    ready(pid);
    bed.runtime.stop(&stop(&a, SOON)).await.unwrap();
    assert_eq!(events.exited(&a.id).await.1.code, 4, "the image's signal");

    let pid = bed
        .runtime
        .start(&a, &Root::Image(with_signal.clone()), &Surroundings::default())
        .await
        .unwrap();
    ready(pid);
    let mut ordered = stop(&a, SOON);
    ordered.signal = Some("SIGNONSENSE".into());
    let error = bed.runtime.stop(&ordered).await.unwrap_err();
    assert!(matches!(error, RuntimeError::Signal { .. }), "{error:?}");
    ordered.signal = Some("SIGUSR2".into());
    bed.runtime.stop(&ordered).await.unwrap();
    assert_eq!(events.exited(&a.id).await.1.code, 5, "the order's signal");

    let b = script("b", stubborn);
    let pid = bed.start(&b).await;
    ready(pid);
    let before = Instant::now();
    bed.runtime.stop(&stop(&b, grace)).await.unwrap();
    assert!(before.elapsed() >= grace);
    assert_eq!(events.exited(&b.id).await.1.code, 137);
    assert!(!alive(pid));
    bed.assert_empty();
}

/// Waits until the script has set its traps.
fn ready(pid: u32) {
    let file = format!("/proc/{pid}/root/dev/shm/ready");
    coracle_testbed::wait_for("the script", SOON, || std::fs::metadata(&file).ok()).unwrap();
}

async fn paused_containers_can_be_stopped(bed: Bed) {
    let web = order("web", |_| {});
    let pid = bed.start(&web).await;
    bed.containerd.ctr(&["-n", NAMESPACE, "tasks", "pause", web.id.as_str()]).unwrap();
    assert_eq!(bed.task(&web.id).await, Some(Task::Unknown));
    assert!(matches!(
        bed.runtime.start(&web, &bed.root, &Surroundings::default()).await,
        Err(RuntimeError::Live { .. })
    ));
    bed.runtime.stop(&stop(&web, Duration::from_millis(100))).await.unwrap();
    assert!(!alive(pid));
    bed.assert_empty();
}

async fn others_are_left_alone(bed: Bed) {
    let ctr = |args: &[&str]| bed.containerd.ctr(args).unwrap();
    let image = "registry.example/busybox:1";
    let builder = Builder::busybox(Compression::Plain).unwrap();
    bed.containerd.import("elsewhere", &builder.build().unwrap(), image).unwrap();
    let cgroup = |id: &str| format!("{}/others/{id}", bed.connection.cgroup());
    bed.containerd.run("elsewhere", image, "web.0.main", &[]).unwrap();
    bed.containerd.run(NAMESPACE, image, "foreign.0.main", &[]).unwrap();
    let label = "io.coracle/workload=Not-A-Name";
    let odd = cgroup("odd");
    let odd = ["-n", NAMESPACE, "run", "-d", "--label", label, "--cgroup", &odd, image, "odd"];
    ctr(&odd);
    let before = (tasks(&bed, NAMESPACE), tasks(&bed, "elsewhere"));
    assert_eq!((before.0.len(), before.1.len()), (2, 1));

    assert!(bed.runtime.list().await.unwrap().is_empty());
    let foreign = order("foreign", |_| {});
    let errors = [
        bed.runtime.start(&foreign, &bed.root, &Surroundings::default()).await.map(drop),
        bed.runtime.stop(&stop(&foreign, Duration::ZERO)).await,
        bed.runtime.remove(&foreign.id).await,
    ];
    for error in errors {
        assert!(matches!(error, Err(RuntimeError::Foreign { .. })), "{error:?}");
    }
    let web = order("web", |_| {});
    bed.start(&web).await;
    assert_eq!(bed.runtime.list().await.unwrap().len(), 1);
    bed.runtime.stop(&stop(&web, Duration::ZERO)).await.unwrap();
    assert_eq!((tasks(&bed, NAMESPACE), tasks(&bed, "elsewhere")), before);
}

fn tasks(bed: &Bed, namespace: &str) -> Vec<coracle_testbed::containerd::Task> {
    let mut tasks = bed.containerd.tasks(namespace).unwrap();
    tasks.sort_by(|a, b| a.id.cmp(&b.id));
    tasks
}
