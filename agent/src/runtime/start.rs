//! Making and starting one container.
//!
//! The record comes first and names the snapshot to be, so that garbage collection spares it; then
//! the snapshot; then the specification, which needs the user's ids from the snapshot; then the
//! task. What is under the id already is taken over by `remains`.

use containerd_client::services::v1::container::Runtime;
use containerd_client::services::v1::snapshots::PrepareSnapshotRequest;
use containerd_client::services::v1::{
    Container, CreateContainerRequest, CreateTaskRequest, StartRequest, UpdateContainerRequest,
};
use containerd_client::tonic::Code;
use containerd_client::types::Mount;
use coracle_core::name::ContainerId;
use coracle_core::plan::Start;
use prost_types::{Any, FieldMask};
use ring::rand::{SecureRandom as _, SystemRandom};
use tracing::warn;

use super::Root;
use super::cgroup::Cgroups;
use super::container::ContainerdRuntime;
use super::devices;
use super::error::{ImageProblem, RuntimeError};
use super::labels;
use super::oci::{self, ImageConfig, Parts};
use super::rootfs::Layers;
use super::seccomp;
use super::surroundings::Surroundings;
use super::user::{self, Ids};
use crate::containerd::LocalImage;

const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

/// One start under way: what it was asked for and the record that it makes.
#[derive(Debug)]
pub(super) struct Making<'a> {
    pub(super) start: &'a Start,
    root: &'a Root,
    surroundings: &'a Surroundings,
    config: ImageConfig,
    /// With a specification that is empty until the snapshot is there.
    pub(super) record: Container,
}

impl ContainerdRuntime {
    pub(super) async fn make_and_start(
        &self,
        start: &Start,
        root: &Root,
        surroundings: &Surroundings,
    ) -> Result<u32, RuntimeError> {
        let _reservation = self.reserve(&start.id)?;
        let making = self.making(start, root, surroundings)?;
        let mounts = match self.create_record(&making.record).await {
            Ok(()) => self.set_up(&making).await,
            Err(CreateError::Exists) => return self.replace(&making).await,
            Err(CreateError::Failed(error)) => return Err(error),
        };
        match mounts {
            Ok(mounts) => self.run(&making, mounts).await,
            Err(error) => Err(self.undone(&making, error).await),
        }
    }

