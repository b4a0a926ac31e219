//! One MQTT 5 connection: packets over a [`Wire`](super::wire). The only user of rumqttc, of which
//! the codec alone is used: its event loop hides what a broker says when it refuses (where to go
//! instead), what was sent for what, and can be led neither through proxies nor WebSockets without
//! much more code. See ADR 20.
//!
//! | what goes wrong with clients | answer |
//! |---|---|
//! | the session is lost, and with it what was not acknowledged | nothing is kept here: [`outbox`](super::outbox) does; every connection is a new client |
//! | a peer that stops reading, or is half-open, goes unnoticed | reading and writing go on beside each other; [`Connection::next`] gives up when nothing was heard for 1.5 keep-alives |
//! | a packet that the broker cannot take | [`Limits`] are checked before a packet is queued, also for subscriptions; topic aliases are not used |
//! | packet ids collide | one publish in flight, and a farewell; an id is used again after 65,535 others |
//! | the broker takes fewer packets at once than before | it is asked anew at each connection, and the queue waits |
//! | packets over 10 KiB; 14 MB for in-flight slots | the limit is ours; there are no slots |
//! | a packet that ends too soon is silently dropped by the codec | it is an error |
//! | a server keep-alive of 0 makes it ping without pause | our own stays |
//!
//! Deliberately not here: when to reconnect, and what to publish.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use coracle_core::budget::TrafficKind;
use coracle_protocol::limits::MAX_PACKET_BYTES;
use rumqttc::v5::mqttbytes::v5::{
    ConnAck, Connect, ConnectProperties, ConnectReturnCode, Disconnect, DisconnectReasonCode,
    Filter, LastWill, LastWillProperties, Packet, PingReq, PubAck, PubAckReason, SubAck, Subscribe,
    SubscribeReasonCode, check,
};
use rumqttc::v5::mqttbytes::{Error as CodecError, QoS};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::error::LinkError;
use super::reason::{codec_error, reason_of_connack, reason_of_disconnect, unexpected};
use super::sender::{Limits, Request, Sender, queue};
use super::traffic::{Answer, Meter};
use super::wire::{self, Progress, Tally, Way, Wire};
use crate::clock::runtime_now;

/// From the look-up of the name to the broker's answer, in all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// Acknowledgements that the broker may leave us owing; it sends no further message before one.
const RECEIVE_MAXIMUM: u16 = 8;

/// Buffers are given back when they were larger and are empty.
const LARGE_BUFFER: usize = 16 * 1024;

/// Who connects where.
pub(super) struct Parameters {
    pub(super) way: Way,
    pub(super) client_id: String,
    pub(super) keep_alive: Duration,
    pub(super) session_expiry_seconds: u32,
    pub(super) will_topic: String,
    pub(super) will: Vec<u8>,
    pub(super) will_delay_seconds: u32,
    /// What is subscribed to. The first one must be granted.
    pub(super) topics: Vec<String>,
    /// Where bytes are counted.
    pub(super) meter: Arc<Meter>,
}

/// What came from the broker.
#[derive(Debug)]
pub(super) enum Incoming {
    /// The connection is made.
    Connected { session_present: bool, limits: Limits },
    /// The subscription stands, but for these topics and for these reasons.
    Subscribed { refused: Vec<(String, String)> },
    /// A message.
    Message(Message),
    /// The oldest publish was acknowledged; one that is not to be acknowledged is on its way.
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

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The CONNECT was sent.
    Greeting,
    /// The broker has accepted it.
    Accepted,
    /// The DISCONNECT was sent.
    Leaving,
}

/// What follows when a packet is with the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Nothing,
    Published,
    Left,
}

/// A subscription that is not answered: its packet id, and which topics it is for.
struct Asked {
    id: u16,
    topics: std::ops::Range<usize>,
}

