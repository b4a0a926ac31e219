//! The link to the cloud: MQTT 5 over TLS with a client certificate.
//!
//! In: the newest presence and reported state and [`Parcel`]s (through [`LinkHandle`]), and messages
//! on the gateway's topics. Out: [`LinkEvent`]s, which must be read all the time. One task runs
//! [`Link::run`], for ever: whatever is wrong with files, network or broker is an event and is
//! tried again.
//!
//! | file | what it does |
//! |---|---|
//! | [`mqtt`] | one connection's packets, what is asked of it by [`sender`], what they mean by [`reason`] |
//! | [`wire`] | one connection's bytes: TCP, [`proxy`], TLS, WebSocket |
//! | [`route`] | which server to connect to |
//! | [`traffic`] | what it costs, by kind |
//! | [`serve`] | one connection's life: subscribe, deliver, acknowledge, publish, take leave |
//! | [`outbox`] | what is to be published; the newest value alone counts |
//! | [`files`] | certificates and key |
//! | [`delay`] | how long to wait before the next attempt |
//! | [`error`] | why there is no connection |
//!
//! An order that is not acknowledged is delivered again after a reconnect, as is the retained one
//! after every reconnect: the gateway asks for it each time by subscribing again. An order may
//! therefore come more than once, also after it was acknowledged. Deliberately not here: what an
//! envelope says, whether it is trusted, and what the published documents contain.

pub mod delay;
mod error;
mod files;
mod mqtt;
mod outbox;
mod proxy;
mod reason;
mod route;
mod sender;
mod serve;
mod traffic;
mod wire;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use coracle_protocol::topic::{Kind, ReplyWord};
use coracle_protocol::{GatewayId, Topic};
use tokio::sync::{mpsc, watch};
use tracing::{debug, warn};

use crate::config::LinkConfig;
use delay::{Cause, failures_after, failures_before, jitter, retry_delay};
use error::LinkError;
use files::Files;
pub use files::check_files;
pub use outbox::{Delivery, Document, Parcel};
use outbox::{Outbox, Value};
use route::{Redirect, Route};
use traffic::Meter;
pub use traffic::Usage;
use wire::Way;

/// Events that wait to be read before the link waits too.
const EVENTS: usize = 8;

/// Parcels that wait to be published.
const PARCELS: usize = 4;

/// Acknowledgements that wait to be sent: more than the broker lets us owe.
const ACKNOWLEDGEMENTS: usize = 64;

/// Most characters of a broker's reference to another server that are told.
const MAX_REFERENCE: usize = 200;

/// How often the files are looked at while the broker does not want this gateway.
const FILES_PERIOD: Duration = Duration::from_secs(10);

/// What the fleet asks of links. Kept by whoever is told of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// Window of the first reconnect delay, in place of the configured one; at most an hour counts.
    pub reconnect_window: Option<Duration>,
}

/// What happens on the link.
#[derive(Debug)]
pub enum LinkEvent {
    /// The broker accepted the connection.
    Connected {
        /// Whether it still knew of the last one's subscription and unacknowledged messages.
        session_present: bool,
        /// Largest packet that the broker takes and that we send, in bytes.
        packet_limit: usize,
    },
    /// There is no connection: an attempt failed, or the connection was lost.
    Disconnected {
        /// Why, for people.
        reason: String,
        /// When the next attempt is made.
        retry_in: Duration,
    },
    /// A message on the gateway's `desired` topic, at most 128 KiB. Must be acknowledged through
    /// [`LinkHandle::acknowledge`] once it is committed or dropped.
    Desired {
        /// The payload, as received.
        envelope: Vec<u8>,
        /// What it is acknowledged with.
        token: AckToken,
    },
    /// A message on the gateway's `commands` topic. To be acknowledged like an order.
    Command {
        /// The payload, as received.
        envelope: Vec<u8>,
        /// Where it asks for its results.
        reply: Option<ReplyWord>,
        /// What it asks to have back with them, at most 128 bytes.
        correlation: Vec<u8>,
        /// What it is acknowledged with.
        token: AckToken,
    },
    /// A message on the gateway's `receipts` topic. It is acknowledged already.
    Receipt(Vec<u8>),
    /// A message on the gateway's `chunks` topic. It is acknowledged already.
    Chunk(Vec<u8>),
    /// What became of a parcel.
    Parcel {
        /// Which one.
        ticket: u64,
        /// What became of it.
        delivery: Delivery,
    },
    /// The broker refused a subscription other than that to orders; the link goes on without. Said
    /// once for each topic and reason.
    NotSubscribed {
        /// To which topic.
        topic: String,
        /// Why, for people.
        reason: String,
    },
    /// A document could not be published. Its next value is tried, and this one on the next
    /// connection.
    NotPublished {
        /// Which one.
        document: Document,
        /// Why, for people.
        reason: String,
    },
}

