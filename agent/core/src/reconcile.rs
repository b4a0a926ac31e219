//! The one decision: what to do next, given what is wanted, what exists, what happened, and the time.
//!
//! Level-triggered: the plan follows from the state alone, so a crash leaves nothing to resume.
//! Cannot fail: what stands in the way is data in [`Plan::blocked`]. Deliberately not here: how many
//! actions run at once (`execute` limits them), and how anything is done.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::desired::{DefinitionHash, Desired, RestartPolicy, Workload};
use crate::history::{History, Now};
use crate::image::ImageRef;
use crate::name::{ContainerId, ReplicaId};
use crate::observed::{Container, Observed, Task};
use crate::plan::{Action, Blocked, Plan, Start, Stop};

/// Stop settings for a container whose workload is no longer known.
const DEFAULT_GRACE: Duration = Duration::from_secs(10);

/// What is wanted: the orders in force and the ones before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Orders {
    /// In force.
    pub current: Desired,
    /// Before these. As long as an image of the current orders is not there, the previous
    /// definition of its workload is kept going, also over a cold boot without network.
    pub previous: Desired,
}

impl Orders {
    /// The definition to hold a workload to now.
    fn target<'a>(&'a self, wanted: &'a Workload, observed: &Observed) -> Target<'a> {
        let there = |workload: &Workload| observed.images.contains_key(&workload.container.image);
        let previous = self.previous.workloads.get(&wanted.name);
        match previous {
            Some(previous) if !there(wanted) && there(previous) => {
                Target { workload: previous, generation: self.previous.generation }
            }
            _ => Target { workload: wanted, generation: self.current.generation },
        }
    }

    /// The restart policy of a replica with this definition; `None` if the definition is not wanted.
    pub fn policy(
        &self,
        replica: &ReplicaId,
        definition: &DefinitionHash,
    ) -> Option<RestartPolicy> {
        [&self.current, &self.previous]
            .into_iter()
            .filter_map(|orders| orders.workloads.get(&replica.workload))
            .find(|workload| workload.definition == *definition)
            .map(|workload| workload.restart)
    }
}

/// A definition and the generation it comes from.
struct Target<'a> {
    workload: &'a Workload,
    generation: u64,
}

/// Decides what to do next.
pub fn reconcile(orders: &Orders, observed: &Observed, history: &History, now: Now) -> Plan {
    let mut plan = Plan::default();
    if orders.current.generation == 0 {
        // Without any orders nothing is known to be unwanted either.
        return plan;
    }
    let Some(containers) = &observed.containers else {
        block_all(orders, &mut plan);
        return plan;
    };
    let mut state = Decision { orders, observed, history, now, plan };
    state.rest();
    state.remove_unwanted(containers);
    for workload in orders.current.workloads.values() {
        state.fetch(workload);
        state.keep(workload, containers);
    }
    state.forget_images();
    state.plan
}

fn block_all(orders: &Orders, plan: &mut Plan) {
    for workload in orders.current.workloads.values() {
        plan.blocked.extend(replicas(workload).map(|replica| Blocked {
            replica,
            reason: "containerd cannot be reached".into(),
            until: None,
        }));
    }
}

/// The replicas that a workload should have.
pub(crate) fn replicas(workload: &Workload) -> impl Iterator<Item = ReplicaId> + '_ {
    (0..workload.replicas).map(|index| ReplicaId { workload: workload.name.clone(), index })
}

struct Decision<'a> {
    orders: &'a Orders,
    observed: &'a Observed,
    history: &'a History,
    now: Now,
    plan: Plan,
}

