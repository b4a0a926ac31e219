//! The runtime that is containerd: the single requests that starting, stopping and listing are put
//! together from, each with its answer classified.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::snapshots::RemoveSnapshotRequest;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::{
    Container, DeleteContainerRequest, DeleteTaskRequest, GetContainerRequest, GetRequest,
    KillRequest, ResumeTaskRequest, WaitRequest,
};
use containerd_client::tonic::transport::Channel;
use containerd_client::tonic::{Code, Status};
use containerd_client::types::v1::{Process, Status as TaskStatus};
use coracle_core::desired::Limits;
use coracle_core::name::ContainerId;
use coracle_core::observed;
use coracle_core::plan::{Start, Stop};
use tokio::time::timeout;

use super::cgroup::Cgroups;
use super::error::RuntimeError;
use super::exec::Executions;
use super::labels::{self, Labels};
use super::oci::Host;
use super::surroundings::Surroundings;
use super::{Root, Runtime};
use crate::containerd::Containerd;

pub(super) const SIGKILL: u32 = 9;

/// From SIGKILL until the process must be gone.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// Containers through containerd.
#[derive(Clone, Debug)]
pub struct ContainerdRuntime {
    pub(super) containerd: Containerd,
    pub(super) cgroups: Cgroups,
    busy: Arc<Mutex<BTreeSet<ContainerId>>>,
    /// Containers whose labels were found wrong, so that each is told of once.
    pub(super) malformed: Arc<Mutex<BTreeSet<ContainerId>>>,
    pub(super) executions: Arc<Executions>,
}

/// Keeps other operations off one container.
#[derive(Debug)]
pub(super) struct Reservation {
    id: ContainerId,
    busy: Arc<Mutex<BTreeSet<ContainerId>>>,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

impl ContainerdRuntime {
    /// A runtime on this connection. Asks containerd nothing yet.
    pub fn new(containerd: Containerd) -> Self {
        Self {
            containerd,
            cgroups: Cgroups::look(),
            busy: Arc::default(),
            malformed: Arc::default(),
            executions: Arc::default(),
        }
    }

    pub(super) fn host(&self) -> Host {
        Host {
            cgroup_v2: self.cgroups.unified,
            pids_limit: self.cgroups.limits_pids(),
            swap_limit: self.cgroups.limits_swap(),
            resolv_conf: Path::new("/etc/resolv.conf").is_file(),
            hosts: Path::new("/etc/hosts").is_file(),
            arch: std::env::consts::ARCH,
        }
    }

    pub(super) fn reserve(&self, id: &ContainerId) -> Result<Reservation, RuntimeError> {
        let free = self.busy.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone());
        if free {
            Ok(Reservation { id: id.clone(), busy: self.busy.clone() })
        } else {
            Err(RuntimeError::Busy { id: id.clone() })
        }
    }

    pub(super) fn tasks(&self) -> TasksClient<Channel> {
        TasksClient::new(self.containerd.channel())
    }

    pub(super) fn containers(&self) -> ContainersClient<Channel> {
        ContainersClient::new(self.containerd.channel())
    }

    pub(super) fn snapshots(&self) -> SnapshotsClient<Channel> {
        SnapshotsClient::new(self.containerd.channel())
    }

    /// The record and labels of our container `id`; `None` if there is no container.
    pub(super) async fn ours(
        &self,
        id: &ContainerId,
    ) -> Result<Option<(Container, Labels)>, RuntimeError> {
        let request = self.containerd.request(GetContainerRequest { id: id.to_string() });
        let answer = found(self.containers().get(request).await);
        let answer = answer.map_err(|s| RuntimeError::from_status("look up", id, s))?;
        let Some(record) = answer.and_then(|answer| answer.into_inner().container) else {
            return Ok(None);
        };
        match labels::read(id, &record.labels) {
            Some(labels) => Ok(Some((record, labels))),
            None => Err(RuntimeError::Foreign { id: id.clone() }),
        }
    }

    /// The task of a container, if it has one.
    pub(super) async fn task(&self, id: &ContainerId) -> Result<Option<Process>, RuntimeError> {
        let request = GetRequest { container_id: id.to_string(), exec_id: String::new() };
        let answer = found(self.tasks().get(self.containerd.request(request)).await);
        let answer = answer.map_err(|s| RuntimeError::from_status("look up", id, s))?;
        Ok(answer.and_then(|answer| answer.into_inner().process))
    }

