//! One connection, one request. In: a stream from a peer. Out: an answer, before the time is up.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::UnixStream;
use tokio::net::unix::UCred;
use tokio::time::timeout;

use super::{Context, router};

/// For the request's head to arrive.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// For everything: a long poll and an answer taken slowly included.
const WHOLE_TIME: Duration = Duration::from_secs(120);
/// Largest request head, and the piece in which bodies are read, in bytes.
const BUFFER: usize = 16 * 1024;
const MAX_HEADERS: usize = 32;

pub(super) async fn serve(stream: UnixStream, peer: UCred, context: Arc<Context>) {
    let access = context.rules.judge(peer).await;
    let service = service_fn(|request| {
        let context = Arc::clone(&context);
        async move { Ok::<_, Infallible>(router::answer(request, access, &context).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .keep_alive(false)
        .max_buf_size(BUFFER)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(WHOLE_TIME, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(uid = peer.uid(), %error, "API connection failed"),
        Err(_) => tracing::debug!(uid = peer.uid(), "API connection took too long"),
    }
}

/// Says that there is no place now, as far as that can be said without waiting.
pub(super) fn turn_away(stream: &UnixStream) {
    const ANSWER: &str = "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\n\
        content-length: 51\r\nretry-after: 1\r\nconnection: close\r\n\r\n\
        {\"error\":\"too many connections; try again shortly\"}";
    if let Err(error) = stream.try_write(ANSWER.as_bytes()) {
        tracing::debug!(%error, "an API connection was dropped");
    }
}
