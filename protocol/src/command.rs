//! Commands, schema 1: what the fleet asks of one gateway, once.
//!
//! A command is signed like an order, in an [`Envelope`](crate::Envelope) of the type
//! [`COMMAND_PAYLOAD_TYPE`](crate::envelope::COMMAND_PAYLOAD_TYPE): who can write to the broker cannot
//! ask anything of a gateway by that alone. Its id is a UUID of version 7 (RFC 9562 section 5.7), so
//! that ids rise with the time of their making, and a gateway need not remember every one for ever.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::id::GatewayId;
use crate::time::Timestamp;

/// The id of one command: a UUID of version 7, written in lower case with hyphens.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Uuid", into = "Uuid")]
pub struct CommandId(Uuid);

/// The text is no id of a command.
#[derive(Debug, thiserror::Error)]
#[error("command id {text:?} is not a UUID of version 7")]
pub struct InvalidCommandId {
    text: String,
}

impl CommandId {
    /// A fresh one, of this moment.
    pub fn new(now: Timestamp) -> Self {
        let at = uuid::Timestamp::from_unix(uuid::NoContext, now.unix(), 0);
        Self(Uuid::new_v7(at))
    }

    /// When it was made, by the clock of who made it.
    pub fn made_at(self) -> Timestamp {
        let at = self.0.get_timestamp().map_or(0, |at| at.to_unix().0);
        Timestamp::from_unix(at)
    }
}

impl TryFrom<Uuid> for CommandId {
    type Error = InvalidCommandId;

    fn try_from(uuid: Uuid) -> Result<Self, Self::Error> {
        match uuid.get_version_num() {
            7 => Ok(Self(uuid)),
            _ => Err(InvalidCommandId { text: uuid.to_string() }),
        }
    }
}

impl From<CommandId> for Uuid {
    fn from(id: CommandId) -> Self {
        id.0
    }
}

impl FromStr for CommandId {
    type Err = InvalidCommandId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidCommandId { text: text.chars().take(64).collect() };
        let uuid = Uuid::try_parse(text).ok().filter(|_| text.len() == 36).ok_or_else(invalid)?;
        Self::try_from(uuid)
    }
}

impl fmt::Display for CommandId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl fmt::Debug for CommandId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What the fleet asks of one gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// Major version of this document: 1.
    pub schema: u32,
    /// Which command: one that is received again is not done again.
    pub id: CommandId,
    /// Whom it is for.
    pub gateway: GatewayId,
    /// It is not begun after this moment, by the gateway's clock.
    pub expires_at: Timestamp,
    /// What is to be done.
    pub action: Action,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Action {
    /// Installs an artifact.
    InstallArtifact {
        /// `GROUP:NAME:VERSION`.
        artifact: String,
        /// Digest of its ZIP, `sha256:` and 64 hexadecimal digits.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        digest: Option<String>,
        /// URL of the repository that it is in, in place of the configured ones.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        repository: Option<String>,
    },
    /// Removes an artifact that nothing uses.
    RemoveArtifact {
        /// `GROUP:NAME:VERSION`.
        artifact: String,
    },
    /// Gives the artifacts that are installed.
    ListArtifacts {},
    /// Lets a workload run again that was stopped.
    StartWorkload {
        /// Its name.
        workload: String,
    },
    /// Moves work away from a workload, then stops it until it is started.
    DrainWorkload {
        /// Its name.
        workload: String,
    },
    /// Stops a workload until it is started.
    StopWorkload {
        /// Its name.
        workload: String,
    },
    /// Replaces a workload's replicas by new ones of the same definition.
    RestartWorkload {
        /// Its name.
        workload: String,
    },
    /// Gives what a workload's containers said.
    ReadLogs(LogQuery),
    /// Gives what a workload's containers say, until the lease ends.
    FollowLogs {
        /// Whose, and from where on.
        #[serde(flatten)]
        query: LogQuery,
        /// For how long, in seconds; 1 to 600.
        lease_seconds: u32,
    },
    /// Gives a command that goes on a lease of this length from now on.
    ExtendLease {
        /// Which command.
        command: CommandId,
        /// For how long, in seconds; 1 to 600.
        lease_seconds: u32,
    },
    /// Ends a command that goes on, or is not begun.
    Cancel {
        /// Which command.
        command: CommandId,
    },
    /// Sends reported state and health now.
    Report {},
    /// Gives what is needed to see what is wrong with a gateway.
    CollectDiagnostics {},
    /// Boots the gateway anew.
    Reboot {},
}

impl Action {
    /// Every kind, as it stands in documents and in a gateway's policy.
    pub const KINDS: [&str; 14] = [
        "install-artifact",
        "remove-artifact",
        "list-artifacts",
        "start-workload",
        "drain-workload",
        "stop-workload",
        "restart-workload",
        "read-logs",
        "follow-logs",
        "extend-lease",
        "cancel",
        "report",
        "collect-diagnostics",
        "reboot",
    ];

