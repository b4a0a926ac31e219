//! Whose orders are obeyed: Ed25519 signatures in a DSSE envelope.
//!
//! In: files with public keys, once; the bytes of a signed order. Out: the payload, or a refusal.
//! Deliberately not here: for which gateway an order is, its generation, its content.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use coracle_core::digest::sha256_hex;
use coracle_core::key::PublicKey;
use coracle_protocol::envelope::{DESIRED_PAYLOAD_TYPE, Signature};
use coracle_protocol::{Code, Envelope, Refusal};
use ring::signature::{ED25519, UnparsedPublicKey};
use rustls_pki_types::SubjectPublicKeyInfoDer;
use rustls_pki_types::pem::PemObject;

/// Largest key file, in bytes; one key has some 113.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// Most keys that are trusted.
const MAX_KEYS: usize = 32;

/// The keys of those whose orders are obeyed.
#[derive(Clone, Debug)]
pub struct TrustedKeys {
    keys: Vec<TrustedKey>,
}

#[derive(Clone, Debug)]
struct TrustedKey {
    key: PublicKey,
    id: String,
}

/// A signed order with a good signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// The document, byte for byte as signed.
    pub payload: Vec<u8>,
    /// Id of the trusted key that signed it: the first 16 hexadecimal digits of its SHA-256.
    pub key_id: String,
    /// SHA-256 of the whole envelope, in hexadecimal.
    pub digest: String,
}

/// The trusted keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// A file cannot be read.
    #[error("cannot read the key file {path}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file holds something else.
    #[error(
        "key file {path}: {problem}; expected Ed25519 public keys in PEM (-----BEGIN PUBLIC KEY-----)"
    )]
    NotAKey {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        problem: &'static str,
    },
    /// There is no key at all, or there are too many.
    #[error("{count} trusted keys; from 1 to {MAX_KEYS} are allowed")]
    Count {
        /// How many.
        count: usize,
    },
}

impl TrustedKeys {
    /// Nobody's: every order is refused.
    pub fn none() -> Self {
        Self { keys: Vec::new() }
    }

    /// Reads every key of every file.
    ///
    /// # Errors
    /// A file cannot be read, or holds no or other than Ed25519 public keys; there is no key.
    pub fn load(paths: &[PathBuf]) -> Result<Self, TrustError> {
        let mut keys: Vec<TrustedKey> = Vec::new();
        for path in paths {
            for key in read_keys(path)? {
                if keys.iter().all(|known| known.key != key) {
                    keys.push(TrustedKey { key, id: key.id() });
                }
            }
        }
        match keys.len() {
            1..=MAX_KEYS => Ok(Self { keys }),
            count => Err(TrustError::Count { count }),
        }
    }

    /// The ids of the keys, in the order of their files.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().map(|trusted| trusted.id.as_str())
    }

    /// Reads the envelope `bytes`; one good signature by a trusted key is enough.
    ///
    /// # Errors
    /// One refusal of the order as a whole: not an envelope (see [`Envelope::decode`]), signed by
    /// nobody who is trusted, or a trusted key's signature that does not fit.
    pub fn verify(&self, bytes: &[u8]) -> Result<Verified, Refusal> {
        self.verify_of(DESIRED_PAYLOAD_TYPE, bytes)
    }

    /// The same for an envelope of another type, such as that of a command.
    ///
    /// # Errors
    /// See [`TrustedKeys::verify`].
    pub fn verify_of(&self, payload_type: &str, bytes: &[u8]) -> Result<Verified, Refusal> {
        let envelope = Envelope::decode_of(payload_type, bytes)?;
        if self.keys.is_empty() {
            let message = "this gateway trusts no key: see the conditions identity and trust";
            return Err(Refusal::whole(Code::UNTRUSTED_KEY, message));
        }
        let signed = envelope.signed_bytes();
        let signer =
            envelope.signatures.iter().find_map(|signature| self.signer(signature, &signed));
        match signer {
            Some(trusted) => Ok(Verified {
                payload: envelope.payload,
                key_id: trusted.id.clone(),
                digest: sha256_hex(bytes),
            }),
            None => Err(self.refusal(&envelope.signatures)),
        }
    }

    /// The trusted key that made this signature. The id it carries is only a hint: what counts is
    /// whether a key fits.
    fn signer(&self, signature: &Signature, signed: &[u8]) -> Option<&TrustedKey> {
        let fits = |trusted: &&TrustedKey| {
            UnparsedPublicKey::new(&ED25519, trusted.key.as_bytes())
                .verify(signed, &signature.sig)
                .is_ok()
        };
        let named = |trusted: &&TrustedKey| trusted.id == signature.keyid;
        self.keys
            .iter()
            .filter(named)
            .find(fits)
            .or_else(|| self.keys.iter().filter(|trusted| !named(trusted)).find(fits))
    }

    fn refusal(&self, signatures: &[Signature]) -> Refusal {
        let named = signatures.iter().find(|s| self.keys.iter().any(|key| key.id == s.keyid));
        match named {
            Some(signature) => Refusal::whole(
                Code::BAD_SIGNATURE,
                format!(
                    "the signature by the trusted key {} does not fit the order",
                    signature.keyid
                ),
            ),
            None => {
                let by: Vec<_> = signatures.iter().map(|s| key_id_for_people(&s.keyid)).collect();
                let trusted: Vec<_> = self.ids().collect();
                Refusal::whole(
                    Code::UNTRUSTED_KEY,
                    format!("signed by {}; trusted are {}", by.join(", "), trusted.join(", ")),
                )
            }
        }
    }
}

/// A key id as somebody sent it, made harmless.
fn key_id_for_people(id: &str) -> String {
    if id.is_empty() {
        return "a key without id".into();
    }
    id.chars().take(64).flat_map(char::escape_default).collect()
}

fn read_keys(path: &Path) -> Result<Vec<PublicKey>, TrustError> {
    let mut pem = Vec::new();
    let metadata = std::fs::metadata(path);
    metadata
        .and_then(|metadata| match metadata.is_file() {
            true => File::open(path),
            // A FIFO would be waited for without end.
            false => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")),
        })
        .and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut pem))
        .map_err(|source| TrustError::Read { path: path.into(), source })?;
    let not_a_key = |problem| TrustError::NotAKey { path: path.into(), problem };
    if pem.len() as u64 > MAX_FILE_BYTES {
        return Err(not_a_key("it is larger than 64 KiB"));
    }
    let mut keys = Vec::new();
    for section in SubjectPublicKeyInfoDer::pem_slice_iter(&pem) {
        // The error would repeat parts of the file, which may be a private key by mistake.
        let der = section.map_err(|_| not_a_key("it is not PEM"))?;
        keys.push(PublicKey::from_spki(&der).ok_or_else(|| not_a_key("a key is not Ed25519"))?);
    }
    if keys.is_empty() { Err(not_a_key("it holds no public key")) } else { Ok(keys) }
}
