//! The control plane's command line.

mod publish;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Signs and publishes the orders of gateways.
#[derive(Debug, Parser)]
#[command(name = "coracle-fleet", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Orders: what a gateway is to run.
    #[command(subcommand)]
    Order(OrderCommand),
}

#[derive(Debug, Subcommand)]
enum OrderCommand {
    /// Publishes signed orders to their gateways.
    Publish(publish::PublishArgs),
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Order(OrderCommand::Publish(args)) => publish::run(args),
    }
}
