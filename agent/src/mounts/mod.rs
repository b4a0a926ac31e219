//! What containers find mounted: made here, bound by the runtime.
//!
//! In: complete lists of [`Mount`]s. Out: [`Bind`]s for the specification. In memory
//! (`RUNTIME_DIR/pods/REPLICA`) are config maps, secrets, files and values of variables; on the disk
//! (`STATE_DIR/volumes`) are the volumes. Every change is one rename, so what a crash leaves is
//! either nothing, or the whole, or work under way that the next call takes over.
//!
//! ```text
//! pods/REPLICA/containers/CONTAINER/{file,secret,map,live}-PLACE   PLACE: digest of the path inside
//! pods/REPLICA/containers/CONTAINER/uses/VOLUME                    named volumes that it has
//! pods/REPLICA/CONTAINER.env                                       see [`crate::secret_env`]
//! volumes/{anonymous/REPLICA,named}/NAME
//! ```
//!
//! Directories that hold all pods and all volumes are root's alone; what is inside is open to
//! whichever user a container runs as. The container is the border, not the user in it.
//!
//! Deliberately not here: whether a mount is allowed (that is the policy's and the core's), and
//! mounting, which is the OCI runtime's.

mod config_map;
mod error;
mod host;
mod site;
mod volumes;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use coracle_core::desired::{Mount, MountSource, Piece, Template};
use coracle_core::name::{ContainerName, ReplicaId};
use ring::digest::{SHA256, digest};
use tokio::sync::Semaphore;
use tracing::info;
use zeroize::Zeroizing;

use crate::config::Config;
use crate::fault::fault_point;
use crate::secret_env::{self, HiddenVariables};
use crate::secrets::Secrets;
use crate::status::VolumeStatus;
pub use error::MountError;
use site::{
    Site, all, delete, delete_hidden, ensure_dir, names, parse_replica, remove, write_file,
};

/// Directory of a container with the names of the named volumes that it has.
const USES: &str = "uses";
/// File of a pod with what [`Mounts::refresh`] brought its config maps to.
const IN_PLACE: &str = "in-place";
/// File of the directory of pods with the boot that they are of.
const BOOT: &str = "boot-id";

/// A bind mount for the specification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bind {
    /// On the gateway.
    pub source: PathBuf,
    /// In the container.
    pub path: String,
    /// As the OCI runtime takes them.
    pub options: Vec<String>,
}

/// The variables of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Variables {
    /// For the specification.
    pub env: BTreeMap<String, String>,
    /// Whether some are hidden, so that the container must be made through the wrapper: see
    /// [`crate::secret_env::runtime_options`].
    pub any_hidden: bool,
}

/// What a pod has in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodFiles {
    /// What [`Mounts::refresh`] was told of the config maps that it shows; empty if anything of them
    /// was changed since.
    pub in_place: String,
}

/// What containers find mounted. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Mounts {
    site: Arc<Site>,
    secrets: Arc<Secrets>,
    /// Held while a named volume is taken into use or away.
    volumes: Arc<Mutex<()>>,
    /// Sizes are computed by one at a time.
    measuring: Arc<Semaphore>,
}

impl Mounts {
    /// Touches nothing yet.
    pub fn new(config: &Config, secrets: Arc<Secrets>) -> Self {
        Self {
            site: Arc::new(Site::new(&config.state_dir, &config.runtime_dir)),
            secrets,
            volumes: Arc::default(),
            measuring: Arc::new(Semaphore::new(1)),
        }
    }

    /// Makes everything that a container is to have, from whatever there is. For containers that do
    /// not run: what they had and are not to have is removed.
    ///
    /// # Errors
    /// Something of it cannot be made. What was made before stays, for the next try.
    pub async fn make(
        &self,
        replica: &ReplicaId,
        container: &ContainerName,
        wanted: &[Mount],
    ) -> Result<Vec<Bind>, MountError> {
        let (this, replica, container, wanted) =
            (self.clone(), replica.clone(), container.clone(), wanted.to_vec());
        blocking(move || this.make_now(&replica, &container, &wanted)).await
    }

