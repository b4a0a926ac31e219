//! `/v1/openapi.json`: what this API is, for programs.

use std::io::Read as _;

use flate2::read::DeflateDecoder;
use hyper::StatusCode;

use super::reply::{JSON, Kind, Obstacle, bytes};
use super::routes::{Answer, Route};

/// The OpenAPI document, made from the table of routes and kept in the tree (a test fails when it is
/// not what the table says), packed by the build script.
static PACKED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/openapi.json.deflate"));

/// The document as it stands in the tree.
fn document() -> std::io::Result<Vec<u8>> {
    let mut document = Vec::new();
    DeflateDecoder::new(PACKED).read_to_end(&mut document)?;
    Ok(document)
}

pub(super) static ROUTES: &[Route] = &[Route::get("/v1/openapi.json", |_| {
    Box::pin(async {
        let document = document();
        let document =
            document.map_err(|error| Obstacle::new(Kind::Internal, error.to_string()))?;
        Ok(bytes(StatusCode::OK, JSON, document))
    })
})
.says("This document", "The OpenAPI 3.1 document of this API")
.answers(&[Answer::json::<serde_json::Map<String, serde_json::Value>>(
    200,
    "An OpenAPI 3.1 document",
)])];
