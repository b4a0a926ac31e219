//! Commands in running containers.

use std::time::{Duration, Instant};

use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::{ExecProcessRequest, StartRequest};
use coracle::runtime::{Runtime as _, RuntimeError};
use coracle_core::name::ContainerId;
use coracle_core::observed::Task;
use prost_types::Any;
use tokio::time::{sleep, timeout};

use crate::bed::{Bed, NAMESPACE, SOON, alive, kill_process, order, script, stop};
use crate::on_every_containerd;

on_every_containerd!(
    a_command_runs_as_its_container_does,
    a_command_that_cannot_be_run_says_why,
    a_command_that_takes_too_long_is_killed,
    a_command_that_nobody_waits_for_is_ended,
    what_a_dead_agent_left_is_ended_and_wedges_nothing,
    commands_run_beside_each_other_and_end_with_their_container,
);

fn sh(script: &str) -> [String; 3] {
    ["/bin/sh", "-c", script].map(String::from)
}

/// Waits until only the main process is left.
async fn alone(bed: &Bed, id: &ContainerId, pid: u32) {
    let alone = async {
        while bed.processes(id) != [pid] {
            sleep(Duration::from_millis(10)).await;
        }
    };
    let alone = timeout(SOON, alone).await;
    alone.unwrap_or_else(|_| panic!("{:?} beside {pid}", bed.processes(id)));
}

async fn a_command_runs_as_its_container_does(bed: Bed) {
    let mut web = order("web", |c| {
        c.user = Some("7:8".into());
        c.working_dir = Some("/tmp".into());
    });
    let around = coracle::runtime::Surroundings {
        env: [("GREETING".to_owned(), "hello you".to_owned())].into(),
        ..Default::default()
    };
    let pid = bed.start_in(&around, &web).await;
    let exec = |script: &'static str| {
        let (runtime, id) = (bed.runtime.clone(), web.id.clone());
        async move { runtime.exec(&id, &sh(script), SOON).await.unwrap() }
    };
    assert_eq!(exec("exit 0").await, 0);
    assert_eq!(exec("exit 3").await, 3);
    assert_eq!(exec("kill -9 $$").await, 137);
    let as_it =
        r#"[ "$GREETING" = "hello you" ] && [ "$(id -u):$(id -g)" = 7:8 ] && [ $(pwd) = /tmp ]"#;
    assert_eq!(exec(as_it).await, 0);
    // Input and output are there and lead nowhere.
    assert_eq!(exec("echo out && echo err >&2 && ! read line").await, 0);
    let status = |of: &str| {
        let text = std::fs::read_to_string(format!("/proc/{of}/status")).unwrap();
        let lines = text.lines().filter(|line| {
            ["Cap", "NoNewPrivs", "Seccomp:", "Uid", "Groups"].iter().any(|k| line.starts_with(k))
        });
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let command = sh("sleep 86400; :");
    let waiting = bed.runtime.exec(&web.id, &command, SOON);
    let look = async {
        let other = async {
            loop {
                let processes = bed.processes(&web.id);
                if let Some(other) = processes.iter().find(|other| **other != pid) {
                    // Not runc on its way to become it.
                    let name = std::fs::read_to_string(format!("/proc/{other}/comm"));
                    if name.is_ok_and(|name| matches!(name.trim(), "sh" | "sleep")) {
                        return *other;
                    }
                }
                sleep(Duration::from_millis(5)).await;
            }
        };
        let other = timeout(SOON, other).await.expect("the command runs");
        assert_eq!(status(&other.to_string()), status(&pid.to_string()));
    };
    tokio::select! {
        ended = waiting => panic!("{ended:?}"),
        () = look => {}
    }
    alone(&bed, &web.id, pid).await;
    assert!(alive(pid));

    // A container that runs anew is another one to run commands in.
    bed.runtime.stop(&stop(&web, Duration::ZERO)).await.unwrap();
    web.generation = 2;
    bed.start(&web).await;
    assert_eq!(bed.runtime.exec(&web.id, &sh("exit 4"), SOON).await.unwrap(), 4);
    bed.runtime.stop(&stop(&web, Duration::ZERO)).await.unwrap();
    bed.assert_empty();
}

async fn a_command_that_cannot_be_run_says_why(bed: Bed) {
    let web = order("web", |_| {});
    let id = &web.id;
    let run = |command: &'static str| {
        let (runtime, id) = (bed.runtime.clone(), id.clone());
        async move { runtime.exec(&id, &[command.to_owned()], SOON).await.unwrap_err() }
    };
    let absent = run("true").await;
    assert!(matches!(absent, RuntimeError::NotRunning { .. }), "{absent:?}");
    let pid = bed.start(&web).await;
    for _ in 0..3 {
        let error = run("nowhere").await;
        let text = error.to_string();
        assert!(text.starts_with("containerd cannot run a command in web.0.main: "), "{text}");
        assert!(text.contains("nowhere") && text.contains("not found"), "{text}");
    }
    alone(&bed, id, pid).await;

    // A frozen container answers nobody, and is none the worse for having been asked.
    bed.containerd.ctr(&["-n", NAMESPACE, "tasks", "pause", id.as_str()]).unwrap();
    let before = Instant::now();
    let limit = Duration::from_millis(500);
    bed.runtime.exec(id, &sh("exit 0"), limit).await.unwrap_err();
    assert!(before.elapsed() < SOON, "{:?}", before.elapsed());
    bed.containerd.ctr(&["-n", NAMESPACE, "tasks", "resume", id.as_str()]).unwrap();
    assert_eq!(bed.runtime.exec(id, &sh("exit 5"), SOON).await.unwrap(), 5);
    alone(&bed, id, pid).await;

    kill_process(pid);
    bed.task_becomes(id, |task| matches!(task, Task::Stopped(_))).await;
    bed.runtime.exec(id, &sh("exit 0"), SOON).await.unwrap_err();
    bed.runtime.remove(id).await.unwrap();
    bed.assert_empty();
}