    /// The variables of a container, for its specification. Those with secrets have a placeholder
    /// in place of their value, and the values are put where [`crate::secret_env`] finds them.
    ///
    /// # Errors
    /// A secret cannot be had, or would reach a disk.
    pub async fn variables(
        &self,
        replica: &ReplicaId,
        container: &ContainerName,
        variables: &BTreeMap<String, Template>,
    ) -> Result<Variables, MountError> {
        let (this, replica, container, variables) =
            (self.clone(), replica.clone(), container.clone(), variables.clone());
        blocking(move || this.variables_now(&replica, &container, &variables)).await
    }

    /// Shows running containers the newest contents of config maps with `in_place`, and notes that
    /// they are now at `in_place`, which [`list`](Self::list) then tells. Containers that were not
    /// made yet are left out. Tells whether anything changed.
    ///
    /// # Errors
    /// Something cannot be written, or what a container shows was deleted; nothing is noted then.
    pub async fn refresh(
        &self,
        replica: &ReplicaId,
        pod: &[(ContainerName, Vec<Mount>)],
        in_place: &str,
    ) -> Result<bool, MountError> {
        let (this, replica, pod, in_place) =
            (self.clone(), replica.clone(), pod.to_vec(), in_place.to_owned());
        blocking(move || this.refresh_now(&replica, &pod, &in_place)).await
    }

    /// Removes what a replica has in memory, and its anonymous volumes. None is no error.
    ///
    /// # Errors
    /// Something cannot be removed.
    pub async fn remove(&self, replica: &ReplicaId) -> Result<(), MountError> {
        let (site, name) = (self.site.clone(), replica.to_string());
        blocking(move || {
            remove(&site.pods, &name)?;
            remove(&site.anonymous, &name)
        })
        .await
    }

    /// Every replica that has something in memory or an anonymous volume.
    ///
    /// # Errors
    /// The directories cannot be read.
    pub fn list(&self) -> Result<BTreeMap<ReplicaId, PodFiles>, MountError> {
        let mut pods = BTreeMap::new();
        for name in names(&self.site.anonymous)? {
            pods.extend(parse_replica(&name).map(|replica| (replica, PodFiles::default())));
        }
        for name in names(&self.site.pods)? {
            let Some(replica) = parse_replica(&name) else { continue };
            let note = fs::read_to_string(self.site.pod(&replica).join(IN_PLACE));
            let in_place = note.unwrap_or_default();
            pods.insert(replica, PodFiles { in_place });
        }
        Ok(pods)
    }

    /// Once at start: removes what another boot left in memory, and what crashes left anywhere.
    /// Anonymous volumes stay: [`list`](Self::list) tells whose there are.
    ///
    /// # Errors
    /// Something cannot be removed; the rest was.
    pub async fn sweep(&self) -> Result<(), MountError> {
        let site = self.site.clone();
        blocking(move || sweep(&site)).await
    }

    /// Whether secrets can be given to containers: their directory is in memory.
    ///
    /// # Errors
    /// It is not, or cannot be made.
    pub fn check_memory(&self) -> Result<(), MountError> {
        self.site.ensure_pods()?;
        self.site.require_memory()
    }

    /// The named volumes with their sizes. `users`: which workloads the orders in force give them.
    ///
    /// # Errors
    /// The directories cannot be read.
    pub async fn volumes(
        &self,
        users: BTreeMap<String, BTreeSet<String>>,
    ) -> Result<Vec<VolumeStatus>, MountError> {
        let _turn = self.measuring.acquire().await.map_err(|_| MountError::BrokeOff)?;
        let site = self.site.clone();
        blocking(move || volumes::list(&site, users)).await
    }

    /// Removes a named volume with all that is in it. `users`: the workloads whose orders name it.
    ///
    /// # Errors
    /// There is no such volume, or it is in use, or cannot be removed.
    pub async fn remove_volume(
        &self,
        name: &str,
        users: BTreeSet<String>,
    ) -> Result<(), MountError> {
        let (this, name) = (self.clone(), name.to_owned());
        blocking(move || {
            {
                let _held = this.volumes.lock().unwrap_or_else(PoisonError::into_inner);
                volumes::take(&this.site, &name, &users)?;
            }
            info!(volume = name, "removed a volume");
            delete_hidden(&this.site.named);
            Ok(())
        })
        .await
    }

