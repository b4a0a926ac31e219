//! Documents of every released form, read and written again without a change. The files stay for
//! ever: a gateway in the field may send or hold any of them.

#![allow(clippy::unwrap_used, reason = "tests end at the first surprise")]

use std::fs;
use std::path::{Path, PathBuf};

use coracle_protocol::event::Events;
use coracle_protocol::{DesiredState, Envelope, Health, Presence, ReportedState, desired};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

fn golden(prefix: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut files: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.file_name().unwrap().to_str().unwrap().starts_with(prefix));
    assert!(!files.is_empty(), "no golden files for {prefix}");
    files
}

fn reads_and_writes_alike<T: Serialize + DeserializeOwned>(prefix: &str) {
    for file in golden(prefix) {
        let text = fs::read_to_string(&file).unwrap();
        let document: T = serde_json::from_str(&text).unwrap();
        let written = serde_json::to_value(&document).unwrap();
        let read: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(written, read, "{}", file.display());
    }
}

#[test]
fn desired_states() {
    reads_and_writes_alike::<DesiredState>("desired-");
}

#[test]
fn reported_states() {
    reads_and_writes_alike::<ReportedState>("reported-");
}

#[test]
fn presences() {
    reads_and_writes_alike::<Presence>("presence-");
}

#[test]
fn health() {
    reads_and_writes_alike::<Health>("health-");
}

#[test]
fn events() {
    reads_and_writes_alike::<Events>("events-");
}

#[test]
fn envelopes() {
    for file in golden("envelope-") {
        let bytes = fs::read(&file).unwrap();
        let envelope = Envelope::decode(bytes.trim_ascii()).unwrap();
        assert_eq!(envelope.encode(), bytes.trim_ascii(), "{}", file.display());
    }
}

#[test]
fn unknown_fields_of_newer_versions_are_tolerated() {
    for file in golden("desired-") {
        let mut document: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
        document["from-the-future"] = Value::Bool(true);
        serde_json::from_value::<DesiredState>(document).unwrap();
    }
}

#[test]
fn the_checked_in_schema_is_the_one_of_the_types() {
    assert_eq!(
        desired::generate_json_schema(),
        desired::JSON_SCHEMA,
        "the types changed; write the schema anew: cargo run -p coracle-protocol --features schema \
         --example desired-schema > protocol/schema/desired-1.schema.json"
    );
}
