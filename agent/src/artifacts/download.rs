//! One file over HTTP, from where an earlier download stopped, and nothing but what its digest says.

use std::sync::{Arc, Mutex, PoisonError};

use coracle_core::image::Digest;
use http::header::{ETAG, IF_RANGE, LAST_MODIFIED, RANGE};
use http::{HeaderMap, HeaderValue, Method};

use super::build::Waiting;
use super::error::ArtifactError;
use super::partial::{Note, Partial};
use super::repository::{digest_url, parse_digest};
use super::{Phase, Progress, Shared, blocking};
use crate::http_client::headers::{content_length, content_range, retry_after};
use crate::http_client::{Client, HttpError, Response, Url};
use crate::locks::Held;

/// Bytes that are written at once.
const PIECE: usize = 128 << 10;
/// How often a broken download goes on at once, each time only if it had come further.
const RESUMES: usize = 5;
/// Longest file with a digest.
const MAX_DIGEST_FILE: u64 = 1024;

/// What is, or is being, fetched. It is changed by one thread at a time.
#[derive(Clone, Debug)]
pub(super) struct Fetched(Arc<Mutex<Partial>>);

impl Fetched {
    fn new(partial: Partial) -> Self {
        Self(Arc::new(Mutex::new(partial)))
    }

    fn look<T>(&self, look: impl FnOnce(&Partial) -> T) -> T {
        self.change(|partial| look(partial))
    }

    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Partial) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Fetches one thing.
pub(super) struct Download<'a> {
    shared: Arc<Shared>,
    client: Client,
    /// Held until nothing is written any more, even if nobody waits for that.
    held: Arc<Held>,
    key: &'a str,
    what: &'a str,
    progress: &'a (dyn Fn(Progress) + Send + Sync),
}

impl<'a> Download<'a> {
    /// `held` is the lock of `key`.
    pub(super) fn new(
        shared: &Arc<Shared>,
        held: &Arc<Held>,
        key: &'a str,
        what: &'a str,
        progress: &'a (dyn Fn(Progress) + Send + Sync),
    ) -> Self {
        let client = Client::new(shared.repositories.policy.clone());
        Self { shared: shared.clone(), client, held: held.clone(), key, what, progress }
    }

    /// What the file beside a ZIP says; `None` if neither is there.
    pub(super) async fn digest_of(&mut self, zip: &Url) -> Result<Option<Digest>, ArtifactError> {
        let url = digest_url(zip);
        let mut response = self.request(&Method::GET, &url, &HeaderMap::new()).await?;
        match response.status.as_u16() {
            200 => {
                let text = response.read(MAX_DIGEST_FILE, "digest").await;
                let text = text.map_err(|source| self.http(source))?;
                self.client.keep(response);
                let digest = parse_digest(&text, zip).ok_or_else(|| ArtifactError::DigestFile {
                    what: self.what.to_owned(),
                    url: url.to_string(),
                })?;
                Ok(Some(digest))
            }
            404 | 410 => {
                let response = self.request(&Method::HEAD, zip, &HeaderMap::new()).await?;
                match response.status.as_u16() {
                    404 | 410 => Ok(None),
                    200 => Err(ArtifactError::NoDigest {
                        what: self.what.to_owned(),
                        url: url.to_string(),
                    }),
                    _ => Err(self.refused(&response)),
                }
            }
            _ => Err(self.refused(&response)),
        }
    }

    /// All of it, of this digest; `None` if it is not there.
    pub(super) async fn fetch(
        &mut self,
        url: &Url,
        digest: &Digest,
    ) -> Result<Option<Fetched>, ArtifactError> {
        let mut again = false;
        loop {
            let partial = self.open(url, digest).await?;
            match self.fill_on(&partial, url, digest).await {
                Ok(true) => {}
                Ok(false) => return Ok(None),
                Err(error) => {
                    let (begun, length) = partial.look(|it| (it.note.is_some(), it.length));
                    if begun && (length == 0 || !error.keeps_download()) {
                        self.on(&partial, Partial::discard).await?;
                    }
                    return Err(error);
                }
            }
            let actual = self.check(&partial).await?;
            if actual == *digest {
                return Ok(Some(partial));
            }
            let is_patchwork = partial.look(|it| it.is_patchwork);
            self.on(&partial, Partial::discard).await?;
            // What was put together from several answers may be of different versions, or have lost
            // its end in a power cut.
            if again || !is_patchwork {
                let (what, expected) = (self.what.to_owned(), digest.clone());
                return Err(ArtifactError::Digest { what, expected, actual });
            }
            again = true;
        }
    }

