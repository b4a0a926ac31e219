//! Sealed secrets: what only one gateway can open.
//!
//! In: a gateway's public key and a value. Out: a text for the order's `secrets`. And back again, on
//! the gateway. HPKE (RFC 9180), base mode: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256,
//! ChaCha20Poly1305. The gateway's id and the secret's name are bound in, so that a sealed value is
//! of no use under another name or on another gateway. Deliberately not here: files, keys at rest.
//!
//! A sealed text is base64 of: the format's number (1), the encapsulated key (32 bytes), the
//! ciphertext with its tag (16 bytes more than the value).

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use coracle_protocol::GatewayId;
use hpke::aead::ChaCha20Poly1305;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable, HpkeError, Kem, OpModeR, OpModeS, Serializable};
use zeroize::Zeroizing;

/// Largest value, in bytes.
pub const MAX_SECRET_BYTES: usize = 48 * 1024;

/// Size of a key of either kind, in bytes.
pub const KEY_BYTES: usize = 32;

/// Before the base64 of a public key's text form.
const KEY_PREFIX: &str = "coracle-x25519:";
const FORMAT: u8 = 1;
const TAG_BYTES: usize = 16;
/// Of a sealed text before base64: format, encapsulated key, tag.
const OVERHEAD: usize = 1 + KEY_BYTES + TAG_BYTES;

type Curve = X25519HkdfSha256;

/// What values are sealed with: a gateway's public key. Its text form is `coracle-x25519:BASE64`.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey(<Curve as Kem>::PublicKey);

/// What opens them. Wiped from memory when dropped; never shown.
#[derive(Clone)]
pub struct PrivateKey(<Curve as Kem>::PrivateKey);

/// A value that was opened. Wiped from memory when dropped; never shown.
#[derive(Clone)]
pub struct Plain(Zeroizing<Vec<u8>>);

/// A text is not a public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a gateway's public key; expected what `coracle secrets key` prints: {KEY_PREFIX}BASE64"
)]
pub struct InvalidKey;

/// A value cannot be sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// Too much of it.
    #[error("a secret has at most {MAX_SECRET_BYTES} bytes")]
    TooLarge,
    /// The public key is of no use, such as one of small order.
    #[error("the public key cannot be sealed for")]
    Key,
}

/// A sealed text cannot be opened. Which of the reasons of [`OpenError::NotForUs`] it is cannot be
/// told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// It is not a sealed text.
    #[error("it is not what `coracle-fleet secret seal` prints")]
    Malformed,
    /// It was made by a newer program.
    #[error("it has format {0}, and only format {FORMAT} is known")]
    Format(u8),
    /// It was sealed for another key, gateway or name, or was changed since.
    #[error("it was sealed for another gateway, key or name, or is damaged")]
    NotForUs,
}

impl PublicKey {
    /// Its 32 bytes (RFC 7748).
    pub fn to_bytes(&self) -> [u8; KEY_BYTES] {
        self.0.to_bytes().into()
    }
}

impl PrivateKey {
    /// A new one, from the system's random numbers.
    pub fn generate() -> Self {
        Self(Curve::gen_keypair().0)
    }

    /// The key from its bytes; `None` if they are not 32.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        <Curve as Kem>::PrivateKey::from_bytes(bytes).ok().map(Self)
    }

    /// Its 32 bytes, to be stored.
    pub fn to_bytes(&self) -> Zeroizing<[u8; KEY_BYTES]> {
        Zeroizing::new(self.0.to_bytes().into())
    }

    /// What others seal with.
    pub fn public(&self) -> PublicKey {
        PublicKey(Curve::sk_to_pk(&self.0))
    }
}

