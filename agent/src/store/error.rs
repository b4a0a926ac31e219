use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use coracle_core::backoff::Retry;

use super::lmdb::MAP_BYTES;

/// Something could not be stored or read. What was stored before is unchanged.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has the directory.
    #[error("state directory {dir} is in use by another agent; stop that one first")]
    InUse {
        /// Which directory.
        dir: PathBuf,
    },
    /// The directory or a file in it cannot be made, opened or written.
    #[error(
        "cannot write the state in {path}; check its owner and that its file system is writable"
    )]
    NotWritable {
        /// Which directory or file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file system is full.
    #[error("no space left for the state in {path}; free some space on its file system")]
    DiskFull {
        /// Which directory or file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// LMDB's fixed map is full.
    #[error("the state store has reached its fixed size of {} MiB", MAP_BYTES >> 20)]
    MapFull,
    /// One record is larger than allowed.
    #[error("{what} of {size} bytes cannot be stored; at most {limit} are allowed")]
    TooLarge {
        /// What.
        what: &'static str,
        /// Its size in bytes.
        size: usize,
        /// What is allowed, in bytes.
        limit: usize,
    },
    /// There are more records than can be meant.
    #[error("{count} {what} cannot be stored; at most {limit} are allowed")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there would be.
        count: u64,
        /// How many are allowed.
        limit: u64,
    },
    /// A container's record under the name of a workload, or the other way round.
    #[error("record {key:?} was not stored: it is of another kind than its name")]
    OtherKind {
        /// Its name in the store.
        key: String,
    },
    /// The generation was accepted already with another content, or is older.
    #[error("generation {generation} is not newer than {highest}, which was accepted already")]
    NotNewer {
        /// Of the order.
        generation: u64,
        /// Accepted already.
        highest: u64,
    },
    /// The file could not be checked, so it was not opened.
    #[error("the state store was not opened because it could not be checked: {reason}")]
    NotChecked {
        /// Why.
        reason: String,
    },
    /// The file is not as it should be. It is checked, and set aside if need be, at the next try.
    #[error("the state store is damaged: {reason}")]
    Damaged {
        /// What is wrong.
        reason: String,
    },
    /// A file operation failed.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// LMDB gave another error.
    #[error("the state store failed")]
    Database(#[source] heed::Error),
    /// The store was closed.
    #[error("the state store is closed")]
    Closed,
}

impl StoreError {
    /// When another try is worth it.
    pub fn retry(&self) -> Retry {
        match self {
            Self::NotWritable { .. } | Self::DiskFull { .. } => {
                Retry::After(Duration::from_secs(30))
            }
            Self::MapFull
            | Self::TooLarge { .. }
            | Self::TooMany { .. }
            | Self::OtherKind { .. }
            | Self::NotNewer { .. }
            | Self::InUse { .. }
            | Self::Closed => Retry::Rarely,
            Self::NotChecked { .. }
            | Self::Damaged { .. }
            | Self::Io { .. }
            | Self::Database(_) => Retry::Backoff,
        }
    }

    /// The error and its causes in one line.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut next = std::error::Error::source(self);
        while let Some(error) = next {
            text.push_str(": ");
            text.push_str(&error.to_string());
            next = error.source();
        }
        text
    }

    /// Classifies what the operating system said of `action` on `path`.
    pub(super) fn io(action: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        use nix::errno::Errno;
        let path = path.into();
        match source.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOSPC | Errno::EDQUOT) => Self::DiskFull { path, source },
            Some(Errno::EROFS | Errno::EACCES | Errno::EPERM) => Self::NotWritable { path, source },
            _ => Self::Io { action, path, source },
        }
    }

    /// Classifies an error of LMDB on the file at `path`.
    pub(super) fn lmdb(action: &'static str, path: impl Into<PathBuf>, error: heed::Error) -> Self {
        use heed::MdbError;
        let path = path.into();
        match error {
            heed::Error::Io(source) => Self::io(action, &path, short_of_space(source, &path)),
            heed::Error::Mdb(MdbError::Other(code)) => {
                let source = io::Error::from_raw_os_error(code);
                Self::io(action, &path, short_of_space(source, &path))
            }
            heed::Error::Mdb(MdbError::MapFull) => Self::MapFull,
            heed::Error::Mdb(
                error @ (MdbError::PageNotFound
                | MdbError::Corrupted
                | MdbError::VersionMismatch
                | MdbError::Invalid
                | MdbError::Incompatible
                | MdbError::MapResized),
            ) => Self::Damaged { reason: error.to_string() },
            other => Self::Database(other),
        }
    }

    /// After this error the LMDB environment must be closed and opened anew.
    pub(super) fn ends_the_environment(&self) -> bool {
        matches!(self, Self::Database(_) | Self::Damaged { .. } | Self::Io { .. })
    }
}

/// LMDB says EIO when the kernel took only a part of a write, which is what happens when the last
/// bytes of a file system are given away.
#[allow(clippy::useless_conversion, reason = "the counts have 32 bits on 32-bit systems")]
fn short_of_space(error: io::Error, path: &Path) -> io::Error {
    const FEW_BYTES: u64 = 64 * 1024;
    use nix::errno::Errno;
    let is_eio = error.raw_os_error() == Some(Errno::EIO as i32);
    match nix::sys::statvfs::statvfs(path) {
        Ok(fs) if is_eio => {
            let free = u64::from(fs.blocks_available()) * u64::from(fs.fragment_size());
            if free < FEW_BYTES { Errno::ENOSPC.into() } else { error }
        }
        _ => error,
    }
}

/// Why a transaction failed.
pub(super) enum Failure {
    Store(StoreError),
    Lmdb(heed::Error),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<heed::Error> for Failure {
    fn from(error: heed::Error) -> Self {
        Self::Lmdb(error)
    }
}

/// A record is not as it should be.
pub(super) fn damaged(reason: String) -> Failure {
    Failure::Store(StoreError::Damaged { reason })
}