    async fn open(&self, url: &Url, digest: &Digest) -> Result<Fetched, ArtifactError> {
        let (shared, what, key) = (self.shared.clone(), self.what.to_owned(), self.key.to_owned());
        let (url, digest) = (url.to_string(), digest.clone());
        blocking(&self.held, move || Ok(Partial::open(shared, &what, &key, &url, &digest)))
            .await
            .map(Fetched::new)
    }

    /// Downloads on, as long as each try comes further.
    async fn fill_on(
        &mut self,
        partial: &Fetched,
        url: &Url,
        digest: &Digest,
    ) -> Result<bool, ArtifactError> {
        let mut resumes = 0;
        loop {
            let reached = partial.look(|it| it.length);
            match self.fill(partial, url, digest).await {
                Err(error)
                    if error.is_interruption()
                        && partial.look(|it| it.length) > reached
                        && resumes < RESUMES =>
                {
                    resumes += 1;
                }
                filled => return filled,
            }
        }
    }

    /// Downloads from where it is to the end. `false` if it is not there.
    async fn fill(
        &mut self,
        partial: &Fetched,
        url: &Url,
        digest: &Digest,
    ) -> Result<bool, ArtifactError> {
        if partial.look(|it| it.is_complete()) {
            return Ok(true);
        }
        let (length, note) = partial.look(|it| (it.length, it.note.clone()));
        let resumption = note.as_ref().filter(|_| length > 0);
        let headers = resumption.map(|note| range(length, note)).unwrap_or_default();
        let mut response = self.request(&Method::GET, url, &headers).await?;
        let mut goes_on = response.status.as_u16() == 206
            && resumption.is_some_and(|note| continues(&response.headers, length, note));
        if resumption.is_some() && !goes_on && matches!(response.status.as_u16(), 206 | 416) {
            response = self.request(&Method::GET, url, &HeaderMap::new()).await?;
            goes_on = false;
        }
        match response.status.as_u16() {
            206 if goes_on => partial.change(|it| it.is_patchwork = true),
            200 => self.begin(partial, &response, url, digest).await?,
            404 | 410 => return Ok(false),
            _ => return Err(self.refused(&response)),
        }
        self.copy(partial, &mut response).await?;
        self.on(partial, Partial::complete).await?;
        self.client.keep(response);
        Ok(true)
    }

    async fn begin(
        &self,
        partial: &Fetched,
        response: &Response,
        url: &Url,
        digest: &Digest,
    ) -> Result<(), ArtifactError> {
        let total = content_length(&response.headers);
        self.check_limit(total.unwrap_or(0))?;
        let validator = validator(&response.headers);
        let note = Note { url: url.to_string(), digest: digest.clone(), validator, total };
        self.on(partial, move |it| it.begin(note)).await
    }

    async fn copy(&self, partial: &Fetched, response: &mut Response) -> Result<(), ArtifactError> {
        let (mut reached, total) =
            partial.look(|it| (it.length, it.note.as_ref().and_then(|note| note.total)));
        let mut piece = Vec::with_capacity(PIECE);
        loop {
            self.report(Phase::Downloading, reached, total);
            let chunk = response.chunk().await;
            if let Ok(Some(chunk)) = &chunk {
                let end = reached + (piece.len() + chunk.len()) as u64;
                self.check_length(end, total.filter(|total| end > *total))?;
                self.check_limit(end)?;
                piece.extend_from_slice(chunk);
            }
            // At the end, and where it breaks, what has come is kept.
            if piece.len() >= PIECE || !matches!(chunk, Ok(Some(_))) {
                reached += piece.len() as u64;
                let next = std::mem::replace(&mut piece, Vec::with_capacity(PIECE));
                self.on(partial, move |it| it.append(&next)).await?;
                if chunk.map_err(|source| self.http(source))?.is_none() {
                    return self.check_length(reached, total.filter(|total| reached != *total));
                }
            }
        }
    }

    async fn check(&self, partial: &Fetched) -> Result<Digest, ArtifactError> {
        let length = partial.look(|it| it.length);
        self.report(Phase::Verifying, 0, Some(length));
        let waiting = Waiting::default();
        let stop = waiting.stop();
        self.on(partial, move |it| it.digest(&stop)).await
    }

