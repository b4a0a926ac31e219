//! `/v1/services`: the native services, by coordinate; `/v1/services/{coordinate}`: one of them;
//! `/v1/services/{coordinate}/start|drain|stop|restart|purge`: doing that to one.

use coracle_core::artifact::Coordinate;
use hyper::StatusCode;

use super::operations::{ACCEPTED, accepted};
use super::parameters::{Kind as Is, Parameter};
use super::reply::{Answered, Kind, Obstacle, json};
use super::request::Asked;
use super::routes::{Answer, Handler, Route};
use super::status::NO_ANSWER;
use super::workloads::{OPERATED, operate_workload};
use crate::native_status::{LongWork, ServiceStatus, Services};
use crate::status::{Call, Operation};

const AT: &[Parameter] =
    &[Parameter::path("coordinate", Is::Coordinate, "Where it stands: instance.service.user.cell")];

pub(super) static ROUTES: &[Route] = &[
    Route::get("/v1/services", |asked| Box::pin(list(asked)))
        .says(
            "Native services",
            "Those that are ordered, those that still run, and directories that are left of others",
        )
        .answers(&[Answer::json::<Services>(200, "All of them"), NO_ANSWER]),
    Route::get("/v1/services/{coordinate}", |asked| Box::pin(get(asked)))
        .takes(AT)
        .says("A native service", "What stands at a coordinate")
        .answers(&[
            Answer::json::<ServiceStatus>(200, "As it is now"),
            Answer::problem(404, "Nothing stands there"),
            NO_ANSWER,
        ]),
    operation("/v1/services/{coordinate}/start", |asked| {
        Box::pin(operate(asked, Operation::Start))
    })
    .says("Start a service", "Lets its workload run again after it was stopped or drained by hand"),
    operation("/v1/services/{coordinate}/drain", |asked| {
        Box::pin(operate(asked, Operation::Drain))
    })
    .says("Drain a service", "Moves work away from it, then stops its workload until it is started"),
    operation("/v1/services/{coordinate}/stop", |asked| Box::pin(operate(asked, Operation::Stop)))
        .says("Stop a service", "Stops its workload until it is started by hand"),
    operation("/v1/services/{coordinate}/restart", |asked| {
        Box::pin(operate(asked, Operation::Restart))
    })
    .says("Restart a service", "Replaces the replicas of its workload by new ones"),
    Route::post("/v1/services/{coordinate}/purge", "remove runtime directories", |asked| {
        Box::pin(purge(asked))
    })
    .takes(AT)
    .says(
        "Purge a service",
        "Removes the runtime directory of a service that is stopped by hand or not ordered any more",
    )
    .answers(&[
        ACCEPTED,
        Answer::problem(404, "Nothing stands there"),
        Answer::problem(
            409,
            "It is ordered and not stopped, or still there; or the same request is being carried out",
        ),
        NO_ANSWER,
    ]),
];

const fn operation(path: &'static str, handler: Handler) -> Route {
    Route::post(path, "start and stop workloads", handler).takes(AT).answers(OPERATED)
}

async fn list(asked: Asked) -> Answered {
    Ok(json(StatusCode::OK, &asked.context.calls.ask(Call::Services).await?))
}

async fn get(asked: Asked) -> Answered {
    Ok(json(StatusCode::OK, &find(&asked).await?))
}

async fn find(asked: &Asked) -> Result<ServiceStatus, Obstacle> {
    let at = asked.values.text("coordinate").unwrap_or_default();
    let all = asked.context.calls.ask(Call::Services).await?.services;
    let unknown = || Obstacle::new(Kind::NotFound, format!("no service stands at {at}"));
    all.into_iter().find(|service| service.coordinate == at).ok_or_else(unknown)
}

async fn operate(asked: Asked, operation: Operation) -> Answered {
    let at = asked.values.text("coordinate").unwrap_or_default().to_owned();
    let workload = asked.context.calls.ask(|answer| Call::WorkloadAt(at, answer)).await?;
    let workload = workload.map_err(|why| Obstacle::new(Kind::NotFound, why))?;
    operate_workload(&asked, workload, operation).await
}

async fn purge(asked: Asked) -> Answered {
    let at = find(&asked).await?.coordinate;
    let at =
        Coordinate::parse(&at).map_err(|error| Obstacle::new(Kind::NotFound, error.to_string()))?;
    accepted(&asked, LongWork::Purge(at)).await
}
