//! One pull: resolve, download, unpack, record.
//!
//! Makes its own way through whatever an earlier try left behind; nothing that is there is fetched
//! again. Everything is held by one lease until the image's record holds it.

use std::time::UNIX_EPOCH;

use coracle_core::image::{Digest, ImageRef};
use tokio::sync::watch;

use super::content::{Content, Labels};
use super::error::ImageError;
use super::lease::Lease;
use super::registry::Registry;
use super::resolve::Resolved;
use super::unpack::{Layer, Unpacker};
use super::{Images, Phase, Progress, random, records};
use crate::clock::wall_now;

/// One pull on its way; the steps are in `resolve`, `download` and `unpack`.
pub(crate) struct Pull<'a> {
    pub(crate) images: &'a Images,
    pub(crate) image: &'a ImageRef,
    pub(crate) registry: Registry,
    pub(crate) progress: &'a watch::Sender<Progress>,
}

impl<'a> Pull<'a> {
    pub(crate) fn new(
        images: &'a Images,
        image: &'a ImageRef,
        progress: &'a watch::Sender<Progress>,
    ) -> Result<Self, ImageError> {
        let registry = Registry::new(images.policy.clone(), image)?;
        Ok(Self { images, image, registry, progress })
    }

    pub(crate) async fn run(mut self) -> Result<Digest, ImageError> {
        self.progress.send_replace(Progress::default());
        let _held = self.images.locks.hold(format!("image {}", self.image)).await;
        let containerd = &self.images.containerd;
        let ensured = containerd.ensure_namespace().await;
        ensured.map_err(ImageError::containerd("make our namespace"))?;
        if let Some(digest) = self.present().await? {
            return Ok(digest);
        }
        let now = UNIX_EPOCH + wall_now();
        let lease = Lease::acquire(containerd, self.image, &random(), now).await?;
        let content = Content::new(containerd.clone(), &lease.id);
        let resolved = self.resolve(&content).await?;
        self.download(&content, &resolved.manifest).await?;
        self.unpack(&lease, &resolved).await?;
        let config = &resolved.manifest.config.digest;
        records::put(containerd, self.image, &resolved.top, config).await?;
        if let Err(error) = lease.delete().await {
            tracing::warn!(image = %self.image, error = %error, "lease of a pull left to expire");
        }
        Ok(resolved.top.digest)
    }

    /// The digest, if the image is complete and still what its reference stands for.
    async fn present(&mut self) -> Result<Option<Digest>, ImageError> {
        let local = match self.images.local(self.image).await {
            Err(ImageError::NotLocal { .. }) => return Ok(None),
            local => local?.digest,
        };
        let current = match self.image.digest() {
            Some(digest) => Some(digest.clone()),
            None => self.registry.digest_of_tag().await?,
        };
        Ok(current.filter(|current| *current == local))
    }

    /// Labels in containerd's own namespace of names, with where the content came from.
    pub(crate) fn labels(&self, pairs: impl IntoIterator<Item = (String, String)>) -> Labels {
        let source = format!("distribution.source.{}", self.image.registry());
        let source = (source, self.image.repository().to_owned());
        let name = |(key, value): (String, String)| (format!("containerd.io/{key}"), value);
        pairs.into_iter().chain([source]).map(name).collect()
    }

    async fn unpack(&self, lease: &Lease, resolved: &Resolved) -> Result<(), ImageError> {
        let images = self.images;
        let (containerd, locks, image) = (&images.containerd, &images.locks, self.image);
        let unpacker = Unpacker { containerd, lease, locks, image };
        let chain = resolved.config.chain_ids();
        let Some(last) = chain.last() else { return Ok(()) };
        let layers = &resolved.manifest.layers;
        self.progress.send_modify(|progress| {
            *progress = Progress {
                phase: Phase::Unpacking,
                bytes_done: 0,
                bytes_total: Some(
                    layers.iter().fold(0, |sum, layer| layer.size.saturating_add(sum)),
                ),
                layers_done: 0,
                layers_total: layers.len(),
            }
        });
        if unpacker.claim(last).await? {
            return Ok(());
        }
        let mut parent = "";
        for ((blob, diff_id), chain_id) in layers.iter().zip(&resolved.config.diff_ids).zip(&chain)
        {
            unpacker.unpack(&Layer { blob, diff_id, parent, chain_id }, &random()).await?;
            parent = chain_id;
            self.progress.send_modify(|progress| {
                progress.layers_done += 1;
                progress.bytes_done = progress.bytes_done.saturating_add(blob.size);
            });
        }
        Ok(())
    }
}
