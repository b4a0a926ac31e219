//! `/v1/volumes`: GET the named volumes; DELETE `/v1/volumes/NAME` removes one that nobody uses.

use hyper::StatusCode;

use super::Context;
use super::reply::{Reply, json, problem};
use crate::status::{Call, VolumeRefusal};

pub(super) async fn get(context: &Context) -> Reply {
    match context.calls.ask(Call::Volumes).await {
        Ok(Ok(volumes)) => json(StatusCode::OK, &volumes),
        Ok(Err(error)) => problem(StatusCode::INTERNAL_SERVER_ERROR, error),
        Err(obstacle) => obstacle.into(),
    }
}

/// 200 with an empty object once it is gone, 404 if there is none, 409 if somebody uses it.
pub(super) async fn delete(name: &str, context: &Context) -> Reply {
    let name = name.to_owned();
    match context.calls.order(|answer| Call::RemoveVolume(name, answer)).await {
        Ok(Ok(())) => json(StatusCode::OK, &serde_json::json!({})),
        Ok(Err(refusal)) => {
            let status = match refusal {
                VolumeRefusal::Unknown(_) => StatusCode::NOT_FOUND,
                VolumeRefusal::InUse(_) => StatusCode::CONFLICT,
                VolumeRefusal::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
            };
            problem(status, refusal.to_string())
        }
        Err(obstacle) => obstacle.into(),
    }
}
