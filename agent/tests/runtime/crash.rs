//! containerd dies and comes back; the agent dies at any instant.

use std::time::Duration;

use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::snapshots::MountsRequest;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::{CreateRequest, CreateTaskRequest, DeleteRequest};
use coracle::runtime::{ContainerdRuntime, Runtime as _, RuntimeError, Surroundings};
use coracle_core::observed::Task;
use coracle_core::plan::Start;
use tokio::time::{sleep, timeout};

use crate::bed::{Bed, NAMESPACE, SOON, alive, kill_process, order, stop};
use crate::on_every_containerd;

on_every_containerd!(
    containers_survive_containerd,
    a_new_agent_finds_what_runs,
    what_a_crash_left_is_no_obstacle,
    a_start_may_be_interrupted_anywhere,
    starts_hold_against_garbage_collection,
);

async fn containers_survive_containerd(mut bed: Bed) {
    let mut events = bed.follow().await;
    let (stays, ends) = (order("stays", |_| {}), order("ends", |_| {}));
    let (pid, doomed) = (bed.start(&stays).await, bed.start(&ends).await);

    bed.containerd.kill().unwrap();
    events.disconnected().await;
    let error = bed.runtime.list().await.unwrap_err();
    assert!(error.is_unreachable(), "{error:?}");
    let error = bed
        .runtime
        .start(&order("new", |_| {}), &bed.root, &Surroundings::default())
        .await
        .unwrap_err();
    assert!(error.is_unreachable(), "{error:?}");
    let (mut late, following) = bed.begin_to_follow();
    late.disconnected().await;
    kill_process(doomed);
    bed.containerd.start_again().unwrap();
    events.connected().await;
    late.connected().await;
    drop(late);
    timeout(SOON, following).await.expect("it ends with its receiver").unwrap();

    assert_eq!(bed.task(&stays.id).await, Some(Task::Running { pid }));
    let ended = bed.task_becomes(&ends.id, |task| !matches!(task, Task::Running { .. })).await;
    assert!(matches!(ended, Task::Stopped(_) | Task::Absent), "{ended:?}");

    kill_process(pid);
    // The end that happened meanwhile may be told late; it was found in the list anyway.
    let (told, exit) = loop {
        let (told, exit) = events.exited_any().await;
        if told == stays.id {
            break (told, exit);
        }
    };
    assert_eq!((told, exit.code), (stays.id.clone(), 137));
    for container in [&stays, &ends] {
        bed.start(container).await;
        bed.runtime.stop(&stop(container, Duration::ZERO)).await.unwrap();
    }
    bed.assert_empty();
}

async fn a_new_agent_finds_what_runs(bed: Bed) {
    let web = order("web", |_| {});
    let pid = bed.start(&web).await;
    let next = ContainerdRuntime::new(bed.connection.clone());
    let listed = next.list().await.unwrap();
    assert_eq!(listed[&web.id].task, Task::Running { pid });
    assert!(matches!(
        next.start(&web, &bed.root, &Surroundings::default()).await,
        Err(RuntimeError::Live { .. })
    ));
    assert!(alive(pid));
    next.stop(&stop(&web, Duration::ZERO)).await.unwrap();
    bed.assert_empty();
}

async fn what_a_crash_left_is_no_obstacle(mut bed: Bed) {
    let web = order("web", |_| {});

    bed.start(&web).await;

    // A container without a task, with and without its snapshot.
    let ctr = |args: &[&str]| {
        let args = [&["--namespace", NAMESPACE], args].concat();
        bed.containerd.ctr(&args).unwrap()
    };
    ctr(&["tasks", "delete", "--force", web.id.as_str()]);
    assert_eq!(bed.task(&web.id).await, Some(Task::Absent));
    restart(&bed, &web).await;

    // A task that was made and not started.
    ctr(&["tasks", "delete", "--force", web.id.as_str()]);
    create_task(&bed, &web).await;
    assert_eq!(bed.task(&web.id).await, Some(Task::Created));
    restart(&bed, &web).await;
    ctr(&["tasks", "delete", "--force", web.id.as_str()]);
    create_task(&bed, &web).await;
    bed.runtime.remove(&web.id).await.unwrap();
    bed.assert_empty();
    bed.start(&web).await;
    ctr(&["tasks", "delete", "--force", web.id.as_str()]);
    ctr(&["snapshots", "rm", &bed.snapshots()[0]]);
    restart(&bed, &web).await;
    bed.runtime.stop(&stop(&web, Duration::ZERO)).await.unwrap();

    // A snapshot without a container is collected by containerd itself.
    let parent = bed.image.chain_id.clone().unwrap();
    ctr(&["snapshots", "prepare", "web.0.main.0123456789abcdef", &parent]);
    assert_eq!(bed.snapshots().len(), 1);
    // `ctr` protects what it makes by a label; what we make has none, and may go at any time.
    ctr(&["snapshots", "label", "web.0.main.0123456789abcdef", "containerd.io/gc.root="]);
    collect(&mut bed).await;
    bed.assert_empty();
}

