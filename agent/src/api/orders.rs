//! `/v1/orders`: the signed order in force, and putting one into force.

use coracle_protocol::Envelope;
use coracle_protocol::limits::MAX_ENVELOPE_BYTES;
use hyper::StatusCode;

use super::reply::{Answered, JSON, Kind, Obstacle, bytes, json, whole_problem};
use super::request::Asked;
use super::routes::{Answer, Body, Route};
use super::status::NO_ANSWER;
use crate::status::{Applied, Call, Problem};

pub(super) static ROUTES: &[Route] = &[
    Route::get("/v1/orders", |asked| Box::pin(get(asked)))
        .says("The order in force", "The signed order in force, byte for byte as it was received")
        .answers(&[
            Answer::json::<Envelope>(200, "A DSSE envelope"),
            Answer::problem(404, "No order is in force yet"),
            NO_ANSWER,
        ]),
    Route::post("/v1/orders", "give orders", |asked| Box::pin(post(asked)))
        .reads(Body::json::<Envelope>("a signed order", MAX_ENVELOPE_BYTES))
        .says(
            "Give an order",
            "Puts a signed order into force. Once it is answered it is stored; what becomes of it is \
             in the status",
        )
        .answers(&[
            Answer::json::<Applied>(200, "It is in force now, or was already"),
            Answer::problem(
                422,
                "It is refused, with every reason in `refusals`, and nothing was changed; or the \
                 idempotency key was used for another request",
            ),
            NO_ANSWER,
        ]),
];

async fn get(asked: Asked) -> Answered {
    match asked.context.calls.ask(Call::Order).await? {
        Some(envelope) => Ok(bytes(StatusCode::OK, JSON, envelope)),
        None => Err(Obstacle::new(Kind::NotFound, "no order is in force yet")),
    }
}

async fn post(asked: Asked) -> Answered {
    let Asked { context, body, .. } = asked;
    let applied = context.calls.order(|answer| Call::Apply(body, answer)).await?;
    if applied.accepted || applied.unchanged {
        return Ok(json(StatusCode::OK, &applied));
    }
    let Applied { generation, refusals, .. } = applied;
    let problem = Kind::Refused.problem("the order is refused; nothing was changed");
    Ok(whole_problem(&Problem { generation, refusals, ..problem }))
}
