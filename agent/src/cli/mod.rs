//! The command line.
//!
//! In: arguments. Out: text or JSON on standard output, and an [`Outcome`] or a [`Failure`] that
//! `main` turns into an exit code. Every subcommand but `validate` speaks the local API only.
//! Deliberately not here: starting the daemon, which is above this room.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::config;

pub mod logging;

mod apply;
mod client;
mod events;
mod failure;
mod input;
mod output;
mod ps;
mod status;
mod style;
mod text;
mod validate;

pub use failure::Failure;

/// The end of a help text: examples, then the exit codes.
macro_rules! examples {
    ($($line:literal),+) => {
        concat!(
            "Examples:\n",
            $("  ", $line, "\n",)+
            "\nExit codes:\n",
            "  0  good\n",
            "  1  the answer is no: invalid, refused, not converged; or the agent failed\n",
            "  2  usage: wrong arguments, or a file that cannot be read\n",
            "  3  the agent cannot be reached, or does not answer"
        )
    };
}

/// Keeps this gateway running the software it was ordered to run.
#[derive(Debug, Parser)]
#[command(name = "coracle", version, max_term_width = 100, after_help = examples!(
    "coracle status                what was ordered, what runs, what does not and why",
    "coracle events --follow       watch what happens",
    "coracle validate web.yaml     check an order before it is signed",
    "coracle apply web.signed  put a signed order into force"
))]
pub struct Cli {
    /// Socket of the agent's local API
    #[arg(long, global = true, value_name = "PATH", env = "CORACLE_SOCKET")]
    #[arg(default_value = "/run/coracle/api.sock")]
    pub socket: PathBuf,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the agent itself: the daemon that all other commands but validate talk to
    #[command(after_help = examples!(
        "coracle agent",
        "coracle agent --config ./coracle.toml --log-level debug"
    ))]
    Agent(AgentArgs),
    /// Walk through a store's file; the agent does so in a child before it opens it
    #[command(hide = true)]
    StoreCheck {
        /// The file.
        path: PathBuf,
    },
    /// What a client of the agent does.
    #[command(flatten)]
    Client(ClientCommand),
}

/// What a client of the agent does.
#[derive(Debug, Subcommand)]
pub enum ClientCommand {
    /// Check an order, signed or not, without the agent: prints every reason against it
    #[command(after_help = examples!(
        "coracle validate web.yaml",
        "make-orders | coracle validate -",
        "coracle validate --json web.yaml | jq '.refusals[].path'"
    ))]
    Validate(validate::Args),
    /// Give the agent a signed order
    #[command(after_help = examples!(
        "coracle apply web.signed",
        "coracle apply --wait 120 /media/usb/web.signed"
    ))]
    Apply(apply::Args),
    /// Tell what was ordered, what runs, what does not and why, and when the next try is
    #[command(after_help = examples!(
        "coracle status",
        "coracle status --check >/dev/null || echo 'not converged'",
        "coracle status --json | jq -r .reported.phase"
    ))]
    Status(status::Args),
    /// List every replica with its process id, restarts, last exit and image
    #[command(after_help = examples!(
        "coracle ps",
        "coracle ps --json | jq '.[] | {name, phase}'"
    ))]
    Ps(ps::Args),
    /// Tell what happened lately, oldest first; only as far back as the agent's start
    #[command(after_help = examples!(
        "coracle events",
        "coracle events --follow",
        "coracle events --json --after 120"
    ))]
    Events(events::Args),
}

/// Arguments of `coracle agent`.
#[derive(Debug, clap::Args)]
pub struct AgentArgs {
    /// Configuration file, TOML
    #[arg(long, value_name = "PATH", default_value = config::DEFAULT_PATH)]
    pub config: PathBuf,
    /// How it logs.
    #[command(flatten)]
    pub log: logging::Args,
}

/// What a command that could do its work found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Exit code 0.
    Good,
    /// Exit code 1: the answer is no.
    No,
}

impl From<bool> for Outcome {
    fn from(good: bool) -> Self {
        if good { Self::Good } else { Self::No }
    }
}

/// Does it.
///
/// # Errors
/// The answer could not be had, or not be written.
pub fn run(socket: PathBuf, command: ClientCommand) -> Result<Outcome, Failure> {
    match command {
        ClientCommand::Validate(args) => validate::run(&args),
        ClientCommand::Apply(args) => apply::run(socket, &args),
        ClientCommand::Status(args) => status::run(socket, &args),
        ClientCommand::Ps(args) => ps::run(socket, &args),
        ClientCommand::Events(args) => events::run(socket, &args),
    }
}
