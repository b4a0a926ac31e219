//! How workloads live: probes, shared ports, updates, what is done by hand.

use coracle_protocol::reported::UpdateState;

use super::*;
use crate::status::{Operation, OperationRefusal};

/// A workload with a port and a readiness probe.
fn web(image: &str, replicas: u32) -> Value {
    json!({ "name": "web", "network": "pod", "replicas": replicas,
            "ports": { "http": { "host": 8080 } }, "update": { "min_ready_seconds": 0 },
            "containers": [{ "image": format!("r.x/{image}:1"),
                             "ports": [{ "name": "http", "port": 80 }],
                             "probes": { "readiness": { "tcp": { "port": 80 } } } }] })
}

impl Gateway {
    async fn order_web(&self, generation: u64, image: &str, replicas: u32) {
        let mut document = document(generation, &[]);
        document["workloads"] = json!([web(image, replicas)]);
        let envelope = self.sign(&document);
        let applied = self.ask(|reply| Call::Apply(envelope, reply)).await;
        assert!(applied.accepted, "{:?}", applied.refusals);
    }

    /// What the probes of a replica say from now on.
    async fn probe(&self, replica: u32, live: bool, ready: bool) {
        let id = ContainerId::from_listed(&format!("web.{replica}.main"));
        let there = self.hands.runtime.containers();
        let Task::Running { pid } = there[&id].task else { panic!("{there:?}") };
        let message = (!ready).then(|| "no answer within 1 s".to_owned());
        let health = HealthOfContainer { pid, started: true, live, ready, proven: true, message };
        self.probes.send((id, health)).await.unwrap();
    }

