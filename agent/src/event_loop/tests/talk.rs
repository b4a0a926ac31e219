//! The talk with the fleet, over a real broker and in real time.

use coracle_protocol::CommandId;
use coracle_protocol::envelope::COMMAND_PAYLOAD_TYPE;
use coracle_protocol::event::{Event as Told, Events};
use coracle_protocol::health::Health as HealthDocument;
use coracle_protocol::presence::OfflineReason;
use coracle_protocol::topic::{Kind, Topic};
use coracle_protocol::{Presence, Pulse, ReportedState};
use coracle_testbed::broker::{GATEWAY_RULES, Subscription};
use coracle_testbed::{Broker, Pki, Place};

use super::*;
use crate::config::LinkConfig;
use crate::link::Link;

const SOON: Duration = Duration::from_secs(20);

/// A broker, and what is needed to meet it.
struct Bed {
    broker: Broker,
    pki: Pki,
    _place: Place,
}

/// The link, to be ended by itself.
struct Leaving {
    leave: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Leaving {
    /// In order.
    async fn leave(self) {
        self.leave.send(()).unwrap();
        self.task.await.unwrap();
    }

    /// As a power cut would.
    fn abort(self) {
        self.task.abort();
    }
}

fn topic(kind: Kind) -> String {
    Topic::new(GATEWAY.parse().unwrap(), kind).to_string()
}

impl Bed {
    /// A broker with further lines of its configuration.
    fn new(lines: &str) -> Self {
        let place = Place::new().unwrap();
        let pki = Pki::new(&place.run().join("pki")).unwrap();
        let broker = Broker::start_with(&place, &pki, GATEWAY_RULES, lines).unwrap();
        Self { broker, pki, _place: place }
    }

    fn listen(&self, kind: Kind) -> Subscription {
        self.broker.listen(&topic(kind)).unwrap()
    }

    /// A gateway, and its link.
    async fn gateway(&self, place: TempDir) -> (Gateway, Leaving) {
        self.gateway_with(place, Talk::default()).await
    }

