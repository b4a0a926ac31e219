//! Attempts and outcomes: what must be known to decide well and cannot be seen by looking.
//!
//! In: what ended, failed or succeeded, and when. Out: when the next try may be, and records for
//! the store. Attempts survive a reboot, deadlines do not: the monotonic clock starts again at
//! zero, and a cold boot starts everything at once.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::artifact::Software;
use crate::backoff::{self, Retry};
use crate::desired::{DefinitionHash, Desired, RestartPolicy, Workload};
use crate::name::{ContainerId, ReplicaId, WorkloadName};
use crate::observed::{Container, Exit, Observed, Task};
use crate::record::{Record, RecordId};

/// Longest message of a failure that is kept, in characters.
const MAX_MESSAGE: usize = 300;

/// Exit code of a process that SIGKILL ended.
const KILLED: u32 = 128 + 9;

/// A container that ends within this time after the kernel ended one of its processes for want of
/// memory, ends for that.
const MEMORY_IS_WHY: Duration = Duration::from_secs(10);

/// The time, given to every decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Since the agent started. Never jumps.
    pub monotonic: Duration,
    /// Since the Unix epoch, by the wall clock. Only for reports.
    pub wall: Duration,
}

/// What the store keeps for one container. Postcard in LMDB: only append fields, with a new schema
/// version of the store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// The definition that the counts below belong to.
    pub definition: Option<DefinitionHash>,
    /// Failures in a row: ends of the container and failed starts, without a healthy while between.
    pub failures: u32,
    /// Restarts in all.
    pub restarts: u32,
    /// Code and time (nanoseconds since the Unix epoch) of the last end.
    pub last_exit: Option<(u32, u64)>,
    /// It ended and was not started since.
    pub ended: bool,
}

impl ContainerRecord {
    /// Whether a container that does not run stays so under this restart policy. Not a verdict of the
    /// past: an order may change the policy alone.
    pub fn is_finished(&self, policy: RestartPolicy) -> bool {
        match policy {
            RestartPolicy::Always => false,
            RestartPolicy::OnFailure => {
                self.ended && self.last_exit.is_some_and(|(code, _)| code == 0)
            }
            RestartPolicy::Never => self.ended,
        }
    }

    /// How it last ended.
    pub fn last_exit(&self) -> Option<Exit> {
        self.last_exit.map(|(code, at_nanos)| Exit { code, at_nanos })
    }
}

/// What the store keeps for one workload. Postcard in LMDB: only append fields, with a new schema
/// version of the store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadRecord {
    /// The definition that last had all its replicas healthy.
    pub good: Option<DefinitionHash>,
    /// The update that failed last, until an order says something else.
    pub failed: Option<FailedUpdate>,
    /// It was stopped by hand.
    pub stopped: Option<Stopped>,
}

/// An update that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedUpdate {
    /// To this definition.
    pub definition: DefinitionHash,
    /// Of this order.
    pub generation: u64,
    /// Why, for people.
    pub reason: String,
}

/// A workload that was stopped by hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopped {
    /// It was drained first.
    pub drained: bool,
    /// When, in seconds since the Unix epoch by the wall clock.
    pub since: u64,
}

/// What is known of one container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// What survives a reboot.
    pub record: ContainerRecord,
    /// When it may be started next, monotonic.
    pub not_before: Duration,
    /// Why the last start failed.
    pub start_error: Option<String>,
    /// The kernel ended a process of it for want of memory, and with that its last run.
    pub out_of_memory: bool,
    /// A probe failed, and with that its last run: what it said.
    pub unhealthy: Option<String>,
    /// It was started since the agent was.
    pub was_started: bool,
    /// When the kernel last ended a process of it for want of memory, monotonic.
    short_of_memory_at: Option<Duration>,
    /// Since when it has been seen running, monotonic.
    running_since: Option<Duration>,
}

/// Failed tries to fetch an image or an artifact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchTries {
    /// In a row.
    pub failures: u32,
    /// When the next try may be, monotonic.
    pub not_before: Duration,
    /// Why the last one failed.
    pub error: String,
}

/// Something done to what exists that failed: a container that could not be stopped, a network that
/// could not be taken down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedEnd {
    /// Which replica it is, or was.
    pub replica: ReplicaId,
    /// In a row.
    pub failures: u32,
    /// When its workload goes on, monotonic.
    pub not_before: Duration,
    /// Why.
    pub error: String,
}