impl Plain {
    /// Takes a value.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The value itself. Whoever takes it out answers for where it goes.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

/// Seals `value` as the secret `name` of `gateway`.
///
/// # Errors
/// It is too large, or the key is of no use.
pub fn seal(
    key: &PublicKey,
    gateway: GatewayId,
    name: &str,
    value: &Plain,
) -> Result<String, SealError> {
    if value.expose().len() > MAX_SECRET_BYTES {
        return Err(SealError::TooLarge);
    }
    let (encapsulated, ciphertext) = hpke::single_shot_seal::<ChaCha20Poly1305, HkdfSha256, Curve>(
        &OpModeS::Base,
        &key.0,
        &info(gateway),
        value.expose(),
        name.as_bytes(),
    )
    .map_err(|_| SealError::Key)?;
    let mut bytes = vec![FORMAT];
    bytes.extend_from_slice(&encapsulated.to_bytes());
    bytes.extend_from_slice(&ciphertext);
    Ok(STANDARD.encode(bytes))
}

/// Opens what [`seal`] made.
///
/// # Errors
/// It is not a sealed text, or not one for this key, gateway and name.
pub fn open(
    key: &PrivateKey,
    gateway: GatewayId,
    name: &str,
    sealed: &str,
) -> Result<Plain, OpenError> {
    // Checked before anything of that size is made.
    if sealed.len() > (OVERHEAD + MAX_SECRET_BYTES).div_ceil(3) * 4 {
        return Err(OpenError::Malformed);
    }
    let bytes = STANDARD.decode(sealed).map_err(|_| OpenError::Malformed)?;
    match bytes.first() {
        Some(&FORMAT) if bytes.len() >= OVERHEAD => {}
        None | Some(&FORMAT) => return Err(OpenError::Malformed),
        Some(&other) => return Err(OpenError::Format(other)),
    }
    let (encapsulated, ciphertext) = bytes[1..].split_at(KEY_BYTES);
    open_with(&key.0, encapsulated, ciphertext, &info(gateway), name.as_bytes())
        .map_err(|_| OpenError::NotForUs)
}

fn open_with(
    key: &<Curve as Kem>::PrivateKey,
    encapsulated: &[u8],
    ciphertext: &[u8],
    info: &[u8],
    aad: &[u8],
) -> Result<Plain, HpkeError> {
    let encapsulated = <Curve as Kem>::EncappedKey::from_bytes(encapsulated)?;
    hpke::single_shot_open::<ChaCha20Poly1305, HkdfSha256, Curve>(
        &OpModeR::Base,
        key,
        &encapsulated,
        info,
        ciphertext,
        aad,
    )
    .map(Plain::new)
}

/// HPKE's `info`: what this is, and for which gateway.
fn info(gateway: GatewayId) -> Vec<u8> {
    format!("coracle secret 1 {gateway}").into_bytes()
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{KEY_PREFIX}{}", STANDARD.encode(self.to_bytes()))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PublicKey {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim().strip_prefix(KEY_PREFIX).ok_or(InvalidKey)?;
        let bytes = STANDARD.decode(text).map_err(|_| InvalidKey)?;
        <Curve as Kem>::PublicKey::from_bytes(&bytes).map(Self).map_err(|_| InvalidKey)
    }
}

macro_rules! hide {
    ($($name:ident),*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(hidden)"))
            }
        }
    )*};
}
hide!(PrivateKey, Plain);

#[cfg(test)]
mod tests {
    use super::*;

    const GATEWAY: &str = "3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11";
    const OTHER: &str = "3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b12";

    fn gateway(text: &str) -> GatewayId {
        text.parse().unwrap()
    }

    fn hex(text: &str) -> Vec<u8> {
        let digits = |at| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
        (0..text.len()).step_by(2).map(digits).collect()
    }

    fn sealed(key: &PrivateKey) -> String {
        seal(&key.public(), gateway(GATEWAY), "pw", &Plain::new(b"hunter2".to_vec())).unwrap()
    }

