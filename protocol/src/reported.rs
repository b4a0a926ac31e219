//! Reported state, schema 1: what a gateway says of itself.
//!
//! The newest one wins. Reports are ordered by `boot_id` and `sequence`, never by wall-clock time.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::id::GatewayId;
use crate::refusal::Refusal;
use crate::time::Timestamp;

/// What one gateway says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ReportedState {
    /// Major version of this document: 1.
    pub schema: u32,
    /// Whose.
    pub gateway: GatewayId,
    /// The kernel's boot id: random for each boot.
    pub boot_id: String,
    /// Rises with each report, also across restarts of the agent within one boot.
    pub sequence: u64,
    /// Version of the agent, `X.Y.Z`.
    pub agent_version: String,
    /// Highest generation received with a good signature, accepted or refused; 0 before the first.
    pub generation_seen: u64,
    /// Generation that was accepted and is being kept; 0 before the first.
    pub generation_applied: u64,
    /// All in one word.
    pub phase: Phase,
    /// The newest order that was refused, until one is accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Refused>,
    /// JSON Pointers of fields in the applied order that this agent does not know, at most 32.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unknown_fields: Vec<String>,
    /// Facts about the gateway's health, sorted by name.
    pub conditions: Vec<Condition>,
    /// What was ordered and what became of it, sorted by name.
    pub workloads: Vec<WorkloadReport>,
    /// How many workloads were left out to keep to the packet's limit: those that are as ordered
    /// first.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub omitted_workloads: u32,
}

impl ReportedState {
    /// Leaves workloads out, and counts them.
    pub fn omit_workloads(&mut self, omit: impl FnOnce(&mut Vec<WorkloadReport>)) {
        let before = self.workloads.len();
        omit(&mut self.workloads);
        let gone = before.saturating_sub(self.workloads.len());
        self.omitted_workloads += u32::try_from(gone).unwrap_or(u32::MAX);
    }
}

/// How far the gateway is with its orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// No orders yet.
    Idle,
    /// Everything is as ordered.
    Converged,
    /// Being brought about; nothing has failed.
    Progressing,
    /// Something failed and waits for its next try, or cannot be done.
    Degraded,
}

/// An order that was not accepted. The earlier one stays in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Refused {
    /// Its generation, where it could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// SHA-256 of the envelope, in hexadecimal.
    pub digest: String,
    /// Every reason, at most 32.
    pub refusals: Vec<Refusal>,
    /// How many more reasons there are.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub omitted: u32,
}

/// A named fact about health.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Condition {
    /// Name, such as `containerd`.
    pub name: String,
    /// Whether the good state that the name stands for is given.
    pub status: ConditionStatus,
    /// One word for programs, such as `not-reachable`.
    pub reason: String,
    /// A sentence for people.
    pub message: String,
    /// When the status last changed, by the gateway's clock.
    pub since: Timestamp,
}

/// Whether a condition's good state is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum ConditionStatus {
    /// Good.
    True,
    /// Not good.
    False,
    /// Cannot be told.
    Unknown,
}

/// One workload: what was ordered and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct WorkloadReport {
    /// Its name.
    pub name: String,
    /// The worst of its replicas, in one word.
    pub phase: Phase,
    /// Image as ordered.
    pub image: String,
    /// Digest that the image resolved to on this gateway, once it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_digest: Option<String>,
    /// The images of its further containers, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub further_images: Vec<ImageReport>,
    /// An update that is going on, or was taken back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update: Option<UpdateReport>,
    /// It was stopped by hand, until it is started by hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<StoppedReport>,
    /// Its replicas, by index.
    pub replicas: Vec<ReplicaReport>,
}

/// How far an update of a workload is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct UpdateReport {
    /// In one word.
    pub state: UpdateState,
    /// Replicas of the ordered definition that can be relied on.
    pub updated: u32,
    /// How many there are to be.
    pub replicas: u32,
    /// Why it was taken back, or what it waits for, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// How far an update is, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum UpdateState {
    /// Replicas are being replaced.
    Progressing,
    /// The new definition did not become healthy. The one that was healthy last runs until an order
    /// says something else.
    RolledBack,
}

/// A workload that was stopped by hand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct StoppedReport {
    /// It was drained first.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub drained: bool,
    /// Since when, by the gateway's clock.
    pub since: Timestamp,
}

/// An image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ImageReport {
    /// As ordered.
    pub image: String,
    /// Digest that it resolved to on this gateway, once it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_digest: Option<String>,
}

/// One replica of a workload: what its containers do, taken together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ReplicaReport {
    /// From 0.
    pub index: u32,
    /// What it is doing.
    pub state: ReplicaState,
    /// Whether it can take work: it runs and its probes are good.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ready: bool,
    /// Process id of its main process, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Generation that its container was made for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// Restarts after it ended, over the life of this definition.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub restarts: u32,
    /// How it last ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_exit: Option<ExitReport>,
    /// Why it does not run, or is not ready, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When the next try is, by the gateway's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_try: Option<Timestamp>,
    /// Its address in the pods' network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// Each of its containers, if there are several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<ContainerReport>,
}

/// One container of a replica that has several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ContainerReport {
    /// Its name.
    pub name: String,
    /// What it is doing.
    pub state: ReplicaState,
    /// Process id of its main process, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Restarts after it ended, over the life of this definition.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub restarts: u32,
    /// How it last ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_exit: Option<ExitReport>,
    /// Why it does not run, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When the next try is, by the gateway's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_try: Option<Timestamp>,
}

/// What a replica is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum ReplicaState {
    /// Runs as ordered.
    Running,
    /// Ended as its restart policy allows; stays so.
    Completed,
    /// Ended with an error and its restart policy says `never`; stays so.
    Failed,
    /// Waits for its turn, for containerd, or for something else that `reason` names.
    Pending,
    /// Its image is being fetched.
    Pulling,
    /// Its container is being made and started.
    Starting,
    /// Its old container is being stopped, to be replaced or removed.
    Stopping,
    /// Failed and waits for its next try.
    BackOff,
    /// Stopped by hand.
    Stopped,
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ExitReport {
    /// Exit code; 128 and the signal's number if a signal ended it.
    pub code: u32,
    /// When, by the gateway's clock.
    pub at: Timestamp,
    /// The kernel ended a process of it for want of memory.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub out_of_memory: bool,
}

fn is_zero(value: &u32) -> bool {
    *value == 0
}
