//! What to do next: complete data, so that doing it chooses nothing.

use std::sync::Arc;
use std::time::Duration;

use crate::desired::{Container, DefinitionHash, Network};
use crate::image::ImageRef;
use crate::name::{ContainerId, ReplicaId, WorkloadName};

/// What to do now, what waits, and when to decide again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// To be done now, in this order if not all at once. At most one for each workload.
    pub actions: Vec<Action>,
    /// Replicas that cannot go on, and why.
    pub blocked: Vec<Blocked>,
    /// When the next decision is due though nothing happens, on the monotonic clock of
    /// [`Now`](crate::history::Now).
    pub wake_at: Option<Duration>,
}

/// A replica that cannot go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocked {
    /// Which.
    pub replica: ReplicaId,
    /// Why, for people.
    pub reason: String,
    /// When it is tried again, on the monotonic clock; `None` if something else must happen first.
    pub until: Option<Duration>,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Fetch an image, verify and unpack it.
    Pull {
        /// Which.
        image: ImageRef,
    },
    /// Make a container and start it. Dead remains under the same id are removed first.
    Start(Start),
    /// Ask a container's process to end, kill it after the grace period, then remove the container.
    Stop(Stop),
    /// Remove a container that does not run.
    Remove {
        /// Which replica it was.
        replica: ReplicaId,
        /// Its id.
        id: ContainerId,
    },
    /// Forget an image that neither the current nor the previous orders name.
    RemoveImage {
        /// Which.
        image: ImageRef,
    },
}

/// Everything needed to make and start one container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// Which replica it will be.
    pub replica: ReplicaId,
    /// The id to give.
    pub id: ContainerId,
    /// Generation of the order that asks for it.
    pub generation: u64,
    /// Hash of the definition.
    pub definition: DefinitionHash,
    /// Network to give it.
    pub network: Network,
    /// What to run.
    pub container: Arc<Container>,
}

/// Everything needed to stop one container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stop {
    /// Which replica it is.
    pub replica: ReplicaId,
    /// Its id.
    pub id: ContainerId,
    /// Signal that asks it to end, such as `SIGTERM`; without it the image's own, or SIGTERM.
    pub signal: Option<String>,
    /// From the signal to SIGKILL.
    pub grace: Duration,
}

impl Action {
    /// The workload that is busy while this is done; none for images.
    pub fn workload(&self) -> Option<&WorkloadName> {
        match self {
            Action::Start(start) => Some(&start.replica.workload),
            Action::Stop(stop) => Some(&stop.replica.workload),
            Action::Remove { replica, .. } => Some(&replica.workload),
            Action::Pull { .. } | Action::RemoveImage { .. } => None,
        }
    }
}
