//! Limits as the kernel has them, and what happens at them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use coracle::runtime::{Runtime as _, RuntimeError, RuntimeEvent};
use coracle_core::desired::Limits;
use coracle_core::name::ContainerId;
use coracle_core::observed::{Container, Task};
use coracle_core::plan::Start;
use tokio::time::sleep;

use crate::bed::{Bed, NAMESPACE, SOON, alive, kill_process, order, script, stop};
use crate::on_every_containerd;

on_every_containerd!(
    limits_are_in_force,
    limits_are_changed_while_it_runs,
    what_is_used_is_not_taken,
    a_kill_for_want_of_memory_is_told_before_the_end_that_it_causes,
    a_killed_child_is_told_and_its_container_goes_on,
    nothing_is_told_of_a_container_that_comes_after_a_killed_one,
);

const MEMORY_MIB: u64 = 32;

/// What eats more memory than a container with [`MEMORY_MIB`] may have, and is killed.
const EATER: &str = "dd if=/dev/zero of=/dev/null bs=256M count=1 2>/dev/null";

fn limited(name: &str, what: &str) -> Start {
    let mut start = script(name, what);
    let container = Arc::make_mut(&mut start.container);
    container.limits.memory_mib = Some(MEMORY_MIB);
    start
}

/// A container's cgroup file, on either version: controller, file of version 1, file of version 2.
fn cgroup_file(bed: &Bed, id: &ContainerId, controller: &str, v1: &str, v2: &str) -> PathBuf {
    let root = Path::new("/sys/fs/cgroup");
    let path = format!("{}/{NAMESPACE}/{id}", bed.cgroup());
    let path = path.trim_start_matches('/');
    match root.join("cgroup.controllers").exists() {
        true => root.join(path).join(v2),
        false => root.join(controller).join(path).join(v1),
    }
}

fn read(bed: &Bed, id: &ContainerId, controller: &str, v1: &str, v2: &str) -> String {
    let file = cgroup_file(bed, id, controller, v1, v2);
    let text = fs::read_to_string(&file);
    text.unwrap_or_else(|error| panic!("{}: {error}", file.display())).trim().to_owned()
}

async fn limits_are_in_force(bed: Bed) {
    let limits = Limits { memory_mib: Some(64), cpu_millis: Some(250), pids: Some(20) };
    let web = order("web", |c| c.limits = limits);
    bed.start(&web).await;
    let of = |controller, v1, v2| read(&bed, &web.id, controller, v1, v2);
    assert_eq!(of("memory", "memory.limit_in_bytes", "memory.max"), "67108864");
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    match unified {
        true => {
            assert_eq!(of("memory", "", "memory.swap.max"), "0");
            assert_eq!(of("cpu", "", "cpu.max"), "25000 100000");
        }
        false => {
            assert_eq!(of("memory", "memory.memsw.limit_in_bytes", ""), "67108864");
            assert_eq!(of("cpu", "cpu.cfs_quota_us", ""), "25000");
            assert_eq!(of("cpu", "cpu.cfs_period_us", ""), "100000");
        }
    }
    assert_eq!(of("pids", "pids.max", "pids.max"), "20");
    bed.runtime.stop(&stop(&web, Duration::ZERO)).await.unwrap();

    // As many processes as may be, and no more; the shell that is refused one more ends.
    let fork = "( while true; do sleep 86400 & done ) & exec sleep 86400";
    let mut many = script("many", fork);
    Arc::make_mut(&mut many.container).limits = limits;
    bed.start(&many).await;
    let of = |file| read(&bed, &many.id, "pids", file, file);
    let refused = || (of("pids.events") != "max 0").then_some(());
    coracle_testbed::wait_for("the limit", SOON, refused).unwrap();
    assert!(of("pids.current").parse::<u64>().unwrap() <= 20);
    bed.runtime.stop(&stop(&many, Duration::ZERO)).await.unwrap();

    let free = order("free", |_| {});
    bed.start(&free).await;
    let of = |controller, v1, v2| read(&bed, &free.id, controller, v1, v2);
    assert_eq!(of("pids", "pids.max", "pids.max"), "1024");
    let memory = of("memory", "memory.limit_in_bytes", "memory.max");
    assert!(memory == "max" || memory.parse::<u64>().unwrap() > 1 << 50, "{memory}");
    bed.runtime.stop(&stop(&free, Duration::ZERO)).await.unwrap();
    bed.assert_empty();
}

