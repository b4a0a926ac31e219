//! Workloads that somebody starts, stops, drains or restarts by hand, here or from afar.

use std::collections::BTreeSet;

use coracle_core::history::Stopped;
use coracle_core::name::{ReplicaId, WorkloadName};
use coracle_core::record::{Record, RecordId};

use super::EventLoop;
use crate::execute::{Execute, chain};
use crate::status::{Operated, Operation, OperationRefusal};

impl<E: Execute> EventLoop<E> {
    /// Does it, or begins to. That a workload is stopped is stored before it counts.
    pub(super) async fn operate(
        &mut self,
        workload: &str,
        operation: Operation,
    ) -> Result<Operated, OperationRefusal> {
        let unknown =
            || OperationRefusal::Unknown(format!("the orders name no workload {workload:?}"));
        let name = WorkloadName::parse(workload).map_err(|_| unknown())?;
        if !self.orders.current.workloads.contains_key(&name) {
            return Err(unknown());
        }
        let stopped = self.history.stopped(&name);
        let now = self.clock.now();
        let since = now.wall.as_secs();
        match (operation, stopped) {
            (Operation::Start, None) => Ok(unchanged(format!("{name} is not stopped"))),
            (Operation::Start, Some(_)) => {
                self.set_stopped(&name, None).await?;
                self.history.try_now(&name);
                Ok(self.done("started-by-hand", format!("{name} runs again")))
            }
            (Operation::Stop | Operation::Drain, Some(_)) => {
                Ok(unchanged(format!("{name} is stopped already")))
            }
            (Operation::Stop, None) => {
                self.set_stopped(&name, Some(Stopped { drained: false, since })).await?;
                let message = format!("{name} stops, until it is started by hand");
                Ok(self.done("stopped-by-hand", message))
            }
            (Operation::Drain, None) => {
                self.set_stopped(&name, Some(Stopped { drained: true, since })).await?;
                let message = format!("{name} drains and stops, until it is started by hand");
                Ok(self.done("drained-by-hand", message))
            }
            (Operation::Restart, Some(_)) => {
                let message = format!("{name} is stopped; start it");
                Err(OperationRefusal::Conflict(message))
            }
            (Operation::Restart, None) => {
                // Of a job that is done, or of what waits for its image or for another workload,
                // there is nothing.
                let replicas = self.replicas_of(&name);
                if replicas.is_empty() {
                    let message = format!("there is no replica of {name} to be made anew");
                    return Ok(unchanged(message));
                }
                self.history.make_anew(replicas);
                self.history.try_now(&name);
                Ok(self.done("restarted-by-hand", format!("the replicas of {name} are made anew")))
            }
        }
    }

    async fn set_stopped(
        &mut self,
        name: &WorkloadName,
        stopped: Option<Stopped>,
    ) -> Result<(), OperationRefusal> {
        let mut record = self.history.workload_record(name);
        record.stopped = stopped;
        let change = (RecordId::Workload(name.clone()), Some(Record::Workload(record)));
        match self.store.record(vec![change]).await {
            Ok(()) => {
                self.store_works();
                self.history.set_stopped(name, stopped);
                Ok(())
            }
            Err(error) => {
                let error = chain(&error);
                self.store_fails(&error);
                Err(OperationRefusal::Failed(format!("it could not be stored: {error}")))
            }
        }
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
