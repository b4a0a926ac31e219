//! `coracle identity`: what others need to believe this gateway's workloads.

use std::path::PathBuf;

use clap::Subcommand;

use super::client::Client;
use super::failure::Failure;
use super::{Outcome, output};

/// What about the identity of workloads.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print the public keys that the tokens of this gateway's workloads are verified with, a JWK Set
    #[command(after_help = examples!(
        "coracle identity keys > hall-3.jwks.json",
        "coracle identity keys | jq -r '.keys[].kid'"
    ))]
    Keys,
}

pub(super) fn run(socket: PathBuf, command: &Command) -> Result<Outcome, Failure> {
    let Command::Keys = command;
    let keys: serde_json::Value = Client::new(socket)?.get("/v1/identity/keys")?;
    output::print_json(&keys)?;
    Ok(Outcome::Good)
}
