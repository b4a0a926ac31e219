//! Commands of the fleet: journalled, acknowledged, begun, ended. What becomes of them is decided in
//! `coracle_core::command`; each of its changes is stored here before it counts.
//!
//! In: signed commands, ends of what was begun. Out: records, deeds, results. Level-triggered like
//! everything here: each step looks at what waits, and at what was begun and is not being done, as
//! after a crash.
//!
//! | file | what it does |
//! |---|---|
//! | `begin` | begins each kind, and settles what an earlier agent had begun |
//! | `results` | tells the fleet what became of commands until it says that it holds that |
//! | `outputs` | sends what commands give, piece by piece |

mod begin;
mod outputs;
mod results;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use coracle_core::budget::TrafficKind;
use coracle_core::command::{
    self, Arrival, Arrived, Changes, CommandRecord, Commands, CommandsRecord, End, NotForUs,
};
use coracle_core::history::Now;
use coracle_core::name::WorkloadName;
use coracle_protocol::envelope::COMMAND_PAYLOAD_TYPE;
use coracle_protocol::presence::OfflineReason;
use coracle_protocol::topic::ReplyWord;
use coracle_protocol::{CommandId, CommandState, Refusal};
use tracing::info;

use super::{EventLoop, STORE_AGAIN};
use crate::config::RebootConfig;
use crate::execute::{Execute, chain};
use crate::fault::fault_point;
use crate::link::AckToken;
use crate::output::{Batch, Output};
use crate::status::{CommandStatus, CommandsStatus};

use outputs::Sending;
use results::Results;
pub(super) use results::ToldOf;

/// Most that could not be journalled and wait; the broker gives no more before one is acknowledged.
const MOST_UNJOURNALLED: usize = 8;

/// Most operations, and most outputs, that go on at once.
const AT_ONCE: usize = 4;

/// Shortest time between two events that say that something was refused which is no command of ours.
const REFUSALS_APART: Duration = Duration::from_secs(60);

/// What commands are done with.
#[derive(Clone, Debug, Default)]
pub struct Means {
    /// How the machine is booted anew.
    pub reboot: RebootConfig,
    /// The configuration, for people who look for what is wrong; without secrets.
    pub configuration: String,
}

/// Work for a command is done.
#[derive(Debug)]
pub enum Done {
    /// The next bytes of its output are there, or there are none.
    Produced(Result<Box<(Output, Batch)>, String>),
    /// The machine was asked to boot anew, or could not be.
    Rebooted(Result<(), String>),
}

/// Commands, and what is being done about them.
#[derive(Debug)]
pub(super) struct Doing {
    means: Means,
    commands: Commands,
    /// What this agent has begun. What is running by its record and is not here was begun by an
    /// earlier one.
    active: BTreeMap<CommandId, Active>,
    unjournalled: VecDeque<Unjournalled>,
    /// When to try again what could not be stored; nothing else is begun before.
    again_at: Option<Duration>,
    results: Results,
    /// Of which command a piece of output was sent last.
    last_output: Option<CommandId>,
    refusals: Refusals,
    /// When the next one expires, on the monotonic clock.
    expires_at: Option<Duration>,
}

/// What is being done.
#[derive(Debug)]
enum Active {
    /// An operation, by its number.
    Operation(u64),
    /// Replicas of a workload are made anew; how it ends once they are, and until when they must be.
    Restart(WorkloadName, End, Duration),
    /// Something is given.
    Output(Box<Sending>),
    /// The machine goes down; not after that moment.
    Reboot(Option<Duration>),
    /// It has ended, which is to be stored.
    Ended(End),
}

/// A command that could not be journalled and is not acknowledged.
#[derive(Debug)]
struct Unjournalled {
    arrived: Arrived,
    reply: Option<ReplyWord>,
    correlation: Vec<u8>,
    token: AckToken,
}

/// What was refused without an answer.
#[derive(Debug, Default)]
struct Refusals {
    untold: u64,
    told_at: Option<Duration>,
}

