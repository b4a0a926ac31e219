//! Large orders, given to gateways in pieces through the broker.

use std::collections::BTreeMap;

use coracle_protocol::limits::MAX_PIECE_BYTES;
use coracle_protocol::piece;
use coracle_protocol::pointer::Chunk;
use coracle_protocol::request::{Request, Wanted};
use coracle_protocol::topic::{Kind, Topic};

use super::order::Order;
use crate::broker::Message;

/// What gateways may ask for, by digest.
pub(super) struct Shelf(BTreeMap<String, Vec<u8>>);

impl Shelf {
    pub(super) fn new(orders: Vec<Order>) -> Self {
        Self(orders.into_iter().map(|order| (order.digest, order.envelope)).collect())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The topic and the piece that a request is answered with; `None` for all else.
    pub(super) fn answer(&self, message: &Message) -> Option<(String, Vec<u8>)> {
        let asked: Topic = message.topic.parse().ok()?;
        if asked.kind != Kind::Requests {
            return None;
        }
        let request: Request = serde_json::from_slice(&message.payload).ok()?;
        let Wanted::Chunk { digest, offset, bytes } = request.wanted else { return None };
        let order = self.0.get(&digest)?;
        let start = usize::try_from(offset).ok().filter(|start| *start < order.len())?;
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX).clamp(1, MAX_PIECE_BYTES);
        let end = start.saturating_add(bytes).min(order.len());
        let piece = piece::encode(&Chunk { digest, offset }, &order[start..end]);
        Some((Topic::new(asked.gateway, Kind::Chunks).to_string(), piece))
    }
}
