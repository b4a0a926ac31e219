//! The control plane's command line.

mod key_file;
mod keygen;
mod sign;

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
    /// Make a pair of keys: the private one signs orders, gateways trust the public one.
    Keygen(keygen::KeygenArgs),
    /// Orders: what a gateway is to run.
    #[command(subcommand)]
    Order(OrderCommand),
}

#[derive(Debug, Subcommand)]
enum OrderCommand {
    /// Check a desired state strictly and sign it.
    Sign(sign::SignArgs),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Keygen(args) => keygen::run(&args),
        Command::Order(OrderCommand::Sign(args)) => sign::run(&args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("coracle-fleet: {error:#}");
        ExitCode::FAILURE
    })
}
