use std::sync::Arc;

use serde_json::json;

use super::*;

fn check(schema: Value, value: Value) -> ConfigCheck {
    ConfigCheck {
        schema: Arc::new(schema),
        schema_path: "/types/reader/config/schema".into(),
        value,
        value_path: "/workloads/0/config".into(),
    }
}

/// The refusals as `code place: message`, places after those of template and configuration.
fn refusals(schema: Value, value: Value) -> Vec<String> {
    let found = evaluate(&check(schema, value));
    let line = |refusal: Refusal| {
        let place = refusal.path.replace("/types/reader/config/schema", "template");
        let place = place.replace("/workloads/0/config", "config");
        format!("{} {place}: {}", refusal.code, refusal.message)
    };
    found.into_iter().map(line).collect()
}

#[track_caller]
fn good(schema: Value, value: Value) {
    assert_eq!(refusals(schema, value), [""; 0]);
}

#[track_caller]
fn refused(schema: Value, value: Value, wanted: &[&str]) {
    assert_eq!(refusals(schema, value), wanted);
}

/// The only refusal, which is of the template, begins so.
#[track_caller]
fn bad_template(schema: Value, wanted: &str) {
    let found = refusals(schema, json!({}));
    assert_eq!(found.len(), 1, "{found:?}");
    let wanted = format!("template-invalid template{wanted}");
    assert!(found[0].starts_with(&wanted), "{found:?}");
}

fn reader() -> Value {
    json!({
        "type": "object",
        "properties": {
            "topic": { "type": "string", "pattern": "^[a-z/]+$" },
            "rate": { "type": "integer", "minimum": 1, "maximum": 100 },
            "mode": { "enum": ["fast", "slow"] },
            "tags": { "type": "array", "items": { "type": ["string", "null"] }, "maxItems": 2 },
        },
        "required": ["topic"],
        "additionalProperties": false,
    })
}

#[test]
fn every_violation_is_told_with_its_place() {
    good(reader(), json!({ "topic": "a/b", "rate": 7, "mode": "slow", "tags": ["x", null] }));
    refused(
        reader(),
        json!({ "rate": 700, "mode": "x", "tags": [1, 2, 3], "a/b": 1, "c": 2 }),
        &[
            "config-invalid config/mode: is \"x\"; must be \"fast\" or \"slow\"",
            "config-invalid config/rate: is 700; must be at most 100",
            "config-invalid config/tags: must have at most 2 entries",
            "config-invalid config/tags/0: is a number; must be null or text",
            "config-invalid config/tags/1: is a number; must be null or text",
            "config-invalid config/tags/2: is a number; must be null or text",
            "config-invalid config/a~1b: the template does not have this field",
            "config-invalid config/c: the template does not have this field",
            "config-invalid config/topic: topic is missing",
        ],
    );
    refused(
        reader(),
        json!({ "topic": "A" }),
        &["config-invalid config/topic: is \"A\"; must fit the pattern ^[a-z/]+$"],
    );
    refused(reader(), json!(null), &["config-invalid config: is null; must be an object"]);
}

#[test]
fn both_versions_are_read_each_in_its_own_way() {
    let pair = |version: &str| {
        json!({
            "$schema": version,
            "items": [{ "type": "string" }, { "type": "integer" }],
            "additionalItems": false,
        })
    };
    for version in [
        "http://json-schema.org/draft-07/schema#",
        "http://json-schema.org/draft-07/schema",
        "https://json-schema.org/draft-07/schema#",
    ] {
        good(pair(version), json!(["x", 1]));
        let found = refusals(pair(version), json!(["x", "y", "z"]));
        assert_eq!(found.len(), 2, "{found:?}");
    }
    // In 2020-12 that is called prefixItems, and items is no list.
    bad_template(pair("https://json-schema.org/draft/2020-12/schema"), "/items: ");
    let newer = json!({ "prefixItems": [{ "type": "string" }], "items": false });
    good(newer.clone(), json!(["x"]));
    assert_eq!(refusals(newer, json!(["x", 1])).len(), 1);
}

#[test]
fn other_versions_are_refused_wherever_they_are_named() {
    for version in [
        "http://json-schema.org/draft-04/schema#",
        "https://json-schema.org/draft/2019-09/schema",
        "http://json-schema.org/schema",
        "http://example.org/own-metaschema",
        "",
    ] {
        bad_template(json!({ "$schema": version }), &format!("/$schema: $schema is \"{version}\""));
        let inner = json!({ "properties": { "x": { "$id": "x", "$schema": version } } });
        bad_template(inner, "/properties/x/$schema: ");
    }
    // A field of the configuration may be called so.
    good(json!({ "properties": { "$schema": { "type": "string" } } }), json!({ "$schema": "x" }));
    good(json!({ "const": { "$schema": "mine" } }), json!({ "$schema": "mine" }));
}

