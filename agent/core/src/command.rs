//! Commands: what the fleet asked of the gateway, each done at most once and ended in one state.
//!
//! In: what came, what was begun, what came of it. Out: [`Changes`] of the records, which count once
//! they are stored: whoever holds [`Commands`] stores them first and [applies](Commands::apply) them
//! then. So what is in memory is never ahead of the disk, and a crash at any moment leaves a command
//! in a state from which it goes on: not begun, or begun and settled by a look at what is there.
//! Deliberately not here: signatures, and doing anything.
//!
//! ```text
//! arrives -> accepted -> running -> succeeded | failed
//!     |         \-> succeeded (effect and end in one transaction) | expired | superseded | rejected
//!     \-> rejected | expired | superseded
//! ```

use std::collections::{BTreeMap, BTreeSet};

use coracle_protocol::command::{Action, CommandResult, OutputSummary};
use coracle_protocol::desired::SCHEMA;
use coracle_protocol::limits::{MAX_COMMAND_WAIT_SECONDS, MAX_LEASE_SECONDS};
use coracle_protocol::topic::ReplyWord;
use coracle_protocol::{Command, CommandId, CommandState, GatewayId, Timestamp};
use serde::{Deserialize, Serialize};

use crate::record::{Record, RecordId};

mod read;

pub use read::{Arrived, NotForUs, read};

/// Most commands of which there is a record.
pub const MOST: usize = 256;

/// In seconds.
const DAY: u64 = 24 * 60 * 60;

/// Longest message for people, in characters.
const MAX_MESSAGE: usize = 300;

/// What is kept of a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandRecord {
    /// What became of it so far.
    pub state: CommandState,
    /// When, in seconds since the Unix epoch by the wall clock.
    pub at: u64,
    /// The command itself, as JSON; once it has ended, its kind and target alone ([`Kind`]).
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
    /// What it gave, as JSON ([`Gave`]).
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

/// What is still known of a command that has ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kind {
    /// As in [`Action::KINDS`], or what was asked for in its place.
    pub kind: String,
    /// What it was about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// When it was too late for it, in seconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<u64>,
}

/// What a command gave.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gave {
    /// Where that is small.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<serde_json::Value>,
    /// On the topic `output`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<OutputSummary>,
}

/// How a command ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// A final state.
    pub state: CommandState,
    /// One word for programs; empty where it was done.
    pub reason: &'static str,
    /// For people.
    pub message: String,
    /// What it gave.
    pub gave: Gave,
}

impl End {
    /// It was done.
    pub fn succeeded(message: impl Into<String>) -> Self {
        Self::of(CommandState::Succeeded, "", message)
    }

    /// It was begun and not done.
    pub fn failed(reason: &'static str, message: impl Into<String>) -> Self {
        Self::of(CommandState::Failed, reason, message)
    }

    /// It is not done.
    pub fn rejected(reason: &'static str, message: impl Into<String>) -> Self {
        Self::of(CommandState::Rejected, reason, message)
    }

    /// The agent ended while it was being done, and nobody knows how far it came.
    pub fn interrupted() -> Self {
        Self::failed("interrupted", "the agent ended while it was being done")
    }

    fn of(state: CommandState, reason: &'static str, message: impl Into<String>) -> Self {
        let message = message.into().chars().take(MAX_MESSAGE).collect();
        Self { state, reason, message, gave: Gave::default() }
    }
}

/// Changes of records, to be stored as one.
pub type Changes = Vec<(RecordId, Option<Record>)>;

/// What is to be done with a command that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// It is new: these changes are to be stored before it is acknowledged.
    New(Changes),
    /// It is known: its state is sent again.
    Known,
    /// It cannot be taken in, and is answered without a record of it: why. If there are changes they
    /// are to be stored before.
    Refused(End, Changes),
}

