//! What exists on the gateway, as the adapters last saw it, and what is being done.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use coracle_protocol::Timestamp;

use crate::desired::DefinitionHash;
use crate::image::{Digest, ImageRef};
use crate::name::{ContainerId, ReplicaId, WorkloadName};

/// What exists and what is under way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Our containers. `None` until containerd has been asked, or while it cannot be reached.
    pub containers: Option<BTreeMap<ContainerId, Container>>,
    /// Images that are complete and unpacked, with the digest that each reference resolved to.
    pub images: BTreeMap<ImageRef, Digest>,
    /// Workloads with an action under way, and which replica it concerns.
    pub busy: BTreeMap<WorkloadName, Busy>,
    /// Images being fetched.
    pub pulling: BTreeSet<ImageRef>,
}

/// What is being done for a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Busy {
    /// To which replica.
    pub replica: ReplicaId,
    /// Starting rather than stopping.
    pub starting: bool,
}

/// One of our containers as containerd has it: what its labels say, and its task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Which replica it is.
    pub replica: ReplicaId,
    /// Generation that it was made for.
    pub generation: u64,
    /// Hash of the definition that it was made from.
    pub definition: DefinitionHash,
    /// Its task.
    pub task: Task,
}

/// The task of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// There is none: never started, or the machine was restarted.
    Absent,
    /// Made and not started: the agent was interrupted between the two.
    Created,
    /// Running.
    Running {
        /// Process id of the main process, in the agent's process namespace.
        pid: u32,
    },
    /// Ended.
    Stopped(Exit),
    /// Paused by somebody, or in a state that containerd does not know.
    Unknown,
}

/// How a task ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Exit code; 128 and the signal's number if a signal ended it.
    pub code: u32,
    /// When it ended, in wall-clock nanoseconds since the Unix epoch as containerd gives it. Only an
    /// identity (one end has one such time) and something to show, never an input to a decision.
    pub at_nanos: u64,
}

impl Exit {
    /// When, for people.
    pub fn at(&self) -> Timestamp {
        Timestamp::from_unix(Duration::from_nanos(self.at_nanos).as_secs())
    }
}
