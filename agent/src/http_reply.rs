//! HTTP answers in JSON, for all who answer over a Unix socket.

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;

use crate::status::Problem;

/// An answer, whole.
pub type Reply = Response<Full<Bytes>>;

/// `value` as JSON.
pub fn json(status: StatusCode, value: &impl Serialize) -> Reply {
    match serde_json::to_vec(value) {
        Ok(body) => bytes(status, body),
        Err(error) => {
            tracing::error!(%error, "an answer of the API could not be written as JSON");
            bytes(StatusCode::INTERNAL_SERVER_ERROR, br#"{"error":"internal error"}"#.to_vec())
        }
    }
}

/// A body that is JSON already.
pub fn bytes(status: StatusCode, body: Vec<u8>) -> Reply {
    let mut reply = Response::new(Full::new(Bytes::from(body)));
    *reply.status_mut() = status;
    let headers = reply.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    reply
}

/// Not what was asked for, and why.
pub fn problem(status: StatusCode, error: impl Into<String>) -> Reply {
    json(status, &Problem { error: error.into() })
}

/// The resource exists, but not with this method.
pub fn wrong_method(allowed: &'static str) -> Reply {
    let mut reply =
        problem(StatusCode::METHOD_NOT_ALLOWED, format!("this resource answers to {allowed} only"));
    reply.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    reply
}
