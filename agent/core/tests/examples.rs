//! What the documentation says of orders: every example is a good order, and nothing is left out.

#![allow(clippy::unwrap_used, reason = "clippy.toml allows it inside #[test] functions only")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use coracle_core::desired::{Reading, parse};
use coracle_core::text;
use coracle_protocol::desired::JSON_SCHEMA;
use serde_json::Value;

fn docs(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(file)
}

fn page() -> String {
    fs::read_to_string(docs("orders.md")).unwrap()
}

/// A good order, whose configurations satisfy their templates.
fn check(order: &str, what: &str) {
    let document = text::parse(order.as_bytes()).unwrap_or_else(|no| panic!("{what}: {no:?}"));
    let accepted = parse(&document, Reading::Strict)
        .unwrap_or_else(|refusals| panic!("{what}: {refusals:#?}"));
    assert!(!accepted.desired.workloads.is_empty(), "{what}");
}

#[test]
fn every_example_is_a_good_order() {
    let mut seen = 0;
    for entry in fs::read_dir(docs("examples")).unwrap() {
        let file = entry.unwrap().path();
        // Beside an order lies what it needs on the gateway, such as a policy.
        if file.extension().is_some_and(|extension| extension == "yaml") {
            check(&fs::read_to_string(&file).unwrap(), &file.display().to_string());
            seen += 1;
        }
    }
    assert!(seen >= 5, "only {seen} examples");
}

#[test]
fn every_whole_order_in_the_documentation_is_a_good_order() {
    let page = page();
    let blocks = page.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let (whole, parts): (Vec<_>, Vec<_>) = blocks.partition(|block| block.starts_with("schema: 1"));
    assert!(whole.len() >= 2, "only {} whole orders", whole.len());
    for order in whole {
        check(order, order);
    }
    // A part of an order is YAML at least, with no key twice.
    for part in parts {
        text::parse(part.as_bytes()).unwrap_or_else(|no| panic!("{part}: {no:?}"));
    }
}

/// Cells of the first column of every table, without the marks around code.
fn first_cells(page: &str) -> BTreeSet<&str> {
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `"));
    let cells = rows.filter_map(|row| row.split(" | ").next());
    cells.flat_map(|cell| cell.split("`, `")).map(|name| name.trim_matches('`')).collect()
}

#[test]
fn every_refusal_code_is_explained() {
    let source = include_str!("../../../protocol/src/refusal.rs");
    let codes = source.split(": Code = Code::new(\"").skip(1);
    let codes: BTreeSet<_> = codes.map(|rest| rest.split('"').next().unwrap()).collect();
    assert!(codes.len() > 30, "{codes:?}");
    let page = page();
    let explained = first_cells(page.split("## What a gateway refuses").nth(1).unwrap());
    assert_eq!(explained, codes, "explained, and in the source");
}

#[test]
fn every_field_is_explained() {
    let schema: Value = serde_json::from_str(JSON_SCHEMA).unwrap();
    let definitions = schema["$defs"].as_object().unwrap().values();
    let (page, native) = (page(), include_str!("../../../docs/native-services.md"));
    let mut explained = first_cells(&page);
    explained.extend(first_cells(native));
    for definition in definitions.chain([&schema]) {
        let fields = definition["properties"].as_object().into_iter().flatten();
        for (field, _) in fields {
            // Such as `stop.signal` and `mounts[].name`.
            let mut parts = explained.iter().flat_map(|name| name.split('.'));
            let is_explained = parts.any(|part| part.trim_end_matches("[]") == field);
            assert!(is_explained, "{field} of {}", definition["description"]);
        }
    }
}

/// Orders as they are met: what people run on gateways, in the forms that they write.
#[test]
fn orders_of_the_real_world_are_good() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/orders");
    let mut seen = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let file = entry.unwrap().path();
        let document = text::parse(&fs::read(&file).unwrap()).unwrap();
        if let Err(refusals) = parse(&document, Reading::Strict) {
            panic!("{}: {refusals:#?}", file.display());
        }
        seen += 1;
    }
    assert!(seen >= 8, "{seen} orders");
}