async fn limits_are_changed_while_it_runs(bed: Bed) {
    let first = Limits { memory_mib: Some(64), cpu_millis: Some(250), pids: Some(20) };
    let web = order("web", |c| c.limits = first);
    let pid = bed.start(&web).await;
    let of = |controller, v1, v2| read(&bed, &web.id, controller, v1, v2);
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let seen = || match unified {
        true => [
            of("memory", "", "memory.max"),
            of("memory", "", "memory.swap.max"),
            of("cpu", "", "cpu.max"),
            of("pids", "", "pids.max"),
        ],
        false => [
            of("memory", "memory.limit_in_bytes", ""),
            of("memory", "memory.memsw.limit_in_bytes", ""),
            of("cpu", "cpu.cfs_quota_us", ""),
            of("pids", "pids.max", ""),
        ],
    };
    let none = match unified {
        true => ["max", "max", "max 100000", "1024"],
        false => ["9223372036854771712", "9223372036854771712", "-1", "1024"],
    };
    let more = match unified {
        true => ["134217728", "0", "50000 100000", "30"],
        false => ["134217728", "134217728", "50000", "30"],
    };
    let less = match unified {
        true => ["33554432", "0", "max 100000", "10"],
        false => ["33554432", "33554432", "-1", "10"],
    };
    let changes = [
        (Limits { memory_mib: Some(128), cpu_millis: Some(500), pids: Some(30) }, more),
        (Limits { memory_mib: Some(32), cpu_millis: None, pids: Some(10) }, less),
        (Limits::default(), none),
        (Limits { memory_mib: Some(32), cpu_millis: None, pids: Some(10) }, less),
        (Limits { memory_mib: Some(32), cpu_millis: None, pids: Some(10) }, less),
    ];
    let before = bed.runtime.list().await.unwrap()[&web.id].clone();
    assert_eq!(*before.limits, *first.label());
    for (limits, expected) in changes {
        bed.runtime.set_limits(&web.id, &limits).await.unwrap();
        assert_eq!(seen(), expected, "{limits:?}");
        let now = bed.runtime.list().await.unwrap()[&web.id].clone();
        // The same process, the same generation; only the label is another.
        assert_eq!(now, Container { limits: limits.label().into(), ..before.clone() });
    }
    assert!(alive(pid));

    bed.runtime.stop(&stop(&web, Duration::ZERO)).await.unwrap();
    let error = bed.runtime.set_limits(&web.id, &first).await.unwrap_err();
    assert_eq!(error.to_string(), "container web.0.main does not run");
    bed.assert_empty();
}

async fn what_is_used_is_not_taken(bed: Bed) {
    let web =
        script("web", "dd if=/dev/zero of=/dev/shm/x bs=1M count=24 2>/dev/null; exec sleep 9");
    let pid = bed.start(&web).await;
    let used =
        || fs::metadata(format!("/proc/{pid}/root/dev/shm/x")).is_ok_and(|f| f.len() >> 20 == 24);
    coracle_testbed::wait_for("memory in use", SOON, || used().then_some(())).unwrap();
    let limits = |mib| Limits { memory_mib: Some(mib), ..Limits::default() };
    let error = bed.runtime.set_limits(&web.id, &limits(16)).await.unwrap_err();
    assert!(
        matches!(error, RuntimeError::MemoryInUse { used_mib: 24..32, limit_mib: 16, .. }),
        "{error:?}"
    );
    assert!(error.to_string().contains("than the 16 MiB that it is to be limited to"), "{error}");
    assert!(alive(pid));
    assert_eq!(&*bed.runtime.list().await.unwrap()[&web.id].limits, "", "nothing was changed");
    bed.runtime.set_limits(&web.id, &limits(40)).await.unwrap();
    assert_eq!(&*bed.runtime.list().await.unwrap()[&web.id].limits, "m40");
    bed.runtime.stop(&stop(&web, Duration::ZERO)).await.unwrap();
    bed.assert_empty();
}

async fn a_kill_for_want_of_memory_is_told_before_the_end_that_it_causes(bed: Bed) {
    let mut events = bed.follow().await;
    let web = limited("web", &format!("exec {EATER}"));
    for _ in 0..3 {
        bed.start(&web).await;
        assert_eq!(events.any().await, RuntimeEvent::OutOfMemory { id: web.id.clone() });
        let (_, exit) = events.exited(&web.id).await;
        assert_eq!(exit.code, 137);
    }
    bed.runtime.remove(&web.id).await.unwrap();
    bed.assert_empty();
}

async fn a_killed_child_is_told_and_its_container_goes_on(bed: Bed) {
    let mut events = bed.follow().await;
    let web = limited("web", &format!("{EATER}; {EATER}; exec sleep 86400"));
    let pid = bed.start(&web).await;
    assert_eq!(events.any().await, RuntimeEvent::OutOfMemory { id: web.id.clone() });
    assert!(alive(pid));
    assert_eq!(bed.task(&web.id).await, Some(Task::Running { pid }));
    // The second child's, if it came by itself.
    sleep(Duration::from_millis(500)).await;
    while let Some(event) = events.waiting() {
        assert_eq!(event, RuntimeEvent::OutOfMemory { id: web.id.clone() });
    }
    kill_process(pid);
    let (_, exit) = events.exited(&web.id).await;
    assert_eq!(exit.code, 137, "a kill by somebody else is not taken for one of the kernel's");
    bed.runtime.remove(&web.id).await.unwrap();
    bed.assert_empty();
}

async fn nothing_is_told_of_a_container_that_comes_after_a_killed_one(bed: Bed) {
    let mut events = bed.follow().await;
    let eater = limited("web", &format!("exec {EATER}"));
    let quiet = limited("web", "exec sleep 86400");
    for _ in 0..3 {
        bed.start(&eater).await;
        assert_eq!(events.any().await, RuntimeEvent::OutOfMemory { id: eater.id.clone() });
        events.exited(&eater.id).await;
        let pid = bed.start(&quiet).await;
        sleep(Duration::from_millis(500)).await;
        kill_process(pid);
        events.exited(&quiet.id).await;
    }
    bed.runtime.remove(&quiet.id).await.unwrap();
    bed.assert_empty();
}
