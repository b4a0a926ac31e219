//! One MQTT 5 connection: the only user of rumqttc, and the answer to its known faults.
//!
//! | fault | answer |
//! |---|---|
//! | loses unacknowledged messages when the session is lost, or replays them out of date | nothing is kept here: [`outbox`](super::outbox) does; every connection is a new client |
//! | a peer that stops reading, or is half-open, goes unnoticed | [`Connection::next`] gives up when nothing was heard for 1.5 keep-alives |
//! | reconnects for ever over a packet that the broker cannot take | [`Limits`] are checked before a packet is queued; topic aliases are not used |
//! | wedged after a packet-id collision or an unsolicited acknowledgement | one publish in flight; either is an error that ends the connection |
//! | 14 MB for in-flight slots; packets over 10 KiB refused | both limits are set |
//! | a server keep-alive of 0 makes it ping without pause | our own is put back |
//!
//! Deliberately not here: when to reconnect, and what to publish.

use std::sync::Arc;
use std::time::Duration;

use coracle_protocol::limits::MAX_PACKET_BYTES;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{
    ConnAck, ConnectProperties, Filter, LastWill, Packet, PubAckReason, Publish, PublishProperties,
    SubscribeReasonCode,
};
use rumqttc::v5::{AsyncClient, ConnectionError, Event, EventLoop, MqttOptions, StateError};
use rumqttc::{TlsConfiguration, Transport};
use rustls::ClientConfig;
use tokio::time::{Instant, timeout_at};

use super::error::LinkError;
use crate::clock::runtime_now;

/// From the first packet to the broker's answer, in all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// Acknowledgements that the broker may leave us owing; it sends no further message before one.
const RECEIVE_MAXIMUM: u16 = 8;

/// Bounds the client's table of packets in flight.
const IN_FLIGHT_LIMIT: u16 = 16;

/// Room for every acknowledgement owed, a subscription, two publishes and a farewell.
const REQUESTS: usize = 16;

/// The least keep-alive that the client accepts.
const LEAST_KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Who connects where.
pub(super) struct Parameters<'a> {
    pub(super) host: &'a str,
    pub(super) port: u16,
    pub(super) client_id: String,
    pub(super) tls: Arc<ClientConfig>,
    pub(super) keep_alive: Duration,
    pub(super) session_expiry_seconds: u32,
    pub(super) will_topic: String,
    pub(super) will: &'a [u8],
}

/// What came from the broker.
#[derive(Debug)]
pub(super) enum Incoming {
    /// The connection is made.
    Connected { session_present: bool, limits: Limits },
    /// The subscription stands.
    Subscribed,
    /// A message.
    Message(Message),
    /// The oldest publish was acknowledged.
    Published,
    /// The oldest publish was refused.
    PublishRefused { reason: String },
    /// Our farewell is on its way.
    Left,
}

/// A message from the broker.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) topic: String,
    pub(super) payload: Vec<u8>,
    /// 0 where no acknowledgement is owed.
    pub(super) packet: u16,
    pub(super) response_topic: Option<String>,
    pub(super) correlation: Vec<u8>,
}

/// A message to the broker.
#[derive(Debug)]
pub(super) struct Outgoing<'a> {
    pub(super) topic: &'a str,
    pub(super) payload: &'a [u8],
    pub(super) retain: bool,
    /// The broker is to acknowledge it.
    pub(super) acknowledged: bool,
    /// Given back to who asked for it; may be empty.
    pub(super) correlation: &'a [u8],
}

/// What the broker takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Largest packet, in bytes.
    pub(super) packet: usize,
    retain: bool,
}

impl Limits {
    fn of(connack: &ConnAck) -> Result<Self, LinkError> {
        let properties = connack.properties.as_ref();
        if properties.and_then(|p| p.receive_max) == Some(0) {
            return Err(LinkError::Protocol("it announced a receive maximum of 0".into()));
        }
        let packet = properties.and_then(|p| p.max_packet_size).unwrap_or(u32::MAX);
        Ok(Self {
            packet: usize::try_from(packet).map_or(MAX_PACKET_BYTES, |p| p.min(MAX_PACKET_BYTES)),
            retain: properties.and_then(|p| p.retain_available) != Some(0),
        })
    }
}

/// Queues packets for a [`Connection`]; never waits.
pub(super) struct Sender {
    client: AsyncClient,
}

/// The packet is larger than the broker takes.
#[derive(Debug, thiserror::Error)]
#[error("its packet of {size} bytes is larger than the {limit} that the broker takes")]
pub(super) struct PacketTooLarge {
    size: usize,
    limit: usize,
}

