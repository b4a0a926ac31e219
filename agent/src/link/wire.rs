//! One connection's bytes: TCP, through a proxy or not, TLS over it, and a WebSocket in that if so
//! configured ([RFC 6455](https://www.rfc-editor.org/rfc/rfc6455), MQTT 5.0 section 6).
//!
//! In: where to connect and how, bytes to write. Out: bytes read, and how many went over the network
//! for them. Names are looked up anew for every connection. Deliberately not here: what the bytes
//! mean, and how long anything may take but the dialling of one address among several.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use coracle_protocol::limits::MAX_PACKET_BYTES;
use futures_core::Stream as _;
use futures_sink::Sink as _;
use http::header::SEC_WEBSOCKET_PROTOCOL;
use http::{HeaderValue, Uri};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_websockets::{ClientBuilder, Limits, Message, WebSocketStream};

use super::error::LinkError;
use super::proxy;
use super::traffic::Meter;
use crate::config::{Endpoint, ProxyConfig};

/// For one address, where a name has several.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// Most addresses of a name that are tried.
const MAX_ADDRESSES: usize = 8;

/// Most bytes that are read before the connection is made: certificates and headers.
const MAX_GREETING: u64 = 128 * 1024;

/// Bytes read at once.
const CHUNK: usize = 4096;

/// How to come to a broker.
#[derive(Clone)]
pub(super) struct Way {
    pub(super) broker: Endpoint,
    pub(super) tls: Arc<ClientConfig>,
    pub(super) proxy: Option<ProxyConfig>,
    /// With it, a WebSocket.
    pub(super) websocket_path: Option<String>,
}

/// What went over one connection, below TLS, and is not accounted for yet.
#[derive(Debug, Default)]
pub(super) struct Tally {
    sent: AtomicU64,
    received: AtomicU64,
    /// Most that may be received in all; 0 is no limit.
    limit: AtomicU64,
}

impl Tally {
    pub(super) fn take_sent(&self) -> u64 {
        self.sent.swap(0, Ordering::Relaxed)
    }

    pub(super) fn take_received(&self) -> u64 {
        self.received.swap(0, Ordering::Relaxed)
    }
}

/// A TCP connection that counts.
#[derive(Debug)]
struct Counted {
    tcp: TcpStream,
    tally: Arc<Tally>,
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.tcp).poll_read(cx, buffer))?;
        let count = (buffer.filled().len() - before) as u64;
        let all = self.tally.received.fetch_add(count, Ordering::Relaxed) + count;
        let limit = self.tally.limit.load(Ordering::Relaxed);
        if limit != 0 && all > limit {
            return Poll::Ready(Err(io::Error::other("it says too much before it is connected")));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.tcp).poll_write(cx, bytes))?;
        self.tally.sent.fetch_add(count as u64, Ordering::Relaxed);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

enum Layers {
    Tls(Box<TlsStream<Counted>>),
    WebSocket(Box<WebSocketStream<TlsStream<Counted>>>),
}

/// The connection.
pub(super) struct Wire {
    layers: Layers,
    /// Something was written that may still be on its way through the layers.
    unflushed: bool,
}

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Bytes were read.
    Read,
    /// All that was to be written is with the kernel.
    Written,
}

