//! Pointers, schema 1: where an order is that is larger than a packet.
//!
//! A pointer is published in the place of the order, signed like one, in an
//! [`Envelope`](crate::Envelope) of the type
//! [`POINTER_PAYLOAD_TYPE`](crate::envelope::POINTER_PAYLOAD_TYPE). What it leads to is an order like
//! any other, with signatures of its own.

use serde::{Deserialize, Serialize};

use crate::id::GatewayId;

/// Where a large order is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pointer {
    /// Major version of this document: 1.
    pub schema: u32,
    /// Whom the order is for.
    pub gateway: GatewayId,
    /// Its generation.
    pub generation: u64,
    /// SHA-256 of its envelope, in hexadecimal.
    pub digest: String,
    /// Size of its envelope, in bytes; at most
    /// [`MAX_ENVELOPE_BYTES`](crate::limits::MAX_ENVELOPE_BYTES).
    pub bytes: u64,
    /// Where it can be had, the best first; at least one, at most 8.
    pub sources: Vec<Source>,
}

/// Where an order can be had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// By HTTP or HTTPS, in ranges.
    Url(String),
    /// By the broker: asked for on `requests`, given on `chunks`.
    Broker {},
}

/// The head of a piece of a large order: one line of JSON, before the bytes themselves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// SHA-256 of the order's envelope, in hexadecimal.
    pub digest: String,
    /// Where the bytes belong, counted from 0.
    pub offset: u64,
}
