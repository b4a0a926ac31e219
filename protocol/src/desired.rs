//! Desired state, schema 1: the complete order for one gateway.
//!
//! These types are what travels; `coracle-core` turns them into a validated domain or a list of
//! refusals. Fields that have a default are left out when they hold it, so that a document's bytes,
//! and with them the hash that decides whether a container is replaced, do not change when a newer
//! version adds a field.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::id::GatewayId;

/// Major version of the documents and topics in this crate.
pub const SCHEMA: u32 = 1;

/// JSON Schema (2020-12) of [`DesiredState`], generated from these types and checked in, so that
/// editors can complete an order. `additionalProperties` is false everywhere: a typo is an error
/// when an order is written, while agents tolerate fields of newer fleets.
pub const JSON_SCHEMA: &str = include_str!("../schema/desired-1.schema.json");

/// Names that may stand in [`DesiredState::requires`]: what an agent of this version can do beyond
/// running single containers, the first reading of schema 1.
pub const FEATURES: &[&str] = &[
    "config-templates",
    "dependencies",
    "devices",
    "environment-templates",
    "limits",
    "mounts",
    "native-services",
    "pods",
    "pod-network",
    "probes",
    "security",
    "units",
    "updates",
    "workload-identity",
];

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
    /// What people call the gateway: `${gateway.name}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway_name: Option<String>,
    /// The project, or tenant, that the workloads belong to: `${project}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// Addresses of services by name: `${endpoint.NAME}`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub endpoints: BTreeMap<String, String>,
    /// Sets of files that are not secret, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub config_maps: BTreeMap<String, ConfigMap>,
    /// Confidential values, each sealed for this gateway, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, Secret>,
    /// What workloads can be made from, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub types: BTreeMap<String, WorkloadType>,
    /// Everything that runs on the gateway; what is not listed is stopped and removed.
    #[cfg_attr(feature = "schema", schemars(length(max = 256)))]
    pub workloads: Vec<Workload>,
}

/// A named set of files that are not secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct ConfigMap {
    /// Text by file name: letters, digits, dots, hyphens and underscores.
    pub files: BTreeMap<String, String>,
}

/// A confidential value that only one gateway can open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct Secret {
    /// Made by `coracle-fleet secret seal`, base64: HPKE (RFC 9180) for the gateway's public key.
    pub sealed: String,
}

/// What workloads are made from: all that the many have in common. A workload adds its name, its
/// configuration, what is mounted and which ports of the gateway it gets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct WorkloadType {
    /// Which network the containers see.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// Whether a container that ended is started again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart: Option<RestartPolicy>,
    /// How the containers are stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<Stop>,
    /// How replicas of an earlier definition are replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update: Option<Update>,
    /// What the configuration of each workload must look like, and where its containers find it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_template: Option<ConfigTemplate>,
    /// The containers, if it is not a native service.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(max = 16)))]
    pub containers: Vec<Container>,
    /// The native service, in place of containers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<Service>,
    /// See [`Workload::identity`].
    #[serde(default, skip_serializing_if = "is_default")]
    pub identity: bool,
}

/// What a workload's configuration must look like, and where its containers find it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct ConfigTemplate {
    /// JSON Schema (2020-12, or draft-07 where `$schema` says so) that the configuration must satisfy.
    pub schema: Value,
    /// File in every container, absolute; `/etc/coracle/config.json` if not given.
    #[serde(default = "config_path", skip_serializing_if = "is_config_path")]
    pub path: String,
    /// Variables of every container, each with the place of its value in the configuration (JSON
    /// Pointer, RFC 6901). Text is given as it is, anything else as JSON; what is not there, not.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
}

