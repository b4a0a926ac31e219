//! What can go wrong with artifacts and runtime directories, in words for people, and when to try
//! again.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use coracle_core::artifact::{ArtifactId, Coordinate};
use coracle_core::backoff::Retry;
use coracle_core::image::Digest;

use super::entries::Flaw;
use crate::http_client::HttpError;

/// The configuration of repositories cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactsError {
    /// The URL is not one.
    #[error(
        "repository {0:?} in the configuration is not an http or https URL without query and fragment"
    )]
    Url(String),
    /// Certificates for a connection that has none.
    #[error("repository {0}: certificates are of no use for plain HTTP")]
    PlainCa(String),
    /// The certificates cannot be read.
    #[error("cannot read the certificates of repository {url} in {path}")]
    Ca {
        /// Which repository.
        url: String,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: rustls_pki_types::pem::Error,
    },
    /// There are no certificates in the file.
    #[error("no certificate for repository {url} in {path}")]
    NoCa {
        /// Which repository.
        url: String,
        /// Which file.
        path: PathBuf,
    },
}

/// An artifact cannot be installed, listed or removed, or a runtime directory not be made.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// No repository is known.
    #[error(
        "{artifact} has no repository: name one in the order, or in the gateway's configuration"
    )]
    NoRepository {
        /// What was asked for.
        artifact: ArtifactId,
    },
    /// A URL of an order is not one that is asked.
    #[error("{url:?} is not asked for {what}: {why}")]
    Url {
        /// As ordered.
        url: String,
        /// What was asked for.
        what: String,
        /// Why not.
        why: &'static str,
    },
    /// A server could not be spoken to.
    #[error("cannot fetch {what}")]
    Http {
        /// What was asked for.
        what: String,
        /// Why not.
        source: HttpError,
    },
    /// The server is busy, broken or refuses without saying more.
    #[error("{host} answered {status} to the request for {what}")]
    Answered {
        /// Which host.
        host: String,
        /// HTTP status code.
        status: u16,
        /// What was asked for.
        what: String,
        /// How long it asks to wait.
        retry_after: Option<Duration>,
    },
    /// The server wants credentials.
    #[error("{host} refused access to {what} ({status}); credentials are not configured")]
    Denied {
        /// Which host.
        host: String,
        /// What was asked for.
        what: String,
        /// HTTP status code.
        status: u16,
    },
    /// None has it.
    #[error("{what} is not there: asked for {}", urls.join(", "))]
    Absent {
        /// What was asked for.
        what: String,
        /// Where.
        urls: Vec<String>,
    },
    /// Nothing says which content is right.
    #[error(
        "nothing says what {what} must contain: its order names no digest, and {url} is not there"
    )]
    NoDigest {
        /// What was asked for.
        what: String,
        /// Where the digest would be.
        url: String,
    },
    /// The file with the digest is not one.
    #[error("{url} is no digest of {what}: 64 hexadecimal digits were expected, and its file name")]
    DigestFile {
        /// What was asked for.
        what: String,
        /// Where the file is.
        url: String,
    },
    /// The content is not what was ordered.
    #[error("{what} was served with another content, of digest {actual}, not {expected}")]
    Digest {
        /// What was asked for.
        what: String,
        /// As ordered, or as the repository says.
        expected: Digest,
        /// As served.
        actual: Digest,
    },
    /// It is installed, and is something else.
    #[error(
        "{artifact} is installed with digest {installed}, not {wanted}: a version is never written \
         over; give the new one another version, or remove the installed one first"
    )]
    OtherDigest {
        /// Which.
        artifact: ArtifactId,
        /// What is there.
        installed: Digest,
        /// What was ordered.
        wanted: Digest,
    },
    /// It is larger than allowed.
    #[error("{what} has {bytes} bytes or more; artifacts.limits.zip_mib allows {limit}")]
    TooLarge {
        /// What was asked for.
        what: String,
        /// As far as it was read or announced.
        bytes: u64,
        /// Most allowed.
        limit: u64,
    },
    /// The server sends more or less than it says.
    #[error("{what} was served with {actual} bytes or more, not {expected}")]
    Length {
        /// What was asked for.
        what: String,
        /// As announced.
        expected: u64,
        /// As far as it was read.
        actual: u64,
    },
    /// The disk is too full.
    #[error("no room for {what} in {path}: {needed} bytes are needed, {free} are free")]
    NoRoom {
        /// For what.
        what: String,
        /// Where.
        path: PathBuf,
        /// How much it takes, with a margin.
        needed: u64,
        /// How much is free.
        free: u64,
    },
    /// The ZIP is not unpacked.
    #[error("the ZIP of {what} is not unpacked: {flaw}")]
    Zip {
        /// Whose.
        what: String,
        /// Why not.
        #[source]
        flaw: Box<Flaw>,
    },
    /// What says that an artifact is installed cannot be read.
    #[error("{path} does not say what is installed there; remove {artifact} to install it anew")]
    Record {
        /// Which artifact.
        artifact: ArtifactId,
        /// Where it is noted.
        path: PathBuf,
    },
    /// It is not installed.
    #[error("{artifact} is not installed")]
    NotInstalled {
        /// Which.
        artifact: ArtifactId,
    },
    /// A runtime directory is to be filled from what is not there.
    #[error("installed artifact {artifact} has no file or directory {path:?}")]
    NoSource {
        /// Which artifact.
        artifact: ArtifactId,
        /// What was named.
        path: String,
    },
    /// There is no such runtime directory.
    #[error("{at} has no runtime directory")]
    NoRuntimeDir {
        /// Whose.
        at: Coordinate,
    },
    /// What is to be put into a runtime directory cannot be.
    #[error("{what} cannot be put into the runtime directory: {flaw}")]
    Place {
        /// What was ordered.
        what: String,
        /// Why not.
        #[source]
        flaw: Box<Flaw>,
    },
    /// Something of the service is where something else is to be.
    #[error("{path} is {found}, where {wanted} is to be put; it was left alone")]
    InTheWay {
        /// Where.
        path: PathBuf,
        /// What is there.
        found: &'static str,
        /// What is to be there.
        wanted: &'static str,
    },
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
    /// Nobody waits for it any more.
    #[error("it was given up")]
    GivenUp,
    /// The work broke off, which is a fault of this program.
    #[error("work on artifacts broke off")]
    BrokeOff,
}

