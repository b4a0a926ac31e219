//! Runtime directories: where a native service stands and what it may write to. Made before it is
//! started, kept when it stops, removed when asked to.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use coracle_core::artifact::{ArtifactId, Coordinate};
use coracle_core::image::Digest;
use serde::{Deserialize, Serialize};
use tracing::info;

use super::build::{Rights, Stop, Waiting};
use super::download::{Download, Fetched};
use super::error::{ArtifactError, failed};
use super::fill::{Stage, move_in, settle};
use super::partial::Partial;
use super::site::{
    begin, delete, delete_hidden, ensure, exists, hide, key, prune, publish, settled, sync_dir,
    sync_file_system, write,
};
use super::{Shared, blocking, hold, record, work};
use crate::fault::fault_point;
use crate::file_tree::Meter;
use crate::locks::Held;

/// What a service and its group may do in its directory; others have no business there.
const MODE: u32 = 0o750;

/// The runtime directories of this gateway. Cheap to clone; clones know of each other's work.
#[derive(Clone, Debug)]
pub struct RuntimeDirs {
    shared: Arc<Shared>,
}

/// What a service is to find in its runtime directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefill {
    /// Where in the directory: a relative path; empty for the directory itself.
    pub to: String,
    /// What.
    pub source: Source,
    /// Whether it takes the place of what is there. What is there is left alone without.
    pub overwrite: bool,
}

/// Where something comes from that a service is to find.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file of an installed artifact; or a directory of it, or all of it (an empty path): then
    /// what is in there.
    Artifact {
        /// Which.
        id: ArtifactId,
        /// Where in it.
        path: String,
    },
    /// Files by their relative paths: a config map.
    Files(BTreeMap<String, String>),
    /// One file.
    Url {
        /// Where it is.
        url: String,
        /// What it must be.
        digest: Digest,
    },
    /// What is in a ZIP: a backup, say.
    Archive {
        /// Where it is.
        url: String,
        /// What it must be.
        digest: Digest,
    },
}

/// What a runtime directory takes on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuntimeDir {
    /// As far as it was looked at.
    pub bytes: u64,
    /// Whether all was looked at.
    pub complete: bool,
}

/// What was put into a runtime directory: the keys of places and contents. The service may have
/// changed it since, or taken it away; it is not put there again.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Filled {
    sources: BTreeSet<String>,
}

impl RuntimeDirs {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Where the service's directory is, once it is made.
    pub fn directory(&self, at: &Coordinate) -> PathBuf {
        self.shared.site.instance(at)
    }

    /// Makes the directory if it is not there, gives it its owner, and puts into it what was not
    /// put there before. A source whose content is another than last time is put there again: what
    /// is missing of it, or all of it with `overwrite`. The service must not run. May be dropped at
    /// any time.
    ///
    /// # Errors
    /// Something of it cannot be made; what was made before stays, for the next try.
    pub async fn ensure(
        &self,
        at: &Coordinate,
        owner: (u32, u32),
        fill: &[Prefill],
    ) -> Result<PathBuf, ArtifactError> {
        let key = key_of(at);
        let held = hold(&self.shared, &key).await;
        let place = Arc::new(Place { shared: self.shared.clone(), at: at.clone(), owner, key });
        let made = place.clone();
        let before = blocking(&held, move || made.make()).await?;
        let mut sources = BTreeMap::new();
        for wanted in fill {
            let identity = place.identity(wanted)?;
            if !before.contains(&identity) && !sources.contains_key(&identity) {
                place.clone().put(&held, wanted).await?;
            }
            sources.insert(identity, ());
            let noted: BTreeSet<_> = before.iter().chain(sources.keys()).cloned().collect();
            if noted.len() > before.len() {
                let place = place.clone();
                blocking(&held, move || place.note(noted)).await?;
            }
        }
        let now: BTreeSet<_> = sources.into_keys().collect();
        if now != before {
            let place = place.clone();
            blocking(&held, move || place.note(now)).await?;
        }
        Ok(self.directory(at))
    }

    /// All that there are, with what they take on the disk.
    ///
    /// # Errors
    /// The directories cannot be read.
    pub async fn list(&self) -> Result<BTreeMap<Coordinate, RuntimeDir>, ArtifactError> {
        let shared = self.shared.clone();
        work(move || list(&shared)).await
    }

