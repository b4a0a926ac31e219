//! `GET /v1/workloads`: the workloads of the status, as a list.

use hyper::StatusCode;

use super::Context;
use super::reply::{Reply, json};
use crate::status::Call;

pub(super) async fn get(context: &Context) -> Reply {
    match context.calls.ask(Call::Status).await {
        Ok(status) => json(StatusCode::OK, &status.reported.workloads),
        Err(obstacle) => obstacle.into(),
    }
}
