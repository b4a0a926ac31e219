//! The backlog: events that the fleet has no receipt for.

use serde::{Deserialize, Serialize};

/// What is kept of an event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRecord {
    /// When, in seconds since the Unix epoch by the wall clock.
    pub at: u64,
    /// What kind, for programs.
    pub kind: String,
    /// Which workload's replica, if it concerns one.
    pub replica: Option<String>,
    /// For people.
    pub message: String,
}

/// What is kept of all events together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BacklogRecord {
    /// Within which sequences count; random.
    pub stream: [u8; 16],
    /// The next event's sequence.
    pub next: u64,
    /// How many were dropped.
    pub dropped: u64,
}
