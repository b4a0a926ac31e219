//! Facts to reported state.

use std::collections::BTreeMap;

use coracle_protocol::desired::SCHEMA;
use coracle_protocol::limits::{MAX_REFUSALS, MAX_REPORT_BYTES};
use coracle_protocol::reported::{
    Condition, ConditionStatus, ContainerReport, ExitReport, ImageReport, Phase, Refused,
    ReplicaReport, ReplicaState, ReportedState, StoppedReport, UpdateReport, UpdateState,
    WorkloadReport,
};
use coracle_protocol::{GatewayId, Refusal, Timestamp};

use crate::desired::{self, Workload};
use crate::history::{History, Known, Now};
use crate::name::ReplicaId;
use crate::observed::{Container, Observed, Task};
use crate::orders::Orders;
use crate::plan::{Blocked, Plan};
use crate::rollout::replicas;
use crate::situation::{Situation, Slot};

/// All that a report is made of.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Whose report it is.
    pub gateway: GatewayId,
    /// The kernel's boot id.
    pub boot_id: &'a str,
    /// Version of the agent.
    pub agent_version: &'a str,
    /// Highest generation received with a good signature.
    pub generation_seen: u64,
    /// The newest order that was refused, until one is accepted.
    pub refused: Option<&'a Refused>,
    /// Fields of the applied order that were ignored.
    pub unknown_fields: &'a [String],
    /// Facts about health.
    pub conditions: &'a Conditions,
    /// What is wanted.
    pub orders: &'a Orders,
    /// What exists.
    pub observed: &'a Observed,
    /// What happened.
    pub history: &'a History,
    /// What was decided last.
    pub plan: &'a Plan,
    /// The time of that decision.
    pub now: Now,
}

/// Makes the reported state. Its sequence is 0: who sends it numbers it.
pub fn report(facts: &Facts<'_>) -> ReportedState {
    let workloads: Vec<_> =
        facts.orders.current.workloads.values().map(|workload| facts.workload(workload)).collect();
    let busy = !facts.plan.actions.is_empty() || !facts.observed.busy.is_empty();
    let phase = match workloads.iter().map(|workload| workload.phase).max() {
        _ if facts.orders.current.generation == 0 => Phase::Idle,
        None | Some(Phase::Converged) if busy => Phase::Progressing,
        None => Phase::Converged,
        Some(worst) => worst,
    };
    ReportedState {
        schema: SCHEMA,
        gateway: facts.gateway,
        boot_id: facts.boot_id.to_owned(),
        sequence: 0,
        agent_version: facts.agent_version.to_owned(),
        generation_seen: facts.generation_seen,
        generation_applied: facts.orders.current.generation,
        phase,
        refused: facts.refused.cloned(),
        unknown_fields: facts.unknown_fields.to_vec(),
        conditions: facts.conditions.0.values().cloned().collect(),
        workloads,
        omitted_workloads: 0,
    }
}

/// A report as it is sent: JSON within `limit` and [`MAX_REPORT_BYTES`]. What a larger one says is left
/// out bit by bit: sentences first, then what does well, then the workloads from the end, which are
/// counted.
pub fn encode(report: &ReportedState, limit: usize) -> Vec<u8> {
    let limit = limit.min(MAX_REPORT_BYTES);
    let bytes = |report: &ReportedState| {
        serde_json::to_vec(report).expect("a report is plain structs, lists and text")
    };
    let mut short = report.clone();
    let replicas = |report: &mut ReportedState, change: &dyn Fn(&mut WorkloadReport)| {
        report.workloads.iter_mut().for_each(change);
    };
    let steps: [&dyn Fn(&mut ReportedState); 9] = [
        &|_| {},
        &|report| {
            replicas(report, &|w| {
                for replica in &mut w.replicas {
                    replica.reason = None;
                    replica.containers.iter_mut().for_each(|container| container.reason = None);
                }
            });
        },
        &|report| {
            replicas(report, &|w| w.replicas.iter_mut().for_each(|r| r.containers.clear()));
        },
        &|report| {
            let is_well = |r: &ReplicaReport| r.state == ReplicaState::Running && r.ready;
            replicas(report, &|w| w.replicas.retain(|r| !is_well(r)));
        },
        &|report| {
            replicas(report, &|w| {
                w.further_images.clear();
                if let Some(update) = &mut w.update {
                    update.reason = None;
                }
                w.image = w.image.chars().take(80).collect();
            });
        },
        &|report| {
            report.unknown_fields.clear();
            if let Some(refused) = &mut report.refused {
                refused.omitted += u32::try_from(refused.refusals.len()).unwrap_or(u32::MAX);
                refused.refusals.clear();
            }
        },
        &|report| {
            report.conditions.iter_mut().for_each(|condition| condition.message.clear());
        },
        &|report| {
            report.omit_workloads(|workloads| {
                workloads.retain(|workload| workload.phase != Phase::Converged);
            });
        },
        &|report| report.conditions.retain(|c| c.status != ConditionStatus::True),
    ];
    for step in steps {
        step(&mut short);
        let whole = bytes(&short);
        if whole.len() <= limit {
            return whole;
        }
    }
    while bytes(&short).len() > limit && !short.workloads.is_empty() {
        short.omit_workloads(|workloads| workloads.truncate(workloads.len() / 2));
    }
    bytes(&short)
}

