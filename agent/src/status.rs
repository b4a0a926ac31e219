//! What the local API says and the command line shows: the shapes that both share, and the calls
//! that the API makes of the event loop.

use coracle_protocol::health::LinkUse;
use coracle_protocol::{CommandState, GatewayId, Health, Refusal, ReportedState, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::native_status::{
    Artifacts, LongWork, LongWorkRefusal, OperationStatus, Operations, Services,
};

/// `GET /v1/status`: everything about the gateway's orders and what became of them.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Status {
    /// As it is reported to the fleet.
    pub reported: ReportedState,
    /// The connection to the broker; absent if none is configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<LinkStatus>,
    /// Bytes that the link has carried today (UTC), both ways together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_bytes_today: Option<u64>,
    /// Images being fetched, sorted by reference.
    pub pulls: Vec<PullStatus>,
}

/// The connection to the broker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct LinkStatus {
    /// `HOST:PORT`.
    pub broker: String,
    /// Whether it stands.
    pub connected: bool,
    /// Why it does not stand, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When the next try is, by the gateway's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_try: Option<Timestamp>,
}

/// `GET /v1/link`: what the link carries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct LinkDay {
    /// The connection to the broker; absent if none is configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<LinkStatus>,
    /// What was carried today (UTC), by kind.
    pub today: LinkUse,
    /// Most bytes a day of all kinds, both ways together; absent if there is no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cap: Option<u64>,
    /// Kinds that are held back until the next day.
    #[serde(default)]
    pub held_back: Vec<String>,
}

/// An image being fetched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PullStatus {
    /// Image reference.
    pub image: String,
    /// `resolving`, `downloading` or `unpacking`.
    pub phase: String,
    /// Bytes that are there, of this image's content.
    pub bytes_done: u64,
    /// Bytes in all, once known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_total: Option<u64>,
}

/// One thing that happened, for people. Kept in memory only, and only the newest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Happening {
    /// Rises by one for each, from 1 at the start of the agent.
    pub sequence: u64,
    /// When, by the gateway's clock.
    pub at: Timestamp,
    /// What kind, for programs: such as `started`, `ended`, `pulled`, `order-accepted`.
    pub kind: String,
    /// Which workload's replica, such as `web.0`, if it concerns one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replica: Option<String>,
    /// What happened, for people.
    pub message: String,
}

/// `GET /v1/events`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Happenings {
    /// Oldest first.
    pub events: Vec<Happening>,
    /// How many older ones, after the one asked for, were dropped to keep the memory bounded.
    pub dropped: u64,
}

/// `GET /v1/events`: what happened, and what a reader needs to go on from there.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct EventsPage {
    /// What happened.
    #[serde(flatten)]
    pub happenings: Happenings,
    /// Sequence of the newest event of all; 0 before the first.
    pub newest: u64,
    /// When the agent started. Sequences count from there: where this differs from the answer
    /// before, the agent was started anew and a reader begins again after 0.
    pub agent_started: Timestamp,
}

/// A named volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct VolumeStatus {
    /// Its name.
    pub name: String,
    /// What it takes on the disk, in bytes.
    pub bytes: u64,
    /// Whether all of it was looked at; if not, it takes more.
    pub complete: bool,
    /// The workloads whose orders name it.
    #[serde(default)]
    pub used_by: Vec<String>,
    /// The replicas that have it mounted, such as `web.0`.
    #[serde(default)]
    pub mounted_by: Vec<String>,
    /// When it was last taken into use, to the hour, or now; unknown if never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_used: Option<Timestamp>,
}

/// `GET /v1/volumes`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Volumes {
    /// By name.
    pub volumes: Vec<VolumeStatus>,
}

/// `GET /v1/logs`: what is kept of one container's lines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct KeptLog {
    /// `WORKLOAD.INDEX.CONTAINER`.
    pub container: String,
    /// Bytes on the disk.
    pub size: u64,
    /// When it was last written to.
    pub newest: Option<Timestamp>,
}

/// `GET /v1/logs/WORKLOAD`: one line, or a part of one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct LogLine {
    /// Who said it: `WORKLOAD.INDEX.CONTAINER`.
    pub container: String,
    /// When, to the microsecond; absent where lines are missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
    /// `stdout`, `stderr`, or `coracle` for what is said of the container: that it started, that
    /// lines are missing.
    pub stream: String,
    /// Whether the next line of this stream goes on with it.
    pub partial: bool,
    /// What was said; what is no UTF-8 is replaced.
    pub text: String,
}

/// `GET /v1/commands`: a command of the fleet, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CommandStatus {
    /// Its id, a UUID of version 7.
    pub id: String,
    /// What is to be done, such as `stop-workload`.
    pub kind: String,
    /// To what, if that has a name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// What became of it so far.
    pub state: CommandState,
    /// One word for programs, where it was not done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// When it was made, by the clock of who made it.
    pub made_at: Timestamp,
    /// When it came to its state, by the gateway's clock.
    pub at: Timestamp,
    /// Whether the fleet holds its final result.
    pub received: bool,
}

