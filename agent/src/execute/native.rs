//! Native services: their artifacts and runtime directories, put together for the runtime.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use coracle_core::artifact::{ArtifactId, ArtifactRef, Coordinate};
use coracle_core::backoff::Retry;
use coracle_core::desired::{self, RuntimeSource};
use coracle_core::image::Digest;
use coracle_core::plan::Start;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tokio::sync::watch;
use tracing::warn;

use super::{Failure, Installed};
use crate::artifacts::{self, Artifacts, InstalledBy, Prefill, RuntimeDirs, Source};
use crate::config::Config;
use crate::native_status::{LongWork, ServiceStatus, Services};
use crate::policy::Installed as InstalledPolicy;
use crate::progress::Progress;
use crate::runtime::{NativeRoot, native_owner};

/// containerd's own files, where they usually are.
const CONTAINERD: &str = "/var/lib/containerd";

/// Artifacts and runtime directories. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Native {
    artifacts: Artifacts,
    directories: RuntimeDirs,
    software_dir: PathBuf,
    runtime_dir: PathBuf,
    policy: Arc<InstalledPolicy>,
    /// Directories that no service is to see.
    hidden: Arc<[PathBuf]>,
    /// Sockets that no service is to find, wherever they are.
    sockets: Arc<[PathBuf]>,
}

impl Native {
    /// Joins the adapters.
    pub fn new(config: &Config, artifacts: Artifacts, policy: Arc<InstalledPolicy>) -> Self {
        let directories = artifacts.runtime_dirs();
        let hidden = [
            config.state_dir.clone(),
            config.runtime_dir.clone(),
            config.identity_dir(),
            config.factory.clone(),
            config.native_prefix().join("runtime"),
            config.native_prefix().join("downloads"),
            CONTAINERD.into(),
        ];
        let parent = config.policy.parent().filter(|path| path.components().count() > 2);
        // A directory at the top holds more than what is to be hidden.
        let hidden: Vec<PathBuf> = hidden.into_iter().chain(parent.map(Path::to_owned)).collect();
        let sockets =
            [config.api.socket.clone(), config.containerd.address.clone(), config.policy.clone()];
        let software_dir = config.native_prefix().join("software");
        let runtime_dir = config.runtime_dir.clone();
        Self {
            artifacts,
            directories,
            software_dir,
            runtime_dir,
            policy,
            hidden: hidden.into(),
            sockets: sockets.into(),
        }
    }

    /// Makes an artifact be there.
    pub(super) async fn install(
        &self,
        artifact: &ArtifactRef,
        by: InstalledBy,
        progress: &watch::Sender<Progress>,
    ) -> Result<Digest, Failure> {
        Ok(self.artifacts.install(artifact, by, progress).await?.digest)
    }

    /// The artifacts that are installed. That they cannot be told ends nothing: what runs of them
    /// goes on.
    pub(super) async fn list(&self) -> BTreeMap<ArtifactId, Installed> {
        match self.artifacts.list() {
            Ok(installed) => {
                let described = |(id, there)| {
                    let directory = self.artifacts.directory(&id);
                    (id, describe(there, directory))
                };
                installed.into_iter().map(described).collect()
            }
            Err(error) => {
                warn!(error = %super::chain(&error), "installed artifacts cannot be listed");
                BTreeMap::new()
            }
        }
    }

    pub(super) async fn remove(&self, artifact: &ArtifactId) -> Result<(), Failure> {
        Ok(self.artifacts.remove(artifact).await?)
    }

    /// Everything that a service's root file system is made of.
    pub(super) async fn root(
        &self,
        start: &Start,
        artifact: &ArtifactRef,
    ) -> Result<NativeRoot, Failure> {
        let Some(native) = &start.pod.native else {
            return Err(refused(format!("{} has no coordinate", start.replica)));
        };
        let owner = native_owner(start.container.user.as_deref())
            .map_err(|error| refused(format!("its user: {}", super::chain(&error))))?;
        let policy = &self.policy.policy;
        if (owner.0 == 0 || owner.1 == 0) && !policy.native_root {
            let message = "the gateway's policy does not allow native services as root";
            return Err(refused(message.into()));
        }
        // The policy may be another one than when the order came.
        if let Some(refusal) = policy.judge_container(&start.container, "").first() {
            return Err(refused(refusal.message.clone()));
        }
        let artifact_dir = self.artifacts.directory(&artifact.id);
        let files: Vec<_> = native.files.iter().map(|file| prefill(file, &artifact.id)).collect();
        let coordinate = native.coordinate.of_replica(start.replica.index);
        let runtime_dir = resolved(&self.directories.ensure(&coordinate, owner, &files).await?);
        Ok(NativeRoot {
            artifact: artifact.id.to_string(),
            root: self.gateway_root()?,
            artifact_dir: resolved(&artifact_dir),
            software_dir: resolved(&self.software_dir),
            runtime_dir,
            hidden: self.hidden.iter().map(|path| resolved(path)).collect(),
            masked: self.sockets.iter().map(|path| resolved(path)).collect(),
            empty: self.empty()?,
        })
    }

