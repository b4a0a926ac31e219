//! Public keys of this device: `/v1/secrets/key`, what secrets for it are sealed with;
//! `/v1/identity/keys`, what its workloads' tokens are verified with (RFC 7517).

use hyper::StatusCode;
use serde::Serialize;

use super::reply::{Answered, Kind, Obstacle, json};
use super::request::Asked;
use super::routes::{Answer, Route};
use super::status::NO_ANSWER;
use crate::status::{Call, SecretsKey};

pub(super) static ROUTES: &[Route] = &[
    Route::get("/v1/secrets/key", |asked| Box::pin(secrets(asked)))
        .says("Key for secrets", "The public key that secrets for this gateway are sealed with")
        .answers(&[Answer::json::<SecretsKey>(200, "The key"), FAILED, NO_ANSWER]),
    Route::get("/v1/identity/keys", |asked| Box::pin(identity(asked)))
        .says(
            "Keys of workloads' identity",
            "The public keys that the tokens of this gateway's workloads are verified with",
        )
        .answers(&[
            Answer::json::<serde_json::Map<String, serde_json::Value>>(200, "A JWK Set (RFC 7517)"),
            FAILED,
            NO_ANSWER,
        ]),
];

const FAILED: Answer = Answer::problem(500, "The key cannot be had");

async fn secrets(asked: Asked) -> Answered {
    answer(asked.context.calls.ask(Call::SecretsKey).await?)
}

async fn identity(asked: Asked) -> Answered {
    answer(asked.context.calls.ask(Call::IdentityKeys).await?)
}

fn answer<T: Serialize>(answered: Result<T, String>) -> Answered {
    match answered {
        Ok(key) => Ok(json(StatusCode::OK, &key)),
        Err(error) => Err(Obstacle::new(Kind::Internal, error)),
    }
}
