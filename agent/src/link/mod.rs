//! The link to the cloud: MQTT 5 over TLS with a client certificate.
//!
//! In: the newest presence and reported state and [`Parcel`]s (through [`LinkHandle`]), and messages
//! on the gateway's topics. Out: [`LinkEvent`]s, which must be read all the time. One task runs
//! [`Link::run`], for ever: whatever is wrong with files, network or broker is an event and is
//! tried again.
//!
//! | file | what it does |
//! |---|---|
//! | [`mqtt`] | one connection; the only user of the MQTT client, and the answer to its faults |
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

mod delay;
mod error;
mod files;
mod mqtt;
mod outbox;
mod serve;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use coracle_protocol::topic::{Kind, ReplyWord};
use coracle_protocol::{GatewayId, Topic};
use tokio::sync::{mpsc, watch};
use tracing::{debug, warn};

use crate::config::LinkConfig;
use delay::{STABLE, jitter, retry_delay};
use error::LinkError;
use files::Files;
pub use files::check_files;
pub use outbox::{Delivery, Document, Parcel};
use outbox::{Outbox, Value};

/// Events that wait to be read before the link waits too.
const EVENTS: usize = 8;

/// Parcels that wait to be published.
const PARCELS: usize = 4;

/// Acknowledgements that wait to be sent: more than the broker lets us owe.
const ACKNOWLEDGEMENTS: usize = 64;

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
}

impl LinkHandle {
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
        let link = Link {
            files: Files::new(config.ca.clone(), config.cert.clone(), config.key.clone()),
            config,
            gateway,
            offline,
            farewell,
            outbox: Outbox::new(presence, reported, parcels),
            acknowledgements: ack_receiver,
            events: event_sender,
            connections: 0,
        };
        let handle = LinkHandle {
            acknowledgements: ack_sender,
            presence: Arc::new(presence_sender),
            reported: Arc::new(reported_sender),
            farewell: Arc::new(farewell_sender),
            parcels: parcel_sender,
        };
        (link, handle, event_receiver)
    }

    /// Keeps the gateway connected until `shutdown` completes, then publishes that it is offline
    /// and takes leave, for which it has two seconds. Ends also when nobody reads the events any
    /// more.
    pub async fn run(mut self, shutdown: impl Future<Output = ()> + Send) {
        let mut shutdown = pin!(shutdown);
        let window = Duration::from_secs(self.config.reconnect_window_seconds.into());
        let mut failures = 0;
        let mut last_reason = String::new();
        loop {
            let (error, lasted) = match self.connect_and_serve(shutdown.as_mut()).await {
                End::Shutdown => return,
                End::Lost { error, lasted } => (error, lasted),
            };
            if lasted >= STABLE {
                failures = 0;
            }
            let retry_in = retry_delay(window, failures, error.cause(), jitter());
            if error.cause() == delay::Cause::Other {
                failures = failures.saturating_add(1);
            }
            let reason = error.sentence();
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
                () = self.wait(retry_in) => {}
            }
        }
    }

    /// Lets the time go by; acknowledgements are void meanwhile, and parcels are lost.
    async fn wait(&mut self, duration: Duration) {
        let mut sleep = pin!(tokio::time::sleep(duration));
        loop {
            let ticket = tokio::select! {
                () = sleep.as_mut() => return,
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
        let topics = self.subscriptions();
        let (sender, mut connection) = mqtt::connect(
            mqtt::Parameters {
                host: &self.config.host,
                port: self.config.port,
                client_id: self.gateway.to_string(),
                tls,
                keep_alive: Duration::from_secs(self.config.keep_alive_seconds.into()),
                session_expiry_seconds: self.config.session_expiry_seconds,
                will_topic: self.topic(Kind::Status),
                will: &self.offline,
            },
            topics,
        );
        self.serve(&sender, &mut connection, shutdown).await
    }

    fn subscriptions(&self) -> Vec<String> {
        Kind::TO_GATEWAY.into_iter().map(|kind| self.topic(kind)).collect()
    }

    fn topic(&self, kind: Kind) -> String {
        Topic::new(self.gateway, kind).to_string()
    }
}
