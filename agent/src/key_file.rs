//! Keys that are made on this device and never leave it: one file each, made at first need. Keys that
//! others gave are read by the same rules.
//!
//! In: a directory and a name. Out: the file's bytes. A file that is there is never written again,
//! whatever is in it: a key that is lost takes with it all that depends on it.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use tracing::{info, warn};
use zeroize::Zeroizing;

/// No key file is larger, in bytes.
const MAX_BYTES: usize = 4096;

/// A key cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The file or its directory cannot be read or made.
    #[error("cannot {action} the key file {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What is in the file is not a key. It is left as it is.
    #[error(
        "the key file {path} is damaged; it is not replaced, because what depends on it would be \
         lost: put the right one back, or remove it to have a new key made"
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
    },
}

/// The bytes of the key file `name` in `dir`; if there is none, it is made of what `make` gives.
///
/// # Errors
/// It cannot be read or made.
pub fn read_or_make(
    dir: &Path,
    name: &str,
    make: impl FnOnce() -> Zeroizing<Vec<u8>>,
) -> Result<Zeroizing<Vec<u8>>, KeyFileError> {
    let path = dir.join(name);
    let failed = |action| {
        let path = path.clone();
        move |source| KeyFileError::Io { action, path, source }
    };
    match read(&path) {
        Ok(bytes) => return Ok(bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("read")(error)),
    }
    write_new(dir, &path, &make()).map_err(failed("make"))?;
    // Whoever was first made it.
    read(&path).map_err(failed("read"))
}

/// The bytes of a key file that others made: a regular file and no link, closed to others from now
/// on.
///
/// # Errors
/// It cannot be read.
pub fn read_given(path: &Path) -> Result<Zeroizing<Vec<u8>>, KeyFileError> {
    let failed = |source| KeyFileError::Io { action: "read", path: path.to_owned(), source };
    read(path).map_err(failed)
}

fn read(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        warn!(path = %path.display(), "a key file was open to others; it is closed to them now");
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
    }
    // Room for all of it, so that no copy is left behind by growing.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_BYTES + 1));
    file.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Whole or not at all, and never in place of another.
fn write_new(dir: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    match fs::hard_link(&new, path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    fs::remove_file(&new)?;
    File::open(dir)?.sync_all()?;
    info!(path = %path.display(), "made a key of this device");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(bytes: &[u8]) -> impl FnOnce() -> Zeroizing<Vec<u8>> {
        let bytes = bytes.to_vec();
        move || Zeroizing::new(bytes)
    }

    #[test]
    fn a_key_is_made_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let keys = dir.path().join("state/keys");
        // What a crash left.
        fs::create_dir_all(&keys).unwrap();
        fs::write(keys.join("a.key.new"), "half").unwrap();
        assert_eq!(&*read_or_make(&keys, "a.key", key(b"one")).unwrap(), b"one");
        assert_eq!(&*read_or_make(&keys, "a.key", key(b"two")).unwrap(), b"one");
        let mode = fs::metadata(keys.join("a.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(&keys).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn a_key_that_was_open_to_others_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.key");
        fs::write(&path, "one").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(&*read_or_make(dir.path(), "a.key", key(b"two")).unwrap(), b"one");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn links_and_directories_are_no_keys() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("a.key")).unwrap();
        fs::write(dir.path().join("elsewhere"), "one").unwrap();
        std::os::unix::fs::symlink("elsewhere", dir.path().join("b.key")).unwrap();
        for name in ["a.key", "b.key"] {
            let error = read_or_make(dir.path(), name, key(b"two")).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
        assert_eq!(fs::read(dir.path().join("elsewhere")).unwrap(), b"one");
    }
}
