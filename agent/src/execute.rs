//! Executes one action. Makes no decisions; what came of it goes back to the event loop.

use std::collections::BTreeMap;
use std::error::Error;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;

use coracle_core::artifact::{ArtifactId, Coordinate, Software};
use coracle_core::backoff::Retry;
use coracle_core::desired::{self, Check};
use coracle_core::image::{Digest, ImageRef};
use coracle_core::name::{ContainerId, ReplicaId};
use coracle_core::observed::{Container, Pod};
use coracle_core::plan::{Action, Adjust, Refresh, Start, Stop, Why};
use coracle_core::probe::Before;
use coracle_core::traffic::Traffic;
use coracle_protocol::Timestamp;
use tokio::sync::watch;
use tracing::{debug, warn};

use crate::artifacts::{ArtifactError, InstalledBy};
use crate::clock::monotonic_now;
use crate::containerd::LocalImage;
pub use crate::error_chain::chain;
use crate::images::{ImageError, Images};
use crate::mounts::MountError;
use crate::native_status::{LongWork, ServiceStatus, Services};
use crate::network::NetworkError;
use crate::policy::HostPathProblem;
use crate::probes::{self, ProbeTarget};
use crate::progress::Progress;
use crate::runtime::{Root, Runtime, RuntimeError};
use crate::workload_identity::IdentityError;

mod around;
mod commands;
mod native;

pub use around::Around;
pub use native::Native;

/// Longest message of a failure, in characters.
const MAX_MESSAGE: usize = 300;

/// Everything that there is.
#[derive(Debug)]
pub struct Seen {
    /// Our containers.
    pub containers: BTreeMap<ContainerId, Container>,
    /// Images that are complete and unpacked.
    pub images: BTreeMap<ImageRef, Digest>,
    /// Artifacts that are installed.
    pub artifacts: BTreeMap<ArtifactId, Installed>,
    /// What is around our containers; or why that cannot be told.
    pub pods: Result<BTreeMap<ReplicaId, Pod>, Failure>,
}

/// An artifact that is installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// Of the ZIP that it came as.
    pub digest: Digest,
    /// Size of that ZIP, in bytes.
    pub zip_bytes: u64,
    /// Size of its files, in bytes.
    pub unpacked_bytes: u64,
    /// How many files and directories it has.
    pub entries: u64,
    /// When it was installed.
    pub installed_at: Timestamp,
    /// It stays until somebody removes it.
    pub by_hand: bool,
    /// Where it is.
    pub directory: PathBuf,
}

/// A container that was started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started {
    /// Process id of its main process.
    pub pid: u32,
    /// What is around it.
    pub pod: Pod,
}

/// What came of an action.
#[derive(Debug)]
pub enum Outcome {
    /// Of [`Action::Pull`].
    Pulled(Software, Result<Digest, Failure>),
    /// Of [`Action::Start`].
    Started(Start, Result<Started, Failure>),
    /// Of [`Action::Stop`] and [`Action::Remove`].
    Ended(ReplicaId, ContainerId, Why, Result<(), Failure>),
    /// Of [`Action::Adjust`].
    Adjusted(Adjust, Result<(), Failure>),
    /// Of [`Action::Refresh`]: what is around the containers now.
    Refreshed(Refresh, Result<Pod, Failure>),
    /// Of [`Action::Clear`].
    Cleared(ReplicaId, Result<(), Failure>),
    /// Of [`Action::RemoveImage`].
    Forgotten(ImageRef, Result<(), Failure>),
    /// Of [`Action::RemoveArtifact`].
    ArtifactRemoved(ArtifactId, Result<(), Failure>),
}

/// Why an action failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// For people, with all causes.
    pub message: String,
    /// When it is worth another try.
    pub retry: Retry,
    /// containerd cannot be reached: nobody's fault but containerd's, so no try is counted.
    pub unreachable: bool,
}

/// What the event loop acts and looks with: the adapters, or a stand-in that injects faults.
pub trait Execute: Clone + Send + Sync + 'static {
    /// Carries out one action.
    fn act(
        &self,
        action: Action,
        progress: watch::Sender<Progress>,
    ) -> impl Future<Output = Outcome> + Send;

    /// Looks at everything there is.
    fn look(&self) -> impl Future<Output = Result<Seen, Failure>> + Send;

    /// Makes shared ports lead where they are to.
    fn share(&self, traffic: Traffic) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Does something that was asked for by hand; gives what was done, for people.
    fn work_long(
        &self,
        work: LongWork,
        progress: watch::Sender<Progress>,
    ) -> impl Future<Output = Result<String, Failure>> + Send;

    /// Adds what is known of the directories of services, and those of services that there are no
    /// more.
    fn look_at_services(
        &self,
        services: Vec<(Coordinate, ServiceStatus)>,
    ) -> impl Future<Output = Services> + Send;

    /// These containers are to be asked whether they do their work, and no others.
    fn ask(&self, asked: Vec<Asked>);
}

