//! Wire document to validated domain, or a list of refusals with their places.
//!
//! In: a JSON value. Out: a [`Desired`] whose every name, reference and number has been checked, or
//! every reason against it. Deliberately not here: signature, generation and gateway, which need
//! to know more than the document.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use coracle_protocol::limits::MAX_REFUSALS;
use coracle_protocol::{Code, GatewayId, Refusal};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use coracle_protocol::desired::{Network, RestartPolicy};

use crate::structure::{self, Structure};

mod rules;

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

/// Reads a desired state. Judges all that can be told from the document alone.
///
/// # Errors
/// Every reason why the document is refused; at least one.
pub fn parse(document: &Value, reading: Reading) -> Result<Accepted, Vec<Refusal>> {
    let Structure { mut refusals, mut unknown_fields } = structure::check(document);
    // What is sound is judged by the rules even if something else is not.
    let judged = rules::check(document, &mut refusals);
    if reading == Reading::Strict {
        refusals.extend(unknown_fields.drain(..).map(|path| {
            let field = path.rsplit('/').next().unwrap_or_default();
            let message = format!("unknown field {field:?}; schema 1 does not have it here");
            Refusal::new(path.clone(), Code::UNKNOWN_FIELD, message)
        }));
    }
    unknown_fields.truncate(MAX_REFUSALS);
    match judged {
        Some((gateway, desired)) if refusals.is_empty() => {
            Ok(Accepted { gateway, desired, unknown_fields })
        }
        _ if refusals.is_empty() => {
            Err(vec![Refusal::whole(Code::MALFORMED, "not a desired state of schema 1")])
        }
        _ => Err(refusals),
    }
}

/// Like [`parse`] without the judgement of the structure, which takes most of its time.
#[cfg(test)]
pub(crate) fn parse_sound(document: &Value) -> Desired {
    let mut refusals = Vec::new();
    let judged = rules::check(document, &mut refusals);
    assert_eq!(refusals, []);
    judged.unwrap().1
}

#[cfg(test)]
mod tests;
