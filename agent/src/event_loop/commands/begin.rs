//! Begins what waits, each kind in its way, and settles what an earlier agent had begun.
//!
//! What changes a record has its effect and its end in one transaction, so that it is never found half
//! done. What is done to the world is noted as begun before. What only this agent can do, and that
//! ends with it, is noted as done before it is: should the agent die in between, its restart does as
//! much.

use std::time::Duration;

use coracle_core::artifact::{ArtifactId, ArtifactRef};
use coracle_core::command::{End, Gave};
use coracle_core::history::Now;
use coracle_core::image::Digest;
use coracle_protocol::command::Action;
use coracle_protocol::limits::MAX_RESULT_BYTES;
use coracle_protocol::presence::OfflineReason;
use coracle_protocol::{Command, CommandId, CommandState};
use serde_json::Value;
use tokio::sync::watch;

use super::outputs::Sending;
use super::{AT_ONCE, Active, Done};
use crate::clock::runtime_now;
use crate::event_loop::{self, EventLoop};
use crate::execute::{Execute, chain};
use crate::fault::fault_point;
use crate::native_status::{LongWork, LongWorkRefusal};
use crate::output::{Diagnostics, LogLines, Source};
use crate::reboot;
use crate::status::{Operation, OperationRefusal};

/// Between the farewell to the fleet and the end of the machine.
const FAREWELL: Duration = Duration::from_secs(2);

/// How long the machine may take to go down.
pub(super) const REBOOT_PATIENCE: Duration = Duration::from_secs(300);

/// How long the replicas of a workload may take to be made anew.
const RESTART_PATIENCE: Duration = Duration::from_secs(600);

impl<E: Execute> EventLoop<E> {
    /// Commands that an earlier agent had begun: what is there says how they ended.
    pub(super) async fn settle_commands(&mut self) -> Result<(), ()> {
        let begun = self.commands.commands.running();
        let begun = begun.filter(|(id, ..)| !self.commands.active.contains_key(id));
        let ends = begun.filter_map(|(id, command, boot)| Some((id, self.settled(command, boot)?)));
        for (id, end) in ends.collect::<Vec<_>>() {
            self.end_command(id, end).await?;
        }
        Ok(())
    }

    /// How a command ended during which the agent did; `None` while that cannot be told.
    fn settled(&self, command: &Command, boot: &str) -> Option<End> {
        match &command.action {
            Action::Reboot {} if boot != self.machine.boot_id => {
                Some(End::succeeded("the gateway was booted anew"))
            }
            Action::InstallArtifact { .. } | Action::RemoveArtifact { .. } => {
                // Nobody has looked yet.
                self.observed.containers.as_ref()?;
                let done = match long_work(&command.action) {
                    Ok(LongWork::Install(wanted)) => {
                        let there = self.observed.artifacts.get(&wanted.id);
                        let fits = |digest: &Digest| Some(digest) == there.map(|it| &it.digest);
                        there.is_some() && wanted.digest.as_ref().is_none_or(fits)
                    }
                    Ok(LongWork::Remove(id)) => !self.observed.artifacts.contains_key(&id),
                    _ => false,
                };
                let end = || End::succeeded("done while the agent was started anew");
                Some(if done { end() } else { End::interrupted() })
            }
            _ => Some(End::interrupted()),
        }
    }

    /// Begins those that wait, as far as there is room, by id.
    pub(super) async fn begin_commands(&mut self, now: Now) -> Result<(), ()> {
        let waiting = self.commands.commands.waiting();
        let waiting: Vec<_> = waiting.map(|(id, command)| (id, command.clone())).collect();
        for (id, command) in waiting {
            // One before it may have cancelled it.
            if self.command_state(id) != Some(CommandState::Accepted) || self.commands.reboots() {
                continue;
            }
            self.begin_command(id, command.action, now).await?;
        }
        Ok(())
    }

