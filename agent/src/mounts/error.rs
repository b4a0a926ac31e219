//! What can go wrong with mounts, and when it is worth another try.

use std::io;
use std::path::{Path, PathBuf};

use coracle_core::backoff::Retry;

use crate::error_chain::chain;
use crate::secrets::SecretError;

/// Something that is to be mounted cannot be made, or not be removed.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The file system says no.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A name that could lead elsewhere.
    #[error("{name:?} is not a usable name of a {what}")]
    Name {
        /// Of what.
        what: &'static str,
        /// As given.
        name: String,
    },
    /// There is nothing at a host path.
    #[error("host path {path} is not there")]
    NoHostPath {
        /// As ordered.
        path: String,
    },
    /// A host path has symbolic links on its way.
    #[error(
        "host path {path} leads through symbolic links to {leads_to}; order and policy must name \
         the path without them"
    )]
    HostLink {
        /// As ordered.
        path: String,
        /// Where it ends.
        leads_to: PathBuf,
    },
    /// What is at a host path cannot be mounted.
    #[error("host path {path} is neither a directory, a file nor a socket; devices are not mounts")]
    HostKind {
        /// As ordered.
        path: String,
    },
    /// A host path is not written as one.
    #[error("host path {path:?} must be absolute, without `.`, `..` or empty parts")]
    HostText {
        /// As ordered.
        path: String,
    },
    /// What must not reach a disk would.
    #[error(
        "{path} is not in memory, so secrets would reach a disk: runtime_dir must be on tmpfs or ramfs"
    )]
    NotInMemory {
        /// The directory.
        path: PathBuf,
    },
    /// A secret cannot be had.
    #[error("a secret cannot be given to the container")]
    Secret(#[from] SecretError),
    /// There is no such volume.
    #[error("there is no volume {name}")]
    NoVolume {
        /// Its name.
        name: String,
    },
    /// A volume is in use.
    #[error("volume {name} is in use by {}", users.join(", "))]
    InUse {
        /// Its name.
        name: String,
        /// Workloads that order it, replicas that have it mounted.
        users: Vec<String>,
    },
    /// What a running container shows of a config map was deleted.
    #[error("{path} was deleted: its container shows old files until it is restarted")]
    MapGone {
        /// Where it should be.
        path: PathBuf,
    },
    /// More than one thing cannot be removed.
    #[error("{}", failures.iter().map(|failure| chain(failure)).collect::<Vec<_>>().join("; "))]
    Several {
        /// What.
        failures: Vec<MountError>,
    },
    /// The work broke off, which is a fault of this program.
    #[error("work on mounts broke off")]
    BrokeOff,
}

impl MountError {
    /// When the same thing is worth another try.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Secret(error) => error.retry(),
            Self::Name { .. } | Self::HostText { .. } | Self::NotInMemory { .. } => Retry::Rarely,
            _ => Retry::Backoff,
        }
    }
}

pub(super) fn failed(action: &'static str, path: &Path) -> impl Fn(io::Error) -> MountError {
    let path = path.to_owned();
    move |source| MountError::Io { action, path: path.clone(), source }
}