/// Makes the connection. What goes over the network for it is in `tally` from the first byte on.
pub(super) async fn open(way: &Way, tally: &Arc<Tally>, meter: &Meter) -> Result<Wire, LinkError> {
    let broker = way.broker.to_string();
    let unreachable = |source| LinkError::NotReachable { broker: broker.clone(), source };
    let first = way.proxy.as_ref().map_or(&way.broker, |proxy| &proxy.endpoint);
    let tcp = match dial(first, meter).await {
        Ok(tcp) => tcp,
        Err(source) if way.proxy.is_some() => {
            return Err(LinkError::ProxyNotReachable { proxy: first.to_string(), source });
        }
        Err(source) => return Err(unreachable(source)),
    };
    meter.dialled();
    tally.limit.store(MAX_GREETING, Ordering::Relaxed);
    let mut counted = Counted { tcp, tally: Arc::clone(tally) };
    if let Some(proxy) = &way.proxy {
        let credentials: Option<PathBuf> = proxy.credentials.clone();
        proxy::tunnel(&mut counted, &way.broker.host, way.broker.port, credentials.as_deref())
            .await?;
    }
    let name = ServerName::try_from(way.broker.host.clone())
        .map_err(|error| unreachable(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
    let connector = TlsConnector::from(Arc::clone(&way.tls));
    let tls = connector
        .connect(name, counted)
        .await
        .map_err(|error| LinkError::from_io(error, false, &broker))?;
    let layers = match &way.websocket_path {
        None => Layers::Tls(Box::new(tls)),
        Some(path) => Layers::WebSocket(Box::new(upgrade(tls, &way.broker, path).await?)),
    };
    tally.limit.store(0, Ordering::Relaxed);
    Ok(Wire { layers, unflushed: false })
}

/// Connects to the first address of the name that answers.
async fn dial(endpoint: &Endpoint, meter: &Meter) -> io::Result<TcpStream> {
    let found = lookup_host((endpoint.host.as_str(), endpoint.port)).await?;
    let addresses: Vec<SocketAddr> = found.take(MAX_ADDRESSES).collect();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "its name has no address");
    for address in &addresses {
        meter.dialling();
        let dialled = match addresses.len() {
            1 => TcpStream::connect(address).await,
            _ => timeout(DIAL_TIMEOUT, TcpStream::connect(address))
                .await
                .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())),
        };
        match dialled {
            Ok(tcp) => {
                tcp.set_nodelay(true)?;
                return Ok(tcp);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn upgrade(
    tls: TlsStream<Counted>,
    broker: &Endpoint,
    path: &str,
) -> Result<WebSocketStream<TlsStream<Counted>>, LinkError> {
    let no_websocket = |problem: String| LinkError::NoWebSocket { path: path.into(), problem };
    let uri: Uri = format!("wss://{broker}{path}")
        .parse()
        .map_err(|error: http::uri::InvalidUri| no_websocket(error.to_string()))?;
    let builder = ClientBuilder::from_uri(uri)
        .limits(Limits::default().max_payload_len(Some(2 * MAX_PACKET_BYTES)))
        .add_header(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("mqtt"))
        .map_err(|error| no_websocket(error.to_string()))?;
    let (stream, response) = builder.connect_on(tls).await.map_err(|error| match error {
        tokio_websockets::Error::Io(error) => LinkError::from_io(error, true, &broker.to_string()),
        other => no_websocket(other.to_string()),
    })?;
    match response.headers().get(SEC_WEBSOCKET_PROTOCOL) {
        Some(protocol) if protocol == "mqtt" => Ok(stream),
        _ => Err(no_websocket("it does not speak MQTT there".into())),
    }
}

impl Wire {
    /// Writes what is in `outgoing` and reads to the end of `incoming`, whichever goes. Safe to
    /// cancel: what is written is gone from `outgoing`, and nothing else is.
    pub(super) async fn exchange(
        &mut self,
        outgoing: &mut BytesMut,
        incoming: &mut BytesMut,
    ) -> io::Result<Progress> {
        std::future::poll_fn(|cx| self.poll_exchange(cx, outgoing, incoming)).await
    }

    /// Whether all that was given to it has gone to the kernel.
    pub(super) fn is_flushed(&self) -> bool {
        !self.unflushed
    }

    fn poll_exchange(
        &mut self,
        cx: &mut Context<'_>,
        outgoing: &mut BytesMut,
        incoming: &mut BytesMut,
    ) -> Poll<io::Result<Progress>> {
        match self.poll_write(cx, outgoing) {
            Poll::Ready(Ok(true)) => return Poll::Ready(Ok(Progress::Written)),
            Poll::Ready(Ok(false)) | Poll::Pending => {}
            // What the peer said before it went may say why.
            Poll::Ready(Err(error)) => match self.poll_read(cx, incoming) {
                Poll::Ready(Ok(())) => return Poll::Ready(Ok(Progress::Read)),
                _ => return Poll::Ready(Err(error)),
            },
        }
        ready!(self.poll_read(cx, incoming))?;
        Poll::Ready(Ok(Progress::Read))
    }

    /// Ready with whether there was anything to write.
    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        outgoing: &mut BytesMut,
    ) -> Poll<io::Result<bool>> {
        if outgoing.is_empty() && !self.unflushed {
            return Poll::Ready(Ok(false));
        }
        match &mut self.layers {
            Layers::Tls(stream) => {
                let mut stream = Pin::new(stream.as_mut());
                while !outgoing.is_empty() {
                    let count = ready!(stream.as_mut().poll_write(cx, outgoing))?;
                    if count == 0 {
                        return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                    }
                    outgoing.advance(count);
                    self.unflushed = true;
                }
                ready!(stream.poll_flush(cx))?;
            }
            Layers::WebSocket(stream) => {
                let mut stream = Pin::new(stream.as_mut());
                if !outgoing.is_empty() {
                    ready!(stream.as_mut().poll_ready(cx)).map_err(broken)?;
                    let message = Message::binary(outgoing.split());
                    stream.as_mut().start_send(message).map_err(broken)?;
                    self.unflushed = true;
                }
                ready!(stream.poll_flush(cx)).map_err(broken)?;
            }
        }
        self.unflushed = false;
        Poll::Ready(Ok(true))
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, incoming: &mut BytesMut) -> Poll<io::Result<()>> {
        match &mut self.layers {
            Layers::Tls(stream) => {
                let mut chunk = [0; CHUNK];
                let mut buffer = ReadBuf::new(&mut chunk);
                ready!(Pin::new(stream.as_mut()).poll_read(cx, &mut buffer))?;
                if buffer.filled().is_empty() {
                    return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                }
                incoming.extend_from_slice(buffer.filled());
            }
            Layers::WebSocket(stream) => {
                // Pings are answered by the library.
                match ready!(Pin::new(stream.as_mut()).poll_next(cx)) {
                    None => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                    Some(message) => {
                        let message = message.map_err(broken)?;
                        if message.is_text() {
                            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
                        }
                        if message.is_binary() {
                            incoming.extend_from_slice(message.as_payload());
                        }
                    }
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

fn broken(error: tokio_websockets::Error) -> io::Error {
    match error {
        tokio_websockets::Error::Io(error) => error,
        other => io::Error::new(io::ErrorKind::InvalidData, other),
    }
}
