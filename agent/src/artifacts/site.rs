//! Where everything is below PREFIX, and the few ways in which it changes: whole or not at all.
//!
//! Names that begin with a dot are work under way or on its way out; neither groups nor cells begin
//! with one.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use coracle_core::artifact::{ArtifactId, Coordinate};
use ring::digest::{SHA256, digest};
use rustix::fs::{AtFlags, CWD, RenameFlags, renameat_with, statvfs};
use tracing::warn;

use super::error::{ArtifactError, failed};
use crate::error_chain::chain;
use crate::file_tree::{delete_tree, is_taken};

pub(super) const NEW: &str = ".new-";
const GONE: &str = ".gone-";
/// Least that stays free, or a twentieth of a small file system.
const MARGIN: u64 = 16 << 20;

#[derive(Clone, Debug)]
pub(super) struct Site {
    pub(super) prefix: PathBuf,
}

impl Site {
    /// All artifacts: `GROUP/NAME/VERSION`.
    pub(super) fn software(&self) -> PathBuf {
        self.prefix.join("software")
    }

    /// What is not downloaded to its end.
    pub(super) fn downloads(&self) -> PathBuf {
        self.prefix.join("downloads")
    }

    /// All runtime directories: `CELL/USER/SERVICE/INSTANCE`.
    pub(super) fn runtime(&self) -> PathBuf {
        self.prefix.join("runtime")
    }

    pub(super) fn artifact(&self, id: &ArtifactId) -> PathBuf {
        self.software().join(id.group()).join(id.name()).join(id.version())
    }

    pub(super) fn instance(&self, at: &Coordinate) -> PathBuf {
        let service = self.runtime().join(&*at.cell).join(&*at.user).join(&*at.service);
        service.join(&*at.instance)
    }

    /// What was put into runtime directories: a file for each.
    pub(super) fn filled(&self) -> PathBuf {
        self.runtime().join(".filled")
    }

    pub(super) fn ensure_software(&self) -> Result<PathBuf, ArtifactError> {
        ensure(&self.prefix, 0o755)?;
        let software = self.software();
        ensure(&software, 0o755)?;
        Ok(software)
    }

    pub(super) fn ensure_downloads(&self) -> Result<PathBuf, ArtifactError> {
        ensure(&self.prefix, 0o755)?;
        let downloads = self.downloads();
        ensure(&downloads, 0o700)?;
        Ok(downloads)
    }

    pub(super) fn ensure_runtime(&self) -> Result<PathBuf, ArtifactError> {
        ensure(&self.prefix, 0o755)?;
        let runtime = self.runtime();
        ensure(&runtime, 0o755)?;
        Ok(runtime)
    }
}

/// A short name that only this text has.
pub(super) fn key(text: &str) -> String {
    hex(&digest(&SHA256, text.as_bytes()).as_ref()[..12])
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Makes a directory if it is not there, and those above it. One that is there is left as it is.
pub(super) fn ensure(dir: &Path, mode: u32) -> Result<(), ArtifactError> {
    let make = || match fs::DirBuilder::new().mode(mode).create(dir) {
        // Whatever the umask is.
        Ok(()) => fs::set_permissions(dir, Permissions::from_mode(mode)),
        Err(error) => Err(error),
    };
    match make() {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            match dir.parent() {
                Some(above) if !above.as_os_str().is_empty() => ensure(above, 0o755)?,
                _ => return Err(failed("make", dir)(error)),
            }
            make().map_err(failed("make", dir))
        }
        made => made.map_err(failed("make", dir)),
    }
}

/// Makes an empty directory for work under way, for root alone.
pub(super) fn begin(dir: &Path, key: &str) -> Result<PathBuf, ArtifactError> {
    let new = dir.join(format!("{NEW}{key}"));
    delete(&new)?;
    fs::DirBuilder::new().mode(0o700).create(&new).map_err(failed("make", &new))?;
    Ok(new)
}

/// Gives what was under way its name; nothing may have it yet.
pub(super) fn publish(new: &Path, path: &Path) -> Result<(), ArtifactError> {
    let name = failed("name", path);
    renameat_with(CWD, new, CWD, path, RenameFlags::NOREPLACE).map_err(name)
}

