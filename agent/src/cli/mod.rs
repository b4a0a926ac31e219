//! The command line.
//!
//! In: arguments. Out: text or JSON on standard output, and an [`Outcome`] or a [`Failure`] that
//! `main` turns into an exit code. Every subcommand but `validate` and `logs`
//! speaks the local API only; `logs` reads files.
//! Deliberately not here: starting the daemon, which is above this room.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::config;
use crate::status::Operation;

/// The end of a help text: examples, then the exit codes.
macro_rules! examples {
    ($($line:literal),+) => {
        concat!(
            "Examples:\n",
            $("  ", $line, "\n",)+
            "\nExit codes:\n",
            "  0  good\n",
            "  1  the answer is no: invalid, refused, not converged; or the agent failed\n",
            "  2  usage: wrong arguments, or a file or a program that cannot be used\n",
            "  3  the agent cannot be reached, or does not answer"
        )
    };
}

pub mod logging;

mod apply;
mod artifact;
mod asking;
mod client;
mod commands;
mod config_file;
mod events;
mod failure;
mod identity;
mod input;
mod interrupts;
mod link;
mod logs;
mod operate;
mod output;
mod progress;
mod ps;
mod purge;
mod secrets;
mod service;
mod status;
mod style;
mod text;
mod validate;
mod volumes;
mod waiting;
mod watching;

pub use failure::Failure;

/// Keeps this gateway running the software it was ordered to run.
#[derive(Debug, Parser)]
#[command(name = "coracle", version, max_term_width = 100, after_help = examples!(
    "coracle status                what was ordered, what runs, what does not and why",
    "coracle events --follow       watch what happens",
    "coracle logs web --follow     what the containers of web say",
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
    /// Run the agent itself: the daemon that all other commands but validate and logs talk to
    #[command(after_help = examples!(
        "coracle agent",
        "coracle agent --config ./coracle.toml --log-level debug"
    ))]
    Agent(AgentArgs),
    /// Install the identity that this gateway was given in the factory; does nothing if there is one
    #[command(after_help = PROVISION_HELP)]
    Provision(ProvisionArgs),
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
    /// Show what containers said, also while the agent is stopped; of their newest run, all that is kept
    #[command(after_help = examples!(
        "coracle logs                        which containers have logs",
        "coracle logs web                    all containers of the workload web",
        "coracle logs web.0.main --previous  the run before: why did it end?",
        "coracle logs web --tail 20 --follow",
        "coracle logs web --since 10m --stream stderr --timestamps"
    ))]
    Logs(logs::Args),
    /// Let workloads run again that were stopped or drained by hand
    #[command(after_help = examples!(
        "coracle start web",
        "coracle start --wait 60 web db        until they are as ordered"
    ))]
    Start(operate::Args),
    /// Stop workloads at once until they are started by hand: over a reboot and new orders, too
    #[command(after_help = examples!(
        "coracle stop web",
        "coracle stop --wait 30 web && fsck /dev/sda1"
    ))]
    Stop(operate::Args),
    /// Stop workloads as `stop` does, but first let them go on without new work for as long as ordered
    #[command(after_help = examples!(
        "coracle drain web",
        "coracle drain --wait 120 web          until nothing of it runs"
    ))]
    Drain(operate::Args),
    /// Make the replicas of workloads anew, a few at a time as in an update
    #[command(after_help = examples!(
        "coracle restart web",
        "coracle restart --wait 120 web        until all of them are others, and ready"
    ))]
    Restart(operate::Args),
    /// Tell what the fleet asked of this gateway, and what became of it
    #[command(after_help = examples!(
        "coracle commands",
        "coracle commands --json | jq -r '.commands[] | select(.state == \"failed\").message'"
    ))]
    Commands(commands::Args),
    /// Tell how the link to the broker is, and what it has carried today
    #[command(after_help = examples!(
        "coracle link",
        "coracle link --json | jq '.today.kinds[]'"
    ))]
    Link(link::Args),
    /// List the named volumes with size, last use and users; remove those that nobody uses
    #[command(after_help = examples!(
        "coracle volumes",
        "coracle volumes --json | jq -r '.volumes[] | select(.used_by == []).name'",
        "coracle volumes rm old-data"
    ))]
    Volumes(volumes::Args),
    /// Artifacts: list those that are installed, install and remove them by hand
    #[command(subcommand, after_help = examples!(
        "coracle artifact list",
        "coracle artifact install org.example:gauge:1.4.2",
        "coracle artifact remove org.example:gauge:1.4.1"
    ))]
    Artifact(artifact::Command),
    /// Native services: list those that stand here, and act on one by its coordinate
    #[command(subcommand, after_help = examples!(
        "coracle service list",
        "coracle service restart a.gauge.alice.line-1"
    ))]
    Service(service::Command),
    /// Remove the runtime directories of native services, of one or of all of a workload
    #[command(after_help = examples!(
        "coracle purge gauge                        asks for the name before it removes anything",
        "coracle stop --wait 30 gauge && coracle purge --yes gauge",
        "coracle purge a.gauge.alice.line-1         only of one service"
    ))]
    Purge(purge::Args),
    /// Secrets: what others need to seal them for this gateway
    #[command(subcommand, after_help = examples!("coracle secrets key"))]
    Secrets(secrets::Command),
    /// Identity of workloads: what others need to verify their tokens
    #[command(subcommand, after_help = examples!("coracle identity keys > hall-3.jwks.json"))]
    Identity(identity::Command),
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

