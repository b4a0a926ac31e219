//! Secrets: sealed in the order and in the store, opened only where they are used.
//!
//! In: the sealed texts of the order in force. Out: values, each opened anew, wiped when dropped.
//! The device's key is a file of the state directory, made at first need (see [`crate::key_file`]).
//! Format and cryptography are `coracle_seal`'s. Nothing here shows a value: neither in errors nor
//! in debug output.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use coracle_core::backoff::Retry;
use coracle_protocol::GatewayId;
use coracle_seal::{KEY_BYTES, OpenError, Plain, PrivateKey, PublicKey};
use zeroize::Zeroizing;

use crate::key_file::{self, KeyFileError};

/// Name of the key's file.
const KEY_FILE: &str = "secrets.key";
/// Begins the key's file; the private and the public key follow, base64, so that damage shows.
const KEY_MARK: &str = "coracle-x25519-private";

/// A secret cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The device's key cannot be had.
    #[error("this gateway's key for secrets cannot be used")]
    Key(#[from] KeyFileError),
    /// It cannot be opened.
    #[error("secret {name} cannot be opened by this gateway")]
    NotForUs {
        /// Which secret.
        name: String,
        /// Why.
        source: OpenError,
    },
    /// The order in force does not have it.
    #[error("the order in force has no secret {name}")]
    Unknown {
        /// Which secret.
        name: String,
    },
    /// It is not text, which a variable must be.
    #[error("secret {name} is not text without zero bytes, so it cannot be part of a variable")]
    NotText {
        /// Which secret.
        name: String,
    },
}

impl SecretError {
    /// When the same thing is worth another try.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Key(KeyFileError::Io { .. }) => Retry::Backoff,
            _ => Retry::Rarely,
        }
    }
}

/// The secrets of the order in force, and the key that opens them.
pub struct Secrets {
    keys: PathBuf,
    gateway: Mutex<GatewayId>,
    key: Mutex<Option<PrivateKey>>,
    sealed: Mutex<BTreeMap<String, String>>,
}

impl Secrets {
    /// No secrets yet. Reads nothing.
    pub fn new(state_dir: &Path, gateway: GatewayId) -> Self {
        let keys = state_dir.join("keys");
        Self { keys, gateway: Mutex::new(gateway), key: Mutex::default(), sealed: Mutex::default() }
    }

