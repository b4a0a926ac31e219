//! containerd's content store, seen by one pull: everything it writes or finds is put under the
//! pull's lease.
//!
//! In: verified documents and the bytes of blobs. Out: what is already there, and where a broken
//! download stopped. Each write is answered before the next, so that memory stays flat.

use std::collections::HashMap;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::{
    AbortRequest, Info, InfoRequest, ReadContentRequest, UpdateRequest, WriteAction,
    WriteContentRequest, WriteContentResponse,
};
use containerd_client::tonic::codegen::tokio_stream::Stream;
use containerd_client::tonic::{Code, Status, Streaming};
use coracle_core::image::Digest;
use prost_types::FieldMask;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::error::ImageError;
use super::manifest::{Descriptor, digest_of, written};
use crate::containerd::{Containerd, under_lease};

/// Longest time for one step of a write. Opening a partial download makes containerd read it all,
/// and a commit brings it to the disk.
const STEP: Duration = Duration::from_secs(600);
/// How long another writer of the same blob is awaited, and how often it is looked at.
const LOCKED: Duration = Duration::from_secs(30);
const LOCKED_STEP: Duration = Duration::from_millis(200);
/// How often discarding a write is tried again.
const ABORT_TRIES: u32 = 5;

pub(crate) type Labels = HashMap<String, String>;

/// The store under one lease.
#[derive(Clone, Debug)]
pub(crate) struct Content {
    containerd: Containerd,
    lease: String,
}

/// A blob being written. Dropped, it stays as far as it came.
pub(crate) struct Ingest {
    requests: mpsc::Sender<WriteContentRequest>,
    responses: Streaming<WriteContentResponse>,
    /// Bytes written so far.
    pub(crate) offset: u64,
    blob: Descriptor,
    /// Of all bytes so far; unknown if the first ones were written earlier.
    hash: Option<ring::digest::Context>,
}

/// The whole of a committed blob of at most `limit` bytes; `None` if it is not there, or damaged.
pub(crate) async fn read(
    containerd: &Containerd,
    digest: &Digest,
    limit: u64,
) -> Result<Option<Vec<u8>>, ImageError> {
    let failed = || ImageError::containerd("read content");
    let mut client = ContentClient::new(containerd.channel());
    let request = containerd.request(InfoRequest { digest: digest.to_string() });
    let size = match client.info(request).await {
        Err(status) if status.code() == Code::NotFound => return Ok(None),
        info => info.map_err(failed())?.into_inner().info.map_or(0, |info| info.size),
    };
    let size = u64::try_from(size).ok().filter(|size| *size <= limit);
    let Some(size) = size.and_then(|size| usize::try_from(size).ok()) else { return Ok(None) };
    let request = ReadContentRequest { digest: digest.to_string(), offset: 0, size: 0 };
    let mut bytes = Vec::with_capacity(size);
    let mut pieces = match client.read(containerd.request(request)).await {
        Err(status) if status.code() == Code::NotFound => return Ok(None),
        pieces => pieces.map_err(failed())?.into_inner(),
    };
    while let Some(piece) = pieces.message().await.map_err(failed())? {
        if bytes.len() + piece.data.len() > size {
            return Ok(None);
        }
        bytes.extend_from_slice(&piece.data);
    }
    Ok(Some(bytes).filter(|bytes| digest_of(bytes) == *digest))
}

impl Content {
    pub(crate) fn new(containerd: Containerd, lease: &str) -> Self {
        Self { containerd, lease: lease.to_owned() }
    }

    /// Begins or continues to write a blob; `None` if it is there already.
    pub(crate) async fn begin(&self, blob: &Descriptor) -> Result<Option<Ingest>, ImageError> {
        let mut waited = Duration::ZERO;
        loop {
            match self.open(blob).await {
                Err(error) if error.is_containerd(Code::AlreadyExists) => return Ok(None),
                Err(error) if is_locked(&error) && waited < LOCKED => {
                    sleep(LOCKED_STEP).await;
                    waited += LOCKED_STEP;
                }
                opened => return opened.map(Some),
            }
        }
    }

    async fn open(&self, blob: &Descriptor) -> Result<Ingest, ImageError> {
        let action = "begin to write content";
        let (requests, receiver) = mpsc::channel(1);
        let first = WriteContentRequest {
            action: WriteAction::Stat.into(),
            r#ref: reference(&blob.digest),
            total: signed(blob.size),
            expected: blob.digest.to_string(),
            ..WriteContentRequest::default()
        };
        let gone = || ImageError::containerd(action)(Status::aborted("the stream is closed"));
        requests.try_send(first).map_err(|_| gone())?;
        let request = self.containerd.endless(Requests(receiver));
        let request = under_lease(request, &self.lease).map_err(ImageError::containerd(action))?;
        let mut client = ContentClient::new(self.containerd.channel());
        let opening = async {
            let mut responses = client.write(request).await?.into_inner();
            let state = responses.message().await?;
            Ok((responses, state))
        };
        let opened = timeout(STEP, opening).await;
        let (responses, state) = opened
            .map_err(|_| ImageError::ContainerdTimeout { action })?
            .map_err(ImageError::containerd(action))?;
        let offset = state.map_or(0, |state| u64::try_from(state.offset).unwrap_or(0));
        let hash = (offset == 0).then(new_hash);
        Ok(Ingest { requests, responses, offset, blob: blob.clone(), hash })
    }

