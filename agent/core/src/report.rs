//! Facts to reported state.

use std::collections::BTreeMap;

use coracle_protocol::desired::SCHEMA;
use coracle_protocol::limits::{MAX_REFUSALS, MAX_REPORT_BYTES};
use coracle_protocol::reported::{
    Condition, ConditionStatus, ExitReport, Phase, Refused, ReplicaReport, ReplicaState,
    ReportedState, WorkloadReport,
};
use coracle_protocol::{GatewayId, Refusal, Timestamp};

use crate::desired::Workload;
use crate::history::{History, Now};
use crate::name::ReplicaId;
use crate::observed::{Container, Exit, Observed, Task};
use crate::plan::{Blocked, Plan};
use crate::reconcile::{Orders, replicas};

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
    }
}

/// A report as it is sent: JSON within [`MAX_REPORT_BYTES`]. What a larger one says is left out bit
/// by bit: sentences first, then what does well, then the workloads one by one from the end.
pub fn encode(report: &ReportedState) -> Vec<u8> {
    let bytes = |report: &ReportedState| {
        serde_json::to_vec(report).expect("a report is plain structs, lists and text")
    };
    let mut short = report.clone();
    let replicas = |report: &mut ReportedState, change: &dyn Fn(&mut WorkloadReport)| {
        report.workloads.iter_mut().for_each(change);
    };
    let steps: [&dyn Fn(&mut ReportedState); 5] = [
        &|_| {},
        &|report| {
            replicas(report, &|w| w.replicas.iter_mut().for_each(|replica| replica.reason = None));
        },
        &|report| {
            replicas(report, &|w| w.replicas.retain(|r| r.state != ReplicaState::Running));
        },
        &|report| replicas(report, &|w| w.image = w.image.chars().take(80).collect()),
        &|report| {
            report.unknown_fields.clear();
            if let Some(refused) = &mut report.refused {
                refused.omitted += u32::try_from(refused.refusals.len()).unwrap_or(u32::MAX);
                refused.refusals.clear();
            }
        },
    ];
    for step in steps {
        step(&mut short);
        let whole = bytes(&short);
        if whole.len() <= MAX_REPORT_BYTES {
            return whole;
        }
    }
    while bytes(&short).len() > MAX_REPORT_BYTES && !short.workloads.is_empty() {
        short.workloads.truncate(short.workloads.len() / 2);
    }
    bytes(&short)
}

/// A refused order for the report: every reason up to a limit, the rest counted.
pub fn refused(generation: Option<u64>, digest: String, mut refusals: Vec<Refusal>) -> Refused {
    let omitted = refusals.len().saturating_sub(MAX_REFUSALS);
    refusals.truncate(MAX_REFUSALS);
    Refused { generation, digest, refusals, omitted: u32::try_from(omitted).unwrap_or(u32::MAX) }
}

impl Facts<'_> {
    fn workload(&self, workload: &Workload) -> WorkloadReport {
        let replicas: Vec<_> =
            replicas(workload).map(|replica| self.replica(workload, &replica)).collect();
        let image = &workload.container.image;
        WorkloadReport {
            name: workload.name.to_string(),
            phase: replicas.iter().map(|r| phase_of(r.state)).max().unwrap_or(Phase::Converged),
            image: image.to_string(),
            image_digest: self.observed.images.get(image).map(ToString::to_string),
            replicas,
        }
    }

    fn replica(&self, workload: &Workload, replica: &ReplicaId) -> ReplicaReport {
        let container = self.container_of(replica);
        let known = self.history.replica(replica, &workload.definition);
        let blocked = self.plan.blocked.iter().find(|blocked| blocked.replica == *replica);
        let state = self.state(workload, replica, container, blocked);
        let pid = match container.map(|container| container.task) {
            Some(Task::Running { pid }) => Some(pid),
            _ => None,
        };
        let waits = !matches!(state, ReplicaState::Running | ReplicaState::Completed);
        let blocked = blocked.filter(|_| waits);
        ReplicaReport {
            index: replica.index,
            state,
            pid,
            generation: container.map(|container| container.generation),
            restarts: known.map_or(0, |known| known.record.restarts),
            last_exit: known.and_then(|known| known.record.last_exit()).map(exit_report),
            reason: blocked.map(|blocked| blocked.reason.clone()),
            next_try: blocked.and_then(|blocked| blocked.until).map(|until| self.wall_time(until)),
        }
    }

    fn container_of(&self, replica: &ReplicaId) -> Option<&Container> {
        self.observed
            .containers
            .iter()
            .flat_map(BTreeMap::values)
            .find(|container| container.replica == *replica)
    }

    fn state(
        &self,
        workload: &Workload,
        replica: &ReplicaId,
        container: Option<&Container>,
        blocked: Option<&Blocked>,
    ) -> ReplicaState {
        let busy = self.observed.busy.get(&workload.name).filter(|busy| busy.replica == *replica);
        let known = self.history.replica(replica, &workload.definition);
        let finished = known.filter(|known| known.record.is_finished(workload.restart));
        let runs = container.is_some_and(|container| {
            matches!(container.task, Task::Running { .. })
                && container.definition == workload.definition
        });
        match (busy, finished, blocked) {
            (Some(busy), ..) if busy.starting => ReplicaState::Starting,
            (Some(_), None, _) => ReplicaState::Stopping,
            (_, Some(known), _) => match known.record.last_exit() {
                Some(exit) if exit.code != 0 => ReplicaState::Failed,
                _ => ReplicaState::Completed,
            },
            _ if runs => ReplicaState::Running,
            _ if self.observed.pulling.contains(&workload.container.image) => ReplicaState::Pulling,
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

fn phase_of(state: ReplicaState) -> Phase {
    match state {
        ReplicaState::Running | ReplicaState::Completed => Phase::Converged,
        ReplicaState::Failed | ReplicaState::BackOff => Phase::Degraded,
        ReplicaState::Pending
        | ReplicaState::Pulling
        | ReplicaState::Starting
        | ReplicaState::Stopping => Phase::Progressing,
    }
}

fn exit_report(exit: Exit) -> ExitReport {
    ExitReport { code: exit.code, at: exit.at() }
}

/// Named facts about health, each with the time of its last change.
#[derive(Clone, Debug, Default)]
pub struct Conditions(BTreeMap<String, Condition>);

impl Conditions {
    /// States a fact. `since` moves only when the status changes.
    pub fn set(
        &mut self,
        name: &str,
        status: ConditionStatus,
        reason: &str,
        message: &str,
        now: Now,
    ) {
        let before = self.0.get(name).filter(|condition| condition.status == status);
        let since = before.map_or(Timestamp::from_unix(now.wall.as_secs()), |before| before.since);
        let (reason, message) = (reason.to_owned(), message.to_owned());
        let condition = Condition { name: name.to_owned(), status, reason, message, since };
        self.0.insert(name.to_owned(), condition);
    }
}

#[cfg(test)]
mod tests;