    /// Which gateway this is.
    pub fn gateway(&self) -> GatewayId {
        *self.gateway.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What secrets for this gateway are sealed with. Makes the key if there is none yet.
    ///
    /// # Errors
    /// The key cannot be had.
    pub fn public_key(&self) -> Result<PublicKey, SecretError> {
        Ok(self.key()?.public())
    }

    /// Whether this gateway can open it.
    ///
    /// # Errors
    /// It cannot.
    pub fn check(&self, name: &str, sealed: &str) -> Result<(), SecretError> {
        self.open(name, sealed).map(drop)
    }

    /// Takes the place of what was set before: sealed texts by name, for this gateway.
    pub fn set(&self, gateway: GatewayId, sealed: BTreeMap<String, String>) {
        *self.gateway.lock().unwrap_or_else(PoisonError::into_inner) = gateway;
        *self.sealed.lock().unwrap_or_else(PoisonError::into_inner) = sealed;
    }

    /// The value of a secret of the order in force.
    ///
    /// # Errors
    /// There is no such secret, or it cannot be opened.
    pub fn value(&self, name: &str) -> Result<Plain, SecretError> {
        let sealed = self.sealed.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
        let sealed = sealed.ok_or_else(|| SecretError::Unknown { name: name.to_owned() })?;
        self.open(name, &sealed)
    }

    /// The value of a secret as text that can be part of a variable.
    ///
    /// # Errors
    /// As [`value`](Self::value); or it is not UTF-8, or holds a zero byte.
    pub fn text(&self, name: &str) -> Result<Zeroizing<String>, SecretError> {
        let value = self.value(name)?;
        match std::str::from_utf8(value.expose()) {
            Ok(text) if !text.contains('\0') => Ok(Zeroizing::new(text.to_owned())),
            _ => Err(SecretError::NotText { name: name.to_owned() }),
        }
    }

    fn open(&self, name: &str, sealed: &str) -> Result<Plain, SecretError> {
        coracle_seal::open(&self.key()?, self.gateway(), name, sealed)
            .map_err(|source| SecretError::NotForUs { name: name.to_owned(), source })
    }

    fn key(&self) -> Result<PrivateKey, KeyFileError> {
        let mut known = self.key.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(key) = &*known {
            return Ok(key.clone());
        }
        let bytes =
            key_file::read_or_make(&self.keys, KEY_FILE, || encode(&PrivateKey::generate()))?;
        let key = decode(&bytes)
            .ok_or_else(|| KeyFileError::Damaged { path: self.keys.join(KEY_FILE) })?;
        *known = Some(key.clone());
        Ok(key)
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sealed = self.sealed.lock().unwrap_or_else(PoisonError::into_inner);
        f.debug_struct("Secrets").field("names", &sealed.keys()).finish_non_exhaustive()
    }
}

fn encode(key: &PrivateKey) -> Zeroizing<Vec<u8>> {
    let private = Zeroizing::new(STANDARD.encode(key.to_bytes().as_slice()));
    let public = STANDARD.encode(key.public().to_bytes());
    Zeroizing::new(format!("{KEY_MARK} {} {public}\n", *private).into_bytes())
}

fn decode(bytes: &[u8]) -> Option<PrivateKey> {
    let text = std::str::from_utf8(bytes).ok()?;
    let mut words = text.strip_suffix('\n')?.split(' ');
    let (mark, private, public) = (words.next()?, words.next()?, words.next()?);
    let mut key_bytes = Zeroizing::new([0; KEY_BYTES]);
    if mark != KEY_MARK || words.next().is_some() {
        return None;
    }
    match STANDARD.decode_slice(private, &mut *key_bytes) {
        Ok(KEY_BYTES) => {}
        _ => return None,
    }
    let key = PrivateKey::from_bytes(&*key_bytes)?;
    (STANDARD.decode(public).ok()? == key.public().to_bytes()).then_some(key)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const SECRET: &str = "correct horse battery staple";

    fn seal(secrets: &Secrets, name: &str, value: &[u8]) -> String {
        let key = secrets.public_key().unwrap();
        coracle_seal::seal(&key, secrets.gateway(), name, &Plain::new(value.to_vec())).unwrap()
    }

    fn fresh() -> (tempfile::TempDir, Secrets) {
        let dir = tempfile::tempdir().unwrap();
        let secrets = Secrets::new(dir.path(), GatewayId::random());
        (dir, secrets)
    }

    #[test]
    fn secrets_are_opened_also_after_a_restart() {
        let (dir, secrets) = fresh();
        let sealed = seal(&secrets, "pw", SECRET.as_bytes());
        let again = Secrets::new(dir.path(), secrets.gateway());
        again.check("pw", &sealed).unwrap();
        again.set(secrets.gateway(), BTreeMap::from([("pw".to_owned(), sealed)]));
        assert_eq!(again.value("pw").unwrap().expose(), SECRET.as_bytes());
        assert_eq!(*again.text("pw").unwrap(), SECRET);
        again.set(secrets.gateway(), BTreeMap::new());
        assert!(matches!(again.value("pw"), Err(SecretError::Unknown { .. })));
    }

    #[test]
    fn what_is_not_for_this_gateway_is_refused_by_name() {
        let (_dir, secrets) = fresh();
        let sealed = seal(&secrets, "pw", SECRET.as_bytes());
        let (_other_dir, other) = fresh();
        let error = other.check("pw", &sealed).unwrap_err();
        assert!(matches!(&error, SecretError::NotForUs { name, .. } if name == "pw"), "{error}");
        let error = secrets.check("other", &sealed).unwrap_err();
        assert_eq!(error.to_string(), "secret other cannot be opened by this gateway");
        assert_eq!(error.retry(), Retry::Rarely);
    }

    #[test]
    fn a_damaged_key_is_an_error_and_is_kept() {
        let (dir, secrets) = fresh();
        secrets.public_key().unwrap();
        let path = dir.path().join("keys/secrets.key");
        let good = fs::read(&path).unwrap();
        let mut changed = good.clone();
        changed[KEY_MARK.len() + 3] ^= 1;
        for bad in [&b""[..], b"x", &good[..good.len() - 1], &changed] {
            fs::write(&path, bad).unwrap();
            let error = Secrets::new(dir.path(), secrets.gateway()).public_key().unwrap_err();
            assert!(matches!(&error, SecretError::Key(KeyFileError::Damaged { .. })), "{error:?}");
            assert_eq!(fs::read(&path).unwrap(), bad);
        }
    }

    #[test]
    fn a_secret_that_is_no_text_is_no_variable() {
        let (_dir, secrets) = fresh();
        let sealed = [("a", &b"\xff\xfe"[..]), ("b", b"x\0y")]
            .map(|(name, value)| (name.to_owned(), seal(&secrets, name, value)));
        secrets.set(secrets.gateway(), BTreeMap::from(sealed));
        for name in ["a", "b"] {
            assert!(secrets.value(name).is_ok());
            assert!(matches!(secrets.text(name), Err(SecretError::NotText { .. })));
        }
    }

    #[test]
    fn values_and_keys_are_in_no_debug_output_and_no_error() {
        let (dir, secrets) = fresh();
        let sealed = seal(&secrets, "pw", SECRET.as_bytes());
        let binary = seal(&secrets, "bin", &[SECRET.as_bytes(), b"\0"].concat());
        secrets.set(
            secrets.gateway(),
            BTreeMap::from([("pw".to_owned(), sealed), ("bin".to_owned(), binary)]),
        );
        let key = fs::read_to_string(dir.path().join("keys/secrets.key")).unwrap();
        let private = key.split(' ').nth(1).unwrap();
        let shown = [
            format!("{secrets:?}"),
            format!("{:?}", secrets.value("pw").unwrap()),
            format!("{:?}", secrets.text("bin").unwrap_err()),
            format!("{}", secrets.text("bin").unwrap_err()),
            format!("{:?}", secrets.key().unwrap()),
        ];
        for text in shown {
            assert!(!text.contains(SECRET) && !text.contains(private), "{text}");
        }
    }
}
