//! The OpenAPI 3.1 document, made from the table of routes and the types of their answers. Only the
//! generator and the test that the document in the tree is current have this.

use std::collections::BTreeSet;

use coracle_protocol::limits::{MAX_CONTAINER_NAME, MAX_WORKLOAD_NAME};
use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::parameters::{IDEMPOTENCY_KEY, Kind, Parameter, Place};
use super::reply::PROBLEM_JSON;
use super::routes::{Answer, Method, Route, TABLE};
use crate::http_reply;
use crate::status::{LogLine, Problem};

const DESCRIPTION: &str = "\
What one gateway was ordered to run and what became of it, and what may be done about it by hand. \
Over a Unix socket, one request a connection. Everything that is no answer is a problem \
(RFC 9457), as application/problem+json, whose `type` is one of those in this document's `Problem`. \
Fields may be added to answers at any time.";

/// The document, as it is kept in the tree.
pub fn generate() -> String {
    let settings = SchemaSettings::draft2020_12().for_serialize().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut schemas = settings.into_generator();
    let mut paths = Map::new();
    for route in TABLE.iter().copied().flatten() {
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path[route.method.as_str().to_lowercase()] = operation(route, &mut schemas);
    }
    schemas.subschema_for::<LogLine>();
    schemas.subschema_for::<Problem>();
    let mut schemas = Value::Object(schemas.take_definitions(true));
    let kinds = http_reply::Kind::ALL.map(http_reply::Kind::reference);
    schemas["Problem"]["properties"]["type"]["enum"] = json!(kinds);
    let document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Coracle, the agent's local API",
            "version": "1",
            "description": DESCRIPTION,
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "paths": paths,
        "components": { "schemas": schemas, "responses": common_responses() },
    });
    let mut text = serde_json::to_string_pretty(&document).expect("values always serialise");
    text.push('\n');
    text
}

fn operation(route: &Route, schemas: &mut SchemaGenerator) -> Value {
    let mut parameters: Vec<_> = route.parameters.iter().map(parameter).collect();
    if route.changes.is_some() {
        parameters.push(parameter(&IDEMPOTENCY_KEY));
    }
    let description = match route.changes {
        Some(_) => format!("{}. For those who may change.", route.words.description),
        None => format!("{}. For those who may read.", route.words.description),
    };
    let mut operation = json!({
        "operationId": operation_id(route),
        "summary": route.words.summary,
        "description": description,
        "responses": responses(route, schemas),
    });
    if !parameters.is_empty() {
        operation["parameters"] = parameters.into();
    }
    if let Some(body) = &route.body {
        let schema = (body.shape)(schemas);
        let content = json!({ body.media_type: { "schema": schema } });
        operation["requestBody"] = json!({ "required": true, "content": content });
    }
    operation
}

/// Such as `postWorkloadsStop`.
fn operation_id(route: &Route) -> String {
    let parts = route.path.trim_start_matches("/v1/").split(['/', '.']);
    let words = parts.map(|part| match part.strip_prefix('{') {
        Some(name) => format!("-by-{}", name.trim_end_matches('}')),
        None => format!("-{part}"),
    });
    let words: String = words.collect();
    let mut id = route.method.as_str().to_lowercase();
    for word in words.split('-').filter(|word| !word.is_empty()) {
        id.push_str(&word[..1].to_uppercase());
        id.push_str(&word[1..]);
    }
    id
}

