//! Artifacts: software that is no image, in ZIPs from HTTP repositories; and the runtime
//! directories of the services that run it.
//!
//! In: names from orders, the configured repositories. Out: read-only trees that are there whole or
//! not at all, and directories that services may write to.
//!
//! ```text
//! PREFIX/software/GROUP/NAME/VERSION/           what is installed, with .coracle-artifact.json in it
//! PREFIX/downloads/KEY.{zip,json}               what is not downloaded to its end; root's alone
//! PREFIX/runtime/CELL/USER/SERVICE/INSTANCE/    a service's own
//! PREFIX/runtime/.filled/COORDINATE.json        what was put there
//! PREFIX/{software,runtime}/.{new,gone}-*       work under way, or on its way out
//! ```
//!
//! Deliberately not here: when to install and when to try again (the core decides by
//! [`ArtifactError::retry`]), who uses an artifact (whoever removes one must know), signatures (the
//! order that names a digest is signed).

mod build;
mod download;
mod entries;
mod error;
mod fill;
mod install;
mod partial;
mod record;
mod repository;
mod runtime_dir;
mod site;
mod zip;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use coracle_core::artifact::{ArtifactId, ArtifactRef};
use tokio::sync::{Semaphore, watch};
use tracing::warn;

pub use self::entries::Flaw;
pub use self::error::{ArtifactError, ArtifactsError};
pub use self::record::{Installed, InstalledBy};
use self::repository::Repositories;
pub use self::runtime_dir::{Prefill, RuntimeDir, RuntimeDirs, Source};
use self::site::{NEW, Site, delete, delete_hidden, hide, names, prune, settled, sync_dir};
use crate::config::{ArtifactLimits, ArtifactsConfig};
use crate::error_chain::chain;
use crate::fault::fault_point;
pub use crate::http_client::{HttpError, Timeouts};
use crate::locks::{Held, Locks};
pub use crate::progress::{Phase, Progress};

/// The artifacts of this gateway. Cheap to clone; clones know of each other's work.
#[derive(Clone, Debug)]
pub struct Artifacts {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    site: Site,
    repositories: Repositories,
    limits: ArtifactLimits,
    /// By the keys of what is being fetched, installed, removed or filled.
    locks: Locks,
    /// Held while directories of groups and names come or go.
    naming: Mutex<()>,
    /// Unpacking is done by one at a time: two that each find enough room may have too little.
    unpacking: Arc<Semaphore>,
}

impl Artifacts {
    /// Reads the repositories' certificates; touches and connects to nothing yet. Certificates that
    /// cannot be read are told and left out: what they vouch for is then refused.
    ///
    /// # Errors
    /// A repository's URL cannot be used.
    pub fn new(
        prefix: PathBuf,
        config: &ArtifactsConfig,
    ) -> Result<(Self, Vec<ArtifactsError>), ArtifactsError> {
        let (repositories, troubles) = Repositories::new(&config.repositories)?;
        let shared = Shared {
            site: Site { prefix },
            repositories,
            limits: config.limits,
            locks: Locks::default(),
            naming: Mutex::new(()),
            unpacking: Arc::new(Semaphore::new(1)),
        };
        Ok((Self { shared: Arc::new(shared) }, troubles))
    }

