//! `/v1/status`

use hyper::StatusCode;

use super::reply::{Answered, json};
use super::request::Asked;
use super::routes::{Answer, Route};
use crate::status::{Call, Status};

pub(super) static ROUTES: &[Route] = &[Route::get("/v1/status", |asked| Box::pin(get(asked)))
    .says("Status", "Everything about the gateway's orders and what became of them")
    .answers(&[Answer::json::<Status>(200, "As it is now"), NO_ANSWER])];

/// Of all that asks the event loop.
pub(super) const NO_ANSWER: Answer =
    Answer::problem(504, "The agent is too busy to answer, or took longer than it may");

async fn get(asked: Asked) -> Answered {
    Ok(json(StatusCode::OK, &asked.context.calls.ask(Call::Status).await?))
}