impl Doing {
    pub(super) fn new(means: Means) -> Self {
        Self {
            means,
            commands: Commands::default(),
            active: BTreeMap::new(),
            unjournalled: VecDeque::new(),
            again_at: None,
            results: Results::default(),
            last_output: None,
            refusals: Refusals::default(),
            expires_at: None,
        }
    }

    pub(super) fn restore(
        &mut self,
        records: BTreeMap<CommandId, CommandRecord>,
        all: CommandsRecord,
    ) {
        self.commands = Commands::restore(records, all);
    }

    /// Whether the machine is about to go down.
    pub(super) fn reboots(&self) -> bool {
        self.active.values().any(|active| matches!(active, Active::Reboot(_)))
    }

    /// The connection was lost.
    pub(super) fn disconnected(&mut self) {
        self.results.disconnected();
    }

    /// When there is something to do if nothing happens.
    pub(super) fn due(&self) -> Option<Duration> {
        if self.again_at.is_some() {
            return self.again_at;
        }
        if self.active.values().any(|active| matches!(active, Active::Ended(_))) {
            return Some(Duration::ZERO);
        }
        let deadlines = self.active.values().filter_map(|active| match active {
            Active::Reboot(until) => *until,
            Active::Restart(_, _, until) => Some(*until),
            _ => None,
        });
        deadlines.chain(self.expires_at).chain(self.results.due()).min()
    }

    fn operations(&self) -> usize {
        self.active.values().filter(|active| matches!(active, Active::Operation(_))).count()
    }

    fn outputs(&self) -> usize {
        self.active.values().filter(|active| matches!(active, Active::Output(_))).count()
    }

    /// An operation has ended: so has the command that had it begun.
    pub(super) fn on_long_work(&mut self, number: u64, result: &Result<String, String>) {
        for active in self.active.values_mut() {
            if matches!(active, Active::Operation(of) if *of == number) {
                *active = Active::Ended(match result {
                    Ok(message) => End::succeeded(message),
                    Err(message) => End::failed("failed", message),
                });
            }
        }
    }
}

impl<E: Execute> EventLoop<E> {
    /// Takes in what came on the topic of commands.
    pub(super) async fn on_command(
        &mut self,
        envelope: &[u8],
        reply: Option<ReplyWord>,
        correlation: Vec<u8>,
        token: AckToken,
    ) {
        match self.read_command(envelope) {
            Ok(arrived) => {
                fault_point("command.read");
                self.take_in(Unjournalled { arrived, reply, correlation, token }).await;
            }
            Err(reason) => {
                self.acknowledge(Some(token));
                self.refuse_command(&reason);
            }
        }
    }

    /// A command that is ours: signed by somebody who is trusted, and for this gateway.
    fn read_command(&self, envelope: &[u8]) -> Result<Arrived, String> {
        let verified = self
            .keys
            .verify_of(COMMAND_PAYLOAD_TYPE, envelope)
            .map_err(|refusal: Refusal| refusal.to_string())?;
        command::read(&verified.payload, self.gateway).map_err(|not: NotForUs| not.to_string())
    }

    /// Says so, but not as often as somebody can send nonsense.
    fn refuse_command(&mut self, reason: &str) {
        let now = self.clock.now();
        let refusals = &mut self.commands.refusals;
        refusals.untold += 1;
        if refusals.told_at.is_some_and(|at| now.monotonic < at + REFUSALS_APART) {
            return;
        }
        let count = std::mem::take(&mut refusals.untold);
        refusals.told_at = Some(now.monotonic);
        let message = match count {
            1 => format!("a command was refused: {reason}"),
            _ => format!("{count} commands were refused, the last one: {reason}"),
        };
        self.happened(now, "command-refused", None, message);
    }