const PROVISION_HELP: &str = "\
An identity is a directory with gateway.toml (gateway = \"UUID\" and [link] with host and port),
ca.pem, cert.pem, key.pem, orders.pub (whose orders are obeyed), and orders.json (signed orders to
start from, if there are any). As credentials of systemd the names begin with `coracle.`.
Everything is checked before anything is installed.

Examples:
  coracle provision                         from systemd's credentials, or the factory partition
  coracle provision --from /media/usb/gw7   from a USB stick
  coracle provision --from DIR --replace    this gateway becomes another one

Exit codes:
  0  provisioned, now or before; or there is nothing to provision from
  1  refused, with every reason; what was installed before is as it was
  2  usage: wrong arguments";

/// Arguments of `coracle provision`.
#[derive(Debug, clap::Args)]
pub struct ProvisionArgs {
    /// Configuration file, TOML
    #[arg(long, value_name = "PATH", default_value = config::DEFAULT_PATH)]
    pub config: PathBuf,
    /// Directory with an identity; may be given more than once, the first that has one counts
    #[arg(long, value_name = "DIR")]
    pub from: Vec<PathBuf>,
    /// Take the place of what is installed, be it another gateway's
    #[arg(long)]
    pub replace: bool,
    /// Print what was done as JSON
    #[arg(long)]
    pub json: bool,
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
        ClientCommand::Link(args) => link::run(socket, &args),
        ClientCommand::Logs(args) => logs::run(&args),
        ClientCommand::Start(args) => operate::run(socket, Operation::Start, &args),
        ClientCommand::Stop(args) => operate::run(socket, Operation::Stop, &args),
        ClientCommand::Drain(args) => operate::run(socket, Operation::Drain, &args),
        ClientCommand::Restart(args) => operate::run(socket, Operation::Restart, &args),
        ClientCommand::Commands(args) => commands::run(socket, &args),
        ClientCommand::Volumes(args) => volumes::run(socket, &args),
        ClientCommand::Artifact(command) => artifact::run(socket, &command),
        ClientCommand::Service(command) => service::run(socket, &command),
        ClientCommand::Purge(args) => purge::run(socket, &args),
        ClientCommand::Secrets(command) => secrets::run(socket, &command),
        ClientCommand::Identity(command) => identity::run(socket, &command),
    }
}