/// A refused order for the report: every reason up to a limit, the rest counted.
pub fn refused(generation: Option<u64>, digest: String, mut refusals: Vec<Refusal>) -> Refused {
    let omitted = refusals.len().saturating_sub(MAX_REFUSALS);
    refusals.truncate(MAX_REFUSALS);
    Refused { generation, digest, refusals, omitted: u32::try_from(omitted).unwrap_or(u32::MAX) }
}

impl<'a> Facts<'a> {
    fn situation(&self) -> Situation<'a> {
        let Facts { orders, observed, history, now, .. } = *self;
        Situation { orders, observed, history, now }
    }

    fn workload(&self, workload: &'a Workload) -> WorkloadReport {
        let situation = self.situation();
        let slots = situation.slots(workload, &situation.target(workload));
        let stopped = self.history.stopped(&workload.name);
        let replicas = if stopped.is_some() && slots.is_empty() {
            (0..workload.replicas)
                .map(|index| ReplicaId { workload: workload.name.clone(), index })
                .collect()
        } else {
            replicas(&situation, workload)
        };
        let replicas: Vec<_> = replicas
            .iter()
            .map(|replica| {
                let slot = slots.iter().find(|slot| slot.replica == *replica);
                let holds = slot.and_then(|slot| slot.holds).map(|holds| holds.workload);
                let ready = slot.is_some_and(|slot| slot.ready);
                self.replica(workload, holds.unwrap_or(workload), replica, ready)
            })
            .collect();
        let update = self.update(workload, &slots);
        let state = update.as_ref().map(|update| match update.state {
            UpdateState::Progressing => Phase::Progressing,
            UpdateState::RolledBack => Phase::Degraded,
        });
        let phases = replicas.iter().map(phase_of).chain(state.filter(|_| stopped.is_none()));
        let mut images = workload.software().map(|software| ImageReport {
            image: software.to_string(),
            image_digest: self.observed.digest(software).map(ToString::to_string),
        });
        let first = images.next();
        WorkloadReport {
            name: workload.name.to_string(),
            phase: phases.max().unwrap_or(Phase::Converged),
            image: first.as_ref().map(|first| first.image.clone()).unwrap_or_default(),
            image_digest: first.and_then(|first| first.image_digest),
            further_images: images.collect(),
            update,
            stopped: stopped.map(|stopped| StoppedReport {
                drained: stopped.drained,
                since: Timestamp::from_unix(stopped.since),
            }),
            replicas,
        }
    }

    /// An update that is going on, or was taken back.
    fn update(&self, workload: &Workload, slots: &[Slot<'_>]) -> Option<UpdateReport> {
        let is_ordered = |slot: &&Slot<'_>| {
            let holds = slot.holds.map(|holds| &holds.workload.definition);
            holds == Some(&workload.definition)
        };
        let updated = slots.iter().filter(is_ordered).filter(|slot| slot.available).count();
        let updated = u32::try_from(updated).unwrap_or(u32::MAX);
        let replicas = workload.replicas;
        let failed = self.history.failed_update(&workload.name);
        if let Some(failed) = failed.filter(|failed| failed.definition == workload.definition) {
            let reason = Some(failed.reason.clone());
            return Some(UpdateReport {
                state: UpdateState::RolledBack,
                updated,
                replicas,
                reason,
            });
        }
        let goes_on = slots.iter().any(|slot| !is_ordered(&slot));
        let blocked = self.plan.blocked.iter().find(|b| b.replica.workload == workload.name);
        goes_on.then(|| UpdateReport {
            state: UpdateState::Progressing,
            updated,
            replicas,
            reason: blocked.map(|blocked| blocked.reason.clone()),
        })
    }

    /// A replica is as its worst container is. `workload` is the definition that it has.
    fn replica(
        &self,
        ordered: &Workload,
        workload: &'a Workload,
        replica: &ReplicaId,
        ready: bool,
    ) -> ReplicaReport {
        let containers: Vec<_> = workload
            .pod
            .containers
            .iter()
            .map(|container| self.container(workload, replica, container))
            .collect();
        let worst = containers.iter().max_by_key(|container| urgency(container.state));
        let id = |container: &desired::Container| replica.container(&container.name);
        let there = self.observed.containers.as_ref();
        let mut ids = workload.pod.containers.iter().map(|container| id(container));
        let generation = there.and_then(|there| ids.find_map(|id| there.get(&id)));
        let last_exit = containers.iter().filter_map(|c| c.last_exit.clone()).max_by_key(|e| e.at);
        let state = worst.map_or(ReplicaState::Pending, |worst| worst.state);
        let probes = || self.situation().what_probes_say(workload, replica);
        let reason = match state {
            ReplicaState::Running if !ready => probes(),
            _ => worst.and_then(|worst| worst.reason.clone()),
        };
        let stopped = self.history.stopped(&ordered.name).is_some();
        ReplicaReport {
            index: replica.index,
            state: match state {
                ReplicaState::Pending | ReplicaState::Pulling | ReplicaState::BackOff
                    if stopped =>
                {
                    ReplicaState::Stopped
                }
                state => state,
            },
            ready,
            pid: containers.first().and_then(|first| first.pid),
            generation: generation.map(|container| container.generation),
            restarts: containers.iter().fold(0, |sum, c| sum.saturating_add(c.restarts)),
            last_exit,
            reason,
            next_try: worst.and_then(|worst| worst.next_try),
            address: self.observed.pods.get(replica).and_then(|pod| pod.address),
            containers: if containers.len() > 1 { containers } else { Vec::new() },
        }
    }

    fn container(
        &self,
        workload: &Workload,
        replica: &ReplicaId,
        container: &desired::Container,
    ) -> ContainerReport {
        let id = replica.container(&container.name);
        let there = self.observed.containers.as_ref().and_then(|all| all.get(&id));
        let known = self.history.container(&id, &workload.definition);
        let blocked = self.plan.blocked.iter().find(|blocked| {
            let whole = blocked.container.is_none();
            blocked.replica == *replica
                && (whole || blocked.container.as_ref() == Some(&container.name))
        });
        let state = self.state(workload, replica, container, there, blocked);
        let pid = match there.map(|container| container.task) {
            Some(Task::Running { pid }) => Some(pid),
            _ => None,
        };
        let waits = !matches!(state, ReplicaState::Running | ReplicaState::Completed);
        let blocked = blocked.filter(|_| waits);
        ContainerReport {
            name: container.name.to_string(),
            state,
            pid,
            restarts: known.map_or(0, |known| known.record.restarts),
            last_exit: known.and_then(exit_report),
            reason: blocked.map(|blocked| blocked.reason.clone()),
            next_try: blocked.and_then(|blocked| blocked.until).map(|until| self.wall_time(until)),
        }
    }

    fn state(
        &self,
        workload: &Workload,
        replica: &ReplicaId,
        container: &desired::Container,
        there: Option<&Container>,
        blocked: Option<&Blocked>,
    ) -> ReplicaState {
        let busy = self.observed.busy.get(replica);
        let id = replica.container(&container.name);
        let known = self.history.container(&id, &workload.definition);
        let finished = known.filter(|known| known.record.is_finished(workload.restart));
        let runs = there.is_some_and(|there| {
            matches!(there.task, Task::Running { .. }) && there.definition == workload.definition
        });
        let starting = busy.and_then(|busy| busy.starting.as_ref());
        match (busy, finished, blocked) {
            (Some(_), ..) if starting == Some(&container.name) => ReplicaState::Starting,
            // Another container of the replica is being started, or what is around it refreshed.
            (Some(busy), ..) if busy.leaves_running && runs => ReplicaState::Running,
            (Some(busy), None, _) if !busy.leaves_running => ReplicaState::Stopping,
            (_, Some(known), _) => match known.record.last_exit() {
                Some(exit) if exit.code != 0 => ReplicaState::Failed,
                _ => ReplicaState::Completed,
            },
            _ if runs => ReplicaState::Running,
            _ if self.observed.pulling.contains(&container.software) => ReplicaState::Pulling,
            (.., Some(blocked)) if blocked.until.is_some() => ReplicaState::BackOff,
            _ => ReplicaState::Pending,
        }
    }

    /// A moment of the monotonic clock on the wall clock.
    fn wall_time(&self, moment: std::time::Duration) -> Timestamp {
        let wall = self.now.wall + moment.saturating_sub(self.now.monotonic);
        Timestamp::from_unix(wall.as_secs())
    }
}