/// Of two that wait for their beginning, only the newer one about the same is done.
#[derive(Clone, Debug, PartialEq, Eq)]
enum About<'a> {
    Workload(&'a str),
    Artifact(&'a str),
    Report,
    Diagnostics,
    Reboot,
}

fn about(action: &Action) -> Option<About<'_>> {
    match action {
        Action::InstallArtifact { artifact, .. } | Action::RemoveArtifact { artifact } => {
            Some(About::Artifact(artifact))
        }
        Action::StartWorkload { workload }
        | Action::DrainWorkload { workload }
        | Action::StopWorkload { workload }
        | Action::RestartWorkload { workload } => Some(About::Workload(workload)),
        Action::Report {} => Some(About::Report),
        Action::CollectDiagnostics {} => Some(About::Diagnostics),
        Action::Reboot {} => Some(About::Reboot),
        Action::ListArtifacts {}
        | Action::ReadLogs(_)
        | Action::FollowLogs { .. }
        | Action::ExtendLease { .. }
        | Action::Cancel { .. } => None,
    }
}

/// The same of one that has ended, if it was about a workload or an artifact.
fn about_kind(kind: &Kind) -> Option<About<'_>> {
    let target = kind.target.as_deref()?;
    match kind.kind.as_str() {
        "start-workload" | "drain-workload" | "stop-workload" | "restart-workload" => {
            Some(About::Workload(target))
        }
        "install-artifact" | "remove-artifact" => Some(About::Artifact(target)),
        _ => None,
    }
}

/// A command with its record. While it is open there is the command itself.
#[derive(Clone, Debug)]
struct Known {
    record: CommandRecord,
    open: Option<Command>,
}

impl Known {
    fn of(record: CommandRecord) -> Self {
        let open = match record.state.is_final() {
            true => None,
            false => serde_json::from_slice(&record.command).ok(),
        };
        Self { record, open }
    }
}

/// All commands that are known.
#[derive(Clone, Debug, Default)]
pub struct Commands {
    known: BTreeMap<CommandId, Known>,
    forgotten: Option<CommandId>,
}

impl Commands {
    /// As the store kept them.
    pub fn restore(records: BTreeMap<CommandId, CommandRecord>, all: CommandsRecord) -> Self {
        let known = records.into_iter().map(|(id, record)| (id, Known::of(record))).collect();
        Self { known, forgotten: all.forgotten }
    }

    /// Takes over changes that were stored.
    pub fn apply(&mut self, changes: &Changes) {
        for (id, record) in changes {
            match (id, record) {
                (RecordId::Command(id), Some(Record::Command(record))) => {
                    self.known.insert(*id, Known::of(record.clone()));
                }
                (RecordId::Command(id), None) => drop(self.known.remove(id)),
                (RecordId::Commands, Some(Record::Commands(all))) => {
                    self.forgotten = all.forgotten;
                }
                // Changes of other records are stored with those of commands.
                _ => {}
            }
        }
    }