    /// The same with other patience towards servers.
    #[must_use]
    pub fn with_timeouts(self, timeouts: Timeouts) -> Self {
        let old = &self.shared;
        let mut repositories = old.repositories.clone();
        repositories.set_timeouts(timeouts);
        let shared = Shared {
            site: old.site.clone(),
            repositories,
            limits: old.limits,
            locks: Locks::default(),
            naming: Mutex::new(()),
            unpacking: Arc::new(Semaphore::new(1)),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The services' own directories, below the same PREFIX.
    pub fn runtime_dirs(&self) -> RuntimeDirs {
        RuntimeDirs::new(self.shared.clone())
    }

    /// Where an artifact is, once it is installed.
    pub fn directory(&self, id: &ArtifactId) -> PathBuf {
        self.shared.site.artifact(id)
    }

    /// Once at start: removes what crashes left, and downloads that nobody went on with for a week.
    ///
    /// # Errors
    /// Something cannot be removed.
    pub async fn sweep(&self) -> Result<(), ArtifactError> {
        let shared = self.shared.clone();
        work(move || sweep(&shared)).await
    }

    /// Makes the artifact installed, whole. One that is needs no network. May be dropped at any
    /// time; the next call goes on where this one was.
    ///
    /// # Errors
    /// [`ArtifactError::retry`] tells when to try again. Nothing is installed then, and what is
    /// installed was not touched.
    pub async fn install(
        &self,
        wanted: &ArtifactRef,
        by: InstalledBy,
        progress: &watch::Sender<Progress>,
    ) -> Result<Installed, ArtifactError> {
        install::install(&self.shared, wanted, by, progress).await
    }

    /// What is installed. What does not say what it is, is left out.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn list(&self) -> Result<BTreeMap<ArtifactId, Installed>, ArtifactError> {
        list(&self.shared)
    }

    /// Notes that somebody at the gateway wants the artifact, whatever orders say.
    ///
    /// # Errors
    /// It is not installed, or the note cannot be written.
    pub async fn keep(&self, id: &ArtifactId) -> Result<Installed, ArtifactError> {
        let held = hold(&self.shared, &install::key_of(id)).await;
        let (shared, id) = (self.shared.clone(), id.clone());
        blocking(&held, move || {
            let dir = shared.site.artifact(&id);
            let missing = || ArtifactError::NotInstalled { artifact: id.clone() };
            let installed = record::read(&dir, &id)?.ok_or_else(missing)?;
            install::wanted_by(&dir, &id, installed, InstalledBy::Hand)
        })
        .await
    }

    /// Removes an artifact with all its files. Whether somebody uses it, the caller must know.
    ///
    /// # Errors
    /// It is not installed, or cannot be removed.
    pub async fn remove(&self, id: &ArtifactId) -> Result<(), ArtifactError> {
        let held = hold(&self.shared, &install::key_of(id)).await;
        let (shared, id) = (self.shared.clone(), id.clone());
        blocking(&held, move || remove(&shared, &id)).await
    }
}

fn remove(shared: &Shared, id: &ArtifactId) -> Result<(), ArtifactError> {
    let (dir, software) = (shared.site.artifact(id), shared.site.software());
    {
        let _naming = shared.naming.lock().unwrap_or_else(PoisonError::into_inner);
        if !hide(&software, &dir)? {
            return Err(ArtifactError::NotInstalled { artifact: id.clone() });
        }
        fault_point("remove.hidden");
        let above = dir.parent().unwrap_or(&software);
        sync_dir(above)?;
        prune(&software, above);
    }
    delete_hidden(&software);
    fault_point("remove.deleted");
    Ok(())
}

fn list(shared: &Shared) -> Result<BTreeMap<ArtifactId, Installed>, ArtifactError> {
    let mut found = BTreeMap::new();
    let software = shared.site.software();
    for group in settled(&software)? {
        for name in settled(&software.join(&group))? {
            for version in settled(&software.join(&group).join(&name))? {
                let Ok(id) = ArtifactId::parse(&format!("{group}:{name}:{version}")) else {
                    continue;
                };
                match record::read(&shared.site.artifact(&id), &id) {
                    Ok(installed) => found.extend(installed.map(|installed| (id, installed))),
                    Err(error) => warn!(error = chain(&error), "an artifact is left out"),
                }
            }
        }
    }
    Ok(found)
}

fn sweep(shared: &Shared) -> Result<(), ArtifactError> {
    let done = list(shared)?.keys().map(install::key_of).collect();
    partial::sweep(shared, &done)?;
    for top in [shared.site.software(), shared.site.runtime()] {
        delete_hidden(&top);
        for name in names(&top)? {
            if name.strip_prefix(NEW).is_some_and(|key| !shared.locks.is_wanted(key)) {
                delete(&top.join(&name))?;
            }
        }
    }
    let software = shared.site.software();
    let _naming = shared.naming.lock().unwrap_or_else(PoisonError::into_inner);
    for group in settled(&software)? {
        let dir = software.join(&group);
        for name in settled(&dir)? {
            prune(&software, &dir.join(name));
        }
        prune(&software, &dir);
    }
    Ok(())
}

async fn hold(shared: &Shared, key: &str) -> Arc<Held> {
    Arc::new(shared.locks.hold(key).await)
}

/// The lock of what is done on another thread is held until that is done, even if nobody waits for
/// it any more.
async fn blocking<T: Send + 'static>(
    held: &Arc<Held>,
    task: impl FnOnce() -> Result<T, ArtifactError> + Send + 'static,
) -> Result<T, ArtifactError> {
    let held = held.clone();
    work(move || {
        let done = task();
        drop(held);
        done
    })
    .await
}

/// Runs what waits for a disk on a thread that may wait.
async fn work<T: Send + 'static>(
    task: impl FnOnce() -> Result<T, ArtifactError> + Send + 'static,
) -> Result<T, ArtifactError> {
    tokio::task::spawn_blocking(task).await.unwrap_or(Err(ArtifactError::BrokeOff))
}