/// `GET /v1/commands`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CommandsStatus {
    /// The newest first.
    pub commands: Vec<CommandStatus>,
}

/// `DELETE /v1/volumes/NAME`: it is gone. An object that may come to say more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Removed {}

/// What somebody does to a workload by hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// Lets it run again.
    Start,
    /// Moves work away from it, then stops it, until it is started by hand.
    Drain,
    /// Stops it, until it is started by hand.
    Stop,
    /// Replaces its replicas by new ones of the same definition, as an update would.
    Restart,
}

impl Operation {
    /// As it stands in the path of a request.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Drain => "drain",
            Self::Stop => "stop",
            Self::Restart => "restart",
        }
    }
}

/// `POST /v1/workloads/NAME/OPERATION`: what was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Operated {
    /// For people.
    pub message: String,
    /// Nothing had to be done.
    pub unchanged: bool,
}

/// Why nothing was done to a workload.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OperationRefusal {
    /// The orders name none of that name.
    #[error("{0}")]
    Unknown(String),
    /// It cannot be done to it as it is.
    #[error("{0}")]
    Conflict(String),
    /// It could not be stored.
    #[error("{0}")]
    Failed(String),
}

/// Why a volume was not removed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VolumeRefusal {
    /// There is none of that name.
    #[error("{0}")]
    Unknown(String),
    /// Somebody uses it.
    #[error("{0}")]
    InUse(String),
    /// It could not be done.
    #[error("{0}")]
    Failed(String),
}

/// `GET /v1/secrets/key`: what secrets for this gateway are sealed with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SecretsKey {
    /// Whose key it is; sealed values are bound to it.
    pub gateway: GatewayId,
    /// As `coracle-fleet secret seal --key` takes it.
    pub key: String,
}

/// The body of every answer that is not the one asked for: problem details (RFC 9457).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Problem {
    /// What kind of problem it is: a URI reference such as `/problems/not-found`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The same for people, in a few words.
    pub title: String,
    /// The status of the answer.
    pub status: u16,
    /// What is wrong and what to do, for people.
    pub detail: String,
    /// Of an order that is refused: its generation, where it could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// Of an order that is refused: every reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refusals: Vec<Refusal>,
}

/// What became of an order given to `POST /v1/orders`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Applied {
    /// The order's generation, where it could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// Whether it is in force now.
    pub accepted: bool,
    /// Whether it was in force already, so that nothing changed.
    pub unchanged: bool,
    /// Every reason why not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refusals: Vec<Refusal>,
}

/// A call of the API on the event loop. A caller that went away is not an error.
#[derive(Debug)]
pub enum Call {
    /// What is ordered, what runs, what does not and why.
    Status(oneshot::Sender<Status>),
    /// How the gateway is.
    Health(oneshot::Sender<Health>),
    /// What the link carries.
    Link(oneshot::Sender<LinkDay>),
    /// What happened after the event with this sequence.
    Events(u64, oneshot::Sender<Happenings>),
    /// A signed order to put into force.
    Apply(Vec<u8>, oneshot::Sender<Applied>),
    /// The signed order in force, as it was received; `None` if there is none.
    Order(oneshot::Sender<Option<Vec<u8>>>),
    /// The named volumes, or why they cannot be told.
    Volumes(oneshot::Sender<Result<Volumes, String>>),
    /// A named volume to remove with all that is in it.
    RemoveVolume(String, oneshot::Sender<Result<(), VolumeRefusal>>),
    /// Something to do to the workload of this name.
    Operate(String, Operation, oneshot::Sender<Result<Operated, OperationRefusal>>),
    /// The artifacts that are installed.
    Artifacts(oneshot::Sender<Artifacts>),
    /// The native services.
    Services(oneshot::Sender<Services>),
    /// The workload whose first replica stands at this coordinate, or why there is none.
    WorkloadAt(String, oneshot::Sender<Result<String, String>>),
    /// Something that takes long.
    Begin(LongWork, oneshot::Sender<Result<OperationStatus, LongWorkRefusal>>),
    /// What takes long, under way or ended lately.
    Operations(oneshot::Sender<Operations>),
    /// One of these, by its id.
    Operation(String, oneshot::Sender<Option<OperationStatus>>),
    /// The commands that are known.
    Commands(oneshot::Sender<CommandsStatus>),
    /// What secrets for this gateway are sealed with, or why that cannot be told.
    SecretsKey(oneshot::Sender<Result<SecretsKey, String>>),
    /// What tokens of workloads are verified with, a JWK Set, or why that cannot be told.
    IdentityKeys(oneshot::Sender<Result<serde_json::Value, String>>),
}
