//! Orders that are larger than a packet: fetched in parts that survive a restart, and given out whole
//! once their digest fits.
//!
//! In: a pointer whose signature was verified, and a URL to ask or pieces that came by the broker.
//! Out: how much there is, or the order's envelope. Deliberately not here: which place to ask when;
//! and whether the order is a good one.
//!
//! One directory, `STATE_DIR/large-orders`, mode 0700, with at most one file, `DIGEST.part`. Parts are
//! not made durable by themselves: what a power cut leaves is judged by the digest.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use coracle_core::digest::sha256_hex;
use coracle_protocol::pointer::Pointer;
use http::header::RANGE;
use http::{HeaderMap, HeaderValue, Method};

use crate::http_client::headers::content_range;
use crate::http_client::{Client, HttpError, Policy, Purpose, Response, Timeouts, Url};
use crate::pem_file::{PemFileError, certificates};

/// How often a broken download goes on at once, each time only if it had come further.
const RESUMES: usize = 5;

/// Fetches large orders. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LargeOrders {
    dir: PathBuf,
    authority: Option<PathBuf>,
    timeouts: Timeouts,
}

/// What there is of a large order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fetched {
    /// So many bytes of it.
    Part(u64),
    /// All of it: its envelope.
    Whole(Vec<u8>),
}

/// Why there is no more of a large order.
#[derive(Debug, thiserror::Error)]
pub enum LargeOrderError {
    /// The place is no URL that can be asked.
    #[error("{0:?} is no URL of http or https")]
    Url(String),
    /// The authorities' certificates cannot be used.
    #[error(transparent)]
    Authority(#[from] PemFileError),
    /// The server gave no usable answer.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// The server said no.
    #[error("{host} answered {status}")]
    Status {
        /// Which server.
        host: String,
        /// Its answer.
        status: u16,
    },
    /// What came is not the order.
    #[error("what came is not the order that the pointer names")]
    Digest,
    /// More came than the order has.
    #[error("more than the {0} bytes came that the pointer names")]
    TooLong(u64),
    /// Less came than the order has.
    #[error("{got} of {bytes} bytes came")]
    TooShort {
        /// So many.
        got: u64,
        /// Of so many.
        bytes: u64,
    },
    /// It cannot be written or read back.
    #[error("cannot keep what was fetched in {dir}")]
    Disk {
        /// Where.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl LargeOrders {
    /// Keeps parts under `state_dir`. `authority` names a file with certificates of those who may
    /// vouch for web servers, beside the system's own: those that vouch for the broker.
    pub fn new(state_dir: &Path, authority: Option<PathBuf>) -> Self {
        Self { dir: state_dir.join("large-orders"), authority, timeouts: Timeouts::default() }
    }

    /// The same with other limits of waiting, for tests.
    pub fn with_timeouts(self, timeouts: Timeouts) -> Self {
        Self { timeouts, ..self }
    }

    /// What there is of an order already. What there is of others is removed.
    ///
    /// # Errors
    /// The disk.
    pub async fn begin(&self, pointer: &Pointer) -> Result<Fetched, LargeOrderError> {
        let (orders, pointer) = (self.clone(), pointer.clone());
        blocking(move || {
            orders.remove_but(Some(&pointer.digest))?;
            orders.judge(&pointer)
        })
        .await
    }

    /// Forgets what there is of any.
    ///
    /// # Errors
    /// The disk.
    pub async fn forget(&self) -> Result<(), LargeOrderError> {
        let orders = self.clone();
        blocking(move || orders.remove_but(None)).await
    }

    /// Fetches the rest from a web server.
    ///
    /// # Errors
    /// See [`LargeOrderError`]; what came stays where it may be of use.
    pub async fn fetch(&self, pointer: &Pointer, url: &str) -> Result<Fetched, LargeOrderError> {
        let parsed = Url::parse(url).ok_or_else(|| LargeOrderError::Url(url.to_owned()))?;
        let mut client = Client::new(Arc::new(self.policy(&parsed)?));
        let mut resumes = 0;
        let mut begun_anew = false;
        loop {
            let reached = match self.begin(pointer).await {
                Ok(Fetched::Part(reached)) => reached,
                // It is removed.
                Err(LargeOrderError::Digest) => 0,
                other => return other,
            };
            match self.fill(&mut client, pointer, &parsed, reached).await {
                // What was there before may have come from another place.
                Err(LargeOrderError::Digest) if reached > 0 && !begun_anew => begun_anew = true,
                Err(LargeOrderError::Http(error)) if error.is_interruption() => {
                    match self.begin(pointer).await? {
                        Fetched::Part(now) if now <= reached || resumes == RESUMES => {
                            return Err(error.into());
                        }
                        _ => resumes += 1,
                    }
                }
                filled => return filled,
            }
        }
    }

    /// Adds a piece that came by the broker. One that does not belong at the end is passed over.
    ///
    /// # Errors
    /// See [`LargeOrderError`].
    pub async fn append(
        &self,
        pointer: &Pointer,
        offset: u64,
        bytes: Vec<u8>,
    ) -> Result<Fetched, LargeOrderError> {
        let (orders, pointer) = (self.clone(), pointer.clone());
        blocking(move || {
            let mut file = orders.open(&pointer)?;
            let length = file.metadata().map_err(|error| orders.disk(error))?.len();
            if offset == length && !bytes.is_empty() {
                orders.write(&mut file, &pointer, length, &bytes)?;
            }
            drop(file);
            orders.judge(&pointer)
        })
        .await
    }

    /// Plain HTTP may be spoken where the pointer says so: what comes is judged by its digest.
    fn policy(&self, url: &Url) -> Result<Policy, LargeOrderError> {
        let mut policy =
            Policy { timeouts: self.timeouts, purpose: Purpose::Orders, ..Policy::default() };
        if !url.origin.tls {
            policy.plain.push(url.origin.clone());
        } else if let Some(path) = &self.authority {
            let own = certificates("authorities' certificates", path)?;
            policy.authorities.push((url.origin.clone(), own));
        }
        Ok(policy)
    }

    async fn fill(
        &self,
        client: &mut Client,
        pointer: &Pointer,
        url: &Url,
        reached: u64,
    ) -> Result<Fetched, LargeOrderError> {
        let mut response = ask(client, url, reached).await?;
        let mut goes_on = continues(&response, reached);
        if reached > 0 && !goes_on && matches!(response.status.as_u16(), 206 | 416) {
            response = ask(client, url, 0).await?;
            goes_on = false;
        }
        let mut length = if goes_on { reached } else { 0 };
        if !goes_on && response.status.as_u16() != 200 {
            let (host, status) = (response.origin.to_string(), response.status.as_u16());
            return Err(LargeOrderError::Status { host, status });
        }
        let (orders, wanted) = (self.clone(), pointer.clone());
        let begin_at = length;
        let mut file = blocking(move || {
            let file = orders.open(&wanted)?;
            file.set_len(begin_at).map_err(|error| orders.disk(error))?;
            Ok(file)
        })
        .await?;
        while let Some(bytes) = response.chunk().await? {
            let (orders, wanted, at) = (self.clone(), pointer.clone(), length);
            length += bytes.len() as u64;
            file = blocking(move || {
                orders.write(&mut file, &wanted, at, &bytes)?;
                Ok(file)
            })
            .await?;
        }
        drop(file);
        let (orders, wanted) = (self.clone(), pointer.clone());
        match blocking(move || orders.judge(&wanted)).await? {
            Fetched::Part(got) => Err(LargeOrderError::TooShort { got, bytes: pointer.bytes }),
            whole @ Fetched::Whole(_) => Ok(whole),
        }
    }

    fn open(&self, pointer: &Pointer) -> Result<File, LargeOrderError> {
        let disk = |error| self.disk(error);
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir).map_err(disk)?;
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true).mode(0o600);
        options.open(self.path(&pointer.digest)).map_err(disk)
    }

