//! A broker with its certificates, and links that run on threads of their own.

use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use coracle::config::LinkConfig;
use coracle::link::{AckToken, Delivery, Link, LinkEvent, LinkHandle};
use coracle_protocol::topic::{Kind, Topic};
use coracle_protocol::{GatewayId, Presence};
use coracle_testbed::{Broker, Pki, Place};
use tokio::sync::oneshot;

use crate::scripted::Hostile;

/// For what takes milliseconds on a quiet machine.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// What test links are configured with, in seconds; the least that is allowed.
pub(crate) const KEEP_ALIVE: u16 = 5;

pub(crate) struct Bed {
    pub(crate) broker: Broker,
    pub(crate) pki: Pki,
    pub(crate) place: Place,
    pub(crate) id: GatewayId,
}

impl Bed {
    pub(crate) fn new() -> Self {
        Self::with_rules(coracle_testbed::broker::GATEWAY_RULES)
    }

    pub(crate) fn with_rules(rules: &[&str]) -> Self {
        let (place, pki) = place_and_pki();
        let broker = Broker::start_with(&place, &pki, rules, "").unwrap();
        Self { broker, pki, place, id: GatewayId::random() }
    }

    pub(crate) fn topic(&self, kind: Kind) -> String {
        Topic::new(self.id, kind).to_string()
    }

    pub(crate) fn config(&self) -> LinkConfig {
        config(&self.pki, self.id, self.broker.port())
    }

    pub(crate) fn gateway(&self) -> Gateway {
        Gateway::start(self.config(), self.id)
    }

    pub(crate) fn publish_order(&self, order: &str, retain: bool) {
        self.broker.publish(&self.topic(Kind::Desired), order.as_bytes(), retain).unwrap();
    }
}

pub(crate) fn place_and_pki() -> (Place, Pki) {
    let place = Place::new().unwrap();
    let pki = Pki::new(&place.run().join("pki")).unwrap();
    (place, pki)
}

pub(crate) fn config(pki: &Pki, id: GatewayId, port: u16) -> LinkConfig {
    let own = pki.client(&id.to_string()).unwrap();
    LinkConfig {
        host: "localhost".into(),
        port,
        ca: pki.ca(),
        cert: own.cert,
        key: own.key,
        keep_alive_seconds: KEEP_ALIVE,
        session_expiry_seconds: 3600,
        will_delay_seconds: 0,
        reconnect_window_seconds: 1,
        alternatives: Vec::new(),
        websocket_path: None,
        proxy: None,
    }
}

/// A gateway of a scripted broker.
pub(crate) fn gateway_of(broker: &Hostile) -> Gateway {
    let id = GatewayId::random();
    Gateway::start(config(&broker.pki, id, broker.port()), id)
}

/// A running link and its events.
pub(crate) struct Gateway {
    pub(crate) handle: LinkHandle,
    events: mpsc::Receiver<LinkEvent>,
    leave: Option<oneshot::Sender<()>>,
    crash: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Gateway {
    pub(crate) fn start(config: LinkConfig, id: GatewayId) -> Self {
        let offline = serde_json::to_vec(&Presence::offline(id)).unwrap();
        let (link, handle, mut link_events) = Link::new(config, id, offline);
        let (leave, left) = oneshot::channel();
        let (crash, crashed) = oneshot::channel();
        let (sender, events) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let shutdown = async move { left.await.unwrap_or_default() };
                let forward = async move {
                    while let Some(event) = link_events.recv().await {
                        sender.send(event).ok();
                    }
                };
                tokio::select! {
                    ((), ()) = async { tokio::join!(link.run(shutdown), forward) } => {}
                    _ = crashed => {}
                }
            });
        });
        let (leave, crash, thread) = (Some(leave), Some(crash), Some(thread));
        Self { handle, events, leave, crash, thread }
    }

    /// Waits for an event of which `wanted` makes something; others are passed over.
    pub(crate) fn wait<T>(
        &self,
        what: &str,
        timeout: Duration,
        mut wanted: impl FnMut(LinkEvent) -> Option<T>,
    ) -> T {
        let end = Instant::now() + timeout;
        let mut passed_over = Vec::new();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let event = self.events.recv_timeout(left).unwrap_or_else(|_| {
                panic!("waited {timeout:?} in vain for {what}; passed over: {passed_over:#?}")
            });
            passed_over.push(format!("{event:?}"));
            if let Some(found) = wanted(event) {
                return found;
            }
        }
    }

    /// Whether the session was present.
    pub(crate) fn connected(&self) -> bool {
        self.wait("a connection", 2 * SOON, |event| match event {
            LinkEvent::Connected { session_present, .. } => Some(session_present),
            _ => None,
        })
    }

    /// Why the connection was lost.
    pub(crate) fn disconnected(&self, timeout: Duration) -> String {
        self.wait("a lost connection", timeout, |event| match event {
            LinkEvent::Disconnected { reason, .. } => Some(reason),
            _ => None,
        })
    }

    /// The next lost connection: why, and when the next attempt is made.
    pub(crate) fn lost(&self) -> (String, Duration) {
        self.wait("a lost connection", 2 * SOON, |event| match event {
            LinkEvent::Disconnected { reason, retry_in } => Some((reason, retry_in)),
            _ => None,
        })
    }

    /// What became of a parcel.
    pub(crate) fn delivery(&self, wanted: u64) -> Delivery {
        self.wait("what became of a parcel", 2 * SOON, |event| match event {
            LinkEvent::Parcel { ticket, delivery } if ticket == wanted => Some(delivery),
            _ => None,
        })
    }

    pub(crate) fn order(&self) -> (String, AckToken) {
        self.wait("an order", 2 * SOON, |event| match event {
            LinkEvent::Desired { envelope, token } => {
                Some((String::from_utf8(envelope).unwrap(), token))
            }
            _ => None,
        })
    }

    pub(crate) fn set_reported(&self, text: &str) {
        self.handle.set_reported(text.as_bytes());
    }

    /// Expects that nothing happens for a while.
    pub(crate) fn stays_quiet(&self, duration: Duration) {
        if let Ok(event) = self.events.recv_timeout(duration) {
            panic!("unexpected: {event:?}");
        }
    }

    /// Those events that came and were not waited for.
    pub(crate) fn pending(&self) -> Vec<LinkEvent> {
        self.events.try_iter().collect()
    }

    /// Ends it as a power cut would: the socket closes and nothing is said.
    pub(crate) fn crash(mut self) {
        self.end();
    }

    /// Ends it in order.
    pub(crate) fn leave(mut self) {
        self.leave.take().unwrap().send(()).unwrap();
        self.thread.take().unwrap().join().unwrap();
    }

    fn end(&mut self) {
        drop(self.crash.take());
        if let Some(thread) = self.thread.take() {
            assert!(thread.join().is_ok() || std::thread::panicking(), "the link panicked");
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.end();
    }
}