/// The acknowledgement that is owed for one message.
#[derive(Debug)]
pub struct AckToken {
    connection: u64,
    packet: u16,
}

/// What the rest of the agent tells the link. Cheap to clone; never waits.
#[derive(Clone, Debug)]
pub struct LinkHandle {
    acknowledgements: mpsc::Sender<AckToken>,
    presence: Arc<watch::Sender<Value>>,
    reported: Arc<watch::Sender<Value>>,
    farewell: Arc<watch::Sender<Value>>,
    parcels: mpsc::Sender<Parcel>,
    hints: Arc<watch::Sender<Hints>>,
    meter: Arc<Meter>,
}

impl LinkHandle {
    /// What the fleet asks of this link from now on.
    pub fn hint(&self, hints: Hints) {
        self.hints.send_replace(hints);
    }

    /// What the link has cost since it was made.
    pub fn usage(&self) -> Usage {
        self.meter.usage()
    }

    /// Publishes a parcel. Gives it back where as many wait as may.
    ///
    /// # Errors
    /// The parcel, which was not taken.
    pub fn send(&self, parcel: Parcel) -> Result<(), Parcel> {
        self.parcels.try_send(parcel).map_err(mpsc::error::TrySendError::into_inner)
    }

    /// Acknowledges a message, so that the broker does not deliver it again. Void if the
    /// connection that it came by is gone.
    pub fn acknowledge(&self, token: AckToken) {
        if self.acknowledgements.try_send(token).is_err() {
            warn!("an acknowledgement was dropped; the order will be delivered again");
        }
    }

    /// Sets the newest presence ([`coracle_protocol::Presence`] as JSON).
    pub fn set_presence(&self, presence: impl Into<Arc<[u8]>>) {
        self.presence.send_replace(Some(presence.into()));
    }

    /// Sets what is published as presence when the agent takes leave; until then it is the last will.
    pub fn set_farewell(&self, presence: impl Into<Arc<[u8]>>) {
        self.farewell.send_replace(Some(presence.into()));
    }

    /// Sets the newest reported state ([`coracle_protocol::ReportedState`] as JSON).
    pub fn set_reported(&self, reported: impl Into<Arc<[u8]>>) {
        self.reported.send_replace(Some(reported.into()));
    }
}

/// The link, not yet running.
pub struct Link {
    config: LinkConfig,
    gateway: GatewayId,
    /// Presence that says offline: the last will.
    offline: Vec<u8>,
    /// The same with a reason, for who takes leave.
    farewell: watch::Receiver<Value>,
    files: Files,
    outbox: Outbox,
    acknowledgements: mpsc::Receiver<AckToken>,
    events: mpsc::Sender<LinkEvent>,
    connections: u64,
    route: Route,
    hints: watch::Receiver<Hints>,
    meter: Arc<Meter>,
    /// Topics that the broker refused last time, and why.
    refused_topics: Vec<(String, String)>,
    /// What delays are multiplied by; 1 but in tests.
    pace: f64,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("gateway", &self.gateway).finish_non_exhaustive()
    }
}

/// How a connection ended.
enum End {
    /// The agent is going down.
    Shutdown,
    /// It was not made, or it was lost.
    Lost { error: LinkError, lasted: Duration },
}