#[test]
fn references_inside_the_template_work() {
    for reference in [
        json!({ "$ref": "#/$defs/port", "$defs": { "port": { "type": "integer" } } }),
        json!({ "$ref": "#port", "$defs": { "x": { "$anchor": "port", "type": "integer" } } }),
        json!({ "$dynamicRef": "#p", "$defs": { "x": { "$dynamicAnchor": "p", "type": "integer" } } }),
        json!({
            "$id": "https://example.org/reader",
            "$ref": "port",
            "$defs": { "x": { "$id": "/port", "type": "integer" } },
        }),
        json!({
            "$schema": "http://json-schema.org/draft-07/schema#",
            "allOf": [{ "$ref": "#/definitions/port" }],
            "definitions": { "port": { "type": "integer" } },
        }),
    ] {
        good(reference.clone(), json!(1));
        refused(reference, json!("x"), &["config-invalid config: is text; must be a whole number"]);
    }
    // One that goes round: a list of lists.
    let lists = json!({ "type": "array", "items": { "$ref": "#" } });
    good(lists.clone(), json!([[], [[]]]));
    assert_eq!(refusals(lists, json!([[], [1]])).len(), 1);
}

#[test]
fn nothing_is_fetched() {
    // Somebody listens there: a fetch would be seen.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let here = tempfile();
    for uri in [
        format!("http://127.0.0.1:{port}/x.json"),
        format!("https://127.0.0.1:{port}/x.json"),
        format!("file://{here}"),
        here.clone(),
        "urn:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6".into(),
        "http://json-schema.org/draft-04/schema#".into(),
    ] {
        for keyword in ["$ref", "$dynamicRef"] {
            bad_template(json!({ keyword: uri }), ": the template refers to ");
        }
        let base = json!({ "$id": format!("http://127.0.0.1:{port}/base/"), "$ref": "x.json" });
        bad_template(base, ": the template refers to ");
        // Not only where it would be used.
        let unused = json!({ "properties": { "x": { "not": { "$ref": uri } } } });
        bad_template(unused, ": the template refers to ");
    }
    let nobody = listener.accept().unwrap_err();
    assert_eq!(nobody.kind(), std::io::ErrorKind::WouldBlock);
}

/// A file that is a good schema.
fn tempfile() -> String {
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../protocol/schema/desired-1.schema.json").into()
}

#[test]
fn what_the_template_lacks_is_named() {
    bad_template(json!({ "$ref": "#/$defs/none" }), ": the template refers to /$defs/none, which");
    bad_template(json!({ "$ref": "#none" }), ": the template refers to the anchor none, which");
    bad_template(json!({ "$id": "::::" }), ": the template refers to what it does not have: ");
}

#[test]
fn what_is_no_schema_is_refused_with_its_place() {
    bad_template(json!(7), ": the template is no JSON Schema: is a number; must be ");
    bad_template(json!({ "type": "strin" }), "/type: the template is no JSON Schema: ");
    let deep = json!({ "properties": { "a~/b": { "maxItems": -1 } } });
    bad_template(deep, "/properties/a~0~1b/maxItems: the template is no JSON Schema: ");
}

#[test]
fn references_that_go_round_at_once_end() {
    for schema in [
        json!({ "$ref": "#" }),
        json!({ "allOf": [{ "$ref": "#" }] }),
        json!({ "anyOf": [{ "$ref": "#" }, { "$ref": "#" }] }),
        json!({ "not": { "$ref": "#" } }),
        json!({ "$dynamicAnchor": "x", "$dynamicRef": "#x" }),
        json!({
            "$ref": "#/$defs/a",
            "$defs": { "a": { "$ref": "#/$defs/b" }, "b": { "$ref": "#/$defs/a" } },
        }),
        json!({ "unevaluatedProperties": { "$ref": "#" }, "if": { "$ref": "#" } }),
    ] {
        // Whatever the verdict is, there is one.
        let found = refusals(schema, json!({ "x": { "y": 1 } }));
        assert!(found.len() <= 1, "{found:?}");
    }
}

