//! Events, schema 1: what happened on a gateway. Kept by it until a receipt names them.

use serde::{Deserialize, Serialize};

use crate::id::GatewayId;
use crate::time::Timestamp;

/// Some events of one gateway, the most important first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Events {
    /// Major version of this document: 1.
    pub schema: u32,
    /// Whose.
    pub gateway: GatewayId,
    /// Within which sequences count: random, and another one when a gateway has lost its store.
    pub stream: String,
    /// How many events of this stream were dropped and are never sent.
    #[serde(default)]
    pub dropped: u64,
    /// At most 64.
    pub events: Vec<Event>,
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Rises with each; an event that comes again has the same. Numbers may be left out: what is
    /// missing is told by [`Events::dropped`] alone.
    pub sequence: u64,
    /// When, by the gateway's clock.
    pub at: Timestamp,
    /// What kind, for programs: such as `started`, `ended`, `order-accepted`.
    pub kind: String,
    /// Which workload's replica, such as `web.0`, if it concerns one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replica: Option<String>,
    /// What happened, for people.
    pub message: String,
}
