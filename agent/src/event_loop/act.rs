//! Begins what the plan says, and takes in what came of it.

use coracle_core::image::ImageRef;
use coracle_core::name::ReplicaId;
use coracle_core::observed::{Busy, Container, Task};
use coracle_core::plan::{Action, Start};
use tokio::sync::watch;

use super::{Done, EventLoop, Pull, STORE_AGAIN};
use crate::execute::{Execute, Failure, Outcome};
use crate::images::Progress;
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
        for action in self.plan.actions.clone() {
            let busy = |starting| self.busy.values().filter(|b| b.starting == starting).count();
            let room = match &action {
                Action::Pull { .. } => self.pulls.len() < PULLS_AT_ONCE,
                Action::Start(_) => busy(true) < STARTS_AT_ONCE,
                Action::Stop(_) | Action::Remove { .. } => busy(false) < STOPS_AT_ONCE,
                Action::RemoveImage { .. } => true,
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
            Action::Pull { image } => Some(image.clone()),
            _ => None,
        };
        self.mark_busy(&action);
        let hands = self.hands.clone();
        let task = self
            .work
            .spawn(async move { Done::Acted(Box::new(hands.act(action, progress).await)) });
        if let Some(image) = pulled {
            self.pulls.insert(image, Pull { task, progress: watched });
        }
    }

    fn mark_busy(&mut self, action: &Action) {
        let (replica, starting) = match action {
            Action::Start(start) => (&start.replica, true),
            Action::Stop(stop) => (&stop.replica, false),
            Action::Remove { replica, .. } => (replica, false),
            Action::RemoveImage { image } => {
                self.observed.images.remove(image);
                self.changed();
                return;
            }
            Action::Pull { .. } => return,
        };
        let busy = Busy { replica: replica.clone(), starting };
        self.busy.insert(replica.workload.clone(), busy);
    }

    /// Calls off the fetching of images that no order names any more.
    pub(super) fn call_off_pulls(&mut self) {
        let wanted = |image: &ImageRef| {
            self.orders.current.workloads.values().any(|w| w.container.image == *image)
        };
        self.pulls.retain(|image, pull| {
            let keep = wanted(image);
            if !keep {
                pull.task.abort();
            }
            keep
        });
    }

    pub(super) fn on_outcome(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Pulled(image, result) => self.on_pulled(image, result),
            Outcome::Started(start, result) => self.on_started(start, result),
            Outcome::Ended(replica, id, result) => {
                self.busy.remove(&replica.workload);
                self.changed();
                match result {
                    Ok(()) => {
                        self.containers_mut(|containers| containers.remove(&id));
                        self.history.ended_well(&replica);
                    }
                    Err(failure) => self.on_end_failed(&replica, failure),
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
        }
    }

    fn on_pulled(&mut self, image: ImageRef, result: Result<coracle_core::image::Digest, Failure>) {
        let now = self.clock.now();
        self.pulls.remove(&image);
        self.changed();
        match result {
            Ok(digest) => {
                self.happened(now, "pulled", None, format!("image {image} is there: {digest}"));
                self.history.pulled(&image);
                self.observed.images.insert(image, digest);
            }
            Err(failure) => {
                let before = self.history.image(&image).map(|tries| tries.error.as_str());
                // Tried for ever; told once.
                if before != Some(failure.message.as_str()) {
                    let message =
                        format!("image {image} could not be fetched: {}", failure.message);
                    self.happened(now, "pull-failed", None, message);
                }
                self.history.pull_failed(&image, &failure.message, failure.retry, now);
                if failure.unreachable {
                    self.on_unreachable(&failure.message);
                }
            }
        }
    }

    fn on_started(&mut self, start: Start, result: Result<u32, Failure>) {
        let now = self.clock.now();
        let Start { replica, id, generation, definition, .. } = start;
        self.busy.remove(&replica.workload);
        self.changed();
        let early = self.early_exits.remove(&id);
        match result {
            Ok(pid) => {
                let exit = early.filter(|(of, _)| *of == pid).map(|(_, exit)| exit);
                let task = exit.map_or(Task::Running { pid }, Task::Stopped);
                let policy = self.orders.policy(&replica, &definition).unwrap_or_default();
                self.history.started(&replica, &definition, policy, now);
                self.happened(now, "started", Some(&replica), format!("started as process {pid}"));
                if let Some(exit) = exit {
                    let message = format!("process {pid} ended with exit code {}", exit.code);
                    self.happened(now, "ended", Some(&replica), message);
                }
                let container = Container { replica, generation, definition, task };
                self.containers_mut(|containers| containers.insert(id, container));
            }
            Err(failure) => {
                let known = self.history.replica(&replica, &definition);
                if known.and_then(|known| known.start_error.as_ref()) != Some(&failure.message) {
                    let message = format!("could not be started: {}", failure.message);
                    self.happened(now, "start-failed", Some(&replica), message);
                }
                let retry = failure.retry;
                self.history.start_failed(&replica, &definition, &failure.message, retry, now);
                self.look_after(&failure);
            }
        }
    }

    fn on_end_failed(&mut self, replica: &ReplicaId, failure: Failure) {
        let now = self.clock.now();
        let message = format!("could not be stopped or removed: {}", failure.message);
        self.happened(now, "stop-failed", Some(replica), message);
        self.history.end_failed(replica, &failure.message, now);
        self.look_after(&failure);
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
        let now = self.clock.now().monotonic;
        if self.record_again_at.take_if(|at| *at <= now).is_some() {
            self.history.store_again();
        }
        let changes = self.history.take_changes();
        if changes.is_empty() {
            return;
        }
        let store = self.store.clone();
        self.work.spawn(async move {
            let replicas = changes.iter().map(|(replica, _)| replica.clone()).collect();
            Done::Recorded(replicas, store.record(changes).await)
        });
    }

    pub(super) fn on_recorded(&mut self, replicas: Vec<ReplicaId>, result: Result<(), StoreError>) {
        let now = self.clock.now();
        match result {
            Ok(()) => {
                self.history.stored(&replicas);
                self.store_works(now);
            }
            Err(error) => {
                self.store_fails(&crate::execute::chain(&error), now);
                self.history.not_stored(replicas);
                self.record_again_at = Some(now.monotonic + STORE_AGAIN);
            }
        }
    }

    pub(super) fn store_works(&mut self, now: coracle_core::history::Now) {
        self.conditions.set("store", ConditionStatus::True, "writable", "orders are kept", now);
    }

    pub(super) fn store_fails(&mut self, error: &str, now: coracle_core::history::Now) {
        tracing::warn!(error, "store");
        self.conditions.set("store", ConditionStatus::False, "not-writable", error, now);
    }
}
