//! Asking whoever sits at the terminal before something is lost.

use std::io::{self, BufRead, IsTerminal};

use super::failure::Failure;
use super::output;

/// Whether there is somebody to ask.
pub(super) fn is_possible() -> bool {
    io::stdin().is_terminal()
}

/// Whether the answer to the question is this name.
pub(super) fn agreed(question: &str, name: &str) -> Result<bool, Failure> {
    output::remark(question);
    let mut line = String::new();
    io::stdin()
        .lock()
        .read_line(&mut line)
        .map_err(|error| Failure::Client { action: "read the answer", source: error.into() })?;
    Ok(line.trim() == name)
}
