//! `coracle-fleet order point`: a signed pointer to a signed order that is larger than a packet.
//!
//! In: a signed order, and where gateways can have it. Out: the pointer, in an envelope of its own.
//! Deliberately not here: putting the order there.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use coracle_protocol::desired::SCHEMA;
use coracle_protocol::envelope::POINTER_PAYLOAD_TYPE;
use coracle_protocol::limits::{MAX_COMMAND_BYTES, MAX_SOURCES};
use coracle_protocol::pointer::{Pointer, Source};

use crate::publish::order::{self, Leads};
use crate::sign;

const EXAMPLES: &str = "\
Examples:
  coracle-fleet order point big.signed --key orders.key --url https://orders.example/big.signed \\
      --out big.pointer
  coracle-fleet order point big.signed --key orders.key --through-broker --out big.pointer
  coracle-fleet order publish big.pointer --serve big.signed --wait 600 --broker …

Gateways ask the places in the order given: the URLs first, then the broker.

Exit codes: 0 signed; 1 a file cannot be used; 2 usage.";

/// To what, and where it is.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct PointArgs {
    /// The signed order; `-` is the standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Private key, as for the order itself; may be repeated
    #[arg(long = "key", value_name = "KEY", required = true)]
    keys: Vec<PathBuf>,
    /// Where gateways can have it, by HTTP or HTTPS; may be repeated
    #[arg(long = "url", value_name = "URL", required_unless_present = "through_broker")]
    urls: Vec<String>,
    /// Gateways can have it through the broker, while `order publish --serve` runs
    #[arg(long)]
    through_broker: bool,
    /// Write the pointer to this file
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Reads the order, signs the pointer, writes it.
pub(crate) fn run(args: &PointArgs) -> Result<ExitCode> {
    let order = order::read(&args.file).with_context(|| args.file.display().to_string())?;
    let Leads::Itself = order.leads else {
        bail!("{}: a pointer cannot lead to a pointer", args.file.display());
    };
    for url in &args.urls {
        if !url.starts_with("https://") && !url.starts_with("http://") {
            bail!("{url:?} is no URL of http or https");
        }
    }
    let urls = args.urls.iter().cloned().map(Source::Url);
    let sources: Vec<_> = urls.chain(args.through_broker.then_some(Source::Broker {})).collect();
    if sources.len() > MAX_SOURCES {
        bail!("{} places; at most {MAX_SOURCES} are allowed", sources.len());
    }
    let pointer = Pointer {
        schema: SCHEMA,
        gateway: order.gateway,
        generation: order.generation,
        digest: order.digest,
        bytes: order.envelope.len() as u64,
        sources,
    };
    let payload = serde_json::to_vec(&pointer).context("the pointer cannot be written")?;
    if payload.len() > MAX_COMMAND_BYTES {
        bail!("a pointer of {} bytes; at most {MAX_COMMAND_BYTES} are allowed", payload.len());
    }
    let envelope = sign::envelope(POINTER_PAYLOAD_TYPE, payload, &args.keys)?.encode();
    match &args.out {
        Some(path) => sign::write(path, &envelope)?,
        None => io::stdout().write_all(&envelope).context("cannot write to the standard output")?,
    }
    let Pointer { gateway, generation, bytes, .. } = pointer;
    eprintln!("signed a pointer to generation {generation} for gateway {gateway}: {bytes} bytes");
    Ok(ExitCode::SUCCESS)
}
