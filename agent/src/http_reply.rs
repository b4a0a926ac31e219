//! HTTP answers in JSON, and problem details (RFC 9457) in the place of all others, for all who answer
//! over a socket.

use std::fmt;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;

use crate::status::Problem;

/// An answer, whole.
pub type Reply = Response<Full<Bytes>>;

/// Media type of what is answered in JSON.
pub const JSON: &str = "application/json";
/// Media type of problem details.
pub const PROBLEM_JSON: &str = "application/problem+json";

/// What kind of problem there is. Its name is a part of the API and documented in `docs/api.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The request cannot be understood.
    BadRequest,
    /// One may not do that.
    Forbidden,
    /// There is no such thing.
    NotFound,
    /// The resource exists, but not with this method.
    WrongMethod,
    /// The request took too long to arrive.
    Timeout,
    /// It cannot be done to it as it is.
    Conflict,
    /// The same request is being carried out.
    UnderWay,
    /// The body is too large.
    TooLarge,
    /// The address is too long.
    AddressTooLong,
    /// The body is of another media type.
    MediaType,
    /// An order is refused.
    Refused,
    /// The idempotency key was used for another request.
    KeyReused,
    /// One asks too often.
    TooManyRequests,
    /// The request's head is too large.
    HeadTooLarge,
    /// It failed, and trying again will hardly help.
    Internal,
    /// Not now; later, perhaps.
    Unavailable,
    /// There was no answer in time.
    NoAnswer,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 17] = [
        Self::BadRequest,
        Self::Forbidden,
        Self::NotFound,
        Self::WrongMethod,
        Self::Timeout,
        Self::Conflict,
        Self::UnderWay,
        Self::TooLarge,
        Self::AddressTooLong,
        Self::MediaType,
        Self::Refused,
        Self::KeyReused,
        Self::TooManyRequests,
        Self::HeadTooLarge,
        Self::Internal,
        Self::Unavailable,
        Self::NoAnswer,
    ];

    /// The URI reference that identifies it (`type`).
    pub fn reference(self) -> &'static str {
        self.facts().1
    }

    /// What it is, in a few words.
    pub fn title(self) -> &'static str {
        self.facts().2
    }

    /// The status of an answer of this kind.
    pub fn status(self) -> StatusCode {
        self.facts().0
    }

    fn facts(self) -> (StatusCode, &'static str, &'static str) {
        use StatusCode as S;
        match self {
            Self::BadRequest => (S::BAD_REQUEST, "/problems/bad-request", "bad request"),
            Self::Forbidden => (S::FORBIDDEN, "/problems/forbidden", "not allowed"),
            Self::NotFound => (S::NOT_FOUND, "/problems/not-found", "not found"),
            Self::WrongMethod => {
                (S::METHOD_NOT_ALLOWED, "/problems/wrong-method", "wrong method for this resource")
            }
            Self::Timeout => (S::REQUEST_TIMEOUT, "/problems/timeout", "the request took too long"),
            Self::Conflict => (S::CONFLICT, "/problems/conflict", "not possible as it is now"),
            Self::UnderWay => {
                (S::CONFLICT, "/problems/under-way", "the same request is being carried out")
            }
            Self::TooLarge => (S::PAYLOAD_TOO_LARGE, "/problems/too-large", "body too large"),
            Self::AddressTooLong => {
                (S::URI_TOO_LONG, "/problems/address-too-long", "address too long")
            }
            Self::MediaType => {
                (S::UNSUPPORTED_MEDIA_TYPE, "/problems/media-type", "wrong media type")
            }
            Self::Refused => (S::UNPROCESSABLE_ENTITY, "/problems/refused", "order refused"),
            Self::KeyReused => (
                S::UNPROCESSABLE_ENTITY,
                "/problems/key-reused",
                "idempotency key used for another request",
            ),
            Self::TooManyRequests => {
                (S::TOO_MANY_REQUESTS, "/problems/too-many-requests", "too many requests")
            }
            Self::HeadTooLarge => (
                S::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "/problems/head-too-large",
                "request head too large",
            ),
            Self::Internal => (S::INTERNAL_SERVER_ERROR, "/problems/internal", "it failed"),
            Self::Unavailable => (S::SERVICE_UNAVAILABLE, "/problems/unavailable", "not now"),
            Self::NoAnswer => {
                (S::GATEWAY_TIMEOUT, "/problems/no-answer", "the agent did not answer in time")
            }
        }
    }

    /// The problem as it is sent.
    pub fn problem(self, detail: impl Into<String>) -> Problem {
        Problem {
            kind: self.reference().to_owned(),
            title: self.title().to_owned(),
            status: self.status().as_u16(),
            detail: detail.into(),
            generation: None,
            refusals: Vec::new(),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.title())
    }
}

/// `value` as JSON.
pub fn json(status: StatusCode, value: &impl Serialize) -> Reply {
    match serde_json::to_vec(value) {
        Ok(body) => bytes(status, JSON, body),
        Err(error) => {
            tracing::error!(%error, "an answer could not be written as JSON");
            problem(Kind::Internal, "the answer could not be written")
        }
    }
}

/// A body that is of the media type already.
pub fn bytes(status: StatusCode, media_type: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Full::new(body.into()));
    *reply.status_mut() = status;
    let headers = reply.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    reply
}

/// Not what was asked for, and why.
pub fn problem(kind: Kind, detail: impl Into<String>) -> Reply {
    whole_problem(&kind.problem(detail))
}

/// The same of a problem that says more.
pub fn whole_problem(problem: &Problem) -> Reply {
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    // Strings and numbers always serialise.
    bytes(status, PROBLEM_JSON, serde_json::to_vec(problem).unwrap_or_default())
}

/// The resource exists, but not with this method.
pub fn wrong_method(allowed: &str) -> Reply {
    let mut reply = problem(Kind::WrongMethod, format!("this resource answers to {allowed} only"));
    if let Ok(allowed) = HeaderValue::from_str(allowed) {
        reply.headers_mut().insert(ALLOW, allowed);
    }
    reply
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_documented_and_unlike_the_others() {
        let page = include_str!("../../docs/api.md");
        for kind in Kind::ALL {
            let row = format!("| `{}` | {} |", kind.reference(), kind.status().as_u16());
            assert!(page.contains(&row), "docs/api.md has no row {row}");
            let alike = Kind::ALL.iter().filter(|other| other.reference() == kind.reference());
            assert_eq!(alike.count(), 1, "{kind:?}");
        }
    }
}
