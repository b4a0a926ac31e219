//! What exists on the gateway, as the adapters last saw it, and what is being done.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use coracle_protocol::Timestamp;

use crate::artifact::{ArtifactId, Software};
use crate::desired::DefinitionHash;
use crate::image::{Digest, ImageRef};
use crate::name::{ContainerId, ContainerName, ReplicaId};
use crate::traffic::Traffic;

/// What exists and what is under way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Our containers. `None` until containerd has been asked, or while it cannot be reached.
    pub containers: Option<BTreeMap<ContainerId, Container>>,
    /// Images that are complete and unpacked, with the digest that each reference resolved to.
    pub images: BTreeMap<ImageRef, Digest>,
    /// Artifacts that are installed.
    pub artifacts: BTreeMap<ArtifactId, Artifact>,
    /// What is around containers, or is left of that: networks, mounts.
    pub pods: BTreeMap<ReplicaId, Pod>,
    /// Replicas with an action under way.
    pub busy: BTreeMap<ReplicaId, Busy>,
    /// What is being fetched.
    pub pulling: BTreeSet<Software>,
    /// What probes say of containers. Nothing of one that was not asked yet.
    pub health: BTreeMap<ContainerId, Health>,
    /// Where shared ports lead.
    pub traffic: Traffic,
}

impl Observed {
    /// Whether containers can be started from it.
    pub fn has(&self, software: &Software) -> bool {
        self.digest(software).is_some()
    }

    /// Something was fetched.
    pub fn came(&mut self, software: Software, digest: Digest) {
        match software {
            Software::Image(image) => drop(self.images.insert(image, digest)),
            Software::Artifact(artifact) => {
                let by_hand = self.artifacts.get(&artifact.id).is_some_and(|there| there.by_hand);
                self.artifacts.insert(artifact.id, Artifact { digest, by_hand });
            }
        }
    }

    /// What it is, if it is there and what was asked for.
    pub fn digest(&self, software: &Software) -> Option<&Digest> {
        match software {
            Software::Image(image) => self.images.get(image),
            Software::Artifact(wanted) => {
                let there = self.artifacts.get(&wanted.id).map(|there| &there.digest);
                there.filter(|there| wanted.digest.as_ref().is_none_or(|digest| digest == *there))
            }
        }
    }
}

/// An artifact that is installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Artifact {
    /// Of the ZIP that it came as.
    pub digest: Digest,
    /// It stays until somebody removes it.
    pub by_hand: bool,
}

/// What the probes of a container say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Of which process of it.
    pub pid: u32,
    /// It has started: its startup probe was good, or it has none.
    pub started: bool,
    /// Its liveness probe has not failed, nor its startup probe.
    pub live: bool,
    /// Its readiness probe is good, or it has none.
    pub ready: bool,
    /// That it is ready was answered; it is not only taken for it because it ran before the agent.
    pub proven: bool,
    /// What is wrong, for people.
    pub message: Option<String>,
}

/// What is being done for a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Busy {
    /// The container that is being started; `None` if nothing is.
    pub starting: Option<ContainerName>,
    /// What runs of the replica is left running.
    pub leaves_running: bool,
}

/// What is around the containers of a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Hash of the definition that it was made for.
    pub definition: DefinitionHash,
    /// [`Pod::in_place`](crate::desired::Pod::in_place) of the config maps that are there.
    pub in_place: Box<str>,
    /// Its containers can ask for credentials.
    pub serves_identity: bool,
    /// Ports of the gateway lead to it only as they are shared out.
    pub shares_ports: bool,
    /// Its address in the pods' network.
    pub address: Option<IpAddr>,
}

/// One of our containers as containerd has it: what its labels say, and its task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Of which replica.
    pub replica: ReplicaId,
    /// Which container of it.
    pub name: ContainerName,
    /// Generation that it was made for.
    pub generation: u64,
    /// Hash of the definition that it was made from.
    pub definition: DefinitionHash,
    /// [`Limits::label`](crate::desired::Limits::label) of the limits that it has.
    pub limits: Box<str>,
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