    /// Changes what is on the disk, on a thread that may wait for it.
    pub(super) async fn on<T: Send + 'static>(
        &self,
        partial: &Fetched,
        work: impl FnOnce(&mut Partial) -> Result<T, ArtifactError> + Send + 'static,
    ) -> Result<T, ArtifactError> {
        let partial = partial.clone();
        blocking(&self.held, move || partial.change(work)).await
    }

    async fn request(
        &mut self,
        method: &Method,
        url: &Url,
        headers: &HeaderMap,
    ) -> Result<Response, ArtifactError> {
        let answer = self.client.request(method, url, headers, None).await;
        answer.map_err(|source| self.http(source))
    }

    fn report(&self, phase: Phase, bytes_done: u64, bytes_total: Option<u64>) {
        (self.progress)(Progress { phase, bytes_done, bytes_total, ..Progress::default() });
    }

    fn check_limit(&self, bytes: u64) -> Result<(), ArtifactError> {
        let limit = self.shared.limits.zip_mib.saturating_mul(1 << 20);
        match bytes > limit {
            true => Err(ArtifactError::TooLarge { what: self.what.to_owned(), bytes, limit }),
            false => Ok(()),
        }
    }

    /// `expected`: what it should be, if it is not so.
    fn check_length(&self, actual: u64, expected: Option<u64>) -> Result<(), ArtifactError> {
        let Some(expected) = expected else { return Ok(()) };
        Err(ArtifactError::Length { what: self.what.to_owned(), expected, actual })
    }

    fn http(&self, source: HttpError) -> ArtifactError {
        ArtifactError::Http { what: self.what.to_owned(), source }
    }

    fn refused(&self, response: &Response) -> ArtifactError {
        let (host, what) = (response.origin.to_string(), self.what.to_owned());
        let status = response.status.as_u16();
        if matches!(status, 401 | 403) {
            return ArtifactError::Denied { host, what, status };
        }
        let asks_to_wait = matches!(status, 429 | 503);
        let retry_after = if asks_to_wait { retry_after(&response.headers) } else { None };
        ArtifactError::Answered { host, status, what, retry_after }
    }
}

/// Asks for the rest, if it is still the rest of the same thing.
fn range(length: u64, note: &Note) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let validator = note.validator.as_deref().and_then(|text| HeaderValue::from_str(text).ok());
    if let Ok(range) = HeaderValue::try_from(format!("bytes={length}-")) {
        headers.insert(RANGE, range);
        headers.extend(validator.map(|validator| (IF_RANGE, validator)));
    }
    headers
}

/// Whether a 206 is what was asked for: some servers do not know `If-Range`.
fn continues(headers: &HeaderMap, length: u64, note: &Note) -> bool {
    let Some((start, total)) = content_range(headers) else { return false };
    let same_total = total.is_none() || note.total.is_none() || total == note.total;
    let found = validator(headers);
    let same = found.is_none() || note.validator.is_none() || found == note.validator;
    start == length && same_total && same
}

/// What tells one content from another: a strong ETag, else a date (RFC 9110, 13.1.5).
fn validator(headers: &HeaderMap) -> Option<String> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let strong = text(ETAG).filter(|tag| tag.starts_with('"'));
    strong.or_else(|| text(LAST_MODIFIED)).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    fn note(validator: Option<&str>, total: Option<u64>) -> Note {
        let digest = Digest::parse(&format!("sha256:{}", "0".repeat(64))).unwrap();
        Note { url: "https://x/".into(), digest, validator: validator.map(Into::into), total }
    }

    #[test]
    fn only_a_strong_tag_or_a_date_tells_contents_apart() {
        let date = "Fri, 20 Nov 2026 10:00:00 GMT";
        let found = |pairs: &[_]| validator(&map(pairs));
        assert_eq!(found(&[("etag", "\"a\""), ("last-modified", date)]).unwrap(), "\"a\"");
        assert_eq!(found(&[("etag", "W/\"a\""), ("last-modified", date)]).unwrap(), date);
        assert_eq!(found(&[("etag", "W/\"a\"")]), None);
    }

    #[test]
    fn an_answer_goes_on_only_where_it_was_asked_to_and_with_the_same_thing() {
        let same = note(Some("\"a\""), Some(10));
        let goes_on = |range: &str, tag: &str, note: &Note| {
            continues(&map(&[("content-range", range), ("etag", tag)]), 4, note)
        };
        assert!(goes_on("bytes 4-9/10", "\"a\"", &same));
        assert!(goes_on("bytes 4-9/*", "\"a\"", &same));
        assert!(goes_on("bytes 4-9/10", "\"b\"", &note(None, None)));
        assert!(!goes_on("bytes 3-9/10", "\"a\"", &same));
        assert!(!goes_on("bytes 4-10/11", "\"a\"", &same));
        assert!(!goes_on("bytes 4-9/10", "\"b\"", &same));
        assert_eq!(range(4, &same), map(&[("range", "bytes=4-"), ("if-range", "\"a\"")]));
    }
}