/// One connection, from the first packet until it is lost. Dropping it closes its socket.
pub(super) struct Connection {
    parameters: Parameters,
    requests: mpsc::Receiver<Request>,
    /// A publish that the broker does not take yet.
    held: Option<Request>,
    wire: Option<Wire>,
    tally: Arc<Tally>,
    stage: Stage,
    limits: Option<Limits>,
    incoming: BytesMut,
    outgoing: BytesMut,
    /// What is on its way to the kernel: how it is counted, and what follows.
    sending: Option<(TrafficKind, Answer, Then)>,
    last_id: u16,
    in_flight: VecDeque<(u16, TrafficKind)>,
    asked: VecDeque<Asked>,
    refused: Vec<(String, String)>,
    keep_alive: Duration,
    started: Instant,
    /// When the broker was last heard; none before it has accepted the connection.
    heard: Option<Instant>,
    spoken: Instant,
    pinged: Instant,
}

/// A connection that [`Connection::next`] makes and keeps.
pub(super) fn connect(parameters: Parameters) -> (Sender, Connection) {
    let (sender, requests) = queue();
    let now = runtime_now();
    let connection = Connection {
        keep_alive: parameters.keep_alive,
        parameters,
        requests,
        held: None,
        wire: None,
        tally: Arc::default(),
        stage: Stage::Greeting,
        limits: None,
        incoming: BytesMut::new(),
        outgoing: BytesMut::new(),
        sending: None,
        last_id: 0,
        in_flight: VecDeque::new(),
        asked: VecDeque::new(),
        refused: Vec::new(),
        started: now,
        heard: None,
        spoken: now,
        pinged: now,
    };
    (sender, connection)
}

impl Connection {
    /// How long an answer to a subscription or a publish is waited for from a broker that is
    /// otherwise alive.
    pub(super) fn answer_timeout(&self) -> Duration {
        self.keep_alive * 3
    }

    /// The next thing that matters from the broker. Safe to cancel once the connection is made.
    ///
    /// # Errors
    /// The connection was not made, or is lost; it is of no further use.
    pub(super) async fn next(&mut self) -> Result<Incoming, LinkError> {
        loop {
            let deadline = match self.heard {
                Some(heard) => heard + self.keep_alive.mul_f64(1.5),
                None => self.started + CONNECT_TIMEOUT,
            };
            match timeout_at(deadline, self.step()).await {
                Ok(Ok(Some(incoming))) => return Ok(incoming),
                Ok(Ok(None)) => {}
                Ok(Err(error)) => return Err(error),
                Err(_) => return Err(self.silent()),
            }
        }
    }

    /// One packet, one write, one request or one ping.
    async fn step(&mut self) -> Result<Option<Incoming>, LinkError> {
        if self.wire.is_none() {
            self.open().await?;
        }
        if let Some(frame) = self.take_frame()? {
            return self.receive(frame);
        }
        let ping_at = self.spoken.min(self.heard.unwrap_or(self.spoken)).max(self.pinged);
        let ping_at = ping_at + self.keep_alive;
        let Some(wire) = &mut self.wire else { return Ok(None) };
        let idle = self.stage == Stage::Accepted
            && self.outgoing.is_empty()
            && wire.is_flushed()
            && self.held.is_none();
        tokio::select! {
            progress = wire.exchange(&mut self.outgoing, &mut self.incoming) => {
                match progress.map_err(|error| self.broken(error))? {
                    Progress::Read => Ok(None),
                    Progress::Written => Ok(self.written()),
                }
            }
            Some(request) = self.requests.recv(), if idle => self.send(request).map(|()| None),
            () = sleep_until(ping_at), if idle => {
                self.pinged = runtime_now();
                self.write(&Packet::PingReq(PingReq), TrafficKind::KeepAlive, Answer::Packet)?;
                Ok(None)
            }
        }
    }