    fn write(
        &self,
        file: &mut File,
        pointer: &Pointer,
        at: u64,
        bytes: &[u8],
    ) -> Result<(), LargeOrderError> {
        if at + bytes.len() as u64 > pointer.bytes {
            file.set_len(0).map_err(|error| self.disk(error))?;
            return Err(LargeOrderError::TooLong(pointer.bytes));
        }
        file.write_all(bytes).map_err(|error| self.disk(error))
    }

    /// How much there is; all of it if that is whole. What is not the order is removed.
    fn judge(&self, pointer: &Pointer) -> Result<Fetched, LargeOrderError> {
        let mut file = self.open(pointer)?;
        let length = file.metadata().map_err(|error| self.disk(error))?.len();
        if length < pointer.bytes {
            return Ok(Fetched::Part(length));
        }
        let mut bytes = Vec::new();
        file.rewind().map_err(|error| self.disk(error))?;
        let limited = Read::by_ref(&mut file).take(pointer.bytes + 1);
        { limited }.read_to_end(&mut bytes).map_err(|error| self.disk(error))?;
        if bytes.len() as u64 == pointer.bytes && sha256_hex(&bytes) == pointer.digest {
            return Ok(Fetched::Whole(bytes));
        }
        file.set_len(0).map_err(|error| self.disk(error))?;
        Err(LargeOrderError::Digest)
    }

    fn remove_but(&self, digest: Option<&str>) -> Result<(), LargeOrderError> {
        let keep = digest.map(|digest| self.path(digest));
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(self.disk(error)),
        };
        for entry in entries {
            let path = entry.map_err(|error| self.disk(error))?.path();
            if keep.as_ref() != Some(&path) {
                fs::remove_file(&path).map_err(|error| self.disk(error))?;
            }
        }
        Ok(())
    }

    fn path(&self, digest: &str) -> PathBuf {
        self.dir.join(format!("{digest}.part"))
    }

    fn disk(&self, source: io::Error) -> LargeOrderError {
        LargeOrderError::Disk { dir: self.dir.clone(), source }
    }
}

async fn ask(client: &mut Client, url: &Url, from: u64) -> Result<Response, HttpError> {
    let mut headers = HeaderMap::new();
    if from > 0 {
        let range = HeaderValue::try_from(format!("bytes={from}-"));
        headers.insert(RANGE, range.expect("digits and hyphens are a header's value"));
    }
    client.request(&Method::GET, url, &headers, None).await
}

/// Whether an answer goes on where we are.
fn continues(response: &Response, reached: u64) -> bool {
    let range = content_range(&response.headers);
    response.status.as_u16() == 206 && range.is_some_and(|(start, _)| start == reached)
}

/// Disks may be waited for.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LargeOrderError> + Send + 'static,
) -> Result<T, LargeOrderError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
