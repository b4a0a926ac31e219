//! `coracle-fleet secret seal`: a value that one gateway alone can open.
//!
//! In: the gateway's public key and id, the secret's name, the value. Out: the sealed text. Nothing
//! is stored and the value is wiped from memory; it is never an argument, because those are seen by
//! every process.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use coracle_core::name::{InvalidName, WorkloadName};
use coracle_protocol::GatewayId;
use coracle_seal::{MAX_SECRET_BYTES, Plain, PublicKey};
use serde_json::json;

const EXAMPLES: &str = "\
Examples:
  coracle secrets key                            on the gateway: prints its public key
  printf %s \"$PASSWORD\" | coracle-fleet secret seal --gateway 3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11 \\
    --key coracle-x25519:BASE64 --name mqtt-password
  coracle-fleet secret seal --gateway UUID --key KEY --name tls-key --file client.key

The text that is printed goes into the order: secrets: { NAME: { sealed: \"TEXT\" } }. It is of no use
to another gateway or under another name. The value is taken byte for byte, a line feed at its end
included, unless --trim is given.

Exit codes: 0 sealed; 1 not sealed; 2 usage.";

/// What to seal, for whom.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct SealArgs {
    /// Id of the gateway
    #[arg(long, value_name = "UUID")]
    gateway: GatewayId,
    /// Its public key, as `coracle secrets key` prints it there
    #[arg(long, value_name = "KEY")]
    key: PublicKey,
    /// Name of the secret in the order
    #[arg(long, value_name = "NAME", value_parser = parse_name)]
    name: String,
    /// File with the value; the standard input if not given
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Leave out one line feed at the end of the value
    #[arg(long)]
    trim: bool,
    /// Print the text as JSON, as an order has it
    #[arg(long)]
    json: bool,
}

/// Secrets are named by the rules for workloads.
fn parse_name(text: &str) -> Result<String, InvalidName> {
    WorkloadName::parse(text).map(|name| name.to_string())
}

/// Seals and prints.
pub(crate) fn run(args: &SealArgs) -> Result<ExitCode> {
    let value = read(args.file.as_deref(), args.trim)?;
    if value.expose().is_empty() {
        bail!("the value is empty; nothing was sealed");
    }
    let sealed = coracle_seal::seal(&args.key, args.gateway, &args.name, &value)?;
    if args.json {
        println!("{}", json!({ args.name.as_str(): { "sealed": sealed } }));
    } else {
        println!("{sealed}");
    }
    Ok(ExitCode::SUCCESS)
}

fn read(path: Option<&Path>, trim: bool) -> Result<Plain> {
    // Room for all of it, so that no copy is left behind by growing. One byte more than allowed, so
    // that sealing refuses it as too large.
    let limit = MAX_SECRET_BYTES + 1;
    let mut bytes = Vec::with_capacity(limit + 1);
    let result = match path {
        Some(path) => File::open(path)
            .and_then(|file| file.take(limit as u64).read_to_end(&mut bytes))
            .with_context(|| format!("cannot read {}", path.display())),
        None => {
            if io::stdin().is_terminal() {
                eprintln!("coracle-fleet: reading the value from the terminal; end it with Ctrl-D");
            }
            io::stdin()
                .lock()
                .take(limit as u64)
                .read_to_end(&mut bytes)
                .context("cannot read the standard input")
        }
    };
    result?;
    if trim && bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    Ok(Plain::new(bytes))
}