    /// Connects and greets.
    async fn open(&mut self) -> Result<(), LinkError> {
        let Parameters { way, meter, will_topic, will, .. } = &self.parameters;
        let wire = wire::open(way, &self.tally, meter).await?;
        self.wire = Some(wire);
        self.count_handshake();
        let properties = ConnectProperties {
            session_expiry_interval: Some(self.parameters.session_expiry_seconds),
            receive_maximum: Some(RECEIVE_MAXIMUM),
            max_packet_size: u32::try_from(MAX_PACKET_BYTES).ok(),
            ..ConnectProperties::new()
        };
        let connect = Connect {
            keep_alive: u16::try_from(self.keep_alive.as_secs()).unwrap_or(u16::MAX),
            client_id: self.parameters.client_id.clone(),
            clean_start: false,
            properties: Some(properties),
        };
        let delay = LastWillProperties {
            delay_interval: Some(self.parameters.will_delay_seconds),
            payload_format_indicator: None,
            message_expiry_interval: None,
            content_type: None,
            response_topic: None,
            correlation_data: None,
            user_properties: Vec::new(),
        };
        let will = LastWill::new(will_topic, will.as_slice(), QoS::AtLeastOnce, true, Some(delay));
        let packet = Packet::Connect(connect, Some(will), None);
        self.write(&packet, TrafficKind::KeepAlive, Answer::Packet)
    }

    fn send(&mut self, request: Request) -> Result<(), LinkError> {
        match request {
            Request::Subscribe => self.subscribe(),
            Request::Publish(mut publish, kind) => {
                let qos = publish.qos;
                if qos != QoS::AtMostOnce {
                    let most = self.limits.map_or(1, |limits| limits.receive_maximum);
                    if self.in_flight.len() >= most {
                        self.held = Some(Request::Publish(publish, kind));
                        return Ok(());
                    }
                    publish.pkid = self.next_id();
                    self.in_flight.push_back((publish.pkid, kind));
                }
                let packet = Packet::Publish(*publish);
                match qos {
                    QoS::AtMostOnce => self.write_and(&packet, kind, Answer::None, Then::Published),
                    _ => self.write(&packet, kind, Answer::Packet),
                }
            }
            Request::Acknowledge(id) => {
                let packet = Packet::PubAck(PubAck::new(id, None));
                self.write(&packet, TrafficKind::Orders, Answer::None)
            }
            Request::Leave => {
                self.stage = Stage::Leaving;
                let normal = Disconnect::new(DisconnectReasonCode::NormalDisconnection);
                let packet = Packet::Disconnect(normal);
                self.write_and(&packet, TrafficKind::KeepAlive, Answer::None, Then::Left)
            }
        }
    }

    /// Asks for all topics, in as few packets as the broker's limit allows.
    fn subscribe(&mut self) -> Result<(), LinkError> {
        let limit = self.limits.map_or(MAX_PACKET_BYTES, |limits| limits.packet);
        let topics = std::mem::take(&mut self.parameters.topics);
        let packet = |id, range: std::ops::Range<usize>| {
            let filter = |topic: &String| Filter::new(topic.clone(), QoS::AtLeastOnce);
            let mut packet = Subscribe::new_many(topics[range].iter().map(filter), None);
            packet.pkid = id;
            packet
        };
        let mut result = Ok(());
        let mut from = 0;
        while from < topics.len() && result.is_ok() {
            let fits = |to: &usize| packet(1, from..*to).size() <= limit;
            let Some(to) = (from + 1..=topics.len()).rev().find(fits) else {
                if from == 0 {
                    let reason = format!("it takes no packets over {limit} bytes");
                    result = Err(LinkError::NotSubscribed { topic: topics[0].clone(), reason });
                } else {
                    self.refused.push((topics[from].clone(), "the packet is too large".into()));
                }
                from += 1;
                continue;
            };
            let id = self.next_id();
            self.asked.push_back(Asked { id, topics: from..to });
            let packet = Packet::Subscribe(packet(id, from..to));
            result = self.write(&packet, TrafficKind::KeepAlive, Answer::Packet);
            from = to;
        }
        self.parameters.topics = topics;
        result
    }

    fn next_id(&mut self) -> u16 {
        self.last_id = self.last_id.checked_add(1).unwrap_or(1);
        self.last_id
    }

