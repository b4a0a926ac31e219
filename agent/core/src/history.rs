//! Attempts and outcomes: what must be known to decide well and cannot be seen by looking.
//!
//! In: what ended, failed or succeeded, and when. Out: when the next try may be, and records for
//! the store. Attempts survive a reboot, deadlines do not: the monotonic clock starts again at
//! zero, and a cold boot starts everything at once.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::backoff::{self, Retry};
use crate::desired::{DefinitionHash, Desired, RestartPolicy};
use crate::image::ImageRef;
use crate::name::ReplicaId;
use crate::observed::{Container, Exit, Observed, Task};

/// Longest message of a failure that is kept, in characters.
const MAX_MESSAGE: usize = 300;

/// The time, given to every decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Since the agent started. Never jumps.
    pub monotonic: Duration,
    /// Since the Unix epoch, by the wall clock. Only for reports.
    pub wall: Duration,
}

/// What the store keeps for one replica. Postcard in LMDB: only append fields, with a new schema
/// version of the store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaRecord {
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

impl ReplicaRecord {
    /// Whether a replica that does not run stays so under this restart policy. Not a verdict of the
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

/// What is known of one replica.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replica {
    /// What survives a reboot.
    pub record: ReplicaRecord,
    /// When it may be started next, monotonic.
    pub not_before: Duration,
    /// Why the last start failed.
    pub start_error: Option<String>,
    /// Since when it has been seen running, monotonic.
    running_since: Option<Duration>,
}

/// Failed tries to fetch an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageTries {
    /// In a row.
    pub failures: u32,
    /// When the next try may be, monotonic.
    pub not_before: Duration,
    /// Why the last one failed.
    pub error: String,
}

/// A container that could not be stopped or removed.
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
    replicas: BTreeMap<ReplicaId, Replica>,
    images: BTreeMap<ImageRef, ImageTries>,
    failed_ends: BTreeMap<ReplicaId, FailedEnd>,
    changed: BTreeSet<ReplicaId>,
    /// Handed out to be stored.
    storing: BTreeSet<ReplicaId>,
    /// Could not be stored.
    unstored: BTreeSet<ReplicaId>,
    seed: u64,
}

impl History {
    /// Goes on from what the store kept. `seed` is random for each start of the agent and spreads
    /// the delays.
    pub fn new(records: BTreeMap<ReplicaId, ReplicaRecord>, seed: u64) -> Self {
        let replica = |record| Replica { record, ..Replica::default() };
        let replicas = records.into_iter().map(|(id, record)| (id, replica(record))).collect();
        Self { replicas, seed, ..Self::default() }
    }

    /// What is known of a replica under this definition; nothing if it was another one.
    pub fn replica(&self, id: &ReplicaId, definition: &DefinitionHash) -> Option<&Replica> {
        self.replicas.get(id).filter(|r| r.record.definition.as_ref() == Some(definition))
    }

    /// Failed tries to fetch an image, since the last success.
    pub fn image(&self, image: &ImageRef) -> Option<&ImageTries> {
        self.images.get(image)
    }

    /// Learns from what is seen: containers that ended, containers that run. `policy` is asked for
    /// the restart policy of a replica's definition; `None` if nobody wants it any more.
    pub fn learn(
        &mut self,
        observed: &Observed,
        now: Now,
        policy: impl Fn(&ReplicaId, &DefinitionHash) -> Option<RestartPolicy>,
    ) {
        for container in observed.containers.iter().flat_map(BTreeMap::values) {
            if observed.busy.contains_key(&container.replica.workload) {
                continue;
            }
            let policy = policy(&container.replica, &container.definition);
            let Some(policy) = policy else { continue };
            match container.task {
                Task::Running { .. } => {
                    let replica = self.entry(&container.replica, &container.definition);
                    replica.running_since.get_or_insert(now.monotonic);
                }
                Task::Stopped(exit) => self.ended(container, exit, policy, now),
                Task::Absent | Task::Created | Task::Unknown => {}
            }
        }
    }

    fn ended(&mut self, container: &Container, exit: Exit, policy: RestartPolicy, now: Now) {
        let unit = self.unit(&container.replica);
        let replica = self.entry(&container.replica, &container.definition);
        if replica.record.last_exit() == Some(exit) {
            return;
        }
        let ran = replica.running_since.take().map(|since| now.monotonic.saturating_sub(since));
        let record = &mut replica.record;
        record.last_exit = Some((exit.code, exit.at_nanos));
        record.ended = true;
        if !record.is_finished(policy) {
            if ran.is_some_and(|ran| ran >= backoff::HEALTHY_AFTER) {
                record.failures = 0;
            }
            record.failures = record.failures.saturating_add(1);
            record.restarts = record.restarts.saturating_add(1);
            replica.not_before = now.monotonic + backoff::restart_delay(record.failures, unit);
        }
        self.changed.insert(container.replica.clone());
    }

    /// A container was made and started. Costs a write only where a restart policy could take the
    /// last end for the end of this run.
    pub fn started(
        &mut self,
        id: &ReplicaId,
        definition: &DefinitionHash,
        policy: RestartPolicy,
        now: Now,
    ) {
        let replica = self.entry(id, definition);
        replica.start_error = None;
        replica.running_since = Some(now.monotonic);
        let forgotten = std::mem::take(&mut replica.record.ended);
        if forgotten && policy != RestartPolicy::Always {
            self.changed.insert(id.clone());
        }
    }