/// Names in a directory; none if there is no such directory. Names that are not UTF-8 are not ours.
pub(super) fn names(dir: &Path) -> Result<Vec<String>, ArtifactError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if is_missing(&error) => return Ok(Vec::new()),
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

/// Names that are not work under way.
pub(super) fn settled(dir: &Path) -> Result<Vec<String>, ArtifactError> {
    let mut names = names(dir)?;
    names.retain(|name| !name.starts_with('.'));
    Ok(names)
}

pub(super) fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Removes whatever is there. Links are removed, never followed. Nothing there is no error.
pub(super) fn delete(path: &Path) -> Result<(), ArtifactError> {
    let result = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => delete_tree(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match result {
        Err(error) if !is_missing(&error) => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Takes something out of sight by one rename, to below `top`. Tells whether it was there.
pub(super) fn hide(top: &Path, path: &Path) -> Result<bool, ArtifactError> {
    let mut number = 0_u32;
    loop {
        let gone = top.join(format!("{GONE}{number}"));
        let renamed = renameat_with(CWD, path, CWD, &gone, RenameFlags::NOREPLACE);
        match renamed.map_err(io::Error::from) {
            Ok(()) => return Ok(true),
            Err(error) if is_missing(&error) => return Ok(false),
            Err(error) if is_taken(error.kind()) && number < u32::MAX => number += 1,
            Err(error) => return Err(failed("remove", path)(error)),
        }
    }
}

/// Deletes what was hidden, now or before. That it still takes room is no error: the next removal
/// and the next sweep try again.
pub(super) fn delete_hidden(top: &Path) {
    for name in names(top).unwrap_or_default().iter().filter(|name| name.starts_with(GONE)) {
        if let Err(error) = delete(&top.join(name)) {
            warn!(error = chain(&error), "something that was removed still takes room");
        }
    }
}

/// Removes directories that became empty, up to `top`, which stays.
pub(super) fn prune(top: &Path, dir: &Path) {
    let mut dir = Some(dir);
    while let Some(at) = dir.filter(|at| at.starts_with(top) && *at != top) {
        // One that is not empty ends this.
        if fs::remove_dir(at).is_err_and(|error| !is_missing(&error)) {
            return;
        }
        dir = at.parent();
    }
}

/// Brings a directory's names to the disk.
pub(super) fn sync_dir(dir: &Path) -> Result<(), ArtifactError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("sync", dir))
}

/// Brings the whole file system to the disk: the many files of a tree at once.
pub(super) fn sync_file_system(dir: &Path) -> Result<(), ArtifactError> {
    let open = File::open(dir).map_err(failed("sync", dir))?;
    rustix::fs::syncfs(open).map_err(failed("sync", dir))
}

/// Writes a small file, whole or not at all.
pub(super) fn write(
    dir: &Path,
    name: &str,
    content: &[u8],
    mode: u32,
) -> Result<(), ArtifactError> {
    let (path, new) = (dir.join(name), dir.join(format!("{name}{NEW}")));
    delete(&new)?;
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(content)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&new, &path)
    };
    let written = write().map_err(failed("write", &path));
    if written.is_err() {
        delete(&new).ok();
    }
    written
}

/// Whether so many bytes may be written, and a margin stays for others.
pub(super) fn require_room(dir: &Path, what: &str, bytes: u64) -> Result<(), ArtifactError> {
    let found = statvfs(dir).map_err(failed("look at", dir))?;
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    let size = found.f_blocks.saturating_mul(found.f_frsize);
    let needed = bytes.saturating_add(MARGIN.min(size / 20));
    if free < needed {
        return Err(ArtifactError::NoRoom {
            what: what.to_owned(),
            path: dir.to_owned(),
            needed,
            free,
        });
    }
    Ok(())
}

/// Whether something is there, whatever it is.
pub(super) fn exists(path: &Path) -> Result<bool, ArtifactError> {
    match rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW).map_err(io::Error::from) {
        Ok(_) => Ok(true),
        Err(error) if is_missing(&error) => Ok(false),
        Err(error) => Err(failed("look at", path)(error)),
    }
}
