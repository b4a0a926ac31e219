//! Signed orders, and pointers to them, read from files: checked as far as publishing needs.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use coracle_protocol::envelope::POINTER_PAYLOAD_TYPE;
use coracle_protocol::limits::{MAX_ENVELOPE_BYTES, MAX_PUBLISHED_BYTES};
use coracle_protocol::pointer::Pointer;
use coracle_protocol::{DesiredState, Envelope, GatewayId};

/// Where an envelope leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Leads {
    /// It is the order.
    Itself,
    /// To the order with this digest.
    To(String),
}

/// One signed order, or a pointer to one.
#[derive(Debug)]
pub(crate) struct Order {
    /// Where it was read from.
    pub(crate) file: PathBuf,
    pub(crate) gateway: GatewayId,
    pub(crate) generation: u64,
    /// What is published, byte for byte.
    pub(crate) envelope: Vec<u8>,
    /// SHA-256 of the envelope in hexadecimal, as reports name it.
    pub(crate) digest: String,
    pub(crate) leads: Leads,
}

impl Order {
    /// The digests by which reports may name it.
    pub(crate) fn digests(&self) -> Vec<String> {
        match &self.leads {
            Leads::Itself => vec![self.digest.clone()],
            Leads::To(order) => vec![self.digest.clone(), order.clone()],
        }
    }
}

/// Reads signed orders that gateways may ask for in pieces.
///
/// # Errors
/// See [`read_all`].
pub(crate) fn read_served(files: &[PathBuf]) -> anyhow::Result<Vec<Order>> {
    let read = |file: &PathBuf| read(file).with_context(|| format!("{}", file.display()));
    files.iter().map(read).collect()
}

/// Reads all files.
///
/// # Errors
/// A file cannot be read, is too large or is not a signed order; or two are for one gateway, of
/// which only the last would stay.
pub(crate) fn read_all(files: &[PathBuf]) -> anyhow::Result<Vec<Order>> {
    let mut orders = Vec::new();
    let mut by_gateway: BTreeMap<GatewayId, &Path> = BTreeMap::new();
    for file in files {
        let order = read(file).with_context(|| format!("{}", file.display()))?;
        let bytes = order.envelope.len();
        if bytes > MAX_PUBLISHED_BYTES {
            bail!(
                "{}: {bytes} bytes; more than {MAX_PUBLISHED_BYTES} do not fit a packet: publish a \
                 pointer to it (coracle-fleet order point)",
                file.display()
            );
        }
        if let Some(earlier) = by_gateway.insert(order.gateway, file) {
            let (earlier, file) = (earlier.display(), file.display());
            bail!("{earlier} and {file} are both for gateway {}: give one of them", order.gateway);
        }
        orders.push(order);
    }
    Ok(orders)
}

/// Reads one file.
///
/// # Errors
/// It cannot be read, is too large, or is no signed order and no pointer.
pub(crate) fn read(file: &Path) -> anyhow::Result<Order> {
    let bytes = if file == Path::new("-") {
        read_limited(std::io::stdin().lock())
    } else {
        File::open(file).and_then(read_limited)
    };
    parse(file, &bytes.context("cannot be read")?)
}

fn parse(file: &Path, bytes: &[u8]) -> anyhow::Result<Order> {
    let envelope = bytes.trim_ascii();
    let file = file.into();
    if Envelope::payload_type_of(envelope).as_deref() == Some(POINTER_PAYLOAD_TYPE) {
        let decoded = Envelope::decode_of(POINTER_PAYLOAD_TYPE, envelope);
        let decoded = decoded.map_err(|refusal| anyhow::anyhow!("{refusal}"))?;
        let pointer: Pointer = serde_json::from_slice(&decoded.payload)
            .context("the signed payload is not a pointer")?;
        return Ok(Order {
            file,
            gateway: pointer.gateway,
            generation: pointer.generation,
            envelope: envelope.into(),
            digest: sha256_hex(envelope),
            leads: Leads::To(pointer.digest),
        });
    }
    let decoded = Envelope::decode(envelope).map_err(|refusal| anyhow::anyhow!("{refusal}"))?;
    let desired: DesiredState = serde_json::from_slice(&decoded.payload)
        .context("the signed payload is not a desired state")?;
    Ok(Order {
        file,
        gateway: desired.gateway,
        generation: desired.generation,
        envelope: envelope.into(),
        digest: sha256_hex(envelope),
        leads: Leads::Itself,
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
