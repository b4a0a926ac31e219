//! `coracle-fleet order sign`: a desired state, checked strictly, in a signed envelope.
//!
//! In: JSON or YAML. Out: the DSSE envelope, or every reason against it. Deliberately not here:
//! whether the generation is newer than what the gateway has; the gateway alone knows.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use coracle_core::desired::{self, Accepted, Reading};
use coracle_core::text::{self, MAX_TEXT_BYTES};
use coracle_protocol::Refusal;
use coracle_protocol::envelope::{DESIRED_PAYLOAD_TYPE, Envelope, Signature, too_large};
use coracle_protocol::limits::{MAX_DOCUMENT_BYTES, MAX_SIGNATURES};
use serde_json::{Value, json};

use crate::key_file::SigningKey;

const EXAMPLES: &str = "\
Examples:
  coracle-fleet order sign web.yaml --key keys/orders.key --out web.signed
  coracle-fleet order sign - --key a.key --key b.key < web.json > web.signed

The signed order goes to the standard output or the file, what was signed to the standard error.
Refusals are printed one a line as `path: message [code]`.

Exit codes: 0 signed; 1 the document is refused or a file cannot be used; 2 usage.";

/// What to sign, and with which keys.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct SignArgs {
    /// Desired state, JSON or YAML; `-` is the standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Private key, as `keygen` or `openssl genpkey -algorithm ed25519` writes it; may be repeated
    #[arg(long = "key", value_name = "KEY", required = true)]
    keys: Vec<PathBuf>,
    /// Write the signed order to this file
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Print what was signed, or the refusals, as JSON
    #[arg(long)]
    json: bool,
}

/// Reads, checks, signs and writes.
pub(crate) fn run(args: &SignArgs) -> Result<ExitCode> {
    let text = read(&args.file)?;
    let (payload, accepted) = match check(&text) {
        Ok(checked) => checked,
        Err(refusals) => {
            print_refusals(&refusals, args.json);
            return Ok(ExitCode::FAILURE);
        }
    };
    let envelope = envelope(DESIRED_PAYLOAD_TYPE, payload, &args.keys)?;
    let bytes = envelope.encode();
    match &args.out {
        Some(path) => write(path, &bytes)?,
        None => io::stdout().write_all(&bytes).context("cannot write to the standard output")?,
    }
    print_signed(&envelope, &accepted, bytes.len(), args.json);
    Ok(ExitCode::SUCCESS)
}

/// The document as it is signed, if it passes every rule.
fn check(text: &[u8]) -> Result<(Vec<u8>, Accepted), Vec<Refusal>> {
    let document: Value = text::parse(text).map_err(|refusal| vec![refusal])?;
    let payload = serde_json::to_vec(&document).expect("a value is plain JSON");
    if payload.len() > MAX_DOCUMENT_BYTES {
        return Err(vec![too_large("desired state", payload.len(), MAX_DOCUMENT_BYTES)]);
    }
    let accepted = desired::parse(&document, Reading::Strict)?;
    Ok((payload, accepted))
}

/// A payload in its envelope, signed with every key.
///
/// # Errors
/// A key cannot be used, or is given twice; there are too many.
pub(crate) fn envelope(payload_type: &str, payload: Vec<u8>, keys: &[PathBuf]) -> Result<Envelope> {
    if keys.len() > MAX_SIGNATURES {
        bail!("{} keys; an envelope carries at most {MAX_SIGNATURES} signatures", keys.len());
    }
    let payload_type = payload_type.into();
    let mut envelope = Envelope { payload_type, payload, signatures: Vec::new() };
    let signed = envelope.signed_bytes();
    for path in keys {
        let key = SigningKey::read(path)?;
        let keyid = key.public()?.id();
        if envelope.signatures.iter().any(|signature| signature.keyid == keyid) {
            bail!("key file {}: the key {keyid} was given twice", path.display());
        }
        envelope.signatures.push(Signature { keyid, sig: key.sign(&signed) });
    }
    Ok(envelope)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    // One byte more than allowed, so that what follows refuses it as too large.
    let limit = MAX_TEXT_BYTES as u64 + 1;
    let result = if path == Path::new("-") {
        io::stdin().lock().take(limit).read_to_end(&mut text)
    } else {
        File::open(path).and_then(|file| file.take(limit).read_to_end(&mut text))
    };
    result.with_context(|| format!("cannot read {}", path.display()))?;
    Ok(text)
}

/// Whole or not at all.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    fs::write(&new, bytes)
        .and_then(|()| fs::rename(&new, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

fn print_refusals(refusals: &[Refusal], as_json: bool) {
    if as_json {
        println!("{}", json!({ "refusals": refusals }));
    } else {
        refusals.iter().for_each(|refusal| eprintln!("{refusal}"));
    }
}

fn print_signed(envelope: &Envelope, accepted: &Accepted, size: usize, as_json: bool) {
    let gateway = accepted.gateway;
    let generation = accepted.desired.generation;
    let keys: Vec<_> = envelope.signatures.iter().map(|s| s.keyid.as_str()).collect();
    if as_json {
        let signed =
            json!({ "gateway": gateway, "generation": generation, "keys": keys, "bytes": size });
        eprintln!("{signed}");
    } else {
        let keys = keys.join(", ");
        eprintln!(
            "signed generation {generation} for gateway {gateway} with key {keys}: {size} bytes"
        );
    }
}
