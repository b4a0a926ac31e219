//! `/v1/operations`: what takes long and was asked for by hand, under way or ended lately;
//! `/v1/operations/{id}`: one of these, to be watched.

use hyper::StatusCode;
use hyper::header::{HeaderValue, LOCATION};

use super::parameters::{Kind as Is, Parameter};
use super::reply::{Answered, Kind, Obstacle, json};
use super::request::Asked;
use super::routes::{Answer, Route};
use super::status::NO_ANSWER;
use crate::native_status::{LongWork, LongWorkRefusal, OperationStatus, Operations};
use crate::status::Call;

pub(super) static ROUTES: &[Route] = &[
    Route::get("/v1/operations", |asked| Box::pin(list(asked)))
        .says(
            "Operations",
            "What takes long and was asked for by hand, newest first; those that ended are kept \
             for a while, at most until the agent ends",
        )
        .answers(&[Answer::json::<Operations>(200, "All of them"), NO_ANSWER]),
    Route::get("/v1/operations/{id}", |asked| Box::pin(get(asked)))
        .takes(&[Parameter::path("id", Is::Operation, "Which operation")])
        .says("An operation", "How far it is, or what came of it")
        .answers(&[
            Answer::json::<OperationStatus>(200, "As it is now"),
            Answer::problem(404, "There is none of this id, or it was forgotten"),
            NO_ANSWER,
        ]),
];

/// What is answered to what takes long.
pub(super) const ACCEPTED: Answer = Answer::json::<OperationStatus>(
    202,
    "It is begun; the resource named by Location tells how far it is",
);

async fn list(asked: Asked) -> Answered {
    Ok(json(StatusCode::OK, &asked.context.calls.ask(Call::Operations).await?))
}

async fn get(asked: Asked) -> Answered {
    let id = asked.values.text("id").unwrap_or_default().to_owned();
    let wanted = id.clone();
    match asked.context.calls.ask(|answer| Call::Operation(id, answer)).await? {
        Some(operation) => Ok(json(StatusCode::OK, &operation)),
        None => Err(Obstacle::new(Kind::NotFound, format!("there is no operation {wanted}"))),
    }
}

/// Begins what takes long.
pub(super) async fn accepted(asked: &Asked, work: LongWork) -> Answered {
    match asked.context.calls.order(|answer| Call::Begin(work, answer)).await? {
        Ok(operation) => {
            let mut reply = json(StatusCode::ACCEPTED, &operation);
            let location = format!("/v1/operations/{}", operation.id);
            if let Ok(location) = HeaderValue::try_from(location) {
                reply.headers_mut().insert(LOCATION, location);
            }
            Ok(reply)
        }
        Err(refusal) => {
            let kind = match refusal {
                LongWorkRefusal::Unknown(_) => Kind::NotFound,
                LongWorkRefusal::Conflict(_) => Kind::Conflict,
                LongWorkRefusal::Busy(_) => Kind::Unavailable,
            };
            Err(Obstacle::new(kind, refusal.to_string()))
        }
    }
}
