use serde_json::{Value, json};

use super::*;

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
fn every_rule_refuses_with_place_and_code() {
    let c = |field: &str| format!("{CONTAINER}/{field}");
    let long = "x".repeat(9000);
    let cases: Vec<(String, Value, Code)> = vec![
        ("/schema".into(), json!(2), Code::UNKNOWN_SCHEMA),
        ("/schema".into(), json!("1"), Code::WRONG_TYPE),
        ("/schema".into(), Value::Null, Code::MISSING_FIELD),
        ("/gateway".into(), json!("gw-1"), Code::INVALID_VALUE),
        ("/generation".into(), json!(0), Code::INVALID_VALUE),
        ("/generation".into(), json!(9007199254740992u64), Code::INVALID_VALUE),
        ("/generation".into(), json!(-1), Code::INVALID_VALUE),
        ("/generation".into(), json!("7"), Code::WRONG_TYPE),
        ("/workloads".into(), Value::Null, Code::MISSING_FIELD),
        ("/workloads".into(), json!({}), Code::WRONG_TYPE),
        ("/workload".into(), json!([]), Code::UNKNOWN_FIELD),
        ("/requires".into(), json!(["teleport"]), Code::UNSUPPORTED_FEATURE),
        ("/workloads/0/name".into(), json!("Web"), Code::INVALID_NAME),
        ("/workloads/0/name".into(), json!(""), Code::INVALID_NAME),
        ("/workloads/0/name".into(), json!("../etc"), Code::INVALID_NAME),
        ("/workloads/0/replicas".into(), json!(0), Code::INVALID_VALUE),
        ("/workloads/0/replicas".into(), json!(65), Code::INVALID_VALUE),
        ("/workloads/0/network".into(), json!("bridge"), Code::INVALID_VALUE),
        ("/workloads/0/network".into(), Value::Null, Code::MISSING_FIELD),
        ("/workloads/0/restart".into(), json!("sometimes"), Code::INVALID_VALUE),
        ("/workloads/0/stop".into(), json!({ "signal": "SIGSTOP" }), Code::INVALID_VALUE),
        ("/workloads/0/stop".into(), json!({ "grace_seconds": 3601 }), Code::INVALID_VALUE),
        ("/workloads/0/containers".into(), json!([]), Code::INVALID_VALUE),
        (c("name"), json!("Main"), Code::INVALID_NAME),
        (c("image"), json!("nginx"), Code::INVALID_IMAGE),
        (c("image"), Value::Null, Code::MISSING_FIELD),
        (c("readonly_rot"), json!(true), Code::UNKNOWN_FIELD),
        (c("readonly_root"), json!("yes"), Code::WRONG_TYPE),
        (c("command"), json!("sh -c true"), Code::WRONG_TYPE),
        (c("command"), json!([]), Code::INVALID_VALUE),
        (c("args"), json!(vec!["x"; 257]), Code::TOO_MANY),
        (c("working_dir"), json!("srv"), Code::INVALID_VALUE),
        (c("user"), json!("a b"), Code::INVALID_VALUE),
        (c("user"), json!("a:"), Code::INVALID_VALUE),
        (c("user"), json!(0), Code::WRONG_TYPE),
        (c("env"), json!(["A=1"]), Code::WRONG_TYPE),
    ];
    for (path, value, code) in cases {
        let document = with(&path, value);
        let place = match code.as_str() {
            "unsupported-feature" => format!("{path}/0"),
            _ if path.ends_with("/stop") => {
                let field = document.pointer(&path).unwrap().as_object().unwrap();
                format!("{path}/{}", field.keys().next().unwrap())
            }
            _ => path.clone(),
        };
        refused(&document, &place, code);
    }
    let inner: Vec<(&str, Value, &str, Code)> = vec![
        ("command", json!([""]), "/0", Code::INVALID_VALUE),
        ("args", json!(["a\0b"]), "/0", Code::INVALID_VALUE),
        ("args", json!([long]), "/0", Code::TOO_MANY),
        ("args", json!([1]), "/0", Code::WRONG_TYPE),
        ("env", json!({ "": "x" }), "/", Code::INVALID_NAME),
        ("env", json!({ "A=B/C": "x" }), "/A=B~1C", Code::INVALID_NAME),
        ("env", json!({ "A": "\0" }), "/A", Code::INVALID_VALUE),
        ("env", json!({ "A": 1 }), "/A", Code::WRONG_TYPE),
    ];
    for (field, value, rest, code) in inner {
        refused(&with(&c(field), value), &format!("{}{rest}", c(field)), code);
    }
}

#[test]
fn names_must_be_unique_and_numbers_bounded_in_sum() {
    let second = good()["workloads"][0].clone();
    refused(&with("/workloads/1", second), "/workloads/1/name", Code::DUPLICATE_NAME);
    let second = json!({ "name": "other", "image": "registry.example/x:1" });
    let pods = with("/workloads/0/containers/1", second);
    refused(&pods, "/workloads/0/containers", Code::UNSUPPORTED_FEATURE);
    let mut many = good();
    let workload = |i| {
        json!({ "name": format!("w{i}"), "replicas": 64, "network": "none",
                    "containers": [{ "image": "registry.example/x:1" }] })
    };
    many["workloads"] = (0..5).map(workload).collect();
    refused(&many, "/workloads", Code::TOO_MANY);
    many["workloads"] = vec![json!(0); 257].into();
    assert!(parse(&many, Reading::Strict).unwrap_err().iter().any(|r| r.code == Code::TOO_MANY));
}

#[test]
fn all_refusals_come_in_one_answer() {
    let mut document = good();
    document["workloads"][0]["name"] = json!("Web");
    document["workloads"][0]["containers"][0]["image"] = json!("nginx");
    document["requires"] = json!(["teleport"]);
    document["workloads"][0]["containers"][0]["readonly_rot"] = json!(true);
    document["workloads"].as_array_mut().unwrap().push(json!({ "name": 7 }));
    let refusals = parse(&document, Reading::Strict).unwrap_err();
    let mut places: Vec<_> = refusals.iter().map(|r| r.path.as_str()).collect();
    places.sort_unstable();
    let expected = [
        "/requires/0",
        "/workloads/0/containers/0/image",
        "/workloads/0/containers/0/readonly_rot",
        "/workloads/0/name",
        "/workloads/1/containers",
        "/workloads/1/name",
        "/workloads/1/network",
    ];
    assert_eq!(places, expected, "{refusals:?}");
}

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
        "/workloads/2/containers",
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
    assert_eq!(web.grace, Duration::from_secs(10));
    assert_eq!(web.container.image.to_string(), "registry.example/web:1.2");
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
