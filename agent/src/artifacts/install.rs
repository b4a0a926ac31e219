//! One installation: what is there already, the digest, the download, the tree, and its name.

use std::path::Path;
use std::sync::{Arc, PoisonError};

use coracle_core::artifact::{ArtifactId, ArtifactRef};
use coracle_core::image::Digest;
use coracle_protocol::Timestamp;
use tokio::sync::watch;

use super::build::{Build, INSTALLED, Stop, Waiting};
use super::download::{Download, Fetched};
use super::error::ArtifactError;
use super::partial::Partial;
use super::site::{begin, delete, ensure, key, prune, publish, sync_dir, sync_file_system};
use super::zip::{flawed, plan};
use super::{Installed, InstalledBy, Phase, Progress, Shared, blocking, hold, record};
use crate::clock::wall_now;
use crate::fault::fault_point;
use crate::locks::Held;

/// What an artifact's lock, download and work under way are called.
pub(super) fn key_of(id: &ArtifactId) -> String {
    key(&format!("artifact {id}"))
}

pub(super) async fn install(
    shared: &Arc<Shared>,
    wanted: &ArtifactRef,
    by: InstalledBy,
    progress: &watch::Sender<Progress>,
) -> Result<Installed, ArtifactError> {
    let key = key_of(&wanted.id);
    let held = hold(shared, &key).await;
    progress.send_replace(Progress::default());
    if let Some(installed) = installed(shared, &held, wanted, by).await? {
        return Ok(installed);
    }
    let what = format!("artifact {}", wanted.id);
    let tell = |now| {
        progress.send_replace(now);
    };
    let mut download = Download::new(shared, &held, &key, &what, &tell);
    let mut urls = Vec::new();
    for url in shared.repositories.urls(wanted)? {
        let digest = match &wanted.digest {
            Some(digest) => Some(digest.clone()),
            None => download.digest_of(&url).await?,
        };
        if let Some(digest) = digest {
            if let Some(fetched) = download.fetch(&url, &digest).await? {
                return Unpacking { shared, held: &held, id: &wanted.id, digest, by }
                    .run(fetched, progress)
                    .await;
            }
        }
        urls.push(url.to_string());
    }
    Err(ArtifactError::Absent { what, urls })
}

/// What is there, if it is what is wanted.
async fn installed(
    shared: &Arc<Shared>,
    held: &Arc<Held>,
    wanted: &ArtifactRef,
    by: InstalledBy,
) -> Result<Option<Installed>, ArtifactError> {
    let (shared, wanted) = (shared.clone(), wanted.clone());
    blocking(held, move || {
        let ArtifactRef { id, digest, .. } = wanted;
        let dir = shared.site.artifact(&id);
        let Some(installed) = record::read(&dir, &id)? else { return Ok(None) };
        match digest {
            Some(wanted) if wanted != installed.digest => {
                let installed = installed.digest;
                Err(ArtifactError::OtherDigest { artifact: id, installed, wanted })
            }
            _ => wanted_by(&dir, &id, installed, by).map(Some),
        }
    })
    .await
}

/// Notes who wants what is installed: somebody at the gateway counts more than orders.
pub(super) fn wanted_by(
    dir: &Path,
    id: &ArtifactId,
    mut installed: Installed,
    by: InstalledBy,
) -> Result<Installed, ArtifactError> {
    if by == InstalledBy::Hand && installed.by != by {
        installed.by = by;
        record::note(dir, id, &installed)?;
        sync_dir(dir)?;
    }
    Ok(installed)
}

struct Unpacking<'a> {
    shared: &'a Arc<Shared>,
    held: &'a Arc<Held>,
    id: &'a ArtifactId,
    digest: Digest,
    by: InstalledBy,
}

impl Unpacking<'_> {
    async fn run(
        self,
        fetched: Fetched,
        progress: &watch::Sender<Progress>,
    ) -> Result<Installed, ArtifactError> {
        let turn = self.shared.unpacking.clone().acquire_owned().await;
        let waiting = Waiting::default();
        let (stop, (tell, mut told)) = (waiting.stop(), watch::channel(Progress::default()));
        let (shared, id) = (self.shared.clone(), self.id.clone());
        let (digest, by) = (self.digest, self.by);
        let task = blocking(self.held, move || {
            let _turn = turn;
            fetched.change(|zip| unpack(&shared, zip, &id, digest, by, &stop, &tell))
        });
        tokio::pin!(task);
        loop {
            tokio::select! {
                done = &mut task => return done,
                Ok(()) = told.changed() => {
                    progress.send_replace(*told.borrow_and_update());
                }
            }
        }
    }
}

fn unpack(
    shared: &Shared,
    zip: &mut Partial,
    id: &ArtifactId,
    digest: Digest,
    by: InstalledBy,
    stop: &Stop,
    tell: &watch::Sender<Progress>,
) -> Result<Installed, ArtifactError> {
    let software = shared.site.ensure_software()?;
    let new = begin(&software, &key_of(id))?;
    let made = make(shared, zip, &new, id, digest, by, stop, tell);
    match &made {
        Ok(_) => zip.discard()?,
        Err(error) => {
            delete(&new)?;
            // One that cannot be unpacked for want of room, or that nobody waits for, may be later.
            if matches!(error, ArtifactError::Zip { .. }) {
                zip.discard()?;
            }
        }
    }
    made
}

#[allow(clippy::too_many_arguments, reason = "all of them are one installation")]
fn make(
    shared: &Shared,
    zip: &mut Partial,
    new: &Path,
    id: &ArtifactId,
    digest: Digest,
    by: InstalledBy,
    stop: &Stop,
    tell: &watch::Sender<Progress>,
) -> Result<Installed, ArtifactError> {
    let what = format!("artifact {id}");
    let plan = plan(zip.file()?, &shared.limits, true).map_err(flawed(&what))?;
    zip.require_room(new, plan.on_disk)?;
    let report = |bytes_done| {
        let bytes_total = Some(plan.bytes);
        let phase = Phase::Unpacking;
        tell.send_replace(Progress { phase, bytes_done, bytes_total, ..Progress::default() });
    };
    report(0);
    Build::new(new, INSTALLED, stop, &report)?.unpack(&what, &plan)?;
    let installed = Installed {
        digest,
        zip_bytes: zip.length,
        unpacked_bytes: plan.bytes,
        entries: plan.tree.len() as u64,
        installed_at: Timestamp::from_unix(wall_now().as_secs()),
        by,
    };
    record::note(new, id, &installed)?;
    fault_point("install.unpacked");
    sync_file_system(new)?;
    stop.check()?;
    fault_point("install.synced");
    name(shared, new, id)?;
    Ok(installed)
}

fn name(shared: &Shared, new: &Path, id: &ArtifactId) -> Result<(), ArtifactError> {
    let (dir, software) = (shared.site.artifact(id), shared.site.software());
    let above = dir.parent().unwrap_or(&software);
    let _naming = shared.naming.lock().unwrap_or_else(PoisonError::into_inner);
    let named = ensure(above, 0o755).and_then(|()| {
        fault_point("install.parents_made");
        publish(new, &dir)
    });
    if named.is_err() {
        prune(&software, above);
    }
    named?;
    fault_point("install.named");
    above.ancestors().take_while(|dir| dir.starts_with(&software)).try_for_each(sync_dir)
}