/// All attempts and outcomes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    containers: BTreeMap<ContainerId, Known>,
    software: BTreeMap<Software, FetchTries>,
    failed_ends: BTreeMap<ReplicaId, FailedEnd>,
    workloads: BTreeMap<WorkloadName, WorkloadRecord>,
    /// Since when replicas have been ready, monotonic.
    ready_since: BTreeMap<ReplicaId, Duration>,
    /// Since when replicas of a definition that has yet to prove itself have not been, monotonic.
    unready_since: BTreeMap<ReplicaId, Duration>,
    /// Replicas that are to be made anew though their definition is the same.
    stale: BTreeSet<ReplicaId>,
    changed: BTreeSet<RecordId>,
    /// Handed out to be stored.
    storing: BTreeSet<RecordId>,
    /// Could not be stored.
    unstored: BTreeSet<RecordId>,
    seed: u64,
}

impl History {
    /// Goes on from what the store kept. `seed` is random for each start of the agent and spreads
    /// the delays.
    pub fn new(
        records: BTreeMap<ContainerId, ContainerRecord>,
        workloads: BTreeMap<WorkloadName, WorkloadRecord>,
        seed: u64,
    ) -> Self {
        let known = |record| Known { record, ..Known::default() };
        let containers = records.into_iter().map(|(id, record)| (id, known(record))).collect();
        Self { containers, workloads, seed, ..Self::default() }
    }

    /// What is known of a container under this definition; nothing if it was another one.
    pub fn container(&self, id: &ContainerId, definition: &DefinitionHash) -> Option<&Known> {
        self.containers.get(id).filter(|r| r.record.definition.as_ref() == Some(definition))
    }

    /// Failed tries to fetch an image or an artifact, since the last success.
    pub fn fetching(&self, software: &Software) -> Option<&FetchTries> {
        self.software.get(software)
    }

    /// Learns from what is seen: containers that ended, containers that run. `policy` is asked for
    /// the restart policy of a replica's definition; `None` if nobody wants it any more.
    pub fn learn(
        &mut self,
        observed: &Observed,
        now: Now,
        policy: impl Fn(&ReplicaId, &DefinitionHash) -> Option<RestartPolicy>,
    ) {
        for (id, container) in observed.containers.iter().flatten() {
            if observed.busy.contains_key(&container.replica) {
                continue;
            }
            let policy = policy(&container.replica, &container.definition);
            let Some(policy) = policy else { continue };
            match container.task {
                Task::Running { .. } => {
                    let known = self.entry(id, &container.definition);
                    known.running_since.get_or_insert(now.monotonic);
                }
                Task::Stopped(exit) => self.ended(id, container, exit, policy, now),
                Task::Absent | Task::Created | Task::Unknown => {}
            }
        }
    }

    fn ended(
        &mut self,
        id: &ContainerId,
        container: &Container,
        exit: Exit,
        policy: RestartPolicy,
        now: Now,
    ) {
        let unit = self.spread(id);
        let known = self.entry(id, &container.definition);
        if known.record.last_exit() == Some(exit) {
            return;
        }
        known.unhealthy = None;
        known.out_of_memory = known.short_of_memory_at.take().is_some_and(|at| {
            exit.code == KILLED || now.monotonic.saturating_sub(at) <= MEMORY_IS_WHY
        });
        known.count_end(exit, policy, unit, now);
        self.changed.insert(RecordId::Container(id.clone()));
    }

    /// A container was ended because a probe failed.
    pub fn ended_unhealthy(
        &mut self,
        id: &ContainerId,
        container: &Container,
        message: &str,
        policy: RestartPolicy,
        now: Now,
    ) {
        let unit = self.spread(id);
        let exit = match container.task {
            Task::Stopped(exit) => exit,
            _ => Exit { code: KILLED, at_nanos: u64::try_from(now.wall.as_nanos()).unwrap_or(0) },
        };
        let known = self.entry(id, &container.definition);
        known.out_of_memory = false;
        known.unhealthy = Some(shortened(message));
        known.count_end(exit, policy, unit, now);
        self.changed.insert(RecordId::Container(id.clone()));
    }

    /// The kernel ended a process of a container for want of memory, not necessarily the main one.
    pub fn out_of_memory(&mut self, id: &ContainerId, now: Now) {
        if let Some(known) = self.containers.get_mut(id) {
            known.short_of_memory_at = Some(now.monotonic);
        }
    }

