//! Wire document to validated domain, or a list of refusals with their places.
//!
//! In: a JSON value. Out: a [`Desired`] whose every name, reference and number has been checked, or
//! every reason against it. Deliberately not here: signature, generation and gateway, which need
//! to know more than the document.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use coracle_protocol::limits::MAX_REFUSALS;
use coracle_protocol::{Code, GatewayId, Refusal};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use coracle_protocol::desired::{
    DependencyCondition, Network, Protocol, RestartPolicy, UpdateStrategy,
};
pub use rules::CAPABILITIES;

use crate::structure::{self, Structure};

mod rules;

use crate::artifact::{Coordinate, Software};
use crate::facts::GatewayFacts;
use crate::image::{Digest, ImageRef};
use crate::name::{ContainerName, ResourceName, WorkloadName};
use crate::template::ConfigCheck;

/// A desired state that passed every rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// Rises with every order; 0 only for "no orders yet".
    pub generation: u64,
    /// What to keep running.
    pub workloads: BTreeMap<WorkloadName, Workload>,
    /// Confidential values, each sealed for this gateway, base64.
    pub secrets: BTreeMap<ResourceName, String>,
}

impl Desired {
    /// The workloads on the gateway's own network.
    pub fn on_host_network(&self) -> impl Iterator<Item = &WorkloadName> {
        let hosts = |workload: &&Workload| workload.pod.network == Network::Host;
        self.workloads.values().filter(hosts).map(|workload| &workload.name)
    }

    /// The ports of the gateway that the workloads take.
    pub fn host_ports(&self) -> impl Iterator<Item = (Protocol, u16)> + '_ {
        let ports = self.workloads.values().flat_map(|workload| &workload.pod.ports);
        ports.map(|port| (port.protocol, port.host))
    }
}

/// One workload to keep running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Its name.
    pub name: WorkloadName,
    /// How many copies, at least 1.
    pub replicas: u32,
    /// Whether a container is started again when it ends.
    pub restart: RestartPolicy,
    /// How a replica is stopped.
    pub stop: Stop,
    /// How replicas of an earlier definition are replaced.
    pub update: Update,
    /// What must be the case elsewhere before it starts.
    pub depends_on: Vec<Dependency>,
    /// What each replica is.
    pub pod: Arc<Pod>,
    /// Changes exactly when the containers must be replaced.
    pub definition: DefinitionHash,
    /// With which others it is updated as one.
    pub unit: Option<ResourceName>,
}

impl Workload {
    /// Whether its ports of the gateway lead to all its ready replicas, and move with an update.
    pub fn shares_ports(&self) -> bool {
        self.may_be_several() && self.has_pod_ports()
    }

    /// Whether there may be several replicas at once.
    pub(crate) fn may_be_several(&self) -> bool {
        self.max_replicas() > 1
    }

    /// Whether ports of the gateway lead into a network of its own.
    pub(crate) fn has_pod_ports(&self) -> bool {
        self.pod.network == Network::Pod && !self.pod.ports.is_empty()
    }

    /// How many replicas there may be at once, in the middle of an update too.
    pub fn max_replicas(&self) -> u32 {
        match self.update.strategy {
            UpdateStrategy::Rolling => self.replicas + self.update.surge,
            UpdateStrategy::BlueGreen => self.replicas * 2,
        }
    }

    /// The images of its containers, in their order.
    pub fn images(&self) -> impl Iterator<Item = &ImageRef> {
        self.software().filter_map(Software::image)
    }

    /// What its containers are started from, in their order.
    pub fn software(&self) -> impl Iterator<Item = &Software> {
        self.pod.containers.iter().map(|container| &container.software)
    }
}

/// How a replica is stopped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stop {
    /// Signal that asks a container to end; without it the image's own, or SIGTERM.
    pub signal: Option<String>,
    /// From the hook, or the signal, to SIGKILL.
    pub grace: Duration,
    /// From when no port leads to it any more to the hook or the signal.
    pub drain: Duration,
    /// Done before the signal.
    pub pre_stop: Option<Hook>,
}

/// Something done in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// In which container.
    pub container: ContainerName,
    /// A command or a request.
    pub check: Check,
}

