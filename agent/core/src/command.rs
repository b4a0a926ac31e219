//! Commands: what the fleet asked of the gateway, each done at most once and ended in one state.

use coracle_protocol::topic::ReplyWord;
use coracle_protocol::{CommandId, CommandState};
use serde::{Deserialize, Serialize};

/// What is kept of a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandRecord {
    /// What became of it so far.
    pub state: CommandState,
    /// When, in seconds since the Unix epoch by the wall clock.
    pub at: u64,
    /// The command itself, as JSON, until it has ended.
    pub command: Vec<u8>,
    /// Where it asked for its results.
    pub reply: Option<ReplyWord>,
    /// What it asked to have back with them.
    pub correlation: Vec<u8>,
    /// The boot of the machine in which it was begun.
    pub boot_id: String,
    /// One word for programs, where it was not done.
    pub reason: String,
    /// For people.
    pub message: String,
    /// What it gave, as JSON.
    pub result: Vec<u8>,
    /// The fleet holds its final result.
    pub received: bool,
}

/// What is kept of all commands together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandsRecord {
    /// The highest id that was forgotten: none up to it is done any more.
    pub forgotten: Option<CommandId>,
}
