//! Starting where a dead container is: the way of every restart, so it is short.
//!
//! The record is kept and made to name a new snapshot; the old task is deleted meanwhile, and the
//! old snapshot while the new task is made. An interruption leaves a record that the next start
//! takes over again, and at most one snapshot that nothing names, which containerd collects.

use containerd_client::services::v1::Container;
use containerd_client::types::v1::{Process, Status as TaskStatus};
use coracle_core::name::ContainerId;
use tracing::warn;

use super::container::{ContainerdRuntime, is_live};
use super::error::RuntimeError;
use super::start::{CreateError, Making};

impl ContainerdRuntime {
    /// Starts a container whose id has a record already.
    pub(super) async fn replace(&self, making: &Making<'_>) -> Result<u32, RuntimeError> {
        let id = &making.start.id;
        let (old, task) = tokio::try_join!(self.ours(id), self.task(id))?;
        if let Some(task) = task.as_ref().filter(|task| is_live(task)) {
            return Err(RuntimeError::Live { id: id.clone(), pid: task.pid });
        }
        let old = match old {
            Some((old, _)) if fits(&old, &making.record) => old,
            other => return self.replace_all(making, other.map(|(old, _)| old), task).await,
        };
        let (cleared, mounts) = tokio::join!(self.clear_task(id, task), async {
            let mut record = making.record.clone();
            record.spec = None;
            self.update(record, &["labels", "image", "snapshotkey"]).await?;
            self.set_up(making).await
        });
        cleared?;
        let remove_old = self.remove_snapshot(id, &old.snapshotter, &old.snapshot_key);
        match mounts {
            Ok(mounts) => {
                let (removed, started) = tokio::join!(remove_old, self.run(making, mounts));
                if let Err(error) = removed {
                    warn!(container = %id, %error, "an old snapshot is left to containerd");
                }
                started
            }
            Err(error) => {
                let error = self.undone(making, error).await;
                if let Err(error) = remove_old.await {
                    warn!(container = %id, %error, "an old snapshot is left to containerd");
                }
                Err(error)
            }
        }
    }

    /// The long way, for a record that cannot be kept (another snapshotter or runtime) or that
    /// vanished meanwhile.
    async fn replace_all(
        &self,
        making: &Making<'_>,
        old: Option<Container>,
        task: Option<Process>,
    ) -> Result<u32, RuntimeError> {
        let id = &making.start.id;
        self.clear_task(id, task).await?;
        if let Some(old) = old {
            self.forget(&old).await?;
        }
        match self.create_record(&making.record).await {
            Ok(()) => {}
            Err(CreateError::Exists) => return Err(RuntimeError::Busy { id: id.clone() }),
            Err(CreateError::Failed(error)) => return Err(error),
        }
        match self.set_up(making).await {
            Ok(mounts) => self.run(making, mounts).await,
            Err(error) => Err(self.undone(making, error).await),
        }
    }

    /// Deletes a dead task. One that was made and never started has a process, which waits. Of a
    /// deletion that was broken off containerd keeps a shim and shows no task.
    pub(super) async fn clear_task(
        &self,
        id: &ContainerId,
        task: Option<Process>,
    ) -> Result<(), RuntimeError> {
        if let Some(task) = task.filter(|task| task.status() == TaskStatus::Created) {
            self.kill_now(id, task.pid).await?;
        }
        self.delete_task(id).await
    }
}

/// Whether a record can be kept: containerd lets neither snapshotter nor runtime be changed, nor the
/// runtime's options.
fn fits(old: &Container, new: &Container) -> bool {
    old.snapshotter == new.snapshotter && old.runtime == new.runtime
}