fn phase_of(replica: &ReplicaReport) -> Phase {
    match replica.state {
        ReplicaState::Running if !replica.ready => Phase::Progressing,
        ReplicaState::Running | ReplicaState::Completed | ReplicaState::Stopped => Phase::Converged,
        ReplicaState::Failed | ReplicaState::BackOff => Phase::Degraded,
        ReplicaState::Pending
        | ReplicaState::Pulling
        | ReplicaState::Starting
        | ReplicaState::Stopping => Phase::Progressing,
    }
}

/// How much a state of one container says about the whole replica.
fn urgency(state: ReplicaState) -> u8 {
    match state {
        ReplicaState::Completed | ReplicaState::Stopped => 0,
        ReplicaState::Running => 1,
        ReplicaState::Pending => 2,
        ReplicaState::Stopping => 3,
        ReplicaState::Starting => 4,
        ReplicaState::Pulling => 5,
        ReplicaState::BackOff => 6,
        ReplicaState::Failed => 7,
    }
}

fn exit_report(known: &Known) -> Option<ExitReport> {
    let exit = known.record.last_exit()?;
    Some(ExitReport { code: exit.code, at: exit.at(), out_of_memory: known.out_of_memory })
}

/// Named facts about health, each with the time of its last change.
#[derive(Clone, Debug, Default)]
pub struct Conditions(BTreeMap<String, Condition>);

