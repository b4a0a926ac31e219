//! Executes one action. Makes no decisions; what came of it goes back to the event loop.

use std::collections::BTreeMap;
use std::error::Error;
use std::future::Future;

use coracle_core::backoff::Retry;
use coracle_core::image::{Digest, ImageRef};
use coracle_core::name::{ContainerId, ReplicaId};
use coracle_core::observed::Container;
use coracle_core::plan::{Action, Start, Stop};
use tokio::sync::watch;

use crate::images::{ImageError, Images, Progress};
use crate::runtime::{Runtime, RuntimeError};

/// Longest message of a failure, in characters.
const MAX_MESSAGE: usize = 300;

/// Everything that there is.
#[derive(Debug)]
pub struct Seen {
    /// Our containers.
    pub containers: BTreeMap<ContainerId, Container>,
    /// Images that are complete and unpacked.
    pub images: BTreeMap<ImageRef, Digest>,
}

/// What came of an action.
#[derive(Debug)]
pub enum Outcome {
    /// Of [`Action::Pull`].
    Pulled(ImageRef, Result<Digest, Failure>),
    /// Of [`Action::Start`]: the process id.
    Started(Start, Result<u32, Failure>),
    /// Of [`Action::Stop`] and [`Action::Remove`].
    Ended(ReplicaId, ContainerId, Result<(), Failure>),
    /// Of [`Action::RemoveImage`].
    Forgotten(ImageRef, Result<(), Failure>),
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
}

/// Acts through the adapters.
#[derive(Clone, Debug)]
pub struct Executor<R> {
    runtime: R,
    images: Images,
}

impl<R: Runtime> Executor<R> {
    /// Joins the adapters.
    pub fn new(runtime: R, images: Images) -> Self {
        Self { runtime, images }
    }

    async fn start(&self, start: &Start) -> Result<u32, Failure> {
        let reference = &start.container.image;
        let image = match self.images.local(reference).await {
            Ok(image) => image,
            Err(error @ ImageError::NotLocal { .. }) => {
                self.images.remove(reference).await?;
                return Err(error.into());
            }
            Err(error) => return Err(error.into()),
        };
        match self.runtime.start(start, &image).await {
            Err(error @ RuntimeError::ImageMissing { .. }) => {
                // So that it is no longer taken for complete, and fetched again.
                self.images.remove(reference).await?;
                Err(error.into())
            }
            result => Ok(result?),
        }
    }
}

impl<R: Runtime> Execute for Executor<R> {
    async fn act(&self, action: Action, progress: watch::Sender<Progress>) -> Outcome {
        match action {
            Action::Pull { image } => {
                let result = self.images.pull(&image, &progress).await;
                Outcome::Pulled(image, result.map_err(Failure::from))
            }
            Action::Start(start) => {
                let result = self.start(&start).await;
                Outcome::Started(start, result)
            }
            Action::Stop(stop) => {
                let result = self.runtime.stop(&stop).await;
                let Stop { replica, id, .. } = stop;
                Outcome::Ended(replica, id, result.map_err(Failure::from))
            }
            Action::Remove { replica, id } => {
                let result = self.runtime.remove(&id).await;
                Outcome::Ended(replica, id, result.map_err(Failure::from))
            }
            Action::RemoveImage { image } => {
                let result = self.images.remove(&image).await;
                Outcome::Forgotten(image, result.map_err(Failure::from))
            }
        }
    }

    async fn look(&self) -> Result<Seen, Failure> {
        let containers = self.runtime.list().await?;
        let images = self.images.list().await?;
        Ok(Seen { containers, images })
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

/// An error and its causes in one line. Causes that the message before them repeats are left out.
pub fn chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !line.contains(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        cause = error.source();
    }
    line
}
