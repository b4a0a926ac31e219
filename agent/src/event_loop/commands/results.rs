//! Tells the fleet what became of commands, until it says that it holds the final result: after every
//! reconnect, and while connected with pauses that double. The newest state of a command alone is
//! told.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use coracle_core::budget::TrafficKind;
use coracle_core::command::{Commands, End};
use coracle_core::history::Now;
use coracle_protocol::command::CommandProgress;
use coracle_protocol::desired::SCHEMA;
use coracle_protocol::topic::{Kind, ReplyWord};
use coracle_protocol::{CommandId, CommandResult, CommandState, Timestamp};
use tracing::warn;

use super::Active;
use crate::event_loop::parcels::{Freight, parcel};
use crate::event_loop::{EventLoop, operations};
use crate::execute::Execute;
use crate::fault::fault_point;
use crate::link::{Delivery, Parcel};

/// First pause before a final result without a receipt is sent again.
const PAUSE: Duration = Duration::from_secs(60);

/// Longest such pause.
const MAX_PAUSE: Duration = Duration::from_secs(24 * 3600);

/// Until it is looked again whether the budget allows to send something again.
const OVER_BUDGET: Duration = Duration::from_secs(3600);

/// Between two words about how far a command is.
const PROGRESS: Duration = Duration::from_secs(5);

/// Shortest time between two answers to the same command that comes again.
const REPLAYS_APART: Duration = Duration::from_secs(60);

/// Answers without a record that wait; the oldest goes.
const MOST_ANSWERS: usize = 16;

/// What was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::event_loop) enum ToldOf {
    /// The state of a command that there is a record of.
    State(CommandId, CommandState),
    /// How far one is.
    Progress,
    /// That a command was not taken in.
    Answer(CommandId),
}

/// What is to be told.
#[derive(Debug, Default)]
pub(super) struct Results {
    due: BTreeSet<CommandId>,
    /// Final results that were told: when again, and the pause after that.
    again: BTreeMap<CommandId, (Duration, Duration)>,
    /// Those whose state, as it is, was told by this agent.
    told: BTreeSet<CommandId>,
    /// When those were answered that came again, within the last minute.
    replayed: BTreeMap<CommandId, Duration>,
    answers: VecDeque<Answer>,
    progress: BTreeMap<CommandId, CommandProgress>,
    /// How far those under way were when that was noted last.
    far: BTreeMap<CommandId, CommandProgress>,
    progress_at: Option<Duration>,
}

/// An answer that nothing is kept of.
#[derive(Debug)]
struct Answer {
    result: CommandResult,
    reply: Option<ReplyWord>,
    correlation: Vec<u8>,
}

impl Results {
    /// Tells the state of a command.
    pub(super) fn tell(&mut self, id: CommandId) {
        self.due.insert(id);
    }

    /// A command that is known has come again: its state is told again, but one that was told already
    /// not as often as somebody can send it, and not when the budget is used up.
    pub(super) fn replayed(&mut self, id: CommandId, within: bool, now: Duration) {
        self.replayed.retain(|_, at| now < *at + REPLAYS_APART);
        if self.told.contains(&id) {
            if !within || self.replayed.contains_key(&id) {
                return;
            }
            self.replayed.insert(id, now);
        }
        self.due.insert(id);
    }

    /// The record of a command has changed.
    pub(super) fn changed(&mut self, id: CommandId, commands: &Commands) {
        self.again.remove(&id);
        match commands.record(id) {
            Some(record) if !record.received => {
                self.told.remove(&id);
                self.due.insert(id);
            }
            Some(_) => {
                self.told.insert(id);
                self.due.remove(&id);
            }
            None => {
                self.told.remove(&id);
                self.due.remove(&id);
            }
        }
    }

    pub(super) fn forget_answer(&mut self, id: CommandId) {
        self.answers.retain(|answer| answer.result.command != id);
    }

    /// Nothing is to be done at a time any more: at the next connection all is told anew.
    pub(super) fn disconnected(&mut self) {
        self.again.clear();
        self.progress_at = None;
    }

    pub(super) fn due(&self) -> Option<Duration> {
        self.again.values().map(|(at, _)| *at).chain(self.progress_at).min()
    }
}

impl<E: Execute> EventLoop<E> {
    /// A connection was made: all that the fleet may not know is told. Without a budget for reports
    /// only what was not told yet.
    pub(in crate::event_loop) fn tell_results_again(&mut self) {
        let now = self.clock.now().monotonic;
        let within = self.may_send(TrafficKind::Reports, 1);
        let Results { due, again, told, .. } = &mut self.commands.results;
        again.clear();
        due.clear();
        for id in self.commands.commands.untold() {
            if within || !told.contains(&id) {
                due.insert(id);
            } else {
                again.insert(id, (now + OVER_BUDGET, PAUSE));
            }
        }
    }

    /// Answers a command that there is no record of, until the answer has arrived.
    pub(super) fn answer_without_record(
        &mut self,
        id: CommandId,
        end: End,
        reply: Option<ReplyWord>,
        correlation: Vec<u8>,
    ) {
        let result = CommandResult {
            schema: SCHEMA,
            gateway: self.gateway,
            command: id,
            state: end.state,
            at: Timestamp::from_unix(self.clock.now().wall.as_secs()),
            reason: Some(end.reason.to_owned()),
            message: Some(end.message),
            progress: None,
            result: None,
            output: None,
        };
        let answers = &mut self.commands.results.answers;
        answers.retain(|answer| answer.result.command != id);
        if answers.len() == MOST_ANSWERS {
            answers.pop_front();
        }
        answers.push_back(Answer { result, reply, correlation });
    }