    fn write(
        &mut self,
        packet: &Packet,
        kind: TrafficKind,
        answer: Answer,
    ) -> Result<(), LinkError> {
        self.write_and(packet, kind, answer, Then::Nothing)
    }

    fn write_and(
        &mut self,
        packet: &Packet,
        kind: TrafficKind,
        answer: Answer,
        then: Then,
    ) -> Result<(), LinkError> {
        // What is still on its way has its consequence as well.
        let then = match self.sending {
            Some((_, _, earlier)) if then == Then::Nothing => earlier,
            _ => then,
        };
        self.sending = Some((kind, answer, then));
        self.spoken = runtime_now();
        packet.write(&mut self.outgoing, None).map(drop).map_err(|error| codec_error(&error))
    }

    /// All that was to be written is with the kernel.
    fn written(&mut self) -> Option<Incoming> {
        let (kind, answer, then) = self.sending.take()?;
        let bytes = self.tally.take_sent();
        self.parameters.meter.sent(kind, bytes, answer);
        if bytes > LARGE_BUFFER as u64 {
            self.outgoing = BytesMut::new();
        }
        match then {
            Then::Nothing => None,
            Then::Published => Some(Incoming::Published),
            Then::Left => Some(Incoming::Left),
        }
    }

    /// A whole packet, if there is one.
    fn take_frame(&mut self) -> Result<Option<BytesMut>, LinkError> {
        // The codec looks at the length without the header.
        let limit = u32::try_from(MAX_PACKET_BYTES).ok();
        match check(self.incoming.iter(), limit) {
            Ok(header) => {
                let frame = self.incoming.split_to(header.frame_length());
                if self.incoming.is_empty() && frame.len() > LARGE_BUFFER {
                    self.incoming = BytesMut::new();
                }
                Ok(Some(frame))
            }
            Err(CodecError::InsufficientBytes(_)) => Ok(None),
            Err(error) => Err(codec_error(&error)),
        }
    }

    fn receive(&mut self, mut frame: BytesMut) -> Result<Option<Incoming>, LinkError> {
        // A DISCONNECT without anything is good (MQTT 5.0 section 3.14.2.1); the codec refuses it.
        if frame[..] == [0xe0, 0] {
            let normal = Disconnect::new(DisconnectReasonCode::NormalDisconnection);
            return Err(LinkError::SentAway(reason_of_disconnect(normal)));
        }
        let packet = Packet::read(&mut frame, None).map_err(|error| codec_error(&error))?;
        self.count(&packet);
        match (self.stage, packet) {
            (Stage::Greeting, Packet::ConnAck(connack)) => self.accepted(connack).map(Some),
            (_, Packet::Disconnect(disconnect)) => {
                Err(LinkError::SentAway(reason_of_disconnect(disconnect)))
            }
            (Stage::Greeting, _) => Err(unexpected("something before its answer")),
            (_, packet) => {
                self.heard = Some(runtime_now());
                self.handle(packet)
            }
        }
    }

    fn accepted(&mut self, connack: ConnAck) -> Result<Incoming, LinkError> {
        if connack.code != ConnectReturnCode::Success {
            return Err(LinkError::Refused(reason_of_connack(connack)));
        }
        let limits = Limits::of(&connack)?;
        self.heard = Some(runtime_now());
        self.stage = Stage::Accepted;
        self.limits = Some(limits);
        // The broker may ask for another keep-alive; it must be kept to (section 3.2.2.3.14).
        match connack.properties.and_then(|properties| properties.server_keep_alive) {
            None | Some(0) => {}
            Some(seconds) => self.keep_alive = Duration::from_secs(seconds.into()),
        }
        Ok(Incoming::Connected { session_present: connack.session_present, limits })
    }

