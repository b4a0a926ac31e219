//! `coracle secrets`: what others need to give this gateway secrets.

use std::path::PathBuf;

use clap::Subcommand;

use super::client::Client;
use super::failure::Failure;
use super::{Outcome, output};
use crate::status::SecretsKey;

/// What about secrets.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print the public key that secrets for this gateway are sealed with
    #[command(after_help = examples!(
        "coracle secrets key",
        "coracle secrets key --json | jq -r .gateway"
    ))]
    Key(KeyArgs),
}

/// Arguments of `coracle secrets key`.
#[derive(Debug, clap::Args)]
pub struct KeyArgs {
    /// Print the key and the gateway's id as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(socket: PathBuf, command: &Command) -> Result<Outcome, Failure> {
    let Command::Key(args) = command;
    let key: SecretsKey = Client::new(socket)?.get("/v1/secrets/key")?;
    if args.json {
        output::print_json(&key)?;
    } else {
        output::print(&format!("{}\n", key.key))?;
    }
    Ok(Outcome::Good)
}
