//! What is wanted: the orders in force, those before, and the definitions to return to.

use std::collections::{BTreeMap, BTreeSet};

use crate::artifact::{ArtifactId, Software};
use crate::desired::{DefinitionHash, Desired, RestartPolicy, Workload};
use crate::history::History;
use crate::name::{ReplicaId, WorkloadName};
use crate::observed::Observed;

/// What is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Orders {
    /// In force.
    pub current: Desired,
    /// Before these. As long as an image of the current orders is not there, the previous
    /// definition of its workload is kept going, also over a cold boot without network.
    pub previous: Desired,
    /// The definition of each workload that last had all its replicas healthy, where the orders in
    /// force have another one.
    pub good: BTreeMap<WorkloadName, Good>,
    /// Other definitions of which there were replicas when these orders came: until they are
    /// replaced it must be known what they are. In memory only.
    pub held: Vec<Good>,
}

/// A definition beside those of the orders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Good {
    /// With everything that its order said of it.
    pub workload: Workload,
    /// Of which order.
    pub generation: u64,
}

/// A definition and the generation it comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target<'a> {
    pub(crate) workload: &'a Workload,
    pub(crate) generation: u64,
}

impl Orders {
    /// Puts new orders into force. What was healthy until now is kept to return to, and what there
    /// is stays known.
    pub fn advance(&mut self, next: Desired, history: &History, observed: &Observed) {
        let mut held: Vec<Good> = Vec::new();
        for container in observed.containers.iter().flat_map(|all| all.values()) {
            let (name, definition) = (&container.replica.workload, &container.definition);
            let is =
                |workload: &Workload| workload.name == *name && workload.definition == *definition;
            let stays = [&next, &self.current].into_iter().any(|orders| {
                orders
                    .workloads
                    .get(name)
                    .is_some_and(|workload| workload.definition == *definition)
            });
            if !stays && !held.iter().any(|held| is(&held.workload)) {
                let known = self.known(name, definition);
                held.extend(known.map(|known| Good {
                    workload: known.workload.clone(),
                    generation: known.generation,
                }));
            }
        }
        let mut good = BTreeMap::new();
        for (name, workload) in &next.workloads {
            let healthy = history.good(name).filter(|healthy| **healthy != workload.definition);
            let known = healthy.and_then(|healthy| self.known(name, healthy));
            if let Some(Target { workload, generation }) = known {
                good.insert(name.clone(), Good { workload: workload.clone(), generation });
            }
        }
        self.good = good;
        self.held = held;
        self.previous = std::mem::replace(&mut self.current, next);
    }

    /// Finds again, after a restart, what there is to return to.
    pub fn find_good(&mut self, kept: &[Desired], history: &History) {
        for (name, workload) in &self.current.workloads {
            let healthy = history.good(name).filter(|healthy| **healthy != workload.definition);
            let Some(healthy) = healthy else { continue };
            let found = [&self.previous].into_iter().chain(kept).find_map(|orders| {
                let known = orders.workloads.get(name)?;
                (known.definition == *healthy)
                    .then(|| Good { workload: known.clone(), generation: orders.generation })
            });
            self.good.extend(found.map(|good| (name.clone(), good)));
        }
    }

    /// Generations of older orders that there is something to return to in.
    pub fn kept_generations(&self) -> BTreeSet<u64> {
        let known = [self.current.generation, self.previous.generation];
        let generations = self.good.values().map(|good| good.generation);
        generations.filter(|generation| !known.contains(generation)).collect()
    }

    /// All definitions that may be held to: those in force, those before, those to return to.
    pub fn workloads(&self) -> impl Iterator<Item = &Workload> {
        let orders = [&self.current, &self.previous].into_iter();
        let ordered = orders.flat_map(|orders| orders.workloads.values());
        ordered.chain(self.good.values().map(|good| &good.workload))
    }

    /// The artifacts that any of these names, or of which there may be replicas.
    pub fn artifacts(&self) -> BTreeSet<&ArtifactId> {
        let held = self.held.iter().map(|held| &held.workload);
        let software = self.workloads().chain(held).flat_map(Workload::software);
        software.filter_map(Software::artifact).map(|artifact| &artifact.id).collect()
    }

    /// The restart policy of a replica with this definition; `None` if the definition is not wanted.
    pub fn policy(
        &self,
        replica: &ReplicaId,
        definition: &DefinitionHash,
    ) -> Option<RestartPolicy> {
        self.definition(replica, definition).map(|workload| workload.restart)
    }

    /// What a replica with this definition is, if it is known.
    pub fn definition(
        &self,
        replica: &ReplicaId,
        definition: &DefinitionHash,
    ) -> Option<&Workload> {
        self.known(&replica.workload, definition).map(|known| known.workload)
    }

    /// A definition of a workload by its hash, if it is known.
    pub(crate) fn known(
        &self,
        name: &WorkloadName,
        definition: &DefinitionHash,
    ) -> Option<Target<'_>> {
        let is_it = |workload: &&Workload| workload.definition == *definition;
        // Nearly always the first: the others are looked up only then.
        for orders in [&self.current, &self.previous] {
            if let Some(workload) = orders.workloads.get(name).filter(is_it) {
                return Some(Target { workload, generation: orders.generation });
            }
        }
        let good = self.good.get(name).into_iter();
        let held = self.held.iter().filter(|held| held.workload.name == *name);
        let mut others = good.chain(held);
        let found = others.find(|other| is_it(&&other.workload))?;
        Some(Target { workload: &found.workload, generation: found.generation })
    }

    /// The definition to hold a workload to now.
    pub(crate) fn target<'a>(
        &'a self,
        wanted: &'a Workload,
        observed: &Observed,
        history: &History,
    ) -> Target<'a> {
        let there =
            |workload: &Workload| workload.software().all(|software| observed.has(software));
        let current = Target { workload: wanted, generation: self.current.generation };
        let failed = history.failed_update(&wanted.name);
        let given_up = failed.is_some_and(|failed| failed.definition == wanted.definition);
        if !given_up && there(wanted) {
            return current;
        }
        let good = self.good.get(&wanted.name);
        let good = good.map(|Good { workload, generation }| (workload, *generation));
        // Stands in, healthy or not.
        let previous = self.previous.workloads.get(&wanted.name).filter(|_| !given_up);
        let previous = previous.map(|workload| (workload, self.previous.generation));
        let mut fallbacks = good.into_iter().chain(previous);
        match fallbacks.find(|(workload, _)| there(workload)) {
            Some((workload, generation)) => Target { workload, generation },
            None => current,
        }
    }
}