impl ArtifactError {
    /// When it is worth trying again.
    ///
    /// A wrong digest is rare: what was put together from several downloads and came out wrong is
    /// fetched anew at once, so this one came in one piece. Only who fills the repository, or a new
    /// order, can mend that, and each try costs a whole download.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Http { source, .. } => source.retry(),
            Self::Answered { retry_after: Some(wait), .. } => Retry::After(*wait),
            Self::Answered { status: 408 | 425 | 429 | 500.., .. } => Retry::Backoff,
            Self::Answered { .. }
            | Self::Denied { .. }
            | Self::Absent { .. }
            | Self::NoRepository { .. }
            | Self::Url { .. }
            | Self::NoDigest { .. }
            | Self::DigestFile { .. }
            | Self::Digest { .. }
            | Self::OtherDigest { .. }
            | Self::TooLarge { .. }
            | Self::Zip { .. }
            | Self::Record { .. }
            | Self::Place { .. }
            | Self::InTheWay { .. } => Retry::Rarely,
            Self::Length { .. }
            | Self::NoRoom { .. }
            | Self::NotInstalled { .. }
            | Self::NoSource { .. }
            | Self::NoRuntimeDir { .. }
            | Self::Io { .. }
            | Self::GivenUp
            | Self::BrokeOff => Retry::Backoff,
        }
    }

    /// Whether a download may go on at once from where it broke.
    pub(super) fn is_interruption(&self) -> bool {
        matches!(self, Self::Http { source, .. } if source.is_interruption())
    }

    /// Whether what was downloaded so far is of use to the next try.
    pub(super) fn keeps_download(&self) -> bool {
        matches!(self, Self::Http { .. } | Self::Answered { .. } | Self::Denied { .. })
    }
}

pub(super) fn failed<E: Into<io::Error>>(
    action: &'static str,
    path: &Path,
) -> impl Fn(E) -> ArtifactError + use<E> {
    let path = path.to_owned();
    move |error| ArtifactError::Io { action, path: path.clone(), source: error.into() }
}
