//! What can go wrong with networks, and when it is worth another try.

pub(super) use crate::error_chain::chain;
use std::io;
use std::path::PathBuf;

use coracle_core::backoff::Retry;
use coracle_core::name::ReplicaId;
use nix::errno::Errno;

use crate::conflist::ConflistError;

/// An operation on a pod's network failed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A file of ours cannot be written, read or removed.
    #[error("cannot {doing} {path}")]
    File {
        /// What was tried.
        doing: &'static str,
        /// Which file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel does not make or keep the network namespace.
    #[error("cannot {doing} the network namespace of {replica}")]
    Namespace {
        /// What was tried.
        doing: &'static str,
        /// Whose.
        replica: ReplicaId,
        /// Why.
        source: Errno,
    },
    /// The network that is configured cannot be used.
    #[error(transparent)]
    Conflist(#[from] ConflistError),
    /// A program is not where it should be.
    #[error("network plugin {plugin} is not in {places}; install it, or set cni.plugin_dirs")]
    PluginMissing {
        /// Its name.
        plugin: String,
        /// The directories.
        places: String,
    },
    /// No version of the specification is known to all.
    #[error("the plugins of network {network} have no CNI version in common with it: {versions}")]
    Versions {
        /// The network's name.
        network: String,
        /// What each one knows.
        versions: String,
    },
    /// Ports are asked for, and nothing of the network publishes any.
    #[error("network {network} has no plugin that publishes ports (capability portMappings)")]
    PortsUnsupported {
        /// The network's name.
        network: String,
    },
    /// A plugin says that it failed.
    #[error("network plugin {plugin} failed to {command} {replica}: {message} (code {code})")]
    Plugin {
        /// Its name.
        plugin: String,
        /// ADD, DEL or VERSION.
        command: &'static str,
        /// For which pod.
        replica: String,
        /// As the specification numbers them; from 100 on the plugin's own.
        code: u64,
        /// Its own words, with its details, shortened.
        message: String,
    },
    /// A plugin could not be run to its end, or what it said is not what the specification says.
    #[error("network plugin {plugin} {what} (at {command} of {replica})")]
    Broken {
        /// Its name.
        plugin: String,
        /// ADD, DEL or VERSION.
        command: &'static str,
        /// For which pod.
        replica: String,
        /// What it did.
        what: String,
    },
    /// Parts could not be removed; the rest was. To be tried again.
    #[error("the network of {replica} was not removed completely: {}", failures.join("; "))]
    Incomplete {
        /// Whose.
        replica: ReplicaId,
        /// What could not be done.
        failures: Vec<String>,
    },
    /// Ports cannot be shared out.
    #[error("ports cannot be shared out over replicas: nft (package nftables) is not in {places}")]
    NftMissing {
        /// The directories.
        places: String,
    },
    /// The rules that share ports out are not taken.
    #[error("nft does not take the rules that share ports out: {message}")]
    Nft {
        /// The program's own words, shortened.
        message: String,
    },
    /// The kernel does not tell of the packet filter, or does not forget a flow.
    #[error("the kernel's packet filter does not answer")]
    Flows {
        /// Why.
        source: Errno,
    },
    /// Connections to a replica cannot be stopped before it is known where all others go.
    #[error("{replica} cannot be withdrawn: it is not known yet where shared ports lead")]
    NotShared {
        /// Who is to get no more.
        replica: ReplicaId,
    },
    /// The task that did it died.
    #[error("the work on shared ports was broken off")]
    SharingBrokenOff,
    /// The task that did it died.
    #[error("the work on the network of {replica} was broken off")]
    BrokenOff {
        /// Whose.
        replica: ReplicaId,
    },
}

impl NetworkError {
    /// When the same thing is worth another try.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Conflist(_)
            | Self::PluginMissing { .. }
            | Self::Versions { .. }
            | Self::PortsUnsupported { .. }
            | Self::NftMissing { .. } => Retry::Rarely,
            // Version, field, environment, decoding and configuration are wrong until somebody
            // changes them (https://www.cni.dev/docs/spec/#error).
            Self::Plugin { code: 1 | 2 | 4 | 6 | 7, .. } => Retry::Rarely,
            _ => Retry::Backoff,
        }
    }

    pub(super) fn file(
        doing: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { doing, path, source }
    }
}