impl Conditions {
    /// Names of those that are not good.
    pub fn bad(&self) -> impl Iterator<Item = &str> {
        let bad = self.0.values().filter(|condition| condition.status == ConditionStatus::False);
        bad.map(|condition| condition.name.as_str())
    }

    /// States a fact. `since` moves only when the status changes. Gives whether status or reason
    /// did.
    pub fn set(
        &mut self,
        name: &str,
        status: ConditionStatus,
        reason: &str,
        message: &str,
        now: Now,
    ) -> bool {
        let before = self.0.get(name).filter(|condition| condition.status == status);
        let changed = before.is_none_or(|before| before.reason != reason);
        let since = before.map_or(Timestamp::from_unix(now.wall.as_secs()), |before| before.since);
        let (reason, message) = (reason.to_owned(), one_line(message));
        let condition = Condition { name: name.to_owned(), status, reason, message, since };
        self.0.insert(name.to_owned(), condition);
        changed
    }
}

/// Longest message of a condition, in characters.
const MAX_MESSAGE: usize = 500;

/// What others wrote into a message neither breaks the line nor fills the report.
pub(crate) fn one_line(message: &str) -> String {
    let spaced = message.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut line: String = spaced.take(MAX_MESSAGE + 1).collect();
    if line.chars().count() > MAX_MESSAGE {
        line = line.chars().take(MAX_MESSAGE - 1).chain(['…']).collect();
    }
    line
}

#[cfg(test)]
mod tests;
