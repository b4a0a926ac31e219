//! The one decision: what to do next, given what is wanted, what exists, what happened, and the time.
//!
//! Level-triggered: the plan follows from the state alone, so a crash leaves nothing to resume.
//! Cannot fail: what stands in the way is data in [`Plan::blocked`]. Deliberately not here: how many
//! actions run at once (`execute` limits them), and how anything is done.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use crate::artifact::{ArtifactId, Software};
use crate::desired::{self, Port, Workload};
use crate::history::{History, Now};
use crate::image::ImageRef;
use crate::name::{ContainerId, ContainerName, ReplicaId, WorkloadName};
use crate::observed::{self, Container, Observed, Task};
use crate::orders::{Orders, Target};
use crate::plan::{Action, Adjust, Blocked, Plan, Refresh, Start, Stop, Why};
use crate::rollout;
use crate::situation::{Situation, Slot};

type Containers = BTreeMap<ContainerId, Container>;

/// Stop settings for a container whose workload is no longer known.
const DEFAULT_GRACE: Duration = Duration::from_secs(10);

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
    let situation = Situation { orders, observed, history, now };
    let mut state = Decision { situation, plan };
    state.rest();
    state.remove_unwanted(containers);
    let mut complete = true;
    for workload in orders.current.workloads.values() {
        let all_there = state.fetch(workload);
        complete &= all_there;
        state.keep(workload, all_there);
    }
    if complete {
        state.forget_software(containers);
    }
    state.plan
}

fn block_all(orders: &Orders, plan: &mut Plan) {
    for workload in orders.current.workloads.values() {
        let replica = |index| ReplicaId { workload: workload.name.clone(), index };
        plan.blocked.extend((0..workload.replicas).map(|index| Blocked {
            replica: replica(index),
            container: None,
            reason: "containerd cannot be reached".into(),
            until: None,
        }));
    }
}

struct Decision<'a> {
    situation: Situation<'a>,
    plan: Plan,
}

impl<'a> Deref for Decision<'a> {
    type Target = Situation<'a>;

    fn deref(&self) -> &Situation<'a> {
        &self.situation
    }
}

impl<'a> Decision<'a> {
    /// Ends what no order names: its containers first, then what was around them. What others that
    /// go as well depended on goes last.
    fn remove_unwanted(&mut self, containers: &'a Containers) {
        let orders = self.orders;
        let unwanted =
            |replica: &&ReplicaId| !orders.current.workloads.contains_key(&replica.workload);
        let mut replicas: BTreeSet<&ReplicaId> =
            self.observed.pods.keys().filter(unwanted).collect();
        replicas.extend(containers.values().map(|c| &c.replica).filter(unwanted));
        for replica in replicas {
            if let Some(other) = self.still_depended_on_by(&replica.workload) {
                let reason = format!("waits for {other}, which depended on it, to go first");
                self.block(replica, None, &reason, None);
            } else {
                self.retire(replica);
            }
        }
    }

    /// Says which workloads rest after something about them failed, and when they go on.
    fn rest(&mut self) {
        for failed in self.history.failed_ends() {
            if failed.not_before > self.now.monotonic {
                self.block(&failed.replica, None, &failed.error, Some(failed.not_before));
            }
        }
    }

    /// Fetches the images and artifacts of a workload that are not there. Says whether all are.
    fn fetch(&mut self, workload: &Workload) -> bool {
        let mut all_there = true;
        for software in workload.software() {
            if self.observed.has(software) {
                continue;
            }
            all_there = false;
            let planned = Action::Pull { software: software.clone() };
            if !self.observed.pulling.contains(software)
                && !self.rests(software)
                && !self.plan.actions.contains(&planned)
            {
                self.plan.actions.push(planned);
            }
        }
        all_there
    }

    /// Whether fetching failed and its next try is not due.
    fn rests(&self, software: &Software) -> bool {
        self.history.fetching(software).is_some_and(|tries| tries.not_before > self.now.monotonic)
    }

