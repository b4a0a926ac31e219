//! Requests, schema 1: what a gateway wants of the fleet.

use serde::{Deserialize, Serialize};

use crate::id::GatewayId;

/// What a gateway wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Major version of this document: 1.
    pub schema: u32,
    /// Who.
    pub gateway: GatewayId,
    /// What.
    #[serde(flatten)]
    pub wanted: Wanted,
}

/// What is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Wanted {
    /// The gateway is connected: it wants an order that is newer than its own, and the commands that
    /// the fleet has no final result of. Brokers lose what they retain and what they queue.
    Connected {
        /// Generation in force; 0 if none is.
        generation: u64,
        /// SHA-256 of its envelope, in hexadecimal.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        digest: Option<String>,
    },
    /// A piece of a large order, on the topic `chunks`.
    Chunk {
        /// SHA-256 of the order's envelope, in hexadecimal.
        digest: String,
        /// From which byte on.
        offset: u64,
        /// At most so many bytes.
        bytes: u32,
    },
}
