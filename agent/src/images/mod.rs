//! Images: resolve, download, verify, unpack.
//!
//! In: references from orders and the registries' configuration. Out: images that are complete in
//! containerd's content store and unpacked, so that a container can be started without network.
//! The agent downloads blobs itself and only stores them through containerd: broken downloads go on
//! where they stopped, also after a reboot. Deliberately not here: when to pull and when to try
//! again (the core decides by [`ImageError::retry`]), credentials, collecting what is unused.

mod content;
mod download;
mod error;
mod lease;
mod manifest;
mod platform;
mod pull;
mod records;
mod registry;
mod resolve;
mod unpack;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use coracle_core::image::{Digest, ImageRef};
use ring::rand::{SecureRandom as _, SystemRandom};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tokio::sync::watch;

pub use self::error::{ImageError, ImagesError};
use self::manifest::{ImageConfig, MAX_DOCUMENT};
use self::platform::Platform;
use crate::config::RegistryConfig;
use crate::containerd::{Containerd, LocalImage};
use crate::http_client::Policy;
pub use crate::http_client::Timeouts;
use crate::locks::Locks;
pub use crate::progress::{Phase, Progress};

/// Longest time for containerd to collect what an image leaves behind.
const COLLECT: Duration = Duration::from_secs(600);

/// The images of this gateway. Cheap to clone; clones know of each other's pulls.
#[derive(Clone, Debug)]
pub struct Images {
    containerd: Containerd,
    policy: Arc<Policy>,
    locks: Locks,
    platform: Platform,
}

impl Images {
    /// Reads the registries' certificates; connects to nothing yet.
    ///
    /// # Errors
    /// A registry's name or its file of certificates cannot be used.
    pub fn new(containerd: Containerd, registries: &[RegistryConfig]) -> Result<Self, ImagesError> {
        let (images, troubles) = Self::with_what_there_is(containerd, registries)?;
        troubles.into_iter().next().map_or(Ok(images), Err)
    }

    /// The same, but certificates that cannot be read are told and left out: what they vouch for is
    /// then refused.
    ///
    /// # Errors
    /// A registry's name cannot be used.
    pub fn with_what_there_is(
        containerd: Containerd,
        registries: &[RegistryConfig],
    ) -> Result<(Self, Vec<ImagesError>), ImagesError> {
        let mut policy = Policy::default();
        let mut troubles = Vec::new();
        for registry in registries {
            let host = &registry.host;
            let origin = registry::origin(host, registry.plain_http)
                .ok_or_else(|| ImagesError::Host(host.clone()))?;
            if let Some(path) = &registry.ca {
                match certificates(host, path) {
                    Ok(certificates) => policy.authorities.push((origin, certificates)),
                    Err(trouble) => troubles.push(trouble),
                }
            } else if registry.plain_http {
                policy.plain.push(origin);
            }
        }
        let (policy, locks) = (Arc::new(policy), Locks::default());
        Ok((Self { containerd, policy, locks, platform: Platform::host() }, troubles))
    }

    /// The same with other patience towards registries.
    #[must_use]
    pub fn with_timeouts(mut self, timeouts: Timeouts) -> Self {
        let Policy { plain, authorities, .. } = &*self.policy;
        let (plain, authorities) = (plain.clone(), authorities.clone());
        self.policy = Arc::new(Policy { timeouts, plain, authorities, ..Policy::default() });
        self
    }

    /// Our complete and unpacked images, with what their references resolved to. One call.
    ///
    /// # Errors
    /// containerd cannot be reached or refuses.
    pub async fn list(&self) -> Result<BTreeMap<ImageRef, Digest>, ImageError> {
        records::list(&self.containerd).await
    }

    /// Makes the image complete and current, and gives the digest that its reference stands for.
    /// A pinned image that is complete needs no network. May be dropped at any time; the next pull
    /// goes on where this one was.
    ///
    /// # Errors
    /// [`ImageError::retry`] tells when to try again.
    pub async fn pull(
        &self,
        image: &ImageRef,
        progress: &watch::Sender<Progress>,
    ) -> Result<Digest, ImageError> {
        pull::Pull::new(self, image, progress)?.run().await
    }

    /// What starting a container of the image needs, without network.
    ///
    /// # Errors
    /// [`ImageError::NotLocal`] if it is not, or no longer, complete; containerd cannot be reached.
    pub async fn local(&self, image: &ImageRef) -> Result<LocalImage, ImageError> {
        let missing = |missing| ImageError::NotLocal { image: image.clone(), missing };
        let containerd = &self.containerd;
        let record = records::get(containerd, image).await?.ok_or_else(|| missing("record"))?;
        if image.digest().is_some_and(|digest| *digest != record.digest) {
            return Err(missing("right content"));
        }
        let config = content::read(containerd, &record.config, MAX_DOCUMENT).await?;
        let config = config.ok_or_else(|| missing("configuration"))?;
        let parsed = ImageConfig::parse(&config);
        let parsed = parsed.map_err(ImageError::flaw(image, "configuration"))?;
        let chain_id = parsed.chain_ids().pop();
        if let Some(chain_id) = &chain_id {
            if !unpack::has_snapshot(containerd, chain_id).await? {
                return Err(missing("snapshot"));
            }
        }
        Ok(LocalImage { reference: image.clone(), digest: record.digest, config, chain_id })
    }

    /// Forgets an image; containerd frees what no other image and no container needs before this
    /// returns. An image that is not there, or not ours, is left alone.
    ///
    /// # Errors
    /// containerd cannot be reached or refuses.
    pub async fn remove(&self, image: &ImageRef) -> Result<(), ImageError> {
        let _held = self.locks.hold(format!("image {image}")).await;
        records::delete(&self.containerd, image).await
    }
}

fn certificates(
    host: &str,
    path: &std::path::Path,
) -> Result<Vec<CertificateDer<'static>>, ImagesError> {
    let (host, path) = (host.to_owned(), path.to_owned());
    let read =
        CertificateDer::pem_file_iter(&path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(certificates) if certificates.is_empty() => Err(ImagesError::NoCa { host, path }),
        Ok(certificates) => Ok(certificates),
        Err(source) => Err(ImagesError::Ca { host, path, source }),
    }
}

/// 16 hexadecimal digits that no other process uses.
fn random() -> String {
    let mut bytes = [0; 8];
    // Without a source of randomness names may clash, and containerd says so.
    SystemRandom::new().fill(&mut bytes).ok();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
