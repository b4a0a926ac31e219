//! From method and path to the resource, after the peer's access was judged.

use std::time::Duration;

use http::request::Parts;
use http_body_util::BodyExt;
use hyper::body::{Body, Bytes, Incoming};
use hyper::{Method, Request, StatusCode};
use tokio::time::timeout;

use super::access::Access;
use super::reply::{Reply, problem, wrong_method};
use super::{Context, events, keys, orders, status, volumes, workloads};
use crate::status::Operation;

/// How much of a body that nobody wants is taken and thrown away, in bytes, and for how long: a
/// client that is still writing when the connection closes would not see the answer.
const LINGER_BYTES: usize = 1024 * 1024;
const LINGER_TIME: Duration = Duration::from_secs(1);

/// Before a volume's name.
const VOLUME: &str = "/v1/volumes/";

/// Before a workload's name and what is to be done to it.
const WORKLOAD: &str = "/v1/workloads/";

pub(super) async fn answer(request: Request<Incoming>, access: Access, context: &Context) -> Reply {
    let (head, mut body) = request.into_parts();
    let reply = route(&head, &mut body, access, context).await;
    if !body.is_end_stream() {
        drop(timeout(LINGER_TIME, discard(&mut body)).await);
    }
    reply
}

async fn discard(body: &mut Incoming) {
    let mut discarded = 0;
    while let Some(Ok(frame)) = body.frame().await {
        discarded += frame.data_ref().map_or(0, Bytes::len);
        if discarded > LINGER_BYTES {
            return;
        }
    }
}

async fn route(head: &Parts, body: &mut Incoming, access: Access, context: &Context) -> Reply {
    if access == Access::None {
        return problem(
            StatusCode::FORBIDDEN,
            "only root, the agent's own user and members of api.group may use this API",
        );
    }
    let resource = match head.uri.path() {
        "/v1/status" => Resource::Status,
        "/v1/workloads" => Resource::Workloads,
        "/v1/events" => Resource::Events,
        "/v1/orders" => Resource::Orders,
        "/v1/volumes" => Resource::Volumes,
        "/v1/secrets/key" => Resource::SecretsKey,
        "/v1/identity/keys" => Resource::IdentityKeys,
        path if path.starts_with(VOLUME) => Resource::Volume(&path[VOLUME.len()..]),
        path => match operation_on(path) {
            Some((workload, operation)) => Resource::Operation(workload, operation),
            None => return problem(StatusCode::NOT_FOUND, "there is no such resource"),
        },
    };
    match (resource, &head.method) {
        (Resource::Status, &Method::GET) => status::get(context).await,
        (Resource::Workloads, &Method::GET) => workloads::get(context).await,
        (Resource::Events, &Method::GET) => events::get(head.uri.query(), context).await,
        (Resource::Orders, &Method::GET) => orders::get(context).await,
        (Resource::Orders, &Method::POST) if access == Access::Full => {
            orders::post(body, context).await
        }
        (Resource::Orders, &Method::POST) => {
            problem(StatusCode::FORBIDDEN, "only root and the agent's own user may give orders")
        }
        (Resource::Orders, _) => wrong_method("GET, POST"),
        (Resource::Volumes, &Method::GET) => volumes::get(context).await,
        (Resource::Volume(name), &Method::DELETE) if access == Access::Full => {
            volumes::delete(name, context).await
        }
        (Resource::Volume(_), &Method::DELETE) => {
            problem(StatusCode::FORBIDDEN, "only root and the agent's own user may remove volumes")
        }
        (Resource::Volume(_), _) => wrong_method("DELETE"),
        (Resource::Operation(workload, operation), &Method::POST) if access == Access::Full => {
            workloads::post(workload, operation, context).await
        }
        (Resource::Operation(..), &Method::POST) => problem(
            StatusCode::FORBIDDEN,
            "only root and the agent's own user may start and stop workloads",
        ),
        (Resource::Operation(..), _) => wrong_method("POST"),
        (Resource::SecretsKey, &Method::GET) => keys::secrets(context).await,
        (Resource::IdentityKeys, &Method::GET) => keys::identity(context).await,
        _ => wrong_method("GET"),
    }
}

/// The workload that something is to be done to, and what.
fn operation_on(path: &str) -> Option<(&str, Operation)> {
    let (workload, operation) = path.strip_prefix(WORKLOAD)?.split_once('/')?;
    Some((workload, Operation::parse(operation)?))
}

#[derive(Clone, Copy)]
enum Resource<'a> {
    Status,
    Workloads,
    Events,
    Orders,
    Volumes,
    /// One of them, by what stands in the place of its name.
    Volume(&'a str),
    /// Something to do to a workload.
    Operation(&'a str, Operation),
    SecretsKey,
    IdentityKeys,
}
