//! A registry, or a web server with files, that fails as told. In: images, files and rules. Out: HTTP
//! answers, right or wrong, and a record of what was asked. In memory, on loopback, at most 64 connections at once.

use std::collections::HashMap;
use std::io::{BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::image::{Blob, Content};
use crate::{Result, http};

const MAX_CONNECTIONS: usize = 64;
const MAX_SEEN: usize = 10_000;
const PATIENCE: Duration = Duration::from_secs(60);
const ENDLESS: usize = 256 * 1024 * 1024;

/// What goes wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// 401 with a Basic challenge.
    Unauthorized,
    /// 429, with Retry-After in seconds if given.
    TooManyRequests(Option<u32>),
    /// Any other status, without a body.
    Status(u16),
    /// 307 to another URL.
    Redirect(String),
    /// The request is read and never answered.
    Hang,
    /// Headers are right; the connection closes after that many bytes of the body.
    CutAfter(usize),
    /// That many bytes of the body, then silence on an open connection.
    StallAfter(usize),
    /// At most that many bytes of the body a second.
    Slow(usize),
    /// The body has the right length and one wrong byte, in its middle.
    WrongBytes,
    /// Content-Length says that many bytes more than there are; then the connection closes.
    LongerThanSent(usize),
    /// The body goes on after its end with zeros, without a Content-Length (at most 256 MiB).
    Endless,
    /// Nothing is wrong, but the body comes chunked and without a length.
    Chunked,
    /// Nothing is wrong, but ranges are ignored.
    NoRanges,
    /// `If-Range` is ignored: the rest of whatever is there now, with its ETag or without one.
    AnyRange {
        /// Whether there is an ETag.
        tag: bool,
    },
    /// 416, whatever is asked for.
    RangeRefused,
}

/// A request that was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// `GET`, `HEAD`.
    pub method: String,
    /// The path with its query.
    pub path: String,
    /// The Range header.
    pub range: Option<String>,
    /// The If-Range header.
    pub if_range: Option<String>,
    /// The Authorization header.
    pub authorization: Option<String>,
    /// When it came.
    pub at: Instant,
}

#[derive(Debug)]
struct Rule {
    path: String,
    left: usize,
    fault: Fault,
}

#[derive(Debug, Default)]
struct State {
    content: HashMap<String, Blob>,
    rules: Vec<Rule>,
    seen: Vec<Seen>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    stop: AtomicBool,
    connections: AtomicUsize,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The server; stops when dropped.
#[derive(Debug)]
pub struct FaultyRegistry {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<std::thread::JoinHandle<()>>,
}

impl FaultyRegistry {
    /// Starts one without content or faults, on a free loopback port.
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        let for_acceptor = Arc::clone(&shared);
        let acceptor = std::thread::spawn(move || accept(&listener, &for_acceptor));
        Ok(Self { address, shared, acceptor: Some(acceptor) })
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// `127.0.0.1:PORT/NAME:TAG`.
    pub fn reference(&self, name: &str, tag: &str) -> String {
        format!("{}/{name}:{tag}", self.address)
    }

    /// `127.0.0.1:PORT/NAME@DIGEST`.
    pub fn pinned(&self, name: &str, digest: &str) -> String {
        format!("{}/{name}@{digest}", self.address)
    }

    /// Serves an image or index from now on; gives the digest of its manifest.
    pub fn put(&self, content: &dyn Content, name: &str, tag: &str) -> String {
        let mut state = self.shared.state();
        let root = content.root();
        state.content.insert(format!("/v2/{name}/manifests/{tag}"), root.clone());
        for manifest in content.inner_manifests().into_iter().chain([root]) {
            let path = format!("/v2/{name}/manifests/{}", manifest.digest);
            state.content.insert(path, manifest.clone());
        }
        for blob in content.blobs() {
            state.content.insert(format!("/v2/{name}/blobs/{}", blob.digest), blob.clone());
        }
        root.digest.clone()
    }

    /// Serves a file from now on at a path such as `/a/b.zip`; gives its digest.
    pub fn put_file(&self, path: &str, bytes: &[u8]) -> String {
        let blob = Blob::new("application/octet-stream", bytes.to_vec());
        let digest = blob.digest.clone();
        self.shared.state().content.insert(path.to_owned(), blob);
        digest
    }

    /// Serves it no more.
    pub fn take_file(&self, path: &str) {
        self.shared.state().content.remove(path);
    }

    /// The next `times` requests whose path contains `path` (`/manifests/`, a digest, or empty
    /// for all) meet the fault. Rules are tried in the order they were given.
    pub fn fail(&self, path: &str, times: usize, fault: Fault) {
        self.shared.state().rules.push(Rule { path: path.to_owned(), left: times, fault });
    }