    #[test]
    fn what_was_sealed_is_opened_by_the_right_key_gateway_and_name_only() {
        let key = PrivateKey::generate();
        let text = sealed(&key);
        let opened = open(&key, gateway(GATEWAY), "pw", &text).unwrap();
        assert_eq!(opened.expose(), b"hunter2");
        assert_ne!(text, sealed(&key), "each seal is another one");
        let not_for_us = |result: Result<Plain, OpenError>| {
            assert_eq!(result.unwrap_err(), OpenError::NotForUs);
        };
        not_for_us(open(&PrivateKey::generate(), gateway(GATEWAY), "pw", &text));
        not_for_us(open(&key, gateway(OTHER), "pw", &text));
        not_for_us(open(&key, gateway(GATEWAY), "pw2", &text));
        let mut bytes = STANDARD.decode(&text).unwrap();
        for at in 1..bytes.len() {
            bytes[at] ^= 1;
            not_for_us(open(&key, gateway(GATEWAY), "pw", &STANDARD.encode(&bytes)));
            bytes[at] ^= 1;
        }
    }

    #[test]
    fn what_is_no_sealed_text_is_told_apart() {
        let key = PrivateKey::generate();
        let opened = |text: &str| open(&key, gateway(GATEWAY), "pw", text).unwrap_err();
        for text in ["", "hunter2", "AQ==", &STANDARD.encode([1; OVERHEAD - 1])] {
            assert_eq!(opened(text), OpenError::Malformed, "{text}");
        }
        assert_eq!(opened(&"A".repeat(100_000)), OpenError::Malformed);
        assert_eq!(opened(&STANDARD.encode([2; 100])), OpenError::Format(2));
        // A key of small order gives a shared secret that everybody knows.
        let mut small = vec![0; OVERHEAD];
        small[0] = FORMAT;
        assert_eq!(opened(&STANDARD.encode(small)), OpenError::NotForUs);
    }

    #[test]
    fn sizes_are_bounded() {
        let key = PrivateKey::generate();
        let most = Plain::new(vec![7; MAX_SECRET_BYTES]);
        let text = seal(&key.public(), gateway(GATEWAY), "pw", &most).unwrap();
        assert_eq!(open(&key, gateway(GATEWAY), "pw", &text).unwrap().expose(), most.expose());
        let more = Plain::new(vec![7; MAX_SECRET_BYTES + 1]);
        let refused = seal(&key.public(), gateway(GATEWAY), "pw", &more);
        assert_eq!(refused, Err(SealError::TooLarge));
    }

    #[test]
    fn keys_are_written_and_read() {
        let key = PrivateKey::generate();
        let text = key.public().to_string();
        assert!(text.starts_with("coracle-x25519:"), "{text}");
        assert_eq!(text.parse::<PublicKey>().unwrap(), key.public());
        let again = PrivateKey::from_bytes(&*key.to_bytes()).unwrap();
        assert_eq!(again.public(), key.public());
        for bad in ["", "coracle-x25519:", "coracle-x25519:AAAA", &text[3..]] {
            assert_eq!(bad.parse::<PublicKey>(), Err(InvalidKey), "{bad}");
        }
    }

    #[test]
    fn nothing_secret_is_shown() {
        let key = PrivateKey::generate();
        assert_eq!(format!("{key:?}"), "PrivateKey(hidden)");
        assert_eq!(format!("{:?}", Plain::new(b"hunter2".to_vec())), "Plain(hidden)");
    }

    /// RFC 9180, appendix A.2.1, sequence number 0.
    #[test]
    fn it_is_the_hpke_of_rfc_9180() {
        let key = PrivateKey::from_bytes(&hex(
            "8057991eef8f1f1af18f4a9491d16a1ce333f695d4db8e38da75975c4478e0fb",
        ))
        .unwrap();
        let public = "4310ee97d88cc1f088a5576c77ab0cf5c3ac797f3d95139c6c84b5429c59662a";
        assert_eq!(key.public().to_bytes().to_vec(), hex(public));
        let encapsulated = hex("1afa08d3dec047a643885163f1180476fa7ddb54c6a8029ea33f95796bf2ac4a");
        let ciphertext = hex(
            "1c5250d8034ec2b784ba2cfd69dbdb8af406cfe3ff938e131f0def8c8b60b4db21993c62ce81883d2dd1b51a28",
        );
        let info = b"Ode on a Grecian Urn";
        let opened = open_with(&key.0, &encapsulated, &ciphertext, info, b"Count-0").unwrap();
        assert_eq!(opened.expose(), b"Beauty is truth, truth beauty");
    }
}