    /// What is to be done with a command whose signature is good and which is for this gateway.
    /// `allowed` says whether a kind is.
    pub fn arrive(
        &self,
        arrived: Arrived,
        reply: Option<ReplyWord>,
        correlation: Vec<u8>,
        allowed: impl Fn(&str) -> bool,
        now: u64,
    ) -> Arrival {
        let id = arrived.id;
        if self.known.contains_key(&id) {
            return Arrival::Known;
        }
        if self.forgotten.is_some_and(|forgotten| id <= forgotten) {
            let message = "it is not newer than commands that this gateway has forgotten";
            return Arrival::Refused(End::rejected("forgotten", message), Vec::new());
        }
        let Some(mut changes) = self.room(now) else {
            let message = format!("{MOST} commands are open, or the fleet has no result of them");
            let all = CommandsRecord { forgotten: Some(id) };
            let changes = match self.may_be_bar(id, now) {
                true => vec![(RecordId::Commands, Some(Record::Commands(all)))],
                false => Vec::new(),
            };
            return Arrival::Refused(End::rejected("too-many", message), changes);
        };
        let mut record = CommandRecord {
            state: CommandState::Accepted,
            at: now,
            command: Vec::new(),
            reply,
            correlation,
            boot_id: String::new(),
            reason: String::new(),
            message: String::new(),
            result: Vec::new(),
            received: false,
        };
        let kind = Kind { expires_at: Some(arrived.expires_at.unix()), ..arrived.kind() };
        let end = match &arrived.action {
            Err(end) => Some(end.clone()),
            Ok(action) => self.objection(&arrived, action, allowed, now),
        };
        match (end, arrived.action) {
            (None, Ok(action)) => {
                let older = self.older_about(id, &action);
                changes.extend(older.filter_map(|older| {
                    let message = format!("command {id} took its place");
                    self.end(older, End::of(CommandState::Superseded, "", message), now)
                }));
                let command = Command {
                    schema: SCHEMA,
                    id,
                    gateway: arrived.gateway,
                    expires_at: arrived.expires_at,
                    action,
                };
                record.command = json(&command);
            }
            (Some(end), _) | (None, Err(end)) => finish(&mut record, end, &kind, now),
        }
        changes.push((RecordId::Command(id), Some(Record::Command(record))));
        Arrival::New(changes)
    }

    /// Why a command is ended as soon as it comes.
    fn objection(
        &self,
        arrived: &Arrived,
        action: &Action,
        allowed: impl Fn(&str) -> bool,
        now: u64,
    ) -> Option<End> {
        let (made, expires) = (arrived.id.made_at().unix(), arrived.expires_at.unix());
        let kind = action.kind();
        if expires > made.saturating_add(MAX_COMMAND_WAIT_SECONDS) {
            // By the time in its id: the gateway's clock may be wrong, and is asked by no rule that
            // ends a command for good but the one that it set itself.
            let message = "it expires more than 30 days after it was made";
            return Some(End::rejected("expires-too-late", message));
        }
        if !allowed(kind) {
            let message = format!("the gateway's policy does not allow {kind}");
            return Some(End::rejected("not-allowed", message));
        }
        if let Action::FollowLogs { lease_seconds, .. } | Action::ExtendLease { lease_seconds, .. } =
            action
            && !(1..=MAX_LEASE_SECONDS).contains(lease_seconds)
        {
            let message = format!("lease_seconds must be from 1 to {MAX_LEASE_SECONDS}");
            return Some(End::rejected("malformed", message));
        }
        if expires <= now {
            return Some(expired(arrived.expires_at));
        }
        let newer = self.waiting().find(|(other, waiting)| {
            about(&waiting.action).is_some_and(|it| Some(it) == about(action))
                && other.made_at() > arrived.id.made_at()
        });
        let newer = newer.map(|(other, _)| other).or_else(|| self.done_since(arrived.id, action));
        newer.map(|other| {
            let message = format!("command {other} is newer");
            End::of(CommandState::Superseded, "", message)
        })
    }

    /// A newer one about the same that was done: what one brings about that was held back on its way
    /// would undo it.
    fn done_since(&self, id: CommandId, action: &Action) -> Option<CommandId> {
        if !matches!(
            action,
            Action::StartWorkload { .. }
                | Action::StopWorkload { .. }
                | Action::DrainWorkload { .. }
                | Action::InstallArtifact { .. }
                | Action::RemoveArtifact { .. }
        ) {
            return None;
        }
        let mut newer = self.known.range(id..).filter(|(other, known)| {
            known.record.state == CommandState::Succeeded && other.made_at() > id.made_at()
        });
        let same = |known: &Known| {
            let kind: Kind = serde_json::from_slice(&known.record.command).unwrap_or_default();
            about_kind(&kind).is_some_and(|it| Some(it) == about(action))
        };
        newer.find(|(_, known)| same(known)).map(|(other, _)| *other)
    }