/// How replicas of an earlier definition are replaced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Update {
    /// In which way.
    pub strategy: UpdateStrategy,
    /// How many replicas may be missing or not ready because of an update.
    pub max_unavailable: u32,
    /// How many replicas more than ordered there may be meanwhile.
    pub surge: u32,
    /// Within which a new replica must be ready.
    pub healthy_within: Duration,
    /// How long a new replica must have been ready before the next one is replaced.
    pub min_ready: Duration,
}

/// What must be the case with another workload before one starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dependency {
    /// Which other one.
    pub workload: WorkloadName,
    /// What is waited for.
    pub condition: DependencyCondition,
    /// Stops the dependent when the condition no longer holds.
    pub stop_with: bool,
}

/// Containers that share a network, and what they have together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Which network they see.
    pub network: Network,
    /// The containers; at least one.
    pub containers: Vec<Arc<Container>>,
    /// Ports of the gateway that lead to them.
    pub ports: Vec<Port>,
    /// Whether they can ask for credentials of their own, and for what else.
    pub identity: Option<Identity>,
    /// Fits the content of those config maps that are changed in place; empty if there are none.
    pub in_place: Box<str>,
    /// What a native service has beside its one container.
    pub native: Option<Native>,
}

/// What a native service has beside its one container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Native {
    /// Where its first replica stands.
    pub coordinate: Coordinate,
    /// What is put into its runtime directory.
    pub files: Vec<RuntimeFile>,
}

/// Something put into a runtime directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeFile {
    /// Where, relative to the runtime directory and without `.` and `..`; empty for itself.
    pub to: String,
    /// What.
    pub source: RuntimeSource,
    /// Whether a source that changed replaces what is there.
    pub overwrite: bool,
}

/// What is put into a runtime directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuntimeSource {
    /// A file or a directory of the service's artifact, relative to it.
    Artifact(String),
    /// Text by file name.
    Files(Arc<BTreeMap<String, String>>),
    /// A file from a URL.
    Url {
        /// From where.
        url: String,
        /// What it must be.
        digest: Digest,
    },
    /// A ZIP from a URL, unpacked.
    Archive {
        /// From where.
        url: String,
        /// What it must be.
        digest: Digest,
    },
}

/// Who a workload is, for other services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The project that it belongs to.
    pub project: Option<String>,
    /// Secrets that it can ask for.
    pub grants: Vec<ResourceName>,
}

/// A port of the gateway that leads to a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its name.
    pub name: ResourceName,
    /// In the container.
    pub container: u16,
    /// On the gateway.
    pub host: u16,
    /// Only on this address of the gateway.
    pub address: Option<IpAddr>,
    /// Over which protocol.
    pub protocol: Protocol,
}

/// What to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Its name in the workload.
    pub name: ContainerName,
    /// What it is started from.
    pub software: Software,
    /// Replaces the image's entrypoint.
    pub command: Option<Vec<String>>,
    /// Replaces the image's default arguments.
    pub args: Option<Vec<String>>,
    /// Added to the image's variables.
    pub env: BTreeMap<String, Template>,
    /// Absolute; without it the image's own, or `/`.
    pub working_dir: Option<String>,
    /// As in the image's configuration; without it the image's own, or root.
    pub user: Option<String>,
    /// Mounts the root file system read-only.
    pub readonly_root: bool,
    /// What is mounted.
    pub mounts: Vec<Mount>,
    /// What it may use of the gateway.
    pub limits: Limits,
    /// Devices that it is given.
    pub devices: Vec<DeviceRequest>,
    /// How its capabilities differ from the default set.
    pub capabilities: Capabilities,
    /// Which system calls it may make.
    pub seccomp: Seccomp,
    /// How it is found out whether it does its work.
    pub probes: Probes,
}

/// How it is found out whether a container does its work.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Probes {
    /// Whether it has started; until then the others are not asked.
    pub startup: Option<Probe>,
    /// Whether it still lives.
    pub liveness: Option<Probe>,
    /// Whether it can take work.
    pub readiness: Option<Probe>,
}