    /// A container was made and started. Costs a write only where a restart policy could take the
    /// last end for the end of this run.
    pub fn started(
        &mut self,
        id: &ContainerId,
        definition: &DefinitionHash,
        policy: RestartPolicy,
        now: Now,
    ) {
        let known = self.entry(id, definition);
        known.start_error = None;
        known.short_of_memory_at = None;
        known.running_since = Some(now.monotonic);
        known.was_started = true;
        let forgotten = std::mem::take(&mut known.record.ended);
        if forgotten && policy != RestartPolicy::Always {
            self.changed.insert(RecordId::Container(id.clone()));
        }
    }

    /// A container could not be made or started.
    pub fn start_failed(
        &mut self,
        id: &ContainerId,
        definition: &DefinitionHash,
        error: &str,
        retry: Retry,
        now: Now,
    ) {
        let unit = self.spread(id);
        let known = self.entry(id, definition);
        known.record.failures = known.record.failures.saturating_add(1);
        known.not_before = now.monotonic + backoff::retry_delay(known.record.failures, retry, unit);
        known.start_error = Some(shortened(error));
        self.changed.insert(RecordId::Container(id.clone()));
    }

    /// What could not be done to what exists.
    pub fn failed_ends(&self) -> impl Iterator<Item = &FailedEnd> {
        self.failed_ends.values()
    }

    /// Something could not be done to what exists. Its workload rests, so as not to try for ever
    /// without a pause.
    pub fn end_failed(&mut self, replica: &ReplicaId, error: &str, now: Now) {
        let failures = self.failed_ends.get(replica).map_or(0, |failed| failed.failures) + 1;
        let delay = backoff::retry_delay(failures, Retry::Backoff, self.spread(replica));
        let not_before = now.monotonic + delay;
        let error = shortened(error);
        let failed = FailedEnd { replica: replica.clone(), failures, not_before, error };
        self.failed_ends.insert(replica.clone(), failed);
    }

    /// Something was done to what exists.
    pub fn ended_well(&mut self, replica: &ReplicaId) {
        self.failed_ends.remove(replica);
    }

    /// An image or an artifact could not be fetched.
    pub fn pull_failed(&mut self, software: &Software, error: &str, retry: Retry, now: Now) {
        let unit = self.spread(software);
        let failures =
            self.software.get(software).map_or(0, |tries| tries.failures).saturating_add(1);
        let not_before = now.monotonic + backoff::retry_delay(failures, retry, unit);
        let tries = FetchTries { failures, not_before, error: shortened(error) };
        self.software.insert(software.clone(), tries);
    }

    /// An image or an artifact was fetched.
    pub fn pulled(&mut self, software: &Software) {
        self.software.remove(software);
    }

    /// New orders: what they do not name is forgotten, and what waits for its next try need not,
    /// because the new orders may have mended it.
    pub fn ordered(&mut self, desired: &Desired) {
        let there = |replica: &ReplicaId| {
            let workload = desired.workloads.get(&replica.workload);
            workload.filter(|workload| replica.index < workload.max_replicas())
        };
        let wanted = |id: &ContainerId| {
            let Some((replica, name)) = id.parts() else { return false };
            there(&replica).is_some_and(|workload| {
                workload.pod.containers.iter().any(|container| container.name == name)
            })
        };
        let gone: Vec<_> = self.containers.keys().filter(|id| !wanted(id)).cloned().collect();
        for id in gone {
            self.containers.remove(&id);
            self.changed.insert(RecordId::Container(id));
        }
        let gone = self.workloads.keys().filter(|name| !desired.workloads.contains_key(name));
        for name in gone.cloned().collect::<Vec<_>>() {
            self.workloads.remove(&name);
            self.changed.insert(RecordId::Workload(name));
        }
        for (name, workload) in &desired.workloads {
            let failed = self.failed_update(name);
            if failed.is_some_and(|failed| failed.definition != workload.definition) {
                self.change_workload(name, |record| record.failed = None);
            }
        }
        self.ready_since.retain(|replica, _| there(replica).is_some());
        self.unready_since.clear();
        self.stale.retain(|replica| there(replica).is_some());
        self.software.clear();
        self.failed_ends.clear();
    }