async fn a_command_that_takes_too_long_is_killed(bed: Bed) {
    let web = order("web", |_| {});
    let pid = bed.start(&web).await;
    for hangs in ["exec sleep 86400", "sleep 86400 & sleep 86400 & trap '' TERM; wait; sleep 86400"]
    {
        let limit = Duration::from_millis(300);
        let error = bed.runtime.exec(&web.id, &sh(hangs), limit).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "a command in container web.0.main did not end within 0.3 s and was killed"
        );
        alone(&bed, &web.id, pid).await;
    }
    assert_eq!(bed.runtime.exec(&web.id, &sh("exit 0"), SOON).await.unwrap(), 0);
    assert!(alive(pid));
    bed.runtime.stop(&stop(&web, Duration::ZERO)).await.unwrap();
    bed.assert_empty();
}

async fn a_command_that_nobody_waits_for_is_ended(bed: Bed) {
    let web = order("web", |_| {});
    let pid = bed.start(&web).await;
    // Broken off at any point of its beginning and in the middle.
    for milliseconds in [0, 1, 3, 8, 20, 40, 60, 90, 150, 400] {
        let after = Duration::from_millis(milliseconds);
        let command = sh("sleep 86400 & wait");
        let dropped = timeout(after, bed.runtime.exec(&web.id, &command, SOON)).await;
        assert!(dropped.is_err(), "{dropped:?}");
    }
    let command = sh("exit 6");
    assert_eq!(bed.runtime.exec(&web.id, &command, SOON).await.unwrap(), 6);
    alone(&bed, &web.id, pid).await;
    bed.runtime.stop(&stop(&web, Duration::ZERO)).await.unwrap();
    bed.assert_empty();
}

/// As an agent leaves it that is killed in the middle.
async fn abandon(bed: &Bed, id: &ContainerId, exec_id: &str, script: &str) {
    let process = serde_json::json!({
        "args": sh(script), "cwd": "/", "env": ["PATH=/bin"], "user": { "uid": 0, "gid": 0 },
    });
    let request = ExecProcessRequest {
        container_id: id.to_string(),
        exec_id: exec_id.into(),
        spec: Some(Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
            value: process.to_string().into_bytes(),
        }),
        ..ExecProcessRequest::default()
    };
    let mut tasks = TasksClient::new(bed.connection.channel());
    tasks.exec(bed.connection.request(request)).await.unwrap();
    if !script.is_empty() {
        let request = StartRequest { container_id: id.to_string(), exec_id: exec_id.into() };
        tasks.start(bed.connection.request(request)).await.unwrap();
    }
}

async fn what_a_dead_agent_left_is_ended_and_wedges_nothing(bed: Bed) {
    let web = order("web", |_| {});
    let pid = bed.start(&web).await;
    abandon(&bed, &web.id, "coracle-0123456789abcdef", "sleep 86400 & wait").await;
    abandon(&bed, &web.id, "coracle-0123456789abcdee", "exit 0").await;
    abandon(&bed, &web.id, "coracle-0123456789abcded", "").await;
    abandon(&bed, &web.id, "somebody-elses", "exec sleep 86400").await;
    assert_eq!(bed.processes(&web.id).len(), 4);
    assert_eq!(bed.runtime.exec(&web.id, &sh("exit 0"), SOON).await.unwrap(), 0);
    let left = || (bed.processes(&web.id).len() == 2).then_some(());
    coracle_testbed::wait_for("only what is not ours to be left", SOON, left).unwrap();
    assert!(bed.processes(&web.id).contains(&pid));

    // It is stopped, started and removed with such remains in it.
    abandon(&bed, &web.id, "coracle-0123456789abcdec", "exec sleep 86400").await;
    bed.runtime.stop(&stop(&web, Duration::ZERO)).await.unwrap();
    bed.assert_empty();
    let again = bed.start(&web).await;
    abandon(&bed, &web.id, "coracle-0123456789abcdec", "exec sleep 86400").await;
    kill_process(again);
    bed.task_becomes(&web.id, |task| matches!(task, Task::Stopped(_))).await;
    bed.start(&web).await;
    bed.runtime.stop(&stop(&web, Duration::ZERO)).await.unwrap();
    bed.assert_empty();
}

async fn commands_run_beside_each_other_and_end_with_their_container(bed: Bed) {
    let web = script("web", "exec sleep 86400");
    let pid = bed.start(&web).await;
    let mut commands = tokio::task::JoinSet::new();
    for code in 0..8_u32 {
        let (runtime, id) = (bed.runtime.clone(), web.id.clone());
        commands.spawn(async move {
            let script = format!("sleep 0.2; exit {code}");
            (code, runtime.exec(&id, &sh(&script), SOON).await.unwrap())
        });
    }
    while let Some(ended) = commands.join_next().await {
        let (expected, code) = ended.unwrap();
        assert_eq!(code, expected);
    }
    alone(&bed, &web.id, pid).await;
    let command = sh("sleep 86400; :");
    let running = bed.runtime.exec(&web.id, &command, SOON);
    let end = async {
        while bed.processes(&web.id).len() < 2 {
            sleep(Duration::from_millis(5)).await;
        }
        kill_process(pid);
    };
    let (ended, ()) = tokio::join!(running, end);
    assert!(!matches!(ended, Ok(0)), "{ended:?}");
    bed.task_becomes(&web.id, |task| matches!(task, Task::Stopped(_))).await;
    bed.runtime.remove(&web.id).await.unwrap();
    bed.assert_empty();
}