fn parameter(parameter: &Parameter) -> Value {
    let place = match parameter.place {
        Place::Path => "path",
        Place::Query => "query",
        Place::Header => "header",
    };
    let name = |most: usize| {
        let pattern = "^[a-z0-9]+(-[a-z0-9]+)*$";
        json!({ "type": "string", "pattern": pattern, "minLength": 1, "maxLength": most })
    };
    let schema = match parameter.kind {
        Kind::Number(most) => json!({ "type": "integer", "minimum": 0, "maximum": most }),
        Kind::Flag => json!({ "type": "boolean" }),
        Kind::Name => name(MAX_WORKLOAD_NAME),
        Kind::Container => name(MAX_CONTAINER_NAME),
        Kind::Artifact => {
            let pattern = crate::native_status::ARTIFACT_PATTERN;
            json!({ "type": "string", "pattern": pattern, "maxLength": 100 })
        }
        Kind::Coordinate => json!({
            "type": "string",
            "pattern": r"^[a-z0-9][a-z0-9_-]{0,39}(\.[a-z0-9][a-z0-9_-]{0,39}){3}$",
        }),
        Kind::Operation => json!({ "type": "string", "pattern": "^operation-[0-9]{1,9}$" }),
        Kind::OneOf(known) => json!({ "type": "string", "enum": known }),
        Kind::Since => json!({ "anyOf": [
            { "type": "string", "format": "date-time",
              "pattern": "^(19[7-9]|2[0-9]{2})[0-9]-" },
            { "type": "string", "pattern": "^([0-9]{1,6}[smhd]){1,4}$" },
        ] }),
        Kind::Key => json!({ "type": "string", "pattern": "^[!-~]{1,64}$" }),
    };
    json!({
        "name": parameter.name,
        "in": place,
        "required": parameter.place == Place::Path,
        "description": parameter.about,
        "schema": schema,
    })
}

/// What a route says that it answers, and what every one of its kind may.
fn responses(route: &Route, schemas: &mut SchemaGenerator) -> Value {
    let mut responses = Map::new();
    for answer in route.words.answers {
        let Answer { status, about, media_type, shape } = answer;
        let response = responses
            .entry(status.to_string())
            .or_insert_with(|| json!({ "description": about, "content": {} }));
        response["content"][*media_type] = json!({ "schema": shape(schemas) });
    }
    for status in common(route) {
        let reference = json!({ "$ref": format!("#/components/responses/{status}") });
        responses.entry(status.to_string()).or_insert(reference);
    }
    Value::Object(responses)
}

fn common(route: &Route) -> BTreeSet<u16> {
    let mut statuses = BTreeSet::from([400, 403, 405, 414, 431, 500, 503]);
    if route.parameters.iter().any(|parameter| parameter.place == Place::Path) {
        statuses.insert(404);
    }
    if route.changes.is_some() {
        statuses.extend([409, 422]);
    }
    if route.body.is_some() {
        statuses.extend([408, 413, 415]);
    }
    debug_assert!(route.changes.is_some() || route.method == Method::Get);
    statuses
}

fn common_responses() -> Value {
    let about = [
        (400, "The request cannot be understood; `detail` says what is wrong"),
        (403, "One may not do that; `detail` says who may"),
        (404, "There is no such thing: no name is like this"),
        (405, "The resource does not answer to this method; `Allow` says to which it does"),
        (408, "The body took too long to arrive"),
        (409, "The same request, by its idempotency key, is being carried out"),
        (413, "The body is too large"),
        (414, "The address is too long"),
        (415, "The body is of another media type"),
        (422, "The idempotency key was used for another request"),
        (431, "The head of the request is too large"),
        (500, "It failed"),
        (503, "Not now: the agent is stopping, or there are too many requests"),
    ];
    let schema = json!({ "$ref": "#/components/schemas/Problem" });
    let responses = about.map(|(status, about): (u16, &str)| {
        let mut response = json!({
            "description": about,
            "content": { PROBLEM_JSON: { "schema": schema.clone() } },
        });
        if status == 405 {
            response["headers"] = json!({ "Allow": {
                "description": "Methods, separated by commas",
                "required": true,
                "schema": { "type": "string" },
            } });
        }
        (status.to_string(), response)
    });
    Value::Object(responses.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_is_described_and_says_what_it_answers() {
        let document: Value = serde_json::from_str(&generate()).unwrap();
        let mut ids = BTreeSet::new();
        for route in TABLE.iter().copied().flatten() {
            let name = format!("{} {}", route.method.as_str(), route.path);
            let there = &document["paths"][route.path][route.method.as_str().to_lowercase()];
            assert!(there["summary"].as_str().is_some_and(|text| !text.is_empty()), "{name}");
            let good = &there["responses"]["200"]["content"];
            let accepted = &there["responses"]["202"]["content"];
            assert!(good.is_object() || accepted.is_object(), "{name}");
            assert!(ids.insert(there["operationId"].to_string()), "{name}");
        }
    }
}