    /// Brings one workload nearer to its orders, by at most one action for each replica.
    /// `all_there`: so is what it is to be started from.
    fn keep(&mut self, wanted: &'a Workload, all_there: bool) {
        let target = self.situation.target(wanted);
        let slots = self.situation.slots(wanted, &target);
        let stopped = self.history.stopped(&wanted.name).is_some();
        let stops_with = self.stops_with(wanted);
        if stopped || stops_with.is_some() {
            for slot in &slots {
                self.retire(&slot.replica);
            }
            for index in (0..wanted.replicas).filter(|_| !stopped) {
                let replica = ReplicaId { workload: wanted.name.clone(), index };
                self.block(&replica, None, stops_with.as_deref().unwrap_or_default(), None);
            }
            return;
        }
        let is_wanted = std::ptr::eq(target.workload, wanted);
        let startable = match is_wanted {
            true => all_there,
            false => target.workload.software().all(|software| self.observed.has(software)),
        };
        let may_replace = startable && self.unmet(wanted).is_none();
        let moves = rollout::moves(wanted, &slots, may_replace);
        for slot in &slots {
            if !all_there {
                self.say_missing_software(wanted, &slot.replica);
            }
            match moves.retire.contains(&slot.replica.index) {
                true => self.retire(&slot.replica),
                false => self.hold(wanted, &target, slot),
            }
            let matures_at = self.matures_at(wanted, slot);
            self.wake_at(matures_at);
        }
        for index in moves.start {
            let replica = ReplicaId { workload: wanted.name.clone(), index };
            if !all_there {
                self.say_missing_software(wanted, &replica);
            }
            self.begin(&target, &replica);
        }
    }

    fn say_missing_software(&mut self, wanted: &Workload, replica: &ReplicaId) {
        for container in &wanted.pod.containers {
            if !self.observed.has(&container.software) {
                self.wait_for_software(replica, container);
            }
        }
    }

    /// Keeps a replica as it is to be: as ordered, or as it is until its turn comes.
    fn hold(&mut self, wanted: &'a Workload, target: &Target<'a>, slot: &Slot<'a>) {
        let current = Target { workload: wanted, generation: self.orders.current.generation };
        let as_ordered = slot
            .holds
            .is_some_and(|holds| holds.workload.definition == wanted.definition && slot.is_new);
        let definition = match slot.is_new {
            true if as_ordered => Some(current),
            true => Some(*target),
            // Nothing more is known of it than that it is there.
            false => slot.holds,
        };
        if let Some(definition) = definition {
            self.begin(&definition, &slot.replica);
        }
    }

    /// Brings a replica to a definition that what exists of it, if anything does, already has.
    fn begin(&mut self, target: &Target<'a>, replica: &ReplicaId) {
        if !self.is_free(replica) {
            return;
        }
        let definition = &target.workload.definition;
        let pod = self.observed.pods.get(replica);
        let there: Vec<_> = self.containers_of(replica).collect();
        let empty = there.is_empty();
        let stale = pod.is_some_and(|pod| pod.definition != *definition);
        if empty && pod.is_some() && (stale || self.is_finished(target.workload, replica)) {
            return self.clear(replica);
        }
        if let Some((id, other)) = there.iter().find(|(_, c)| c.definition != *definition) {
            return self.end(id, other);
        }
        for container in &target.workload.pod.containers {
            if !self.is_free(replica) {
                return;
            }
            match there.iter().find(|(_, there)| there.name == container.name) {
                None => {
                    let id = replica.container(&container.name);
                    self.start(target, replica, container, id, false);
                }
                Some((id, there)) => self.mend(target, container, id, there),
            }
        }
        if let Some(pod) = pod.filter(|_| self.is_free(replica) && !empty) {
            self.refresh(target.workload, replica, pod);
        }
    }

