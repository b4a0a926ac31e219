//! The API's own description.

use coracle::api;

use crate::api_support::FakeAgent;

const OPENAPI: &str = include_str!("../../openapi.json");

#[test]
fn the_checked_in_document_is_the_one_of_the_code() {
    assert!(
        api::generate_openapi() == OPENAPI,
        "the API changed; write its document anew: cargo run -p coracle --features schema \
         --example openapi > openapi.json && mv openapi.json agent/"
    );
}

#[test]
fn the_document_is_served_as_it_is() {
    let agent = FakeAgent::start();
    let answer = agent.ask("GET", "/v1/openapi.json", b"");
    assert_eq!((answer.status, answer.body.as_str()), (200, OPENAPI));
    let document = answer.json();
    assert_eq!(document["openapi"], "3.1.0");
    // What it tells of is there: none of its paths is unknown to the router.
    for (path, methods) in document["paths"].as_object().unwrap() {
        let path = path.replace("{name}", "x").replace("{workload}", "x");
        let wrong = agent.ask("PATCH", &path, b"");
        let allowed: Vec<_> = methods.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(wrong.status, 405, "{path}");
        for method in allowed {
            assert!(wrong.head.contains(method), "{path}: {}", wrong.head);
        }
    }
}