    /// A container could not be made or started.
    pub fn start_failed(
        &mut self,
        id: &ReplicaId,
        definition: &DefinitionHash,
        error: &str,
        retry: Retry,
        now: Now,
    ) {
        let unit = self.unit(id);
        let replica = self.entry(id, definition);
        replica.record.failures = replica.record.failures.saturating_add(1);
        replica.not_before =
            now.monotonic + backoff::retry_delay(replica.record.failures, retry, unit);
        replica.start_error = Some(shortened(error));
        self.changed.insert(id.clone());
    }

    /// Containers that could not be stopped or removed.
    pub fn failed_ends(&self) -> impl Iterator<Item = &FailedEnd> {
        self.failed_ends.values()
    }

    /// A container could not be stopped or removed. Its workload rests, so as not to try for ever
    /// without a pause.
    pub fn end_failed(&mut self, replica: &ReplicaId, error: &str, now: Now) {
        let failures = self.failed_ends.get(replica).map_or(0, |failed| failed.failures) + 1;
        let delay = backoff::retry_delay(failures, Retry::Backoff, self.unit(replica));
        let not_before = now.monotonic + delay;
        let error = shortened(error);
        let failed = FailedEnd { replica: replica.clone(), failures, not_before, error };
        self.failed_ends.insert(replica.clone(), failed);
    }

    /// A container was stopped and removed.
    pub fn ended_well(&mut self, replica: &ReplicaId) {
        self.failed_ends.remove(replica);
    }

    /// An image could not be fetched.
    pub fn pull_failed(&mut self, image: &ImageRef, error: &str, retry: Retry, now: Now) {
        let unit = self.unit(image);
        let failures = self.images.get(image).map_or(0, |tries| tries.failures).saturating_add(1);
        let not_before = now.monotonic + backoff::retry_delay(failures, retry, unit);
        let tries = ImageTries { failures, not_before, error: shortened(error) };
        self.images.insert(image.clone(), tries);
    }

    /// An image was fetched.
    pub fn pulled(&mut self, image: &ImageRef) {
        self.images.remove(image);
    }

    /// New orders: what they do not name is forgotten, and what waits for its next try need not,
    /// because the new orders may have mended it.
    pub fn ordered(&mut self, desired: &Desired) {
        let wanted = |id: &ReplicaId| {
            desired.workloads.get(&id.workload).is_some_and(|workload| id.index < workload.replicas)
        };
        let gone: Vec<_> = self.replicas.keys().filter(|id| !wanted(id)).cloned().collect();
        for id in gone {
            self.replicas.remove(&id);
            self.changed.insert(id);
        }
        self.images.clear();
        self.failed_ends.clear();
    }

    /// What changed since the last call and must survive a reboot: a record, or `None` where it is
    /// to be forgotten. Whether it was stored is to be told by [`stored`](Self::stored) or
    /// [`not_stored`](Self::not_stored).
    pub fn take_changes(&mut self) -> Vec<(ReplicaId, Option<ReplicaRecord>)> {
        let changed = std::mem::take(&mut self.changed);
        self.storing.extend(changed.iter().cloned());
        changed
            .into_iter()
            .map(|id| {
                let record = self.replicas.get(&id).map(|replica| replica.record.clone());
                (id, record)
            })
            .collect()
    }

    /// Changes that survive a reboot from now on.
    pub fn stored(&mut self, replicas: &[ReplicaId]) {
        for id in replicas {
            self.storing.remove(id);
        }
    }

    /// Changes that could not be stored. They rest until [`store_again`](Self::store_again).
    pub fn not_stored(&mut self, replicas: Vec<ReplicaId>) {
        self.stored(&replicas);
        self.unstored.extend(replicas);
    }

    /// Gives out again what could not be stored.
    pub fn store_again(&mut self) {
        self.changed.append(&mut self.unstored);
    }

    /// Whether all that is known of a replica survives a reboot.
    pub fn is_stored(&self, id: &ReplicaId) -> bool {
        ![&self.changed, &self.storing, &self.unstored].into_iter().any(|ids| ids.contains(id))
    }

    /// The replica's history under this definition; a new definition starts with a clean slate.
    fn entry(&mut self, id: &ReplicaId, definition: &DefinitionHash) -> &mut Replica {
        let replica = self.replicas.entry(id.clone()).or_default();
        if replica.record.definition.as_ref() != Some(definition) {
            *replica = Replica::default();
            replica.record.definition = Some(definition.clone());
        }
        replica
    }

    /// A number in [0, 1) that differs for each thing, each start of the agent and each attempt.
    fn unit(&self, thing: &impl Hash) -> f64 {
        let mut hasher = DefaultHasher::new();
        (self.seed, thing, self.attempts()).hash(&mut hasher);
        (hasher.finish() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn attempts(&self) -> u32 {
        let replicas = self.replicas.values().map(|replica| replica.record.failures);
        let images = self.images.values().map(|tries| tries.failures);
        replicas.chain(images).fold(0, u32::wrapping_add)
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(MAX_MESSAGE).collect()
}