    /// Ends a replica, the container that was started last first, then takes down what was around
    /// them.
    fn retire(&mut self, replica: &ReplicaId) {
        if !self.is_free(replica) {
            return;
        }
        let known = |container: &Container| {
            let known = self.orders.known(&container.replica.workload, &container.definition);
            let containers = known.map(|known| &known.workload.pod.containers);
            containers.and_then(|all| all.iter().position(|c| c.name == container.name))
        };
        let last = self.containers_of(replica).max_by_key(|(id, container)| {
            (known(container).unwrap_or(usize::MAX), std::cmp::Reverse(*id))
        });
        match last {
            Some((id, container)) => self.end(id, container),
            None if self.observed.pods.contains_key(replica) => self.clear(replica),
            None => {}
        }
    }

    /// Decides about a container that exists under the definition it is to have.
    fn mend(
        &mut self,
        target: &Target<'_>,
        container: &Arc<desired::Container>,
        id: &ContainerId,
        there: &Container,
    ) {
        let replica = &there.replica;
        match there.task {
            Task::Running { pid } => match self.health(id, pid).filter(|health| !health.live) {
                Some(health) => {
                    let message = health.message.clone().unwrap_or("a probe failed".into());
                    self.stop(id, there, Why::Unhealthy(message));
                }
                None if *there.limits != *container.limits.label() => {
                    let (replica, id) = (replica.clone(), id.clone());
                    let adjust = Adjust { replica, id, limits: container.limits };
                    self.plan.actions.push(Action::Adjust(adjust));
                }
                None => {}
            },
            Task::Unknown => {
                let reason = "its task is paused or in an unknown state";
                self.block(replica, Some(&there.name), reason, None);
            }
            // Its shim would hold memory for nothing until it may start. That it ended is only
            // forgotten here once it is known elsewhere: a job must not run twice.
            Task::Stopped(_) if self.must_wait(target.workload, id) => {
                if self.history.is_stored(id) {
                    self.end(id, there);
                }
            }
            Task::Stopped(_) | Task::Absent | Task::Created => {
                let remains = matches!(there.task, Task::Stopped(_));
                self.start(target, replica, container, id.clone(), remains);
            }
        }
    }

    /// Whether a container that does not run stays so for now.
    fn must_wait(&self, workload: &Workload, id: &ContainerId) -> bool {
        self.history.container(id, &workload.definition).is_some_and(|known| {
            known.record.is_finished(workload.restart) || known.not_before > self.now.monotonic
        })
    }

    /// Starts a container, or says why not.
    fn start(
        &mut self,
        target: &Target<'_>,
        replica: &ReplicaId,
        container: &Arc<desired::Container>,
        id: ContainerId,
        remains: bool,
    ) {
        let workload = target.workload;
        if !workload.software().all(|software| self.observed.has(software)) {
            return;
        }
        if let Some(holder) = self.holder_of_a_port(workload) {
            let reason = format!("{holder} has not given up one of its ports yet");
            return self.block(replica, Some(&container.name), &reason, None);
        }
        if let Some(holder) = self.holder_of_a_coordinate(workload, replica) {
            let reason = format!("{holder} still stands at its coordinate");
            return self.block(replica, Some(&container.name), &reason, None);
        }
        if let Some(known) = self.history.container(&id, &workload.definition) {
            if known.record.is_finished(workload.restart) {
                return;
            }
            if known.not_before > self.now.monotonic {
                let (reason, until) = (rollout::why(known), Some(known.not_before));
                return self.block(replica, Some(&container.name), &reason, until);
            }
        }
        if let Some(reason) = self.waits_for_others(workload, replica, &id) {
            return self.block(replica, Some(&container.name), &reason, None);
        }
        self.plan.actions.push(Action::Start(Start {
            replica: replica.clone(),
            id,
            generation: target.generation,
            definition: workload.definition.clone(),
            pod: Arc::clone(&workload.pod),
            container: Arc::clone(container),
            shares_ports: self.shares_ports_of(workload),
            remains,
        }));
    }