    /// Removes a service's directory with all that is in it. Whether it runs, the caller must know.
    ///
    /// # Errors
    /// There is none, or it cannot be removed.
    pub async fn purge(&self, at: &Coordinate) -> Result<(), ArtifactError> {
        let held = hold(&self.shared, &key_of(at)).await;
        let (shared, at) = (self.shared.clone(), at.clone());
        blocking(&held, move || purge(&shared, &at)).await
    }
}

fn key_of(at: &Coordinate) -> String {
    key(&format!("runtime {at}"))
}

/// One runtime directory, while it is made.
#[derive(Debug)]
struct Place {
    shared: Arc<Shared>,
    at: Coordinate,
    owner: (u32, u32),
    key: String,
}

impl Place {
    fn dir(&self) -> PathBuf {
        self.shared.site.instance(&self.at)
    }

    fn record(&self) -> String {
        format!("{}.json", self.at)
    }

    /// Makes the directory. Tells what was put there before.
    fn make(&self) -> Result<BTreeSet<String>, ArtifactError> {
        let (site, dir) = (&self.shared.site, self.dir());
        if exists(&dir)? {
            settle(&dir, self.owner, MODE)?;
            let noted = fs::read(site.filled().join(self.record())).ok();
            let noted = noted.and_then(|text| serde_json::from_slice::<Filled>(&text).ok());
            return Ok(noted.unwrap_or_default().sources);
        }
        let runtime = site.ensure_runtime()?;
        // What an earlier one of this name was given says nothing of the new one.
        delete(&site.filled().join(self.record()))?;
        fault_point("runtime.forgotten");
        let new = begin(&runtime, &self.key)?;
        let made = settle(&new, self.owner, MODE).and_then(|()| {
            fault_point("runtime.made");
            let above = dir.parent().unwrap_or(&runtime);
            let _naming = self.shared.naming.lock().unwrap_or_else(PoisonError::into_inner);
            ensure(above, 0o755)?;
            publish(&new, &dir)?;
            fault_point("runtime.named");
            above.ancestors().take_while(|dir| dir.starts_with(&runtime)).try_for_each(sync_dir)
        });
        if made.is_err() {
            delete(&new)?;
        }
        made.map(|()| BTreeSet::new())
    }

    /// What tells a source from another, with its place.
    fn identity(&self, wanted: &Prefill) -> Result<String, ArtifactError> {
        let text = match &wanted.source {
            Source::Artifact { id, path } => {
                let missing = || ArtifactError::NotInstalled { artifact: id.clone() };
                let installed = record::read(&self.shared.site.artifact(id), id)?;
                let digest = installed.ok_or_else(missing)?.digest;
                format!("artifact {} {path}", digest.as_str())
            }
            // Debug: quoted, so that no two maps look the same.
            Source::Files(files) => format!("files {files:?}"),
            Source::Url { digest, .. } => format!("file {}", digest.as_str()),
            Source::Archive { digest, .. } => format!("archive {}", digest.as_str()),
        };
        Ok(key(&format!("{:?} {text}", wanted.to)))
    }

    async fn put(self: Arc<Self>, held: &Arc<Held>, wanted: &Prefill) -> Result<(), ArtifactError> {
        let (fetched, _fetching) = match &wanted.source {
            Source::Url { url, digest } | Source::Archive { url, digest } => {
                let (fetched, held) = self.fetch(url, digest).await?;
                (Some(fetched), Some(held))
            }
            Source::Artifact { .. } | Source::Files(_) => (None, None),
        };
        let turn = self.shared.unpacking.clone().acquire_owned().await;
        let waiting = Waiting::default();
        let (stop, wanted) = (waiting.stop(), wanted.clone());
        blocking(held, move || {
            let _turn = turn;
            match fetched {
                None => self.fill(&wanted, None, &stop),
                Some(fetched) => fetched.change(|partial| {
                    let filled = self.fill(&wanted, Some(partial), &stop);
                    if filled.is_ok() || matches!(filled, Err(ArtifactError::Zip { .. })) {
                        partial.discard()?;
                    }
                    filled
                }),
            }
        })
        .await
    }

