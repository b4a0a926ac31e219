//! All that is known, and what follows for one replica: what it is, whether it is ready.

use std::collections::BTreeSet;

use crate::desired::{self, DefinitionHash, Workload};
use crate::history::{History, Now};
use crate::name::{ContainerId, ReplicaId, WorkloadName};
use crate::observed::{Container, Health, Observed, Task};
use crate::orders::{Orders, Target};

/// All that a decision follows from.
#[derive(Clone, Copy, Debug)]
pub struct Situation<'a> {
    /// What is wanted.
    pub orders: &'a Orders,
    /// What exists.
    pub observed: &'a Observed,
    /// What happened.
    pub history: &'a History,
    /// The time.
    pub now: Now,
}

/// A container of a replica.
type There<'a> = (&'a ContainerId, &'a Container);

/// One replica that there is something of, or that did what it had to do.
#[derive(Clone, Debug)]
pub(crate) struct Slot<'a> {
    pub(crate) replica: ReplicaId,
    /// What it is, if that is known.
    pub(crate) holds: Option<Target<'a>>,
    /// Whether it is what it is to be.
    pub(crate) is_new: bool,
    /// Whether there is no container of it.
    pub(crate) empty: bool,
    /// Whether it ran before the agent did, and has yet to say whether it is ready.
    pub(crate) undecided: bool,
    /// Whether all its containers do their work.
    pub(crate) ready: bool,
    /// Whether it counts as one that can be relied on: ready for long enough, and reached by the
    /// ports that it shares.
    pub(crate) available: bool,
}

impl<'a> Situation<'a> {
    pub(crate) fn target(&self, wanted: &'a Workload) -> Target<'a> {
        self.orders.target(wanted, self.observed, self.history)
    }

    /// Every replica of a workload, by index.
    pub(crate) fn slots(&self, wanted: &'a Workload, target: &Target<'a>) -> Vec<Slot<'a>> {
        let name = &wanted.name;
        let mut indices: BTreeSet<u32> = self.finished(wanted, target.workload).collect();
        indices.extend(self.containers_of_workload(name).map(|(_, c)| c.replica.index));
        let first = ReplicaId { workload: name.clone(), index: 0 };
        let of = |replica: &&ReplicaId| replica.workload == *name;
        let pods = self.observed.pods.range(first.clone()..).map(|(replica, _)| replica);
        indices.extend(pods.take_while(of).map(|replica| replica.index));
        let busy = self.observed.busy.range(first..).map(|(replica, _)| replica);
        indices.extend(busy.take_while(of).map(|replica| replica.index));
        let shares = self.shares_ports(wanted);
        let replica = |index| ReplicaId { workload: name.clone(), index };
        indices.into_iter().map(|i| self.slot(wanted, target, replica(i), shares)).collect()
    }

