//! A small HTTP/1.1 client for registries and repositories: GET and HEAD over TCP or TLS.
//!
//! In: a URL and headers. Out: status, headers and a body that is read piece by piece. Every wait
//! is bounded: a connection, and each piece of an answer. Redirects are followed as the rules in
//! [`Client::request`] allow. Deliberately not here: cookies, compression, proxies, HTTP/2.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::header::{AUTHORIZATION, HOST, LOCATION, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

mod error;
pub(crate) mod headers;
mod tls;
mod url;

pub use self::error::HttpError;
pub(crate) use self::url::{Origin, Url};

const USER_AGENT_VALUE: &str = concat!("coracle/", env!("CARGO_PKG_VERSION"));
const MAX_REDIRECTS: usize = 5;
/// A registry, its token server and its blob store.
const MAX_IDLE: usize = 3;
/// Limit of a response's head, and of what is read ahead of its body.
const BUFFER: usize = 64 << 10;

/// How long to wait for others.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// For a connection, with its TLS handshake.
    pub connect: Duration,
    /// For an answer to begin, and for each further piece of it.
    pub idle: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: Duration::from_secs(30), idle: Duration::from_secs(60) }
    }
}

/// What is configured for the servers, shared by all that fetch from them.
#[derive(Debug, Default)]
pub(crate) struct Policy {
    pub(crate) timeouts: Timeouts,
    /// Hosts that are spoken to in plain HTTP.
    pub(crate) plain: Vec<Origin>,
    /// Further certificates to trust, by host.
    pub(crate) authorities: Vec<(Origin, Vec<CertificateDer<'static>>)>,
    /// For what bodies are counted.
    pub(crate) purpose: Purpose,
}

/// For what something is fetched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Images and artifacts.
    #[default]
    Images,
    /// Large orders.
    Orders,
}

/// Connections and TLS settings for fetching one thing.
pub(crate) struct Client {
    policy: Arc<Policy>,
    tls: HashMap<Option<usize>, TlsConnector>,
    /// Connections that may be used again, the latest last.
    idle: Vec<(Origin, SendRequest<Empty<Bytes>>)>,
}

/// An answer whose body is still to be read.
pub(crate) struct Response {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    /// Who answered, after redirects.
    pub(crate) origin: Origin,
    body: Incoming,
    sender: SendRequest<Empty<Bytes>>,
    idle: Duration,
    purpose: Purpose,
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

impl Client {
    pub(crate) fn new(policy: Arc<Policy>) -> Self {
        Self { policy, tls: HashMap::new(), idle: Vec::new() }
    }

