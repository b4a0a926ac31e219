//! What the shipped binaries print with `--json`, as a reader of their documentation would
//! write it down. Unknown fields are ignored, as a script would ignore them.

use coracle_protocol::reported::{
    Condition, Refused, ReplicaReport, ReportedState, WorkloadReport,
};
use coracle_protocol::{Refusal, Timestamp};
use serde::Deserialize;

/// `coracle status --json`.
#[derive(Clone, Debug, Deserialize)]
pub struct Status {
    /// As it is reported to the fleet.
    pub reported: ReportedState,
    /// The connection to the broker; absent if none is configured.
    pub link: Option<Link>,
    /// Images being fetched.
    #[serde(default)]
    pub pulls: Vec<Pull>,
}

/// The connection to the broker.
#[derive(Clone, Debug, Deserialize)]
pub struct Link {
    /// `HOST:PORT`.
    pub broker: String,
    /// Whether it stands.
    pub connected: bool,
    /// Why it does not stand.
    pub reason: Option<String>,
    /// When the next try is.
    pub next_try: Option<Timestamp>,
}

/// An image being fetched.
#[derive(Clone, Debug, Deserialize)]
pub struct Pull {
    /// Image reference.
    pub image: String,
    /// `resolving`, `downloading` or `unpacking`.
    pub phase: String,
    /// Bytes that are there.
    pub bytes_done: u64,
    /// Bytes in all, once known.
    pub bytes_total: Option<u64>,
}

/// One line of `coracle events --json`: one thing that happened.
#[derive(Clone, Debug, Deserialize)]
pub struct Happening {
    /// Rises by one for each.
    pub sequence: u64,
    /// What kind.
    pub kind: String,
    /// Which replica, such as `web.0`.
    pub replica: Option<String>,
    /// What happened, for people.
    pub message: String,
}

/// `coracle apply --json`.
#[derive(Clone, Debug, Deserialize)]
pub struct Applied {
    /// The order's generation, where it could be read.
    pub generation: Option<u64>,
    /// Whether it is in force now.
    pub accepted: bool,
    /// Whether it was in force already.
    pub unchanged: bool,
    /// Every reason why not.
    #[serde(default)]
    pub refusals: Vec<Refusal>,
}

impl Status {
    /// A workload by name.
    pub fn workload(&self, name: &str) -> Option<&WorkloadReport> {
        self.reported.workloads.iter().find(|workload| workload.name == name)
    }

    /// The first replica of a workload.
    pub fn replica(&self, name: &str) -> Option<&ReplicaReport> {
        self.workload(name)?.replicas.first()
    }

    /// The process id of a workload's first replica, while it runs.
    pub fn pid(&self, name: &str) -> Option<i32> {
        self.replica(name)?.pid.and_then(|pid| i32::try_from(pid).ok())
    }

    /// A condition by name.
    pub fn condition(&self, name: &str) -> Option<&Condition> {
        self.reported.conditions.iter().find(|condition| condition.name == name)
    }

    /// The refused order, if it was refused for a reason with this code.
    pub fn refused_with(&self, code: &str) -> Option<&Refused> {
        let refused = self.reported.refused.as_ref()?;
        refused.refusals.iter().any(|refusal| refusal.code.as_str() == code).then_some(refused)
    }

    /// Whether there is a connection to the broker.
    pub fn connected(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.connected)
    }
}