    async fn fetch(
        &self,
        url: &str,
        digest: &Digest,
    ) -> Result<(Fetched, Arc<Held>), ArtifactError> {
        let what = self.what(url);
        let url = self.shared.repositories.url(url, &what)?;
        let key = key(&format!("url {} {url}", digest.as_str()));
        let held = hold(&self.shared, &key).await;
        let mut download = Download::new(&self.shared, &held, &key, &what, &|_| ());
        let absent = || ArtifactError::Absent { what: what.clone(), urls: vec![url.to_string()] };
        let fetched = download.fetch(&url, digest).await?.ok_or_else(absent)?;
        Ok((fetched, held))
    }

    fn what(&self, url: &str) -> String {
        format!("{url} for {}", self.at)
    }

    fn fill(
        &self,
        wanted: &Prefill,
        fetched: Option<&Partial>,
        stop: &Stop,
    ) -> Result<(), ArtifactError> {
        let new = begin(&self.shared.site.runtime(), &self.key)?;
        let filled = self.fill_through(&new, wanted, fetched, stop);
        // Whatever was not moved in.
        delete(&new)?;
        filled
    }

    fn fill_through(
        &self,
        new: &Path,
        wanted: &Prefill,
        fetched: Option<&Partial>,
        stop: &Stop,
    ) -> Result<(), ArtifactError> {
        let top = new.join("top");
        fs::create_dir(&top).map_err(failed("make", &top))?;
        let rights = Rights::of_service(self.owner);
        let stage = Stage { top: &top, rights, limits: &self.shared.limits, stop };
        let to = wanted.to.strip_suffix('/').unwrap_or(&wanted.to);
        match (&wanted.source, fetched) {
            (Source::Artifact { id, path }, _) => {
                stage.copy(to, id, &self.shared.site.artifact(id), path)?;
            }
            (Source::Files(files), _) => stage.texts(to, files)?,
            (Source::Url { .. }, Some(fetched)) => stage.file(&wanted.to, fetched)?,
            (Source::Archive { url, .. }, Some(fetched)) => {
                stage.archive(to, &self.what(url), fetched)?;
            }
            (Source::Url { .. } | Source::Archive { .. }, None) => {
                return Err(ArtifactError::BrokeOff);
            }
        }
        fault_point("fill.staged");
        move_in(&top, &self.dir(), wanted.overwrite)?;
        sync_file_system(new)?;
        fault_point("fill.synced");
        Ok(())
    }

    fn note(&self, sources: BTreeSet<String>) -> Result<(), ArtifactError> {
        let filled = self.shared.site.filled();
        ensure(&filled, 0o700)?;
        let text = serde_json::to_vec(&Filled { sources }).map_err(|_| ArtifactError::BrokeOff)?;
        write(&filled, &self.record(), &text, 0o600)?;
        sync_dir(&filled)?;
        fault_point("fill.noted");
        Ok(())
    }
}

fn purge(shared: &Shared, at: &Coordinate) -> Result<(), ArtifactError> {
    let (dir, runtime) = (shared.site.instance(at), shared.site.runtime());
    delete(&shared.site.filled().join(format!("{at}.json")))?;
    fault_point("purge.forgotten");
    {
        let _naming = shared.naming.lock().unwrap_or_else(PoisonError::into_inner);
        if !hide(&runtime, &dir)? {
            return Err(ArtifactError::NoRuntimeDir { at: at.clone() });
        }
        fault_point("purge.hidden");
        let above = dir.parent().unwrap_or(&runtime);
        sync_dir(above)?;
        prune(&runtime, above);
    }
    info!(at = %at, "removed a runtime directory");
    delete_hidden(&runtime);
    fault_point("purge.deleted");
    Ok(())
}

fn list(shared: &Shared) -> Result<BTreeMap<Coordinate, RuntimeDir>, ArtifactError> {
    let (mut found, mut meter) = (BTreeMap::new(), Meter::new());
    let runtime = shared.site.runtime();
    for cell in settled(&runtime)? {
        let cell_dir = runtime.join(&cell);
        for user in settled(&cell_dir)? {
            let user_dir = cell_dir.join(&user);
            for service in settled(&user_dir)? {
                for instance in settled(&user_dir.join(&service))? {
                    let at = format!("{instance}.{service}.{user}.{cell}");
                    let Ok(at) = Coordinate::parse(&at) else { continue };
                    let (bytes, complete) = meter.measure(&shared.site.instance(&at));
                    found.insert(at, RuntimeDir { bytes, complete });
                }
            }
        }
    }
    Ok(found)
}