/// Waits until containerd has collected every snapshot, which it does when it starts.
async fn collect(bed: &mut Bed) {
    bed.containerd.restart().unwrap();
    let collected = async {
        while !bed.snapshots().is_empty() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, collected).await.expect("containerd collects the snapshots");
}

/// Makes a task of a container that has none.
async fn create_task(bed: &Bed, web: &Start) {
    let mounts = MountsRequest { snapshotter: "overlayfs".into(), key: bed.snapshots()[0].clone() };
    let mut snapshots = SnapshotsClient::new(bed.connection.channel());
    let mounts = snapshots.mounts(bed.connection.request(mounts)).await.unwrap().into_inner();
    let create = CreateTaskRequest {
        container_id: web.id.to_string(),
        rootfs: mounts.mounts,
        ..CreateTaskRequest::default()
    };
    let mut tasks = TasksClient::new(bed.connection.channel());
    tasks.create(bed.connection.request(create)).await.unwrap();
}

/// Starts as the agent does: what still runs is stopped first, a refusal is tried again.
async fn restart(bed: &Bed, web: &Start) {
    let started = async {
        loop {
            match bed.runtime.start(web, &bed.root, &Surroundings::default()).await {
                Ok(pid) => return pid,
                Err(RuntimeError::Live { .. }) => {
                    bed.runtime.stop(&stop(web, Duration::ZERO)).await.unwrap();
                }
                Err(error) => {
                    assert!(!error.is_unreachable(), "{error:?}");
                    sleep(Duration::from_millis(20)).await;
                }
            }
        }
    };
    let pid = timeout(SOON, started).await.expect("it starts");
    assert_eq!(bed.task(&web.id).await, Some(Task::Running { pid }));
    assert_eq!(bed.snapshots().len(), 1, "{:?}", bed.snapshots());
}

async fn a_start_may_be_interrupted_anywhere(mut bed: Bed) {
    let web = order("web", |_| {});
    for step in 0..12 {
        let after = Duration::from_millis(step * step);
        for _fresh_then_with_remains in 0..2 {
            let interrupted =
                timeout(after, bed.runtime.start(&web, &bed.root, &Surroundings::default())).await;
            drop(interrupted);
        }
        let pids = live(&bed);
        assert!(pids.len() <= 1, "{pids:?}");
        recovered(&bed, &web).await;
        bed.runtime.stop(&stop(&web, Duration::ZERO)).await.unwrap();
    }
    // A snapshot whose preparation outlived its request is containerd's to collect.
    collect(&mut bed).await;
    bed.assert_empty();
}

async fn recovered(bed: &Bed, web: &Start) {
    let started = async {
        while let Err(error) = bed.runtime.start(web, &bed.root, &Surroundings::default()).await {
            if matches!(error, RuntimeError::Live { .. }) {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, started).await.expect("it starts");
    assert_eq!(live(bed).len(), 1);
}

fn live(bed: &Bed) -> Vec<coracle_testbed::containerd::Task> {
    bed.containerd.tasks(NAMESPACE).unwrap()
}

async fn starts_hold_against_garbage_collection(bed: Bed) {
    let collect = async {
        for round in 0.. {
            let id = format!("collect-{round}");
            let mut leases = LeasesClient::new(bed.connection.channel());
            let create = CreateRequest { id: id.clone(), labels: Default::default() };
            leases.create(bed.connection.request(create)).await.unwrap();
            let delete = DeleteRequest { id, sync: true };
            leases.delete(bed.connection.request(delete)).await.unwrap();
        }
    };
    let orders: Vec<_> = (0..6).map(|n| order(&format!("w{n}"), |_| {})).collect();
    let load = async {
        for _ in 0..3 {
            let mut starts = tokio::task::JoinSet::new();
            for order in orders.clone() {
                let (runtime, image) = (bed.runtime.clone(), bed.root.clone());
                starts.spawn(async move {
                    runtime.start(&order, &image, &Surroundings::default()).await.unwrap();
                    runtime.stop(&stop(&order, Duration::ZERO)).await.unwrap();
                });
            }
            while let Some(done) = starts.join_next().await {
                done.unwrap();
            }
        }
    };
    tokio::select! {
        () = collect => {}
        () = load => {}
    }
    bed.assert_no_containers();
}
