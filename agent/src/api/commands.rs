//! `/v1/commands`: what the fleet asked of this gateway, and what became of it.

use hyper::StatusCode;

use super::reply::{Answered, json};
use super::request::Asked;
use super::routes::{Answer, Route};
use super::status::NO_ANSWER;
use crate::status::{Call, CommandsStatus};

pub(super) static ROUTES: &[Route] = &[Route::get("/v1/commands", |asked| Box::pin(list(asked)))
    .says(
        "Commands",
        "What the fleet asked of this gateway, the newest first, and what became of it; at most 256",
    )
    .answers(&[Answer::json::<CommandsStatus>(200, "All that are known"), NO_ANSWER])];

async fn list(asked: Asked) -> Answered {
    Ok(json(StatusCode::OK, &asked.context.calls.ask(Call::Commands).await?))
}