    fn make_now(
        &self,
        replica: &ReplicaId,
        container: &ContainerName,
        wanted: &[Mount],
    ) -> Result<Vec<Bind>, MountError> {
        self.site.ensure_pods()?;
        let dir = self.site.container(replica, container);
        ensure_dir(&dir, 0o700)?;
        let mut keep: BTreeSet<String> = wanted.iter().filter_map(in_memory).collect();
        keep.insert(USES.to_owned());
        for name in names(&dir)?.iter().filter(|name| !keep.contains(*name)) {
            delete(&dir.join(name))?;
        }
        self.mark_uses(&dir, wanted)?;
        fault_point("container.cleaned");
        wanted.iter().map(|wanted| self.make_one(replica, &dir, wanted)).collect()
    }

    /// Says which named volumes the container has, before it has them.
    fn mark_uses(&self, dir: &Path, wanted: &[Mount]) -> Result<(), MountError> {
        let _held = self.volumes.lock().unwrap_or_else(PoisonError::into_inner);
        let uses = dir.join(USES);
        ensure_dir(&uses, 0o700)?;
        let mut volumes = BTreeSet::new();
        for wanted in wanted {
            if let MountSource::Named(volume) = &wanted.source {
                volumes.insert(volume.as_str());
            }
        }
        for name in names(&uses)?.iter().filter(|name| !volumes.contains(name.as_str())) {
            delete(&uses.join(name))?;
        }
        for volume in volumes {
            write_file(&uses, volume, b"", 0o600)?;
        }
        fault_point("use.marked");
        Ok(())
    }

    fn make_one(
        &self,
        replica: &ReplicaId,
        dir: &Path,
        wanted: &Mount,
    ) -> Result<Bind, MountError> {
        let place = in_memory(wanted).unwrap_or_default();
        let source = match &wanted.source {
            MountSource::Anonymous(name) => {
                Site::ensure_closed(&self.site.anonymous)?;
                let dir = self.site.anonymous.join(replica.to_string());
                volumes::ensure(&dir, name.as_str())?
            }
            MountSource::Named(volume) => {
                let name = volume.as_str();
                let _held = self.volumes.lock().unwrap_or_else(PoisonError::into_inner);
                Site::ensure_closed(&self.site.named)?;
                let path = volumes::ensure(&self.site.named, name)?;
                volumes::touch(&self.site, name)?;
                path
            }
            MountSource::Host(path) => host::resolve(path)?,
            MountSource::ConfigMap { files, in_place, .. } => {
                let path = dir.join(&place);
                match in_place {
                    true => self.write_in_place(replica, &path, files)?,
                    false => config_map::write(&path, files)?,
                };
                path
            }
            MountSource::Secret(name) => {
                self.site.require_memory()?;
                let value = self.secrets.value(name.as_str())?;
                write_file(dir, &place, value.expose(), 0o444)?
            }
            MountSource::File(content) => write_file(dir, &place, content.as_bytes(), 0o444)?,
        };
        Ok(Bind { source, path: wanted.path.clone(), options: options(wanted) })
    }

    fn variables_now(
        &self,
        replica: &ReplicaId,
        container: &ContainerName,
        variables: &BTreeMap<String, Template>,
    ) -> Result<Variables, MountError> {
        let mut hidden = HiddenVariables::default();
        let mut env = BTreeMap::new();
        for (variable, Template(pieces)) in variables {
            let mut value = Zeroizing::new(String::new());
            let mut is_secret = false;
            for piece in pieces {
                match piece {
                    Piece::Text(text) => value.push_str(text),
                    Piece::Replica => value.push_str(&replica.index.to_string()),
                    Piece::Secret(name) => {
                        value.push_str(&self.secrets.text(name.as_str())?);
                        is_secret = true;
                    }
                }
            }
            if is_secret {
                hidden.add(variable, value);
                env.insert(variable.clone(), secret_env::PLACEHOLDER.to_owned());
            } else {
                env.insert(variable.clone(), std::mem::take(&mut *value));
            }
        }
        let (dir, name) = (self.site.pod(replica), secret_env::file_name(container));
        let any_hidden = !hidden.is_empty();
        if any_hidden {
            self.site.ensure_pods()?;
            self.site.require_memory()?;
            ensure_dir(&dir, 0o700)?;
            write_file(&dir, &name, &hidden.encode(), 0o600)?;
        } else {
            delete(&dir.join(&name))?;
        }
        Ok(Variables { env, any_hidden })
    }