    /// Journals a command, then acknowledges it.
    async fn take_in(&mut self, came: Unjournalled) {
        let now = self.clock.now().wall.as_secs();
        let id = came.arrived.id;
        let policy = self.preflight.policy();
        let arrival = self.commands.commands.arrive(
            came.arrived.clone(),
            came.reply.clone(),
            came.correlation.clone(),
            |kind| policy.allows_command(kind),
            now,
        );
        let (changes, refused) = match arrival {
            Arrival::Known => {
                let now = self.clock.now().monotonic;
                let within = self.may_send(TrafficKind::Reports, 1);
                self.commands.results.replayed(id, within, now);
                return self.acknowledge(Some(came.token));
            }
            Arrival::New(changes) => (changes, None),
            Arrival::Refused(end, changes) => (changes, Some(end)),
        };
        if !changes.is_empty() && self.store_commands(changes).await.is_err() {
            return self.journal_later(came);
        }
        fault_point("command.accepted");
        self.acknowledge(Some(came.token));
        fault_point("command.acknowledged");
        match refused {
            Some(end) => self.answer_without_record(id, end, came.reply, came.correlation),
            None => self.commands.results.tell(id),
        }
    }

    /// Keeps a command that could not be stored. It is not acknowledged: should the agent end, the
    /// broker gives it again. What came twice, and what it is too late for, holds up no others.
    fn journal_later(&mut self, came: Unjournalled) {
        let now = self.clock.now().wall.as_secs();
        let mut waiting = std::mem::take(&mut self.commands.unjournalled);
        if let Some(at) = waiting.iter().position(|it| it.arrived.id == came.arrived.id) {
            let earlier = waiting.remove(at);
            self.acknowledge(earlier.map(|earlier| earlier.token));
        }
        waiting.push_back(came);
        for waits in waiting {
            if waits.arrived.expires_at.unix() <= now {
                self.acknowledge(Some(waits.token));
                let (id, end) = (waits.arrived.id, command::expired(waits.arrived.expires_at));
                self.answer_without_record(id, end, waits.reply, waits.correlation);
            } else {
                self.commands.unjournalled.push_back(waits);
            }
        }
        while self.commands.unjournalled.len() > MOST_UNJOURNALLED {
            self.commands.unjournalled.pop_front();
        }
    }

    /// Stores changes, then takes them over. What cannot be stored is tried again later.
    async fn store_commands(&mut self, changes: Changes) -> Result<(), ()> {
        match self.store.record(changes.clone()).await {
            Ok(()) => {
                self.store_works();
                self.commands_stored(&changes);
                Ok(())
            }
            Err(error) => {
                self.store_fails(&chain(&error));
                self.commands_not_stored();
                Err(())
            }
        }
    }

    /// Takes over changes that were stored: what has changed is told.
    fn commands_stored(&mut self, changes: &Changes) {
        let doing = &mut self.commands;
        doing.commands.apply(changes);
        for (id, _) in changes {
            if let coracle_core::record::RecordId::Command(id) = id {
                doing.results.changed(*id, &doing.commands);
            }
        }
    }

    fn commands_not_stored(&mut self) {
        self.commands.again_at = Some(self.clock.now().monotonic + STORE_AGAIN);
    }

    /// Goes on with all commands, as far as that is possible now.
    pub(super) async fn step_commands(&mut self, now: Now) {
        if self.commands.again_at.is_some_and(|at| now.monotonic < at) {
            return;
        }
        self.commands.again_at = None;
        // An error has set when to try again.
        let stepped = self.try_step_commands(now).await;
        let doing = &mut self.commands;
        doing.expires_at = doing
            .commands
            .next_expiry()
            .filter(|_| stepped.is_ok())
            .map(|at| now.monotonic + Duration::from_secs(at).saturating_sub(now.wall));
        self.make_outputs();
        self.show_progress(now);
    }

    async fn try_step_commands(&mut self, now: Now) -> Result<(), ()> {
        while let Some(came) = self.commands.unjournalled.pop_front() {
            self.take_in(came).await;
            if self.commands.again_at.is_some() {
                return Err(());
            }
        }
        self.end_those_that_have_ended(now).await?;
        let wall = now.wall.as_secs();
        let mut ending = self.commands.commands.expired(wall);
        ending.extend(self.commands.commands.unreadable());
        for (id, end) in ending {
            self.end_command(id, end).await?;
        }
        self.settle_commands().await?;
        self.begin_commands(now).await?;
        self.end_those_that_have_ended(now).await
    }

    /// Ends those that this step has brought to their end.
    pub(super) async fn finish_commands(&mut self, now: Now) {
        if self.commands.again_at.is_none() {
            // An error has set when to try again.
            self.end_those_that_have_ended(now).await.ok();
        }
    }

