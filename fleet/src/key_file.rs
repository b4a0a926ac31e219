//! Files of Ed25519 keys, PEM: PKCS#8 for private ones, SubjectPublicKeyInfo for public ones
//! (RFC 8410). `openssl pkey` reads and writes the same.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use coracle_core::key::PublicKey;
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{Ed25519KeyPair, KeyPair};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;

/// DER of PKCS#8 version 1 for Ed25519 up to the 32 bytes of the private key (RFC 8410, section 7).
/// Version 1 because older OpenSSL does not read the second, which has the public key too.
const PKCS8_PREFIX: [u8; 16] = *b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20";

/// Largest key file, in bytes; one has 119.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// A key that signs.
pub(crate) struct SigningKey {
    pair: Ed25519KeyPair,
}

impl SigningKey {
    /// The key in the file at `path`. Errors name the file and never its content.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let name = path.display();
        let mut pem = Vec::new();
        let file = File::open(path).with_context(|| format!("cannot read the key file {name}"))?;
        let mode = file.metadata().map_or(0, |metadata| metadata.permissions().mode());
        file.take(MAX_FILE_BYTES + 1)
            .read_to_end(&mut pem)
            .with_context(|| format!("cannot read the key file {name}"))?;
        let expected = "expected a private Ed25519 key in PEM (-----BEGIN PRIVATE KEY-----)";
        if pem.len() as u64 > MAX_FILE_BYTES {
            bail!("key file {name} is larger than 64 KiB; {expected}");
        }
        // Neither error is shown: they may repeat parts of the file.
        let Ok(der) = PrivatePkcs8KeyDer::from_pem_slice(&pem) else {
            bail!("key file {name} holds no private key; {expected}");
        };
        let Ok(pair) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.secret_pkcs8_der()) else {
            bail!("key file {name} holds a key of another kind; {expected}");
        };
        if mode & 0o077 != 0 {
            eprintln!(
                "coracle-fleet: key file {name} can be read by others; run: chmod 600 {name}"
            );
        }
        Ok(Self { pair })
    }

    /// Its public key.
    pub(crate) fn public(&self) -> Result<PublicKey> {
        let bytes = self.pair.public_key().as_ref().try_into().context("an Ed25519 key")?;
        Ok(PublicKey::new(bytes))
    }

    /// The signature over `bytes`, 64 bytes.
    pub(crate) fn sign(&self, bytes: &[u8]) -> Vec<u8> {
        self.pair.sign(bytes).as_ref().to_vec()
    }
}

/// Makes a pair of keys and writes both files. Nothing is written if one of them is there and not to
/// be replaced.
pub(crate) fn generate(private: &Path, public: &Path, replace: bool) -> Result<PublicKey> {
    let mut seed = [0; 32];
    if SystemRandom::new().fill(&mut seed).is_err() {
        bail!("the system gives no random numbers");
    }
    let pkcs8 = [&PKCS8_PREFIX[..], &seed].concat();
    let Ok(pair) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&pkcs8) else {
        bail!("the new key cannot be read back");
    };
    let key = SigningKey { pair }.public()?;
    for path in [private, public] {
        match fs::symlink_metadata(path) {
            Ok(_) if !replace => {
                bail!("{} is there already; --force replaces it", path.display());
            }
            Ok(_) => fs::remove_file(path)
                .with_context(|| format!("cannot replace {}", path.display()))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).context(format!("cannot look at {}", path.display())),
        }
    }
    write_new(private, &pem("PRIVATE KEY", &pkcs8), 0o600)?;
    write_new(public, &pem("PUBLIC KEY", &key.to_spki()), 0o644)?;
    Ok(key)
}

fn write_new(path: &Path, text: &str, mode: u32) -> Result<()> {
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// One section. Both kinds of keys fit one line of 64 characters (RFC 7468).
fn pem(label: &str, der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
}