    /// Forgets what was written of a blob, because it is not what it should be.
    pub(crate) async fn abort(&self, digest: &Digest) -> Result<(), ImageError> {
        let mut tries_left = ABORT_TRIES;
        loop {
            let request = self.containerd.request(AbortRequest { r#ref: reference(digest) });
            match ContentClient::new(self.containerd.channel()).abort(request).await {
                Err(status) if status.code() == Code::NotFound => return Ok(()),
                // containerd removes the directory of a write while the end of that write may
                // still put a file into it: "directory not empty".
                Err(_) if tries_left > 0 => tries_left -= 1,
                Err(status) => return Err(ImageError::containerd("discard content")(status)),
                Ok(_) => return Ok(()),
            }
            sleep(LOCKED_STEP).await;
        }
    }

    /// Writes a document whose digest is verified, if it is not there, and sets its labels.
    pub(crate) async fn put(
        &self,
        blob: &Descriptor,
        bytes: &[u8],
        labels: Labels,
    ) -> Result<(), ImageError> {
        let Some(mut ingest) = self.begin(blob).await? else {
            return self.label(&blob.digest, labels).await;
        };
        ingest.restart();
        for piece in bytes.chunks(1 << 20) {
            ingest.write(piece.to_vec()).await?;
        }
        ingest.commit(labels).await
    }

    async fn label(&self, digest: &Digest, labels: Labels) -> Result<(), ImageError> {
        let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
        let info = Info { digest: digest.to_string(), labels, ..Info::default() };
        let update_mask = Some(FieldMask { paths });
        let request = self.containerd.request(UpdateRequest { info: Some(info), update_mask });
        let updated = ContentClient::new(self.containerd.channel()).update(request).await;
        updated.map(drop).map_err(ImageError::containerd("label content"))
    }
}

impl Ingest {
    /// Begins again with the first byte.
    pub(crate) fn restart(&mut self) {
        self.offset = 0;
        self.hash = Some(new_hash());
    }

    /// Appends.
    pub(crate) async fn write(&mut self, data: Vec<u8>) -> Result<(), ImageError> {
        if let Some(hash) = &mut self.hash {
            hash.update(&data);
        }
        let end = self.offset + data.len() as u64;
        let request = WriteContentRequest {
            action: WriteAction::Write.into(),
            offset: signed(self.offset),
            data,
            ..WriteContentRequest::default()
        };
        let state = self.step("write content", request).await?;
        let offset = state.and_then(|state| u64::try_from(state.offset).ok());
        if offset != Some(end) {
            let status = Status::data_loss(format!("it is at {offset:?}, not at {end}"));
            return Err(ImageError::containerd("write content")(status));
        }
        self.offset = end;
        Ok(())
    }

    /// Makes the blob appear in the store, if its content is right.
    pub(crate) async fn commit(mut self, labels: Labels) -> Result<(), ImageError> {
        if let Some(hash) = self.hash.take() {
            let actual = written(hash.finish().as_ref());
            if actual != self.blob.digest {
                let expected = self.blob.digest;
                return Err(ImageError::BlobDigest { expected, actual });
            }
        }
        let request = WriteContentRequest {
            action: WriteAction::Commit.into(),
            offset: signed(self.offset),
            total: signed(self.blob.size),
            expected: self.blob.digest.to_string(),
            labels,
            ..WriteContentRequest::default()
        };
        match self.step("commit content", request).await {
            Err(error) if error.is_containerd(Code::AlreadyExists) => Ok(()),
            done => done.map(drop),
        }
    }

    async fn step(
        &mut self,
        action: &'static str,
        request: WriteContentRequest,
    ) -> Result<Option<WriteContentResponse>, ImageError> {
        let step = async {
            // A closed channel means that the call has ended: the answer tells why.
            self.requests.send(request).await.ok();
            self.responses.message().await
        };
        timeout(STEP, step)
            .await
            .map_err(|_| ImageError::ContainerdTimeout { action })?
            .map_err(ImageError::containerd(action))
    }
}

/// The requests of a write call, as its stream.
struct Requests(mpsc::Receiver<WriteContentRequest>);

impl Stream for Requests {
    type Item = WriteContentRequest;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx)
    }
}

/// Whether containerd says that another stream writes the same blob (and is not itself away).
fn is_locked(error: &ImageError) -> bool {
    match error {
        ImageError::Containerd { source, .. } => {
            source.code() == Code::Unavailable && std::error::Error::source(source).is_none()
        }
        _ => false,
    }
}

/// The same for every try, so that a later one continues.
fn reference(digest: &Digest) -> String {
    format!("coracle-{digest}")
}

fn signed(size: u64) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

fn new_hash() -> ring::digest::Context {
    ring::digest::Context::new(&ring::digest::SHA256)
}
