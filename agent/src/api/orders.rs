//! `/v1/orders`: GET the signed order in force, POST a signed order to put into force.

use std::time::Duration;

use coracle_protocol::limits::MAX_ENVELOPE_BYTES;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use hyper::{Request, StatusCode};
use tokio::time::timeout;

use super::Context;
use super::reply::{Obstacle, Reply, bytes, json, problem};
use crate::status::Call;

/// For the body to arrive.
const BODY_TIME: Duration = Duration::from_secs(10);

pub(super) async fn get(context: &Context) -> Reply {
    match context.event_loop.ask(Call::Order).await {
        Ok(Some(envelope)) => bytes(StatusCode::OK, envelope),
        Ok(None) => problem(StatusCode::NOT_FOUND, "no order is in force yet"),
        Err(obstacle) => obstacle.into(),
    }
}

/// 200 if the order is in force now, 422 if it was refused; either way with the reasons.
pub(super) async fn post(request: Request<Incoming>, context: &Context) -> Reply {
    let envelope = match read(request.into_body()).await {
        Ok(envelope) => envelope,
        Err(obstacle) => return obstacle.into(),
    };
    match context.event_loop.order(|answer| Call::Apply(envelope, answer)).await {
        Ok(applied) if applied.accepted || applied.unchanged => json(StatusCode::OK, &applied),
        Ok(applied) => json(StatusCode::UNPROCESSABLE_ENTITY, &applied),
        Err(obstacle) => obstacle.into(),
    }
}

async fn read(body: Incoming) -> Result<Vec<u8>, Obstacle> {
    let too_large = || {
        Obstacle::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("a signed order has at most {MAX_ENVELOPE_BYTES} bytes"),
        )
    };
    if body.size_hint().lower() > MAX_ENVELOPE_BYTES as u64 {
        return Err(too_large());
    }
    match timeout(BODY_TIME, Limited::new(body, MAX_ENVELOPE_BYTES).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes().to_vec()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(error)) => Err(Obstacle::new(
            StatusCode::BAD_REQUEST,
            format!("the order did not arrive: {error}"),
        )),
        Err(_) => {
            Err(Obstacle::new(StatusCode::REQUEST_TIMEOUT, "the order took too long to arrive"))
        }
    }
}