    /// Notes how far those are that are watched, every few seconds while there is a connection.
    pub(super) fn show_progress(&mut self, now: Now) {
        let again = &self.commands.results.again;
        let late: Vec<_> =
            again.iter().filter(|(_, (at, _))| *at <= now.monotonic).map(|(id, _)| *id).collect();
        let within = late.is_empty() || self.may_send(TrafficKind::Reports, 1);
        let doing = &mut self.commands;
        for id in late {
            let Some((at, pause)) = doing.results.again.get_mut(&id) else { continue };
            if within {
                // Its pause is doubled when it has gone.
                doing.results.due.insert(id);
                *at = now.monotonic + *pause;
            } else {
                *at = now.monotonic + OVER_BUDGET;
            }
        }
        let operations = doing.active.iter().filter_map(|(id, active)| match active {
            Active::Operation(number) => Some((*id, *number)),
            _ => None,
        });
        let operations: BTreeMap<_, _> = operations.collect();
        doing.results.far.retain(|id, _| operations.contains_key(id));
        if operations.is_empty() || !self.parcels.connected {
            doing.results.progress_at = None;
            doing.results.progress.clear();
            return;
        }
        let due = doing.results.progress_at.get_or_insert(now.monotonic + PROGRESS);
        if *due > now.monotonic {
            return;
        }
        *due = now.monotonic + PROGRESS;
        if !self.may_send(TrafficKind::Reports, 1) {
            return;
        }
        let results = &mut self.commands.results;
        for (id, number) in operations {
            let Some(progress) = self.operations.progress(number) else { continue };
            let progress = CommandProgress {
                phase: operations::phase(progress.phase).to_owned(),
                bytes_done: progress.bytes_done,
                bytes_total: progress.bytes_total,
            };
            if results.far.insert(id, progress.clone()).as_ref() != Some(&progress) {
                results.progress.insert(id, progress);
            }
        }
    }

    pub(in crate::event_loop) fn next_result(&mut self) -> Option<(Freight, Parcel)> {
        let results = &mut self.commands.results;
        // It is forgotten when it has gone.
        if let Some(Answer { result, reply, correlation }) = results.answers.front() {
            let told = ToldOf::Answer(result.command);
            let parcel = told_parcel(result, reply.clone(), correlation.clone(), true);
            return Some((Freight::Result(told), parcel));
        }
        while let Some(id) = results.due.pop_first() {
            let commands = &self.commands.commands;
            let Some(result) = commands.result(id, self.gateway) else { continue };
            let (reply, correlation) = self.asked_for(id);
            fault_point("command.telling");
            let parcel = told_parcel(&result, reply, correlation, true);
            return Some((Freight::Result(ToldOf::State(id, result.state)), parcel));
        }
        while let Some((id, progress)) = self.commands.results.progress.pop_first() {
            let Some(mut result) = self.commands.commands.result(id, self.gateway) else {
                continue;
            };
            if result.state != CommandState::Running {
                continue;
            }
            result.progress = Some(progress);
            let (reply, correlation) = self.asked_for(id);
            let parcel = told_parcel(&result, reply, correlation, false);
            return Some((Freight::Result(ToldOf::Progress), parcel));
        }
        None
    }

    fn asked_for(&self, id: CommandId) -> (Option<ReplyWord>, Vec<u8>) {
        let record = self.commands.commands.record(id);
        record.map(|it| (it.reply.clone(), it.correlation.clone())).unwrap_or_default()
    }

    pub(in crate::event_loop) fn on_result(&mut self, told: ToldOf, delivery: &Delivery) {
        let (id, state) = match told {
            ToldOf::State(id, state) => (id, state),
            ToldOf::Answer(id) if *delivery != Delivery::Lost => {
                return self.commands.results.forget_answer(id);
            }
            ToldOf::Answer(_) | ToldOf::Progress => return,
        };
        fault_point("command.told");
        let now = self.clock.now().monotonic;
        let record = self.commands.commands.record(id);
        // What has changed meanwhile is due by itself.
        if record.is_none_or(|record| record.received || record.state != state) {
            return;
        }
        let results = &mut self.commands.results;
        match delivery {
            Delivery::Lost => drop(results.due.insert(id)),
            Delivery::Done | Delivery::Refused(_) => {
                results.told.insert(id);
                if let Delivery::Refused(reason) = delivery {
                    warn!(command = %id, reason, "a result could not be published");
                }
                if state.is_final() && self.parcels.connected {
                    let pause = results.again.get(&id).map_or(PAUSE, |(_, pause)| *pause);
                    results.again.insert(id, (now + pause, (pause * 2).min(MAX_PAUSE)));
                }
            }
        }
    }
}

fn told_parcel(
    result: &CommandResult,
    reply: Option<ReplyWord>,
    correlation: Vec<u8>,
    acknowledged: bool,
) -> Parcel {
    let payload = serde_json::to_vec(result).expect("results are plain structs");
    Parcel { reply, correlation, acknowledged, ..parcel(Kind::Results, payload) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_connection_nothing_is_due() {
        let id = CommandId::new(Timestamp::from_unix(9));
        let mut results = Results { progress_at: Some(PROGRESS), ..Results::default() };
        results.again.insert(id, (PAUSE, PAUSE));
        assert_eq!(results.due(), Some(PROGRESS));
        results.disconnected();
        assert_eq!(results.due(), None);
    }
}