/// One thing to keep running: a pod of containers that share a network namespace, or a native
/// service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct Workload {
    /// Unique on the gateway. Lower-case letters, digits and single hyphens between them, at most 40.
    #[cfg_attr(
        feature = "schema",
        schemars(length(max = 40), regex(pattern = r"^[a-z0-9]+(-[a-z0-9]+)*$"))
    )]
    pub name: String,
    /// Which of the order's types it is made from. Without one, it says `network` and `containers`.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub workload_type: Option<String>,
    /// How many copies run. From 1 to 64.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 64)))]
    pub replicas: u32,
    /// Which network the containers see; the type's if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// Whether a container that ended is started again; as the type says, or always.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart: Option<RestartPolicy>,
    /// How the containers are stopped; as the type says, or SIGTERM and 10 seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<Stop>,
    /// How replicas of an earlier definition are replaced; as the type says, or one by one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update: Option<Update>,
    /// Other workloads that must be there before it starts, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub depends_on: BTreeMap<String, Dependency>,
    /// What its configuration must look like, if it is not made from a type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_template: Option<ConfigTemplate>,
    /// Its configuration. The template must be satisfied before anything changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<Value>,
    /// What is mounted, by the name that the containers give it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub mounts: BTreeMap<String, MountSource>,
    /// Which ports of the gateway lead to its containers, by the name that these give them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<String, HostPort>,
    /// Limits by container, in place of the type's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub limits: BTreeMap<String, Limits>,
    /// Gives it a socket where it can ask for short-lived credentials of its own.
    #[serde(default, skip_serializing_if = "is_default")]
    pub identity: bool,
    /// Secrets that it can ask for at that socket.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(max = 64)))]
    pub grants: Vec<String>,
    /// The containers, if it is not made from a type and no native service.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(max = 16)))]
    pub containers: Vec<Container>,
    /// The native service, in place of containers, if it is not made from a type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<Service>,
    /// Where the native service stands: `instance.service.user.cell`. Its first replica stands there,
    /// further ones at `instance-INDEX`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coordinate: Option<String>,
    /// Workloads of one unit are updated as one: if one of them returns to what it was before, so do
    /// the others. A name as for workloads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
}

impl DesiredState {
    /// These workloads and nothing else.
    pub fn new(gateway: GatewayId, generation: u64, workloads: Vec<Workload>) -> Self {
        Self {
            schema: SCHEMA,
            gateway,
            generation,
            requires: Vec::new(),
            gateway_name: None,
            project: None,
            endpoints: BTreeMap::new(),
            config_maps: BTreeMap::new(),
            secrets: BTreeMap::new(),
            types: BTreeMap::new(),
            workloads,
        }
    }
}

impl Default for Workload {
    /// What a document says that leaves everything out; nothing that would be accepted.
    fn default() -> Self {
        Self {
            name: String::new(),
            workload_type: None,
            replicas: one(),
            network: None,
            restart: None,
            stop: None,
            update: None,
            depends_on: BTreeMap::new(),
            config_template: None,
            config: None,
            mounts: BTreeMap::new(),
            ports: BTreeMap::new(),
            limits: BTreeMap::new(),
            identity: false,
            grants: Vec::new(),
            containers: Vec::new(),
            service: None,
            coordinate: None,
            unit: None,
        }
    }
}

impl Default for Container {
    /// What a document says that leaves everything out; nothing that would be accepted.
    fn default() -> Self {
        Self {
            name: main(),
            image: String::new(),
            command: None,
            args: None,
            env: BTreeMap::new(),
            working_dir: None,
            user: None,
            readonly_root: false,
            mounts: Vec::new(),
            ports: Vec::new(),
            limits: Limits::default(),
            devices: Vec::new(),
            capabilities: Capabilities::default(),
            seccomp: None,
            probes: Probes::default(),
        }
    }
}

/// The network of a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Network {
    /// The gateway's own interfaces and ports.
    Host,
    /// A network of the pod's own with nothing but a loopback interface.
    None,
    /// A network of the pod's own with an address, made by the gateway's network plugins (CNI).
    Pod,
}

/// What is mounted: exactly one of these.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct MountSource {
    /// An empty directory that is gone with the replica.
    #[serde(default, skip_serializing_if = "is_default")]
    pub anonymous: bool,
    /// A directory of this name on the gateway, which stays until somebody removes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub named: Option<String>,
    /// A path of the gateway, where its policy allows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// One of the order's config maps: a directory with its files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map: Option<String>,
    /// One of the order's secrets: a file in memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
}

/// A port of the gateway that leads to a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct HostPort {
    /// Port of the gateway.
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 65535)))]
    pub host: u16,
    /// Only on this address of the gateway; on all if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
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
    /// Seconds for which a replica that no port leads to any more goes on before it is asked to end.
    /// From 0 to 3600; if not given, 2 where its ports are shared and 0 elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(max = 3600)))]
    pub drain_seconds: Option<u32>,
    /// Done before the signal is sent, within the time of grace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pre_stop: Option<Hook>,
}

impl Default for Stop {
    fn default() -> Self {
        Self { signal: None, grace_seconds: ten(), drain_seconds: None, pre_stop: None }
    }
}