impl Decision<'_> {
    /// Stops and removes containers that no order names: another workload, or a replica too many.
    fn remove_unwanted(&mut self, containers: &BTreeMap<ContainerId, Container>) {
        for (id, container) in containers {
            let wanted = self.orders.current.workloads.get(&container.replica.workload);
            let kept = wanted.is_some_and(|workload| {
                container.replica.index < workload.replicas
                    && self.ids_of(workload, &container.replica).contains(id)
            });
            if !kept && self.is_free(&container.replica) {
                self.end(id, container);
            }
        }
    }

    /// Ids that a replica's container may have: by the current definition or the one that stands in.
    fn ids_of(&self, workload: &Workload, replica: &ReplicaId) -> [ContainerId; 2] {
        let target = self.orders.target(workload, self.observed).workload;
        [replica.container(&workload.container.name), replica.container(&target.container.name)]
    }

    /// Says which workloads rest after something about them failed, and when they go on.
    fn rest(&mut self) {
        for failed in self.history.failed_ends() {
            if failed.not_before > self.now.monotonic {
                let reason = format!("its container could not be removed: {}", failed.error);
                self.block(&failed.replica, &reason, Some(failed.not_before));
            }
        }
    }

    /// Fetches a workload's image if it is not there.
    fn fetch(&mut self, workload: &Workload) {
        let image = &workload.container.image;
        let planned = Action::Pull { image: image.clone() };
        if !self.is_there(image)
            && !self.observed.pulling.contains(image)
            && !self.rests(image)
            && !self.plan.actions.contains(&planned)
        {
            self.plan.actions.push(planned);
        }
    }

    /// Whether fetching an image failed and its next try is not due.
    fn rests(&self, image: &ImageRef) -> bool {
        self.history.image(image).is_some_and(|tries| tries.not_before > self.now.monotonic)
    }

    /// Brings one workload nearer to its orders, by at most one action.
    fn keep(&mut self, wanted: &Workload, containers: &BTreeMap<ContainerId, Container>) {
        let target = self.orders.target(wanted, self.observed);
        for replica in replicas(wanted) {
            if !self.is_there(&wanted.container.image) {
                self.wait_for_image(&wanted.container.image, &replica);
            }
            if !self.is_free(&replica) {
                continue;
            }
            let id = replica.container(&target.workload.container.name);
            let existing = [&id, &replica.container(&wanted.container.name)]
                .into_iter()
                .find_map(|id| containers.get_key_value(id));
            match existing {
                None => self.start(&target, &replica, id),
                Some((_, container)) if runs_as(wanted, container) => {}
                Some((found, container)) => self.mend(&target, found, container, id),
            }
        }
    }

    /// Decides about a container that exists for a wanted replica and does not run as wanted.
    fn mend(
        &mut self,
        target: &Target<'_>,
        found: &ContainerId,
        container: &Container,
        id: ContainerId,
    ) {
        let replica = &container.replica;
        match container.task {
            Task::Running { .. } if runs_as(target.workload, container) && *found == id => {}
            // Never stop what runs for something that cannot run yet.
            Task::Running { .. } if !self.is_there(&target.workload.container.image) => {}
            Task::Unknown => self.block(replica, "its task is paused or in an unknown state", None),
            Task::Running { .. } => self.end(found, container),
            _ if *found != id => self.end(found, container),
            // Its shim would hold memory for nothing until it may start. That it ended is only
            // forgotten here once it is known elsewhere: a job must not run twice.
            Task::Stopped(_) if self.must_wait(target.workload, replica) => {
                if self.history.is_stored(replica) {
                    self.end(found, container);
                }
            }
            Task::Stopped(_) | Task::Absent | Task::Created => self.start(target, replica, id),
        }
    }

    /// Whether a replica that does not run stays so for now.
    fn must_wait(&self, workload: &Workload, replica: &ReplicaId) -> bool {
        self.history.replica(replica, &workload.definition).is_some_and(|known| {
            known.record.is_finished(workload.restart) || known.not_before > self.now.monotonic
        })
    }

    /// Starts a replica, or says why not.
    fn start(&mut self, target: &Target<'_>, replica: &ReplicaId, id: ContainerId) {
        let workload = target.workload;
        if !self.is_there(&workload.container.image) {
            return;
        }
        if let Some(known) = self.history.replica(replica, &workload.definition) {
            if known.record.is_finished(workload.restart) {
                return;
            }
            if known.not_before > self.now.monotonic {
                let reason = match (&known.start_error, known.record.last_exit()) {
                    (Some(error), _) => format!("could not be started: {error}"),
                    (None, Some(exit)) => format!("ended with exit code {}", exit.code),
                    (None, None) => "waits after a failure".into(),
                };
                return self.block(replica, &reason, Some(known.not_before));
            }
        }
        self.plan.actions.push(Action::Start(Start {
            replica: replica.clone(),
            id,
            generation: target.generation,
            definition: workload.definition.clone(),
            network: workload.network,
            container: Arc::clone(&workload.container),
        }));
    }

    fn wait_for_image(&mut self, image: &ImageRef, replica: &ReplicaId) {
        match self.history.image(image) {
            Some(tries) if self.rests(image) => {
                let reason = format!("image {image} could not be fetched: {}", tries.error);
                self.block(replica, &reason, Some(tries.not_before));
            }
            _ => self.block(replica, "its image is being fetched", None),
        }
    }

    /// Stops and removes a container, or only removes it if it does not run.
    fn end(&mut self, id: &ContainerId, container: &Container) {
        let replica = container.replica.clone();
        let action = match container.task {
            Task::Running { .. } | Task::Created | Task::Unknown => {
                let workload = [&self.orders.current, &self.orders.previous]
                    .into_iter()
                    .filter_map(|orders| orders.workloads.get(&replica.workload))
                    .find(|workload| workload.definition == container.definition);
                Action::Stop(Stop {
                    replica,
                    id: id.clone(),
                    signal: workload.and_then(|workload| workload.stop_signal.clone()),
                    grace: workload.map_or(DEFAULT_GRACE, |workload| workload.grace),
                })
            }
            Task::Stopped(_) | Task::Absent => Action::Remove { replica, id: id.clone() },
        };
        self.plan.actions.push(action);
    }

    /// Forgets images that no order names, once every image of the current orders is there: until
    /// then an older one may still be what keeps a workload going.
    fn forget_images(&mut self) {
        let orders = &self.orders.current;
        let complete = orders.workloads.values().all(|w| self.is_there(&w.container.image));
        if !complete || !self.plan.actions.is_empty() || !self.observed.busy.is_empty() {
            return;
        }
        let needed: BTreeSet<&ImageRef> = [&self.orders.current, &self.orders.previous]
            .into_iter()
            .flat_map(|orders| orders.workloads.values())
            .map(|workload| &workload.container.image)
            .collect();
        let unneeded = self.observed.images.keys().filter(|image| !needed.contains(image));
        let remove = |image: &ImageRef| Action::RemoveImage { image: image.clone() };
        self.plan.actions.extend(unneeded.map(remove));
    }

    fn block(&mut self, replica: &ReplicaId, reason: &str, until: Option<Duration>) {
        let reason = reason.to_owned();
        self.plan.blocked.push(Blocked { replica: replica.clone(), reason, until });
        self.plan.wake_at = self.plan.wake_at.into_iter().chain(until).min();
    }

    fn is_there(&self, image: &ImageRef) -> bool {
        self.observed.images.contains_key(image)
    }

    /// Whether nothing is being done or planned for the replica's workload, and it does not rest.
    fn is_free(&self, replica: &ReplicaId) -> bool {
        let workload = &replica.workload;
        let rests = self.history.failed_ends().any(|failed| {
            failed.replica.workload == *workload && failed.not_before > self.now.monotonic
        });
        !rests
            && !self.observed.busy.contains_key(workload)
            && !self.plan.actions.iter().any(|action| action.workload() == Some(workload))
    }
}

fn runs_as(workload: &Workload, container: &Container) -> bool {
    matches!(container.task, Task::Running { .. }) && container.definition == workload.definition
}

#[cfg(test)]
mod tests;
