//! What can go wrong with images, in words for people, and when to try again.

use std::path::PathBuf;
use std::time::Duration;

use containerd_client::tonic::{Code, Status};
use coracle_core::backoff::Retry;
use coracle_core::image::{Digest, ImageRef};

use super::manifest::Flaw;
use crate::containerd::{Origin, origin};
use crate::http_client::HttpError;

/// A registry's configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ImagesError {
    /// The host is not one.
    #[error("registry {0:?} in the configuration is not HOST or HOST:PORT")]
    Host(String),
    /// The certificates cannot be read.
    #[error("cannot read the certificates of registry {host} in {path}")]
    Ca {
        /// Which registry.
        host: String,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: rustls_pki_types::pem::Error,
    },
    /// There are no certificates in the file.
    #[error("no certificate for registry {host} in {path}")]
    NoCa {
        /// Which registry.
        host: String,
        /// Which file.
        path: PathBuf,
    },
}

/// An image cannot be pulled, used or removed.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A call to containerd failed.
    #[error("containerd could not {action}")]
    Containerd {
        /// What was asked of it.
        action: &'static str,
        /// What it answered.
        source: Box<Status>,
    },
    /// containerd took too long.
    #[error("containerd did not {action} in time")]
    ContainerdTimeout {
        /// What was asked of it.
        action: &'static str,
    },
    /// The image is not on this gateway, or no longer complete.
    #[error("image {image} is not complete on this gateway ({missing} missing); pull it")]
    NotLocal {
        /// Which image.
        image: ImageRef,
        /// The part that is not there.
        missing: &'static str,
    },
    /// A registry could not be spoken to.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// The registry is busy, broken or refuses without saying more.
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
    /// The registry wants credentials.
    #[error(
        "registry {registry} refused access to {repository} ({status}); credentials are not configured"
    )]
    Denied {
        /// Which registry.
        registry: String,
        /// What access was asked to.
        repository: String,
        /// HTTP status code.
        status: u16,
    },
    /// The registry does not have it.
    #[error("registry {registry} has no {what}")]
    Absent {
        /// Which registry.
        registry: String,
        /// An image or a blob of it.
        what: String,
    },
    /// The token server's answer is of no use.
    #[error("the token server {host} of the registry gave no usable token")]
    Token {
        /// Which host.
        host: String,
    },
    /// There is no variant of the image for this machine.
    #[error("image {image} is not for {wanted}, only for {}", list(.available))]
    NoPlatform {
        /// Which image.
        image: ImageRef,
        /// This machine's platform.
        wanted: String,
        /// The platforms that exist.
        available: Vec<String>,
    },
    /// A document of the image is not what it should be.
    #[error("{what} of image {image} is not valid: {why}")]
    Invalid {
        /// Which image.
        image: ImageRef,
        /// Which part.
        what: &'static str,
        /// Why.
        why: String,
    },
    /// A document or layer is of a kind that is not handled.
    #[error("image {image} has a {what} of type {media_type:?}, which cannot be run")]
    Unsupported {
        /// Which image.
        image: ImageRef,
        /// Which part.
        what: &'static str,
        /// Its media type.
        media_type: String,
    },
    /// The manifest is not the one that was asked for.
    #[error("manifest of image {image} has digest {actual}, not {expected}")]
    ManifestDigest {
        /// Which image.
        image: ImageRef,
        /// Asked for.
        expected: Digest,
        /// Got.
        actual: Digest,
    },
    /// A blob is not what the manifest says.
    #[error("blob {expected} was served with another content, of digest {actual}")]
    BlobDigest {
        /// Asked for.
        expected: Digest,
        /// Got.
        actual: Digest,
    },
    /// A download that went on from an earlier one does not fit together.
    #[error("blob {digest} came out wrong and was discarded")]
    Damaged {
        /// Which blob.
        digest: Digest,
        /// What containerd said of it.
        source: Box<ImageError>,
    },
    /// A blob is shorter or longer than the manifest says.
    #[error("blob {digest} was served with {actual} bytes or more, not {expected}")]
    BlobSize {
        /// Which blob.
        digest: Digest,
        /// As in the manifest.
        expected: u64,
        /// As far as it was read or announced.
        actual: u64,
    },
    /// A layer's content is not what the configuration says.
    #[error("layer {layer} of image {image} unpacks to {actual}, not {expected}")]
    DiffId {
        /// Which image.
        image: ImageRef,
        /// Which layer, as compressed.
        layer: Digest,
        /// As in the configuration.
        expected: Digest,
        /// As unpacked.
        actual: String,
    },
    /// Unpacked files could not be brought to the disk.
    #[error("cannot sync the file system of {path} to the disk")]
    Sync {
        /// A directory on it.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

fn list(platforms: &[String]) -> String {
    if platforms.is_empty() {
        "platforms that it does not name".into()
    } else {
        platforms.join(", ")
    }
}

impl ImageError {
    /// When it is worth trying again.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Http(error) => error.retry(),
            Self::Answered { retry_after: Some(wait), .. } => Retry::After(*wait),
            Self::Answered { status: 403 | 408 | 425 | 429 | 500.., .. } => Retry::Backoff,
            Self::Answered { .. }
            | Self::Denied { .. }
            | Self::Absent { .. }
            | Self::NoPlatform { .. }
            | Self::Invalid { .. }
            | Self::Unsupported { .. }
            | Self::ManifestDigest { .. }
            | Self::DiffId { .. } => Retry::Rarely,
            Self::Containerd { .. }
            | Self::ContainerdTimeout { .. }
            | Self::NotLocal { .. }
            | Self::Token { .. }
            | Self::BlobDigest { .. }
            | Self::BlobSize { .. }
            | Self::Damaged { .. }
            | Self::Sync { .. } => Retry::Backoff,
        }
    }

    /// Whether containerd is not there or does not answer, so that nothing is wrong with the image.
    pub fn containerd_unreachable(&self) -> bool {
        matches!(self, Self::Containerd { source, .. } if origin(source) == Origin::Transport)
    }

    /// Whether a download may go on at once from where it broke.
    pub(crate) fn is_interruption(&self) -> bool {
        matches!(self, Self::Http(error) if error.is_interruption())
    }

    pub(crate) fn is_containerd(&self, code: Code) -> bool {
        matches!(self, Self::Containerd { source, .. } if source.code() == code)
    }

    pub(crate) fn containerd(action: &'static str) -> impl FnOnce(Status) -> Self {
        move |status| Self::Containerd { action, source: Box::new(status) }
    }

    pub(crate) fn flaw(image: &ImageRef, what: &'static str) -> impl FnOnce(Flaw) -> Self {
        let image = image.clone();
        move |flaw| match flaw {
            Flaw::Invalid(why) => Self::Invalid { image, what, why },
            Flaw::Unsupported(media_type) => Self::Unsupported { image, what, media_type },
        }
    }
}
