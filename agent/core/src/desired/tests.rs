use serde_json::{Value, json};

use super::*;

mod bad;
mod good;

const GATEWAY: &str = "3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11";

fn good() -> Value {
    json!({
        "schema": 1,
        "gateway": GATEWAY,
        "generation": 7,
        "workloads": [{
            "name": "web",
            "network": "host",
            "containers": [{ "image": "registry.example/web:1.2" }]
        }]
    })
}

/// The good document with one value replaced (or removed, for null) at a JSON Pointer.
fn with(pointer: &str, value: Value) -> Value {
    let mut document = good();
    let (parent, field) = pointer.rsplit_once('/').unwrap();
    let parent = document.pointer_mut(parent).unwrap();
    match parent {
        Value::Array(list) => list.push(value),
        object if value.is_null() => {
            object.as_object_mut().unwrap().remove(field);
        }
        object => object[field] = value,
    }
    document
}

/// Asserts that a document is refused at exactly one place.
fn refused(document: &Value, path: &str, code: Code) {
    let refusals = parse(document, Reading::Strict).unwrap_err();
    let found: Vec<_> = refusals.iter().map(|r| (r.path.as_str(), &r.code)).collect();
    assert_eq!(found, [(path, &code)], "{refusals:?}");
    assert!(refusals[0].message.len() > 5, "{refusals:?}");
}

const CONTAINER: &str = "/workloads/0/containers/0";

#[test]
fn a_broken_field_hides_no_other_mistake() {
    let document = json!({
        "schema": 1, "gateway": GATEWAY, "generation": 1,
        "workloads": [
            { "name": "Web_1", "network": "bridge", "stop": { "grace_seconds": 99999 },
              "containers": [{ "image": "nginx", "args": ["a", 1, "\0"], "user": "a:b:c" }] },
            { "name": "web", "network": "host", "containers": [] },
            { "name": "web", "network": "none", "stop": { "signal": "SIGFOO" },
              "containers": [{ "image": "r.x/a:1:2", "command": [], "working_dir": "rel" }, 7] },
            5
        ]
    });
    let refusals = parse(&document, Reading::Strict).unwrap_err();
    let mut places: Vec<_> = refusals.iter().map(|r| r.path.as_str()).collect();
    places.sort_unstable();
    let expected = [
        "/workloads/0/containers/0/args/1",
        "/workloads/0/containers/0/args/2",
        "/workloads/0/containers/0/image",
        "/workloads/0/containers/0/user",
        "/workloads/0/name",
        "/workloads/0/network",
        "/workloads/0/stop/grace_seconds",
        "/workloads/1/containers",
        "/workloads/2/containers/0/command",
        "/workloads/2/containers/0/image",
        "/workloads/2/containers/0/working_dir",
        "/workloads/2/containers/1",
        "/workloads/2/name",
        "/workloads/2/stop/signal",
        "/workloads/3",
    ];
    assert_eq!(places, expected, "{refusals:#?}");
}

#[test]
fn a_document_that_is_no_object_is_refused() {
    for document in [json!(null), json!([]), json!("x"), json!(1)] {
        refused(&document, "", Code::WRONG_TYPE);
    }
}

#[test]
fn gateways_tolerate_and_name_unknown_fields_unless_required() {
    let mut document = good();
    document["workloads"][0]["containers"][0]["new/field"] = json!(1);
    let accepted = parse(&document, Reading::Tolerant).unwrap();
    assert_eq!(accepted.unknown_fields, ["/workloads/0/containers/0/new~1field"]);
    document["requires"] = json!(["new-field"]);
    let refusals = parse(&document, Reading::Tolerant).unwrap_err();
    assert_eq!(refusals[0].code, Code::UNSUPPORTED_FEATURE);
}

#[test]
fn a_good_document_becomes_the_domain() {
    let accepted = parse(&good(), Reading::Strict).unwrap();
    assert_eq!(accepted.gateway.to_string(), GATEWAY);
    let web = accepted.desired.workloads.values().next().unwrap();
    assert_eq!(web.restart, RestartPolicy::Always);
    assert_eq!(web.stop.grace, Duration::from_secs(10));
    assert_eq!(web.pod.containers[0].software.to_string(), "registry.example/web:1.2");
}

/// A change of these values would restart every container of every gateway that is upgraded.
#[test]
fn definition_hashes_never_change() {
    let hash = |document: &Value| {
        let accepted = parse(document, Reading::Strict).unwrap();
        let workload = accepted.desired.workloads.into_values().next().unwrap();
        workload.definition.as_str().to_owned()
    };
    let plain = hash(&good());
    assert_eq!(plain, "f471f9bb353248157e279d59b272725f");
    let spelled_out = with("/workloads/0/restart", json!("never"));
    assert_eq!(hash(&spelled_out), plain, "the restart policy does not replace a container");
    assert_eq!(hash(&with(&format!("{CONTAINER}/name"), json!("main"))), plain);
    assert_ne!(hash(&with(&format!("{CONTAINER}/env"), json!({ "A": "1" }))), plain);
    assert_ne!(hash(&with("/workloads/0/network", json!("none"))), plain);
    let mut all = good();
    all["workloads"][0]["containers"][0] = json!({
        "name": "x", "image": "registry.example/web:1.2", "command": ["/bin/a"], "args": ["b"],
        "env": { "A": "1" }, "working_dir": "/srv", "user": "1:2", "readonly_root": true
    });
    assert_eq!(hash(&all), "e51a0587b3fc526cd297b88cfe0a1fa2");
}