    /// Sends a signal to the main process; one that has ended is no error.
    pub(super) async fn kill(&self, id: &ContainerId, signal: u32) -> Result<(), RuntimeError> {
        let container_id = id.to_string();
        let request = KillRequest { container_id, exec_id: String::new(), signal, all: false };
        let answer = found(self.tasks().kill(self.containerd.request(request)).await);
        answer.map(drop).map_err(|s| RuntimeError::from_status("signal", id, s))
    }

    pub(super) async fn resume(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let request = ResumeTaskRequest { container_id: id.to_string() };
        let answer = found(self.tasks().resume(self.containerd.request(request)).await);
        answer.map(drop).map_err(|s| RuntimeError::from_status("resume", id, s))
    }

    /// Waits for the main process to end; false if it has not within `limit`.
    pub(super) async fn ended(
        &self,
        id: &ContainerId,
        limit: Duration,
    ) -> Result<bool, RuntimeError> {
        let request = WaitRequest { container_id: id.to_string(), exec_id: String::new() };
        let mut tasks = self.tasks();
        let waiting = tasks.wait(self.containerd.endless(request));
        let Ok(answer) = timeout(limit, waiting).await else { return Ok(false) };
        found(answer).map_err(|s| RuntimeError::from_status("wait for", id, s))?;
        Ok(true)
    }

    /// SIGKILL, and the end.
    pub(super) async fn kill_now(&self, id: &ContainerId, pid: u32) -> Result<(), RuntimeError> {
        self.kill(id, SIGKILL).await?;
        if self.ended(id, KILL_LIMIT).await? {
            Ok(())
        } else {
            Err(RuntimeError::Unkillable { id: id.clone(), pid })
        }
    }

    /// Deletes a task that does not run; none is no error.
    pub(super) async fn delete_task(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let request = DeleteTaskRequest { container_id: id.to_string() };
        let answer = found(self.tasks().delete(self.containerd.request(request)).await);
        answer.map(drop).map_err(|s| RuntimeError::from_status("delete the task of", id, s))
    }

    /// Deletes a container's record; none is no error.
    pub(super) async fn delete_record(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let request = DeleteContainerRequest { id: id.to_string() };
        let answer = found(self.containers().delete(self.containerd.request(request)).await);
        answer.map(drop).map_err(|s| RuntimeError::from_status("delete", id, s))
    }

    /// Removes a container's snapshot; none is no error.
    pub(super) async fn remove_snapshot(
        &self,
        id: &ContainerId,
        snapshotter: &str,
        key: &str,
    ) -> Result<(), RuntimeError> {
        if key.is_empty() {
            return Ok(());
        }
        let request = RemoveSnapshotRequest { snapshotter: snapshotter.into(), key: key.into() };
        let answer = found(self.snapshots().remove(self.containerd.request(request)).await);
        answer.map(drop).map_err(|s| RuntimeError::from_status("remove the snapshot of", id, s))
    }
}

/// Whether a task may have a process that does something.
pub(super) fn is_live(task: &Process) -> bool {
    !matches!(task.status(), TaskStatus::Stopped | TaskStatus::Created)
}

/// "Not found" as `None`.
pub(super) fn found<T>(answer: Result<T, Status>) -> Result<Option<T>, Status> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(status) if status.code() == Code::NotFound => Ok(None),
        Err(status) => Err(status),
    }
}

impl Runtime for ContainerdRuntime {
    async fn list(&self) -> Result<BTreeMap<ContainerId, observed::Container>, RuntimeError> {
        self.list_ours().await
    }

    async fn start(
        &self,
        start: &Start,
        root: &Root,
        surroundings: &Surroundings,
    ) -> Result<u32, RuntimeError> {
        self.make_and_start(start, root, surroundings).await
    }

    async fn clear_dead(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let _reservation = self.reserve(id)?;
        match self.ours(id).await? {
            // Of what runs it is refused.
            Some(_) => self.delete_task(id).await,
            None => Ok(()),
        }
    }

    async fn stop(&self, stop: &Stop) -> Result<(), RuntimeError> {
        self.stop_and_remove(stop).await
    }

    async fn remove(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        self.remove_dead(id).await
    }

    async fn set_limits(&self, id: &ContainerId, limits: &Limits) -> Result<(), RuntimeError> {
        self.adjust(id, limits).await
    }

    async fn exec(
        &self,
        id: &ContainerId,
        command: &[String],
        limit: Duration,
    ) -> Result<u32, RuntimeError> {
        self.run_inside(id, command, limit).await
    }
}