    /// All requests whose path contains `path` meet the fault, until [`heal`](Self::heal).
    pub fn fail_always(&self, path: &str, fault: Fault) {
        self.fail(path, usize::MAX, fault);
    }

    /// Drops all rules.
    pub fn heal(&self) {
        self.shared.state().rules.clear();
    }

    /// The requests so far, oldest first; the first 10,000.
    pub fn requests(&self) -> Vec<Seen> {
        self.shared.state().seen.clone()
    }

    /// How many requests had a path that contains `path`.
    pub fn count(&self, path: &str) -> usize {
        self.shared.state().seen.iter().filter(|seen| seen.path.contains(path)).count()
    }
}

impl Drop for FaultyRegistry {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        // Wakes the acceptor; if that fails it has ended already.
        TcpStream::connect(self.address).ok();
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.join().ok();
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming().flatten() {
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        if shared.connections.fetch_add(1, Ordering::SeqCst) >= MAX_CONNECTIONS {
            shared.connections.fetch_sub(1, Ordering::SeqCst);
            continue;
        }
        let shared = Arc::clone(shared);
        std::thread::spawn(move || {
            // A client that goes away is its own affair.
            serve(&stream, &shared).ok();
            shared.connections.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

fn serve(stream: &TcpStream, shared: &Shared) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(stream);
    let (method, path) = http::read_request_line(&mut reader)?;
    let headers = http::read_headers(&mut reader)?;
    let header = |name: &str| {
        let found = headers.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.clone())
    };
    let range = header("range");
    let (if_range, authorization) = (header("if-range"), header("authorization"));
    let seen = Seen { method, path, range, if_range, authorization, at: Instant::now() };
    let (fault, blob) = look_up(&mut shared.state(), &seen);
    Reply { stream, shared, seen: &seen }.answer(fault, blob)
}

fn look_up(state: &mut State, seen: &Seen) -> (Option<Fault>, Option<Blob>) {
    if state.seen.len() < MAX_SEEN {
        state.seen.push(seen.clone());
    }
    let rule = state.rules.iter_mut().find(|rule| rule.left > 0 && seen.path.contains(&rule.path));
    let fault = rule.map(|rule| {
        rule.left = if rule.left == usize::MAX { rule.left } else { rule.left - 1 };
        rule.fault.clone()
    });
    let path = seen.path.split('?').next().unwrap_or_default().replace("%2B", "+");
    let blob = match path.as_str() {
        "/v2/" | "/v2" => Some(Blob::new("application/json", b"{}".to_vec())),
        _ => state.content.get(&path).cloned(),
    };
    (fault, blob)
}

struct Reply<'a> {
    stream: &'a TcpStream,
    shared: &'a Shared,
    seen: &'a Seen,
}

impl Reply<'_> {
    fn answer(&self, fault: Option<Fault>, blob: Option<Blob>) -> Result<()> {
        match &fault {
            Some(Fault::Hang) => return self.hang(),
            Some(Fault::Unauthorized) => {
                return self.refuse(401, "WWW-Authenticate: Basic realm=\"coracle\"\r\n");
            }
            Some(Fault::TooManyRequests(after)) => {
                let after = after.map(|seconds| format!("Retry-After: {seconds}\r\n"));
                return self.refuse(429, &after.unwrap_or_default());
            }
            Some(Fault::Status(status)) => return self.refuse(*status, ""),
            Some(Fault::Redirect(url)) => {
                return self.refuse(307, &format!("Location: {url}\r\n"));
            }
            _ => {}
        }
        if !matches!(self.seen.method.as_str(), "GET" | "HEAD") {
            return self.refuse(405, "");
        }
        match blob {
            Some(blob) => self.send(fault, &blob),
            None => self.refuse(404, ""),
        }
    }

    fn refuse(&self, status: u16, headers: &str) -> Result<()> {
        let body = r#"{"errors":[]}"#;
        let kind = "Content-Type: application/json";
        let length = body.len();
        let head = format!("{kind}\r\nContent-Length: {length}\r\n{headers}");
        self.head(status, &head)?;
        if self.seen.method != "HEAD" {
            self.write(body.as_bytes())?;
        }
        Ok(())
    }

    fn head(&self, status: u16, headers: &str) -> Result<()> {
        let head = format!("HTTP/1.1 {status} Told\r\nConnection: close\r\n{headers}\r\n");
        self.write(head.as_bytes())
    }