    async fn end_those_that_have_ended(&mut self, now: Now) -> Result<(), ()> {
        let mut stays = false;
        for active in self.commands.active.values_mut() {
            match active {
                Active::Output(sending) => {
                    if let Some(end) = sending.ended() {
                        *active = Active::Ended(end);
                    }
                }
                Active::Restart(name, end, _) if !self.history.has_stale(name) => {
                    fault_point("command.done");
                    *active = Active::Ended(end.clone());
                }
                Active::Restart(name, _, until) if *until <= now.monotonic => {
                    let message = format!("not all replicas of {name} have been made anew yet");
                    *active = Active::Ended(End::failed("not-restarted", message));
                }
                Active::Reboot(Some(until)) if *until <= now.monotonic => {
                    let message = "the gateway was asked to boot anew, and did not";
                    *active = Active::Ended(End::failed("not-rebooted", message));
                    stays = true;
                }
                _ => {}
            }
        }
        if stays {
            self.leave_for(OfflineReason::Shutdown);
        }
        let ended = self.commands.active.iter().filter_map(|(id, active)| match active {
            Active::Ended(end) => Some((*id, end.clone())),
            _ => None,
        });
        for (id, end) in ended.collect::<Vec<_>>() {
            self.end_command(id, end).await?;
            self.commands.active.remove(&id);
        }
        Ok(())
    }

    /// Ends a command, for good.
    async fn end_command(&mut self, id: CommandId, end: End) -> Result<(), ()> {
        let now = self.clock.now().wall.as_secs();
        let Some(change) = self.commands.commands.end(id, end, now) else { return Ok(()) };
        fault_point("command.ending");
        self.store_commands(vec![change]).await?;
        fault_point("command.ended");
        self.say_how_it_ended(id);
        Ok(())
    }

    fn say_how_it_ended(&mut self, id: CommandId) {
        let Some(record) = self.commands.commands.record(id) else { return };
        let (state, reason, message) = (record.state, &record.reason, &record.message);
        info!(command = %id, ?state, reason, message, "a command has ended");
    }

    /// The fleet holds the final results of these.
    pub(super) async fn on_received_results(&mut self, ids: &[CommandId]) {
        for id in ids {
            self.commands.results.forget_answer(*id);
        }
        let changes = self.commands.commands.received(ids);
        if changes.is_empty() {
            return;
        }
        fault_point("command.receipt");
        // What cannot be stored is sent again, and so is its receipt.
        if self.store_commands(changes).await.is_ok() {
            fault_point("command.received");
        }
    }

    /// All commands that are known, for this gateway's own people.
    pub(super) fn all_commands(&self) -> CommandsStatus {
        let all = self.commands.commands.all().map(|(id, kind, record)| CommandStatus {
            id: id.to_string(),
            kind: kind.kind,
            target: kind.target,
            state: record.state,
            reason: Some(record.reason.clone()).filter(|reason| !reason.is_empty()),
            message: Some(record.message.clone()).filter(|message| !message.is_empty()),
            made_at: id.made_at(),
            at: coracle_protocol::Timestamp::from_unix(record.at),
            received: record.received,
        });
        CommandsStatus { commands: all.collect() }
    }

    pub(super) fn on_command_done(&mut self, id: CommandId, done: Done) {
        let now = self.clock.now();
        let Some(active) = self.commands.active.get_mut(&id) else { return };
        match (active, done) {
            (Active::Output(sending), Done::Produced(produced)) => sending.produced(produced),
            (active @ Active::Reboot(_), Done::Rebooted(result)) => match result {
                Ok(()) => {
                    *active = Active::Reboot(Some(now.monotonic + begin::REBOOT_PATIENCE));
                }
                Err(message) => {
                    *active = Active::Ended(End::failed("reboot-failed", message));
                    self.leave_for(OfflineReason::Shutdown);
                }
            },
            // Of a command that has been cancelled meanwhile.
            _ => {}
        }
    }

    fn command_state(&self, id: CommandId) -> Option<CommandState> {
        self.commands.commands.record(id).map(|record| record.state)
    }
}
