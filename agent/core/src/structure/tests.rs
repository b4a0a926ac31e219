//! A general JSON Schema validator must come to the same verdict.

use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::json;

use super::*;

/// Every keyword in the schema is one that is read here, or says nothing about structure.
#[test]
fn the_schema_has_no_keyword_that_is_not_read() {
    fn collect(rule: &Value, keywords: &mut BTreeSet<String>) {
        let Some(rule) = rule.as_object() else { return };
        for (keyword, value) in rule {
            keywords.insert(keyword.clone());
            match keyword.as_str() {
                "properties" | "$defs" => {
                    value.as_object().unwrap().values().for_each(|rule| collect(rule, keywords));
                }
                "oneOf" | "anyOf" => {
                    value.as_array().unwrap().iter().for_each(|rule| collect(rule, keywords));
                }
                "items" | "additionalProperties" => collect(value, keywords),
                _ => {}
            }
        }
    }
    let schema: Value = serde_json::from_str(JSON_SCHEMA).unwrap();
    let mut keywords = BTreeSet::new();
    collect(&schema, &mut keywords);
    let read = [
        "$defs",
        "$ref",
        "additionalProperties",
        "anyOf",
        "const",
        "enum",
        "items",
        "maxItems",
        "maximum",
        "minItems",
        "minimum",
        "oneOf",
        "properties",
        "required",
        "type",
    ];
    let elsewhere = ["$id", "$schema", "description", "title", "default"];
    let of_texts = ["format", "pattern", "minLength", "maxLength"];
    for keyword in keywords {
        let known = [&read[..], &elsewhere, &of_texts].concat().contains(&keyword.as_str());
        assert!(known, "{keyword} is not read");
    }
}

/// Rules about texts are not of the structure.
fn without_rules_about_texts(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            fields.retain(|keyword, value| {
                let of_texts = ["pattern", "format", "minLength", "maxLength"];
                value.is_object() || !of_texts.contains(&keyword.as_str())
            });
            fields.values_mut().for_each(without_rules_about_texts);
        }
        Value::Array(items) => items.iter_mut().for_each(without_rules_about_texts),
        _ => {}
    }
}

fn good() -> Value {
    json!({
        "schema": 1,
        "gateway": "3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11",
        "generation": 7,
        "gateway_name": "g",
        "project": "p",
        "endpoints": { "e": "x" },
        "config_maps": { "m": { "files": { "f": "x" } } },
        "secrets": { "s": { "sealed": "x" } },
        "types": { "t": {
            "network": "pod", "restart": "always", "stop": { "grace_seconds": 1 },
            "config_template": { "schema": { "type": "object" }, "path": "/c", "env": { "A": "/a" } },
            "identity": true, "containers": [{ "image": "r.x/a:1" }]
        } },
        "requires": ["x"],
        "workloads": [{
            "name": "web",
            "replicas": 2,
            "network": "host",
            "restart": "never",
            "stop": { "signal": "SIGTERM", "grace_seconds": 3 },
            "type": "t", "config": { "a": 1 }, "identity": true, "grants": ["s"],
            "mounts": { "d": { "anonymous": true, "named": "n", "host": "/h", "config_map": "m", "secret": "s" } },
            "ports": { "h": { "host": 80, "address": "x" } },
            "limits": { "main": { "memory_mib": 4, "cpu_millis": 10, "pids": 1 } },
            "containers": [{
                "mounts": [{ "name": "d", "path": "/d", "read_only": true, "kinds": ["named"], "optional": true, "in_place": true }],
                "ports": [{ "name": "h", "port": 80, "protocol": "udp", "optional": true }],
                "limits": { "memory_mib": 4, "cpu_millis": 10, "pids": 1 },
                "devices": [{ "path": "/dev/x", "to": "/dev/y", "access": "r", "resource": "r" }],
                "capabilities": { "add": ["A"], "drop": ["B"] },
                "seccomp": "default",
                "name": "main", "image": "r.x/a:1", "command": ["a"], "args": ["b"],
                "env": { "A": "1" }, "working_dir": "/", "user": "u", "readonly_root": true
            }]
        }]
    })
}

/// All places of a document.
fn places(value: &Value, at: String, all: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            fields.iter().for_each(|(field, value)| places(value, format!("{at}/{field}"), all));
        }
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(i, value)| places(value, format!("{at}/{i}"), all));
        }
        _ => {}
    }
    all.push(at);
}

fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!(null)),
        any::<bool>().prop_map(Value::from),
        (-3i64..5000).prop_map(Value::from),
        Just(json!(u64::MAX)),
        prop_oneof![Just("host"), Just("none"), Just("always"), Just("x")].prop_map(Value::from),
        Just(json!([])),
        Just(json!(["x"])),
        Just(json!(vec!["x"; 300])),
        Just(json!({})),
        Just(json!({ "x": "y" })),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..Default::default() })]

    #[test]
    fn a_general_validator_comes_to_the_same_verdict(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any_value(), 0..3u8), 1..4)
    ) {
        thread_local! {
            static GENERAL: jsonschema::Validator = {
                let mut schema = serde_json::from_str(JSON_SCHEMA).unwrap();
                without_rules_about_texts(&mut schema);
                jsonschema::validator_for(&schema).unwrap()
            };
        }
        let mut document = good();
        for (place, value, how) in changes {
            let mut all = Vec::new();
            places(&document, String::new(), &mut all);
            let place = place.get(&all).clone();
            let target = document.pointer_mut(&place).unwrap();
            match (how, target) {
                (0, Value::Object(fields)) => {
                    fields.insert("added".into(), value);
                }
                (1, Value::Object(fields)) => {
                    let first = fields.keys().next().cloned();
                    first.map(|field| fields.remove(&field));
                }
                (_, target) => *target = value,
            }
        }
        if other_schema(&document).is_none() {
            let found = check(&document);
            let general = GENERAL.with(|general| general.is_valid(&document));
            let own = found.refusals.is_empty() && found.unknown_fields.is_empty();
            prop_assert_eq!(own, general, "{:?} of {}", found, document);
            let accepted = crate::desired::parse(&document, crate::desired::Reading::Strict);
            prop_assert!(own || accepted.is_err(), "{}", document);
        }
    }
}