    /// To be called after new orders, and when they are read again, because a power cut may have come
    /// between: a unit of which something is to be different is tried once more as a whole.
    pub fn try_changed_units(&mut self, current: &Desired, previous: &Desired) {
        let differs = |workload: &&Workload| {
            let before = previous.workloads.get(&workload.name);
            before.is_none_or(|before| before.definition != workload.definition)
        };
        // Also one that it has no more.
        let gone = |workload: &&Workload| {
            let now = current.workloads.get(&workload.name);
            now.is_none_or(|now| now.unit != workload.unit)
        };
        let changed = current.workloads.values().filter(differs);
        let changed = changed.chain(previous.workloads.values().filter(gone));
        let changed: BTreeSet<_> = changed.filter_map(|workload| workload.unit.as_ref()).collect();
        for workload in current.workloads.values() {
            let is_changed = workload.unit.as_ref().is_some_and(|unit| changed.contains(unit));
            let failed = self.failed_update(&workload.name);
            let before = failed.is_some_and(|failed| failed.generation < current.generation);
            if is_changed && before {
                self.change_workload(&workload.name, |record| record.failed = None);
            }
        }
    }

    /// The definition of a workload that last had all its replicas healthy.
    pub fn good(&self, workload: &WorkloadName) -> Option<&DefinitionHash> {
        self.workloads.get(workload)?.good.as_ref()
    }

    /// The update of a workload that failed last, if no order said something else since.
    pub fn failed_update(&self, workload: &WorkloadName) -> Option<&FailedUpdate> {
        self.workloads.get(workload)?.failed.as_ref()
    }

    /// Whether a workload was stopped by hand.
    pub fn stopped(&self, workload: &WorkloadName) -> Option<Stopped> {
        self.workloads.get(workload)?.stopped
    }

    /// The record of a workload as it is with this change, to be stored before it counts.
    pub fn workload_record(&self, workload: &WorkloadName) -> WorkloadRecord {
        self.workloads.get(workload).cloned().unwrap_or_default()
    }

    /// Stops a workload by hand, or no longer. The store has it already.
    pub fn set_stopped(&mut self, workload: &WorkloadName, stopped: Option<Stopped>) {
        // Stored once more, after what may be under way to the store with the old state.
        self.change_workload(workload, |record| record.stopped = stopped);
    }

    /// All replicas of this definition are healthy.
    pub(crate) fn is_good(&mut self, workload: &WorkloadName, definition: &DefinitionHash) {
        if self.good(workload) != Some(definition) {
            self.change_workload(workload, |record| record.good = Some(definition.clone()));
        }
    }

    /// An update failed: from now on the last good definition counts.
    pub(crate) fn update_failed(&mut self, workload: &WorkloadName, failed: FailedUpdate) {
        let reason = shortened(&failed.reason);
        let failed = Some(FailedUpdate { reason, ..failed });
        self.change_workload(workload, |record| record.failed = failed);
    }

    fn change_workload(
        &mut self,
        workload: &WorkloadName,
        change: impl FnOnce(&mut WorkloadRecord),
    ) {
        change(self.workloads.entry(workload.clone()).or_default());
        self.changed.insert(RecordId::Workload(workload.clone()));
    }

    /// Makes replicas anew, as far as they may be missing, though their definition is the same.
    pub fn make_anew(&mut self, replicas: impl IntoIterator<Item = ReplicaId>) {
        self.stale.extend(replicas);
    }

    /// What waits for its next try of a workload need not: somebody asked for it by hand.
    pub fn try_now(&mut self, workload: &WorkloadName) {
        let is_its =
            |id: &ContainerId| id.parts().is_some_and(|(replica, _)| replica.workload == *workload);
        for (_, known) in self.containers.iter_mut().filter(|(id, _)| is_its(id)) {
            known.not_before = Duration::ZERO;
        }
        self.failed_ends.retain(|replica, _| replica.workload != *workload);
    }

    /// Whether there is still something of a workload that is to be made anew.
    pub fn has_stale(&self, workload: &WorkloadName) -> bool {
        self.stale.iter().any(|replica| replica.workload == *workload)
    }

    /// Whether a replica is to be made anew.
    pub(crate) fn is_stale(&self, replica: &ReplicaId) -> bool {
        self.stale.contains(replica)
    }

    /// Nothing of a replica is left that would have to be made anew.
    pub(crate) fn not_stale(&mut self, replica: &ReplicaId) {
        self.stale.remove(replica);
    }

    /// The replicas that are to be made anew.
    pub(crate) fn stale(&self) -> impl Iterator<Item = &ReplicaId> {
        self.stale.iter()
    }

