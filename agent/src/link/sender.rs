//! What a connection is asked to send: packets in a queue, none larger than the broker takes.
//!
//! In: messages and acknowledgements. Out: [`Request`]s for a [`Connection`](super::mqtt::Connection).

use coracle_core::budget::TrafficKind;
use coracle_protocol::limits::MAX_PACKET_BYTES;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{ConnAck, Publish, PublishProperties};
use tokio::sync::mpsc;

use super::error::LinkError;

/// Room for every acknowledgement owed, a subscription, two publishes and a farewell.
const REQUESTS: usize = 16;

/// A queue, and its other end.
pub(super) fn queue() -> (Sender, mpsc::Receiver<Request>) {
    let (sender, receiver) = mpsc::channel(REQUESTS);
    (Sender { requests: sender }, receiver)
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
    /// What it is counted as.
    pub(super) kind: TrafficKind,
}

/// What the broker takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Largest packet, in bytes.
    pub(super) packet: usize,
    retain: bool,
    /// Publishes that may be in flight.
    pub(super) receive_maximum: usize,
}

impl Limits {
    pub(super) fn of(connack: &ConnAck) -> Result<Self, LinkError> {
        let properties = connack.properties.as_ref();
        let receive_maximum = properties.and_then(|p| p.receive_max).unwrap_or(u16::MAX);
        if receive_maximum == 0 {
            return Err(LinkError::Protocol("it announced a receive maximum of 0".into()));
        }
        if properties.and_then(|p| p.max_qos) == Some(0) {
            let problem = "it takes no messages that are to be acknowledged (maximum QoS 0)";
            return Err(LinkError::Protocol(problem.into()));
        }
        let packet = properties.and_then(|p| p.max_packet_size).unwrap_or(u32::MAX);
        Ok(Self {
            packet: usize::try_from(packet).map_or(MAX_PACKET_BYTES, |p| p.min(MAX_PACKET_BYTES)),
            retain: properties.and_then(|p| p.retain_available) != Some(0),
            receive_maximum: receive_maximum.into(),
        })
    }
}

/// What a [`Connection`] is to send.
pub(super) enum Request {
    Subscribe,
    Publish(Box<Publish>, TrafficKind),
    Acknowledge(u16),
    Leave,
}

/// Queues packets for a [`Connection`]; never waits.
pub(super) struct Sender {
    requests: mpsc::Sender<Request>,
}

/// The packet is larger than the broker takes.
#[derive(Debug, thiserror::Error)]
#[error("its packet of {size} bytes is larger than the {limit} that the broker takes")]
pub(super) struct PacketTooLarge {
    size: usize,
    limit: usize,
}

impl Sender {
    /// Asks for messages on the topics, the retained ones first.
    pub(super) fn subscribe(&self) -> Result<(), LinkError> {
        self.queue(Request::Subscribe)
    }

    /// Publishes a message, unless it is larger than the broker takes.
    pub(super) fn publish(
        &self,
        message: &Outgoing<'_>,
        limits: Limits,
    ) -> Result<Result<(), PacketTooLarge>, LinkError> {
        let Outgoing { topic, payload, retain, acknowledged, correlation, kind } = *message;
        let qos = if acknowledged { QoS::AtLeastOnce } else { QoS::AtMostOnce };
        let properties = (!correlation.is_empty()).then(|| PublishProperties {
            correlation_data: Some(correlation.to_vec().into()),
            ..PublishProperties::default()
        });
        let mut packet = Publish::new(topic, qos, payload.to_vec(), properties);
        packet.retain = retain && limits.retain;
        // Its id is given when it is sent; it counts for the size.
        packet.pkid = u16::from(acknowledged);
        let (size, limit) = (packet.size(), limits.packet);
        if size > limit {
            return Ok(Err(PacketTooLarge { size, limit }));
        }
        self.queue(Request::Publish(Box::new(packet), kind)).map(Ok)
    }

    /// Acknowledges a message of this connection.
    pub(super) fn acknowledge(&self, packet: u16) -> Result<(), LinkError> {
        if packet == 0 { Ok(()) } else { self.queue(Request::Acknowledge(packet)) }
    }

    /// Takes leave, so that the broker does not publish the last will.
    pub(super) fn leave(&self) -> Result<(), LinkError> {
        self.queue(Request::Leave)
    }

    /// The queue has room for all that can be owed, so a connection without room is stuck.
    fn queue(&self, request: Request) -> Result<(), LinkError> {
        let full = |_| LinkError::Protocol("it takes no more packets".into());
        self.requests.try_send(request).map_err(full)
    }
}
