//! Configurations are judged by the shipped program, which hostile templates end, and nothing else.

#![allow(clippy::unwrap_used, reason = "clippy.toml allows it inside #[test] functions only")]
#![allow(clippy::disallowed_methods, reason = "tests measure real time")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use coracle::config_check::check_configs_and_wait;
use coracle_core::template::ConfigCheck;
use coracle_protocol::Refusal;
use coracle_testbed::bin;
use serde_json::{Value, json};

fn check(name: &str, schema: Value, value: Value) -> ConfigCheck {
    ConfigCheck {
        schema: Arc::new(schema),
        schema_path: format!("/types/{name}/config_template/schema"),
        value,
        value_path: format!("/workloads/{name}/config"),
    }
}

fn judge(checks: Vec<ConfigCheck>) -> Vec<Refusal> {
    check_configs_and_wait(&bin("coracle-config-check").unwrap(), &checks)
}

fn codes(refusals: &[Refusal]) -> Vec<(&str, &str)> {
    refusals.iter().map(|refusal| (refusal.path.as_str(), refusal.code.as_str())).collect()
}

/// `n` definitions of which each needs the next one twice: twice as much work for each.
fn doubling(n: usize, keyword: &str) -> Value {
    let mut schema = json!({ "$ref": "#/$defs/0", "$defs": {} });
    for i in 0..n {
        let next = json!({ "$ref": format!("#/$defs/{}", i + 1) });
        schema["$defs"][i.to_string()] = json!({ keyword: [next, next] });
    }
    schema["$defs"][n.to_string()] = json!({ "type": "integer" });
    schema
}

/// An order as they usually are: ten workloads of two types.
fn ordinary() -> Vec<ConfigCheck> {
    let reader = json!({
        "type": "object",
        "properties": {
            "broker": { "type": "string", "pattern": "^mqtts?://[a-z0-9.:-]+$" },
            "topics": { "type": "array", "items": { "type": "string" }, "minItems": 1 },
            "qos": { "enum": [0, 1, 2] },
            "interval_s": { "type": "number", "exclusiveMinimum": 0 },
        },
        "required": ["broker", "topics"],
        "additionalProperties": false,
    });
    let value = json!({ "broker": "mqtts://b.example:8883", "topics": ["a", "b"], "qos": 1 });
    let web = json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "properties": { "root": { "$ref": "#/definitions/path" } },
        "definitions": { "path": { "type": "string", "pattern": "^/" } },
    });
    (0..10)
        .map(|i| match i % 2 {
            0 => check("reader", reader.clone(), value.clone()),
            _ => check("web", web.clone(), json!({ "root": "/www" })),
        })
        .collect()
}

#[test]
fn an_ordinary_order_is_judged() {
    let mut checks = ordinary();
    let before = Instant::now();
    assert_eq!(judge(checks.clone()), []);
    println!("an ordinary order took {:?}", before.elapsed());
    checks[0].value["qos"] = json!(7);
    checks[1].value["root"] = json!("www");
    let found = judge(checks);
    assert_eq!(found[0].message, "is 7; must be 0 or 1 or 2");
    assert_eq!(
        codes(&found),
        [
            ("/workloads/reader/config/qos", "config-invalid"),
            ("/workloads/web/config/root", "config-invalid")
        ]
    );
}