    fn refresh_now(
        &self,
        replica: &ReplicaId,
        pod: &[(ContainerName, Vec<Mount>)],
        in_place: &str,
    ) -> Result<bool, MountError> {
        // A container that has no directory was not made yet, and it is not for us to begin; but
        // some container of a pod that is shown anything has one.
        let any_made = pod.iter().any(|(name, _)| self.site.container(replica, name).is_dir());
        let (mut changed, mut missing) = (false, None);
        for (container, wanted) in pod {
            let dir = self.site.container(replica, container);
            for wanted in wanted {
                let MountSource::ConfigMap { files, in_place: true, .. } = &wanted.source else {
                    continue;
                };
                let path = dir.join(in_memory(wanted).unwrap_or_default());
                if path.is_dir() {
                    changed |= self.write_in_place(replica, &path, files)?;
                } else if dir.is_dir() || !any_made {
                    missing.get_or_insert(path);
                }
            }
        }
        if let Some(path) = missing {
            delete(&self.site.pod(replica).join(IN_PLACE))?;
            return Err(MountError::MapGone { path });
        }
        let pod = self.site.pod(replica);
        if pod.is_dir() {
            write_file(&pod, IN_PLACE, in_place.as_bytes(), 0o600)?;
        }
        Ok(changed)
    }

    /// Before anything changes, what was noted is no longer so.
    fn write_in_place(
        &self,
        replica: &ReplicaId,
        dir: &Path,
        files: &BTreeMap<String, String>,
    ) -> Result<bool, MountError> {
        if config_map::in_force(dir).as_ref() != Some(&config_map::version(files)) {
            delete(&self.site.pod(replica).join(IN_PLACE))?;
        }
        config_map::write(dir, files)
    }
}

/// Name of what is made in memory for a mount: by its place in the container, which only one has.
fn in_memory(wanted: &Mount) -> Option<String> {
    let kind = match &wanted.source {
        MountSource::Anonymous(_) | MountSource::Named(_) | MountSource::Host(_) => return None,
        MountSource::ConfigMap { in_place: true, .. } => "live",
        MountSource::ConfigMap { .. } => "map",
        MountSource::Secret(_) => "secret",
        MountSource::File(_) => "file",
    };
    let place = digest(&SHA256, wanted.path.as_bytes());
    Some(format!("{kind}-{}", config_map::hex(&place.as_ref()[..8])))
}

/// Without submounts (`bind`, not `rbind`): those would stay writable in a read-only mount, and
/// bring along what nobody ordered. Nothing that is mounted later on either side is seen on the
/// other.
fn options(wanted: &Mount) -> Vec<String> {
    let (read_only, more): (bool, &[&str]) = match &wanted.source {
        MountSource::Anonymous(_) | MountSource::Named(_) | MountSource::Host(_) => {
            (wanted.read_only, &[])
        }
        MountSource::ConfigMap { .. } | MountSource::Secret(_) | MountSource::File(_) => {
            (true, &["noexec"])
        }
    };
    let access = if read_only { "ro" } else { "rw" };
    let options = ["bind", "rprivate", access, "nosuid", "nodev"];
    options.iter().chain(more).map(|&option| option.to_owned()).collect()
}

fn sweep(site: &Site) -> Result<(), MountError> {
    let dirs = [&site.pods, &site.anonymous, &site.named];
    let temporary = dirs.map(|dir| site::delete_temporary(dir));
    all([sweep_memory(site)].into_iter().chain(temporary))
}

fn sweep_memory(site: &Site) -> Result<(), MountError> {
    site.ensure_pods()?;
    let boot = crate::machine::read().boot_id;
    if fs::read_to_string(site.pods.join(BOOT)).ok().as_deref() != Some(boot.as_str()) {
        let names = names(&site.pods)?;
        let old = names.iter().filter(|name| *name != BOOT);
        all(old.map(|name| delete(&site.pods.join(name))))?;
        write_file(&site.pods, BOOT, boot.as_bytes(), 0o600)?;
    }
    Ok(())
}

/// Runs what waits for a disk on a thread that may wait.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, MountError> + Send + 'static,
) -> Result<T, MountError> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(MountError::BrokeOff))
}