    /// Learns whether a replica is ready.
    pub(crate) fn is_ready(&mut self, replica: &ReplicaId, ready: bool, now: Now) {
        if ready {
            self.ready_since.entry(replica.clone()).or_insert(now.monotonic);
        } else {
            self.ready_since.remove(replica);
        }
    }

    /// Since when a replica has been ready, monotonic.
    pub(crate) fn ready_since(&self, replica: &ReplicaId) -> Option<Duration> {
        self.ready_since.get(replica).copied()
    }

    /// Since when a replica has had to prove itself, monotonic.
    pub(crate) fn unready_since(&self, replica: &ReplicaId) -> Option<Duration> {
        self.unready_since.get(replica).copied()
    }

    /// Only these replicas have yet to prove themselves, from now on if they had not before.
    pub(crate) fn set_unready(&mut self, replicas: &BTreeSet<ReplicaId>, now: Now) {
        self.unready_since.retain(|replica, _| replicas.contains(replica));
        for replica in replicas {
            self.unready_since.entry(replica.clone()).or_insert(now.monotonic);
        }
    }

    /// What changed since the last call and must survive a reboot: a record, or `None` where it is
    /// to be forgotten. Whether it was stored is to be told by [`stored`](Self::stored) or
    /// [`not_stored`](Self::not_stored).
    pub fn take_changes(&mut self) -> Vec<(RecordId, Option<Record>)> {
        let changed = std::mem::take(&mut self.changed);
        self.storing.extend(changed.iter().cloned());
        let record = |id: &RecordId| match id {
            RecordId::Container(id) => {
                self.containers.get(id).map(|known| Record::Container(known.record.clone()))
            }
            RecordId::Workload(name) => self.workloads.get(name).cloned().map(Record::Workload),
            // Not of a history, and never among its changes.
            _ => None,
        };
        changed.iter().map(|id| (id.clone(), record(id))).collect()
    }

    /// Changes that survive a reboot from now on.
    pub fn stored(&mut self, records: &[RecordId]) {
        for id in records {
            self.storing.remove(id);
        }
    }

    /// Changes that could not be stored. They rest until [`store_again`](Self::store_again).
    pub fn not_stored(&mut self, records: Vec<RecordId>) {
        self.stored(&records);
        self.unstored.extend(records);
    }

    /// Gives out again what could not be stored.
    pub fn store_again(&mut self) {
        self.changed.append(&mut self.unstored);
    }

    /// Whether all that is known of a container survives a reboot.
    pub fn is_stored(&self, id: &ContainerId) -> bool {
        let id = RecordId::Container(id.clone());
        ![&self.changed, &self.storing, &self.unstored].into_iter().any(|ids| ids.contains(&id))
    }

    /// The container's history under this definition; a new definition starts with a clean slate.
    fn entry(&mut self, id: &ContainerId, definition: &DefinitionHash) -> &mut Known {
        let known = self.containers.entry(id.clone()).or_default();
        if known.record.definition.as_ref() != Some(definition) {
            *known = Known::default();
            known.record.definition = Some(definition.clone());
        }
        known
    }

    /// A number in [0, 1) that differs for each thing, each start of the agent and each attempt.
    pub fn spread(&self, thing: &impl Hash) -> f64 {
        let mut hasher = DefaultHasher::new();
        (self.seed, thing, self.attempts()).hash(&mut hasher);
        (hasher.finish() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn attempts(&self) -> u32 {
        let containers = self.containers.values().map(|known| known.record.failures);
        let software = self.software.values().map(|tries| tries.failures);
        containers.chain(software).fold(0, u32::wrapping_add)
    }
}

impl Known {
    /// Counts an end, and says when the next start may be.
    fn count_end(&mut self, exit: Exit, policy: RestartPolicy, unit: f64, now: Now) {
        let ran = self.running_since.take().map(|since| now.monotonic.saturating_sub(since));
        let record = &mut self.record;
        record.last_exit = Some((exit.code, exit.at_nanos));
        record.ended = true;
        if !record.is_finished(policy) {
            if ran.is_some_and(|ran| ran >= backoff::HEALTHY_AFTER) {
                record.failures = 0;
            }
            record.failures = record.failures.saturating_add(1);
            record.restarts = record.restarts.saturating_add(1);
            self.not_before = now.monotonic + backoff::restart_delay(record.failures, unit);
        }
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(MAX_MESSAGE).collect()
}