    fn write(&self, bytes: &[u8]) -> Result<()> {
        let mut stream = self.stream;
        Ok(stream.write_all(bytes)?)
    }

    fn send(&self, fault: Option<Fault>, blob: &Blob) -> Result<()> {
        let total = blob.bytes.len();
        let tag = format!("\"{}\"", blob.digest);
        let same = self.seen.if_range.as_ref().is_none_or(|wanted| *wanted == tag);
        let wanted =
            same && fault != Some(Fault::NoRanges) || matches!(fault, Some(Fault::AnyRange { .. }));
        let range = self.seen.range.as_deref().filter(|_| wanted);
        if fault == Some(Fault::RangeRefused) && range.is_some() {
            return self.refuse(416, &format!("Content-Range: bytes */{total}\r\n"));
        }
        let (from, to) = match range.map(|range| parse_range(range, total)) {
            None => (0, total),
            Some(Some(range)) => range,
            Some(None) => return self.refuse(416, &format!("Content-Range: bytes */{total}\r\n")),
        };
        let mut body = blob.bytes[from..to].to_vec();
        let partial = range.is_some();
        let mut headers = format!(
            "Content-Type: {}\r\nDocker-Content-Digest: {}\r\n",
            blob.media_type, blob.digest
        );
        if fault != Some(Fault::AnyRange { tag: false }) {
            headers.push_str(&format!("ETag: {tag}\r\n"));
        }
        if fault != Some(Fault::NoRanges) {
            headers.push_str("Accept-Ranges: bytes\r\n");
        }
        if partial {
            headers.push_str(&format!("Content-Range: bytes {from}-{}/{total}\r\n", to - 1));
        }
        match &fault {
            Some(Fault::Chunked) => headers.push_str("Transfer-Encoding: chunked\r\n"),
            Some(Fault::Endless) => {}
            Some(Fault::LongerThanSent(more)) => {
                headers.push_str(&format!("Content-Length: {}\r\n", body.len() + more));
            }
            _ => headers.push_str(&format!("Content-Length: {}\r\n", body.len())),
        }
        self.head(if partial { 206 } else { 200 }, &headers)?;
        if self.seen.method == "HEAD" {
            return Ok(());
        }
        if fault == Some(Fault::WrongBytes) {
            let middle = body.len() / 2;
            if let Some(byte) = body.get_mut(middle) {
                *byte ^= 0xff;
            }
        }
        self.send_body(fault, &body)
    }

    fn send_body(&self, fault: Option<Fault>, body: &[u8]) -> Result<()> {
        match fault {
            Some(Fault::CutAfter(bytes)) => self.write(&body[..bytes.min(body.len())]),
            Some(Fault::StallAfter(bytes)) => {
                self.write(&body[..bytes.min(body.len())])?;
                self.hang()
            }
            Some(Fault::Slow(rate)) => {
                for part in body.chunks(rate.div_ceil(20).max(1)) {
                    self.write(part)?;
                    if self.pause(Duration::from_millis(50)) {
                        break;
                    }
                }
                Ok(())
            }
            Some(Fault::Chunked) => {
                for part in body.chunks(10_000) {
                    self.write(format!("{:x}\r\n", part.len()).as_bytes())?;
                    self.write(part)?;
                    self.write(b"\r\n")?;
                }
                self.write(b"0\r\n\r\n")
            }
            Some(Fault::Endless) => {
                self.write(body)?;
                let zeros = [0; 64 * 1024];
                for _ in 0..ENDLESS / zeros.len() {
                    self.write(&zeros)?;
                }
                Ok(())
            }
            _ => self.write(body),
        }
    }

    /// Silence until the client or the server goes away.
    fn hang(&self) -> Result<()> {
        self.stream.set_nonblocking(true)?;
        let gone = || matches!(self.stream.peek(&mut [0]), Ok(0));
        while !gone() && !self.pause(Duration::from_millis(20)) {}
        Ok(())
    }

    /// Waits; true if the server is stopping.
    fn pause(&self, time: Duration) -> bool {
        std::thread::sleep(time);
        self.shared.stop.load(Ordering::SeqCst)
    }
}

/// `bytes=FROM-` and `bytes=FROM-TO` (RFC 9110, 14.1.2) as a half-open range.
fn parse_range(range: &str, total: usize) -> Option<(usize, usize)> {
    let (from, to) = range.strip_prefix("bytes=")?.split_once('-')?;
    let from: usize = from.parse().ok()?;
    let to = if to.is_empty() { total } else { to.parse::<usize>().ok()?.saturating_add(1) };
    let to = to.min(total);
    (from < to).then_some((from, to))
}