/// Something done in a replica: exactly one of `exec` and `http`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct Hook {
    /// In which container; the first one if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// A command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exec: Option<ExecAction>,
    /// A request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpAction>,
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
    /// Variables added to the image's own, or replacing them. `${gateway.name}`, `${gateway.id}`,
    /// `${project}`, `${workload}`, `${replica}`, `${endpoint.NAME}` and `${secret.NAME}` are
    /// replaced; everything else is literal.
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
    /// What must be mounted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(max = 64)))]
    pub mounts: Vec<MountRequirement>,
    /// Where it listens for what comes through ports of the gateway.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(max = 64)))]
    pub ports: Vec<PortRequirement>,
    /// What it may use of the gateway.
    #[serde(default, skip_serializing_if = "is_default")]
    pub limits: Limits,
    /// Devices of the gateway that it uses, where its policy allows it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(max = 64)))]
    pub devices: Vec<Device>,
    /// How its capabilities differ from the default set.
    #[serde(default, skip_serializing_if = "is_default")]
    pub capabilities: Capabilities,
    /// Which system calls it may make: `default`, `unconfined`, or a profile installed on the
    /// gateway; the last two where its policy allows it. `default` if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seccomp: Option<String>,
    /// How it is found out whether it does its work.
    #[serde(default, skip_serializing_if = "is_default")]
    pub probes: Probes,
}

/// Native software: a program of an artifact, started beside the gateway's own files, which it can
/// read and not write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct Service {
    /// The artifact, `group:name:version`.
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = 302)))]
    pub artifact: String,
    /// SHA-256 of the artifact's ZIP, 64 hexadecimal digits; without it, what the repository says in
    /// the file beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(regex(pattern = r"^[0-9a-f]{64}$")))]
    pub sha256: Option<String>,
    /// URL of the repository that has it, such as `https://repo.example/releases`; without it, those
    /// that the gateway is configured with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = 2048)))]
    pub repository: Option<String>,
    /// The program and its first arguments. A program without a slash at its beginning is one of the
    /// artifact. In it, in `args` and in `env`, `${artifact}` and `${runtime}` stand for the
    /// directories of the artifact and of the service.
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = 256)))]
    pub command: Vec<String>,
    /// Further arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(max = 256)))]
    pub args: Vec<String>,
    /// Variables; see [`Container::env`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// `USER`, `UID`, `USER:GROUP` or `UID:GID` of the gateway; `nobody` (65534) if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// What is put into its runtime directory before it starts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(max = 64)))]
    pub files: Vec<RuntimeFile>,
    /// What must be mounted, at paths below `/run`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(max = 64)))]
    pub mounts: Vec<MountRequirement>,
    /// Where it listens for what comes through ports of the gateway.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(max = 64)))]
    pub ports: Vec<PortRequirement>,
    /// What it may use of the gateway.
    #[serde(default, skip_serializing_if = "is_default")]
    pub limits: Limits,
    /// Devices of the gateway that it uses, where its policy allows it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(max = 64)))]
    pub devices: Vec<Device>,
    /// How its capabilities differ from the default set.
    #[serde(default, skip_serializing_if = "is_default")]
    pub capabilities: Capabilities,
    /// Which system calls it may make; see [`Container::seccomp`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seccomp: Option<String>,
    /// How it is found out whether it does its work.
    #[serde(default, skip_serializing_if = "is_default")]
    pub probes: Probes,
}

impl Service {
    /// What it has in common with containers: one called `main` without an image, of which only the
    /// network, mounts named by it and the runtime directory can be written to.
    pub fn as_container(&self) -> Container {
        Container {
            command: Some(self.command.clone()),
            args: Some(self.args.clone()).filter(|args| !args.is_empty()),
            env: self.env.clone(),
            user: self.user.clone(),
            readonly_root: true,
            mounts: self.mounts.clone(),
            ports: self.ports.clone(),
            limits: self.limits,
            devices: self.devices.clone(),
            capabilities: self.capabilities.clone(),
            seccomp: self.seccomp.clone(),
            probes: self.probes.clone(),
            ..Container::default()
        }
    }
}

/// What is put into a service's runtime directory: exactly one of `artifact`, `config_map`, `url` and
/// `archive`. It is put there once; what the service has changed since is left alone, unless the
/// source changes and `overwrite` is true.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct RuntimeFile {
    /// Where, a path in the runtime directory; the directory itself if not given.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub to: String,
    /// A file or a directory of the service's artifact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact: Option<String>,
    /// One of the order's config maps: its files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map: Option<String>,
    /// A file, fetched from this URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = 2048)))]
    pub url: Option<String>,
    /// A ZIP, fetched from this URL and unpacked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = 2048)))]
    pub archive: Option<String>,
    /// SHA-256 of what is fetched, 64 hexadecimal digits; needed with `url` and `archive`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(regex(pattern = r"^[0-9a-f]{64}$")))]
    pub sha256: Option<String>,
    /// Whether a source that changed replaces what is there.
    #[serde(default, skip_serializing_if = "is_default")]
    pub overwrite: bool,
}

