//! `/v1/health`

use coracle_protocol::Health;
use hyper::StatusCode;

use super::reply::{Answered, json};
use super::request::Asked;
use super::routes::{Answer, Route};
use super::status::NO_ANSWER;
use crate::status::Call;

pub(super) static ROUTES: &[Route] = &[Route::get("/v1/health", |asked| Box::pin(get(asked)))
    .says("Health", "How the gateway is: conditions, numbers, interfaces, pods and workloads")
    .answers(&[Answer::json::<Health>(200, "As it is now"), NO_ANSWER])];

async fn get(asked: Asked) -> Answered {
    Ok(json(StatusCode::OK, &asked.context.calls.ask(Call::Health).await?))
}
