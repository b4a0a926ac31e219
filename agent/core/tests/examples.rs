//! Every example in the documentation is a good order.

#![allow(clippy::unwrap_used, reason = "clippy.toml allows it inside #[test] functions only")]

use std::fs;
use std::path::Path;

use coracle_core::desired::{Reading, parse};
use coracle_core::text;

#[test]
fn every_example_is_a_good_order() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/examples");
    let mut seen = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let file = entry.unwrap().path();
        let document = text::parse(&fs::read(&file).unwrap()).unwrap();
        let accepted = parse(&document, Reading::Strict).unwrap_or_else(|refusals| {
            panic!("{}: {refusals:?}", file.display());
        });
        assert!(!accepted.desired.workloads.is_empty());
        seen += 1;
    }
    assert!(seen > 1, "no examples");
}

#[test]
fn the_order_in_the_documentation_is_a_good_order() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/orders.md");
    let page = fs::read_to_string(file).unwrap();
    let order = page.split("```yaml\n").nth(1).unwrap().split("```").next().unwrap();
    let document = text::parse(order.as_bytes()).unwrap();
    parse(&document, Reading::Strict).unwrap();
}
