//! Other limits for a container that runs.
//!
//! The kernel is told first and the container's label changed after it, so that what is listed was
//! in force; broken off between the two it is simply done again.

use std::collections::HashMap;

use containerd_client::services::v1::{Container, UpdateTaskRequest};
use coracle_core::desired::Limits;
use coracle_core::name::ContainerId;
use prost_types::Any;

use super::cgroup::Cgroups;
use super::container::{ContainerdRuntime, is_live};
use super::error::RuntimeError;
use super::{labels, resources};

const RESOURCES_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";

const MIB: u64 = 1 << 20;

impl ContainerdRuntime {
    pub(super) async fn adjust(
        &self,
        id: &ContainerId,
        limits: &Limits,
    ) -> Result<(), RuntimeError> {
        let _reservation = self.reserve(id)?;
        let (ours, task) = tokio::try_join!(self.ours(id), self.task(id))?;
        if ours.is_none() || !task.is_some_and(|task| is_live(&task)) {
            return Err(RuntimeError::NotRunning { id: id.clone() });
        }
        self.check_memory(id, limits)?;
        let value = resources::changed(limits, &self.host()).to_string().into_bytes();
        let request = UpdateTaskRequest {
            container_id: id.to_string(),
            resources: Some(Any { type_url: RESOURCES_TYPE.into(), value }),
            annotations: HashMap::new(),
        };
        let updated = self.tasks().update(self.containerd.request(request)).await;
        updated.map_err(|status| RuntimeError::from_status("limit", id, status))?;
        let label = (labels::LIMITS.to_owned(), limits.label());
        let record =
            Container { id: id.to_string(), labels: [label].into(), ..Container::default() };
        self.update(record, &[&format!("labels.{}", labels::LIMITS)]).await
    }

    /// On cgroup v2 the kernel would rather kill than refuse.
    fn check_memory(&self, id: &ContainerId, limits: &Limits) -> Result<(), RuntimeError> {
        let used = self.cgroups.memory_in_use(&Cgroups::path(&self.containerd, id));
        match (used, limits.memory_mib) {
            (Some(used), Some(limit_mib)) if used > limit_mib.saturating_mul(MIB) => {
                let used_mib = used.div_ceil(MIB);
                Err(RuntimeError::MemoryInUse { id: id.clone(), used_mib, limit_mib })
            }
            _ => Ok(()),
        }
    }
}
