//! Begins what the plan says, and takes in what came of it.

use coracle_core::artifact::Software;
use coracle_core::budget::TrafficKind;
use coracle_core::desired::Workload;
use coracle_core::name::{ContainerId, ReplicaId};
use coracle_core::observed::{Busy, Container, Pod, Task};
use coracle_core::plan::{Action, Adjust, Refresh, Start, Why};
use coracle_core::record::RecordId;
use tokio::sync::watch;

use super::{Done, EventLoop, Pull, STORE_AGAIN};
use crate::execute::{Execute, Failure, Outcome, Started};
use crate::progress::Progress;
use crate::store::StoreError;
use coracle_protocol::reported::ConditionStatus;

/// Containers made and started at once: as many as keep a small machine busy, few enough that the
/// first ones are ready early.
const STARTS_AT_ONCE: usize = 8;

/// Containers stopped at once: mostly waiting, up to an hour, so that they must not hold up starts.
const STOPS_AT_ONCE: usize = 32;

/// Images fetched at once.
const PULLS_AT_ONCE: usize = 2;

impl<E: Execute> EventLoop<E> {
    /// Begins the plan's actions as far as there is room. The rest is left: it will be in the next
    /// plan if it is still needed then. Says whether anything was begun.
    pub(super) fn begin(&mut self) -> bool {
        let mut begun = false;
        // What waits for tomorrow is in each plan until then; the condition `budget` says so.
        let may_pull = self.may_send(TrafficKind::Images, 1);
        for action in self.plan.actions.clone() {
            let busy = |starting: bool| {
                self.busy.values().filter(|busy| busy.starting.is_some() == starting).count()
            };
            let room = match &action {
                Action::Pull { .. } => may_pull && self.pulls.len() < PULLS_AT_ONCE,
                Action::Start(_) => busy(true) < STARTS_AT_ONCE,
                Action::Stop(_)
                | Action::Remove { .. }
                | Action::Refresh(_)
                | Action::Adjust(_)
                | Action::Clear { .. } => busy(false) < STOPS_AT_ONCE,
                Action::RemoveImage { .. } | Action::RemoveArtifact { .. } => true,
            };
            if room {
                self.begin_one(action);
                begun = true;
            }
        }
        begun
    }

    fn begin_one(&mut self, action: Action) {
        let (progress, watched) = watch::channel(Progress::default());
        let pulled = match &action {
            Action::Pull { software } => Some(software.clone()),
            _ => None,
        };
        self.mark_busy(&action);
        let hands = self.hands.clone();
        let task = self
            .work
            .spawn(async move { Done::Acted(Box::new(hands.act(action, progress).await)) });
        if let Some(software) = pulled {
            self.pulls.insert(software, Pull { task, progress: watched });
        }
    }

    fn mark_busy(&mut self, action: &Action) {
        let (replica, starting, leaves_running) = match action {
            Action::Start(start) => (&start.replica, Some(start.container.name.clone()), true),
            Action::Stop(stop) => {
                self.withdrawn(&stop.replica);
                (&stop.replica, None, false)
            }
            Action::Refresh(refresh) => (&refresh.replica, None, true),
            Action::Adjust(adjust) => (&adjust.replica, None, true),
            Action::Remove { replica, .. } | Action::Clear { replica } => (replica, None, false),
            Action::RemoveImage { image } => {
                self.observed.images.remove(image);
                self.changed();
                return;
            }
            Action::RemoveArtifact { artifact } => {
                self.observed.artifacts.remove(artifact);
                self.changed();
                return;
            }
            Action::Pull { .. } => return,
        };
        self.busy.insert(replica.clone(), Busy { starting, leaves_running });
    }

    /// Calls off the fetching of what no order names any more.
    pub(super) fn call_off_pulls(&mut self) {
        let wanted = |software: &Software| {
            let mut all = self.orders.current.workloads.values().flat_map(Workload::software);
            all.any(|known| known == software)
        };
        self.pulls.retain(|software, pull| {
            let keep = wanted(software);
            if !keep {
                pull.task.abort();
            }
            keep
        });
    }

