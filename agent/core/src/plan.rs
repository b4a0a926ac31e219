//! What to do next: complete data, so that doing it chooses nothing.

use std::sync::Arc;
use std::time::Duration;

use crate::artifact::{ArtifactId, Software};
use crate::desired::{Check, Container, DefinitionHash, Limits, Pod};
use crate::image::ImageRef;
use crate::name::{ContainerId, ContainerName, ReplicaId};

/// What to do now, what waits, and when to decide again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// To be done now, in this order if not all at once. At most one for each replica.
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
    /// Which container of it, if not all.
    pub container: Option<ContainerName>,
    /// Why, for people.
    pub reason: String,
    /// When it is tried again, on the monotonic clock; `None` if something else must happen first.
    pub until: Option<Duration>,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Fetch an image or an artifact, verify and unpack it.
    Pull {
        /// Which.
        software: Software,
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
    /// Bring what is around running containers to what is ordered, without touching them.
    Refresh(Refresh),
    /// Give a running container other limits.
    Adjust(Adjust),
    /// Take down what is around the containers of a replica, of which there are none any more.
    Clear {
        /// Which replica it was.
        replica: ReplicaId,
    },
    /// Forget an image that neither the current nor the previous orders name.
    RemoveImage {
        /// Which.
        image: ImageRef,
    },
    /// Remove an artifact that was installed for an order and that no order names any more.
    RemoveArtifact {
        /// Which.
        artifact: ArtifactId,
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
    /// What it is a part of.
    pub pod: Arc<Pod>,
    /// What to run.
    pub container: Arc<Container>,
    /// Ports of the gateway are to lead to it only as they are shared out.
    pub shares_ports: bool,
    /// A task that ended is there under this id.
    pub remains: bool,
}

/// Everything needed to bring what is around running containers to what is ordered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refresh {
    /// Which replica's.
    pub replica: ReplicaId,
    /// Hash of the definition.
    pub definition: DefinitionHash,
    /// What it is now to be.
    pub pod: Arc<Pod>,
}

/// Everything needed to give a running container other limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adjust {
    /// Which replica it is.
    pub replica: ReplicaId,
    /// Its id.
    pub id: ContainerId,
    /// What it may use from now on.
    pub limits: Limits,
}

/// Everything needed to stop one container. Done in this order: no shared port leads to its replica
/// any more, it drains, the hook, the signal, SIGKILL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stop {
    /// Which replica it is.
    pub replica: ReplicaId,
    /// Its id.
    pub id: ContainerId,
    /// Why.
    pub why: Why,
    /// From when no port leads to it any more to the hook or the signal.
    pub drain: Duration,
    /// Done before the signal.
    pub pre_stop: Option<Check>,
    /// Signal that asks it to end, such as `SIGTERM`; without it the image's own, or SIGTERM.
    pub signal: Option<String>,
    /// From the hook or the signal to SIGKILL.
    pub grace: Duration,
}

/// Why a container is stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// It is not to run, or not like this.
    Unwanted,
    /// A probe failed, and says this.
    Unhealthy(String),
}

impl Action {
    /// The replica that is busy while this is done; none for images and artifacts.
    pub fn replica(&self) -> Option<&ReplicaId> {
        match self {
            Action::Start(start) => Some(&start.replica),
            Action::Stop(stop) => Some(&stop.replica),
            Action::Refresh(refresh) => Some(&refresh.replica),
            Action::Adjust(adjust) => Some(&adjust.replica),
            Action::Remove { replica, .. } | Action::Clear { replica } => Some(replica),
            Action::Pull { .. } | Action::RemoveImage { .. } | Action::RemoveArtifact { .. } => {
                None
            }
        }
    }
}