/// A container that is asked whether it does its work.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Of which replica.
    pub replica: ReplicaId,
    /// Its id.
    pub id: ContainerId,
    /// Which process it is now.
    pub pid: u32,
    /// With its probes.
    pub container: Arc<desired::Container>,
    /// What it counts as before the first answer.
    pub before: Before,
}

impl PartialEq for Asked {
    /// Whether the same is asked of the same process.
    fn eq(&self, other: &Self) -> bool {
        (&self.id, self.pid) == (&other.id, other.pid)
            && self.container.probes == other.container.probes
    }
}

/// Acts through the adapters.
#[derive(Clone, Debug)]
pub struct Executor<R> {
    runtime: R,
    images: Images,
    native: Native,
    around: Around,
    probes: watch::Sender<Vec<ProbeTarget>>,
}

impl<R: Runtime> Executor<R> {
    /// Joins the adapters.
    pub fn new(
        runtime: R,
        images: Images,
        native: Native,
        around: Around,
        probes: watch::Sender<Vec<ProbeTarget>>,
    ) -> Self {
        Self { runtime, images, native, around, probes }
    }

    /// Lets a container end as it is to: first no new connection comes to its replica, then it
    /// drains, then it is told.
    async fn stop(&self, stop: &Stop) -> Result<(), Failure> {
        if let Err(failure) = self.around.withdraw(&stop.replica).await {
            // What is to end ends all the same, at the cost of connections that come meanwhile.
            let error = failure.message;
            warn!(replica = %stop.replica, error, "ports may still lead to what is stopped");
        }
        tokio::time::sleep(stop.drain).await;
        let begun = monotonic_now();
        if let Some(hook) = &stop.pre_stop {
            match tokio::time::timeout(stop.grace, self.run_hook(stop, hook)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    warn!(id = %stop.id, error, "what was to be done before the stop")
                }
                Err(_) => warn!(id = %stop.id, "what was to be done before the stop took too long"),
            }
        }
        let grace = stop.grace.saturating_sub(begun.elapsed());
        Ok(self.runtime.stop(&Stop { grace, ..stop.clone() }).await?)
    }

    /// Does what is to be done before a container is told to end.
    async fn run_hook(&self, stop: &Stop, hook: &Check) -> Result<(), String> {
        match hook {
            Check::Exec(command) => {
                let exit = self.runtime.exec(&stop.id, command, stop.grace).await;
                match exit.map_err(|error| chain(&error))? {
                    0 => Ok(()),
                    code => Err(format!("{} ended with exit code {code}", command[0])),
                }
            }
            Check::Http { port, path, headers } => {
                let netns = self.around.namespace(&stop.replica);
                let status =
                    probes::request_in(netns.as_deref(), *port, path, headers, stop.grace).await;
                match status.map_err(|error| chain(&error))? {
                    200..=399 => Ok(()),
                    status => Err(format!("GET {path} answered {status}")),
                }
            }
            Check::Tcp { .. } => Err("a connection is no hook".into()),
        }
    }

    async fn start(&self, start: &Start) -> Result<Started, Failure> {
        let prepared = async {
            let root = match &start.container.software {
                Software::Image(image) => Root::Image(self.local_image(image).await?),
                Software::Artifact(artifact) => {
                    Root::Native(self.native.root(start, artifact).await?)
                }
            };
            let made = self.around.make(start, &root).await?;
            Ok::<_, Failure>((root, made))
        };
        // The longest part of a restart is the end of what was there before.
        let cleared = async {
            if start.remains {
                if let Err(error) = self.runtime.clear_dead(&start.id).await {
                    debug!(id = %start.id, error = %chain(&error), "its start clears it away");
                }
            }
        };
        let (prepared, ()) = tokio::join!(prepared, cleared);
        let (root, (surroundings, pod)) = prepared?;
        match self.runtime.start(start, &root, &surroundings).await {
            Err(error @ RuntimeError::ImageMissing { .. }) => {
                // So that it is no longer taken for complete, and fetched again.
                if let Root::Image(image) = root {
                    self.images.remove(&image.reference).await?;
                }
                Err(error.into())
            }
            result => Ok(Started { pid: result?, pod }),
        }
    }

    async fn local_image(&self, image: &ImageRef) -> Result<LocalImage, Failure> {
        match self.images.local(image).await {
            Err(error @ ImageError::NotLocal { .. }) => {
                self.images.remove(image).await?;
                Err(error.into())
            }
            result => Ok(result?),
        }
    }

    async fn fetch(
        &self,
        software: &Software,
        progress: &watch::Sender<Progress>,
    ) -> Result<Digest, Failure> {
        match software {
            Software::Image(image) => Ok(self.images.pull(image, progress).await?),
            Software::Artifact(artifact) => {
                self.native.install(artifact, InstalledBy::Order, progress).await
            }
        }
    }
}

