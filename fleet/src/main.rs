//! The control plane's command line.

mod broker;
mod command;
mod key_file;
mod keygen;
mod point;
mod publish;
mod seal;
mod sign;

use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};

/// Signs and publishes the orders of gateways.
#[derive(Debug, Parser)]
#[command(
    name = "coracle-fleet",
    version,
    max_term_width = 100,
    after_help = "\
Examples:
  coracle-fleet keygen --out orders
  coracle-fleet order sign web.yaml --key orders.key --out web.signed
  coracle-fleet order publish web.signed --broker broker.example:8883 \\
    --ca ca.pem --cert fleet.pem --key fleet.key --wait 60
  coracle-fleet command --gateway UUID --sign-key orders.key --broker broker.example \
    --ca ca.pem --cert fleet.pem --key fleet.key restart web
  coracle-fleet secret seal --gateway UUID --key KEY --name mqtt-password < password

Exit codes: 0 good; 1 the answer is no; 2 usage; 3 the broker cannot be reached."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Makes a pair of keys: the private one signs orders, gateways trust the public one.
    Keygen(keygen::KeygenArgs),
    /// Asks something of a gateway, and follows it to its end.
    #[command(name = "command")]
    Ask(Box<command::CommandArgs>),
    /// Orders: what a gateway is to run.
    #[command(subcommand)]
    Order(OrderCommand),
    /// Secrets: values that one gateway alone can open.
    #[command(subcommand)]
    Secret(SecretCommand),
}

#[derive(Debug, Subcommand)]
enum SecretCommand {
    /// Seals a value for one gateway and prints the text for its order.
    Seal(seal::SealArgs),
}

#[derive(Debug, Subcommand)]
enum OrderCommand {
    /// Checks a desired state strictly and signs it.
    Sign(sign::SignArgs),
    /// Signs a pointer to a signed order that is larger than a packet.
    Point(point::PointArgs),
    /// Publishes signed orders to their gateways.
    Publish(publish::PublishArgs),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Keygen(args) => keygen::run(&args),
        Command::Ask(args) => Ok(command::run(&args)),
        Command::Order(OrderCommand::Sign(args)) => sign::run(&args),
        Command::Order(OrderCommand::Point(args)) => point::run(&args),
        Command::Order(OrderCommand::Publish(args)) => Ok(publish::run(args)),
        Command::Secret(SecretCommand::Seal(args)) => seal::run(&args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("coracle-fleet: {error:#}");
        ExitCode::FAILURE
    })
}

/// Says what is wrong and gives the exit code.
fn fail(error: &anyhow::Error, code: u8) -> ExitCode {
    eprintln!("error: {error:#}");
    ExitCode::from(code)
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().context("cannot start the runtime")
}
