//! A request, as a resource sees it: read, checked and let in.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::HeaderMap;
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::header::{ACCEPT, CONTENT_TYPE};
use tokio::time::timeout;

use super::Context;
use super::connection::Leash;
use super::parameters::Values;
use super::reply::{Kind, Obstacle};
use super::routes::Body;

/// For the body to arrive.
const BODY_TIME: Duration = Duration::from_secs(10);
/// How much of a body that nobody wants is taken and thrown away, in bytes, and for how long: a
/// client that is still writing when the connection closes would not see the answer.
const LINGER_BYTES: usize = 1024 * 1024;
const LINGER_TIME: Duration = Duration::from_secs(1);

/// What is asked of a resource.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) context: Arc<Context>,
    pub(super) values: Values,
    pub(super) headers: HeaderMap,
    /// Empty if the resource takes none.
    pub(super) body: Vec<u8>,
    pub(super) leash: Arc<Leash>,
}

impl Asked {
    /// Whether this media type is among those that are named as wanted, which `*/*` does not.
    pub(super) fn accepts(&self, media_type: &str) -> bool {
        self.headers
            .get_all(ACCEPT)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .any(|one| {
                let one = one.split(';').next().unwrap_or_default();
                one.trim().eq_ignore_ascii_case(media_type)
            })
    }
}

/// Reads a body of the declared kind.
pub(super) async fn read(
    expected: &Body,
    headers: &HeaderMap,
    body: &mut Incoming,
) -> Result<Vec<u8>, Obstacle> {
    if let Some(given) = headers.get(CONTENT_TYPE) {
        let given = given.to_str().unwrap_or_default().split(';').next().unwrap_or_default();
        if !given.trim().eq_ignore_ascii_case(expected.media_type) {
            let detail = format!("{} is sent as {}", expected.name, expected.media_type);
            return Err(Obstacle::new(Kind::MediaType, detail));
        }
    }
    if body.size_hint().lower() > expected.most as u64 {
        return Err(too_large(expected));
    }
    timeout(BODY_TIME, collect(expected, body)).await.unwrap_or_else(|_| {
        Err(Obstacle::new(Kind::Timeout, format!("{} took too long to arrive", expected.name)))
    })
}

async fn collect(expected: &Body, body: &mut Incoming) -> Result<Vec<u8>, Obstacle> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            let detail = format!("{} did not arrive: {error}", expected.name);
            Obstacle::new(Kind::BadRequest, detail)
        })?;
        let Some(data) = frame.data_ref() else { continue };
        if bytes.len() + data.len() > expected.most {
            return Err(too_large(expected));
        }
        bytes.extend_from_slice(data);
    }
    Ok(bytes)
}

fn too_large(expected: &Body) -> Obstacle {
    let Body { name, most, .. } = expected;
    Obstacle::new(Kind::TooLarge, format!("{name} has at most {most} bytes"))
}

/// Takes what is left of a body, within limits.
pub(super) async fn discard(body: &mut Incoming) {
    let all = async {
        let mut discarded = 0;
        while let Some(Ok(frame)) = body.frame().await {
            discarded += frame.data_ref().map_or(0, Bytes::len);
            if discarded > LINGER_BYTES {
                return;
            }
        }
    };
    // Neither too much nor too slow is an error: it is not wanted.
    drop(timeout(LINGER_TIME, all).await);
}
