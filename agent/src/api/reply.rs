//! Answers: those of [`crate::http_reply`], streams, and why there is no answer.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::{Body, Bytes, Frame, SizeHint};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;
use tokio::sync::mpsc;

use crate::http_reply;
pub(super) use crate::http_reply::{JSON, Kind, PROBLEM_JSON};
use crate::status::Problem;

/// An answer.
pub(super) type Reply = Response<Content>;

/// The body of an answer.
#[derive(Debug)]
pub(super) enum Content {
    /// There as a whole; `None` once it was given.
    Whole(Option<Bytes>),
    /// Comes piece by piece, until the other end is dropped.
    Stream(mpsc::Receiver<Bytes>),
}

impl Content {
    /// The whole of it, if it is there.
    pub(super) fn whole(&self) -> Option<&Bytes> {
        match self {
            Self::Whole(bytes) => bytes.as_ref(),
            Self::Stream(_) => None,
        }
    }
}

impl Body for Content {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut *self {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(pieces) => {
                pieces.poll_recv(context).map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Self::Stream(_) => SizeHint::default(),
        }
    }
}

fn whole(reply: http_reply::Reply) -> Reply {
    // What is there as a whole is there at once.
    reply.map(|body| Content::Whole(body.into_inner()))
}

pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Reply {
    whole(http_reply::json(status, value))
}

pub(super) fn bytes(status: StatusCode, media_type: &'static str, body: impl Into<Bytes>) -> Reply {
    whole(http_reply::bytes(status, media_type, body))
}

pub(super) fn problem(kind: Kind, detail: impl Into<String>) -> Reply {
    whole(http_reply::problem(kind, detail))
}

pub(super) fn whole_problem(problem: &Problem) -> Reply {
    whole(http_reply::whole_problem(problem))
}

pub(super) fn wrong_method(allowed: &str) -> Reply {
    whole(http_reply::wrong_method(allowed))
}

/// What comes from the other end of `pieces`, as it comes.
pub(super) fn stream(media_type: &'static str, pieces: mpsc::Receiver<Bytes>) -> Reply {
    let mut reply = Response::new(Content::Stream(pieces));
    let headers = reply.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    reply
}

/// Why there is no answer, until it becomes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Obstacle {
    kind: Kind,
    detail: String,
}

impl Obstacle {
    pub(super) fn new(kind: Kind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into() }
    }

    #[cfg(test)]
    pub(super) fn kind(&self) -> Kind {
        self.kind
    }
}

impl From<Obstacle> for Reply {
    fn from(Obstacle { kind, detail }: Obstacle) -> Self {
        problem(kind, detail)
    }
}

/// An answer, or why there is none.
pub(super) type Answered = Result<Reply, Obstacle>;