/// How it is found out whether a container does its work. Can be changed without a new container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct Probes {
    /// Whether it has started. Until then the other two are not asked; if it fails, the container is
    /// ended and started again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub startup: Option<Probe>,
    /// Whether it still lives. If it fails, the container is ended and started again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub liveness: Option<Probe>,
    /// Whether it can take work. While it fails, shared ports do not lead to it and dependents wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub readiness: Option<Probe>,
}

/// A question asked again and again: exactly one of `exec`, `http` and `tcp`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct Probe {
    /// Good if this command, run in the container, exits with 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exec: Option<ExecAction>,
    /// Good if the answer's status is from 200 to 399.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpAction>,
    /// Good if a connection is accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpAction>,
    /// Seconds from the container's start to the first question. From 0 to 3600.
    #[serde(default, skip_serializing_if = "is_default")]
    #[cfg_attr(feature = "schema", schemars(range(max = 3600)))]
    pub initial_delay_seconds: u32,
    /// Seconds from one question to the next. From 1 to 3600; 10 if not given.
    #[serde(default = "ten", skip_serializing_if = "is_ten")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 3600)))]
    pub period_seconds: u32,
    /// Seconds after which no answer is a bad one. From 1 to 300; 1 if not given.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 300)))]
    pub timeout_seconds: u32,
    /// Bad answers in a row until it has failed. From 1 to 1000; 3 if not given.
    #[serde(default = "three", skip_serializing_if = "is_three")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 1000)))]
    pub failure_threshold: u32,
    /// Good answers in a row until it holds again. From 1 to 1000; 1 if not given.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 1000)))]
    pub success_threshold: u32,
}

impl Default for Probe {
    /// What a document says that leaves everything out; nothing that would be accepted.
    fn default() -> Self {
        Self {
            exec: None,
            http: None,
            tcp: None,
            initial_delay_seconds: 0,
            period_seconds: ten(),
            timeout_seconds: one(),
            failure_threshold: three(),
            success_threshold: one(),
        }
    }
}

/// A command, run in a container without a shell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct ExecAction {
    /// The program and its arguments.
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = 256)))]
    pub command: Vec<String>,
}

/// A GET request (HTTP/1.1, without TLS), made in the network of the workload to `127.0.0.1`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct HttpAction {
    /// To which port.
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 65535)))]
    pub port: u16,
    /// Path and query; `/` if not given.
    #[serde(default = "root", skip_serializing_if = "is_root")]
    pub path: String,
    /// Headers, `Host` among them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
}

/// A connection, made in the network of the workload to `127.0.0.1`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct TcpAction {
    /// To which port.
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 65535)))]
    pub port: u16,
}

/// What must be the case with another workload before one starts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct Dependency {
    /// What it is waited for; that it was started, if not given.
    #[serde(default, skip_serializing_if = "is_default")]
    pub condition: DependencyCondition,
    /// Stops the dependent when the condition no longer holds, and starts it again when it does.
    #[serde(default, skip_serializing_if = "is_default")]
    pub stop_with: bool,
}

/// What a workload can wait for in another one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum DependencyCondition {
    /// All its replicas run.
    #[default]
    Started,
    /// All its replicas are ready.
    Healthy,
    /// All its replicas ended with exit code 0; for jobs.
    Completed,
}

/// How replicas of an earlier definition are replaced. If the new ones do not become healthy, the
/// workload returns to the definition that last was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct Update {
    /// In which way.
    #[serde(default, skip_serializing_if = "is_default")]
    pub strategy: UpdateStrategy,
    /// How many of the replicas may be missing or not ready because of an update. From 0 to 64; 1 if
    /// not given. For `rolling`; at least 1 where `surge` is 0.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    #[cfg_attr(feature = "schema", schemars(range(max = 64)))]
    pub max_unavailable: u32,
    /// How many replicas more than ordered there may be meanwhile. From 0 to 64. For `rolling`.
    #[serde(default, skip_serializing_if = "is_default")]
    #[cfg_attr(feature = "schema", schemars(range(max = 64)))]
    pub surge: u32,
    /// Seconds within which a new replica must be ready. From 1 to 86400; 300 if not given.
    #[serde(default = "three_hundred", skip_serializing_if = "is_three_hundred")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 86400)))]
    pub healthy_within_seconds: u32,
    /// Seconds that a new replica must have been ready before the next one is replaced. From 0 to
    /// 3600; 5 if not given.
    #[serde(default = "five", skip_serializing_if = "is_five")]
    #[cfg_attr(feature = "schema", schemars(range(max = 3600)))]
    pub min_ready_seconds: u32,
}

