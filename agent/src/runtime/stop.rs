//! Ending and removing one container.

use containerd_client::services::v1::Container;
use containerd_client::types::v1::{Process, Status as TaskStatus};
use coracle_core::name::ContainerId;
use coracle_core::plan::Stop;
use tracing::warn;

use super::container::{ContainerdRuntime, is_live};
use super::error::RuntimeError;
use super::signal;

const SIGTERM: u32 = 15;

impl ContainerdRuntime {
    pub(super) async fn stop_and_remove(&self, stop: &Stop) -> Result<(), RuntimeError> {
        let id = &stop.id;
        let _reservation = self.reserve(id)?;
        let (ours, task) = tokio::try_join!(self.ours(id), self.task(id))?;
        let Some((record, labels)) = ours else { return Ok(()) };
        if let Some(task) = task.as_ref().filter(|task| is_live(task)) {
            let signal = signal_number(stop, labels.stop_signal.as_deref())?;
            self.end(stop, signal, task).await?;
        }
        self.dismantle(id, &record, task).await
    }

    pub(super) async fn remove_dead(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let _reservation = self.reserve(id)?;
        let (ours, task) = tokio::try_join!(self.ours(id), self.task(id))?;
        let Some((record, _)) = ours else { return Ok(()) };
        match task {
            Some(task) if is_live(&task) => {
                Err(RuntimeError::Live { id: id.clone(), pid: task.pid })
            }
            task => self.dismantle(id, &record, task).await,
        }
    }

    /// Asks the process to end, and makes it after the grace period.
    async fn end(&self, stop: &Stop, signal: u32, task: &Process) -> Result<(), RuntimeError> {
        let id = &stop.id;
        if matches!(task.status(), TaskStatus::Paused | TaskStatus::Pausing) {
            // A frozen process takes no signal, not even SIGKILL.
            self.resume(id).await?;
        }
        self.kill(id, signal).await?;
        if !self.ended(id, stop.grace).await? {
            warn!(container = %id, "process did not end in its grace period and is killed");
            self.kill_now(id, task.pid).await?;
        }
        Ok(())
    }

    async fn dismantle(
        &self,
        id: &ContainerId,
        record: &Container,
        task: Option<Process>,
    ) -> Result<(), RuntimeError> {
        self.clear_task(id, task).await?;
        self.forget(record).await
    }
}

/// The order's signal, or the image's, or SIGTERM. A wrong one of the image's is nobody's fault here
/// and must not keep the container running.
fn signal_number(stop: &Stop, images: Option<&str>) -> Result<u32, RuntimeError> {
    let Some(ordered) = &stop.signal else {
        return Ok(images.and_then(signal::number).unwrap_or(SIGTERM));
    };
    let unknown = || RuntimeError::Signal { id: stop.id.clone(), signal: ordered.clone() };
    signal::number(ordered).ok_or_else(unknown)
}
