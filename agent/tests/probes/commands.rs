//! Probes that are commands: how many run at once, and what becomes of those that nobody wants.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use coracle::probes::Commands;
use coracle_core::desired::Probes;
use coracle_core::name::ContainerId;
use coracle_core::probe::Answer;
use tokio::time::{sleep, timeout};

use crate::bed::{Probing, SOON, exec, probe, readiness, run_at, target};

/// Commands by name: `good`, `bad`, `away`, and `hang`.
#[derive(Clone, Debug, Default)]
struct Fake(Arc<Mutex<Ran>>);

#[derive(Debug, Default)]
struct Ran {
    now: BTreeMap<(ContainerId, String), u32>,
    most: usize,
    most_of_one: u32,
    all: usize,
    limits: Vec<Duration>,
}

struct Running(Fake, (ContainerId, String));

impl Drop for Running {
    fn drop(&mut self) {
        self.0.0.lock().unwrap().now.remove(&self.1);
    }
}

impl Commands for Fake {
    async fn run(&self, id: &ContainerId, command: &[String], limit: Duration) -> Answer {
        let key = (id.clone(), command[0].clone());
        {
            let mut ran = self.0.lock().unwrap();
            let of_one = ran.now.entry(key.clone()).or_default();
            *of_one += 1;
            let of_one = *of_one;
            ran.most_of_one = ran.most_of_one.max(of_one);
            ran.most = ran.most.max(ran.now.len());
            ran.all += 1;
            ran.limits.push(limit);
        }
        let _running = Running(self.clone(), key);
        sleep(Duration::from_millis(20)).await;
        match command[0].as_str() {
            "good" => Answer::Good,
            "bad" => Answer::Bad("exit code 1".into()),
            "away" => Answer::Unknown,
            _ => std::future::pending().await,
        }
    }
}

impl Fake {
    fn running(&self) -> usize {
        self.0.lock().unwrap().now.len()
    }
}

#[test]
fn a_command_is_asked_for_like_anything_else() {
    run_at(|_place| async {
        let fake = Fake::default();
        let both = |live: &str, ready: &str| Probes {
            liveness: probe(exec(live)),
            readiness: probe(exec(ready)),
            startup: None,
        };
        let mut probing =
            Probing::start(fake.clone(), vec![target("web", 7, None, both("good", "good"))]);
        probing.becomes("started live ready").await;
        probing.set(vec![target("web", 7, None, both("bad", "good"))]);
        probing.becomes("started ready (liveness probe: exit code 1)").await;
        probing.set(vec![target("web", 7, None, both("good", "away"))]);
        probing.becomes("started live ready").await;
        // Nothing is known anew.
        sleep(Duration::from_millis(700)).await;
        assert!(probing.is_quiet());
        assert!(fake.0.lock().unwrap().limits.iter().all(|limit| *limit == Duration::from_secs(1)));
        probing.end().await;
        assert_eq!(fake.running(), 0);
    });
}

#[test]
fn few_run_at_once_and_none_twice() {
    run_at(|_place| async {
        let fake = Fake::default();
        let targets: Vec<_> =
            (0..30).map(|n| target(&format!("w{n}"), 7, None, readiness(exec("good")))).collect();
        let probing = Probing::start(fake.clone(), targets);
        let mut probing = probing;
        let mut ready = 0;
        while ready < 30 {
            ready += usize::from(probing.any().await.1.ready);
        }
        let enough = async {
            while fake.0.lock().unwrap().all < 90 {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(SOON, enough).await.expect("all are asked again and again");
        let ran = fake.0.lock().unwrap();
        assert_eq!((ran.most, ran.most_of_one), (4, 1));
    });
}

#[test]
fn what_nobody_wants_to_know_any_more_is_broken_off() {
    run_at(|_place| async {
        let fake = Fake::default();
        let of = |name: &str, pid, command| target(name, pid, None, readiness(exec(command)));
        let hang: Vec<_> = (0..4).map(|n| of(&format!("h{n}"), 7, "hang")).collect();
        let mut probing = Probing::start(fake.clone(), hang.clone());
        let wait_for = async |count| {
            let running = async {
                while fake.running() != count {
                    sleep(Duration::from_millis(5)).await;
                }
            };
            timeout(SOON, running).await.unwrap_or_else(|_| panic!("{}", fake.running()));
        };
        wait_for(4).await;
        // Who comes after waits for those that were given up.
        let mut targets = vec![of("web", 7, "good")];
        targets.extend(hang[..3].iter().cloned());
        probing.set(targets);
        let mut ready = false;
        while !ready {
            let (id, health) = probing.any().await;
            ready = id.as_str() == "web.0.main" && health.ready;
        }
        assert_eq!(fake.running(), 3);
        // The same container, another process.
        probing.set(vec![of("h0", 8, "good")]);
        probing.becomes("started live ready").await;
        probing.set(hang);
        wait_for(4).await;
        probing.end().await;
        wait_for(0).await;
    });
}
