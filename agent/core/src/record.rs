//! What the store keeps, beside orders: each record with its id.

use coracle_protocol::CommandId;

use crate::backlog::{BacklogRecord, EventRecord};
use crate::budget::UsageRecord;
use crate::command::{CommandRecord, CommandsRecord};
use crate::history::{ContainerRecord, WorkloadRecord};
use crate::name::{ContainerId, WorkloadName};

/// Of what the store keeps a record.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RecordId {
    /// Of a container.
    Container(ContainerId),
    /// Of a workload.
    Workload(WorkloadName),
    /// Of a command.
    Command(CommandId),
    /// Of all commands together.
    Commands,
    /// Of an event, by its sequence.
    Event(u64),
    /// Of all events together.
    Backlog,
    /// Of what the link has used.
    Usage,
}

/// A record that the store keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// Of a container.
    Container(ContainerRecord),
    /// Of a workload.
    Workload(WorkloadRecord),
    /// Of a command.
    Command(CommandRecord),
    /// Of all commands together.
    Commands(CommandsRecord),
    /// Of an event.
    Event(EventRecord),
    /// Of all events together.
    Backlog(BacklogRecord),
    /// Of what the link has used.
    Usage(UsageRecord),
}