    async fn gateway_with(&self, place: TempDir, talk: Talk) -> (Gateway, Leaving) {
        let own = self.pki.client(GATEWAY).unwrap();
        let config = LinkConfig {
            host: "localhost".into(),
            port: self.broker.port(),
            ca: self.pki.ca(),
            cert: own.cert,
            key: own.key,
            keep_alive_seconds: 5,
            session_expiry_seconds: 3600,
            will_delay_seconds: 0,
            reconnect_window_seconds: 1,
            alternatives: Vec::new(),
            websocket_path: None,
            proxy: None,
        };
        let (link, handle, events) = Link::new(config, GATEWAY.parse().unwrap(), b"{}".to_vec());
        let (runtime, exits) = FakeRuntime::new();
        let hands = Hands { runtime, shelf: Arc::default() };
        let talk = Talk { link: Some((handle, events)), ..talk };
        let gateway = Gateway::start_with(place, hands, exits, talk).await;
        let (leave, left) = oneshot::channel();
        let task = tokio::spawn(link.run(async move { left.await.unwrap_or_default() }));
        (gateway, Leaving { leave, task })
    }
}

/// Waits for a state of what is outside, while the gateway goes on in the same thread.
async fn wait_for<T>(what: &str, mut reached: impl FnMut() -> Option<T>) -> T {
    let poll = async {
        loop {
            match reached() {
                Some(value) => return value,
                None => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    let waited = tokio::time::timeout(SOON, poll).await;
    waited.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

fn told(listener: &Subscription) -> Vec<Events> {
    let messages = listener.messages();
    messages.iter().map(|message| serde_json::from_slice(&message.payload).unwrap()).collect()
}

fn find(listener: &Subscription, kind: &str) -> Option<(String, Told)> {
    told(listener).into_iter().find_map(|events| {
        let event = events.events.into_iter().find(|event| event.kind == kind)?;
        Some((events.stream, event))
    })
}

async fn await_event(listener: &Subscription, kind: &str) -> (String, Told) {
    wait_for(kind, || find(listener, kind)).await
}

fn receipt(stream: &str, last: u64) -> Vec<u8> {
    let events = json!({ "stream": stream, "sequences": [[1, last]] });
    let receipt = json!({ "schema": 1, "gateway": GATEWAY, "events": events,
                          "hints": { "backlog_spread_seconds": 0 } });
    receipt.to_string().into_bytes()
}

fn connected(status: &Status) -> bool {
    status.link.as_ref().is_some_and(|link| link.connected)
}

#[tokio::test]
async fn an_event_arrives_although_a_broker_died_that_had_acknowledged_it() {
    let mut bed = Bed::new("");
    let listener = bed.listen(Kind::Events);
    let (gateway, link) = bed.gateway(tempfile::tempdir().unwrap()).await;
    gateway.order(1, &[("web", "a")]).await;
    let (stream, first) = await_event(&listener, "order-accepted").await;

    // The broker has it, and nobody else: the fleet has not answered.
    drop(listener);
    bed.broker.kill().unwrap();
    gateway.until("disconnected", |status| !connected(status)).await;
    bed.broker.start_again().unwrap();
    let listener = bed.listen(Kind::Events);
    let (again_stream, again) = await_event(&listener, "order-accepted").await;
    assert_eq!((&again_stream, &again), (&stream, &first));

    // Not after a receipt.
    bed.broker.publish(&topic(Kind::Receipts), &receipt(&stream, first.sequence), false).unwrap();
    gateway.order(2, &[("web", "b")]).await;
    let second = |event: &Told| event.message.contains("generation 2");
    wait_for("the next one", || {
        let mut all = told(&listener).into_iter().flat_map(|events| events.events);
        all.any(|event| second(&event)).then_some(())
    })
    .await;
    drop(listener);
    bed.broker.kill().unwrap();
    gateway.until("disconnected", |status| !connected(status)).await;
    bed.broker.start_again().unwrap();
    let listener = bed.listen(Kind::Events);
    wait_for("generation 2 again", || {
        let mut all = told(&listener).into_iter().flat_map(|events| events.events);
        all.any(|event| second(&event)).then_some(())
    })
    .await;
    let first_again = |event: &Told| event.sequence == first.sequence;
    assert!(!told(&listener).iter().any(|events| events.events.iter().any(first_again)));
    gateway.end().await;
    link.abort();
}

#[tokio::test]
async fn what_happened_offline_is_told_after_a_restart_of_the_agent() {
    let mut bed = Bed::new("");
    bed.broker.stop().unwrap();
    let (gateway, link) = bed.gateway(tempfile::tempdir().unwrap()).await;
    gateway.order(1, &[("web", "a")]).await;
    gateway.hands.runtime.connect();
    let running = |s: &Status| s.reported.workloads[0].replicas[0].state == ReplicaState::Running;
    gateway.until("running", running).await;
    let (_, place) = gateway.end().await;
    link.abort();

    bed.broker.start_again().unwrap();
    let listener = bed.listen(Kind::Events);
    bed.broker.publish(&topic(Kind::Receipts), &receipt("none", 0), true).unwrap();
    let (gateway, link) = bed.gateway(place).await;
    await_event(&listener, "order-accepted").await;
    // Not important, and not written at once: but when the agent ended.
    let (stream, started) = await_event(&listener, "started").await;
    assert_eq!(started.replica.as_deref(), Some("web.0"));
    bed.broker.publish(&topic(Kind::Receipts), &receipt(&stream, 1000), false).unwrap();
    gateway.end().await;
    link.abort();
}

/// The newest document on a topic that is as wanted.
async fn document<T: serde::de::DeserializeOwned>(
    listener: &Subscription,
    what: &str,
    wanted: impl Fn(&T) -> bool,
) -> T {
    wait_for(what, || {
        let messages = listener.messages();
        let mut read =
            messages.iter().rev().filter_map(|m| serde_json::from_slice(&m.payload).ok());
        read.find(|document| wanted(document))
    })
    .await
}

#[tokio::test]
async fn a_broker_that_takes_small_packets_gets_all_that_matters() {
    const PACKET: usize = 4000;
    let bed = Bed::new(&format!("max_packet_size {PACKET}"));
    let listeners = [Kind::Reported, Kind::Health, Kind::Events, Kind::Status];
    let [reported, health, events, status] = listeners.map(|kind| bed.listen(kind));
    let (gateway, link) = bed.gateway(tempfile::tempdir().unwrap()).await;
    let names: Vec<_> = (0..200).map(|n| format!("workload-with-a-long-name-{n}")).collect();
    let workloads: Vec<_> = names.iter().map(|name| (name.as_str(), "a")).collect();
    gateway.order(1, &workloads).await;
    gateway.hands.runtime.connect();
    gateway
        .until("running", |s| s.reported.workloads.iter().all(|w| w.replicas[0].pid.is_some()))
        .await;

    let read: ReportedState = document(&reported, "a report", |read: &ReportedState| {
        read.generation_applied == 1 && read.omitted_workloads > 0
    })
    .await;
    assert_eq!(read.workloads.len() + read.omitted_workloads as usize, 200);
    let read = document(&health, "health", |read: &HealthDocument| read.omitted > 0).await;
    assert!(read.conditions.iter().any(|condition| condition.name == "orders"));
    let all = |read: &Presence| read.running.len() + read.omitted as usize == 200;
    assert!(document(&status, "presence", all).await.omitted > 0);
    await_event(&events, "order-accepted").await;

    for listener in [&reported, &health, &events, &status] {
        for message in listener.messages() {
            assert!(message.payload.len() < PACKET, "{}: {}", message.topic, message.payload.len());
        }
    }
    gateway.end().await;
    link.leave().await;
    let read = document(&status, "a farewell", |read: &Presence| read.reason.is_some()).await;
    assert_eq!(read, Presence::leaving(GATEWAY.parse().unwrap(), OfflineReason::Shutdown));
}

#[tokio::test]
async fn health_is_told_on_change_and_a_pulse_names_it() {
    let bed = Bed::new("");
    let health = bed.listen(Kind::Health);
    let often = HealthConfig { interval_seconds: 10, ..HealthConfig::default() };
    let talk = Talk { health: often, ..Talk::default() };
    let (gateway, link) = bed.gateway_with(tempfile::tempdir().unwrap(), talk).await;
    let first = document(&health, "health", |_: &HealthDocument| true).await;
    assert_eq!(first.gateway, GATEWAY.parse().unwrap());
    assert!(first.numbers.memory_total_kib.is_some());
    assert_eq!(first.workloads, []);

    gateway.order(1, &[("web", "a")]).await;
    gateway.hands.runtime.connect();
    let news = |read: &HealthDocument| read.workloads.iter().any(|w| w.name == "web");
    let second = document(&health, "news", news).await;
    assert!(second.sequence > first.sequence);
    let apart = second.at.unix() - first.at.unix();
    assert!(apart >= 9, "documents {apart} s apart");

    let asked = gateway.ask(Call::Health).await;
    assert_eq!(asked.workloads.len(), 1);

    let pulse = wait_for("a pulse that names it", || {
        let messages = health.messages();
        let mut pulses = messages.iter().filter_map(|m| Pulse::decode(&m.payload).ok());
        pulses.find(|pulse| pulse.health >= second.sequence)
    })
    .await;
    assert_eq!((pulse.workloads, pulse.generation), (1, 1));
    gateway.end().await;
    link.abort();
}

#[tokio::test]
async fn reports_beyond_their_budget_wait_and_health_does_not() {
    let bed = Bed::new("");
    let (reported, health) = (bed.listen(Kind::Reported), bed.listen(Kind::Health));
    let status = bed.listen(Kind::Status);
    let caps = Caps { total: None, kinds: BTreeMap::from([(TrafficKind::Reports, 0)]) };
    let talk = Talk { caps, ..Talk::default() };
    let (gateway, link) = bed.gateway_with(tempfile::tempdir().unwrap(), talk).await;
    document(&reported, "the first report", |_: &ReportedState| true).await;
    gateway.order(1, &[("web", "a")]).await;
    let news = |read: &HealthDocument| read.workloads.iter().any(|w| w.name == "web");
    let read = document(&health, "news", news).await;
    gateway.hands.runtime.connect();
    document(&status, "presence", |read: &Presence| read.running == ["web"]).await;
    let budget = read.conditions.iter().find(|c| c.name == "budget").unwrap();
    assert!(budget.message.contains("reports"), "{}", budget.message);
    assert_eq!(reported.messages().len(), 1, "a report more in an hour");

    // Who asks for one gets it.
    let now = Timestamp::from_unix(crate::clock::wall_now().as_secs());
    let command = json!({ "schema": 1, "id": CommandId::new(now), "gateway": GATEWAY,
                          "expires_at": now.after(Duration::from_secs(3600)),
                          "action": { "kind": "report" } });
    let mut envelope = Envelope {
        payload_type: COMMAND_PAYLOAD_TYPE.into(),
        payload: command.to_string().into_bytes(),
        signatures: Vec::new(),
    };
    let sig = gateway.key.sign(&envelope.signed_bytes()).as_ref().to_vec();
    envelope.signatures.push(Signature { keyid: String::new(), sig });
    bed.broker.publish(&topic(Kind::Commands), &envelope.encode(), false).unwrap();
    document(&reported, "the report that was asked for", |read: &ReportedState| {
        read.workloads.iter().any(|workload| workload.name == "web")
    })
    .await;
    gateway.end().await;
    link.abort();
}