#[test]
fn patterns_are_matched_in_linear_time_or_refused() {
    let hostile = "a".repeat(100_000) + "!";
    for pattern in ["^(a+)+$", "^(a|a)*$", "^(a|aa)+$", "^([a-z]+)*$", "(.*)*(.*)*x$"] {
        let found = refusals(json!({ "pattern": pattern }), json!(hostile));
        assert!(found.len() == 1 && found[0].starts_with("config-invalid"), "{pattern} {found:?}");
    }
    for pattern in
        ["(?=a)b", "(?!a)b", "(?<=a)b", "(?<!a)b", "(a)\\1", "(", "((a{1000}){1000}){1000}"]
    {
        let sentence = format!("pattern {} cannot be used: ", json!(pattern));
        bad_template(json!({ "pattern": pattern }), &format!("/pattern: {sentence}"));
        let in_names = json!({ "patternProperties": { pattern: {} } });
        let found = refusals(in_names, json!({ "x": 1 }));
        assert!(found.len() == 1 && found[0].contains(&sentence), "{found:?}");
    }
    good(json!({ "pattern": "^\\d{4}-\\d\\d$" }), json!("2026-11"));
    good(json!({ "pattern": "^\\p{L}+$" }), json!("Grüße"));
}

#[test]
fn formats_are_annotations() {
    for version in
        ["http://json-schema.org/draft-07/schema#", "https://json-schema.org/draft/2020-12/schema"]
    {
        for format in ["ipv4", "date-time", "regex", "uuid", "made-up"] {
            good(json!({ "$schema": version, "format": format }), json!("((nothing"));
        }
        let content = json!({
            "$schema": version,
            "contentEncoding": "base64",
            "contentMediaType": "application/json",
        });
        good(content, json!("%%%"));
    }
}

#[test]
fn odd_numbers_do_no_harm() {
    good(json!({ "multipleOf": 1e-300 }), json!(1e300));
    good(json!({ "multipleOf": 5e-324 }), json!(u64::MAX));
    good(json!({ "minimum": i64::MIN, "maximum": u64::MAX }), json!(u64::MAX));
    assert_eq!(refusals(json!({ "maximum": 1e308 }), json!(1.7e308)).len(), 1);
    assert_eq!(refusals(json!({ "minLength": 1e300 }), json!("x")).len(), 1);
    bad_template(json!({ "multipleOf": 0 }), "/multipleOf: ");
    bad_template(json!({ "maxLength": -1 }), "/maxLength: ");
}

#[test]
fn sizes_have_limits() {
    let list = |n: usize| json!({ "enum": (0..n).collect::<Vec<_>>() });
    good(list(12_000), json!(11_999));
    assert_eq!(refusals(list(12_000), json!(-1)).len(), 1);
    bad_template(list(20_000), ": the template has more than 65536 bytes");
    let nested = |levels: usize, inner: Value, wrap: fn(Value) -> Value| {
        (0..levels).fold(inner, |value, _| wrap(value))
    };
    let not = |value| json!({ "not": value });
    good(nested(30, json!({}), not), json!(1));
    bad_template(nested(40, json!({}), not), ": the template is nested deeper than 32 levels");
    bad_template(nested(1000, json!({}), not), ": the template is nested deeper than 32 levels");
    let list = |value| json!([value]);
    good(json!({}), nested(32, json!(1), list));
    refused(
        json!({}),
        nested(33, json!(1), list),
        &["config-invalid config: the configuration is nested deeper than 32 levels"],
    );
}

#[test]
fn a_long_chain_of_references_is_followed() {
    let mut schema = json!({ "$ref": "#/$defs/0", "$defs": {} });
    for n in 0..1500 {
        schema["$defs"][n.to_string()] = json!({ "$ref": format!("#/$defs/{}", n + 1) });
    }
    schema["$defs"]["1500"] = json!({ "type": "integer" });
    assert!(!is_longer(&schema, MAX_SCHEMA_BYTES));
    // On a stack like that of a main thread.
    let found = std::thread::Builder::new()
        .stack_size(8 << 20)
        .spawn(move || refusals(schema, json!("x")))
        .unwrap();
    assert_eq!(found.join().unwrap().len(), 1);
}

#[test]
fn refusals_have_a_limit_and_templates_are_judged_once() {
    let all_wrong = json!((0..500).map(|n| n.to_string()).collect::<Vec<_>>());
    let schema = json!({ "items": { "type": "integer" } });
    assert_eq!(refusals(schema.clone(), all_wrong.clone()).len(), MAX_REFUSALS);
    let one = check(schema, all_wrong);
    assert_eq!(evaluate_all(&vec![one; 3]).len(), MAX_REFUSALS);
    let many = (0..500).map(|n| (n.to_string(), json!(1)));
    let many = json!(many.collect::<serde_json::Map<_, _>>());
    let closed = json!({ "properties": { "x": true }, "additionalProperties": false });
    assert_eq!(refusals(closed, many.clone()).len(), MAX_REFUSALS);
    let closed = json!({ "additionalProperties": false });
    refused(closed, many, &["config-invalid config: must have no fields"]);
    let bad = check(json!({ "type": "strin" }), json!(1));
    assert_eq!(evaluate_all(&vec![bad; 3]).len(), 1);
    assert_eq!(evaluate_all(&[]), []);
}