#[test]
fn hostile_templates_end_the_child_and_are_named() {
    let many = |n: usize| json!((0..n).map(|i| format!("f{i}")).collect::<Vec<_>>());
    let object = |n: usize| Value::Object((0..n).map(|i| (format!("f{i}"), json!(i))).collect());
    let nested_uneval = {
        let mut schema = doubling(40, "anyOf");
        schema["unevaluatedProperties"] = json!(false);
        schema
    };
    let patterns: Value =
        (0..400).map(|i| json!({ "pattern": format!("(\\p{{L}}{{1,10}}){{1,2}}{i}") })).collect();
    let hostile = [
        ("all-of", doubling(60, "allOf"), json!(1)),
        ("any-of", doubling(60, "anyOf"), json!("x")),
        ("one-of", doubling(60, "oneOf"), json!("x")),
        ("unevaluated", nested_uneval, object(50)),
        ("patterns", json!({ "allOf": patterns }), json!("x")),
    ];
    for (name, schema, value) in hostile {
        let before = Instant::now();
        let found = judge(vec![check(name, schema.clone(), value)]);
        let place = format!("/types/{name}/config_template/schema");
        println!("{name}: {:?} {found:?}", before.elapsed());
        assert_eq!(codes(&found), [(place.as_str(), "template-too-costly")], "{name}");
        assert!(before.elapsed() < Duration::from_secs(15), "{name} {:?}", before.elapsed());
    }
    // What is long, and no more than that, is judged.
    for (name, schema, value) in [
        ("enum", json!({ "enum": many(6000) }), json!("x")),
        ("uneval", json!({ "unevaluatedProperties": false }), object(3000)),
        ("unique", json!({ "uniqueItems": true, "maxItems": 1 }), many(5000)),
        ("round", json!({ "anyOf": [{ "$ref": "#" }, { "$ref": "#" }], "type": "null" }), json!(1)),
    ] {
        let found = judge(vec![check(name, schema, value)]);
        assert!(!found.is_empty() && found.len() <= 32, "{name} {found:?}");
        assert!(found.iter().all(|r| r.code.as_str() == "config-invalid"), "{name} {found:?}");
    }
}

#[test]
fn the_hostile_one_is_found_among_good_and_bad_ones() {
    let mut checks = ordinary();
    checks[1].value["root"] = json!("www");
    checks.push(check("bomb", doubling(60, "allOf"), json!(1)));
    let found = judge(checks);
    assert_eq!(
        codes(&found),
        [
            ("/types/bomb/config_template/schema", "template-too-costly"),
            ("/workloads/web/config/root", "config-invalid")
        ]
    );
}

#[test]
fn many_hostile_ones_take_no_longer_than_a_few() {
    let checks = (0..20).map(|i| check(&format!("bomb{i}"), doubling(60, "allOf"), json!(1)));
    let before = Instant::now();
    let found = judge(checks.collect());
    assert!((1..=3).contains(&found.len()), "{found:?}");
    assert!(found.iter().all(|r| r.code.as_str() == "template-too-costly"), "{found:?}");
    assert!(before.elapsed() < Duration::from_secs(20), "{:?}", before.elapsed());
}

#[test]
fn many_that_are_just_good_enough_have_one_limit_together() {
    let costly = |i: usize, n| check(&format!("costly{i}"), doubling(n, "allOf"), json!(1));
    // How much is just good enough depends on the machine.
    let n = (8..60).find(|n| {
        // The quickest of three: the machine may be busy meanwhile.
        (0..3).all(|_| {
            let before = Instant::now();
            assert_eq!(judge(vec![costly(0, *n)]), [], "{n}");
            before.elapsed() > Duration::from_millis(600)
        })
    });
    let before = Instant::now();
    let found = judge((0..60).map(|i| costly(i, n.unwrap())).collect());
    println!("{n:?}: {:?} {found:?}", before.elapsed());
    assert!(before.elapsed() < Duration::from_secs(20), "{:?}", before.elapsed());
    assert_eq!(codes(&found), [("", "template-too-costly")]);
    assert!(found[0].message.contains("60 templates together takes more than 15 s"), "{found:?}");
}

/// Something else in place of the program.
fn judge_with(script: &str) -> Vec<Refusal> {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("stand-in");
    std::fs::write(&program, script.replace("DIR", dir.path().to_str().unwrap())).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&program, mode).unwrap();
    check_configs_and_wait(&program, &["x", "y"].map(|name| check(name, json!(true), json!(1))))
}

#[test]
fn a_child_that_does_not_end_is_killed() {
    let before = Instant::now();
    let found = judge_with("#!/bin/sh\nexec sleep 600\n");
    // It was not the templates that took the time.
    let places = ["x", "y"].map(|name| format!("/types/{name}/config_template/schema"));
    assert_eq!(codes(&found), places.each_ref().map(|place| (place.as_str(), "not-judged")));
    assert!(found[0].message.contains("within 15 s"), "{found:?}");
    assert!(before.elapsed() < Duration::from_secs(20), "{:?}", before.elapsed());
}

#[test]
fn a_child_that_waits_too_long_for_the_machine_is_followed_by_another() {
    let script = r#"#!/bin/sh
        if [ -e DIR/again ]; then
            echo '{"refusals":[]}'
            exit
        fi
        : > DIR/again
        exec sleep 600
    "#;
    assert_eq!(judge_with(script), []);
}