    /// Sends a request and follows at most five redirects: never from HTTPS to HTTP, to HTTP only
    /// where that is configured, and with `authorization` only while the origin stays the same.
    pub(crate) async fn request(
        &mut self,
        method: &Method,
        url: &Url,
        headers: &HeaderMap,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response, HttpError> {
        let mut url = url.clone();
        let first = url.origin.clone();
        for _ in 0..=MAX_REDIRECTS {
            let mut request = Request::new(Empty::new());
            *request.method_mut() = method.clone();
            *request.headers_mut() = headers.clone();
            if let Some(value) = authorization.filter(|_| url.origin == first) {
                request.headers_mut().insert(AUTHORIZATION, value.clone());
            }
            let response = self.exchange(&url, request).await?;
            if !matches!(response.status.as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            url = self.redirected(&url, &response.headers)?;
        }
        Err(refused(&first, url.origin.to_string(), "more than five redirects"))
    }

    /// Whether a URL that a server named may be asked.
    pub(crate) fn check(&self, from: &Origin, to: &Url) -> Result<(), HttpError> {
        if to.origin.tls {
            Ok(())
        } else if from.tls {
            Err(refused(from, to.origin.to_string(), "it leads from HTTPS to plain HTTP"))
        } else if self.policy.plain.contains(&to.origin) {
            Ok(())
        } else {
            Err(refused(from, to.origin.to_string(), "plain HTTP is not configured for it"))
        }
    }

    fn redirected(&self, from: &Url, headers: &HeaderMap) -> Result<Url, HttpError> {
        let location = headers.get(LOCATION).and_then(|value| value.to_str().ok());
        let to = location.and_then(|location| from.join(location));
        let to = to.ok_or_else(|| refused(&from.origin, String::new(), "it is not a URL"))?;
        self.check(&from.origin, &to)?;
        Ok(to)
    }

    async fn exchange(
        &mut self,
        url: &Url,
        mut request: Request<Empty<Bytes>>,
    ) -> Result<Response, HttpError> {
        let value = |text: String| {
            HeaderValue::try_from(text).map_err(|why| broken(&url.origin)(Box::new(why)))
        };
        request.headers_mut().insert(HOST, value(url.origin.authority())?);
        request.headers_mut().insert(USER_AGENT, HeaderValue::from_static(USER_AGENT_VALUE));
        *request.uri_mut() = url
            .path
            .parse()
            .map_err(|why: http::uri::InvalidUri| broken(&url.origin)(why.into()))?;
        if let Some(at) = self.idle.iter().position(|(origin, _)| *origin == url.origin) {
            let (_, mut sender) = self.idle.swap_remove(at);
            // A kept connection may have been closed meanwhile: then a new one is tried.
            let ready = timeout(self.policy.timeouts.idle, sender.ready()).await;
            if matches!(ready, Ok(Ok(()))) {
                match self.send(url, sender, request.clone()).await {
                    Err(HttpError::Broken { .. }) => {}
                    answered => return answered,
                }
            }
        }
        let sender = self.connect(&url.origin).await?;
        self.send(url, sender, request).await
    }

    async fn send(
        &self,
        url: &Url,
        mut sender: SendRequest<Empty<Bytes>>,
        request: Request<Empty<Bytes>>,
    ) -> Result<Response, HttpError> {
        let idle = self.policy.timeouts.idle;
        let response = timeout(idle, sender.send_request(request))
            .await
            .map_err(|_| silent(&url.origin, idle))?
            .map_err(|why| broken(&url.origin)(why.into()))?;
        let (head, body) = response.into_parts();
        let (status, headers) = (head.status, head.headers);
        let (origin, purpose) = (url.origin.clone(), self.policy.purpose);
        Ok(Response { status, headers, origin, body, sender, idle, purpose })
    }

    async fn connect(&mut self, origin: &Origin) -> Result<SendRequest<Empty<Bytes>>, HttpError> {
        let limit = self.policy.timeouts.connect;
        let error = |source| HttpError::Connect { host: origin.to_string(), source };
        let connecting = async {
            let tcp = tcp(origin, limit).await?;
            tcp.set_nodelay(true)?;
            let io: Box<dyn Io> = match origin.tls {
                false => Box::new(tcp),
                true => {
                    let name = ServerName::try_from(origin.host.clone())?;
                    Box::new(self.tls(origin)?.connect(name, tcp).await?)
                }
            };
            let mut builder = http1::Builder::new();
            builder.max_buf_size(BUFFER).max_headers(100);
            let (sender, connection) = builder.handshake(TokioIo::new(io)).await?;
            // Ends by itself when the sender and the body are dropped; what goes wrong is also
            // reported to them.
            tokio::spawn(async move { connection.await.ok() });
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(sender)
        };
        match timeout(limit, connecting).await {
            Ok(connected) => connected.map_err(error),
            Err(_) => Err(silent(origin, limit)),
        }
    }

    fn tls(&mut self, origin: &Origin) -> Result<TlsConnector, tokio_rustls::rustls::Error> {
        let at = self.policy.authorities.iter().position(|(host, _)| host == origin);
        if let Some(known) = self.tls.get(&at) {
            return Ok(known.clone());
        }
        let own = at.map_or(&[][..], |at| &self.policy.authorities[at].1);
        let made = tls::connector(own)?;
        self.tls.insert(at, made.clone());
        Ok(made)
    }

    /// Keeps the connection of an answer that was read to its end, for the next request.
    pub(crate) fn keep(&mut self, response: Response) {
        if !response.sender.is_closed() {
            self.idle.truncate(MAX_IDLE - 1);
            self.idle.push((response.origin, response.sender));
        }
    }
}

/// Tries each address of the host, none for so long that the next would not get its turn.
async fn tcp(origin: &Origin, limit: Duration) -> std::io::Result<TcpStream> {
    let mut last = std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address");
    for address in tokio::net::lookup_host((origin.host.as_str(), origin.port)).await?.take(8) {
        match timeout(limit / 3, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error,
            Err(_) => last = std::io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

/// What bodies have brought since the process began.
static IMAGES: AtomicU64 = AtomicU64::new(0);
static ORDERS: AtomicU64 = AtomicU64::new(0);

impl Purpose {
    fn counter(self) -> &'static AtomicU64 {
        match self {
            Self::Images => &IMAGES,
            Self::Orders => &ORDERS,
        }
    }

    /// Bytes of all bodies that were received for it since the process began.
    pub(crate) fn received_bytes(self) -> u64 {
        self.counter().load(Ordering::Relaxed)
    }
}

impl Response {
    /// The next piece of the body; `None` at its end.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, HttpError> {
        loop {
            let frame = timeout(self.idle, self.body.frame()).await;
            match frame.map_err(|_| silent(&self.origin, self.idle))? {
                None => return Ok(None),
                Some(Err(why)) => return Err(broken(&self.origin)(why.into())),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if !data.is_empty() => {
                        let bytes = u64::try_from(data.len()).unwrap_or(u64::MAX);
                        self.purpose.counter().fetch_add(bytes, Ordering::Relaxed);
                        return Ok(Some(data));
                    }
                    _ => {}
                },
            }
        }
    }

    /// The whole body, if it has at most `limit` bytes.
    pub(crate) async fn read(&mut self, limit: u64, what: &str) -> Result<Vec<u8>, HttpError> {
        let too_long =
            || HttpError::TooLong { host: self.origin.to_string(), what: what.to_owned(), limit };
        let announced = headers::content_length(&self.headers);
        if announced.is_some_and(|length| length > limit) {
            return Err(too_long());
        }
        let too_long = too_long();
        let mut bytes = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            if (bytes.len() + chunk.len()) as u64 > limit {
                return Err(too_long);
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("policy", &self.policy).finish_non_exhaustive()
    }
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Response").field("status", &self.status).finish_non_exhaustive()
    }
}

fn refused(from: &Origin, to: String, why: &'static str) -> HttpError {
    HttpError::Redirect { host: from.to_string(), to, why }
}

fn silent(origin: &Origin, after: Duration) -> HttpError {
    HttpError::Silent { host: origin.to_string(), after }
}

fn broken(origin: &Origin) -> impl FnOnce(Box<dyn std::error::Error + Send + Sync>) -> HttpError {
    let host = origin.to_string();
    move |source| HttpError::Broken { host, source }
}
