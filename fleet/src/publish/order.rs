//! Signed orders read from files: checked as far as publishing needs.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use coracle_protocol::limits::MAX_ENVELOPE_BYTES;
use coracle_protocol::{DesiredState, Envelope, GatewayId};

/// One signed order, ready to be published.
#[derive(Debug)]
pub(super) struct Order {
    /// Where it was read from.
    pub(super) file: PathBuf,
    pub(super) gateway: GatewayId,
    pub(super) generation: u64,
    /// What is published, byte for byte.
    pub(super) envelope: Vec<u8>,
    /// SHA-256 of the envelope in hexadecimal, as reports name it.
    pub(super) digest: String,
}

/// Reads all files.
///
/// # Errors
/// A file cannot be read, is too large or is not a signed order; or two are for one gateway, of
/// which only the last would stay.
pub(super) fn read_all(files: &[PathBuf]) -> anyhow::Result<Vec<Order>> {
    let mut orders = Vec::new();
    let mut by_gateway: BTreeMap<GatewayId, &Path> = BTreeMap::new();
    for file in files {
        let order = read(file).with_context(|| format!("{}", file.display()))?;
        if let Some(earlier) = by_gateway.insert(order.gateway, file) {
            let (earlier, file) = (earlier.display(), file.display());
            bail!("{earlier} and {file} are both for gateway {}: give one of them", order.gateway);
        }
        orders.push(order);
    }
    Ok(orders)
}

fn read(file: &Path) -> anyhow::Result<Order> {
    let bytes = if file == Path::new("-") {
        read_limited(std::io::stdin().lock())
    } else {
        File::open(file).and_then(read_limited)
    };
    parse(file, &bytes.context("cannot be read")?)
}

fn parse(file: &Path, bytes: &[u8]) -> anyhow::Result<Order> {
    let envelope = bytes.trim_ascii();
    let decoded = Envelope::decode(envelope).map_err(|refusal| anyhow::anyhow!("{refusal}"))?;
    let desired: DesiredState = serde_json::from_slice(&decoded.payload)
        .context("the signed payload is not a desired state")?;
    Ok(Order {
        file: file.into(),
        gateway: desired.gateway,
        generation: desired.generation,
        envelope: envelope.into(),
        digest: sha256_hex(envelope),
    })
}

/// One byte more than an envelope and a little white space may have, so that a larger file is
/// refused and not cut.
fn read_limited(reader: impl Read) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(MAX_ENVELOPE_BYTES as u64 + 64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn sha256_hex(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use coracle_protocol::envelope::{DESIRED_PAYLOAD_TYPE, Signature};

    const DESIRED: &str = r#"{"schema":1,"gateway":"3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11",
        "generation":7,"workloads":[]}"#;

    fn signed(payload: &str) -> Vec<u8> {
        let signatures = vec![Signature { keyid: "k".into(), sig: vec![0; 64] }];
        let payload = payload.as_bytes().to_vec();
        Envelope { payload_type: DESIRED_PAYLOAD_TYPE.into(), payload, signatures }.encode()
    }

    fn check(bytes: &[u8], expected: &str) {
        let error = parse(Path::new("x"), bytes).unwrap_err();
        assert!(format!("{error:#}").contains(expected), "{error:#}");
    }

    #[test]
    fn reads_gateway_and_generation_and_leaves_out_white_space_at_the_ends() {
        let envelope = signed(DESIRED);
        let order = parse(Path::new("x"), &[&envelope[..], b"\n"].concat()).unwrap();
        assert_eq!(order.generation, 7);
        assert_eq!(order.envelope, envelope);
        assert_eq!(order.digest.len(), 64);
    }

    #[test]
    fn what_is_no_signed_order_is_refused_before_connecting() {
        check(b"nonsense", "not a signed order");
        check(DESIRED.as_bytes(), "not a signed order");
        check(&signed("{}"), "the signed payload is not a desired state: missing field");
        check(&vec![b'x'; MAX_ENVELOPE_BYTES + 1], "at most");
    }
}
