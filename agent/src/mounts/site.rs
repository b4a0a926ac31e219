//! Directories, and the few ways in which they are changed: whole or not at all.
//!
//! Names that begin with a dot are work under way or on its way out. What a crash leaves of them is
//! taken over by whoever makes the same thing again, or swept.

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use coracle_core::name::{ContainerName, ReplicaId, WorkloadName};
use nix::sys::statfs::statfs;
use tracing::warn;

use super::error::{MountError, failed};
use crate::error_chain::chain;
use crate::fault::fault_point;
use crate::file_system::is_memory;
use crate::file_tree::{delete_tree, is_taken};

const NEW: &str = ".new-";
const GONE: &str = ".gone-";

/// Where everything is.
#[derive(Clone, Debug)]
pub(super) struct Site {
    /// In memory: a directory for each replica.
    pub(super) pods: PathBuf,
    /// Persistent: a directory for each replica that has anonymous volumes.
    pub(super) anonymous: PathBuf,
    /// Persistent: the named volumes.
    pub(super) named: PathBuf,
    /// Persistent: a file for each named volume, touched when it is used.
    pub(super) used: PathBuf,
}

impl Site {
    pub(super) fn new(state_dir: &Path, runtime_dir: &Path) -> Self {
        let volumes = state_dir.join("volumes");
        Self {
            pods: runtime_dir.join("pods"),
            anonymous: volumes.join("anonymous"),
            named: volumes.join("named"),
            used: volumes.join("used"),
        }
    }

    pub(super) fn pod(&self, replica: &ReplicaId) -> PathBuf {
        self.pods.join(replica.to_string())
    }

    /// What one container finds mounted.
    pub(super) fn container(&self, replica: &ReplicaId, container: &ContainerName) -> PathBuf {
        self.pod(replica).join("containers").join(container.as_str())
    }

    /// Makes the directory of all pods, or of all volumes of a kind. Others get no further than
    /// here, so that what is inside can be open to whichever user a container runs as.
    pub(super) fn ensure_closed(dir: &Path) -> Result<(), MountError> {
        ensure_dir(dir, 0o700)?;
        let mode = fs::metadata(dir).map_err(failed("look at", dir))?.permissions().mode();
        if mode & 0o7777 != 0o700 {
            set_mode(dir, 0o700).map_err(failed("close", dir))?;
        }
        Ok(())
    }

    /// The directory of pods, in memory.
    pub(super) fn ensure_pods(&self) -> Result<(), MountError> {
        Self::ensure_closed(&self.pods)
    }

    /// The directory of pods is where nothing reaches a disk.
    pub(super) fn require_memory(&self) -> Result<(), MountError> {
        let kind = statfs(&self.pods)
            .map_err(|error| failed("look at", &self.pods)(error.into()))?
            .filesystem_type();
        if is_memory(kind) {
            Ok(())
        } else {
            Err(MountError::NotInMemory { path: self.pods.clone() })
        }
    }
}

/// `web.0`, as [`ReplicaId`] writes it.
pub(super) fn parse_replica(text: &str) -> Option<ReplicaId> {
    let (workload, index) = text.rsplit_once('.')?;
    let replica =
        ReplicaId { workload: WorkloadName::parse(workload).ok()?, index: index.parse().ok()? };
    (replica.to_string() == text).then_some(replica)
}

pub(super) fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, Permissions::from_mode(mode))
}

/// Makes a directory and those above it.
pub(super) fn ensure_dir(dir: &Path, mode: u32) -> Result<(), MountError> {
    DirBuilder::new().recursive(true).mode(mode).create(dir).map_err(failed("make", dir))
}

/// Where something is made before it gets its name.
pub(super) fn under_way(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{NEW}{name}"))
}

/// Whether this is work under way, or on its way out.
pub(super) fn is_temporary(name: &str) -> bool {
    name.starts_with('.')
}

/// Names in a directory; none if there is no such directory. Names that are not UTF-8 are not ours.
pub(super) fn names(dir: &Path) -> Result<Vec<String>, MountError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed("list", dir)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed("list", dir))?;
        names.extend(entry.file_name().into_string().ok());
    }
    names.sort_unstable();
    Ok(names)
}

/// Removes whatever is there. Links are removed, never followed. Nothing there is no error.
pub(super) fn delete(path: &Path) -> Result<(), MountError> {
    let result = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => delete_tree(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Takes `dir/name` out of sight by one rename, then deletes it: nobody ever finds a half of it.
/// It is removed once it is hidden. That it still takes room is no error: the next removal and the
/// next sweep try again.
pub(super) fn remove(dir: &Path, name: &str) -> Result<(), MountError> {
    hide(dir, name)?;
    fault_point("remove.renamed");
    delete_hidden(dir);
    fault_point("remove.deleted");
    Ok(())
}

/// The first half of [`remove`]: under a name that nothing else has. Nothing there is no error.
pub(super) fn hide(dir: &Path, name: &str) -> Result<(), MountError> {
    let path = dir.join(name);
    let mut number = 0_u32;
    loop {
        match fs::rename(&path, dir.join(format!("{GONE}{number}"))) {
            Ok(()) => return Ok(()),
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound => return Ok(()),
                kind if is_taken(kind) && number < u32::MAX => number += 1,
                _ => return Err(failed("remove", &path)(error)),
            },
        }
    }
}

/// The second half of [`remove`]: deletes what was hidden in a directory, now or before.
pub(super) fn delete_hidden(dir: &Path) {
    let names = names(dir).unwrap_or_default();
    for name in names.iter().filter(|name| name.starts_with(GONE)) {
        if let Err(error) = delete(&dir.join(name)) {
            warn!(error = chain(&error), "something that was removed still takes room");
        }
    }
}

/// Removes what crashes left in a directory. Tells what cannot be.
pub(super) fn delete_temporary(dir: &Path) -> Result<(), MountError> {
    let names = names(dir)?;
    let temporary = names.iter().filter(|name| is_temporary(name));
    all(temporary.map(|name| delete(&dir.join(name))))
}

/// Does all of it, whatever fails; then tells what failed.
pub(super) fn all(
    results: impl IntoIterator<Item = Result<(), MountError>>,
) -> Result<(), MountError> {
    let mut failures: Vec<_> = results.into_iter().filter_map(Result::err).collect();
    match failures.len() {
        0 => Ok(()),
        1 => Err(failures.remove(0)),
        _ => Err(MountError::Several { failures }),
    }
}

/// Writes `dir/name`, whole or not at all.
pub(super) fn write_file(
    dir: &Path,
    name: &str,
    content: &[u8],
    mode: u32,
) -> Result<PathBuf, MountError> {
    let (path, new) = (dir.join(name), under_way(dir, name));
    delete(&new)?;
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        fault_point("file.created");
        file.write_all(content)?;
        // Whatever the umask is.
        set_mode(&new, mode)?;
        fault_point("file.written");
        fs::rename(&new, &path)
    };
    write().map_err(failed("write", &path))?;
    fault_point("file.renamed");
    Ok(path)
}
