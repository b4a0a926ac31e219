//! Wire document to validated domain, or a list of refusals with their places.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use coracle_protocol::desired::{Network, RestartPolicy};

use crate::image::ImageRef;
use crate::name::{ContainerName, WorkloadName};

/// A desired state that passed every rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// Rises with every order; 0 only for "no orders yet".
    pub generation: u64,
    /// What to keep running.
    pub workloads: BTreeMap<WorkloadName, Workload>,
}

/// One workload to keep running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Its name.
    pub name: WorkloadName,
    /// How many copies, at least 1.
    pub replicas: u32,
    /// Which network the container sees.
    pub network: Network,
    /// Whether it is started again when it ends.
    pub restart: RestartPolicy,
    /// Signal that asks it to end; without it the image's own, or SIGTERM.
    pub stop_signal: Option<String>,
    /// From the signal to SIGKILL.
    pub grace: Duration,
    /// What to run.
    pub container: Arc<Container>,
    /// Changes exactly when the container must be replaced.
    pub definition: DefinitionHash,
}

/// What to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Its name in the workload.
    pub name: ContainerName,
    /// Which image.
    pub image: ImageRef,
    /// Replaces the image's entrypoint.
    pub command: Option<Vec<String>>,
    /// Replaces the image's default arguments.
    pub args: Option<Vec<String>>,
    /// Added to the image's variables.
    pub env: BTreeMap<String, String>,
    /// Absolute; without it the image's own, or `/`.
    pub working_dir: Option<String>,
    /// As in the image's configuration; without it the image's own, or root.
    pub user: Option<String>,
    /// Mounts the root file system read-only.
    pub readonly_root: bool,
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
