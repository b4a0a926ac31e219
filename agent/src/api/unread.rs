//! Requests that the HTTP library refuses by itself, before anybody sees them: its bare answers are
//! replaced by problem details.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::connection::raw_problem;
use super::reply::Kind;

/// A stream over which nothing is written until a request was read, but a problem.
#[derive(Debug)]
pub(super) struct Unread<S> {
    stream: S,
    was_read: Arc<AtomicBool>,
    /// What is written in the place of the library's answer, and how much of it was.
    instead: Option<(Vec<u8>, usize)>,
}

impl<S> Unread<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, was_read: Arc::default(), instead: None }
    }

    /// To be set once a request was read; from then on all goes through as it is.
    pub(super) fn was_read(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.was_read)
    }
}

/// The kind of problem that an answer of the library's stands for.
fn kind_of(answer: &[u8]) -> (Kind, &'static str) {
    match answer.get(9..12) {
        Some(b"414") => (Kind::AddressTooLong, "the address of the request is too long"),
        Some(b"431") => {
            (Kind::HeadTooLarge, "the head of a request has at most 16 KiB and 32 fields")
        }
        _ => (Kind::BadRequest, "this is not an HTTP/1.1 request"),
    }
}

/// Most that is thrown away of a request that was refused, in bytes.
const LINGER_BYTES: usize = 1024 * 1024;

/// Throws away what has arrived: a peer to whom the connection is closed before all was read may not
/// see the answer.
fn discard<S: AsyncRead + Unpin>(stream: &mut S, context: &mut Context<'_>) {
    let mut space = [0; 4096];
    for _ in 0..LINGER_BYTES / space.len() {
        let mut buffer = ReadBuf::new(&mut space);
        let read = Pin::new(&mut *stream).poll_read(context, &mut buffer);
        if !matches!(read, Poll::Ready(Ok(()))) || buffer.filled().is_empty() {
            return;
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Unread<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let Self { stream, was_read, instead } = self.get_mut();
        if was_read.load(Ordering::Relaxed) {
            return Pin::new(stream).poll_write(context, bytes);
        }
        let (answer, written) = instead.get_or_insert_with(|| {
            let (kind, detail) = kind_of(bytes);
            (raw_problem(kind, detail), 0)
        });
        while *written < answer.len() {
            let count = ready!(Pin::new(&mut *stream).poll_write(context, &answer[*written..]))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            *written += count;
        }
        discard(stream, context);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Unread<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(context, buffer)
    }
}
