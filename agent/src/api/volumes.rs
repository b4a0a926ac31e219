//! `/v1/volumes`: the named volumes; `/v1/volumes/{name}`: removing one that nobody uses.

use hyper::StatusCode;

use super::parameters::{Kind as Is, Parameter};
use super::reply::{Answered, Kind, Obstacle, json};
use super::request::Asked;
use super::routes::{Answer, Route};
use super::status::NO_ANSWER;
use crate::status::{Call, Removed, VolumeRefusal, Volumes};

pub(super) static ROUTES: &[Route] = &[
    Route::get("/v1/volumes", |asked| Box::pin(get(asked)))
        .says("Volumes", "The named volumes, with size, last use and users")
        .answers(&[
            Answer::json::<Volumes>(200, "All of them"),
            Answer::problem(500, "They cannot be told"),
            NO_ANSWER,
        ]),
    Route::delete("/v1/volumes/{name}", "remove volumes", |asked| Box::pin(delete(asked)))
        .takes(&[Parameter::path("name", Is::Name, "Which volume")])
        .says("Remove a volume", "Removes a volume that nobody uses, with all that is in it")
        .answers(&[
            Answer::json::<Removed>(200, "It is gone"),
            Answer::problem(404, "There is none of this name"),
            Answer::problem(409, "Somebody uses it; or the same request is being carried out"),
            Answer::problem(500, "It could not be done"),
            NO_ANSWER,
        ]),
];

async fn get(asked: Asked) -> Answered {
    match asked.context.calls.ask(Call::Volumes).await? {
        Ok(volumes) => Ok(json(StatusCode::OK, &volumes)),
        Err(error) => Err(Obstacle::new(Kind::Internal, error)),
    }
}

async fn delete(asked: Asked) -> Answered {
    let name = asked.values.text("name").unwrap_or_default().to_owned();
    match asked.context.calls.order(|answer| Call::RemoveVolume(name, answer)).await? {
        Ok(()) => Ok(json(StatusCode::OK, &Removed {})),
        Err(refusal) => {
            let kind = match refusal {
                VolumeRefusal::Unknown(_) => Kind::NotFound,
                VolumeRefusal::InUse(_) => Kind::Conflict,
                VolumeRefusal::Failed(_) => Kind::Internal,
            };
            Err(Obstacle::new(kind, refusal.to_string()))
        }
    }
}
