//! One connection, one request. In: a stream from a peer. Out: an answer, before the time is up.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::time::sleep;

use super::access::{Access, Rights};
use super::reply::{Kind, PROBLEM_JSON};
use super::unread::Unread;
use super::{Context, router};

/// For the request's head to arrive.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// For everything: a long poll and an answer taken slowly included.
const WHOLE_TIME: Duration = Duration::from_secs(120);
/// For those that get nothing but a no.
const STRANGERS_TIME: Duration = Duration::from_secs(10);
/// Largest request head, and the piece in which bodies are read, in bytes.
const BUFFER: usize = 16 * 1024;
const MAX_HEADERS: usize = 32;

/// What holds a connection to its time.
#[derive(Debug, Default)]
pub(super) struct Leash {
    long: AtomicBool,
    cut: Notify,
}

impl Leash {
    /// The answer takes as long as it takes: whoever gives it sees to its end.
    pub(super) fn lengthen(&self) {
        self.long.store(true, Ordering::Relaxed);
    }

    /// Ends the connection, also if the peer takes nothing any more.
    pub(super) fn cut(&self) {
        self.cut.notify_one();
    }

    async fn pulled(&self, time: Duration) {
        let over = async {
            sleep(time).await;
            if self.long.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = over => {}
            () = self.cut.notified() => {}
        }
    }
}

/// `peer` is what the log calls it.
pub(super) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    peer: &str,
    rights: Rights,
    context: Arc<Context>,
) {
    let leash = Arc::new(Leash::default());
    let stream = Unread::new(stream);
    let was_read = stream.was_read();
    let service = service_fn(|request| {
        was_read.store(true, Ordering::Relaxed);
        let (context, leash) = (Arc::clone(&context), Arc::clone(&leash));
        async move { Ok::<_, Infallible>(router::answer(request, &rights, &leash, &context).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .keep_alive(false)
        .max_buf_size(BUFFER)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), service);
    let time = if rights.access == Access::None { STRANGERS_TIME } else { WHOLE_TIME };
    tokio::select! {
        ended = connection => if let Err(error) = ended {
            tracing::debug!(peer, %error, "API connection failed");
        },
        () = leash.pulled(time) => tracing::debug!(peer, "API connection took too long"),
    }
}

/// Says that there is no place now, as far as that can be said without waiting.
pub(super) fn turn_away(stream: &UnixStream) {
    let answer = raw_problem(Kind::Unavailable, "too many connections; try again shortly");
    if let Err(error) = stream.try_write(&answer) {
        tracing::debug!(%error, "an API connection was dropped");
    }
}

/// A whole answer, for where there is nobody to write it.
pub(super) fn raw_problem(kind: Kind, detail: &str) -> Vec<u8> {
    // Strings and numbers always serialise.
    let body = serde_json::to_vec(&kind.problem(detail)).unwrap_or_default();
    let retry = if kind == Kind::Unavailable { "retry-after: 1\r\n" } else { "" };
    let head = format!(
        "HTTP/1.1 {}\r\ncontent-type: {PROBLEM_JSON}\r\ncontent-length: {}\r\n{retry}\
         cache-control: no-store\r\nconnection: close\r\n\r\n",
        kind.status(),
        body.len()
    );
    [head.into_bytes(), body].concat()
}
