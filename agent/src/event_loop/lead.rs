//! What probes say, and where shared ports lead.
//!
//! In: verdicts of probes. Out: which containers are asked, and where ports are to lead. A container
//! that was ready before this agent came is taken for ready until its probes say otherwise, so that
//! the agent's restart takes no work away from it; one that was not is not.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use coracle_core::desired;
use coracle_core::history::Now;
use coracle_core::name::{ContainerId, ReplicaId};
use coracle_core::observed::{Container, Health, Task};
use coracle_core::probe::Before;
use coracle_core::rollout;
use coracle_core::situation::Situation;
use coracle_core::traffic::{Traffic, traffic};
use coracle_protocol::reported::ConditionStatus;

use super::{Done, EventLoop};
use crate::execute::{Asked, Execute, Failure};

/// Pause before another try after ports could not be made to lead where they are to.
const SHARE_AGAIN: Duration = Duration::from_secs(5);

/// The name of the condition.
const PORTS: &str = "shared-ports";

/// What was asked and led last.
#[derive(Debug, Default)]
pub(super) struct Leading {
    asked: Vec<Asked>,
    /// Ports are being made to lead somewhere.
    sharing: bool,
    /// Replicas that no port is to lead to any more since that began.
    withdrawn: BTreeSet<ReplicaId>,
    /// They were, since the agent started.
    shared: bool,
    /// When to try again.
    again_at: Option<Duration>,
}

impl Leading {
    /// When ports that could not be shared are tried again.
    pub(super) fn due(&self) -> Option<Duration> {
        self.again_at.filter(|_| !self.sharing)
    }
}

impl<E: Execute> EventLoop<E> {
    /// Learns which replicas are ready, which definitions are good, which updates failed.
    pub(super) fn learn_of_updates(&mut self, now: Now) {
        let failed = rollout::learn(&self.orders, &self.observed, &mut self.history, now);
        for (workload, reason) in failed {
            let message = format!("the update of {workload} is taken back: {reason}");
            self.happened(now, "rolled-back", None, message);
        }
    }

    pub(super) fn on_probed(&mut self, id: ContainerId, health: Health) {
        let now = self.clock.now();
        let Some(containers) = &self.observed.containers else {
            // Not told again while it stays so; what it is about shows when containerd answers.
            self.observed.health.insert(id, health);
            return;
        };
        let container = containers.get(&id);
        // Of a process that has ended meanwhile, or that is another one by now.
        let Some(container) = container.filter(|c| c.task == Task::Running { pid: health.pid })
        else {
            return;
        };
        let replica = container.replica.clone();
        let ready = health.started && health.ready;
        let known = self.observed.health.get(&id).filter(|known| known.pid == health.pid);
        let was_ready = known.is_some_and(|known| known.started && known.ready);
        if ready != was_ready {
            let reason = health.message.clone().unwrap_or("a probe failed".into());
            let (kind, message) = match ready {
                true => ("ready", "ready".to_owned()),
                false => ("not-ready", format!("not ready: {reason}")),
            };
            if known.is_some() || ready {
                self.happened(now, kind, Some(&replica), message);
            }
        }
        self.observed.health.insert(id, health);
    }

    /// Containers that ran before this agent did are taken for what they were.
    pub(super) fn trust_what_ran(&mut self) {
        let containers = self.observed.containers.iter().flatten();
        for (id, container) in containers {
            let Task::Running { pid } = container.task else { continue };
            let known = self.history.container(id, &container.definition);
            let ours = known.is_some_and(|known| known.was_started);
            let told = self.observed.health.get(id).is_some_and(|health| health.pid == pid);
            if !ours && !told {
                let Before { started, ready, proven } = self.readiness.before(id, pid);
                let live = true;
                let as_it_was = Health { pid, started, live, ready, proven, message: None };
                self.observed.health.insert(id.clone(), as_it_was);
            }
        }
        let there = self.observed.containers.as_ref();
        self.observed.health.retain(|id, _| there.is_some_and(|all| all.contains_key(id)));
    }

