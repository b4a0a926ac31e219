//! What exists: our containers, joined with their tasks.

use std::collections::BTreeMap;
use std::sync::PoisonError;

use containerd_client::services::v1::{ListContainersRequest, ListTasksRequest};
use containerd_client::types::v1::{Process, Status as TaskStatus};
use coracle_core::name::ContainerId;
use coracle_core::observed::{Container, Exit, Task};
use prost_types::Timestamp;
use tracing::warn;

use super::container::ContainerdRuntime;
use super::error::RuntimeError;
use super::labels::{self, Labels};

/// Most containers with malformed labels that are remembered as told of.
const MALFORMED_LIMIT: usize = 64;

impl ContainerdRuntime {
    pub(super) async fn list_ours(&self) -> Result<BTreeMap<ContainerId, Container>, RuntimeError> {
        let (records, tasks) = tokio::join!(self.list_records(), self.list_tasks());
        let (records, mut tasks) = (records?, tasks?);
        let mut containers = BTreeMap::new();
        for (id, labels) in records {
            let task = match tasks.remove(&id) {
                Some(task) => state(&task),
                None => self.unlisted(&id).await?,
            };
            let Labels { replica, name, generation, definition, limits, .. } = labels;
            let container = Container { replica, name, generation, definition, limits, task };
            containers.insert(id, container);
        }
        Ok(containers)
    }

    /// One at a time, because a record carries its whole specification.
    async fn list_records(&self) -> Result<Vec<(ContainerId, Labels)>, RuntimeError> {
        let all = ContainerId::from_listed("containers");
        let failed = |status| RuntimeError::from_status("list", &all, status);
        let filters = vec![format!("labels.\"{}\"", labels::WORKLOAD)];
        let request = self.containerd.request(ListContainersRequest { filters });
        let mut stream = self.containers().list_stream(request).await.map_err(failed)?.into_inner();
        let mut records = Vec::new();
        while let Some(message) = stream.message().await.map_err(failed)? {
            let Some(record) = message.container else { continue };
            let id = ContainerId::from_listed(&record.id);
            match labels::read(&id, &record.labels) {
                Some(labels) => records.push((id, labels)),
                None => self.tell_of_malformed(id),
            }
        }
        Ok(records)
    }

    async fn list_tasks(&self) -> Result<BTreeMap<ContainerId, Process>, RuntimeError> {
        let all = ContainerId::from_listed("tasks");
        let request = self.containerd.request(ListTasksRequest::default());
        let answer = self.tasks().list(request).await;
        let answer = answer.map_err(|status| RuntimeError::from_status("list", &all, status))?;
        let tasks = answer.into_inner().tasks.into_iter();
        Ok(tasks.map(|task| (ContainerId::from_listed(&task.id), task)).collect())
    }

    /// containerd leaves a task out of its list if the shim does not answer; asked for that one it
    /// says so.
    async fn unlisted(&self, id: &ContainerId) -> Result<Task, RuntimeError> {
        match self.task(id).await {
            Ok(None) => Ok(Task::Absent),
            Ok(Some(task)) => Ok(state(&task)),
            Err(error) if error.is_unreachable() => Err(error),
            Err(error) => {
                warn!(container = %id, %error, "the state of a task is not known");
                Ok(Task::Unknown)
            }
        }
    }

    fn tell_of_malformed(&self, id: ContainerId) {
        let mut told = self.malformed.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() < MALFORMED_LIMIT && !told.contains(&id) {
            warn!(container = %id, "container with malformed labels is left alone");
            told.insert(id);
        }
    }
}

fn state(task: &Process) -> Task {
    match task.status() {
        TaskStatus::Created => Task::Created,
        TaskStatus::Running => Task::Running { pid: task.pid },
        TaskStatus::Stopped => Task::Stopped(exit(task.exit_status, task.exited_at.as_ref())),
        TaskStatus::Paused | TaskStatus::Pausing | TaskStatus::Unknown => Task::Unknown,
    }
}

/// How a task ended, from containerd's figures; a time that it does not know is 0.
pub(super) fn exit(code: u32, at: Option<&Timestamp>) -> Exit {
    let nanos = |at: &Timestamp| {
        let seconds = u64::try_from(at.seconds).ok()?;
        let nanos = u64::try_from(at.nanos).ok()?;
        seconds.checked_mul(1_000_000_000)?.checked_add(nanos)
    };
    Exit { code, at_nanos: at.and_then(nanos).unwrap_or(0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_become_nanoseconds() {
        let at = |seconds, nanos| exit(137, Some(&Timestamp { seconds, nanos })).at_nanos;
        assert_eq!(at(1_700_000_000, 123), 1_700_000_000_000_000_123);
        assert_eq!(at(-62_135_596_800, 0), 0, "Go's zero time");
        assert_eq!(at(i64::MAX, 0), 0);
        assert_eq!(exit(1, None), Exit { code: 1, at_nanos: 0 });
    }
}