    fn slot(
        &self,
        wanted: &'a Workload,
        target: &Target<'a>,
        replica: ReplicaId,
        shares_ports: bool,
    ) -> Slot<'a> {
        let is = |definition: &DefinitionHash| *definition == target.workload.definition;
        let pod = self.observed.pods.get(&replica);
        // Looked up once: finding them is most of what a decision costs.
        let there: Vec<_> = self.containers_of(&replica).collect();
        let first = there.first().map(|(_, c)| &c.definition);
        let known = first.or(pod.map(|pod| &pod.definition));
        let definition = known.unwrap_or(&target.workload.definition);
        // What runs as ordered stays, though its image may have gone meanwhile.
        let failed = self.history.failed_update(&wanted.name);
        let given_up = failed.is_some_and(|failed| failed.definition == wanted.definition);
        let runs_as_ordered = |c: &Container| {
            c.definition == wanted.definition && matches!(c.task, Task::Running { .. })
        };
        let all = || there.iter().map(|(_, c)| *c);
        let all_new = is(definition) && all().all(|c| is(&c.definition));
        let is_new = all_new || (!given_up && all().any(runs_as_ordered));
        let holds = self.orders.known(&wanted.name, definition);
        let empty = first.is_none() && !self.observed.busy.contains_key(&replica);
        let good = self.history.good(&wanted.name);
        let answered = holds.is_none_or(|holds| self.has_answered(holds.workload, &there));
        // Only what was healthy is taken for ready before it has answered.
        let trusted = answered || good.is_none_or(|good| good == definition);
        let says = holds.is_some_and(|holds| self.is_ready(holds.workload, &replica, &there));
        let (ready, undecided) = (says && trusted, says && !trusted);
        let reached = !shares_ports || self.observed.traffic.leads_to(&replica);
        let proven = || {
            let since = self.history.ready_since(&replica);
            let min_ready = wanted.update.min_ready;
            let long_enough = since.is_some_and(|since| since + min_ready <= self.now.monotonic);
            long_enough && (answered || good == Some(definition))
        };
        let finished = holds.is_some_and(|holds| self.is_finished(holds.workload, &replica));
        let available = finished || (ready && reached && (!is_new || proven()));
        // An index beyond those that there may be is none to stay at.
        let in_place = replica.index < wanted.max_replicas();
        let is_new = is_new && in_place && !self.history.is_stale(&replica);
        Slot { replica, holds, is_new, empty, undecided, ready, available }
    }

    /// Whether the ports of a workload are shared out, also because they were for a replica that is
    /// there.
    pub(crate) fn shares_ports(&self, wanted: &Workload) -> bool {
        let first = ReplicaId { workload: wanted.name.clone(), index: 0 };
        let pods = self.observed.pods.range(first..);
        let mut pods = pods.take_while(|(replica, _)| replica.workload == wanted.name);
        wanted.shares_ports() || pods.any(|(_, pod)| pod.shares_ports)
    }

    /// Whether all containers of a replica do their work, or did it.
    fn is_ready(&self, workload: &Workload, replica: &ReplicaId, there: &[There<'_>]) -> bool {
        let busy = self.observed.busy.get(replica);
        busy.is_none_or(|busy| busy.leaves_running)
            && workload.pod.containers.iter().all(|container| {
                let there = there.iter().find(|(_, c)| c.name == container.name);
                match there.filter(|(_, there)| there.definition == workload.definition) {
                    Some((id, there)) => self.is_container_ready(workload, container, id, there),
                    None => {
                        self.is_container_finished(workload, &replica.container(&container.name))
                    }
                }
            })
    }

    fn is_container_ready(
        &self,
        workload: &Workload,
        container: &desired::Container,
        id: &ContainerId,
        there: &Container,
    ) -> bool {
        match there.task {
            Task::Running { pid } if !container.probes.is_empty() => {
                self.health(id, pid).is_some_and(|health| health.started && health.ready)
            }
            Task::Running { .. } => true,
            _ => self.is_container_finished(workload, id),
        }
    }

    /// Whether the probes of all containers of a replica that have any have been good.
    fn has_answered(&self, workload: &Workload, there: &[There<'_>]) -> bool {
        let mut asked = workload.pod.containers.iter().filter(|c| !c.probes.is_empty());
        asked.all(|container| {
            let there = there.iter().find(|(_, c)| c.name == container.name);
            match there.map(|(id, there)| (*id, there.task)) {
                Some((id, Task::Running { pid })) => self.health(id, pid).is_some_and(|h| h.proven),
                _ => true,
            }
        })
    }

    /// What the probes say of the process that a container is now.
    pub(crate) fn health(&self, id: &ContainerId, pid: u32) -> Option<&'a Health> {
        self.observed.health.get(id).filter(|health| health.pid == pid)
    }

    /// Whether a container did what it had to do, or is not to try again.
    pub(crate) fn is_container_finished(&self, workload: &Workload, id: &ContainerId) -> bool {
        let known = self.history.container(id, &workload.definition);
        known.is_some_and(|known| known.record.is_finished(workload.restart))
    }

    /// The same of all containers of a replica.
    pub(crate) fn is_finished(&self, workload: &Workload, replica: &ReplicaId) -> bool {
        // Without a look at each, which is most of what a decision would cost.
        workload.restart != desired::RestartPolicy::Always
            && workload.pod.containers.iter().all(|container| {
                self.is_container_finished(workload, &replica.container(&container.name))
            })
    }

    /// Indices of finished replicas, of which nothing may be left to see.
    fn finished<'s>(
        &'s self,
        wanted: &Workload,
        workload: &'a Workload,
    ) -> impl Iterator<Item = u32> + use<'s, 'a> {
        let ends = workload.restart != desired::RestartPolicy::Always;
        let indices = if ends { 0..wanted.max_replicas() } else { 0..0 };
        indices.filter(move |index| {
            let replica = ReplicaId { workload: workload.name.clone(), index: *index };
            self.is_finished(workload, &replica)
        })
    }

    /// What exists of one replica.
    pub(crate) fn containers_of<'r>(
        &self,
        replica: &'r ReplicaId,
    ) -> impl Iterator<Item = (&'a ContainerId, &'a Container)> + Clone + use<'a, 'r> {
        let containers = self.observed.containers.as_ref();
        let range = containers.map(|all| all.range(ContainerId::first_of(replica)..));
        range.into_iter().flatten().take_while(move |(_, c)| c.replica == *replica)
    }

    /// What exists of one workload.
    pub(crate) fn containers_of_workload<'w>(
        &self,
        name: &'w WorkloadName,
    ) -> impl Iterator<Item = (&'a ContainerId, &'a Container)> + use<'a, 'w> {
        let containers = self.observed.containers.as_ref();
        let range = containers.map(|all| all.range(ContainerId::first_of_workload(name)..));
        range.into_iter().flatten().take_while(move |(_, c)| c.replica.workload == *name)
    }
}
