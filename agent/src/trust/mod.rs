//! Signatures of orders.
#![allow(missing_docs)]
use coracle_protocol::{Code, Envelope, Refusal};
use ring::signature::{ED25519, UnparsedPublicKey};
use rustls_pki_types::SubjectPublicKeyInfoDer;
use rustls_pki_types::pem::PemObject;
use std::path::PathBuf;

#[derive(Debug)]
pub struct TrustedKeys(Vec<[u8; 32]>);
#[derive(Debug)]
pub struct Verified {
    pub payload: Vec<u8>,
    pub key_id: String,
    pub digest: String,
}
#[derive(Debug, thiserror::Error)]
#[error("bad key {0}")]
pub struct TrustError(PathBuf);
impl TrustedKeys {
    pub fn load(paths: &[PathBuf]) -> Result<Self, TrustError> {
        paths
            .iter()
            .map(|p| {
                let der =
                    SubjectPublicKeyInfoDer::from_pem_file(p).map_err(|_| TrustError(p.clone()))?;
                der.as_ref()[12..].try_into().map_err(|_| TrustError(p.clone()))
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }
    pub fn verify(&self, bytes: &[u8]) -> Result<Verified, Refusal> {
        let e = Envelope::decode(bytes)?;
        let s = e.signed_bytes();
        for k in &self.0 {
            for sig in &e.signatures {
                if UnparsedPublicKey::new(&ED25519, k).verify(&s, &sig.sig).is_ok() {
                    return Ok(Verified {
                        payload: e.payload,
                        key_id: String::new(),
                        digest: String::new(),
                    });
                }
            }
        }
        Err(Refusal::whole(Code::UNTRUSTED_KEY, "no signature by a trusted key"))
    }
}
