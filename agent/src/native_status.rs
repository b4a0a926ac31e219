//! What the local API says of artifacts, native services and operations that take long, and what can
//! be asked for: shapes that the API, the event loop and the command line share.

use coracle_core::artifact::{ArtifactId, ArtifactRef, Coordinate};
use coracle_protocol::Timestamp;
use coracle_protocol::reported::ReplicaState;
use serde::{Deserialize, Serialize};

/// What names an artifact, for the API's document.
#[cfg(feature = "schema")]
pub const ARTIFACT_PATTERN: &str =
    r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*(:[A-Za-z0-9][A-Za-z0-9._+-]*){2}$";

/// An artifact that is installed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ArtifactStatus {
    /// `group:name:version`.
    pub artifact: String,
    /// SHA-256 of the ZIP that it came as, `sha256:…`.
    pub digest: String,
    /// Size of that ZIP, in bytes.
    pub zip_bytes: u64,
    /// Size of its files, in bytes.
    pub unpacked_bytes: u64,
    /// How many files and directories it has.
    pub entries: u64,
    /// When it was installed, by the gateway's clock.
    pub installed_at: Timestamp,
    /// Somebody installed it by hand: it stays until somebody removes it.
    pub by_hand: bool,
    /// The workloads that use it, or may return to it.
    #[serde(default)]
    pub used_by: Vec<String>,
    /// Its directory.
    pub directory: String,
}

/// `GET /v1/artifacts`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Artifacts {
    /// By name.
    pub artifacts: Vec<ArtifactStatus>,
}

/// `POST /v1/artifacts`: an artifact to install by hand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct InstallRequest {
    /// `group:name:version`.
    #[cfg_attr(
        feature = "schema",
        schemars(length(max = 100), regex(pattern = ARTIFACT_PATTERN))
    )]
    pub artifact: String,
    /// SHA-256 of the ZIP, 64 hexadecimal digits; what the repository says beside it if not given.
    #[cfg_attr(feature = "schema", schemars(regex(pattern = r"^[0-9a-f]{64}$")))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// URL of the repository; those that the gateway is configured with if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
}

/// A native service: one replica of a workload, or what is left of one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ServiceStatus {
    /// `instance.service.user.cell`.
    pub coordinate: String,
    /// The workload; absent if no order names it any more and only its directory is left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<String>,
    /// Which replica of it, such as `gauge.0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replica: Option<String>,
    /// The artifact that is ordered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact: Option<String>,
    /// As in the report; absent if only the directory is left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<ReplicaState>,
    /// Process id of its main process, if it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Its runtime directory.
    pub directory: String,
    /// What is in it, in bytes, as far as that was counted; absent if it is not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

/// `GET /v1/services`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Services {
    /// By coordinate.
    pub services: Vec<ServiceStatus>,
}

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum OperationKind {
    /// Installs an artifact.
    Install,
    /// Removes an artifact.
    Remove,
    /// Removes the runtime directory of a service.
    Purge,
}

/// How far an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum OperationState {
    /// Under way.
    Running,
    /// Done.
    Succeeded,
    /// Not done.
    Failed,
}

/// `GET /v1/operations/ID`: something that takes long. The newest are kept until the agent ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct OperationStatus {
    /// Its id.
    pub id: String,
    /// What it does.
    pub kind: OperationKind,
    /// To what: an artifact or a coordinate.
    pub target: String,
    /// How far it is.
    pub state: OperationState,
    /// What came of it, or why nothing did, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// While it runs: `resolving`, `downloading`, `verifying` or `unpacking`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// Bytes done of the phase.
    #[serde(default)]
    pub bytes_done: u64,
    /// Bytes of the phase, once known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_total: Option<u64>,
    /// When it began, by the gateway's clock.
    pub began_at: Timestamp,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
}

/// `GET /v1/operations`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Operations {
    /// Newest first.
    pub operations: Vec<OperationStatus>,
}

/// Something that takes long and is asked for by hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LongWork {
    /// Install an artifact, to stay.
    Install(ArtifactRef),
    /// Remove an artifact.
    Remove(ArtifactId),
    /// Remove the runtime directory of a service.
    Purge(Coordinate),
}

impl LongWork {
    /// What it does.
    pub fn kind(&self) -> OperationKind {
        match self {
            Self::Install(_) => OperationKind::Install,
            Self::Remove(_) => OperationKind::Remove,
            Self::Purge(_) => OperationKind::Purge,
        }
    }

    /// To what.
    pub fn target(&self) -> String {
        match self {
            Self::Install(artifact) => artifact.id.to_string(),
            Self::Remove(artifact) => artifact.to_string(),
            Self::Purge(coordinate) => coordinate.to_string(),
        }
    }
}

/// Why something that takes long was not begun.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LongWorkRefusal {
    /// There is nothing of that name.
    #[error("{0}")]
    Unknown(String),
    /// It is used, or something is being done to it already.
    #[error("{0}")]
    Conflict(String),
    /// Too much is under way already.
    #[error("{0}")]
    Busy(String),
}
