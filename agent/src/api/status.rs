//! `GET /v1/status`

use hyper::StatusCode;

use super::Context;
use super::reply::{Reply, json};
use crate::status::Call;

pub(super) async fn get(context: &Context) -> Reply {
    match context.calls.ask(Call::Status).await {
        Ok(status) => json(StatusCode::OK, &status),
        Err(obstacle) => obstacle.into(),
    }
}
