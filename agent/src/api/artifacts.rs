//! `/v1/artifacts`: the artifacts that are installed, and installing one by hand;
//! `/v1/artifacts/{artifact}`: one of them, and removing it.

use coracle_core::artifact::{ArtifactId, ArtifactRef};
use coracle_core::image::Digest;
use hyper::StatusCode;

use super::operations::{ACCEPTED, accepted};
use super::parameters::{Kind as Is, Parameter};
use super::reply::{Answered, Kind, Obstacle, json};
use super::request::Asked;
use super::routes::{Answer, Body, Route};
use super::status::NO_ANSWER;
use crate::native_status::{ArtifactStatus, Artifacts, InstallRequest, LongWork};
use crate::status::Call;

/// Most bytes of a request to install something.
const MOST: usize = 4096;

const NAME: &[Parameter] = &[Parameter::path("artifact", Is::Artifact, "Which artifact")];

pub(super) static ROUTES: &[Route] = &[
    Route::get("/v1/artifacts", |asked| Box::pin(list(asked)))
        .says("Artifacts", "The artifacts that are installed, with size, digest and users")
        .answers(&[Answer::json::<Artifacts>(200, "All of them"), NO_ANSWER]),
    Route::post("/v1/artifacts", "install artifacts", |asked| Box::pin(install(asked)))
        .reads(Body::json::<InstallRequest>("what to install", MOST))
        .says(
            "Install an artifact",
            "Fetches, verifies and unpacks an artifact, which then stays until somebody removes it. \
             One that is installed already is kept",
        )
        .answers(&[
            ACCEPTED,
            Answer::problem(400, "It is no request to install an artifact"),
            Answer::problem(
                409,
                "Something else is being done to it; or the same request is being carried out",
            ),
            NO_ANSWER,
        ]),
    Route::get("/v1/artifacts/{artifact}", |asked| Box::pin(get(asked)))
        .takes(NAME)
        .says("An artifact", "What is known of an artifact that is installed")
        .answers(&[
            Answer::json::<ArtifactStatus>(200, "As it is now"),
            Answer::problem(404, "It is not installed"),
            NO_ANSWER,
        ]),
    Route::delete("/v1/artifacts/{artifact}", "remove artifacts", |asked| Box::pin(remove(asked)))
        .takes(NAME)
        .says("Remove an artifact", "Removes an artifact that no workload uses or may return to")
        .answers(&[
            ACCEPTED,
            Answer::problem(404, "It is not installed"),
            Answer::problem(
                409,
                "It is used, or something is being done to it; or the same request is being carried \
                 out",
            ),
            NO_ANSWER,
        ]),
];

async fn list(asked: Asked) -> Answered {
    Ok(json(StatusCode::OK, &asked.context.calls.ask(Call::Artifacts).await?))
}

async fn get(asked: Asked) -> Answered {
    let name = asked.values.text("artifact").unwrap_or_default();
    let all = asked.context.calls.ask(Call::Artifacts).await?.artifacts;
    match all.iter().find(|there| there.artifact == name) {
        Some(there) => Ok(json(StatusCode::OK, there)),
        None => Err(Obstacle::new(Kind::NotFound, format!("artifact {name} is not installed"))),
    }
}

async fn install(asked: Asked) -> Answered {
    let wanted = read(&asked.body).map_err(|why| Obstacle::new(Kind::BadRequest, why))?;
    accepted(&asked, LongWork::Install(wanted)).await
}

async fn remove(asked: Asked) -> Answered {
    let name = asked.values.text("artifact").unwrap_or_default();
    let id = ArtifactId::parse(name)
        .map_err(|error| Obstacle::new(Kind::NotFound, error.to_string()))?;
    accepted(&asked, LongWork::Remove(id)).await
}

fn read(body: &[u8]) -> Result<ArtifactRef, String> {
    let request: InstallRequest =
        serde_json::from_slice(body).map_err(|error| format!("what to install: {error}"))?;
    let id = ArtifactId::parse(&request.artifact).map_err(|error| error.to_string())?;
    let digest = request.sha256.map(|hex| Digest::parse(&format!("sha256:{hex}")));
    let digest = digest.transpose();
    let digest =
        digest.map_err(|_| "sha256 must be 64 lower-case hexadecimal digits".to_owned())?;
    let repository = request.repository.map(Into::into);
    Ok(ArtifactRef { id, digest, repository })
}
