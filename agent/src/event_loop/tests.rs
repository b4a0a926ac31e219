//! The loop with a runtime in memory that fails as told, a store for real, and paused time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use coracle_core::artifact::{ArtifactRef, Coordinate};
use coracle_core::backoff::Retry;
use coracle_core::budget::{Caps, TrafficKind};
use coracle_core::desired::{self, DefinitionHash};
use coracle_core::image::{Digest as ImageDigest, ImageRef};
use coracle_core::observed::{Pod, Task};
use coracle_core::plan::{Action, Why};
use coracle_core::policy::Policy;
use coracle_protocol::envelope::{DESIRED_PAYLOAD_TYPE, Envelope, Signature};
use coracle_protocol::reported::{ConditionStatus, Phase, ReplicaState};
use proptest::prelude::*;
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::*;
use crate::config::{Config, HealthConfig, TemplatesConfig};
use crate::containerd::LocalImage;
use crate::execute::{Asked, Started};
use crate::health::Finding;
use crate::large_orders::LargeOrders;
use crate::native_status::{LongWork, ServiceStatus, Services};
use crate::runtime::fake::FakeRuntime;
use crate::runtime::{Root, Runtime, Surroundings};
use crate::secrets::Secrets;
use crate::status::{Applied, Happenings, Status};
use crate::store::CheckOutcome;

mod commands;
mod life;
mod native;
mod talk;

const GATEWAY: &str = "3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11";

/// Images in memory: each pull takes a while, fails or hangs as told.
#[derive(Debug, Default)]
struct Shelf {
    artifacts: BTreeMap<ArtifactId, Installed>,
    there: BTreeSet<String>,
    failing: BTreeMap<String, u32>,
    hanging: BTreeSet<String>,
    pulls: u32,
    /// Starts that fail as if containerd were away, while it answers when looked at.
    broken_starts: u32,
    start_attempts: u32,
    /// Starts whose process ends before it is told that it began.
    short_lives: u32,
    /// What is around containers.
    pods: BTreeMap<ReplicaId, Pod>,
    /// Everything that shared ports led to, in turn.
    shared: Vec<Traffic>,
    /// Times that ports cannot be shared.
    broken_shares: u32,
    /// Who is to be asked.
    asked: Vec<Asked>,
}

fn pod(definition: &DefinitionHash, pod: &desired::Pod) -> Pod {
    Pod {
        definition: definition.clone(),
        in_place: pod.in_place.clone(),
        serves_identity: pod.identity.is_some(),
        shares_ports: false,
        address: Some([10, 88, 0, 2].into()),
    }
}

#[derive(Clone, Debug)]
struct Hands {
    runtime: FakeRuntime,
    shelf: Arc<Mutex<Shelf>>,
}

fn digest() -> ImageDigest {
    ImageDigest::parse(&format!("sha256:{}", "0".repeat(64))).unwrap()
}

fn installed(by_hand: bool) -> Installed {
    Installed {
        digest: digest(),
        zip_bytes: 10,
        unpacked_bytes: 20,
        entries: 3,
        installed_at: Timestamp::from_unix(0),
        by_hand,
        directory: "/native".into(),
    }
}

fn failure(message: &str) -> Failure {
    Failure { message: message.into(), retry: Retry::Backoff, unreachable: false }
}

impl Hands {
    async fn pull(&self, image: &Software) -> Result<ImageDigest, Failure> {
        let name = image.to_string();
        self.shelf.lock().unwrap().pulls += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
        if self.shelf.lock().unwrap().hanging.contains(&name) {
            std::future::pending::<()>().await;
        }
        let mut shelf = self.shelf.lock().unwrap();
        if let Some(times) = shelf.failing.get_mut(&name).filter(|times| **times > 0) {
            *times -= 1;
            return Err(failure("the registry fails as told"));
        }
        shelf.there.insert(name);
        Ok(digest())
    }
}

