//! Desired state, schema 1: the complete order for one gateway.
//!
//! These types are what travels; `coracle-core` turns them into a validated domain or a list of
//! refusals. Fields that have a default are left out when they hold it, so that a document's bytes,
//! and with them the hash that decides whether a container is replaced, do not change when a newer
//! version adds a field.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::GatewayId;

/// Major version of the documents and topics in this crate.
pub const SCHEMA: u32 = 1;

/// JSON Schema (2020-12) of [`DesiredState`], generated from these types and checked in, so that
/// editors can complete an order. `additionalProperties` is false everywhere: a typo is an error
/// when an order is written, while agents tolerate fields of newer fleets.
pub const JSON_SCHEMA: &str = include_str!("../schema/desired-1.schema.json");

/// Names that may stand in [`DesiredState::requires`]: what an agent of this version can do beyond
/// the plain reading of schema 1. None yet.
pub const FEATURES: &[&str] = &[];

/// The complete desired state of one gateway. Replaces the previous one as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct DesiredState {
    /// Major version of this document: 1.
    #[cfg_attr(feature = "schema", schemars(extend("const" = 1)))]
    pub schema: u32,
    /// The gateway that this order is for; every other gateway refuses it.
    pub gateway: GatewayId,
    /// Rises with every order, also with one that goes back to earlier software. From 1 to 2^53 - 1.
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 9007199254740991u64)))]
    pub generation: u64,
    /// Features without which this order must not be applied. An agent that lacks one refuses it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(max = 64)))]
    pub requires: Vec<String>,
    /// Everything that runs on the gateway; what is not listed is stopped and removed.
    #[cfg_attr(feature = "schema", schemars(length(max = 256)))]
    pub workloads: Vec<Workload>,
}

/// One thing to keep running: a pod of containers that share a network namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct Workload {
    /// Unique on the gateway. Lower-case letters, digits and single hyphens between them, at most 40.
    #[cfg_attr(
        feature = "schema",
        schemars(length(max = 40), regex(pattern = r"^[a-z0-9]+(-[a-z0-9]+)*$"))
    )]
    pub name: String,
    /// How many copies run. From 1 to 64.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 64)))]
    pub replicas: u32,
    /// Which network the containers see.
    pub network: Network,
    /// Whether a container that ended is started again.
    #[serde(default, skip_serializing_if = "is_default")]
    pub restart: RestartPolicy,
    /// How the containers are stopped.
    #[serde(default, skip_serializing_if = "is_default")]
    pub stop: Stop,
    /// The containers. Exactly one for now.
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = 16)))]
    pub containers: Vec<Container>,
}

/// The network of a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Network {
    /// The gateway's own interfaces and ports.
    Host,
    /// A network namespace with nothing but a loopback interface that is down.
    None,
}

/// Whether a container that ended is started again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// Always, with backoff. Ending is an error.
    #[default]
    Always,
    /// Only after an exit code other than 0, with backoff.
    OnFailure,
    /// Never: a job that runs once for each definition.
    Never,
}

/// How a container is stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct Stop {
    /// Signal that asks the process to end, such as `SIGTERM`. Without it the image's own, or SIGTERM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(regex(pattern = r"^SIG[A-Z0-9]+$")))]
    pub signal: Option<String>,
    /// Seconds from the signal to SIGKILL. From 0 to 3600; 10 if not given.
    #[serde(default = "ten", skip_serializing_if = "is_ten")]
    #[cfg_attr(feature = "schema", schemars(range(max = 3600)))]
    pub grace_seconds: u32,
}

impl Default for Stop {
    fn default() -> Self {
        Self { signal: None, grace_seconds: ten() }
    }
}

/// One container of a workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct Container {
    /// Unique in the workload; `main` if not given. Rules as for workloads, at most 30.
    #[serde(default = "main", skip_serializing_if = "is_main")]
    #[cfg_attr(
        feature = "schema",
        schemars(length(max = 30), regex(pattern = r"^[a-z0-9]+(-[a-z0-9]+)*$"))
    )]
    pub name: String,
    /// Image reference with its registry, by digest (best) or by tag:
    /// `registry.example/web@sha256:…` or `registry.example/web:1.27`.
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = 512)))]
    pub image: String,
    /// Replaces the image's entrypoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = 256)))]
    pub command: Option<Vec<String>>,
    /// Replaces the image's default arguments. Without it and without `command` the image's own are used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(length(max = 256)))]
    pub args: Option<Vec<String>>,
    /// Variables added to the image's own, or replacing them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Absolute path; without it the image's own, or `/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    /// `USER`, `UID`, `USER:GROUP` or `UID:GID`; without it the image's own, or root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Mounts the root file system read-only.
    #[serde(default, skip_serializing_if = "is_default")]
    pub readonly_root: bool,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn one() -> u32 {
    1
}

fn is_one(value: &u32) -> bool {
    *value == 1
}

fn ten() -> u32 {
    10
}

fn is_ten(value: &u32) -> bool {
    *value == 10
}

fn main() -> String {
    "main".into()
}

fn is_main(value: &str) -> bool {
    value == "main"
}

/// Generates [`JSON_SCHEMA`] from the types, pretty-printed and with a line feed at the end.
#[cfg(feature = "schema")]
pub fn generate_json_schema() -> String {
    let mut schema = schemars::schema_for!(DesiredState);
    schema.insert("$id".into(), "https://coracle.dev/schema/desired-1.schema.json".into());
    schema.insert("title".into(), "Coracle desired state, schema 1".into());
    let mut text = serde_json::to_string_pretty(&schema).expect("a schema is plain JSON");
    text.push('\n');
    text
}