impl Sender {
    /// Asks for messages on `topics`, the retained ones first.
    pub(super) fn subscribe(&self, topics: &[String]) -> Result<(), LinkError> {
        let filter = |topic: &String| Filter::new(topic.clone(), QoS::AtLeastOnce);
        self.client.try_subscribe_many(topics.iter().map(filter)).map_err(|_| queue_full())
    }

    /// Publishes a message, unless it is larger than the broker takes.
    pub(super) fn publish(
        &self,
        message: &Outgoing<'_>,
        limits: Limits,
    ) -> Result<Result<(), PacketTooLarge>, LinkError> {
        let Outgoing { topic, payload, retain, acknowledged, correlation } = *message;
        let qos = if acknowledged { QoS::AtLeastOnce } else { QoS::AtMostOnce };
        let properties = (!correlation.is_empty()).then(|| PublishProperties {
            correlation_data: Some(correlation.to_vec().into()),
            ..PublishProperties::default()
        });
        let mut packet = Publish::new(topic, qos, payload.to_vec(), properties);
        packet.pkid = 1;
        let (size, limit) = (packet.size(), limits.packet);
        if size > limit {
            return Ok(Err(PacketTooLarge { size, limit }));
        }
        let retain = retain && limits.retain;
        let queued = match packet.properties {
            Some(properties) => self.client.try_publish_with_properties(
                topic,
                qos,
                retain,
                packet.payload,
                properties,
            ),
            None => self.client.try_publish(topic, qos, retain, packet.payload),
        };
        queued.map_err(|_| queue_full())?;
        Ok(Ok(()))
    }

    /// Acknowledges a message of this connection.
    pub(super) fn acknowledge(&self, packet: u16) -> Result<(), LinkError> {
        if packet == 0 {
            return Ok(());
        }
        let mut owed = Publish::new("", QoS::AtLeastOnce, Vec::new(), None);
        owed.pkid = packet;
        self.client.try_ack(&owed).map_err(|_| queue_full())
    }

    /// Takes leave, so that the broker does not publish the last will.
    pub(super) fn leave(&self) -> Result<(), LinkError> {
        self.client.try_disconnect().map_err(|_| queue_full())
    }
}

/// The queue has room for all that can be owed, so this connection is stuck.
fn queue_full() -> LinkError {
    LinkError::Protocol("it takes no more packets".into())
}

/// One connection, from the first packet until it is lost. Dropping it closes its socket.
pub(super) struct Connection {
    eventloop: EventLoop,
    broker: String,
    topics: Vec<String>,
    keep_alive: Duration,
    /// When the broker was last heard; none before it has accepted the connection.
    heard: Option<Instant>,
    started: Instant,
}

/// A connection that [`Connection::next`] makes and keeps; `topics` are what will be subscribed to.
pub(super) fn connect(parameters: Parameters<'_>, topics: Vec<String>) -> (Sender, Connection) {
    let Parameters { host, port, client_id, tls, keep_alive, will_topic, will, .. } = parameters;
    let keep_alive = keep_alive.max(LEAST_KEEP_ALIVE);
    let mut properties = ConnectProperties::new();
    properties.session_expiry_interval = Some(parameters.session_expiry_seconds);
    properties.receive_maximum = Some(RECEIVE_MAXIMUM);
    properties.max_packet_size = u32::try_from(MAX_PACKET_BYTES).ok();

    let mut options = MqttOptions::new(client_id, host, port);
    options
        .set_transport(Transport::Tls(TlsConfiguration::Rustls(tls)))
        .set_keep_alive(keep_alive)
        .set_clean_start(false)
        .set_manual_acks(true)
        .set_connect_properties(properties)
        .set_connection_timeout(CONNECT_TIMEOUT.as_secs())
        .set_outgoing_inflight_upper_limit(IN_FLIGHT_LIMIT)
        .set_last_will(LastWill::new(will_topic, will, QoS::AtLeastOnce, true, None));
    let mut network = options.network_options();
    network.set_tcp_nodelay(true);
    options.set_network_options(network);

    let (client, eventloop) = AsyncClient::new(options, REQUESTS);
    let connection = Connection {
        eventloop,
        broker: format!("{host}:{port}"),
        topics,
        keep_alive,
        heard: None,
        started: runtime_now(),
    };
    (Sender { client }, connection)
}

impl Connection {
    /// How long an answer to a subscription or a publish is waited for from a broker that is
    /// otherwise alive.
    pub(super) fn answer_timeout(&self) -> Duration {
        self.keep_alive * 3
    }