    /// Its kind: one of [`Action::KINDS`].
    pub fn kind(&self) -> &'static str {
        match self {
            Self::InstallArtifact { .. } => "install-artifact",
            Self::RemoveArtifact { .. } => "remove-artifact",
            Self::ListArtifacts {} => "list-artifacts",
            Self::StartWorkload { .. } => "start-workload",
            Self::DrainWorkload { .. } => "drain-workload",
            Self::StopWorkload { .. } => "stop-workload",
            Self::RestartWorkload { .. } => "restart-workload",
            Self::ReadLogs(_) => "read-logs",
            Self::FollowLogs { .. } => "follow-logs",
            Self::ExtendLease { .. } => "extend-lease",
            Self::Cancel { .. } => "cancel",
            Self::Report {} => "report",
            Self::CollectDiagnostics {} => "collect-diagnostics",
            Self::Reboot {} => "reboot",
        }
    }

    /// What it is about, as far as that has a name: an artifact, a workload, a command.
    pub fn target(&self) -> Option<String> {
        match self {
            Self::InstallArtifact { artifact, .. } | Self::RemoveArtifact { artifact } => {
                Some(artifact.clone())
            }
            Self::StartWorkload { workload }
            | Self::DrainWorkload { workload }
            | Self::StopWorkload { workload }
            | Self::RestartWorkload { workload } => Some(workload.clone()),
            Self::ReadLogs(query) | Self::FollowLogs { query, .. } => Some(query.workload.clone()),
            Self::ExtendLease { command, .. } | Self::Cancel { command } => {
                Some(command.to_string())
            }
            Self::ListArtifacts {}
            | Self::Report {}
            | Self::CollectDiagnostics {}
            | Self::Reboot {} => None,
        }
    }
}

/// What of a workload's logs is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogQuery {
    /// Name of the workload.
    pub workload: String,
    /// One replica of it only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replica: Option<u32>,
    /// One container of each replica only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// The newest lines only, this many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tail: Option<u32>,
}

/// What became of a command so far.
///
/// ```text
/// (arrives) -> accepted -> running -> succeeded | failed
///     |            \-> expired | superseded | rejected
///     \-> rejected | expired
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum CommandState {
    /// The gateway has it, for good, and has not begun.
    Accepted,
    /// It is being done.
    Running,
    /// It was done.
    Succeeded,
    /// It was begun and not done.
    Failed,
    /// It is not done: the gateway does not know it, does not allow it, or cannot.
    Rejected,
    /// It was not begun in time.
    Expired,
    /// It was not begun, because of a newer command.
    Superseded,
}

impl CommandState {
    /// The word that stands for it in documents.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Rejected => "rejected",
            Self::Expired => "expired",
            Self::Superseded => "superseded",
        }
    }

    /// Whether nothing comes after it.
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Accepted | Self::Running)
    }
}

/// What became of a command, on the gateway's topic `results`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandResult {
    /// Major version of this document: 1.
    pub schema: u32,
    /// Whose.
    pub gateway: GatewayId,
    /// Of which command.
    pub command: CommandId,
    /// So far, or for good.
    pub state: CommandState,
    /// When it came to that, by the gateway's clock.
    pub at: Timestamp,
    /// One word for programs, such as `not-allowed`, where it was not done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// A sentence for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// How far it is, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<CommandProgress>,
    /// What it gave, where that is small; at most 2 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<serde_json::Value>,
    /// What it gave on the topic `output`, once that is whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<OutputSummary>,
}

/// How far a command is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandProgress {
    /// What is being done, in one word.
    pub phase: String,
    /// Bytes done.
    pub bytes_done: u64,
    /// Of so many, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_total: Option<u64>,
}

/// All that a command gave on the topic `output`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputSummary {
    /// Bytes as they were sent: one gzip member (RFC 1952).
    pub bytes: u64,
    /// SHA-256 of these bytes, in hexadecimal.
    pub digest: String,
    /// There was more than may be sent, and it was left out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
}

/// The head of a piece of output: one line of JSON, before the bytes themselves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputPiece {
    /// Of which command.
    pub command: CommandId,
    /// Where the bytes belong, counted from 0.
    pub offset: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_rise_with_time_and_are_of_version_7_only() {
        let at = |seconds| CommandId::new(Timestamp::from_unix(seconds));
        assert!(at(1_700_000_000) < at(1_700_000_001));
        assert_eq!(at(1_700_000_000).made_at(), Timestamp::from_unix(1_700_000_000));
        let id = at(1_700_000_000);
        assert_eq!(id.to_string().parse::<CommandId>().unwrap(), id);
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(serde_json::from_str::<CommandId>(&json).unwrap(), id);
        for bad in ["", "x", "3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11"] {
            assert!(bad.parse::<CommandId>().is_err(), "{bad}");
            assert!(serde_json::from_str::<CommandId>(&format!("{bad:?}")).is_err(), "{bad}");
        }
    }

    #[test]
    fn actions_are_told_by_their_kind() {
        let json = r#"{"kind":"follow-logs","workload":"web","lease_seconds":60}"#;
        let query = LogQuery { workload: "web".into(), ..LogQuery::default() };
        let follow = Action::FollowLogs { query, lease_seconds: 60 };
        assert_eq!(serde_json::from_str::<Action>(json).unwrap(), follow);
        assert!(serde_json::from_str::<Action>(r#"{"kind":"launch"}"#).is_err());
        let json = serde_json::to_value(&follow).unwrap();
        assert_eq!(json["kind"], follow.kind());
        for kind in Action::KINDS {
            // Each is known: what is missing is its fields, if it has any.
            let read = serde_json::from_value::<Action>(serde_json::json!({ "kind": kind }));
            match read {
                Ok(action) => assert_eq!(action.kind(), kind),
                Err(error) => assert!(error.to_string().contains("missing field"), "{error}"),
            }
        }
    }
}
