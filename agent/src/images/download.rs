//! Layers from the registry into the content store, from where an earlier download stopped.

use std::collections::HashSet;

use containerd_client::tonic::Code;

use super::content::{Content, Ingest};
use super::error::ImageError;
use super::manifest::{Descriptor, Manifest};
use super::pull::Pull;
use super::{Phase, Progress};
use crate::http_client::Response;
use crate::http_client::headers::{content_length, content_range};

/// Bytes that are given to containerd at once.
const PIECE: usize = 128 << 10;
/// How often a broken download goes on at once, each time only if it had come further.
const RESUMES: usize = 5;

impl Pull<'_> {
    /// Fetches the layers that are not here.
    pub(crate) async fn download(
        &mut self,
        content: &Content,
        manifest: &Manifest,
    ) -> Result<(), ImageError> {
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
        self.report(before.saturating_add(blob.size));
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
}

/// Whether the answer goes on where the ingest is.
fn resumes(response: &Response, offset: u64) -> bool {
    offset == 0 && response.status.as_u16() == 200
        || response.status.as_u16() == 206
            && content_range(&response.headers).is_some_and(|(start, _)| start == offset)
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

pub(crate) fn size_error(blob: &Descriptor, actual: u64) -> ImageError {
    ImageError::BlobSize { digest: blob.digest.clone(), expected: blob.size, actual }
}

pub(crate) fn check_size(blob: &Descriptor, actual: u64) -> Result<(), ImageError> {
    if actual == blob.size { Ok(()) } else { Err(size_error(blob, actual)) }
}