    /// Those about the same that wait and are not newer.
    fn older_about<'a>(
        &'a self,
        id: CommandId,
        action: &'a Action,
    ) -> impl Iterator<Item = CommandId> + 'a {
        self.waiting().filter_map(move |(other, waiting)| {
            let same = about(&waiting.action).is_some_and(|it| Some(it) == about(action));
            (same && other.made_at() <= id.made_at()).then_some(other)
        })
    }

    /// What makes room for another record; `None` if there is none to be made. What the fleet holds
    /// the result of goes first. Else what has expired wherever its command still lies, or ended a day
    /// ago: a fleet that sends no receipts must not make the gateway deaf. Of several the oldest goes,
    /// so that the bar for others stays low.
    fn room(&self, now: u64) -> Option<Changes> {
        if self.known.len() < MOST {
            return Some(Vec::new());
        }
        let ended = |(id, known): &(&CommandId, &Known)| {
            known.record.state.is_final() && self.may_be_bar(**id, now)
        };
        let is_late = |record: &CommandRecord| {
            let kind: Kind = serde_json::from_slice(&record.command).unwrap_or_default();
            record.at.saturating_add(DAY) <= now || kind.expires_at.is_some_and(|at| at <= now)
        };
        let mut all = self.known.iter().filter(ended);
        let received = all.clone().find(|(_, known)| known.record.received);
        let (id, _) = received.or_else(|| all.find(|(_, known)| is_late(&known.record)))?;
        let forgotten = self.forgotten.max(Some(*id));
        let all = Record::Commands(CommandsRecord { forgotten });
        Some(vec![(RecordId::Command(*id), None), (RecordId::Commands, Some(all))])
    }

    /// Whether others up to this id may be refused: one that was made in the future, by a clock that
    /// was wrong, would keep out all that come after it.
    fn may_be_bar(&self, id: CommandId, now: u64) -> bool {
        let highest = self.known.keys().rev().find(|other| **other != id);
        id.made_at().unix() <= now.saturating_add(DAY) || highest.is_some_and(|it| id < *it)
    }

    /// A command that waits is begun: to be stored before anything is done. `None` if it does not
    /// wait.
    #[must_use]
    pub fn begin(
        &self,
        id: CommandId,
        boot_id: &str,
        now: u64,
    ) -> Option<(RecordId, Option<Record>)> {
        let known = self.known.get(&id)?;
        if known.record.state != CommandState::Accepted {
            return None;
        }
        let mut record = known.record.clone();
        record.state = CommandState::Running;
        record.at = now;
        record.boot_id = boot_id.to_owned();
        Some((RecordId::Command(id), Some(Record::Command(record))))
    }

    /// A command ends: to be stored before anybody is told. `None` if it has ended, or is not known.
    #[must_use]
    pub fn end(&self, id: CommandId, end: End, now: u64) -> Option<(RecordId, Option<Record>)> {
        let known = self.known.get(&id)?;
        if known.record.state.is_final() {
            return None;
        }
        let kind = known.open.as_ref().map(|command| Kind {
            expires_at: Some(command.expires_at.unix()),
            ..kind_of(&command.action)
        });
        let kind = kind.unwrap_or_default();
        let mut record = known.record.clone();
        finish(&mut record, end, &kind, now);
        Some((RecordId::Command(id), Some(Record::Command(record))))
    }

    /// The fleet holds the final results of these.
    #[must_use]
    pub fn received(&self, ids: &[CommandId]) -> Changes {
        let ids: BTreeSet<_> = ids.iter().collect();
        let known = ids.into_iter().filter_map(|id| Some((*id, &self.known.get(id)?.record)));
        let news = known.filter(|(_, record)| record.state.is_final() && !record.received);
        news.map(|(id, record)| {
            let mut record = record.clone();
            record.received = true;
            // Nobody asks for it any more.
            record.result = Vec::new();
            record.correlation = Vec::new();
            (RecordId::Command(id), Some(Record::Command(record)))
        })
        .collect()
    }

    /// Those that wait for their beginning, by id.
    pub fn waiting(&self) -> impl Iterator<Item = (CommandId, &Command)> {
        self.open_in(CommandState::Accepted)
    }

    /// Those that were begun and have not ended, by id, each with the boot that it was begun in.
    pub fn running(&self) -> impl Iterator<Item = (CommandId, &Command, &str)> {
        self.open_in(CommandState::Running)
            .map(|(id, command)| (id, command, self.known[&id].record.boot_id.as_str()))
    }

    fn open_in(&self, state: CommandState) -> impl Iterator<Item = (CommandId, &Command)> {
        self.known
            .iter()
            .filter(move |(_, known)| known.record.state == state)
            .filter_map(|(id, known)| Some((*id, known.open.as_ref()?)))
    }

    /// How those that were not begun in time end.
    pub fn expired(&self, now: u64) -> Vec<(CommandId, End)> {
        let late = self.waiting().filter(|(_, command)| command.expires_at.unix() <= now);
        late.map(|(id, command)| (id, expired(command.expires_at))).collect()
    }

    /// Open commands that cannot be read any more: how they end. A later version may have written
    /// them.
    pub fn unreadable(&self) -> Vec<(CommandId, End)> {
        let lost = |known: &Known| known.open.is_none() && !known.record.state.is_final();
        let lost = self.known.iter().filter(|(_, known)| lost(known));
        lost.map(|(id, known)| match known.record.state {
            CommandState::Accepted => {
                (*id, End::rejected("malformed", "this version cannot read what was accepted"))
            }
            _ => (*id, End::interrupted()),
        })
        .collect()
    }

    /// When the next one expires, in seconds since the Unix epoch.
    pub fn next_expiry(&self) -> Option<u64> {
        self.waiting().map(|(_, command)| command.expires_at.unix()).min()
    }

    /// What is kept of a command.
    pub fn record(&self, id: CommandId) -> Option<&CommandRecord> {
        self.known.get(&id).map(|known| &known.record)
    }

    /// All of them, the newest first, each with what it was.
    pub fn all(&self) -> impl Iterator<Item = (CommandId, Kind, &CommandRecord)> {
        self.known.iter().rev().map(|(id, known)| {
            let kind = match &known.open {
                Some(command) => kind_of(&command.action),
                None => serde_json::from_slice(&known.record.command).unwrap_or_default(),
            };
            (*id, kind, &known.record)
        })
    }

    /// Those whose state the fleet may not know: all but those that it holds the final result of.
    pub fn untold(&self) -> impl Iterator<Item = CommandId> {
        self.known.iter().filter(|(_, known)| !known.record.received).map(|(id, _)| *id)
    }

    /// What the fleet is told of a command.
    pub fn result(&self, id: CommandId, gateway: GatewayId) -> Option<CommandResult> {
        let record = &self.known.get(&id)?.record;
        let gave: Gave = serde_json::from_slice(&record.result).unwrap_or_default();
        let text = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
        Some(CommandResult {
            schema: SCHEMA,
            gateway,
            command: id,
            state: record.state,
            at: Timestamp::from_unix(record.at),
            reason: text(&record.reason),
            message: text(&record.message),
            progress: None,
            result: gave.result,
            output: gave.output,
        })
    }
}

/// How one ends that was not begun in time.
pub fn expired(at: Timestamp) -> End {
    End::of(CommandState::Expired, "", format!("it was not to be begun after {at}"))
}

/// A command's kind and what it is about.
fn kind_of(action: &Action) -> Kind {
    Kind { kind: action.kind().to_owned(), target: action.target(), expires_at: None }
}

fn finish(record: &mut CommandRecord, end: End, kind: &Kind, now: u64) {
    record.state = end.state;
    record.at = now;
    record.command = json(kind);
    record.reason = end.reason.to_owned();
    record.message = end.message;
    record.result = match end.gave == Gave::default() {
        true => Vec::new(),
        false => json(&end.gave),
    };
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("commands are plain structs")
}

#[cfg(test)]
mod tests;