    /// Probes that find everything well, as containers come, until a state is reached.
    async fn until_well(&self, what: &str, reached: impl Fn(&Status) -> bool) -> Status {
        for _ in 0..2000 {
            let asked: Vec<_> = self.hands.shelf.lock().unwrap().asked.clone();
            let there = self.hands.runtime.containers();
            let alive = |asked: &&Asked| {
                let there = there.get(&asked.id).map(|container| container.task);
                there == Some(Task::Running { pid: asked.pid })
            };
            for asked in asked.iter().filter(alive) {
                self.probe(asked.replica.index, true, true).await;
            }
            let status = self.status().await;
            if reached(&status) {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        panic!("never {what}: {:#?}", self.status().await);
    }

    async fn well(&self, generation: u64) -> Status {
        self.until_well("well", |status| {
            status.reported.phase == Phase::Converged
                && status.reported.generation_applied == generation
        })
        .await
    }

    async fn operate(&self, operation: Operation) -> Result<bool, OperationRefusal> {
        let done = self.ask(|reply| Call::Operate("web".into(), operation, reply)).await;
        done.map(|done| done.unchanged)
    }

    /// To which replicas the only shared port leads, each time that it changed.
    fn led(&self) -> Vec<Vec<u32>> {
        let shelf = self.hands.shelf.lock().unwrap();
        let targets = |traffic: &Traffic| match &traffic.0[..] {
            [] => Vec::new(),
            [port] => port.targets.iter().map(|target| target.replica.index).collect(),
            more => panic!("{more:?}"),
        };
        shelf.shared.iter().map(targets).collect()
    }

    /// Waits until the only shared port leads to these replicas.
    async fn until_led(&self, replicas: &[u32]) {
        let led = |_: &Status| self.led().last().is_some_and(|led| led == replicas);
        self.until(&format!("led to {replicas:?}"), led).await;
    }

    /// The agent ends and starts again; what runs keeps running.
    async fn again(self) -> Self {
        let (hands, place) = self.end().await;
        hands.shelf.lock().unwrap().shared.clear();
        // The fake's events go to the agent that ended; the new one sees what it lists.
        let (connected, events) = mpsc::channel(8);
        connected.send(RuntimeEvent::Connected { version: "fake".into() }).await.unwrap();
        Self::start_in(place, hands, events).await
    }

    fn pids(&self) -> BTreeSet<u32> {
        let pid = |task| match task {
            Task::Running { pid } => Some(pid),
            _ => None,
        };
        self.hands.runtime.containers().values().filter_map(|c| pid(c.task)).collect()
    }
}

async fn started() -> Gateway {
    let gateway = Gateway::start().await;
    gateway.hands.runtime.connect();
    gateway
}

#[tokio::test(start_paused = true)]
async fn shared_ports_lead_to_replicas_while_their_probes_are_good() {
    let gateway = started().await;
    gateway.order_web(1, "a", 2).await;
    gateway
        .until("asked", |status| {
            let replicas = &status.reported.workloads[0].replicas;
            replicas.iter().all(|replica| replica.state == ReplicaState::Running)
        })
        .await;
    let status = gateway.status().await;
    assert_eq!(status.reported.phase, Phase::Progressing, "nothing is ready yet");
    let reason = status.reported.workloads[0].replicas[0].reason.as_deref();
    assert_eq!(reason, Some("its probes have not answered yet"));
    assert!(gateway.led().iter().all(Vec::is_empty), "{:?}", gateway.led());
    gateway.well(1).await;
    gateway.until_led(&[0, 1]).await;
    gateway.probe(0, true, false).await;
    let status = gateway.until("not ready", |s| !s.reported.workloads[0].replicas[0].ready).await;
    let replica = &status.reported.workloads[0].replicas[0];
    assert_eq!(replica.reason.as_deref(), Some("no answer within 1 s"));
    assert_eq!(replica.state, ReplicaState::Running);
    gateway.until_led(&[1]).await;
    gateway.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_unhealthy_container_is_ended_and_started_again() {
    let gateway = started().await;
    gateway.order_web(1, "a", 1).await;
    gateway.well(1).await;
    let before = gateway.pids();
    gateway.probe(0, false, false).await;
    let status =
        gateway.until_well("restarted", |s| s.reported.workloads[0].replicas[0].restarts == 1);
    status.await;
    gateway.well(1).await;
    assert!(gateway.pids().is_disjoint(&before));
    let events: Happenings = gateway.ask(|reply| Call::Events(0, reply)).await;
    let told = events.events.iter().find(|event| event.kind == "unhealthy").unwrap();
    assert_eq!(told.message, "ended as unhealthy: no answer within 1 s");
    gateway.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_starts_takes_what_runs_for_ready_and_cuts_nothing() {
    let gateway = started().await;
    gateway.order_web(1, "a", 2).await;
    gateway.well(1).await;
    let before = gateway.pids();
    let gateway = gateway.again().await;
    gateway.converged(1).await;
    assert_eq!(gateway.led(), [[0, 1]], "led there from the first, and nowhere else meanwhile");
    assert!(gateway.hands.shelf.lock().unwrap().asked.iter().all(|asked| asked.before.ready));
    assert_eq!(gateway.pids(), before);
    gateway.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_starts_takes_nothing_for_ready_that_was_not() {
    let gateway = started().await;
    gateway.order_web(1, "a", 2).await;
    gateway.well(1).await;
    gateway.order_web(2, "b", 2).await;
    let half = |status: &Status| {
        let replicas = &status.reported.workloads[0].replicas;
        replicas.iter().any(|r| r.generation == Some(2) && r.state == ReplicaState::Running)
    };
    gateway.until("the first new one to run", half).await;
    gateway.until_led(&[1]).await;
    let gateway = gateway.again().await;
    gateway.until("known", half).await;
    gateway.until_led(&[1]).await;
    assert!(gateway.led().iter().all(|led| *led == [1]), "{:?}", gateway.led());
    gateway.well(2).await;
    gateway.until_led(&[0, 1]).await;
    assert!(gateway.led().iter().all(|led| !led.is_empty()), "{:?}", gateway.led());
    gateway.end().await;
}

#[tokio::test(start_paused = true)]
async fn ports_that_cannot_be_shared_are_a_condition_and_tried_again() {
    let gateway = started().await;
    gateway.hands.shelf.lock().unwrap().broken_shares = 2;
    gateway.order_web(1, "a", 2).await;
    let is = |status: &Status, wanted| {
        let mut conditions = status.reported.conditions.iter();
        conditions.any(|c| c.name == "shared-ports" && c.status == wanted)
    };
    let status = gateway.until_well("told", |status| is(status, ConditionStatus::False)).await;
    let told = status.reported.conditions.iter().find(|c| c.name == "shared-ports").unwrap();
    assert_eq!(told.message, "shared ports do not lead anew: no nft");
    gateway.until_well("mended", |status| is(status, ConditionStatus::True)).await;
    gateway.well(1).await;
    gateway.until_led(&[0, 1]).await;
    gateway.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_update_that_fails_is_taken_back_and_stays_so_until_an_order_changes_it() {
    let gateway = started().await;
    gateway.order_web(1, "a", 2).await;
    gateway.well(1).await;
    gateway.hands.runtime.fail_starts(&ContainerId::from_listed("web.0.main"), 3);
    gateway.order_web(2, "b", 2).await;
    let taken_back = |status: &Status| {
        let workload = &status.reported.workloads[0];
        let update = workload.update.as_ref();
        let all_ready = workload.replicas.iter().all(|replica| replica.ready);
        update.is_some_and(|update| update.state == UpdateState::RolledBack) && all_ready
    };
    let status = gateway.until_well("taken back", taken_back).await;
    let workload = &status.reported.workloads[0];
    assert_eq!(status.reported.phase, Phase::Degraded);
    let reason = workload.update.as_ref().unwrap().reason.as_deref().unwrap();
    assert!(reason.starts_with("web.0: could not be started"), "{reason}");
    assert!(workload.replicas.iter().all(|replica| replica.generation == Some(1)), "{workload:?}");
    assert!(gateway.led().iter().skip(2).all(|led| !led.is_empty()), "{:?}", gateway.led());
    let before = gateway.pids();
    gateway.hands.runtime.take_calls();
    // Another restart, another order, another restart: it stays.
    let gateway = gateway.again().await;
    gateway.until_well("as before", taken_back).await;
    let mut document = document(3, &[("other", "o")]);
    document["workloads"].as_array_mut().unwrap().push(web("b", 2));
    let envelope = gateway.sign(&document);
    assert!(gateway.ask(|reply| Call::Apply(envelope, reply)).await.accepted);
    let gateway = gateway.again().await;
    let both = |status: &Status| {
        let web = status.reported.workloads.iter().find(|w| w.name == "web").unwrap();
        let state = web.update.as_ref().map(|update| update.state);
        state == Some(UpdateState::RolledBack)
            && status.reported.workloads.iter().all(|w| w.replicas.iter().all(|r| r.ready))
    };
    gateway.until_well("as before", both).await;
    let calls = gateway.hands.runtime.take_calls();
    assert!(before.is_subset(&gateway.pids()), "nothing was restarted: {calls:?}");
    gateway.order_web(4, "c", 2).await;
    let status = gateway.well(4).await;
    assert!(status.reported.workloads[0].update.is_none());
    gateway.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_stopped_by_hand_stays_so_over_a_restart_until_it_is_started_by_hand() {
    let gateway = started().await;
    gateway.order_web(1, "a", 2).await;
    gateway.well(1).await;
    assert_eq!(gateway.operate(Operation::Drain).await, Ok(false));
    assert_eq!(gateway.operate(Operation::Drain).await, Ok(true), "already");
    let gone = |status: &Status| {
        let replicas = &status.reported.workloads[0].replicas;
        replicas.iter().all(|replica| replica.state == ReplicaState::Stopped)
    };
    let status = gateway.until("stopped", gone).await;
    assert!(status.reported.workloads[0].stopped.as_ref().unwrap().drained);
    assert_eq!(status.reported.phase, Phase::Converged);
    gateway.until_led(&[]).await;
    assert_eq!(
        gateway.operate(Operation::Restart).await,
        Err(OperationRefusal::Conflict("web is stopped; start it".into()))
    );
    let gateway = gateway.again().await;
    gateway.until("stopped", gone).await;
    assert!(gateway.hands.runtime.containers().is_empty());
    assert_eq!(gateway.operate(Operation::Start).await, Ok(false));
    assert_eq!(gateway.operate(Operation::Start).await, Ok(true), "already");
    gateway.well(1).await;
    let gateway = gateway.again().await;
    gateway.well(1).await;
    gateway.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_restart_by_hand_replaces_one_by_one() {
    let gateway = started().await;
    gateway.order_web(1, "a", 3).await;
    gateway.well(1).await;
    let before = gateway.pids();
    gateway.until_led(&[0, 1, 2]).await;
    let led = gateway.led().len();
    assert_eq!(gateway.operate(Operation::Restart).await, Ok(false));
    let replaced = |_: &Status| gateway.pids().is_disjoint(&before) && gateway.pids().len() == 3;
    gateway.until_well("replaced", replaced).await;
    gateway.well(1).await;
    assert!(gateway.led()[led..].iter().all(|led| led.len() >= 2), "{:?}", gateway.led());
    let unknown = gateway
        .ask(|reply| Call::Operate("nobody".into(), Operation::Stop, reply))
        .await
        .unwrap_err();
    assert_eq!(unknown.to_string(), "the orders name no workload \"nobody\"");
    gateway.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_started_or_restarted_by_hand_does_not_wait_for_its_next_try() {
    let gateway = started().await;
    gateway.order(1, &[("web", "a")]).await;
    let state =
        |wanted| move |status: &Status| status.reported.workloads[0].replicas[0].state == wanted;
    // Until pauses are at their longest, from 150 s on.
    for _ in 0..12 {
        gateway.until("running", state(ReplicaState::Running)).await;
        assert!(gateway.hands.runtime.end(&id("web"), 1));
    }
    gateway.until("waiting", state(ReplicaState::BackOff)).await;
    let asked = crate::clock::runtime_now();
    assert_eq!(gateway.operate(Operation::Restart).await, Ok(false));
    gateway.until("running", state(ReplicaState::Running)).await;
    assert!(gateway.hands.runtime.end(&id("web"), 1));
    gateway.until("waiting", state(ReplicaState::BackOff)).await;
    assert_eq!(gateway.operate(Operation::Stop).await, Ok(false));
    gateway.until("stopped", state(ReplicaState::Stopped)).await;
    assert_eq!(gateway.operate(Operation::Start).await, Ok(false));
    let status = gateway.until("running", state(ReplicaState::Running)).await;
    // Paused time passes while the store's thread is waited for.
    assert!(asked.elapsed() < Duration::from_secs(150), "{:?}", asked.elapsed());
    assert_eq!(status.reported.workloads[0].replicas[0].restarts, 13, "nothing is forgotten");
    gateway.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_not_there_cannot_be_restarted_and_that_is_said() {
    let gateway = started().await;
    gateway.hands.shelf.lock().unwrap().hanging.insert("r.x/a:1".into());
    gateway.order(1, &[("web", "a")]).await;
    assert_eq!(gateway.operate(Operation::Restart).await, Ok(true));
    gateway.end().await;
}