impl Link {
    /// A link for one gateway. `offline` is the presence, as JSON, that the broker publishes when
    /// the connection is lost. No file is read yet.
    pub fn new(
        config: LinkConfig,
        gateway: GatewayId,
        offline: Vec<u8>,
    ) -> (Link, LinkHandle, mpsc::Receiver<LinkEvent>) {
        let (event_sender, event_receiver) = mpsc::channel(EVENTS);
        let (ack_sender, ack_receiver) = mpsc::channel(ACKNOWLEDGEMENTS);
        let (presence_sender, presence) = watch::channel(None);
        let (reported_sender, reported) = watch::channel(None);
        let (farewell_sender, farewell) = watch::channel(None);
        let (parcel_sender, parcels) = mpsc::channel(PARCELS);
        let (hint_sender, hints) = watch::channel(Hints::default());
        let meter = Arc::new(Meter::default());
        let link = Link {
            files: Files::new(config.ca.clone(), config.cert.clone(), config.key.clone()),
            route: Route::new(config.broker(), config.alternatives.clone()),
            config,
            gateway,
            offline,
            farewell,
            outbox: Outbox::new(presence, reported, parcels),
            acknowledgements: ack_receiver,
            events: event_sender,
            connections: 0,
            hints,
            meter: Arc::clone(&meter),
            refused_topics: Vec::new(),
            pace: 1.0,
        };
        let handle = LinkHandle {
            acknowledgements: ack_sender,
            presence: Arc::new(presence_sender),
            reported: Arc::new(reported_sender),
            farewell: Arc::new(farewell_sender),
            parcels: parcel_sender,
            hints: Arc::new(hint_sender),
            meter,
        };
        (link, handle, event_receiver)
    }

    /// Without any delay between attempts: for tests with thousands of connections, and for nothing
    /// else.
    #[doc(hidden)]
    pub fn without_pauses(mut self) -> Self {
        self.pace = 0.0;
        self
    }

    /// Keeps the gateway connected until `shutdown` completes, then publishes that it is offline
    /// and takes leave, for which it has two seconds. Ends also when nobody reads the events any
    /// more.
    pub async fn run(mut self, shutdown: impl Future<Output = ()> + Send) {
        let mut shutdown = pin!(shutdown);
        let mut failures = 0;
        let mut last_reason = String::new();
        loop {
            let (error, lasted) = match self.connect_and_serve(shutdown.as_mut()).await {
                End::Shutdown => return,
                End::Lost { error, lasted } => (error, lasted),
            };
            let (cause, sentence) = self.judge(&error);
            failures = failures_before(failures, cause, lasted);
            let retry_in = retry_delay(self.window(), failures, cause, jitter());
            let retry_in = retry_in.mul_f64(self.pace);
            failures = failures_after(failures, cause);
            let reason = sentence;
            let retry_in_ms = u64::try_from(retry_in.as_millis()).unwrap_or(u64::MAX);
            if reason == last_reason {
                debug!(reason, retry_in_ms, failures, "no link to the broker");
            } else {
                warn!(reason, retry_in_ms, failures, "no link to the broker");
                last_reason.clone_from(&reason);
            }
            let lost = self.outbox.disconnected().into_iter();
            let lost = lost.map(|ticket| LinkEvent::Parcel { ticket, delivery: Delivery::Lost });
            for event in lost.chain([LinkEvent::Disconnected { reason, retry_in }]) {
                tokio::select! {
                    () = shutdown.as_mut() => return,
                    sent = self.events.send(event) => if sent.is_err() { return },
                }
            }
            tokio::select! {
                () = shutdown.as_mut() => return,
                () = self.wait(retry_in, cause) => {}
            }
        }
    }

    /// What follows from the end of a connection, and how it is told.
    fn judge(&mut self, error: &LinkError) -> (Cause, String) {
        let sentence = error.sentence();
        let Some(reference) = error.elsewhere() else {
            self.route.ended();
            return (error.cause(), sentence);
        };
        match self.route.redirect(reference) {
            Redirect::To(server) => (Cause::Redirected, format!("{sentence}; going to {server}")),
            Redirect::Again(server) => (Cause::Other, format!("{sentence}; going to {server}")),
            Redirect::NotAllowed => {
                let named: String =
                    reference.chars().filter(|c| !c.is_control()).take(MAX_REFERENCE).collect();
                let named = if named.is_empty() { "no server".into() } else { named };
                (
                    Cause::Other,
                    format!("{sentence}; it names {named}, which is not in link.alternatives"),
                )
            }
        }
    }

