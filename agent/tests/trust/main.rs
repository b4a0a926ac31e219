//! Signatures, against keys and an order made by the `openssl` command line:
//!
//! `openssl genpkey -algorithm ed25519`, `openssl pkey -pubout`, and
//! `openssl pkeyutl -sign -rawin` over DSSE's pre-authentication encoding.

#![allow(clippy::unwrap_used, reason = "a test may end at any of them")]

use std::fs;
use std::path::{Path, PathBuf};

use coracle::trust::{TrustError, TrustedKeys};
use coracle_protocol::envelope::{DESIRED_PAYLOAD_TYPE, Signature};
use coracle_protocol::{Code, Envelope};
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/trust").join(name)
}

fn trusting(names: &[&str]) -> TrustedKeys {
    TrustedKeys::load(&names.iter().map(|name| fixture(name)).collect::<Vec<_>>()).unwrap()
}

fn order() -> Vec<u8> {
    fs::read(fixture("order.json")).unwrap()
}

fn changed(change: impl FnOnce(&mut Envelope)) -> Vec<u8> {
    let mut envelope = Envelope::decode(&order()).unwrap();
    change(&mut envelope);
    envelope.encode()
}

#[test]
fn an_order_signed_by_openssl_is_accepted() {
    let keys = trusting(&["other.pub", "orders.pub"]);
    let verified = keys.verify(&order()).unwrap();
    assert!(verified.payload.starts_with(br#"{"schema":1,"gateway":"3f0c52a4-"#));
    assert_eq!(verified.key_id, trusting(&["orders.pub"]).ids().next().unwrap());
    assert_eq!(verified.key_id, Envelope::decode(&order()).unwrap().signatures[0].keyid);
    assert_eq!(verified.digest.len(), 64);
}

#[test]
fn the_key_id_is_only_a_hint() {
    let keys = trusting(&["other.pub", "orders.pub"]);
    let other = keys.ids().next().unwrap().to_owned();
    for hint in ["", "nonsense", &other] {
        let order = changed(|envelope| envelope.signatures[0].keyid = hint.into());
        assert_eq!(keys.verify(&order).unwrap().key_id, keys.ids().nth(1).unwrap(), "{hint}");
    }
}

#[test]
fn one_good_signature_among_others_is_enough() {
    let order = changed(|envelope| {
        let bad = Signature { keyid: "ab".into(), sig: vec![1; 64] };
        envelope.signatures.insert(0, bad.clone());
        envelope.signatures.push(Signature { sig: vec![], ..bad });
    });
    assert!(trusting(&["orders.pub"]).verify(&order).is_ok());
}

#[test]
fn whatever_was_changed_is_refused() {
    let keys = trusting(&["orders.pub"]);
    let code = |bytes: &[u8]| keys.verify(bytes).unwrap_err().code;
    let flipped = |at: usize| {
        changed(|envelope| {
            let at = at % envelope.payload.len();
            envelope.payload[at] ^= 1;
        })
    };
    for at in [0, 40, usize::MAX] {
        assert_eq!(code(&flipped(at)), Code::BAD_SIGNATURE);
    }
    assert_eq!(code(&changed(|e| e.signatures[0].sig[63] ^= 0x40)), Code::BAD_SIGNATURE);
    assert_eq!(code(&changed(|e| e.signatures[0].sig.truncate(63))), Code::BAD_SIGNATURE);
    assert_eq!(code(&changed(|e| e.payload_type.push('x'))), Code::WRONG_PAYLOAD_TYPE);
    assert_eq!(code(&changed(|e| e.signatures.clear())), Code::UNSIGNED);
    assert_eq!(code(b"{}"), Code::MALFORMED);
}

#[test]
fn an_order_by_a_key_that_is_not_trusted_is_refused_with_both_names() {
    let keys = trusting(&["other.pub"]);
    let refusal = keys.verify(&order()).unwrap_err();
    assert_eq!(refusal.code, Code::UNTRUSTED_KEY);
    let signer = trusting(&["orders.pub"]).ids().next().unwrap().to_owned();
    let trusted = keys.ids().next().unwrap();
    assert_eq!(refusal.message, format!("signed by {signer}; trusted are {trusted}"));
    let hostile = changed(|envelope| envelope.signatures[0].keyid = "\u{1b}[31m\n".repeat(50));
    let refusal = keys.verify(&hostile).unwrap_err();
    assert!(!refusal.message.contains(['\u{1b}', '\n']), "{refusal}");
}

#[test]
fn orders_signed_by_ring_are_accepted_by_a_key_file_with_several_keys() {
    let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
    let pair = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap();
    let key = coracle_core::key::PublicKey::new(pair.public_key().as_ref().try_into().unwrap());
    let mut envelope = Envelope {
        payload_type: DESIRED_PAYLOAD_TYPE.into(),
        payload: b"{}".to_vec(),
        signatures: vec![],
    };
    let sig = pair.sign(&envelope.signed_bytes()).as_ref().to_vec();
    envelope.signatures.push(Signature { keyid: key.id(), sig });

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("several.pub");
    use base64::Engine;
    let body = base64::engine::general_purpose::STANDARD.encode(key.to_spki());
    let several = format!(
        "# comment\n{}-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----\n",
        fs::read_to_string(fixture("orders.pub")).unwrap()
    );
    fs::write(&file, several).unwrap();
    let keys = TrustedKeys::load(&[file, fixture("orders.pub")]).unwrap();
    assert_eq!(keys.ids().count(), 2);
    assert_eq!(keys.verify(&envelope.encode()).unwrap().key_id, key.id());
    assert!(keys.verify(&order()).is_ok());
}

#[test]
fn a_wrong_key_file_is_named_and_its_content_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let secret = "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n";
    let broken = "-----BEGIN PUBLIC KEY-----\nc2VjcmV0";
    for (content, problem) in [
        ("", "it holds no public key"),
        (secret, "it holds no public key"),
        (broken, "it is not PEM"),
        (&fs::read_to_string(fixture("rsa.pub")).unwrap(), "a key is not Ed25519"),
        (&"x".repeat(70_000), "larger than 64 KiB"),
    ] {
        let path = dir.path().join("wrong.pub");
        fs::write(&path, content).unwrap();
        let error = TrustedKeys::load(&[path]).unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(text.contains("wrong.pub") && text.contains(problem), "{text}");
        assert!(!text.contains("c2VjcmV0"), "{text}");
    }
    let missing = TrustedKeys::load(&[dir.path().join("missing.pub")]).unwrap_err();
    assert!(matches!(missing, TrustError::Read { .. }), "{missing}");
    assert!(matches!(TrustedKeys::load(&[]), Err(TrustError::Count { count: 0 })));
}
