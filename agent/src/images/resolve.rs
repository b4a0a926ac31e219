//! From a reference to what it stands for on this machine: index, manifest, configuration.
//!
//! In: what the content store has, or else the registry. Out: verified and parsed documents, in the
//! store with labels that keep from garbage collection what they refer to.

use coracle_core::image::Digest;

use super::content::{self, Content};
use super::download::check_size;
use super::error::ImageError;
use super::manifest::{Descriptor, Document, Flaw, ImageConfig, MAX_DOCUMENT, Manifest, digest_of};
use super::platform::Platform;
use super::pull::Pull;

/// What a reference stands for on this machine.
pub(crate) struct Resolved {
    /// What the reference names: an index or the manifest.
    pub(crate) top: Descriptor,
    pub(crate) manifest: Manifest,
    pub(crate) config: ImageConfig,
}

/// An index or manifest whose bytes are verified.
struct Read {
    blob: Descriptor,
    bytes: Vec<u8>,
    document: Document,
}

impl Pull<'_> {
    /// Reads index, manifest and configuration, and stores them with labels that keep what they
    /// refer to.
    pub(crate) async fn resolve(&mut self, content: &Content) -> Result<Resolved, ImageError> {
        let top = self.read_top().await?;
        let (manifest, outer) = match top.document {
            Document::Manifest(_) => (top, None),
            Document::Index(ref index) => {
                let chosen = index.choose(&self.images.platform).ok_or_else(|| {
                    let wanted = self.images.platform.to_string();
                    let available = index.platforms();
                    ImageError::NoPlatform { image: self.image.clone(), wanted, available }
                })?;
                let (at, chosen) = (chosen.0, chosen.1.clone());
                (self.read_chosen(chosen).await?, Some((at, top)))
            }
        };
        let Document::Manifest(parsed) = manifest.document else {
            let flaw = Flaw::Unsupported("an index in an index".into());
            return Err(ImageError::flaw(self.image, "index")(flaw));
        };
        let (config_bytes, config) = self.read_config(&parsed).await?;
        let snapshot = config.chain_ids().pop();
        let snapshotter = self.images.containerd.snapshotter();
        let keep = snapshot.map(|chain| (format!("gc.ref.snapshot.{snapshotter}"), chain));
        content.put(&parsed.config, &config_bytes, self.labels(keep)).await?;
        let layers = parsed.layers.iter().enumerate();
        let layers = layers.map(|(n, layer)| (format!("gc.ref.content.l.{n}"), &layer.digest));
        let parts = layers.chain([("gc.ref.content.config".to_owned(), &parsed.config.digest)]);
        let parts = parts.map(|(key, digest)| (key, digest.to_string()));
        content.put(&manifest.blob, &manifest.bytes, self.labels(parts)).await?;
        let top = match outer {
            None => manifest.blob,
            Some((at, index)) => {
                let key = format!("gc.ref.content.m.{at}");
                let labels = self.labels([(key, manifest.blob.digest.to_string())]);
                content.put(&index.blob, &index.bytes, labels).await?;
                index.blob
            }
        };
        Ok(Resolved { top, manifest: parsed, config })
    }

    async fn read_top(&mut self) -> Result<Read, ImageError> {
        let expected = self.image.digest().cloned();
        let stored = match &expected {
            Some(digest) => content::read(&self.images.containerd, digest, MAX_DOCUMENT).await?,
            None => None,
        };
        let (bytes, content_type) = match stored {
            Some(bytes) => (bytes, None),
            None => {
                let served = self.registry.manifest(self.image.target()).await?;
                (served.bytes, served.content_type)
            }
        };
        let digest = self.verify(&bytes, expected.as_ref())?;
        self.parse(bytes, digest, content_type.as_deref())
    }

    /// The manifest that an index points to.
    async fn read_chosen(&mut self, chosen: Descriptor) -> Result<Read, ImageError> {
        let digest = chosen.digest;
        let bytes = match content::read(&self.images.containerd, &digest, MAX_DOCUMENT).await? {
            Some(bytes) => bytes,
            None => self.registry.manifest(digest.as_str()).await?.bytes,
        };
        self.verify(&bytes, Some(&digest))?;
        self.parse(
            bytes,
            digest,
            Some(&chosen.media_type).filter(|kind| !kind.is_empty()).map(|k| &**k),
        )
    }

    fn verify(&self, bytes: &[u8], expected: Option<&Digest>) -> Result<Digest, ImageError> {
        let actual = digest_of(bytes);
        match expected {
            Some(expected) if *expected != actual => Err(ImageError::ManifestDigest {
                image: self.image.clone(),
                expected: expected.clone(),
                actual,
            }),
            _ => Ok(actual),
        }
    }

    fn parse(
        &self,
        bytes: Vec<u8>,
        digest: Digest,
        content_type: Option<&str>,
    ) -> Result<Read, ImageError> {
        let document = Document::parse(&bytes, content_type);
        let document = document.map_err(ImageError::flaw(self.image, "manifest"))?;
        let media_type = match &document {
            Document::Index(index) => index.media_type,
            Document::Manifest(manifest) => manifest.media_type,
        };
        let size = bytes.len() as u64;
        let blob = Descriptor { media_type: media_type.to_owned(), digest, size };
        Ok(Read { blob, bytes, document })
    }

    async fn read_config(
        &mut self,
        manifest: &Manifest,
    ) -> Result<(Vec<u8>, ImageConfig), ImageError> {
        let blob = &manifest.config;
        let stored = content::read(&self.images.containerd, &blob.digest, MAX_DOCUMENT).await?;
        let bytes = match stored {
            Some(bytes) => bytes,
            None => {
                let mut response = self.registry.blob(&blob.digest, 0).await?;
                let bytes = response.read(blob.size, "image configuration").await?;
                self.registry.keep(response);
                bytes
            }
        };
        check_size(blob, bytes.len() as u64)?;
        let actual = digest_of(&bytes);
        if actual != blob.digest {
            return Err(ImageError::BlobDigest { expected: blob.digest.clone(), actual });
        }
        let config = ImageConfig::parse(&bytes);
        let config = config.map_err(ImageError::flaw(self.image, "configuration"))?;
        self.check_config(&config, manifest)?;
        Ok((bytes, config))
    }

    fn check_config(&self, config: &ImageConfig, manifest: &Manifest) -> Result<(), ImageError> {
        let host = &self.images.platform;
        // A configuration without a variant was made before there were any: the index decided.
        let variant = config.platform.variant.clone().filter(|variant| !variant.is_empty());
        let variant = variant.or_else(|| host.variant.clone());
        let platform = Platform { variant, ..config.platform.clone() };
        if host.fit(&platform).is_none() {
            return Err(ImageError::NoPlatform {
                image: self.image.clone(),
                wanted: host.to_string(),
                available: vec![config.platform.to_string()],
            });
        }
        let (layers, ids) = (manifest.layers.len(), config.diff_ids.len());
        if layers != ids {
            let why = format!("{ids} uncompressed digests for {layers} layers");
            let flaw = Flaw::Invalid(why);
            return Err(ImageError::flaw(self.image, "configuration")(flaw));
        }
        Ok(())
    }
}
