//! Receipts, schema 1: what the fleet holds. What a gateway sends is kept by it until then, however
//! often a broker has acknowledged it. And hints, which a gateway follows as far as it likes.

use serde::{Deserialize, Serialize};

use crate::command::CommandId;
use crate::id::GatewayId;

/// What the fleet has received, and what it would like.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// Major version of this document: 1.
    pub schema: u32,
    /// From whom.
    pub gateway: GatewayId,
    /// Events that the fleet holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub events: Option<ReceivedEvents>,
    /// Commands of which the fleet holds the final result.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub results: Vec<CommandId>,
    /// What the fleet would like.
    #[serde(default)]
    pub hints: Hints,
}

/// Events that the fleet holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceivedEvents {
    /// Of which numbering: see [`crate::event::Events::stream`].
    pub stream: String,
    /// Ranges of their sequences, both ends included.
    pub sequences: Vec<(u64, u64)>,
}

/// What the fleet would like. Each holds until another one comes or the agent is started anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hints {
    /// Window of the first reconnect delay, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reconnect_window_seconds: Option<u32>,
    /// Over how many seconds what is not urgent is to be spread after a reconnect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backlog_spread_seconds: Option<u32>,
}
