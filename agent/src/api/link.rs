//! `/v1/link`

use hyper::StatusCode;

use super::reply::{Answered, json};
use super::request::Asked;
use super::routes::{Answer, Route};
use super::status::NO_ANSWER;
use crate::status::{Call, LinkDay};

pub(super) static ROUTES: &[Route] = &[Route::get("/v1/link", |asked| Box::pin(get(asked)))
    .says("The link", "The connection to the broker, and what it has carried today by kind")
    .answers(&[Answer::json::<LinkDay>(200, "As it is now"), NO_ANSWER])];

async fn get(asked: Asked) -> Answered {
    Ok(json(StatusCode::OK, &asked.context.calls.ask(Call::Link).await?))
}