impl Probes {
    /// Whether nothing is asked.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A question asked again and again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Which.
    pub check: Check,
    /// From the container's start to the first question.
    pub initial_delay: Duration,
    /// From one question to the next.
    pub period: Duration,
    /// After which no answer is a bad one.
    pub timeout: Duration,
    /// Bad answers in a row until it has failed; at least 1.
    pub failure_threshold: u32,
    /// Good answers in a row until it holds again; at least 1.
    pub success_threshold: u32,
}

/// Something asked of a container, or done in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// A command run in it; good if it exits with 0.
    Exec(Vec<String>),
    /// A GET request to `127.0.0.1` in its network; good if the status is from 200 to 399.
    Http {
        /// To which port.
        port: u16,
        /// Path and query.
        path: String,
        /// Headers by name.
        headers: BTreeMap<String, String>,
    },
    /// A connection to `127.0.0.1` in its network; good if it is accepted.
    Tcp {
        /// To which port.
        port: u16,
    },
}

/// Something mounted into a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Where in the container, absolute and without `.` and `..`.
    pub path: String,
    /// Whether it may only be read.
    pub read_only: bool,
    /// What it is.
    pub source: MountSource,
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountSource {
    /// A directory that is gone with the replica; containers of a pod share it by name.
    Anonymous(ResourceName),
    /// A directory that stays until somebody removes it.
    Named(ResourceName),
    /// A path of the gateway.
    Host(String),
    /// A directory with files.
    ConfigMap {
        /// Its name.
        name: ResourceName,
        /// Text by file name.
        files: Arc<BTreeMap<String, String>>,
        /// Changed under the running container.
        in_place: bool,
    },
    /// A file with a confidential value.
    Secret(ResourceName),
    /// A file with this text: the workload's configuration.
    File(Arc<str>),
}

/// A text in which some pieces are known only where it is used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Template(pub Vec<Piece>);

impl Template {
    /// The same with its texts changed.
    #[must_use]
    pub fn map(&self, change: impl Fn(&str) -> String) -> Self {
        let piece = |piece: &Piece| match piece {
            Piece::Text(text) => Piece::Text(change(text)),
            other => other.clone(),
        };
        Self(self.0.iter().map(piece).collect())
    }
}

/// A piece of a [`Template`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// As it is.
    Text(String),
    /// The replica's index.
    Replica,
    /// The value of a secret.
    Secret(ResourceName),
}

/// What a container may use of the gateway; no limit where there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Memory, in MiB.
    pub memory_mib: Option<u64>,
    /// Processor time, in thousandths of one processor.
    pub cpu_millis: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
}

impl Limits {
    /// The limits in one word, for a container's label; empty if there are none.
    pub fn label(&self) -> String {
        let parts = [("m", self.memory_mib), ("c", self.cpu_millis), ("p", self.pids)];
        let parts = parts.into_iter().filter_map(|(name, limit)| Some(format!("{name}{}", limit?)));
        parts.collect::<Vec<_>>().join(".")
    }
}

/// A device that a container is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceRequest {
    /// By its path on the gateway.
    Path {
        /// On the gateway, below `/dev`.
        path: String,
        /// In the container.
        to: String,
        /// `r`, `w`, `m` in some combination.
        access: String,
    },
    /// By the name of a resource that the gateway's policy declares.
    Resource(String),
}

/// How a container's capabilities differ from the default set: first those to drop, then those to
/// add.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// `CAP_…`, beside the default ones.
    pub add: Vec<String>,
    /// `CAP_…`, or `ALL`.
    pub drop: Vec<String>,
}

/// Which system calls a container may make.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Seccomp {
    /// Those of the default profile.
    #[default]
    Default,
    /// All.
    Unconfined,
    /// Those of a profile that is installed on the gateway.
    Named(String),
}

/// SHA-256 over those parts of a workload's definition that a running container cannot change, the
/// first 16 bytes in hexadecimal.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DefinitionHash(Box<str>);

impl DefinitionHash {
    /// A hash as a label says it.
    pub fn from_label(text: &str) -> Self {
        Self(text.into())
    }