    pub(super) fn on_outcome(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Pulled(software, result) => self.on_pulled(software, result),
            Outcome::Started(start, result) => self.on_started(start, result),
            Outcome::Ended(replica, id, why, result) => {
                self.busy.remove(&replica);
                self.changed();
                match result {
                    Ok(()) => {
                        if let Why::Unhealthy(message) = why {
                            self.on_ended_unhealthy(&replica, &id, &message);
                        }
                        self.containers_mut(|containers| containers.remove(&id));
                        self.history.ended_well(&replica);
                    }
                    Err(failure) => {
                        let what = "could not be stopped or removed";
                        self.on_end_failed(&replica, "stop-failed", what, failure);
                    }
                }
            }
            Outcome::Refreshed(refresh, result) => self.on_refreshed(&refresh, result),
            Outcome::Adjusted(adjust, result) => self.on_adjusted(&adjust, result),
            Outcome::Cleared(replica, result) => {
                self.busy.remove(&replica);
                self.changed();
                match result {
                    Ok(()) => {
                        self.observed.pods.remove(&replica);
                        self.history.ended_well(&replica);
                    }
                    Err(failure) => {
                        let what = "what was around it could not be taken down";
                        self.on_end_failed(&replica, "clear-failed", what, failure);
                    }
                }
            }
            Outcome::Forgotten(image, Ok(())) => {
                self.changed();
                let now = self.clock.now();
                self.happened(now, "image-removed", None, format!("image {image} removed"));
            }
            Outcome::Forgotten(image, Err(failure)) => {
                tracing::warn!(%image, error = failure.message, "image not removed");
            }
            Outcome::ArtifactRemoved(artifact, Ok(())) => {
                self.changed();
                self.installed.remove(&artifact);
                let now = self.clock.now();
                let message = format!("artifact {artifact} removed");
                self.happened(now, "artifact-removed", None, message);
            }
            Outcome::ArtifactRemoved(artifact, Err(failure)) => {
                tracing::warn!(%artifact, error = failure.message, "artifact not removed");
            }
        }
    }

    fn on_pulled(
        &mut self,
        software: Software,
        result: Result<coracle_core::image::Digest, Failure>,
    ) {
        let now = self.clock.now();
        let kind = software.kind();
        self.pulls.remove(&software);
        self.changed();
        match result {
            Ok(digest) => {
                self.happened(now, "pulled", None, format!("{kind} {software} is there: {digest}"));
                self.history.pulled(&software);
                // How large it is and when it came, only a look tells.
                let is_artifact = software.artifact().is_some();
                self.observed.came(software, digest);
                if is_artifact {
                    self.look();
                }
            }
            Err(failure) => {
                let before = self.history.fetching(&software).map(|tries| tries.error.as_str());
                // Tried for ever; told once.
                if before != Some(failure.message.as_str()) {
                    let message =
                        format!("{kind} {software} could not be fetched: {}", failure.message);
                    self.happened(now, "pull-failed", None, message);
                }
                self.history.pull_failed(&software, &failure.message, failure.retry, now);
                if failure.unreachable {
                    self.on_unreachable(&failure.message);
                }
            }
        }
    }

    fn on_refreshed(&mut self, refresh: &Refresh, result: Result<Pod, Failure>) {
        let now = self.clock.now();
        let replica = &refresh.replica;
        self.busy.remove(replica);
        self.changed();
        match result {
            Ok(pod) => {
                self.observed.pods.insert(replica.clone(), pod);
                self.history.ended_well(replica);
                let message = "what is mounted was brought to what is ordered".into();
                self.happened(now, "refreshed", Some(replica), message);
            }
            Err(failure) => {
                let what = "what is around it could not be brought to what is ordered";
                self.on_end_failed(replica, "refresh-failed", what, failure);
            }
        }
    }

    fn on_adjusted(&mut self, adjust: &Adjust, result: Result<(), Failure>) {
        let now = self.clock.now();
        let replica = &adjust.replica;
        self.busy.remove(replica);
        self.changed();
        match result {
            Ok(()) => {
                let limits: Box<str> = adjust.limits.label().into();
                self.containers_mut(|all| {
                    all.entry(adjust.id.clone()).and_modify(|container| container.limits = limits);
                });
                self.history.ended_well(replica);
                let message = "its limits were brought to what is ordered".into();
                self.happened(now, "adjusted", Some(replica), message);
            }
            Err(failure) => {
                let what = "its limits could not be brought to what is ordered";
                self.on_end_failed(replica, "adjust-failed", what, failure);
            }
        }
    }

    fn on_ended_unhealthy(&mut self, replica: &ReplicaId, id: &ContainerId, message: &str) {
        let now = self.clock.now();
        let containers = self.observed.containers.as_ref();
        let Some(container) = containers.and_then(|all| all.get(id)).cloned() else { return };
        let policy = self.orders.policy(replica, &container.definition).unwrap_or_default();
        self.history.ended_unhealthy(id, &container, message, policy, now);
        let message = format!("ended as unhealthy: {message}");
        self.happened(now, "unhealthy", Some(replica), message);
    }

    fn on_started(&mut self, start: Start, result: Result<Started, Failure>) {
        let now = self.clock.now();
        let Start { replica, id, generation, definition, container, .. } = start;
        let name = container.name.clone();
        // Most pods have one container, which nobody needs to be told the name of.
        let whose = if name.as_str() == "main" { String::new() } else { format!("{name}: ") };
        self.busy.remove(&replica);
        self.changed();
        let early = self.early_exits.remove(&id);
        match result {
            Ok(Started { pid, pod }) => {
                self.observed.pods.insert(replica.clone(), pod);
                let exit = early.filter(|(of, _)| *of == pid).map(|(_, exit)| exit);
                let task = exit.map_or(Task::Running { pid }, Task::Stopped);
                let policy = self.orders.policy(&replica, &definition).unwrap_or_default();
                self.history.started(&id, &definition, policy, now);
                self.happened(
                    now,
                    "started",
                    Some(&replica),
                    format!("{whose}started as process {pid}"),
                );
                if let Some(exit) = exit {
                    let message =
                        format!("{whose}process {pid} ended with exit code {}", exit.code);
                    self.happened(now, "ended", Some(&replica), message);
                }
                let limits = container.limits.label().into();
                let container = Container { replica, name, generation, definition, limits, task };
                self.containers_mut(|containers| containers.insert(id, container));
            }
            Err(failure) => {
                // Something of it may be there, until a look tells.
                let left = Pod {
                    definition: definition.clone(),
                    in_place: "".into(),
                    serves_identity: false,
                    shares_ports: false,
                    address: None,
                };
                self.observed.pods.entry(replica.clone()).or_insert(left);
                let known = self.history.container(&id, &definition);
                if known.and_then(|known| known.start_error.as_ref()) != Some(&failure.message) {
                    let message = format!("{whose}could not be started: {}", failure.message);
                    self.happened(now, "start-failed", Some(&replica), message);
                }
                let retry = failure.retry;
                self.history.start_failed(&id, &definition, &failure.message, retry, now);
                self.look_after(&failure);
            }
        }
    }

    fn on_end_failed(&mut self, replica: &ReplicaId, kind: &str, what: &str, failure: Failure) {
        let now = self.clock.now();
        let message = format!("{what}: {}", failure.message);
        self.history.end_failed(replica, &message, now);
        self.happened(now, kind, Some(replica), message);
        self.look_after(&failure);
    }

    /// Says what is left of replicas that nobody wants any more, because no workload's report does.
    pub(super) fn say_leftovers(&mut self) {
        const NAME: &str = "leftovers";
        let ordered = &self.orders.current.workloads;
        let wanted = |replica: &ReplicaId| {
            ordered.get(&replica.workload).is_some_and(|workload| replica.index < workload.replicas)
        };
        let mut left = self.history.failed_ends().filter(|failed| !wanted(&failed.replica));
        let first = left.next().map(|first| format!("{}: {}", first.replica, first.error));
        drop(left);
        match first {
            Some(message) => {
                self.condition(NAME, ConditionStatus::False, "not-removed", &message);
            }
            None => {
                let message = "nothing is left of what is not ordered";
                self.condition(NAME, ConditionStatus::True, "none", message);
            }
        }
    }

    /// What a failed action left is unknown.
    fn look_after(&mut self, failure: &Failure) {
        if failure.unreachable {
            self.on_unreachable(&failure.message);
        } else {
            self.look_anew();
        }
    }

    /// Stores what must survive a reboot, without waiting for it.
    pub(super) fn record(&mut self) {
        let now = self.clock.now();
        if self.record_again_at.take_if(|at| *at <= now.monotonic).is_some() {
            self.history.store_again();
        }
        let mut changes = self.history.take_changes();
        if !changes.is_empty() || self.events.write_is_due(now) {
            changes.extend(self.events.backlog_mut().take_changes());
        }
        changes.extend(self.usage_change(changes.is_empty()));
        if changes.is_empty() {
            return;
        }
        let store = self.store.clone();
        self.work.spawn(async move {
            let records = changes.iter().map(|(id, _)| id.clone()).collect();
            Done::Recorded(records, store.record(changes).await)
        });
    }

    /// The same, waiting for it.
    pub(super) async fn record_at_once(&mut self) {
        let changes = self.history.take_changes();
        if changes.is_empty() {
            return;
        }
        let records = changes.iter().map(|(id, _)| id.clone()).collect();
        let recorded = self.store.record(changes).await;
        self.on_recorded(records, recorded);
    }

    pub(super) fn on_recorded(&mut self, records: Vec<RecordId>, result: Result<(), StoreError>) {
        let now = self.clock.now();
        match result {
            Ok(()) => {
                self.history.stored(&records);
                self.events.backlog_mut().stored(&records);
                self.store_works();
            }
            Err(error) => {
                self.store_fails(&crate::execute::chain(&error));
                let again = now.monotonic + STORE_AGAIN;
                self.events.backlog_mut().not_stored(&records, again);
                let ours =
                    |id: &RecordId| matches!(id, RecordId::Container(_) | RecordId::Workload(_));
                self.history.not_stored(records.into_iter().filter(ours).collect());
                self.record_again_at = Some(again);
            }
        }
    }

    pub(super) fn store_works(&mut self) {
        // Not all of it as long as an order waits, which is worth a try now.
        if let Some(unstored) = &mut self.unstored {
            unstored.again_at = self.clock.now().monotonic;
            return;
        }
        self.condition("store", ConditionStatus::True, "writable", "orders are kept");
    }

    pub(super) fn store_fails(&mut self, error: &str) {
        self.condition("store", ConditionStatus::False, "not-writable", error);
    }
}
