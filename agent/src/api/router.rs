//! From method and path to the resource, after the peer's access was judged.

use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};

use super::access::Access;
use super::reply::{Reply, problem, wrong_method};
use super::{Context, events, orders, status, workloads};

pub(super) async fn answer(request: Request<Incoming>, access: Access, context: &Context) -> Reply {
    if access == Access::None {
        return problem(
            StatusCode::FORBIDDEN,
            "only root, the agent's own user and members of api.group may use this API",
        );
    }
    let resource = match request.uri().path() {
        "/v1/status" => Resource::Status,
        "/v1/workloads" => Resource::Workloads,
        "/v1/events" => Resource::Events,
        "/v1/orders" => Resource::Orders,
        _ => return problem(StatusCode::NOT_FOUND, "there is no such resource"),
    };
    match (resource, request.method()) {
        (Resource::Status, &Method::GET) => status::get(context).await,
        (Resource::Workloads, &Method::GET) => workloads::get(context).await,
        (Resource::Events, &Method::GET) => events::get(request.uri().query(), context).await,
        (Resource::Orders, &Method::GET) => orders::get(context).await,
        (Resource::Orders, &Method::POST) if access == Access::Full => {
            orders::post(request, context).await
        }
        (Resource::Orders, &Method::POST) => {
            problem(StatusCode::FORBIDDEN, "only root and the agent's own user may give orders")
        }
        (Resource::Orders, _) => wrong_method("GET, POST"),
        _ => wrong_method("GET"),
    }
}

#[derive(Clone, Copy)]
enum Resource {
    Status,
    Workloads,
    Events,
    Orders,
}
