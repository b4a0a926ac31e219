//! Why there is no answer, beside the answers of [`crate::http_reply`].

use hyper::StatusCode;

pub(super) use crate::http_reply::{Reply, bytes, json, problem, wrong_method};

/// Why there is no answer, until it becomes one.
#[derive(Debug)]
pub(super) struct Obstacle {
    status: StatusCode,
    error: String,
}

impl Obstacle {
    pub(super) fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, error: error.into() }
    }
}

impl From<Obstacle> for Reply {
    fn from(Obstacle { status, error }: Obstacle) -> Self {
        problem(status, error)
    }
}