impl Execute for Hands {
    async fn act(&self, action: Action, _progress: watch::Sender<Progress>) -> Outcome {
        match action {
            Action::Pull { software } => {
                let result = self.pull(&software).await;
                Outcome::Pulled(software, result)
            }
            Action::Start(start) => {
                // The runtime in memory looks at none of it.
                let root = Root::Image(LocalImage {
                    reference: ImageRef::parse("r.x/any:1").unwrap(),
                    digest: digest(),
                    config: Vec::new(),
                    chain_id: None,
                });
                let broken = {
                    let mut shelf = self.shelf.lock().unwrap();
                    shelf.start_attempts += 1;
                    shelf.broken_starts > 0 && {
                        shelf.broken_starts -= 1;
                        true
                    }
                };
                if broken {
                    let failure = Failure { unreachable: true, ..failure("the stream broke") };
                    return Outcome::Started(start, Err(failure));
                }
                let result = self.runtime.start(&start, &root, &Surroundings::default()).await;
                let short = self.shelf.lock().unwrap().short_lives > 0;
                if short {
                    self.shelf.lock().unwrap().short_lives -= 1;
                    self.runtime.end(&start.id, 1);
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                let pod = pod(&start.definition, &start.pod);
                let pods = &mut self.shelf.lock().unwrap().pods;
                let before = pods.insert(start.replica.clone(), pod.clone());
                // What was around others is taken down before.
                assert!(before.is_none_or(|before| before.definition == pod.definition));
                let started = result.map(|pid| Started { pid, pod });
                Outcome::Started(start, started.map_err(Failure::from))
            }
            Action::Stop(stop) => {
                {
                    let mut shelf = self.shelf.lock().unwrap();
                    let mut traffic = shelf.shared.last().cloned().unwrap_or_default();
                    traffic.withdraw(&stop.replica);
                    shelf.shared.push(traffic);
                }
                let result = self.runtime.stop(&stop).await;
                Outcome::Ended(stop.replica, stop.id, stop.why, result.map_err(Failure::from))
            }
            Action::Remove { replica, id } => {
                let result = self.runtime.remove(&id).await;
                Outcome::Ended(replica, id, Why::Unwanted, result.map_err(Failure::from))
            }
            Action::Adjust(adjust) => {
                let result = self.runtime.set_limits(&adjust.id, &adjust.limits).await;
                Outcome::Adjusted(adjust, result.map_err(Failure::from))
            }
            Action::Refresh(refresh) => {
                let pod = pod(&refresh.definition, &refresh.pod);
                self.shelf.lock().unwrap().pods.insert(refresh.replica.clone(), pod.clone());
                Outcome::Refreshed(refresh, Ok(pod))
            }
            Action::Clear { replica } => {
                self.shelf.lock().unwrap().pods.remove(&replica);
                Outcome::Cleared(replica, Ok(()))
            }
            Action::RemoveImage { image } => {
                self.shelf.lock().unwrap().there.remove(&image.to_string());
                Outcome::Forgotten(image, Ok(()))
            }
            Action::RemoveArtifact { artifact } => {
                self.shelf.lock().unwrap().artifacts.remove(&artifact);
                Outcome::ArtifactRemoved(artifact, Ok(()))
            }
        }
    }

    async fn look(&self) -> Result<Seen, Failure> {
        let containers = self.runtime.list().await?;
        let shelf = self.shelf.lock().unwrap();
        let images = shelf.there.iter().map(|name| (ImageRef::parse(name).unwrap(), digest()));
        Ok(Seen {
            containers,
            images: images.collect(),
            artifacts: shelf.artifacts.clone(),
            pods: Ok(shelf.pods.clone()),
        })
    }

    async fn work_long(
        &self,
        work: LongWork,
        progress: watch::Sender<Progress>,
    ) -> Result<String, Failure> {
        let bytes_total = Some(100);
        progress.send_replace(Progress { bytes_done: 40, bytes_total, ..Progress::default() });
        tokio::time::sleep(Duration::from_secs(5)).await;
        while self.shelf.lock().unwrap().hanging.contains("long") {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let mut shelf = self.shelf.lock().unwrap();
        match work {
            LongWork::Install(artifact) => {
                if artifact.id.name() == "absent" {
                    return Err(failure("no repository has it"));
                }
                shelf.artifacts.insert(artifact.id.clone(), installed(true));
                Ok(format!("{} installed", artifact.id))
            }
            LongWork::Remove(artifact) => {
                shelf.artifacts.remove(&artifact).unwrap();
                Ok(format!("{artifact} removed"))
            }
            LongWork::Purge(coordinate) => Ok(format!("{coordinate} purged")),
        }
    }

    async fn look_at_services(&self, services: Vec<(Coordinate, ServiceStatus)>) -> Services {
        Services { services: services.into_iter().map(|(_, status)| status).collect() }
    }

    async fn share(&self, traffic: Traffic) -> Result<(), Failure> {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let mut shelf = self.shelf.lock().unwrap();
        if shelf.broken_shares > 0 {
            shelf.broken_shares -= 1;
            return Err(failure("no nft"));
        }
        shelf.shared.push(traffic);
        Ok(())
    }

    fn ask(&self, asked: Vec<Asked>) {
        self.shelf.lock().unwrap().asked = asked;
    }
}

/// How a gateway talks with its fleet; without a link it does not.
#[derive(Default)]
struct Talk {
    link: Option<(LinkHandle, mpsc::Receiver<LinkEvent>)>,
    health: HealthConfig,
    caps: Caps,
    policy: Policy,
    boot_id: String,
    means: Means,
}

/// A gateway whose world is in memory, save for its store.
struct Gateway {
    key: Ed25519KeyPair,
    hands: Hands,
    calls: mpsc::Sender<Call>,
    probes: mpsc::Sender<(ContainerId, HealthOfContainer)>,
    end: watch::Sender<bool>,
    running: JoinHandle<EventLoop<Hands>>,
    store: Store,
    place: TempDir,
}

fn keys(place: &TempDir, key: &Ed25519KeyPair) -> TrustedKeys {
    // RFC 8410: the fixed head of an Ed25519 SubjectPublicKeyInfo, then the key.
    let mut der = vec![0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
    der.extend_from_slice(key.public_key().as_ref());
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let file = place.path().join("orders.pub");
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{text}\n-----END PUBLIC KEY-----\n");
    std::fs::write(&file, pem).unwrap();
    TrustedKeys::load(&[file]).unwrap()
}

fn document(generation: u64, workloads: &[(&str, &str)]) -> Value {
    let workload = |(name, image): &(&str, &str)| {
        json!({ "name": name, "network": "none",
                "containers": [{ "image": format!("r.x/{image}:1") }] })
    };
    let workloads: Vec<_> = workloads.iter().map(workload).collect();
    json!({ "schema": 1, "gateway": GATEWAY, "generation": generation, "workloads": workloads })
}

fn sign(key: &Ed25519KeyPair, document: &Value) -> Vec<u8> {
    let mut envelope = Envelope {
        payload_type: DESIRED_PAYLOAD_TYPE.into(),
        payload: document.to_string().into_bytes(),
        signatures: Vec::new(),
    };
    let sig = key.sign(&envelope.signed_bytes()).as_ref().to_vec();
    envelope.signatures.push(Signature { keyid: String::new(), sig });
    envelope.encode()
}

impl Gateway {
    async fn start() -> Self {
        let (runtime, events) = FakeRuntime::new();
        let hands = Hands { runtime, shelf: Arc::default() };
        Self::start_in(tempfile::tempdir().unwrap(), hands, events).await
    }

    async fn start_in(place: TempDir, hands: Hands, events: mpsc::Receiver<RuntimeEvent>) -> Self {
        Self::start_with(place, hands, events, Talk::default()).await
    }

    async fn start_with(
        place: TempDir,
        hands: Hands,
        events: mpsc::Receiver<RuntimeEvent>,
        talk: Talk,
    ) -> Self {
        let Talk { link, health, caps, policy, boot_id, means } = talk;
        let (link, link_events) = link.unzip();
        let key = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
        let directory = place.path().join("state");
        let factory = place.path().join("factory.signed");
        let (store, loaded) =
            Store::open(&directory, Some(&factory), |_| CheckOutcome::Intact).unwrap();
        let device = crate::identity::find(&Config::default());
        let trust = Finding::good("trust", "keys-loaded", "");
        let secrets = Secrets::new(&directory, GATEWAY.parse().unwrap());
        let mut event_loop = EventLoop::new(Setup {
            preflight: Preflight::new(Arc::new(secrets), policy, TemplatesConfig::default()),
            gateway: GATEWAY.parse().unwrap(),
            machine: Machine { boot_id, ..Machine::default() },
            keys: keys(&place, &key),
            large_orders: LargeOrders::new(&directory, None),
            store: store.clone(),
            hands: hands.clone(),
            broker: link.is_some().then(|| "broker".into()),
            link,
            health: Health::new(Config::default(), device, vec![trust]),
            manager: ServiceManager::default(),
            local: local(place.path()),
            readiness: Readiness::open(place.path()),
            means,
            told: HealthSetup {
                config: health,
                meter: crate::health::Meter::new(place.path()),
                networks: crate::network::Networks::new(&Config {
                    runtime_dir: place.path().join("run"),
                    ..Config::default()
                }),
                caps,
                listening: Listening::default(),
            },
        });
        event_loop.restore(loaded, 1).await;
        let (calls, api) = mpsc::channel(8);
        let (end, shutdown) = watch::channel(false);
        let (probes, probed) = mpsc::channel(8);
        let sources =
            Sources { runtime: events, link: link_events, calls: api, probes: probed, shutdown };
        let running = tokio::spawn(event_loop.run(sources));
        Self { key, hands, calls, probes, end, running, store, place }
    }

    fn sign(&self, document: &Value) -> Vec<u8> {
        sign(&self.key, document)
    }

    async fn ask<T>(&self, call: impl FnOnce(oneshot::Sender<T>) -> Call) -> T {
        let (reply, answer) = oneshot::channel();
        self.calls.send(call(reply)).await.unwrap();
        answer.await.unwrap()
    }

    async fn order(&self, generation: u64, workloads: &[(&str, &str)]) -> Applied {
        let envelope = self.sign(&document(generation, workloads));
        self.ask(|reply| Call::Apply(envelope, reply)).await
    }
    async fn status(&self) -> Status {
        self.ask(Call::Status).await
    }

    /// Waits for a state: paused time passes by itself whenever nothing else can happen.
    async fn until(&self, what: &str, reached: impl Fn(&Status) -> bool) -> Status {
        for _ in 0..2000 {
            let status = self.status().await;
            if reached(&status) {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        panic!("never {what}: {:#?}", self.status().await);
    }

    async fn converged(&self, generation: u64) -> Status {
        self.until("converged", |status| {
            status.reported.phase == Phase::Converged
                && status.reported.generation_applied == generation
        })
        .await
    }

    async fn end(self) -> (Hands, TempDir) {
        self.end.send_replace(true);
        drop(self.running.await.unwrap());
        self.store.close().await;
        (self.hands, self.place)
    }
}

fn id(workload: &str) -> ContainerId {
    ContainerId::from_listed(&format!("{workload}.0.main"))
}

#[tokio::test(start_paused = true)]
async fn nothing_is_fetched_when_the_budget_for_images_is_used_up() {
    let (runtime, events) = FakeRuntime::new();
    let hands = Hands { runtime, shelf: Arc::default() };
    let caps = Caps { total: None, kinds: BTreeMap::from([(TrafficKind::Images, 0)]) };
    let talk = Talk { caps, ..Talk::default() };
    let place = tempfile::tempdir().unwrap();
    let gateway = Gateway::start_with(place, hands, events, talk).await;
    gateway.hands.runtime.connect();
    gateway.order(1, &[("web", "a")]).await;
    let status = gateway
        .until("held back", |status| {
            let mut all = status.reported.conditions.iter();
            all.any(|c| c.name == "budget" && c.reason == "used-up")
        })
        .await;
    assert_eq!(status.reported.workloads[0].replicas[0].state, ReplicaState::Pending);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(gateway.hands.shelf.lock().unwrap().pulls, 0);
    let day = gateway.ask(Call::Link).await;
    assert_eq!(day.held_back, ["images"]);
    gateway.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_order_is_fetched_and_run() {
    let gateway = Gateway::start().await;
    gateway.hands.runtime.connect();
    assert_eq!(gateway.status().await.reported.phase, Phase::Idle);
    assert!(gateway.order(1, &[("web", "a"), ("db", "b")]).await.accepted);
    let status = gateway.converged(1).await;
    assert!(status.reported.workloads.iter().all(|w| w.replicas[0].pid.is_some()));
    let events: Happenings = gateway.ask(|reply| Call::Events(0, reply)).await;
    let kinds: Vec<_> = events.events.iter().map(|event| event.kind.as_str()).collect();
    assert!(kinds.contains(&"order-accepted") && kinds.contains(&"started"), "{kinds:?}");
    gateway.end().await;
}

#[tokio::test(start_paused = true)]
async fn many_bad_orders_are_told_few_times_and_one_of_the_fleet_at_once() {
    let gateway = Gateway::start().await;
    for n in 0..200 {
        let garbage = format!("no order {n}").into_bytes();
        let applied = gateway.ask(|reply| Call::Apply(garbage, reply)).await;
        assert!(!applied.accepted && !applied.refusals.is_empty());
    }
    let events: Happenings = gateway.ask(|reply| Call::Events(0, reply)).await;
    let count = |kind: &str| events.events.iter().filter(|event| event.kind == kind).count();
    assert_eq!((count("order-turned-away"), count("order-refused")), (10, 0));

    gateway.order(1, &[("web", "a"), ("web", "a")]).await;
    let refused = gateway.status().await.reported.refused.unwrap();
    assert_eq!(refused.generation, Some(1));
    let events: Happenings = gateway.ask(|reply| Call::Events(0, reply)).await;
    assert_eq!(events.events.last().unwrap().kind, "order-refused");
    gateway.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_ends_is_restarted_at_once_then_with_growing_pauses() {
    let gateway = Gateway::start().await;
    gateway.hands.runtime.connect();
    gateway.order(1, &[("web", "a")]).await;
    gateway.converged(1).await;
    for end in 1..5u32 {
        assert!(gateway.hands.runtime.end(&id("web"), 1));
        let ended = crate::clock::runtime_now();
        gateway
            .until("restarted", |status| {
                let replica = &status.reported.workloads[0].replicas[0];
                replica.state == ReplicaState::Running && replica.restarts == end
            })
            .await;
        let pause = ended.elapsed().as_secs_f64();
        let longest = if end == 1 { 0.0 } else { f64::from(1 << (end - 2)) } + 1.1;
        let shortest = if end == 1 { 0.0 } else { f64::from(1 << (end - 2)) / 2.0 };
        assert!((shortest..longest).contains(&pause), "restart {end} after {pause} s");
    }
    gateway.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_refused_order_changes_nothing_and_says_why() {
    let gateway = Gateway::start().await;
    gateway.hands.runtime.connect();
    gateway.order(5, &[("web", "a")]).await;
    gateway.converged(5).await;
    gateway.hands.runtime.take_calls();
    let refused = |applied: Applied, code: &str| {
        assert!(!applied.accepted);
        assert_eq!(applied.refusals[0].code.as_str(), code, "{applied:?}");
    };
    refused(gateway.order(6, &[("web", "a"), ("web", "b")]).await, "duplicate-name");
    refused(gateway.order(4, &[]).await, "old-generation");
    refused(gateway.order(5, &[("web", "b")]).await, "generation-reused");
    let garbage = gateway.ask(|reply| Call::Apply(b"nonsense".to_vec(), reply)).await;
    refused(garbage, "malformed");
    let same = gateway.order(5, &[("web", "a")]).await;
    assert!(same.accepted && same.unchanged);
    let status = gateway.status().await.reported;
    assert_eq!((status.generation_applied, status.generation_seen), (5, 6));
    assert!(status.refused.is_some());
    assert_eq!(gateway.hands.runtime.take_calls(), Vec::<String>::new());
    gateway.order(7, &[("web", "a")]).await;
    assert!(gateway.converged(7).await.reported.refused.is_none());
    assert_eq!(gateway.hands.runtime.take_calls(), Vec::<String>::new());
    gateway.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_hanging_pull_is_called_off_by_new_orders_and_failures_are_tried_again() {
    let gateway = Gateway::start().await;
    gateway.hands.runtime.connect();
    gateway.hands.shelf.lock().unwrap().hanging.insert("r.x/a:1".into());
    gateway.hands.shelf.lock().unwrap().failing.insert("r.x/b:1".into(), 3);
    gateway.order(1, &[("web", "a")]).await;
    gateway.until("pulling", |status| status.pulls.len() == 1).await;
    gateway.order(2, &[("web", "b")]).await;
    let failed = gateway
        .until("backing off", |status| {
            status.reported.workloads[0].replicas[0].state == ReplicaState::BackOff
        })
        .await;
    let replica = &failed.reported.workloads[0].replicas[0];
    assert!(replica.reason.as_ref().unwrap().contains("as told") && replica.next_try.is_some());
    gateway.converged(2).await;
    assert!(gateway.status().await.pulls.is_empty());
    gateway.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_new_agent_takes_over_what_runs_and_starts_what_does_not() {
    let gateway = Gateway::start().await;
    gateway.hands.runtime.connect();
    gateway.order(1, &[("web", "a"), ("db", "b")]).await;
    gateway.converged(1).await;
    let (hands, place) = gateway.end().await;
    hands.runtime.take_calls();
    assert!(hands.runtime.end(&id("db"), 0));
    // The fake's events go to the agent that ended; the new one sees what it lists.
    let (connected, events) = mpsc::channel(8);
    connected.send(RuntimeEvent::Connected { version: "fake".into() }).await.unwrap();
    let gateway = Gateway::start_in(place, hands, events).await;
    gateway.converged(1).await;
    assert_eq!(gateway.hands.runtime.take_calls(), ["start db.0.main"]);
    gateway.end().await;
}

#[tokio::test(start_paused = true)]
async fn while_containerd_is_away_nothing_is_done_and_then_all_is_made_good() {
    let gateway = Gateway::start().await;
    gateway.order(1, &[("web", "a")]).await;
    let waiting = gateway.status().await.reported;
    let reason = waiting.workloads[0].replicas[0].reason.as_ref().unwrap();
    assert!(reason.contains("containerd"), "{reason}");
    gateway.hands.runtime.connect();
    gateway.converged(1).await;
    gateway.hands.runtime.disconnect();
    gateway.until("noticed", |status| status.reported.phase == Phase::Progressing).await;
    gateway.hands.runtime.end(&id("web"), 9);
    gateway.hands.runtime.connect();
    let status = gateway.converged(1).await;
    assert_eq!(status.reported.workloads[0].replicas[0].restarts, 1);
    gateway.end().await;
}

#[tokio::test(start_paused = true)]
async fn factory_orders_are_obeyed_though_nothing_can_be_stored() {
    let place = tempfile::tempdir().unwrap();
    // A file where the store's directory should be.
    std::fs::write(place.path().join("state"), "").unwrap();
    let key = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
    let orders = sign(&key, &document(3, &[("web", "a")]));
    std::fs::write(place.path().join("factory.signed"), orders).unwrap();
    let (runtime, events) = FakeRuntime::new();
    let hands = Hands { runtime, shelf: Arc::default() };
    let gateway = Gateway::start_in(place, hands, events).await;
    gateway.hands.runtime.connect();
    let status = gateway.converged(3).await.reported;
    let condition = |name: &str| status.conditions.iter().find(|c| c.name == name).unwrap();
    assert_eq!(condition("store").status, ConditionStatus::False);
    assert_eq!(condition("store-intact").status, ConditionStatus::False);
    let refused = gateway.order(4, &[]).await;
    assert_eq!(refused.refusals[0].code.as_str(), "not-stored");
    assert_eq!(gateway.status().await.reported.generation_applied, 3);
    // As soon as it can be, what is in force is stored, and not what was refused.
    std::fs::remove_file(gateway.place.path().join("state")).unwrap();
    gateway
        .until("stored", |status| {
            let mut conditions = status.reported.conditions.iter();
            conditions.any(|c| c.name == "store" && c.status == ConditionStatus::True)
        })
        .await;
    let (hands, place) = gateway.end().await;
    std::fs::remove_file(place.path().join("factory.signed")).unwrap();
    let (connected, events) = mpsc::channel(8);
    connected.send(RuntimeEvent::Connected { version: "fake".into() }).await.unwrap();
    let gateway = Gateway::start_in(place, hands, events).await;
    gateway.converged(3).await;
    gateway.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_start_that_breaks_the_connection_is_not_tried_without_a_pause() {
    let gateway = Gateway::start().await;
    gateway.hands.shelf.lock().unwrap().broken_starts = 4;
    gateway.hands.runtime.connect();
    let begun = crate::clock::runtime_now();
    gateway.order(1, &[("web", "a")]).await;
    gateway.converged(1).await;
    assert_eq!(gateway.hands.shelf.lock().unwrap().start_attempts, 5);
    assert!(begun.elapsed() > Duration::from_secs(10), "{:?}", begun.elapsed());
    gateway.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_end_that_is_told_before_its_start_is_not_overlooked() {
    let gateway = Gateway::start().await;
    gateway.hands.shelf.lock().unwrap().short_lives = 3;
    gateway.hands.runtime.connect();
    let begun = crate::clock::runtime_now();
    gateway.order(1, &[("web", "a")]).await;
    gateway
        .until("restarted", |status| {
            let replica = &status.reported.workloads[0].replicas[0];
            replica.restarts == 3 && replica.state == ReplicaState::Running
        })
        .await;
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    gateway.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_in_an_unknown_state_is_looked_at_again() {
    let gateway = Gateway::start().await;
    gateway.hands.runtime.connect();
    gateway.order(1, &[("web", "a")]).await;
    gateway.converged(1).await;
    let mut paused = gateway.hands.runtime.containers()[&id("web")].clone();
    let running = paused.clone();
    paused.task = Task::Unknown;
    gateway.hands.runtime.insert(id("web"), paused.clone());
    gateway.hands.runtime.connect();
    gateway
        .until("blocked", |status| {
            status.reported.workloads[0].replicas[0].state == ReplicaState::Pending
        })
        .await;
    gateway.hands.runtime.insert(id("web"), running);
    gateway.converged(1).await;
    // And an end is believed whatever was seen before.
    gateway.hands.runtime.insert(id("web"), paused);
    gateway.hands.runtime.connect();
    gateway
        .until("blocked again", |status| {
            status.reported.workloads[0].replicas[0].state == ReplicaState::Pending
        })
        .await;
    let exit = Exit { code: 9, at_nanos: 77 };
    let mut dead = gateway.hands.runtime.containers()[&id("web")].clone();
    dead.task = Task::Stopped(exit);
    gateway.hands.runtime.insert(id("web"), dead);
    gateway.hands.runtime.tell_exit(&id("web"), 1, exit);
    let status = gateway.converged(1).await;
    assert_eq!(status.reported.workloads[0].replicas[0].restarts, 1);
    gateway.end().await;
}

#[derive(Clone, Debug)]
enum Fault {
    End(usize, u32),
    FailStarts(usize, u32),
    FailPulls(usize, u32),
    Disconnect,
    Connect,
    Order(Vec<(usize, usize)>),
    Wait(u64),
}

const NAMES: [&str; 3] = ["x", "y", "z"];
const IMAGES: [&str; 3] = ["a", "b", "c"];

fn any_fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        (0..3usize, 0..3u32).prop_map(|(name, code)| Fault::End(name, code)),
        (0..3usize, 0..4u32).prop_map(|(name, times)| Fault::FailStarts(name, times)),
        (0..3usize, 0..4u32).prop_map(|(image, times)| Fault::FailPulls(image, times)),
        Just(Fault::Disconnect),
        Just(Fault::Connect),
        prop::collection::btree_map(0..3usize, 0..3usize, 0..3)
            .prop_map(|workloads| Fault::Order(workloads.into_iter().collect())),
        (0..3000u64).prop_map(Fault::Wait),
    ]
}

async fn suffer(faults: &[Fault]) {
    let gateway = Gateway::start().await;
    let mut generation = 0;
    for fault in faults {
        match fault {
            Fault::End(name, code) => {
                gateway.hands.runtime.end(&id(NAMES[*name]), *code);
            }
            Fault::FailStarts(name, times) => {
                gateway.hands.runtime.fail_starts(&id(NAMES[*name]), *times);
            }
            Fault::FailPulls(image, times) => {
                let image = format!("r.x/{}:1", IMAGES[*image]);
                gateway.hands.shelf.lock().unwrap().failing.insert(image, *times);
            }
            Fault::Disconnect => gateway.hands.runtime.disconnect(),
            Fault::Connect => gateway.hands.runtime.connect(),
            Fault::Order(workloads) => {
                generation += 1;
                let workloads: Vec<_> =
                    workloads.iter().map(|(name, image)| (NAMES[*name], IMAGES[*image])).collect();
                assert!(gateway.order(generation, &workloads).await.accepted);
            }
            Fault::Wait(milliseconds) => {
                tokio::time::sleep(Duration::from_millis(*milliseconds)).await;
            }
        }
    }
    gateway.hands.runtime.connect();
    NAMES.iter().for_each(|name| gateway.hands.runtime.fail_starts(&id(name), 0));
    // Of what failed before, an update may have been taken back.
    gateway.order(generation + 1, &[("x", "d"), ("y", "e")]).await;
    gateway.converged(generation + 1).await;
    let containers = gateway.hands.runtime.containers();
    let running: Vec<_> = containers.keys().map(ContainerId::as_str).collect();
    assert_eq!(running, ["x.0.main", "y.0.main"]);
    gateway.end().await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..Default::default() })]

    #[test]
    fn after_any_faults_the_gateway_comes_to_what_was_ordered_last(
        faults in prop::collection::vec(any_fault(), 0..24)
    ) {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap()
            .block_on(suffer(&faults));
    }
}

/// Volumes and keys, on nothing but a directory.
fn local(place: &std::path::Path) -> Local {
    let config = Config {
        state_dir: place.join("state"),
        runtime_dir: place.join("run"),
        ..Config::default()
    };
    let gateway = GATEWAY.parse().unwrap();
    let secrets = Arc::new(crate::secrets::Secrets::new(&config.state_dir, gateway));
    Local {
        mounts: crate::mounts::Mounts::new(&config, Arc::clone(&secrets)),
        secrets: Arc::clone(&secrets),
        identities: crate::workload_identity::Identities::new(&config, secrets),
        logs: place.join("logs"),
    }
}
