//! Standard output, and JSON on it.

use std::io::{self, Write};

use coracle_protocol::Timestamp;
use serde::Serialize;

use super::failure::Failure;
use crate::clock;

/// Writes all of it, at once.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(|error| Failure::Client { action: "write the output", source: error.into() })
}

/// Indented, for people and `jq` alike.
pub(super) fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    print(&(to_text(serde_json::to_string_pretty(value))? + "\n"))
}

/// One value, one line.
pub(super) fn print_json_line(value: &impl Serialize) -> Result<(), Failure> {
    print(&(to_text(serde_json::to_string(value))? + "\n"))
}

fn to_text(text: Result<String, serde_json::Error>) -> Result<String, Failure> {
    text.map_err(|error| Failure::Client { action: "write JSON", source: error.into() })
}

/// A remark that is not part of the output.
pub(super) fn remark(text: &str) {
    // Whoever closed standard error does not want it.
    drop(writeln!(io::stderr(), "{text}"));
}

/// The wall clock.
pub(super) fn now() -> Timestamp {
    Timestamp::from_unix(clock::wall_now().as_secs())
}
