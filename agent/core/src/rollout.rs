//! Replacement of one workload's replicas, and the return to what was healthy.
//!
//! In: which replicas there are, which are of the new definition, which can be relied on. Out: which
//! to end and which to begin. Follows from what exists alone, so that an update that was interrupted
//! goes on by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::desired::{self, RestartPolicy, UpdateStrategy, Workload};
use crate::history::{FailedUpdate, History, Known, Now};
use crate::name::{ContainerId, ReplicaId, ResourceName, WorkloadName};
use crate::observed::{Observed, Task};
use crate::orders::Orders;
use crate::situation::{Situation, Slot};

/// A new definition that failed as often in a row before it was ever healthy is given up.
const GIVEN_UP_AFTER: u32 = 3;

/// Which replicas to end and which to begin, by index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Moves {
    pub(crate) retire: BTreeSet<u32>,
    pub(crate) start: Vec<u32>,
}

/// What to do about the replicas of a workload. `may_replace`: what takes the place of old ones could
/// be started.
pub(crate) fn moves(workload: &Workload, slots: &[Slot<'_>], may_replace: bool) -> Moves {
    let wanted = workload.replicas as usize;
    let (new, mut old): (Vec<_>, Vec<_>) = slots.iter().partition(|slot| slot.is_new);
    // May be what serves.
    old.retain(|slot| !slot.undecided);
    let mut moves = Moves::default();
    let surplus = new.len().saturating_sub(wanted);
    // The last ones, and first those that are of no use.
    let mut spare = new.clone();
    spare.retain(|slot| !slot.undecided);
    spare.sort_by_key(|slot| (slot.available, slot.ready, std::cmp::Reverse(slot.replica.index)));
    moves.retire.extend(spare.iter().take(surplus).map(|slot| slot.replica.index));
    match workload.update.strategy {
        UpdateStrategy::BlueGreen => {
            let ready = new.iter().filter(|slot| slot.available).count();
            // Where there were more of the old ones, room must be made first.
            let kept = if ready >= wanted { 0 } else { wanted };
            old.sort_by_key(|slot| {
                (slot.available, slot.ready, std::cmp::Reverse(slot.replica.index))
            });
            let gone = old.len().saturating_sub(kept);
            let gone = old.iter().take(gone).filter(|_| may_replace);
            moves.retire.extend(gone.map(|slot| slot.replica.index));
        }
        UpdateStrategy::Rolling if may_replace => {
            let least = wanted.saturating_sub(workload.update.max_unavailable as usize);
            let most = workload.max_replicas();
            old.sort_by_key(|slot| {
                let index = slot.replica.index;
                (slot.available, slot.ready, index < most, index)
            });
            retire_some(&mut moves, slots, &new, &old, least);
        }
        UpdateStrategy::Rolling => {}
    }
    // What is beyond them goes, and if it cannot, holds up nothing.
    let free = free_indices(slots).take_while(|index| *index < workload.max_replicas());
    moves.start.extend(free.take(wanted.saturating_sub(new.len())));
    moves
}

/// Ends as many old replicas as can be missed, in this order. `least`: as many must be left that can
/// be relied on.
fn retire_some(
    moves: &mut Moves,
    slots: &[Slot<'_>],
    new: &[&Slot<'_>],
    old: &[&Slot<'_>],
    least: usize,
) {
    // Of those there is nothing that could be missed.
    let left = old.iter().filter(|slot| slot.empty && !slot.available);
    moves.retire.extend(left.map(|slot| slot.replica.index));
    let stays = |slot: &&Slot<'_>| !moves.retire.contains(&slot.replica.index);
    let mut there = slots.iter().filter(stays).count();
    let mut available = slots.iter().filter(stays).filter(|slot| slot.available).count();
    // New ones that are not there yet take the place of one each.
    let pending = new.iter().filter(|slot| !slot.available).count();
    for slot in old.iter().filter(|slot| !slot.empty || slot.available) {
        let can_be_missed = match slot.available {
            true => available > least,
            false => there > least + pending,
        };
        if can_be_missed {
            moves.retire.insert(slot.replica.index);
            there -= 1;
            available -= usize::from(slot.available);
        }
    }
}

/// Indices that no replica has, lowest first.
fn free_indices(slots: &[Slot<'_>]) -> impl Iterator<Item = u32> {
    let taken: BTreeSet<u32> = slots.iter().map(|slot| slot.replica.index).collect();
    (0..).filter(move |index| !taken.contains(index))
}

/// The replicas of a workload for people: those there are, and those there should be.
pub fn replicas(situation: &Situation<'_>, workload: &Workload) -> Vec<ReplicaId> {
    let Some(wanted) = situation.orders.current.workloads.get(&workload.name) else {
        return Vec::new();
    };
    let target = situation.target(wanted);
    let slots = situation.slots(wanted, &target);
    let missing = (wanted.replicas as usize).saturating_sub(slots.len());
    let mut indices: Vec<u32> = free_indices(&slots).take(missing).collect();
    indices.extend(slots.iter().map(|slot| slot.replica.index));
    indices.sort_unstable();
    let replica = |index| ReplicaId { workload: workload.name.clone(), index };
    indices.into_iter().map(replica).collect()
}

/// To be called before new orders: a definition of which all replicas are ready just now, and none
/// was ever healthy for long, is good enough to return to.
pub fn settle(orders: &Orders, observed: &Observed, history: &mut History, now: Now) {
    let mut good = Vec::new();
    for wanted in orders.current.workloads.values().filter(|w| history.good(&w.name).is_none()) {
        let situation = Situation { orders, observed, history, now };
        let target = situation.target(wanted);
        let slots = situation.slots(wanted, &target);
        let well = |slot: &Slot<'_>| {
            let holds = slot.holds.map(|holds| &holds.workload.definition);
            slot.ready && holds == Some(&wanted.definition)
        };
        if slots.len() >= wanted.replicas as usize && slots.iter().all(well) {
            good.push(wanted);
        }
    }
    let is_good = |w: &Workload| {
        good.iter().any(|other| other.name == w.name)
            || history.good(&w.name) == Some(&w.definition)
            || history.stopped(&w.name).is_some()
    };
    let situation = Situation { orders, observed, history, now };
    let joined =
        |w: &&Workload| w.unit.as_ref().is_none_or(|unit| situation.members(unit).all(is_good));
    let good: Vec<_> = good.iter().copied().filter(|w| joined(w)).collect();
    for wanted in good {
        history.is_good(&wanted.name, &wanted.definition);
    }
}

/// What was found out about replicas and the definitions that they are of.
struct Found {
    ready: Vec<(ReplicaId, bool)>,
    unready: BTreeSet<ReplicaId>,
    good: Vec<WorkloadName>,
    failed: Vec<(WorkloadName, String)>,
}

/// Learns which replicas are ready, which definitions are good, and which updates failed. Gives the
/// last, with the reason.
pub fn learn(
    orders: &Orders,
    observed: &Observed,
    history: &mut History,
    now: Now,
) -> Vec<(WorkloadName, String)> {
    if observed.containers.is_none() {
        return Vec::new();
    }
    let gone = |replica: &ReplicaId| {
        let there = observed.containers.iter().flat_map(|all| all.values());
        !observed.pods.contains_key(replica)
            && !observed.busy.contains_key(replica)
            && there.into_iter().all(|container| container.replica != *replica)
    };
    let anew: Vec<_> = history.stale().filter(|replica| gone(replica)).cloned().collect();
    anew.iter().for_each(|replica| history.not_stale(replica));
    let first = judge(&Situation { orders, observed, history, now });
    for (replica, ready) in &first.ready {
        history.is_ready(replica, *ready, now);
    }
    history.set_unready(&first.unready, now);
    let ordered = |name: &WorkloadName| &orders.current.workloads[name].definition;
    for name in &first.good {
        history.is_good(name, ordered(name));
    }
    for (name, reason) in &first.failed {
        let (definition, generation) = (ordered(name).clone(), orders.current.generation);
        let reason = reason.clone();
        history.update_failed(name, FailedUpdate { definition, generation, reason });
    }
    first.failed
}

fn judge(situation: &Situation<'_>) -> Found {
    let mut found =
        Found { ready: Vec::new(), unready: BTreeSet::new(), good: Vec::new(), failed: Vec::new() };
    for wanted in situation.orders.current.workloads.values() {
        let target = situation.target(wanted);
        let slots = situation.slots(wanted, &target);
        let known = |slot: &&Slot<'_>| situation.history.ready_since(&slot.replica).is_some();
        let changed = slots.iter().filter(|slot| slot.ready != known(slot));
        found.ready.extend(changed.map(|slot| (slot.replica.clone(), slot.ready)));
        if target.workload.definition != wanted.definition {
            continue;
        }
        let all = slots.len() >= wanted.replicas as usize;
        if all && slots.iter().all(|slot| slot.is_new && slot.available) {
            found.good.push(wanted.name.clone());
        }
        let held = situation.history.stopped(&wanted.name).is_some();
        if !situation.is_part_of_an_update(wanted) || held || situation.stops_with(wanted).is_some()
        {
            continue;
        }
        let unproven: Vec<_> = slots.iter().filter(|slot| slot.is_new && !slot.available).collect();
        found.unready.extend(unproven.iter().map(|slot| slot.replica.clone()));
        let hopeless = unproven.iter().find_map(|slot| situation.hopeless(wanted, slot));
        found.failed.extend(hopeless.map(|reason| (wanted.name.clone(), reason)));
    }
    situation.join_units(&mut found);
    found
}

impl Situation<'_> {
    /// The workloads of a unit.
    fn members(&self, unit: &ResourceName) -> impl Iterator<Item = &Workload> {
        let workloads = self.orders.current.workloads.values();
        workloads.filter(move |workload| workload.unit.as_ref() == Some(unit))
    }

    /// Whether it is of an update, itself or with others of its unit, that can be taken back.
    fn is_part_of_an_update(&self, wanted: &Workload) -> bool {
        let unit = wanted.unit.as_ref().filter(|_| wanted.restart == RestartPolicy::Always);
        let with_others = unit.is_some_and(|unit| self.members(unit).any(|w| self.is_update(w)));
        with_others || self.is_update(wanted)
    }

    /// Workloads of one unit are good together, and taken back together.
    fn join_units(&self, found: &mut Found) {
        let workload = |name: &WorkloadName| &self.orders.current.workloads[name];
        let good: BTreeSet<WorkloadName> = found.good.iter().cloned().collect();
        found.good.retain(|name| {
            let is_good =
                |w: &Workload| good.contains(&w.name) || self.history.stopped(&w.name).is_some();
            workload(name).unit.as_ref().is_none_or(|unit| self.members(unit).all(is_good))
        });
        let mut failed: BTreeMap<WorkloadName, String> = BTreeMap::new();
        for (name, reason) in std::mem::take(&mut found.failed) {
            let others = workload(&name).unit.iter().flat_map(|unit| self.members(unit));
            for other in others.filter(|other| other.name != name && self.is_update(other)) {
                let given_up = self.history.failed_update(&other.name);
                if given_up.is_none_or(|given_up| given_up.definition != other.definition) {
                    let reason = format!("{name}, which is of the same unit: {reason}");
                    failed.entry(other.name.clone()).or_insert(reason);
                }
            }
            if self.is_update(workload(&name)) {
                failed.insert(name, reason);
            }
        }
        found.failed = failed.into_iter().collect();
    }

    /// Whether there is something to return to. A job that failed is not done again as it was before.
    fn is_update(&self, wanted: &Workload) -> bool {
        wanted.restart == RestartPolicy::Always
            && self.orders.good.contains_key(&wanted.name)
            // What breaks after it was good is restarted.
            && self.history.good(&wanted.name) != Some(&wanted.definition)
    }

    /// Why a new replica is given up, for people.
    fn hopeless(&self, wanted: &Workload, slot: &Slot<'_>) -> Option<String> {
        let ids = wanted.pod.containers.iter().map(|c| slot.replica.container(&c.name));
        let known = ids.filter_map(|id| self.history.container(&id, &wanted.definition));
        let broken = known.into_iter().find(|known| known.record.failures >= GIVEN_UP_AFTER);
        if let Some(known) = broken {
            let (times, why) = (known.record.failures, why(known));
            return Some(format!("{}: {why}, {times} times in a row", slot.replica));
        }
        let within = wanted.update.healthy_within;
        let since = self.history.unready_since(&slot.replica)?;
        let late = since + within <= self.now.monotonic && !slot.ready;
        let probe = self.what_probes_say(wanted, &slot.replica);
        let probe = probe.map(|message| format!(": {message}")).unwrap_or_default();
        late.then(|| format!("{}: not ready within {} s{probe}", slot.replica, within.as_secs()))
    }

    /// What is wrong with a replica that runs, for people.
    pub(crate) fn what_probes_say(
        &self,
        workload: &Workload,
        replica: &ReplicaId,
    ) -> Option<String> {
        let containers = &workload.pod.containers;
        containers.iter().find_map(|container| {
            let said = self.what_probes_say_of(container, &replica.container(&container.name))?;
            Some(if containers.len() > 1 { format!("{}: {said}", container.name) } else { said })
        })
    }

    fn what_probes_say_of(
        &self,
        container: &desired::Container,
        id: &ContainerId,
    ) -> Option<String> {
        let there = self.observed.containers.as_ref()?.get(id)?;
        let Task::Running { pid } = there.task else { return None };
        let Some(health) = self.health(id, pid) else {
            let asked = !container.probes.is_empty();
            return asked.then(|| "its probes have not answered yet".into());
        };
        let good = health.started && health.ready;
        if good { None } else { health.message.clone().or(Some("not ready yet".into())) }
    }

    /// When time alone will change what is known of a new replica, monotonic.
    pub(crate) fn matures_at(&self, wanted: &Workload, slot: &Slot<'_>) -> Option<Duration> {
        if !slot.is_new || slot.available {
            return None;
        }
        let proven = self.history.ready_since(&slot.replica).map(|at| at + wanted.update.min_ready);
        let late = || {
            let since = self.history.unready_since(&slot.replica)?;
            self.is_part_of_an_update(wanted).then(|| since + wanted.update.healthy_within)
        };
        let moments = [proven, late()].into_iter().flatten();
        moments.filter(|moment| *moment > self.now.monotonic).min()
    }
}

/// Why a container does not run, for people.
pub(crate) fn why(known: &Known) -> String {
    match (&known.start_error, &known.unhealthy, known.record.last_exit()) {
        (Some(error), ..) => format!("could not be started: {error}"),
        (None, Some(message), _) => format!("ended as unhealthy: {message}"),
        (None, None, Some(exit)) if known.out_of_memory => {
            format!("out of memory, ended with exit code {}", exit.code)
        }
        (None, None, Some(exit)) => format!("ended with exit code {}", exit.code),
        (None, None, None) => "waits after a failure".into(),
    }
}

#[cfg(test)]
mod tests;
