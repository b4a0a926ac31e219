//! What goes to the fleet besides presence and reported state: one parcel at a time, the most
//! important first. What is lost on the way is sent again by whoever keeps it.
//!
//! In: what others have to send, asked for when there is room. Out: [`Parcel`]s to the link.

use std::collections::VecDeque;

use coracle_protocol::CommandId;
use coracle_protocol::Topic;
use coracle_protocol::desired::SCHEMA;
use coracle_protocol::limits::MAX_PACKET_BYTES;
use coracle_protocol::request::{Request, Wanted};
use coracle_protocol::topic::Kind;

use super::EventLoop;
use super::commands::ToldOf;
use super::health::HealthFreight;
use crate::execute::Execute;
use crate::link::{Delivery, Parcel};

/// Most requests that wait; the oldest goes.
const MAX_REQUESTS: usize = 8;

/// Most that a packet takes beside its topic and its document, in bytes: the fixed header, a packet
/// identifier, lengths and properties.
const PACKET_HEAD: usize = 64;

/// What a parcel is about, for who is told what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Freight {
    /// Something that is wanted of the fleet.
    Request(Wanted),
    /// What became of a command, or how far it is.
    Result(ToldOf),
    /// A piece of what a command gives, of so many bytes.
    Output(CommandId, usize),
    /// Events, by their sequences.
    Events(Vec<u64>),
    /// How the gateway is.
    Health(HealthFreight),
}

/// What is on its way, and what the link can take.
#[derive(Debug)]
pub(super) struct Parcels {
    pub(super) connected: bool,
    pub(super) packet_limit: usize,
    tickets: u64,
    flying: Option<(u64, Freight)>,
    requests: VecDeque<Wanted>,
}

impl Default for Parcels {
    fn default() -> Self {
        Self {
            connected: false,
            packet_limit: MAX_PACKET_BYTES,
            tickets: 0,
            flying: None,
            requests: VecDeque::new(),
        }
    }
}

impl<E: Execute> EventLoop<E> {
    /// A connection was made: the broker may have lost what it kept for us, so it is asked for.
    pub(super) fn parcels_connected(&mut self, packet_limit: usize) {
        self.parcels.connected = true;
        if self.parcels.packet_limit != packet_limit {
            self.parcels.packet_limit = packet_limit;
            self.tell_anew();
        }
        self.parcels.requests.clear();
        let digest = self.envelope.as_deref().map(coracle_core::digest::sha256_hex);
        let generation = self.in_force.generation;
        self.want(Wanted::Connected { generation, digest });
        self.ask_for_piece_again();
        self.tell_results_again();
        self.backlog_connected();
        self.health_connected();
    }

    pub(super) fn parcels_disconnected(&mut self) {
        self.parcels.connected = false;
        self.commands.disconnected();
        self.backlog_disconnected();
        self.health_disconnected();
    }

    /// Whether something can be sent now.
    pub(super) fn can_send_parcels(&self) -> bool {
        self.parcels.connected && self.parcels.flying.is_none()
    }

    /// How large a document may be to go in one packet, in bytes.
    pub(super) fn payload_limit(&self, kind: Kind) -> usize {
        let topic = Topic::new(self.gateway, kind).to_string();
        self.parcels.packet_limit.saturating_sub(topic.len() + PACKET_HEAD)
    }

    /// Asks the fleet for something, once. A request that is lost is not sent again by itself.
    pub(super) fn want(&mut self, wanted: Wanted) {
        if self.parcels.requests.len() == MAX_REQUESTS {
            self.parcels.requests.pop_front();
        }
        self.parcels.requests.push_back(wanted);
    }

    /// Sends the next parcel, if the one before it has arrived.
    pub(super) fn send_parcels(&mut self) {
        if !self.parcels.connected || self.parcels.flying.is_some() {
            // What became of it is a reason to try again.
            self.rest_events();
            return;
        }
        let Some((freight, mut parcel)) = self.next_parcel() else { return };
        let Some(link) = &self.link else { return };
        self.parcels.tickets += 1;
        parcel.ticket = self.parcels.tickets;
        // The link's queue has room for more than one.
        if link.send(parcel).is_ok() {
            self.parcels.flying = Some((self.parcels.tickets, freight));
        }
    }

    /// The most important thing that is to be sent.
    fn next_parcel(&mut self) -> Option<(Freight, Parcel)> {
        self.next_request()
            .or_else(|| self.next_result())
            .or_else(|| self.next_events())
            .or_else(|| self.next_health())
            .or_else(|| self.next_output())
    }

    fn next_request(&mut self) -> Option<(Freight, Parcel)> {
        let wanted = self.parcels.requests.pop_front()?;
        let request = Request { schema: SCHEMA, gateway: self.gateway, wanted: wanted.clone() };
        let payload = serde_json::to_vec(&request).expect("requests are plain structs");
        Some((Freight::Request(wanted), parcel(Kind::Requests, payload)))
    }

    pub(super) fn on_parcel(&mut self, ticket: u64, delivery: &Delivery) {
        let Some((_, freight)) = self.parcels.flying.take_if(|(flying, _)| *flying == ticket)
        else {
            return;
        };
        match (freight, delivery) {
            (Freight::Request(_), Delivery::Refused(reason)) => {
                tracing::warn!(reason, "a request could not be published");
            }
            (Freight::Request(_), _) => {}
            (Freight::Result(told), delivery) => self.on_result(told, delivery),
            (Freight::Output(id, bytes), delivery) => self.on_piece(id, bytes, delivery),
            (Freight::Health(freight), delivery) => self.health_delivered(freight, delivery),
            (Freight::Events(sequences), delivery) => self.events_delivered(&sequences, delivery),
        }
    }
}

/// A parcel that the broker is to acknowledge.
pub(super) fn parcel(kind: Kind, payload: Vec<u8>) -> Parcel {
    Parcel { ticket: 0, kind, reply: None, correlation: Vec::new(), payload, acknowledged: true }
}