    /// 32 hexadecimal digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for DefinitionHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How strictly a document is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// When an order is written, validated or signed: a field that schema 1 does not have is a typo.
    Strict,
    /// On a gateway: it may come from a newer fleet, and `requires` says if it must be understood.
    Tolerant,
}

/// A document that passed every rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Which gateway it is for.
    pub gateway: GatewayId,
    /// What it orders.
    pub desired: Desired,
    /// JSON Pointers of fields that were ignored, at most [`MAX_REFUSALS`].
    pub unknown_fields: Vec<String>,
}

/// A document that was read, and what is still to be judged elsewhere.
#[derive(Debug, Default)]
pub struct Read {
    /// Which gateway it is for, and what it orders; counts only if nothing is refused.
    judged: Option<(GatewayId, Desired)>,
    /// Every reason against it so far.
    pub refusals: Vec<Refusal>,
    /// JSON Pointers of fields that were ignored.
    unknown_fields: Vec<String>,
    /// Configurations that must satisfy their templates, which is for somebody else to judge: see
    /// [`crate::template`].
    pub config_checks: Vec<ConfigCheck>,
    /// Secrets as they are sealed, by name.
    pub secrets: BTreeMap<ResourceName, String>,
}

impl Read {
    /// What can be made of an order that was accepted before, perhaps by an earlier version with
    /// other rules, and every reason against the rest.
    ///
    /// # Errors
    /// Nothing can be made of it.
    pub fn as_far_as_possible(self) -> Result<(Accepted, Vec<Refusal>), Vec<Refusal>> {
        let unknown_fields = self.unknown_fields;
        match self.judged {
            Some((gateway, desired)) => {
                Ok((Accepted { gateway, desired, unknown_fields }, self.refusals))
            }
            None => Err(self.refusals),
        }
    }

    /// The verdict, with what was found elsewhere.
    ///
    /// # Errors
    /// Every reason why the document is refused; at least one.
    pub fn verdict(mut self, found: Vec<Refusal>) -> Result<Accepted, Vec<Refusal>> {
        self.refusals.extend(found);
        self.unknown_fields.truncate(MAX_REFUSALS);
        let unknown_fields = self.unknown_fields;
        match self.judged {
            Some((gateway, desired)) if self.refusals.is_empty() => {
                Ok(Accepted { gateway, desired, unknown_fields })
            }
            _ if self.refusals.is_empty() => {
                Err(vec![Refusal::whole(Code::MALFORMED, "not a desired state of schema 1")])
            }
            _ => Err(self.refusals),
        }
    }
}

/// Reads a desired state. Judges all that can be told from the document, but for configurations,
/// and, with `facts`, all that can be told of the gateway it is for.
pub fn read(document: &Value, reading: Reading, facts: Option<&GatewayFacts>) -> Read {
    let Structure { mut refusals, mut unknown_fields } = structure::check(document);
    // What is sound is judged by the rules even if something else is not.
    let rules::Judged { order, config_checks, secrets } =
        rules::check(document, facts, &mut refusals);
    if reading == Reading::Strict {
        refusals.extend(unknown_fields.drain(..).map(|path| {
            let field = path.rsplit('/').next().unwrap_or_default();
            let message = format!("unknown field {field:?}; schema 1 does not have it here");
            Refusal::new(path.clone(), Code::UNKNOWN_FIELD, message)
        }));
    }
    Read { judged: order, refusals, unknown_fields, config_checks, secrets }
}

/// Reads a desired state and judges all that can be told from the document alone, configurations
/// too. For documents whose templates are trusted not to take for ever.
///
/// # Errors
/// Every reason why the document is refused; at least one.
#[cfg(feature = "templates")]
pub fn parse(document: &Value, reading: Reading) -> Result<Accepted, Vec<Refusal>> {
    let read = read(document, reading, None);
    let found = crate::template::evaluate_all(&read.config_checks);
    read.verdict(found)
}

/// Like [`parse`] without the judgement of the structure, which takes most of its time.
#[cfg(test)]
pub(crate) fn parse_sound(document: &Value) -> Desired {
    let mut refusals = Vec::new();
    let judged = rules::check(document, None, &mut refusals);
    assert_eq!(refusals, []);
    judged.order.unwrap().1
}

#[cfg(test)]
mod tests;
