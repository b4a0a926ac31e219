//! Artifacts, native services, and what takes long and is asked for by hand.

use super::*;
use crate::native_status::{LongWorkRefusal, OperationState, OperationStatus};

fn gauge(version: &str) -> Value {
    json!({ "name": "gauge", "network": "host", "coordinate": "a.gauge.alice.line-1",
            "service": { "artifact": format!("org.example:gauge:{version}"), "command": ["x"] } })
}

fn install(name: &str) -> LongWork {
    let artifact = format!("org.example:{name}:1").parse().unwrap();
    LongWork::Install(ArtifactRef { id: artifact, digest: None, repository: None })
}

impl Gateway {
    async fn order_gauge(&self, generation: u64, version: &str) {
        let mut document = document(generation, &[]);
        document["workloads"] = json!([gauge(version)]);
        let envelope = self.sign(&document);
        let applied = self.ask(|reply| Call::Apply(envelope, reply)).await;
        assert!(applied.accepted, "{:?}", applied.refusals);
    }

    async fn do_long(&self, work: LongWork) -> Result<OperationStatus, LongWorkRefusal> {
        self.ask(|reply| Call::Begin(work, reply)).await
    }

    async fn ended(&self, begun: OperationStatus) -> OperationStatus {
        for _ in 0..100 {
            let id = begun.id.clone();
            let now = self.ask(|reply| Call::Operation(id, reply)).await.unwrap();
            if now.state != OperationState::Running {
                return now;
            }
            assert_eq!((now.bytes_done, now.bytes_total), (40, Some(100)));
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        panic!("it never ended");
    }

    /// Waits until a look has seen that these are installed.
    async fn has(&self, wanted: &[(&str, bool, &[&str])]) {
        let wanted: Vec<_> = wanted
            .iter()
            .map(|(name, by_hand, users)| {
                let users = users.iter().map(ToString::to_string).collect::<Vec<_>>();
                (name.to_string(), *by_hand, users)
            })
            .collect();
        for _ in 0..100 {
            if self.artifacts().await == wanted {
                return;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        panic!("{:?}, not {wanted:?}", self.artifacts().await);
    }

    async fn artifacts(&self) -> Vec<(String, bool, Vec<String>)> {
        let all = self.ask(Call::Artifacts).await.artifacts;
        all.into_iter().map(|it| (it.artifact, it.by_hand, it.used_by)).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn an_artifact_is_installed_and_removed_by_hand_and_watched_meanwhile() {
    let gateway = Gateway::start().await;
    gateway.hands.runtime.connect();
    let begun = gateway.do_long(install("tool")).await.unwrap();
    assert_eq!(
        (begun.state, begun.target.as_str()),
        (OperationState::Running, "org.example:tool:1")
    );
    // The same again is the same.
    assert_eq!(gateway.do_long(install("tool")).await.unwrap().id, begun.id);
    let ended = gateway.ended(begun).await;
    assert_eq!(ended.state, OperationState::Succeeded, "{ended:?}");
    assert_eq!(ended.message.as_deref(), Some("org.example:tool:1 installed"));
    gateway.has(&[("org.example:tool:1", true, &[])]).await;

    let failed = gateway.do_long(install("absent")).await.unwrap();
    let failed = gateway.ended(failed).await;
    assert_eq!(failed.state, OperationState::Failed);
    assert_eq!(failed.message.as_deref(), Some("no repository has it"));

    let unknown = LongWork::Remove("org.example:other:1".parse().unwrap());
    assert!(matches!(gateway.do_long(unknown).await, Err(LongWorkRefusal::Unknown(_))));
    // Before there are any orders nothing is known of what runs.
    gateway.order(1, &[]).await;
    gateway.converged(1).await;
    let remove = LongWork::Remove("org.example:tool:1".parse().unwrap());
    let removed = gateway.do_long(remove).await.unwrap();
    assert_eq!(gateway.ended(removed).await.state, OperationState::Succeeded);
    gateway.has(&[]).await;
    let all = gateway.ask(Call::Operations).await.operations;
    assert_eq!(all.len(), 3, "newest first: {all:?}");
    assert_eq!(all[2].id, "operation-1");
    gateway.end().await;
}

#[tokio::test(start_paused = true)]
async fn few_operations_run_at_once_and_few_are_remembered() {
    let gateway = Gateway::start().await;
    for name in ["a", "b", "c", "d"] {
        gateway.do_long(install(name)).await.unwrap();
    }
    assert!(matches!(gateway.do_long(install("e")).await, Err(LongWorkRefusal::Busy(_))));
    let purge = LongWork::Purge("a.b.c.d".parse().unwrap());
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_secs(6)).await;
        gateway.do_long(purge.clone()).await.unwrap();
    }
    assert_eq!(gateway.ask(Call::Operations).await.operations.len(), 64);
    gateway.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_in_use_is_neither_removed_nor_purged() {
    let (runtime, events) = FakeRuntime::new();
    let hands = Hands { runtime, shelf: Arc::default() };
    let id: ArtifactId = "org.example:gauge:1".parse().unwrap();
    let _ = hands.shelf.lock().unwrap().artifacts.insert(id.clone(), installed(false));
    let gateway = Gateway::start_in(tempfile::tempdir().unwrap(), hands, events).await;
    gateway.hands.runtime.connect();
    gateway.order_gauge(1, "1").await;
    gateway.converged(1).await;
    gateway.has(&[("org.example:gauge:1", false, &["gauge"])]).await;
    let refusal = gateway.do_long(LongWork::Remove(id.clone())).await.unwrap_err();
    assert_eq!(refusal.to_string(), "artifact org.example:gauge:1 is used by gauge");

    let coordinate = "a.gauge.alice.line-1";
    let services = gateway.ask(Call::Services).await.services;
    assert_eq!(services.len(), 1);
    assert_eq!(services[0].coordinate, coordinate);
    assert_eq!(services[0].replica.as_deref(), Some("gauge.0"));
    assert_eq!(services[0].state, Some(ReplicaState::Running));
    assert_eq!(services[0].artifact.as_deref(), Some("org.example:gauge:1"));
    let at = gateway.ask(|reply| Call::WorkloadAt(coordinate.into(), reply)).await;
    assert_eq!(at.as_deref(), Ok("gauge"));
    let at = gateway.ask(|reply| Call::WorkloadAt("a-1.gauge.alice.line-1".into(), reply)).await;
    assert!(at.unwrap_err().contains("no service"));

    let purge = || LongWork::Purge(coordinate.parse().unwrap());
    let refusal = gateway.do_long(purge()).await.unwrap_err();
    assert!(matches!(&refusal, LongWorkRefusal::Conflict(_)), "{refusal:?}");
    let stop = |reply| Call::Operate("gauge".into(), crate::status::Operation::Stop, reply);
    gateway.ask(stop).await.unwrap();
    let stopped = |status: &Status| {
        let replicas = &status.reported.workloads[0].replicas;
        replicas.iter().all(|replica| replica.state == ReplicaState::Stopped)
    };
    gateway.until("stopped", stopped).await;
    let purged = gateway.do_long(purge()).await.unwrap();
    assert_eq!(gateway.ended(purged).await.state, OperationState::Succeeded);
    // Still named by the orders.
    assert!(gateway.do_long(LongWork::Remove(id.clone())).await.is_err());

    // An order that names it no more lets it go; the one before it, which may be returned to, is
    // kept until the next.
    gateway.order(2, &[]).await;
    gateway.converged(2).await;
    assert!(gateway.do_long(LongWork::Remove(id.clone())).await.is_err());
    gateway.order(3, &[]).await;
    gateway.converged(3).await;
    gateway.has(&[]).await;
    gateway.end().await;
}
