//! `/v1/workloads`: GET the workloads of the status, as a list; POST
//! `/v1/workloads/NAME/start|drain|stop|restart` does that to one of them.

use hyper::StatusCode;

use super::Context;
use super::reply::{Reply, json, problem};
use crate::status::{Call, Operation, OperationRefusal};

pub(super) async fn get(context: &Context) -> Reply {
    match context.calls.ask(Call::Status).await {
        Ok(status) => json(StatusCode::OK, &status.reported.workloads),
        Err(obstacle) => obstacle.into(),
    }
}

/// 200 once it is begun and kept, 404 if the orders name no such workload, 409 if it cannot be done
/// to it as it is.
pub(super) async fn post(name: &str, operation: Operation, context: &Context) -> Reply {
    let name = name.to_owned();
    match context.calls.order(|answer| Call::Operate(name, operation, answer)).await {
        Ok(Ok(operated)) => json(StatusCode::OK, &operated),
        Ok(Err(refusal)) => {
            let status = match refusal {
                OperationRefusal::Unknown(_) => StatusCode::NOT_FOUND,
                OperationRefusal::Conflict(_) => StatusCode::CONFLICT,
                OperationRefusal::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
            };
            problem(status, refusal.to_string())
        }
        Err(obstacle) => obstacle.into(),
    }
}
