//! Workloads that somebody starts, stops, drains or restarts by hand, here or from afar.

use std::collections::BTreeSet;

use coracle_core::command::Changes;
use coracle_core::history::Stopped;
use coracle_core::name::{ReplicaId, WorkloadName};
use coracle_core::record::{Record, RecordId};

use super::EventLoop;
use crate::execute::{Execute, chain};
use crate::status::{Operated, Operation, OperationRefusal};

/// What is to be done to a workload.
pub(super) struct Decided {
    pub(super) name: WorkloadName,
    /// What is said of it, for programs and for people.
    kind: &'static str,
    pub(super) message: String,
    effect: Effect,
}

enum Effect {
    Nothing,
    Stopped(Option<Stopped>),
    Anew(BTreeSet<ReplicaId>),
}

impl<E: Execute> EventLoop<E> {
    /// Does it, or begins to. That a workload is stopped is stored before it counts.
    pub(super) async fn operate(
        &mut self,
        workload: &str,
        operation: Operation,
    ) -> Result<Operated, OperationRefusal> {
        let decided = self.decide(workload, operation)?;
        self.carry_out(decided, Vec::new()).await
    }

    /// What is to be done, or why nothing.
    pub(super) fn decide(
        &mut self,
        workload: &str,
        operation: Operation,
    ) -> Result<Decided, OperationRefusal> {
        let unknown =
            || OperationRefusal::Unknown(format!("the orders name no workload {workload:?}"));
        let name = WorkloadName::parse(workload).map_err(|_| unknown())?;
        if !self.orders.current.workloads.contains_key(&name) {
            return Err(unknown());
        }
        let stopped = self.history.stopped(&name);
        let since = self.clock.now().wall.as_secs();
        let (kind, message, effect) = match (operation, stopped) {
            (Operation::Start, None) => ("", format!("{name} is not stopped"), Effect::Nothing),
            (Operation::Start, Some(_)) => {
                ("started-by-hand", format!("{name} runs again"), Effect::Stopped(None))
            }
            (Operation::Stop | Operation::Drain, Some(_)) => {
                ("", format!("{name} is stopped already"), Effect::Nothing)
            }
            (Operation::Stop, None) => (
                "stopped-by-hand",
                format!("{name} stops, until it is started by hand"),
                Effect::Stopped(Some(Stopped { drained: false, since })),
            ),
            (Operation::Drain, None) => (
                "drained-by-hand",
                format!("{name} drains and stops, until it is started by hand"),
                Effect::Stopped(Some(Stopped { drained: true, since })),
            ),
            (Operation::Restart, Some(_)) => {
                let message = format!("{name} is stopped; start it");
                return Err(OperationRefusal::Conflict(message));
            }
            (Operation::Restart, None) => {
                // Of a job that is done, or of what waits for its image or for another workload,
                // there is nothing.
                let replicas = self.replicas_of(&name);
                match replicas.is_empty() {
                    true => {
                        let message = format!("there is no replica of {name} to be made anew");
                        ("", message, Effect::Nothing)
                    }
                    false => {
                        let message = format!("the replicas of {name} are made anew");
                        ("restarted-by-hand", message, Effect::Anew(replicas))
                    }
                }
            }
        };
        Ok(Decided { name, kind, message, effect })
    }

    /// Does what was decided; `with` is stored in one transaction with what has to be kept of it.
    pub(super) async fn carry_out(
        &mut self,
        decided: Decided,
        with: Changes,
    ) -> Result<Operated, OperationRefusal> {
        let Decided { name, kind, message, effect } = decided;
        let mut changes = with;
        if let Effect::Stopped(stopped) = effect {
            let mut record = self.history.workload_record(&name);
            record.stopped = stopped;
            let id = RecordId::Workload(name.clone());
            changes.push((id, Some(Record::Workload(record))));
        }
        if !changes.is_empty() {
            if let Err(error) = self.store.record(changes).await {
                let error = chain(&error);
                self.store_fails(&error);
                let message = format!("it could not be stored: {error}");
                return Err(OperationRefusal::Failed(message));
            }
            self.store_works();
        }
        match effect {
            Effect::Nothing => return Ok(unchanged(message)),
            Effect::Stopped(stopped) => {
                self.history.set_stopped(&name, stopped);
                if stopped.is_none() {
                    self.history.try_now(&name);
                }
            }
            Effect::Anew(replicas) => {
                self.history.make_anew(replicas);
                self.history.try_now(&name);
            }
        }
        Ok(self.done(kind, message))
    }

    fn done(&mut self, kind: &str, message: String) -> Operated {
        let now = self.clock.now();
        self.happened(now, kind, None, message.clone());
        Operated { message, unchanged: false }
    }

    /// The replicas of which there is anything: of one that waits for its next try there is no
    /// container.
    fn replicas_of(&self, name: &WorkloadName) -> BTreeSet<ReplicaId> {
        let containers = self.observed.containers.iter().flat_map(|all| all.values());
        let replicas = containers.map(|container| &container.replica);
        let replicas = replicas.chain(self.observed.pods.keys());
        replicas.filter(|replica| replica.workload == *name).cloned().collect()
    }
}

fn unchanged(message: String) -> Operated {
    Operated { message, unchanged: true }
}
