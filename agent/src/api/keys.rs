//! Public keys of this device: `GET /v1/secrets/key`, what secrets for it are sealed with;
//! `GET /v1/identity/keys`, what its workloads' tokens are verified with (RFC 7517).

use hyper::StatusCode;
use serde::Serialize;

use super::Context;
use super::reply::{Obstacle, Reply, json, problem};
use crate::status::Call;

pub(super) async fn secrets(context: &Context) -> Reply {
    answer(context.calls.ask(Call::SecretsKey).await)
}

pub(super) async fn identity(context: &Context) -> Reply {
    answer(context.calls.ask(Call::IdentityKeys).await)
}

fn answer<T: Serialize>(answered: Result<Result<T, String>, Obstacle>) -> Reply {
    match answered {
        Ok(Ok(key)) => json(StatusCode::OK, &key),
        Ok(Err(error)) => problem(StatusCode::INTERNAL_SERVER_ERROR, error),
        Err(obstacle) => obstacle.into(),
    }
}