    async fn begin_command(&mut self, id: CommandId, action: Action, now: Now) -> Result<(), ()> {
        match action {
            Action::StartWorkload { workload } => {
                self.operate_for(id, &workload, Operation::Start).await
            }
            Action::DrainWorkload { workload } => {
                self.operate_for(id, &workload, Operation::Drain).await
            }
            Action::StopWorkload { workload } => {
                self.operate_for(id, &workload, Operation::Stop).await
            }
            Action::RestartWorkload { workload } => {
                self.operate_for(id, &workload, Operation::Restart).await
            }
            Action::InstallArtifact { .. } | Action::RemoveArtifact { .. } => {
                self.begin_long_for(id, &action).await
            }
            // What gives something is made when there is room for it, and not at each look before.
            Action::ListArtifacts {}
            | Action::ReadLogs(_)
            | Action::FollowLogs { .. }
            | Action::CollectDiagnostics {}
                if self.commands.outputs() >= AT_ONCE =>
            {
                Ok(())
            }
            Action::ListArtifacts {} => self.list_for(id).await,
            Action::ReadLogs(query) => {
                let lines = LogLines::new(&self.local.logs, &query, None);
                self.give(id, lines.map(|lines| (Source::Logs(lines), None))).await
            }
            Action::FollowLogs { query, lease_seconds } => {
                let until = runtime_now() + Duration::from_secs(lease_seconds.into());
                let (lease, leased) = watch::channel(until);
                let lines = LogLines::new(&self.local.logs, &query, Some(leased));
                self.give(id, lines.map(|lines| (Source::Logs(lines), Some(lease)))).await
            }
            Action::CollectDiagnostics {} => {
                let source = Source::Diagnostics(Box::new(self.diagnostics(now)));
                self.give(id, Ok((source, None))).await
            }
            Action::ExtendLease { command, lease_seconds } => {
                let Some(Active::Output(sending)) = self.commands.active.get(&command) else {
                    let message = format!("command {command} does not go on");
                    return self.end_command(id, End::rejected("unknown", message)).await;
                };
                if !sending.has_lease() {
                    let message = format!("command {command} has no lease");
                    return self.end_command(id, End::rejected("no-lease", message)).await;
                }
                let message = format!("command {command} goes on for {lease_seconds} s");
                self.end_command(id, End::succeeded(message)).await?;
                if let Some(Active::Output(sending)) = self.commands.active.get(&command) {
                    sending.lease(Duration::from_secs(lease_seconds.into()));
                }
                Ok(())
            }
            Action::Cancel { command } => self.cancel_for(id, command).await,
            Action::Report {} => {
                self.end_command(id, End::succeeded("the gateway reports")).await?;
                self.telling.report_now();
                self.send_health_now();
                Ok(())
            }
            Action::Reboot {} => self.reboot_for(id).await,
        }
    }

    /// Notes that a command is begun. What is done for it comes after.
    async fn note_begun(&mut self, id: CommandId) -> Result<(), ()> {
        let now = self.clock.now().wall.as_secs();
        if let Some(change) = self.commands.commands.begin(id, &self.machine.boot_id, now) {
            fault_point("command.beginning");
            self.store_commands(vec![change]).await?;
            fault_point("command.begun");
        }
        Ok(())
    }

    async fn operate_for(
        &mut self,
        id: CommandId,
        workload: &str,
        operation: Operation,
    ) -> Result<(), ()> {
        if operation == Operation::Restart && self.observed.containers.is_none() {
            // Which replicas there are is not known before a look.
            return Ok(());
        }
        let decided = match self.decide(workload, operation) {
            Ok(decided) => decided,
            Err(refusal) => {
                let reason = match refusal {
                    OperationRefusal::Unknown(_) => "unknown",
                    _ => "conflict",
                };
                return self.end_command(id, End::rejected(reason, refusal.to_string())).await;
            }
        };
        let (name, end) = (decided.name.clone(), End::succeeded(&decided.message));
        let changes = match operation {
            // What it does is in no record.
            Operation::Restart => {
                self.note_begun(id).await?;
                Vec::new()
            }
            _ => {
                let now = self.clock.now().wall.as_secs();
                self.commands.commands.end(id, end.clone(), now).into_iter().collect()
            }
        };
        fault_point("command.ending");
        if self.carry_out(decided, changes.clone()).await.is_err() {
            self.commands_not_stored();
            return Err(());
        }
        if operation == Operation::Restart {
            // It has ended when nothing is left of what was there: the wish alone dies with the agent.
            let until = self.clock.now().monotonic + RESTART_PATIENCE;
            self.commands.active.insert(id, Active::Restart(name, end, until));
            fault_point("command.doing");
            return Ok(());
        }
        fault_point("command.ended");
        self.commands_stored(&changes);
        self.say_how_it_ended(id);
        Ok(())
    }

    async fn begin_long_for(&mut self, id: CommandId, action: &Action) -> Result<(), ()> {
        let work = match long_work(action) {
            Ok(work) => work,
            Err(message) => {
                return self.end_command(id, End::rejected("malformed", message)).await;
            }
        };
        // What is there is not known before a look.
        let knows = self.observed.containers.is_some();
        if !knows
            || self.commands.operations() >= AT_ONCE
            || !self.operations.is_free(&work.target())
        {
            return Ok(());
        }
        let refused = match self.check_long(&work) {
            Ok(()) => None,
            Err(LongWorkRefusal::Busy(_)) => return Ok(()),
            Err(LongWorkRefusal::Unknown(message)) => Some(End::rejected("unknown", message)),
            Err(LongWorkRefusal::Conflict(message)) => Some(End::rejected("conflict", message)),
        };
        if let Some(end) = refused {
            return self.end_command(id, end).await;
        }
        self.note_begun(id).await?;
        let active = match self.begin_long(work) {
            Ok(_) => Active::Operation(self.operations.newest()),
            Err(refusal) => Active::Ended(End::failed("conflict", refusal.to_string())),
        };
        self.commands.active.insert(id, active);
        fault_point("command.doing");
        Ok(())
    }

    async fn list_for(&mut self, id: CommandId) -> Result<(), ()> {
        if self.observed.containers.is_none() {
            return Ok(());
        }
        let list = serde_json::to_value(self.artifacts()).unwrap_or_default();
        let text = list.to_string();
        if text.len() > MAX_RESULT_BYTES {
            return self.give(id, Ok((Source::Text(text.into_bytes()), None))).await;
        }
        let mut end = End::succeeded(format!("{} artifacts", self.installed.len()));
        end.gave = Gave { result: Some(list), output: None };
        self.end_command(id, end).await
    }

