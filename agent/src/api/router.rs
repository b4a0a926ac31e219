//! From a request to its resource, by the table of routes, after the peer's access was judged.

use std::sync::Arc;

use http::request::Parts;
use hyper::Request;
use hyper::body::{Body as _, Incoming};

use super::Context;
use super::access::{Access, Rights};
use super::connection::Leash;
use super::idempotency;
use super::parameters::{self, IDEMPOTENCY_KEY};
use super::reply::{Kind, Obstacle, Reply, problem, wrong_method};
use super::request::{self, Asked};
use super::routes::{Route, TABLE};

pub(super) async fn answer(
    request: Request<Incoming>,
    rights: &Rights,
    leash: &Arc<Leash>,
    context: &Arc<Context>,
) -> Reply {
    let (head, mut body) = request.into_parts();
    let reply = route(&head, &mut body, rights, leash, context).await;
    if !body.is_end_stream() {
        request::discard(&mut body).await;
    }
    reply
}

async fn route(
    head: &Parts,
    body: &mut Incoming,
    rights: &Rights,
    leash: &Arc<Leash>,
    context: &Arc<Context>,
) -> Reply {
    if rights.access == Access::None {
        return problem(Kind::Forbidden, format!("{} may use this API", rights.readers));
    }
    let path = head.uri.path();
    let there: Vec<_> = TABLE
        .iter()
        .copied()
        .flatten()
        .filter_map(|route| Some((route, route.fits(path)?)))
        .collect();
    if there.is_empty() {
        return problem(Kind::NotFound, "there is no such resource");
    }
    let methods: Vec<_> = there.iter().map(|(route, _)| route.method.as_str()).collect();
    let asked_for = |(route, _): &(&Route, _)| route.method.as_str() == head.method.as_str();
    let Some((route, named)) = there.into_iter().find(asked_for) else {
        return wrong_method(&methods.join(", "));
    };
    match carry_out(route, named, head, body, rights, leash, context).await {
        Ok(reply) => reply,
        Err(obstacle) => obstacle.into(),
    }
}

async fn carry_out(
    route: &'static Route,
    named: Vec<(&'static str, &str)>,
    head: &Parts,
    body: &mut Incoming,
    rights: &Rights,
    leash: &Arc<Leash>,
    context: &Arc<Context>,
) -> Result<Reply, Obstacle> {
    if let (Some(changes), false) = (route.changes, rights.access == Access::Full) {
        let detail = format!("{} may {changes}", rights.changers);
        return Err(Obstacle::new(Kind::Forbidden, detail));
    }
    let values = parameters::read(route.parameters, named, head)?;
    let key = match route.changes {
        Some(_) => parameters::header(&IDEMPOTENCY_KEY, head)?,
        None => None,
    };
    let body = match &route.body {
        Some(expected) => request::read(expected, &head.headers, body).await?,
        None => Vec::new(),
    };
    let asked = Asked {
        context: Arc::clone(context),
        values,
        headers: head.headers.clone(),
        body,
        leash: Arc::clone(leash),
    };
    match key {
        Some(key) => {
            let request = idempotency::digest(route.method, &head.uri, &asked.body);
            idempotency::once(&context.answered, key, request, (route.handler)(asked)).await
        }
        None => (route.handler)(asked).await,
    }
}
