//! Ed25519 public keys: their standard form and the id that names them.

use crate::digest::sha256_hex;

/// DER of SubjectPublicKeyInfo for Ed25519 up to the key itself (RFC 8410, section 4).
const SPKI_PREFIX: [u8; 12] = *b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00";

/// One Ed25519 public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// The key from its 32 bytes (RFC 8032).
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The key from the DER of a SubjectPublicKeyInfo; `None` if that is of another algorithm.
    pub fn from_spki(der: &[u8]) -> Option<Self> {
        let bytes = der.strip_prefix(&SPKI_PREFIX)?;
        bytes.try_into().ok().map(Self)
    }

    /// The DER of its SubjectPublicKeyInfo.
    pub fn to_spki(&self) -> Vec<u8> {
        [&SPKI_PREFIX[..], &self.0].concat()
    }

    /// Its 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first 16 hexadecimal digits of the key's SHA-256: what signatures carry as a hint.
    pub fn id(&self) -> String {
        let mut id = sha256_hex(&self.0);
        id.truncate(16);
        id
    }
}