impl<R: Runtime> Execute for Executor<R> {
    async fn act(&self, action: Action, progress: watch::Sender<Progress>) -> Outcome {
        match action {
            Action::Pull { software } => {
                let result = self.fetch(&software, &progress).await;
                Outcome::Pulled(software, result)
            }
            Action::Start(start) => {
                let result = self.start(&start).await;
                Outcome::Started(start, result)
            }
            Action::Stop(stop) => {
                let result = self.stop(&stop).await;
                let Stop { replica, id, why, .. } = stop;
                Outcome::Ended(replica, id, why, result)
            }
            Action::Remove { replica, id } => {
                let result = self.runtime.remove(&id).await;
                Outcome::Ended(replica, id, Why::Unwanted, result.map_err(Failure::from))
            }
            Action::Adjust(adjust) => {
                let result = self.runtime.set_limits(&adjust.id, &adjust.limits).await;
                Outcome::Adjusted(adjust, result.map_err(Failure::from))
            }
            Action::Refresh(refresh) => {
                let result = self.around.refresh(&refresh).await;
                Outcome::Refreshed(refresh, result)
            }
            Action::Clear { replica } => {
                let result = self.around.clear(&replica).await;
                Outcome::Cleared(replica, result)
            }
            Action::RemoveImage { image } => {
                let result = self.images.remove(&image).await;
                Outcome::Forgotten(image, result.map_err(Failure::from))
            }
            Action::RemoveArtifact { artifact } => {
                let result = self.native.remove(&artifact).await;
                Outcome::ArtifactRemoved(artifact, result)
            }
        }
    }

    async fn look(&self) -> Result<Seen, Failure> {
        let containers = self.runtime.list().await?;
        let images = self.images.list().await?;
        let artifacts = self.native.list().await;
        Ok(Seen { containers, images, artifacts, pods: self.around.list() })
    }

    async fn work_long(
        &self,
        work: LongWork,
        progress: watch::Sender<Progress>,
    ) -> Result<String, Failure> {
        self.native.work(work, &progress).await
    }

    async fn look_at_services(&self, services: Vec<(Coordinate, ServiceStatus)>) -> Services {
        self.native.look_at(services).await
    }

    async fn share(&self, traffic: Traffic) -> Result<(), Failure> {
        self.around.share(&traffic).await
    }

    fn ask(&self, asked: Vec<Asked>) {
        let target = |asked: Asked| ProbeTarget {
            netns: self.around.namespace(&asked.replica),
            id: asked.id,
            pid: asked.pid,
            container: asked.container,
            before: asked.before,
        };
        self.probes.send_replace(asked.into_iter().map(target).collect());
    }
}

impl Failure {
    fn new(error: &dyn Error, retry: Retry, unreachable: bool) -> Self {
        // What gRPC says of a connection that could not be made is for nobody.
        let message = if unreachable { error.to_string() } else { chain(error) };
        Self { message: message.chars().take(MAX_MESSAGE).collect(), retry, unreachable }
    }
}

impl From<RuntimeError> for Failure {
    fn from(error: RuntimeError) -> Self {
        Self::new(&error, error.retry(), error.is_unreachable())
    }
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        Self::new(&error, error.retry(), error.containerd_unreachable())
    }
}

impl From<ArtifactError> for Failure {
    fn from(error: ArtifactError) -> Self {
        Self::new(&error, error.retry(), false)
    }
}

impl From<NetworkError> for Failure {
    fn from(error: NetworkError) -> Self {
        Self::new(&error, error.retry(), false)
    }
}

impl From<MountError> for Failure {
    fn from(error: MountError) -> Self {
        Self::new(&error, error.retry(), false)
    }
}

impl From<IdentityError> for Failure {
    fn from(error: IdentityError) -> Self {
        Self::new(&error, error.retry(), false)
    }
}

impl From<HostPathProblem> for Failure {
    fn from(error: HostPathProblem) -> Self {
        Self::new(&error, error.retry(), false)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::new(&error, Retry::Backoff, false)
    }
}