    fn making<'a>(
        &self,
        start: &'a Start,
        root: &'a Root,
        surroundings: &'a Surroundings,
    ) -> Result<Making<'a>, RuntimeError> {
        let (config, name, snapshotter) = match root {
            Root::Image(image) => {
                let problem = |source| image_problem(start, source);
                let config = ImageConfig::parse(&image.config).map_err(problem)?;
                (config, image.reference.to_string(), self.containerd.snapshotter())
            }
            // containerd keeps nothing of it, so nothing of it is named.
            Root::Native(native) => (native.config(), String::new(), ""),
        };
        let record = Container {
            id: start.id.to_string(),
            labels: labels::write(start, config.stop_signal.as_deref()),
            image: name,
            runtime: Some(Runtime {
                name: self.containerd.runtime().into(),
                options: surroundings.runtime_options.clone(),
            }),
            spec: Some(Any { type_url: SPEC_TYPE.into(), value: b"{}".into() }),
            snapshotter: snapshotter.into(),
            snapshot_key: match snapshotter {
                "" => String::new(),
                _ => format!("{}.{}", start.id, random()),
            },
            ..Container::default()
        };
        Ok(Making { start, root, surroundings, config, record })
    }

    pub(super) async fn create_record(&self, record: &Container) -> Result<(), CreateError> {
        let id = ContainerId::from_listed(&record.id);
        let request = CreateContainerRequest { container: Some(record.clone()) };
        match self.containers().create(self.containerd.request(request)).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::AlreadyExists => Err(CreateError::Exists),
            Err(status) => {
                Err(CreateError::Failed(RuntimeError::from_status("create", &id, status)))
            }
        }
    }

    /// Prepares the snapshot of a record that exists and writes the specification into it.
    pub(super) async fn set_up(&self, making: &Making<'_>) -> Result<Vec<Mount>, RuntimeError> {
        let Making { start, root, surroundings, config, record } = making;
        let (id, host) = (&start.id, self.host());
        // Before anything is made that would have to be removed again.
        let devices = devices::look_up(&surroundings.devices)
            .map_err(|source| RuntimeError::Device { id: id.clone(), source })?;
        let seccomp = seccomp::of(&start.container, surroundings.seccomp.as_deref(), host.arch)
            .map_err(|source| RuntimeError::Seccomp { id: id.clone(), source })?;
        let problem = |source| image_problem(start, source);
        let user = config.user(&start.container);
        let (mounts, ids, native) = match root {
            Root::Image(image) => {
                let mounts = self.prepare(making, image).await?;
                let ids = ids(user, &mounts).map_err(problem)?;
                (mounts, ids, None)
            }
            Root::Native(native) => {
                (native.rootfs(), user::of_gateway(user).map_err(problem)?, Some(native))
            }
        };
        let parts = Parts {
            start,
            image: config,
            native,
            surroundings,
            devices: &devices,
            seccomp: seccomp.as_ref(),
            ids: &ids,
            cgroup: &Cgroups::path(&self.containerd, id),
            host: &host,
        };
        let spec = oci::spec(parts).map_err(problem)?;
        let value = spec.to_string().into_bytes();
        let spec = Some(Any { type_url: SPEC_TYPE.into(), value });
        let record = Container { id: record.id.clone(), spec, ..Container::default() };
        self.update(record, &["spec"]).await?;
        Ok(mounts)
    }

    pub(super) async fn update(
        &self,
        record: Container,
        fields: &[&str],
    ) -> Result<(), RuntimeError> {
        let id = ContainerId::from_listed(&record.id);
        let paths = fields.iter().map(|&field| field.to_owned()).collect();
        let request = UpdateContainerRequest {
            container: Some(record),
            update_mask: Some(FieldMask { paths }),
        };
        let answer = self.containers().update(self.containerd.request(request)).await;
        answer.map(drop).map_err(|status| RuntimeError::from_status("update", &id, status))
    }

    async fn prepare(
        &self,
        making: &Making<'_>,
        image: &LocalImage,
    ) -> Result<Vec<Mount>, RuntimeError> {
        let Making { start, record, .. } = making;
        let request = PrepareSnapshotRequest {
            snapshotter: record.snapshotter.clone(),
            key: record.snapshot_key.clone(),
            parent: image.chain_id.clone().unwrap_or_default(),
            labels: record.labels.clone(),
        };
        match self.snapshots().prepare(self.containerd.request(request)).await {
            Ok(answer) => Ok(answer.into_inner().mounts),
            Err(status) if status.code() == Code::NotFound && image.chain_id.is_some() => {
                Err(RuntimeError::ImageMissing { image: image.reference.clone() })
            }
            Err(status) => {
                Err(RuntimeError::from_status("prepare the snapshot of", &start.id, status))
            }
        }
    }

    /// Makes and starts the task of a container that is set up.
    pub(super) async fn run(
        &self,
        making: &Making<'_>,
        rootfs: Vec<Mount>,
    ) -> Result<u32, RuntimeError> {
        let id = &making.start.id;
        let container_id = id.to_string();
        let output = making.surroundings.log.clone().unwrap_or_default();
        let request = CreateTaskRequest {
            container_id,
            rootfs,
            stdout: output.clone(),
            stderr: output,
            terminal: false,
            ..CreateTaskRequest::default()
        };
        let mut created = self.tasks().create(self.containerd.request(request.clone())).await;
        let exists = created.as_ref().is_err_and(|status| status.code() == Code::AlreadyExists);
        // Of a start that was broken off containerd may keep a shim without a process: it shows no
        // task and makes none. What runs cannot be deleted this way.
        if exists && self.delete_task(id).await.is_ok() {
            created = self.tasks().create(self.containerd.request(request)).await;
        }
        if let Err(status) = created {
            let exists = status.code() == Code::AlreadyExists;
            let error = RuntimeError::from_status("create the task of", id, status);
            // A task that we did not make is not ours to undo, nor is the record it runs from.
            return Err(if exists { error } else { self.undone(making, error).await });
        }
        let request = StartRequest { container_id: id.to_string(), exec_id: String::new() };
        match self.tasks().start(self.containerd.request(request)).await {
            Ok(answer) => Ok(answer.into_inner().pid),
            Err(status) => {
                let error = RuntimeError::from_status("start", id, status);
                Err(self.undone(making, error).await)
            }
        }
    }

    /// Removes what a failed start made; gives the error back.
    pub(super) async fn undone(&self, making: &Making<'_>, error: RuntimeError) -> RuntimeError {
        if let Err(left) = self.undo(making).await {
            warn!(container = %making.start.id, error = %left, "a failed start left something behind");
        }
        error
    }

    async fn undo(&self, making: &Making<'_>) -> Result<(), RuntimeError> {
        let id = &making.start.id;
        if let Some(task) = self.task(id).await? {
            if task.status() != containerd_client::types::v1::Status::Stopped {
                self.kill_now(id, task.pid).await?;
            }
            self.delete_task(id).await?;
        }
        self.forget(&making.record).await
    }

    /// Removes a record whose task is gone, and its snapshot.
    pub(super) async fn forget(&self, record: &Container) -> Result<(), RuntimeError> {
        let id = ContainerId::from_listed(&record.id);
        self.executions.forget(&id);
        self.delete_record(&id).await?;
        self.remove_snapshot(&id, &record.snapshotter, &record.snapshot_key).await
    }
}

/// Why a record was not created.
#[derive(Debug)]
pub(super) enum CreateError {
    /// There is one under this id.
    Exists,
    /// Something else.
    Failed(RuntimeError),
}

fn image_problem(start: &Start, source: ImageProblem) -> RuntimeError {
    let (id, software) = (start.id.clone(), start.container.software.clone());
    RuntimeError::Software { id, software, source: Box::new(source) }
}

/// Reads the image's own names, if that is needed, from the snapshot.
fn ids(wanted: &str, mounts: &[Mount]) -> Result<Ids, ImageProblem> {
    let layers = Layers::open(mounts);
    let read = |file: &'static str| {
        let text = layers.as_ref().map_err(|error| std::io::Error::other(error.to_string()));
        let text = text.and_then(|layers| layers.read(file));
        match text {
            Ok(text) => Ok(text.unwrap_or_default()),
            Err(source) => Err(ImageProblem::File { file, source }),
        }
    };
    user::resolve(wanted, &read(user::PASSWD)?, &read(user::GROUP)?)
}

/// 16 hexadecimal digits.
pub(super) fn random() -> String {
    let mut bytes = [0; 8];
    if SystemRandom::new().fill(&mut bytes).is_err() {
        warn!("the system gives no random bytes");
    }
    format!("{:016x}", u64::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests {
    #[test]
    fn keys_differ() {
        assert_ne!(super::random(), super::random());
        assert_eq!(super::random().len(), 16);
    }
}
