//! `coracle-fleet keygen`: a pair of keys, as two files.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use serde_json::json;

use crate::key_file;

/// Name of the files when only a directory is given.
const DEFAULT_NAME: &str = "orders";

const EXAMPLES: &str = "\
Examples:
  coracle-fleet keygen --out keys/            keys/orders.key and keys/orders.pub
  coracle-fleet keygen --out keys/plant-7     keys/plant-7.key and keys/plant-7.pub

The .key file signs orders and stays secret. The .pub file goes to the gateways, into trust.keys of
/etc/coracle/coracle.toml. `openssl pkey` reads both.

Exit codes: 0 made; 1 not made; 2 usage.";

/// Where to.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct KeygenArgs {
    /// Directory, or path to which .key and .pub are added
    #[arg(long, value_name = "DIR|PREFIX")]
    out: PathBuf,
    /// Replace keys that are there; gateways that trust only them then obey nobody
    #[arg(long)]
    force: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Makes the keys and prints where they are.
pub(crate) fn run(args: &KeygenArgs) -> Result<ExitCode> {
    let is_directory = args.out.is_dir() || args.out.to_string_lossy().ends_with('/');
    let prefix = if is_directory { args.out.join(DEFAULT_NAME) } else { args.out.clone() };
    let with = |extension: &str| {
        let mut path = prefix.clone().into_os_string();
        path.push(extension);
        PathBuf::from(path)
    };
    let (private, public) = (with(".key"), with(".pub"));
    let key = key_file::generate(&private, &public, args.force)?;
    if args.json {
        println!("{}", json!({ "key_id": key.id(), "private": private, "public": public }));
    } else {
        println!("key id       {}", key.id());
        println!("private key  {}  (keep it secret)", private.display());
        println!("public key   {}  (for trust.keys of the gateways)", public.display());
    }
    Ok(ExitCode::SUCCESS)
}
