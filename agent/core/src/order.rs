//! What workloads wait for: dependencies, and the reverse of them when they go.

use crate::desired::{Dependency, DependencyCondition, Workload};
use crate::name::WorkloadName;
use crate::situation::Situation;

impl<'a> Situation<'a> {
    /// The first thing that a workload waits for, for people; `None` if it may start.
    pub(crate) fn unmet(&self, workload: &Workload) -> Option<String> {
        workload.depends_on.iter().find_map(|dependency| self.unmet_one(dependency))
    }

    /// The first thing for want of which a workload is stopped, for people.
    pub(crate) fn stops_with(&self, workload: &Workload) -> Option<String> {
        let mut bound = workload.depends_on.iter().filter(|dependency| dependency.stop_with);
        bound.find_map(|dependency| self.unmet_one(dependency))
    }

    fn unmet_one(&self, dependency: &Dependency) -> Option<String> {
        let name = &dependency.workload;
        // Of an order of other rules only what could be used may be there.
        let wanted = self.orders.current.workloads.get(name)?;
        if self.history.stopped(name).is_some() {
            return Some(format!("waits for {name}, which was stopped by hand"));
        }
        let target = self.target(wanted);
        let slots = self.slots(wanted, &target);
        let needed = wanted.replicas as usize;
        let count = |met: &dyn Fn(&crate::situation::Slot<'a>) -> bool| {
            slots.iter().filter(|slot| met(slot)).count()
        };
        let (met, what) = match dependency.condition {
            DependencyCondition::Started => {
                let started = count(&|slot| {
                    let holds = slot.holds.map(|holds| holds.workload);
                    holds.is_some_and(|workload| self.has_started(workload, &slot.replica))
                });
                (started, "run")
            }
            DependencyCondition::Healthy => (count(&|slot| slot.ready), "are ready"),
            DependencyCondition::Completed => return self.uncompleted(target.workload),
        };
        (met < needed).then(|| format!("waits for {name}: {met} of {needed} replicas {what}"))
    }

    fn has_started(&self, workload: &Workload, replica: &crate::name::ReplicaId) -> bool {
        workload.pod.containers.iter().all(|container| {
            let id = replica.container(&container.name);
            let there = self.observed.containers.as_ref().and_then(|all| all.get(&id));
            let runs = there.is_some_and(|there| {
                there.definition == workload.definition
                    && matches!(there.task, crate::observed::Task::Running { .. })
            });
            runs || self.is_container_finished(workload, &id)
        })
    }

    /// Why a job has not completed.
    fn uncompleted(&self, job: &Workload) -> Option<String> {
        let name = &job.name;
        for index in 0..job.replicas {
            let replica = crate::name::ReplicaId { workload: name.clone(), index };
            for container in &job.pod.containers {
                let id = replica.container(&container.name);
                let known = self.history.container(&id, &job.definition);
                let ended = known.filter(|known| known.record.is_finished(job.restart));
                match ended.and_then(|known| known.record.last_exit()) {
                    Some(exit) if exit.code == 0 => {}
                    Some(exit) => {
                        let code = exit.code;
                        return Some(format!(
                            "waits for {name}, which failed with exit code {code}"
                        ));
                    }
                    None => return Some(format!("waits for {name} to complete")),
                }
            }
        }
        None
    }

    /// Another workload that goes as well, depended on this one, and is still there: it goes first.
    pub(crate) fn still_depended_on_by(&self, name: &WorkloadName) -> Option<&'a WorkloadName> {
        let gone = |other: &&'a Workload| !self.orders.current.workloads.contains_key(&other.name);
        let mut others = self.orders.previous.workloads.values().filter(gone);
        let goes_first = others.find(|other| {
            other.depends_on.iter().any(|dependency| dependency.workload == *name)
                && self.containers_of_workload(&other.name).next().is_some()
                && !self.history.failed_ends().any(|failed| failed.replica.workload == other.name)
        });
        goes_first.map(|other| &other.name)
    }
}