    /// Whether ports lead to a replica of this definition as they are shared out: it may have fewer
    /// replicas by its own order than are ordered now.
    fn shares_ports_of(&self, workload: &Workload) -> bool {
        let wanted = self.orders.current.workloads.get(&workload.name).unwrap_or(workload);
        wanted.may_be_several() && workload.has_pod_ports()
    }

    /// What a replica waits for before its first start. One that ends later does not wait again.
    fn waits_for_others(
        &self,
        workload: &Workload,
        replica: &ReplicaId,
        id: &ContainerId,
    ) -> Option<String> {
        let known = self.history.container(id, &workload.definition);
        let was_started = known.is_some_and(|known| known.was_started);
        let runs = |(_, c): (&ContainerId, &Container)| matches!(c.task, Task::Running { .. });
        let begun = was_started || self.containers_of(replica).any(runs);
        let wanted = self.orders.current.workloads.get(&workload.name);
        wanted.filter(|_| !begun).and_then(|wanted| self.unmet(wanted))
    }

    /// Another workload whose pod still has a port that this one is to have, by its earlier
    /// definition.
    fn holder_of_a_port(&self, workload: &Workload) -> Option<&'a WorkloadName> {
        let wants = |port: &Port| {
            let same = |own: &Port| (own.protocol, own.host) == (port.protocol, port.host);
            workload.pod.ports.iter().any(same)
        };
        let held = |(replica, there): (&'a ReplicaId, &observed::Pod)| {
            let made_for = self.orders.known(&replica.workload, &there.definition)?.workload;
            let holds = replica.workload != workload.name && made_for.pod.ports.iter().any(wants);
            holds.then_some(&replica.workload)
        };
        if workload.pod.ports.is_empty() { None } else { self.observed.pods.iter().find_map(held) }
    }

    /// A replica of another workload that still has the runtime directory that this one is to have.
    fn holder_of_a_coordinate(
        &self,
        workload: &Workload,
        replica: &ReplicaId,
    ) -> Option<&'a ReplicaId> {
        let wanted = workload.pod.native.as_ref()?.coordinate.of_replica(replica.index);
        let containers = self.observed.containers.as_ref()?.values();
        let held = |there: &&'a Container| {
            let known = self.orders.known(&there.replica.workload, &there.definition);
            let native = known.and_then(|known| known.workload.pod.native.as_ref());
            let stands = |native: &desired::Native| {
                native.coordinate.of_replica(there.replica.index) == wanted
            };
            there.replica.workload != replica.workload && native.is_some_and(stands)
        };
        containers.into_iter().find(held).map(|there| &there.replica)
    }

    /// Brings what is around a replica's containers to what is ordered, if it is not.
    fn refresh(&mut self, workload: &Workload, replica: &ReplicaId, there: &observed::Pod) {
        let pod = &workload.pod;
        if there.in_place != pod.in_place || (pod.identity.is_some() && !there.serves_identity) {
            let (replica, definition) = (replica.clone(), workload.definition.clone());
            let refresh = Refresh { replica, definition, pod: Arc::clone(pod) };
            self.plan.actions.push(Action::Refresh(refresh));
        }
    }

    fn clear(&mut self, replica: &ReplicaId) {
        self.plan.actions.push(Action::Clear { replica: replica.clone() });
    }

    fn wait_for_software(&mut self, replica: &ReplicaId, container: &desired::Container) {
        let software = &container.software;
        let kind = software.kind();
        match self.history.fetching(software) {
            Some(tries) if self.rests(software) => {
                let reason = format!("{kind} {software} could not be fetched: {}", tries.error);
                self.block(replica, Some(&container.name), &reason, Some(tries.not_before));
            }
            _ => {
                let reason = format!("its {kind} is being fetched");
                self.block(replica, Some(&container.name), &reason, None);
            }
        }
    }

    /// Stops and removes a container, or only removes it if it does not run.
    fn end(&mut self, id: &ContainerId, container: &Container) {
        match container.task {
            // Whoever paused it, or whatever it is, knows better.
            Task::Unknown
                if self.orders.current.workloads.contains_key(&container.replica.workload) =>
            {
                let reason = "its task is paused or in an unknown state";
                self.block(&container.replica, Some(&container.name), reason, None);
            }
            Task::Running { .. } | Task::Created | Task::Unknown => {
                self.stop(id, container, Why::Unwanted);
            }
            Task::Stopped(_) | Task::Absent => {
                let (replica, id) = (container.replica.clone(), id.clone());
                self.plan.actions.push(Action::Remove { replica, id });
            }
        }
    }

    fn stop(&mut self, id: &ContainerId, container: &Container, why: Why) {
        let replica = &container.replica;
        let known = self.orders.known(&replica.workload, &container.definition);
        let stop = known.map(|known| &known.workload.stop);
        let runs = |(_, c): (&ContainerId, &Container)| matches!(c.task, Task::Running { .. });
        // Drained once, and only what does its work.
        let all = known.map_or(0, |known| known.workload.pod.containers.len());
        let drains = why == Why::Unwanted
            && self.containers_of(replica).filter(|one| runs(*one)).count() == all
            && self.history.stopped(&replica.workload).is_none_or(|stopped| stopped.drained);
        let hook = stop.and_then(|stop| stop.pre_stop.as_ref());
        self.plan.actions.push(Action::Stop(Stop {
            replica: replica.clone(),
            id: id.clone(),
            why,
            drain: stop.filter(|_| drains).map_or(Duration::ZERO, |stop| stop.drain),
            pre_stop: hook.filter(|h| h.container == container.name).map(|h| h.check.clone()),
            signal: stop.and_then(|stop| stop.signal.clone()),
            grace: stop.map_or(DEFAULT_GRACE, |stop| stop.grace),
        }));
    }

    /// Forgets images and artifacts that no order names. All of the current orders must be there:
    /// until then an older one may still be what keeps a workload going.
    fn forget_software(&mut self, containers: &Containers) {
        if !self.plan.actions.is_empty() || !self.observed.busy.is_empty() {
            return;
        }
        let software = self.orders.workloads().flat_map(Workload::software);
        let needed: BTreeSet<&ImageRef> = software.filter_map(Software::image).collect();
        let unneeded = self.observed.images.keys().filter(|image| !needed.contains(image));
        let remove = |image: &ImageRef| Action::RemoveImage { image: image.clone() };
        self.plan.actions.extend(unneeded.map(remove));
        // Something may run of which it is not known what it was started from.
        let known = |c: &Container| self.orders.known(&c.replica.workload, &c.definition).is_some();
        if containers.values().all(known) {
            let needed = self.orders.artifacts();
            let unneeded = self.observed.artifacts.iter();
            let unneeded = unneeded.filter(|(id, there)| !there.by_hand && !needed.contains(*id));
            let remove =
                |(id, _): (&ArtifactId, _)| Action::RemoveArtifact { artifact: id.clone() };
            self.plan.actions.extend(unneeded.map(remove));
        }
    }

    fn block(
        &mut self,
        replica: &ReplicaId,
        container: Option<&ContainerName>,
        reason: &str,
        until: Option<Duration>,
    ) {
        let (replica, reason) = (replica.clone(), reason.to_owned());
        self.plan.blocked.push(Blocked { replica, container: container.cloned(), reason, until });
        self.wake_at(until);
    }

    fn wake_at(&mut self, at: Option<Duration>) {
        self.plan.wake_at = self.plan.wake_at.into_iter().chain(at).min();
    }

    /// Whether nothing is being done or planned for the replica, and it does not rest.
    fn is_free(&self, replica: &ReplicaId) -> bool {
        let rests = self
            .history
            .failed_ends()
            .any(|failed| failed.replica == *replica && failed.not_before > self.now.monotonic);
        !rests
            && !self.observed.busy.contains_key(replica)
            && !self.plan.actions.iter().any(|action| action.replica() == Some(replica))
    }
}

#[cfg(test)]
mod tests;
