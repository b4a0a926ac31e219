//! One pull: resolve, download, unpack, record.
//!
//! Makes its own way through whatever an earlier try left behind; nothing that is there is fetched
//! again. Everything is held by one lease until the image's record holds it.

use std::collections::HashSet;
use std::time::SystemTime;

use containerd_client::tonic::Code;
use coracle_core::image::{Digest, ImageRef};
use tokio::sync::watch;

use super::content::{self, Content, Ingest, Labels};
use super::error::ImageError;
use super::headers::{content_length, content_range};
use super::http::Response;
use super::lease::Lease;
use super::manifest::{Descriptor, Document, Flaw, ImageConfig, MAX_DOCUMENT, Manifest, digest_of};
use super::platform::Platform;
use super::registry::Registry;
use super::unpack::{Layer, Unpacker};
use super::{Images, Phase, Progress, random, records};

/// Bytes that are given to containerd at once.
const PIECE: usize = 128 << 10;
/// How often a broken download goes on at once, each time only if it had come further.
const RESUMES: usize = 5;

pub(crate) struct Pull<'a> {
    images: &'a Images,
    image: &'a ImageRef,
    registry: Registry,
    progress: &'a watch::Sender<Progress>,
}

/// What a reference stands for on this machine.
struct Resolved {
    /// What the reference names: an index or the manifest.
    top: Descriptor,
    manifest: Manifest,
    config: ImageConfig,
}

/// An index or manifest whose bytes are verified.
struct Read {
    blob: Descriptor,
    bytes: Vec<u8>,
    document: Document,
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
        let now = SystemTime::now();
        let lease = Lease::acquire(containerd, self.image, &random(), now).await?;
        let content = Content::new(containerd.clone(), &lease.id);
        let resolved = self.resolve(&content).await?;
        self.download(&content, &resolved.manifest).await?;
        self.unpack(&lease, &resolved).await?;
        let config = &resolved.manifest.config.digest;
        records::put(containerd, self.image, &resolved.top, config).await?;
        lease.delete().await?;
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

    /// Reads index, manifest and configuration, and stores them with labels that keep what they
    /// refer to.
    async fn resolve(&mut self, content: &Content) -> Result<Resolved, ImageError> {
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

    /// Labels in containerd's own namespace of names, with where the content came from.
    fn labels(&self, pairs: impl IntoIterator<Item = (String, String)>) -> Labels {
        let source = format!("distribution.source.{}", self.image.registry());
        let source = (source, self.image.repository().to_owned());
        let name = |(key, value): (String, String)| (format!("containerd.io/{key}"), value);
        pairs.into_iter().chain([source]).map(name).collect()
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

    async fn download(&mut self, content: &Content, manifest: &Manifest) -> Result<(), ImageError> {
        self.progress.send_replace(Progress {
            phase: Phase::Downloading,
            bytes_done: manifest.config.size,
            bytes_total: Some(manifest.bytes()),
            layers_done: 0,
            layers_total: manifest.layers.len(),
        });
        let mut seen = HashSet::from([&manifest.config.digest]);
        for layer in &manifest.layers {
            if seen.insert(&layer.digest) {
                self.download_blob(content, layer).await?;
            }
            self.progress.send_modify(|progress| progress.layers_done += 1);
        }
        Ok(())
    }

    async fn download_blob(
        &mut self,
        content: &Content,
        blob: &Descriptor,
    ) -> Result<(), ImageError> {
        let _held = self.images.locks.hold(format!("blob {}", blob.digest)).await;
        let before = self.progress.borrow().bytes_done;
        if let Some(mut ingest) = content.begin(blob).await? {
            let mut resumes = 0;
            let filled = loop {
                let reached = ingest.offset;
                match self.fill(&mut ingest, blob, before).await {
                    Err(error)
                        if error.is_interruption()
                            && ingest.offset > reached
                            && resumes < RESUMES =>
                    {
                        resumes += 1;
                    }
                    filled => break filled,
                }
            };
            let done = match filled {
                Ok(()) => ingest.commit(self.labels([])).await,
                Err(error) => Err(error),
            };
            if let Err(error) = done {
                if is_wrong_content(&error) {
                    content.abort(&blob.digest).await?;
                }
                return Err(wrong_digest(error, blob));
            }
        }
        self.report(before + blob.size);
        Ok(())
    }

    /// Downloads from where the ingest is to the end.
    async fn fill(
        &mut self,
        ingest: &mut Ingest,
        blob: &Descriptor,
        before: u64,
    ) -> Result<(), ImageError> {
        if ingest.offset > blob.size {
            return Err(size_error(blob, ingest.offset));
        }
        if ingest.offset == blob.size {
            return Ok(());
        }
        let mut response = self.registry.blob(&blob.digest, ingest.offset).await?;
        if !resumes(&response, ingest.offset) {
            ingest.restart();
            if response.status.as_u16() != 200 {
                response = self.registry.blob(&blob.digest, 0).await?;
            }
        }
        if let Some(length) = content_length(&response.headers) {
            check_size(blob, ingest.offset.saturating_add(length))?;
        }
        let mut piece = Vec::with_capacity(PIECE);
        loop {
            let chunk = response.chunk().await;
            if let Ok(Some(chunk)) = &chunk {
                let end = ingest.offset + (piece.len() + chunk.len()) as u64;
                if end > blob.size {
                    return Err(size_error(blob, end));
                }
                piece.extend_from_slice(chunk);
            }
            // At the end, and where it breaks, what has come is kept.
            if piece.len() >= PIECE || !matches!(chunk, Ok(Some(_))) {
                if !piece.is_empty() {
                    let next = Vec::with_capacity(PIECE);
                    ingest.write(std::mem::replace(&mut piece, next)).await?;
                    self.report(before + ingest.offset);
                }
                if chunk?.is_none() {
                    break;
                }
            }
        }
        check_size(blob, ingest.offset)?;
        self.registry.keep(response);
        Ok(())
    }

    fn report(&self, bytes: u64) {
        self.progress.send_modify(|progress| progress.bytes_done = bytes);
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
                progress.bytes_done += blob.size;
            });
        }
        Ok(())
    }
}

/// Whether the answer goes on where the ingest is.
fn resumes(response: &Response, offset: u64) -> bool {
    offset == 0 && response.status.as_u16() == 200
        || response.status.as_u16() == 206
            && content_range(&response.headers).is_some_and(|(start, _)| start == offset)
}

fn size_error(blob: &Descriptor, actual: u64) -> ImageError {
    ImageError::BlobSize { digest: blob.digest.clone(), expected: blob.size, actual }
}

fn check_size(blob: &Descriptor, actual: u64) -> Result<(), ImageError> {
    if actual == blob.size { Ok(()) } else { Err(size_error(blob, actual)) }
}

/// Whether what was written so far is of no use to a later try.
fn is_wrong_content(error: &ImageError) -> bool {
    matches!(error, ImageError::BlobDigest { .. } | ImageError::BlobSize { .. })
        || error.is_containerd(Code::FailedPrecondition)
}

/// containerd's verdict on a blob whose first part had been written earlier, in our words.
fn wrong_digest(error: ImageError, blob: &Descriptor) -> ImageError {
    if error.is_containerd(Code::FailedPrecondition) {
        ImageError::Damaged { digest: blob.digest.clone(), source: Box::new(error) }
    } else {
        error
    }
}