    /// Does something that was asked for by hand.
    pub(super) async fn work(
        &self,
        work: LongWork,
        progress: &watch::Sender<Progress>,
    ) -> Result<String, Failure> {
        match work {
            LongWork::Install(artifact) => {
                let there = self.artifacts.install(&artifact, InstalledBy::Hand, progress).await?;
                Ok(format!("artifact {} is installed: {}", artifact.id, there.digest))
            }
            LongWork::Remove(artifact) => {
                self.artifacts.remove(&artifact).await?;
                Ok(format!("artifact {artifact} removed"))
            }
            LongWork::Purge(coordinate) => {
                self.directories.purge(&coordinate).await?;
                Ok(format!("the runtime directory of {coordinate} is gone"))
            }
        }
    }

    /// Adds what is known of the directories of services, and those of services that there are no
    /// more.
    pub(super) async fn look_at(&self, services: Vec<(Coordinate, ServiceStatus)>) -> Services {
        let mut directories = self.directories.list().await.unwrap_or_else(|error| {
            warn!(error = %super::chain(&error), "runtime directories cannot be listed");
            BTreeMap::new()
        });
        let mut all = BTreeMap::new();
        for (coordinate, status) in services {
            let bytes = directories.remove(&coordinate).map(|there| there.bytes);
            let directory = self.directory(&coordinate);
            all.insert(coordinate, ServiceStatus { directory, bytes, ..status });
        }
        for (coordinate, there) in directories {
            let status = ServiceStatus {
                coordinate: coordinate.to_string(),
                workload: None,
                replica: None,
                artifact: None,
                state: None,
                pid: None,
                directory: self.directory(&coordinate),
                bytes: Some(there.bytes),
            };
            all.insert(coordinate, status);
        }
        Services { services: all.into_values().collect() }
    }

    /// The gateway's root file system, mounted once more for services: a mount of its own that
    /// nothing comes into and nothing goes out of. Made when it is first needed.
    fn gateway_root(&self) -> Result<PathBuf, Failure> {
        let path = self.runtime_dir.join("root");
        DirBuilder::new().recursive(true).mode(0o755).create(&path)?;
        let is = |path: &Path| metadata(path).map(|there| (there.dev(), there.ino()));
        if is(&path)? != is(Path::new("/"))? {
            let none = None::<&str>;
            mount(Some("/"), &path, none, MsFlags::MS_BIND, none).map_err(io::Error::from)?;
            let private = mount(none, &path, none, MsFlags::MS_PRIVATE, none);
            let read_only = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            let made = private.and_then(|()| mount(none, &path, none, read_only, none));
            if let Err(error) = made {
                umount2(&path, MntFlags::MNT_DETACH).ok();
                return Err(io::Error::from(error).into());
            }
        }
        Ok(path)
    }

    /// An empty directory that everybody may look into; made when it is first needed.
    fn empty(&self) -> Result<PathBuf, Failure> {
        let path = self.runtime_dir.join("empty");
        DirBuilder::new().recursive(true).mode(0o755).create(&path)?;
        Ok(path)
    }

    fn directory(&self, coordinate: &Coordinate) -> String {
        self.directories.directory(coordinate).to_string_lossy().into_owned()
    }
}

/// Where a path leads; itself if there is nothing.
fn resolved(path: &Path) -> PathBuf {
    std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

fn describe(there: artifacts::Installed, directory: PathBuf) -> Installed {
    let artifacts::Installed { digest, zip_bytes, unpacked_bytes, entries, installed_at, by } =
        there;
    let by_hand = by == InstalledBy::Hand;
    Installed { digest, zip_bytes, unpacked_bytes, entries, installed_at, by_hand, directory }
}

fn prefill(file: &desired::RuntimeFile, artifact: &ArtifactId) -> Prefill {
    let source = match &file.source {
        RuntimeSource::Artifact(path) => {
            Source::Artifact { id: artifact.clone(), path: path.clone() }
        }
        RuntimeSource::Files(files) => Source::Files(files.as_ref().clone()),
        RuntimeSource::Url { url, digest } => {
            Source::Url { url: url.clone(), digest: digest.clone() }
        }
        RuntimeSource::Archive { url, digest } => {
            Source::Archive { url: url.clone(), digest: digest.clone() }
        }
    };
    Prefill { to: file.to.clone(), source, overwrite: file.overwrite }
}

fn refused(message: String) -> Failure {
    Failure { message, retry: Retry::Rarely, unreachable: false }
}