    /// Says who is to be asked, and makes shared ports lead where they are to.
    pub(super) fn ask_and_share(&mut self, now: Now) {
        if self.observed.containers.is_none() {
            // What is unknown is left as it is.
            return;
        }
        self.count_on_the_unasked();
        // Before anything leads there, so that a crash is no reason to lead elsewhere.
        self.readiness.keep(&self.observed.health);
        let asked = self.to_be_asked();
        if asked != self.leading.asked {
            self.leading.asked.clone_from(&asked);
            self.hands.ask(asked);
        }
        if self.leading.sharing || self.leading.again_at.is_some_and(|at| at > now.monotonic) {
            return;
        }
        let (orders, observed, history) = (&self.orders, &self.observed, &self.history);
        let wanted = traffic(&Situation { orders, observed, history, now });
        if wanted != self.observed.traffic || !self.leading.shared {
            self.leading.sharing = true;
            self.leading.withdrawn.clear();
            let hands = self.hands.clone();
            self.work.spawn(async move {
                let result = hands.share(wanted.clone()).await;
                Done::Shared(wanted, result)
            });
        }
    }

    /// What is stopped is withdrawn first: whatever is asked for, no port leads there until it is
    /// asked for anew.
    pub(super) fn withdrawn(&mut self, replica: &ReplicaId) {
        self.observed.traffic.withdraw(replica);
        self.leading.withdrawn.insert(replica.clone());
    }

    pub(super) fn on_shared(&mut self, mut traffic: Traffic, result: Result<(), Failure>) {
        let now = self.clock.now();
        self.leading.sharing = false;
        self.leading.withdrawn.iter().for_each(|replica| traffic.withdraw(replica));
        self.leading.shared = true;
        match result {
            Ok(()) => {
                self.leading.again_at = None;
                self.observed.traffic = traffic;
                let message = "shared ports lead where they are to";
                self.condition(PORTS, ConditionStatus::True, "shared", message);
            }
            Err(failure) => {
                self.leading.again_at = Some(now.monotonic + SHARE_AGAIN);
                let message = format!("shared ports do not lead anew: {}", failure.message);
                self.condition(PORTS, ConditionStatus::False, "not-shared", &message);
            }
        }
    }

    /// Every container that runs, its process, and what it is.
    fn all_that_runs(
        &self,
    ) -> impl Iterator<Item = (&ContainerId, u32, &Container, &Arc<desired::Container>)> {
        let containers = self.observed.containers.iter().flatten();
        containers.filter_map(|(id, there)| {
            let Task::Running { pid } = there.task else { return None };
            let workload = self.orders.definition(&there.replica, &there.definition)?;
            let mut all = workload.pod.containers.iter();
            let container = all.find(|container| container.name == there.name)?;
            Some((id, pid, there, container))
        })
    }

    /// What has no probes is ready, and stays so when an order gives it some, until they have failed.
    fn count_on_the_unasked(&mut self) {
        let unasked = self.all_that_runs().filter(|(id, pid, _, container)| {
            let known = self.observed.health.get(*id).filter(|known| known.pid == *pid);
            container.probes.is_empty() && known.is_none_or(|known| !known.ready)
        });
        let (started, live, ready, proven) = (true, true, true, true);
        let good = |pid| Health { pid, started, live, ready, proven, message: None };
        let good: Vec<_> = unasked.map(|(id, pid, ..)| (id.clone(), good(pid))).collect();
        self.observed.health.extend(good);
    }

    /// Every container that runs and has probes.
    fn to_be_asked(&self) -> Vec<Asked> {
        let asked = self.all_that_runs().filter_map(|(id, pid, there, container)| {
            let known = self.observed.health.get(id).filter(|known| known.pid == pid);
            let before = known.map_or(Before::default(), |known| Before {
                started: known.started,
                ready: known.ready,
                proven: known.proven,
            });
            (!container.probes.is_empty()).then(|| Asked {
                replica: there.replica.clone(),
                id: id.clone(),
                pid,
                container: container.clone(),
                before,
            })
        });
        asked.collect()
    }
}
