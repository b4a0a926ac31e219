//! `/v1/workloads`: the workloads of the status; `/v1/workloads/{name}`: one of them;
//! `/v1/workloads/{name}/start|drain|stop|restart`: doing that to one.

use coracle_protocol::reported::WorkloadReport;
use hyper::StatusCode;

use super::parameters::{Kind as Is, Parameter};
use super::reply::{Answered, Kind, Obstacle, json};
use super::request::Asked;
use super::routes::{Answer, Handler, Route};
use super::status::NO_ANSWER;
use crate::status::{Call, Operated, Operation, OperationRefusal};

const NAME: &[Parameter] = &[Parameter::path("name", Is::Name, "Which workload")];

pub(super) static ROUTES: &[Route] = &[
    Route::get("/v1/workloads", |asked| Box::pin(list(asked)))
        .says("Workloads", "What is ordered and what became of it, by name")
        .answers(&[Answer::json::<Vec<WorkloadReport>>(200, "All of them"), NO_ANSWER]),
    Route::get("/v1/workloads/{name}", |asked| Box::pin(get(asked)))
        .takes(NAME)
        .says("A workload", "What is ordered of one workload and what became of it")
        .answers(&[
            Answer::json::<WorkloadReport>(200, "As it is now"),
            Answer::problem(404, UNKNOWN),
            NO_ANSWER,
        ]),
    operation("/v1/workloads/{name}/start", |asked| Box::pin(operate(asked, Operation::Start)))
        .says("Start a workload", "Lets it run again after it was stopped or drained by hand"),
    operation("/v1/workloads/{name}/drain", |asked| Box::pin(operate(asked, Operation::Drain)))
        .says(
            "Drain a workload",
            "Moves work away from it, then stops it until it is started by hand",
        ),
    operation("/v1/workloads/{name}/stop", |asked| Box::pin(operate(asked, Operation::Stop))).says(
        "Stop a workload",
        "Stops it until it is started by hand, over a reboot and new orders",
    ),
    operation("/v1/workloads/{name}/restart", |asked| Box::pin(operate(asked, Operation::Restart)))
        .says("Restart a workload", "Replaces its replicas by new ones of the same definition"),
];

const UNKNOWN: &str = "The orders name no such workload";

const fn operation(path: &'static str, handler: Handler) -> Route {
    Route::post(path, "start and stop workloads", handler).takes(NAME).answers(OPERATED)
}

pub(super) const OPERATED: &[Answer] = &[
    Answer::json::<Operated>(200, "It is begun and kept, or nothing had to be done"),
    Answer::problem(404, UNKNOWN),
    Answer::problem(
        409,
        "It cannot be done to it as it is; or the same request is being carried out",
    ),
    Answer::problem(500, "It could not be stored"),
    NO_ANSWER,
];

async fn list(asked: Asked) -> Answered {
    let status = asked.context.calls.ask(Call::Status).await?;
    Ok(json(StatusCode::OK, &status.reported.workloads))
}

async fn get(asked: Asked) -> Answered {
    let name = asked.values.text("name").unwrap_or_default();
    let status = asked.context.calls.ask(Call::Status).await?;
    match status.reported.workloads.iter().find(|workload| workload.name == name) {
        Some(workload) => Ok(json(StatusCode::OK, workload)),
        None => {
            let detail = format!("the orders name no workload {name:?}");
            Err(Obstacle::new(Kind::NotFound, detail))
        }
    }
}

async fn operate(asked: Asked, operation: Operation) -> Answered {
    let name = asked.values.text("name").unwrap_or_default().to_owned();
    operate_workload(&asked, name, operation).await
}

pub(super) async fn operate_workload(
    asked: &Asked,
    name: String,
    operation: Operation,
) -> Answered {
    match asked.context.calls.order(|answer| Call::Operate(name, operation, answer)).await? {
        Ok(operated) => Ok(json(StatusCode::OK, &operated)),
        Err(refusal) => {
            let kind = match refusal {
                OperationRefusal::Unknown(_) => Kind::NotFound,
                OperationRefusal::Conflict(_) => Kind::Conflict,
                OperationRefusal::Failed(_) => Kind::Internal,
            };
            Err(Obstacle::new(kind, refusal.to_string()))
        }
    }
}