    /// The next thing that matters from the broker. Not safe to cancel before a connection ends:
    /// the future is to be kept while other things are waited for.
    ///
    /// # Errors
    /// The connection was not made, or is lost; it is of no further use.
    pub(super) async fn next(&mut self) -> Result<Incoming, LinkError> {
        loop {
            let deadline = match self.heard {
                Some(heard) => heard + self.keep_alive.mul_f64(1.5),
                None => self.started + CONNECT_TIMEOUT,
            };
            let event = match timeout_at(deadline, self.eventloop.poll()).await {
                Ok(event) => event.map_err(|error| self.lost(error))?,
                Err(_) => return Err(self.silent()),
            };
            match event {
                Event::Incoming(packet) => {
                    self.heard = Some(runtime_now());
                    if let Some(incoming) = self.receive(packet)? {
                        return Ok(incoming);
                    }
                }
                Event::Outgoing(rumqttc::Outgoing::Disconnect) => return Ok(Incoming::Left),
                Event::Outgoing(rumqttc::Outgoing::AwaitAck(_)) => {
                    return Err(LinkError::Protocol("packet ids collide".into()));
                }
                Event::Outgoing(_) => {}
            }
        }
    }

    fn receive(&mut self, packet: Packet) -> Result<Option<Incoming>, LinkError> {
        Ok(Some(match packet {
            Packet::ConnAck(connack) => {
                let limits = Limits::of(&connack)?;
                self.settle_keep_alive();
                Incoming::Connected { session_present: connack.session_present, limits }
            }
            Packet::SubAck(suback) => {
                let good = |code| matches!(code, Some(SubscribeReasonCode::Success(_)));
                let codes = &suback.return_codes;
                for (at, topic) in self.topics.iter().enumerate() {
                    let code = codes.get(at).copied();
                    if !good(code) {
                        let reason = format!("{code:?}");
                        return Err(LinkError::NotSubscribed { topic: topic.clone(), reason });
                    }
                }
                Incoming::Subscribed
            }
            Packet::Publish(publish) => {
                let properties = publish.properties.unwrap_or_default();
                Incoming::Message(Message {
                    topic: String::from_utf8_lossy(&publish.topic).into_owned(),
                    payload: publish.payload.into(),
                    packet: publish.pkid,
                    response_topic: properties.response_topic,
                    correlation: properties.correlation_data.unwrap_or_default().into(),
                })
            }
            Packet::PubAck(puback) => match puback.reason {
                PubAckReason::Success | PubAckReason::NoMatchingSubscribers => Incoming::Published,
                reason => Incoming::PublishRefused { reason: format!("{reason:?}") },
            },
            _ => return Ok(None),
        }))
    }

    /// The broker may have asked for another keep-alive, and the client has then taken it over.
    fn settle_keep_alive(&mut self) {
        let asked = self.eventloop.options.keep_alive();
        if asked.is_zero() {
            self.eventloop.options.set_keep_alive(self.keep_alive);
        } else {
            self.keep_alive = asked;
        }
    }

    fn silent(&self) -> LinkError {
        match self.heard {
            Some(heard) => LinkError::Silent(heard.elapsed()),
            None => self.timed_out(),
        }
    }

    fn timed_out(&self) -> LinkError {
        LinkError::TimedOut { broker: self.broker.clone(), limit: CONNECT_TIMEOUT }
    }

    fn lost(&self, error: ConnectionError) -> LinkError {
        let connected = self.heard.is_some();
        match error {
            ConnectionError::Timeout(_) => self.timed_out(),
            ConnectionError::Io(error) => LinkError::from_io(error, connected, &self.broker),
            ConnectionError::Tls(rumqttc::TlsError::Io(error)) => {
                LinkError::from_io(error, connected, &self.broker)
            }
            ConnectionError::Tls(rumqttc::TlsError::TLS(error)) => LinkError::from_tls(error),
            ConnectionError::ConnectionRefused(code) => LinkError::Refused(format!("{code:?}")),
            ConnectionError::MqttState(state) => self.broken(state, connected),
            other => LinkError::Protocol(other.to_string()),
        }
    }

    fn broken(&self, state: StateError, connected: bool) -> LinkError {
        use rumqttc::v5::mqttbytes::Error;
        match state {
            StateError::Io(error) | StateError::Deserialization(Error::Io(error)) => {
                LinkError::from_io(error, connected, &self.broker)
            }
            StateError::ServerDisconnect { reason_code, reason_string } => {
                LinkError::SentAway(match reason_string {
                    Some(text) => format!("{reason_code:?} ({:.200})", text),
                    None => format!("{reason_code:?}"),
                })
            }
            StateError::ConnectionAborted => LinkError::Closed,
            StateError::AwaitPingResp => self.silent(),
            other => LinkError::Protocol(other.to_string()),
        }
    }
}