    /// Begins to give something on the topic of outputs.
    async fn give(
        &mut self,
        id: CommandId,
        wanted: Result<(Source, Option<crate::output::Lease>), &'static str>,
    ) -> Result<(), ()> {
        let (source, lease) = match wanted {
            Ok(wanted) => wanted,
            Err(message) => return self.end_command(id, End::rejected("malformed", message)).await,
        };
        self.note_begun(id).await?;
        self.commands.active.insert(id, Active::Output(Box::new(Sending::new(source, lease))));
        fault_point("command.doing");
        Ok(())
    }

    async fn cancel_for(&mut self, id: CommandId, target: CommandId) -> Result<(), ()> {
        let now = self.clock.now().wall.as_secs();
        let goes_on = match self.commands.active.get(&target) {
            Some(Active::Output(sending)) if sending.has_lease() => {
                // It ends well, with all that was given so far.
                self.end_command(id, End::succeeded(format!("command {target} ends"))).await?;
                if let Some(Active::Output(sending)) = self.commands.active.get(&target) {
                    sending.lease(Duration::ZERO);
                }
                return Ok(());
            }
            Some(Active::Output(_) | Active::Restart(..)) => true,
            _ => false,
        };
        let waits = self.command_state(target) == Some(CommandState::Accepted) && target != id;
        let end = match (goes_on, waits) {
            (true, _) => End::failed("cancelled", format!("command {id} called it off")),
            (false, true) => End {
                state: CommandState::Superseded,
                reason: "cancelled",
                message: format!("command {id} called it off"),
                gave: Gave::default(),
            },
            (false, false) => {
                let message = match self.command_state(target) {
                    Some(CommandState::Running) => "cannot be called off any more",
                    Some(_) => "has ended",
                    None => "is not known",
                };
                let message = format!("command {target} {message}");
                return self.end_command(id, End::rejected("conflict", message)).await;
            }
        };
        // Both in one transaction.
        let commands = &self.commands.commands;
        let own = End::succeeded(format!("command {target} was called off"));
        let changes = commands.end(target, end, now).into_iter().chain(commands.end(id, own, now));
        let changes = changes.collect();
        fault_point("command.ending");
        self.store_commands(changes).await?;
        fault_point("command.ended");
        self.commands.active.remove(&target);
        self.say_how_it_ended(target);
        self.say_how_it_ended(id);
        Ok(())
    }

    async fn reboot_for(&mut self, id: CommandId) -> Result<(), ()> {
        self.note_begun(id).await?;
        self.commands.active.insert(id, Active::Reboot(None));
        let now = self.clock.now();
        self.happened(now, "reboot", None, format!("the gateway boots anew: command {id}"));
        self.leave_for(OfflineReason::Reboot);
        let config = self.commands.means.reboot.clone();
        self.work.spawn(async move {
            tokio::time::sleep(FAREWELL).await;
            fault_point("command.rebooting");
            let asked = reboot::ask(&config).await.map_err(|error| chain(&error));
            fault_point("command.done");
            event_loop::Done::Command(id, Done::Rebooted(asked))
        });
        Ok(())
    }

    fn diagnostics(&mut self, now: Now) -> Diagnostics {
        let value = |value: Result<Value, serde_json::Error>| value.unwrap_or_default();
        let status = self.status();
        let metrics = format!("{:?}", self.store.metrics());
        let known = [
            (
                "at",
                value(serde_json::to_value(coracle_protocol::Timestamp::from_unix(
                    now.wall.as_secs(),
                ))),
            ),
            ("machine", value(serde_json::to_value(&self.machine))),
            ("containerd", Value::from(self.containerd_version.clone())),
            ("status", value(serde_json::to_value(status))),
            ("events", value(serde_json::to_value(self.journal.after(0)))),
            ("artifacts", value(serde_json::to_value(self.artifacts()))),
            ("operations", value(serde_json::to_value(self.all_operations()))),
            ("commands", value(serde_json::to_value(self.all_commands()))),
            ("store", Value::from(metrics)),
            ("configuration", self.commands.means.configuration.lines().map(Value::from).collect()),
        ];
        let known = known.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        Diagnostics { known }
    }
}

/// What is to be done about an artifact.
fn long_work(action: &Action) -> Result<LongWork, String> {
    let id = |artifact: &str| ArtifactId::parse(artifact).map_err(|error| error.to_string());
    match action {
        Action::InstallArtifact { artifact, digest, repository } => {
            let digest = digest.as_deref().map(Digest::parse).transpose();
            let digest = digest.map_err(|error| error.to_string())?;
            let repository = repository.clone().map(Into::into);
            Ok(LongWork::Install(ArtifactRef { id: id(artifact)?, digest, repository }))
        }
        Action::RemoveArtifact { artifact } => Ok(LongWork::Remove(id(artifact)?)),
        _ => Err("it is about no artifact".into()),
    }
}
