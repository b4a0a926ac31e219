//! `/v1/orders`: GET the signed order in force, POST a signed order to put into force.

use std::time::Duration;

use coracle_protocol::limits::MAX_ENVELOPE_BYTES;
use http_body_util::BodyExt;
use hyper::StatusCode;
use hyper::body::{Body, Incoming};
use tokio::time::timeout;

use super::Context;
use super::reply::{Obstacle, Reply, bytes, json, problem};
use crate::status::Call;

/// For the body to arrive.
const BODY_TIME: Duration = Duration::from_secs(10);

pub(super) async fn get(context: &Context) -> Reply {
    match context.calls.ask(Call::Order).await {
        Ok(Some(envelope)) => bytes(StatusCode::OK, envelope),
        Ok(None) => problem(StatusCode::NOT_FOUND, "no order is in force yet"),
        Err(obstacle) => obstacle.into(),
    }
}

/// 200 if the order is in force now, 422 if it was refused; either way with the reasons.
pub(super) async fn post(body: &mut Incoming, context: &Context) -> Reply {
    let envelope = match read(body).await {
        Ok(envelope) => envelope,
        Err(obstacle) => return obstacle.into(),
    };
    match context.calls.order(|answer| Call::Apply(envelope, answer)).await {
        Ok(applied) if applied.accepted || applied.unchanged => json(StatusCode::OK, &applied),
        Ok(applied) => json(StatusCode::UNPROCESSABLE_ENTITY, &applied),
        Err(obstacle) => obstacle.into(),
    }
}

async fn read(body: &mut Incoming) -> Result<Vec<u8>, Obstacle> {
    if body.size_hint().lower() > MAX_ENVELOPE_BYTES as u64 {
        return Err(too_large());
    }
    timeout(BODY_TIME, collect(body)).await.unwrap_or_else(|_| {
        Err(Obstacle::new(StatusCode::REQUEST_TIMEOUT, "the order took too long to arrive"))
    })
}

async fn collect(body: &mut Incoming) -> Result<Vec<u8>, Obstacle> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            let error = format!("the order did not arrive: {error}");
            Obstacle::new(StatusCode::BAD_REQUEST, error)
        })?;
        let Some(data) = frame.data_ref() else { continue };
        if bytes.len() + data.len() > MAX_ENVELOPE_BYTES {
            return Err(too_large());
        }
        bytes.extend_from_slice(data);
    }
    Ok(bytes)
}

fn too_large() -> Obstacle {
    let error = format!("a signed order has at most {MAX_ENVELOPE_BYTES} bytes");
    Obstacle::new(StatusCode::PAYLOAD_TOO_LARGE, error)
}