    /// Of the first reconnect delay.
    fn window(&self) -> Duration {
        let configured = Duration::from_secs(self.config.reconnect_window_seconds.into());
        self.hints.borrow().reconnect_window.unwrap_or(configured)
    }

    /// Lets the time go by; acknowledgements are void meanwhile, and parcels are lost. Ends early
    /// when the broker did not want this gateway and there are other certificates now.
    async fn wait(&mut self, duration: Duration, cause: Cause) {
        let mut sleep = pin!(tokio::time::sleep(duration));
        let mut looks = tokio::time::interval(FILES_PERIOD);
        looks.reset();
        loop {
            let ticket = tokio::select! {
                () = sleep.as_mut() => return,
                _ = looks.tick(), if cause == Cause::NotWelcome => {
                    if self.files.changed() {
                        return;
                    }
                    continue;
                }
                Some(_) = self.acknowledgements.recv() => continue,
                ticket = self.outbox.undeliverable() => ticket,
            };
            let lost = LinkEvent::Parcel { ticket, delivery: Delivery::Lost };
            if self.events.send(lost).await.is_err() {
                return;
            }
        }
    }

    async fn connect_and_serve(&mut self, shutdown: serve::Shutdown<'_>) -> End {
        let tls = match self.files.load() {
            Ok(tls) => tls,
            Err(error) => return End::Lost { error: error.into(), lasted: Duration::ZERO },
        };
        self.connections += 1;
        let (sender, mut connection) = mqtt::connect(mqtt::Parameters {
            way: Way {
                broker: self.route.target().clone(),
                tls,
                proxy: self.config.proxy.clone(),
                websocket_path: self.config.websocket_path.clone(),
            },
            client_id: self.gateway.to_string(),
            keep_alive: Duration::from_secs(self.config.keep_alive_seconds.into()),
            session_expiry_seconds: self.config.session_expiry_seconds,
            will_topic: self.topic(Kind::Status),
            will: self.offline.clone(),
            will_delay_seconds: self.config.will_delay_seconds,
            // Orders first: without them the link is of no use.
            topics: Kind::TO_GATEWAY.into_iter().map(|kind| self.topic(kind)).collect(),
            meter: Arc::clone(&self.meter),
        });
        self.serve(&sender, &mut connection, shutdown).await
    }

    fn topic(&self, kind: Kind) -> String {
        Topic::new(self.gateway, kind).to_string()
    }
}

/// The other end of a [`LinkHandle`] without a link.
#[cfg(test)]
pub(crate) mod fake {
    use super::*;

    pub(crate) struct OtherEnd {
        pub(crate) acknowledgements: mpsc::Receiver<AckToken>,
        pub(crate) parcels: mpsc::Receiver<Parcel>,
        pub(crate) presence: watch::Receiver<Option<Arc<[u8]>>>,
        pub(crate) farewell: watch::Receiver<Option<Arc<[u8]>>>,
    }

    pub(crate) fn handle() -> (LinkHandle, OtherEnd) {
        let (ack_sender, acknowledgements) = mpsc::channel(ACKNOWLEDGEMENTS);
        let (presence_sender, presence) = watch::channel(None);
        let (reported_sender, _) = watch::channel(None);
        let (farewell_sender, farewell) = watch::channel(None);
        let (parcel_sender, parcels) = mpsc::channel(PARCELS);
        let (hint_sender, _) = watch::channel(Hints::default());
        let handle = LinkHandle {
            acknowledgements: ack_sender,
            presence: Arc::new(presence_sender),
            reported: Arc::new(reported_sender),
            parcels: parcel_sender,
            farewell: Arc::new(farewell_sender),
            hints: Arc::new(hint_sender),
            meter: Arc::default(),
        };
        (handle, OtherEnd { acknowledgements, parcels, presence, farewell })
    }

    pub(crate) fn token(packet: u16) -> AckToken {
        AckToken { connection: 1, packet }
    }
}
