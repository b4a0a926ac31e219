//! Attempts and outcomes: what must be known to decide well and cannot be seen by looking.
//!
//! Attempts survive a reboot, deadlines do not: the monotonic clock starts again at zero, and a
//! cold boot starts everything at once.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::desired::DefinitionHash;

/// The time, given to every decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Since the agent started. Never jumps.
    pub monotonic: Duration,
    /// Since the Unix epoch, by the wall clock. Only for reports.
    pub wall: Duration,
}

/// What the store keeps for one replica. Postcard in LMDB: only append fields, with a new schema
/// version of the store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaRecord {
    /// The definition that the counts below belong to.
    pub definition: Option<DefinitionHash>,
    /// Failures in a row: ends of the container and failed starts, without a healthy while between.
    pub failures: u32,
    /// Restarts in all.
    pub restarts: u32,
    /// Code and time (nanoseconds since the Unix epoch) of the last end.
    pub last_exit: Option<(u32, u64)>,
    /// Ended for good, as its restart policy says.
    pub finished: bool,
}