    fn handle(&mut self, packet: Packet) -> Result<Option<Incoming>, LinkError> {
        match packet {
            Packet::SubAck(suback) => self.subscribed(&suback),
            Packet::Publish(publish) if publish.qos == QoS::ExactlyOnce => {
                Err(unexpected("a message with QoS 2, which was not subscribed to"))
            }
            Packet::Publish(publish) => {
                let properties = publish.properties.unwrap_or_default();
                if properties.topic_alias.is_some() {
                    return Err(unexpected("a topic alias, which was not allowed"));
                }
                Ok(Some(Incoming::Message(Message {
                    topic: String::from_utf8_lossy(&publish.topic).into_owned(),
                    payload: publish.payload.into(),
                    packet: publish.pkid,
                    response_topic: properties.response_topic,
                    correlation: properties.correlation_data.unwrap_or_default().into(),
                })))
            }
            Packet::PubAck(puback) => {
                let known = self.in_flight.iter().position(|(id, _)| *id == puback.pkid);
                let Some(at) = known else {
                    return Err(unexpected("an acknowledgement of something that was not sent"));
                };
                self.in_flight.remove(at);
                if let Some(request) = self.held.take() {
                    self.send(request)?;
                }
                Ok(Some(match puback.reason {
                    PubAckReason::Success | PubAckReason::NoMatchingSubscribers => {
                        Incoming::Published
                    }
                    reason => Incoming::PublishRefused { reason: format!("{reason:?}") },
                }))
            }
            Packet::PingResp(_) => Ok(None),
            _ => Err(unexpected("a packet that only clients send, or none that was asked for")),
        }
    }

    fn subscribed(&mut self, suback: &SubAck) -> Result<Option<Incoming>, LinkError> {
        let known = self.asked.iter().position(|asked| asked.id == suback.pkid);
        let Some(Asked { topics, .. }) = known.and_then(|at| self.asked.remove(at)) else {
            return Err(unexpected("an answer to a subscription that was not asked for"));
        };
        let mut codes = suback.return_codes.iter();
        for at in topics {
            let topic = self.parameters.topics[at].clone();
            let reason = match codes.next() {
                Some(SubscribeReasonCode::Success(_)) => continue,
                Some(code) => format!("{code:?}"),
                None => "it gave no answer".into(),
            };
            if at == 0 {
                return Err(LinkError::NotSubscribed { topic, reason });
            }
            self.refused.push((topic, reason));
        }
        let refused = std::mem::take(&mut self.refused);
        if self.asked.is_empty() {
            return Ok(Some(Incoming::Subscribed { refused }));
        }
        self.refused = refused;
        Ok(None)
    }

    /// Counts what came, which was read for this packet.
    fn count(&self, packet: &Packet) {
        let (kind, answer) = match packet {
            Packet::Publish(publish) if publish.qos == QoS::AtMostOnce => {
                (TrafficKind::Orders, Answer::None)
            }
            Packet::Publish(_) => (TrafficKind::Orders, Answer::Packet),
            Packet::PubAck(puback) => {
                let known = self.in_flight.iter().find(|(id, _)| *id == puback.pkid);
                (known.map_or(TrafficKind::KeepAlive, |(_, kind)| *kind), Answer::None)
            }
            _ => (TrafficKind::KeepAlive, Answer::None),
        };
        self.parameters.meter.received(kind, self.tally.take_received(), answer);
    }

    /// Counts all that went over the network so far.
    fn count_handshake(&self) {
        let meter = &self.parameters.meter;
        meter.sent(TrafficKind::KeepAlive, self.tally.take_sent(), Answer::Packet);
        meter.received(TrafficKind::KeepAlive, self.tally.take_received(), Answer::None);
    }

    fn silent(&self) -> LinkError {
        match self.heard {
            Some(heard) => LinkError::Silent(heard.elapsed()),
            None => {
                let broker = self.parameters.way.broker.to_string();
                LinkError::TimedOut { broker, limit: CONNECT_TIMEOUT }
            }
        }
    }

    fn broken(&self, error: std::io::Error) -> LinkError {
        LinkError::from_io(error, true, &self.parameters.way.broker.to_string())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.count_handshake();
        if self.wire.take().is_some() {
            self.parameters.meter.closed();
        }
    }
}