impl Default for Update {
    fn default() -> Self {
        Self {
            strategy: UpdateStrategy::Rolling,
            max_unavailable: one(),
            surge: 0,
            healthy_within_seconds: three_hundred(),
            min_ready_seconds: five(),
        }
    }
}

/// In which way replicas are replaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum UpdateStrategy {
    /// A few at a time.
    #[default]
    Rolling,
    /// All new ones are started beside the old ones, which go when all of the new are ready.
    BlueGreen,
}

/// Something that must be mounted into a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct MountRequirement {
    /// By which the workload's `mounts` say what it is. Containers that name the same share it.
    #[cfg_attr(
        feature = "schema",
        schemars(length(max = 40), regex(pattern = r"^[a-z0-9]+(-[a-z0-9]+)*$"))
    )]
    pub name: String,
    /// Where, absolute.
    pub path: String,
    /// Whether the container may only read it. Config maps and secrets are never written to.
    #[serde(default, skip_serializing_if = "is_default")]
    pub read_only: bool,
    /// What it may be; anything if not given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(max = 8)))]
    pub kinds: Vec<MountKind>,
    /// The container can do without.
    #[serde(default, skip_serializing_if = "is_default")]
    pub optional: bool,
    /// A config map that changes is changed under the running container, all files at once, in place
    /// of a new container.
    #[serde(default, skip_serializing_if = "is_default")]
    pub in_place: bool,
}

/// What can be mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum MountKind {
    /// An empty directory that is gone with the replica.
    Anonymous,
    /// A directory that survives replacement and reboot.
    Named,
    /// A path of the gateway.
    Host,
    /// Files from the order.
    ConfigMap,
    /// A confidential value.
    Secret,
}

/// Where a container listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct PortRequirement {
    /// By which the workload's `ports` say which port of the gateway leads here.
    #[cfg_attr(
        feature = "schema",
        schemars(length(max = 40), regex(pattern = r"^[a-z0-9]+(-[a-z0-9]+)*$"))
    )]
    pub name: String,
    /// In the container.
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 65535)))]
    pub port: u16,
    /// TCP if not given.
    #[serde(default, skip_serializing_if = "is_default")]
    pub protocol: Protocol,
    /// No port of the gateway need lead here.
    #[serde(default, skip_serializing_if = "is_default")]
    pub optional: bool,
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

/// What a container may use of the gateway; no limit where nothing is said, but for 1024 processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct Limits {
    /// Memory in MiB. A container that takes more is ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = 4, max = 1048576)))]
    pub memory_mib: Option<u64>,
    /// Processor time in thousandths of one processor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = 10, max = 1024000)))]
    pub cpu_millis: Option<u64>,
    /// Processes and threads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 4194304)))]
    pub pids: Option<u64>,
}

/// A device: by `path`, or a `resource` that the gateway's policy names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct Device {
    /// On the gateway, below `/dev`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// In the container; the same if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// `r`, `w` and `m` (make nodes) in some combination; `rw` if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(regex(pattern = r"^[rwm]{1,3}$")))]
    pub access: Option<String>,
    /// Name of a resource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource: Option<String>,
}

/// How a container's capabilities differ from the default set: first those to drop, then those to
/// add.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct Capabilities {
    /// `CAP_…`, where the gateway's policy allows it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(max = 64)))]
    pub add: Vec<String>,
    /// `CAP_…`, or `ALL`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(max = 64)))]
    pub drop: Vec<String>,
}

/// Where containers find their configuration if their type does not say otherwise.
pub const CONFIG_PATH: &str = "/etc/coracle/config.json";

/// Where containers find their configuration if the template does not say.
pub fn config_path() -> String {
    CONFIG_PATH.into()
}

fn is_config_path(value: &str) -> bool {
    value == CONFIG_PATH
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

fn three() -> u32 {
    3
}

fn is_three(value: &u32) -> bool {
    *value == 3
}

fn five() -> u32 {
    5
}

fn is_five(value: &u32) -> bool {
    *value == 5
}

fn three_hundred() -> u32 {
    300
}

fn is_three_hundred(value: &u32) -> bool {
    *value == 300
}

fn root() -> String {
    "/".into()
}

fn is_root(value: &str) -> bool {
    value == "/"
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
