//! Budgets of the link: bytes a day by kind.

use serde::{Deserialize, Serialize};

/// What bytes go over the link for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrafficKind {
    /// Connections, signs of life, presence.
    KeepAlive,
    /// Orders and all else that the fleet sends, and what is asked of it.
    Orders,
    /// Reported state, events, results of commands.
    Reports,
    /// Health.
    Health,
    /// What commands give, logs above all.
    Logs,
    /// Images and artifacts.
    Images,
}

/// Bytes of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bytes {
    /// To the network.
    pub sent: u64,
    /// From the network.
    pub received: u64,
}

/// What is kept of the link's use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageRecord {
    /// The day that it is of: days since the Unix epoch, by the wall clock.
    pub day: u64,
    /// By kind, in the order of [`TrafficKind`].
    pub kinds: Vec<(TrafficKind, Bytes)>,
}
