//! Desired states written in one line, and signing them by code of our own: what `coracle-fleet`
//! refuses to sign can be signed here, and the agent's check of signatures is held against a
//! second implementation of the envelope.

use std::path::Path;

use anyhow::{Context as _, anyhow};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use coracle_protocol::desired::{Container, Network, RestartPolicy, Stop, Workload};
use coracle_protocol::envelope::{COMMAND_PAYLOAD_TYPE, DESIRED_PAYLOAD_TYPE, Envelope, Signature};
use coracle_protocol::{Command, DesiredState, GatewayId};
use coracle_testbed::Result;
use ring::signature::Ed25519KeyPair;

/// A desired state for one gateway.
pub fn order(gateway: GatewayId, generation: u64, workloads: Vec<Workload>) -> DesiredState {
    DesiredState::new(gateway, generation, workloads)
}

/// A workload of one container without network, as its image is.
pub fn workload(name: &str, image: &str) -> Workload {
    Workload {
        name: name.to_owned(),
        network: Some(Network::None),
        stop: Some(Stop { grace_seconds: 1, ..Stop::default() }),
        containers: vec![Container { image: image.to_owned(), ..Container::default() }],
        ..Workload::default()
    }
}

/// A workload that runs a script in the image's shell.
pub fn script(name: &str, image: &str, text: &str) -> Workload {
    let mut workload = workload(name, image);
    workload.containers[0].command = Some(vec!["/bin/sh".into(), "-c".into(), text.to_owned()]);
    workload
}

/// A workload of the testbed's lighttpd image, on the host's loopback at `port`.
pub fn web(name: &str, image: &str, port: u16) -> Workload {
    let mut workload = workload(name, image);
    workload.network = Some(Network::Host);
    workload.containers[0].env.insert("PORT".into(), port.to_string());
    workload
}

/// The same workload with another restart policy.
pub fn restarting(mut workload: Workload, restart: RestartPolicy) -> Workload {
    workload.restart = Some(restart);
    workload
}

/// A private key of the fleet.
#[derive(Debug)]
pub struct Signer {
    key: Ed25519KeyPair,
}

impl Signer {
    /// A key that no gateway trusts.
    pub fn stranger() -> Result<Self> {
        let document = Ed25519KeyPair::generate_pkcs8(&ring::rand::SystemRandom::new())
            .map_err(|_| anyhow!("no randomness"))?;
        Self::from_pkcs8(document.as_ref())
    }

    /// A key as `coracle-fleet keygen` writes it: PKCS #8 in PEM.
    pub fn read(path: &Path) -> Result<Self> {
        let pem = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let body: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
        Self::from_pkcs8(&STANDARD.decode(body).map_err(|error| anyhow!("not PEM: {error}"))?)
    }

    fn from_pkcs8(bytes: &[u8]) -> Result<Self> {
        let key = Ed25519KeyPair::from_pkcs8_maybe_unchecked(bytes)
            .map_err(|error| anyhow!("not an Ed25519 key in PKCS #8: {error}"))?;
        Ok(Self { key })
    }

    /// A signed order.
    pub fn sign(&self, order: &DesiredState) -> Vec<u8> {
        let text = serde_json::to_vec(order).unwrap_or_default();
        self.sign_bytes(&text).encode()
    }

    /// A signed command.
    pub fn sign_command(&self, command: &Command) -> Vec<u8> {
        let text = serde_json::to_vec(command).unwrap_or_default();
        self.sign_as(COMMAND_PAYLOAD_TYPE, &text).encode()
    }

    /// An envelope around any bytes, called a desired state and signed.
    pub fn sign_bytes(&self, payload: &[u8]) -> Envelope {
        self.sign_as(DESIRED_PAYLOAD_TYPE, payload)
    }

    /// An envelope around any bytes, called a `payload_type` and signed.
    pub fn sign_as(&self, payload_type: &str, payload: &[u8]) -> Envelope {
        let mut envelope = Envelope {
            payload_type: payload_type.to_owned(),
            payload: payload.to_vec(),
            signatures: Vec::new(),
        };
        let sig = self.key.sign(&signed_bytes(&envelope)).as_ref().to_vec();
        envelope.signatures.push(Signature { keyid: String::new(), sig });
        envelope
    }
}

/// DSSE's pre-authentication encoding (its protocol.md), written a second time on purpose.
fn signed_bytes(envelope: &Envelope) -> Vec<u8> {
    let (kind, payload) = (&envelope.payload_type, &envelope.payload);
    let mut bytes = b"DSSEv1".to_vec();
    for field in [kind.as_bytes(), payload.as_slice()] {
        bytes.extend_from_slice(format!(" {} ", field.len()).as_bytes());
        bytes.extend_from_slice(field);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_writings_of_the_signed_bytes_agree() {
        let envelope = Signer::stranger().unwrap().sign_bytes(b"{\"schema\":1}");
        assert_eq!(signed_bytes(&envelope), envelope.signed_bytes());
    }
}
