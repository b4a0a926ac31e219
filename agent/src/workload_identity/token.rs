//! Tokens: JWTs (RFC 7519) signed with Ed25519 (EdDSA, RFC 8037) by a key of this device.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use coracle_core::name::ReplicaId;
use coracle_protocol::{GatewayId, Timestamp};
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde::Serialize;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::IdentityError;
use crate::key_file::{self, KeyFileError};

/// How long a token is good.
pub const LIFE: Duration = Duration::from_secs(600);
/// The same token is given until then, so that whoever gets one has at least the other half left.
const HALF: Duration = Duration::from_secs(300);
/// Before it was made a token is good for those whose clock is behind.
const LEEWAY: Duration = Duration::from_secs(60);
/// Tokens kept for one pod, each for another audience.
const MOST_KEPT: usize = 16;

const KEY_FILE: &str = "workloads.pk8";

/// Who a pod is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Subject {
    pub(super) gateway: GatewayId,
    pub(super) project: Option<String>,
    pub(super) replica: ReplicaId,
}

impl Subject {
    /// `gateway/G/project/P/workload/W/replica/N`; without a project that part is left out.
    pub(super) fn text(&self) -> String {
        let project = self.project.as_ref().map(|project| format!("project/{}/", escape(project)));
        format!(
            "gateway/{}/{}workload/{}/replica/{}",
            self.gateway,
            project.unwrap_or_default(),
            self.replica.workload,
            self.replica.index
        )
    }
}

/// A part of a subject cannot end early or begin another: all but letters, digits, `-`, `_`, `.` and
/// `~` is written `%XX`.
fn escape(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

/// The answer to `GET /v1/token`.
#[derive(Clone, Serialize)]
pub(super) struct Token {
    token: String,
    expires_at: Timestamp,
    /// From then on another one is given.
    refresh_after: Timestamp,
}

/// Tokens that a pod got and that are still given.
#[derive(Default)]
pub(super) struct Kept(Vec<Given>);

struct Given {
    audience: String,
    made_at: Duration,
    token: Token,
}

impl Kept {
    /// A token for `audience` with at least half of its life left.
    pub(super) fn token(
        &mut self,
        signer: &Signer,
        subject: &Subject,
        audience: &str,
        now: Duration,
    ) -> Result<Token, IdentityError> {
        // Also not one from the future, if the clock was set back.
        self.0.retain(|given| given.made_at <= now && now < given.made_at + HALF);
        if let Some(given) = self.0.iter().find(|given| given.audience == audience) {
            return Ok(given.token.clone());
        }
        let token = signer.make(subject, audience, now)?;
        if self.0.len() >= MOST_KEPT {
            self.0.remove(0);
        }
        let given = Given { audience: audience.to_owned(), made_at: now, token: token.clone() };
        self.0.push(given);
        Ok(token)
    }

    /// After who the pod is has changed.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

/// Signs, with the device's key, which is made at first need.
pub(super) struct Signer {
    keys: PathBuf,
    pair: Mutex<Option<Arc<Ed25519KeyPair>>>,
}

impl Signer {
    pub(super) fn new(state_dir: &Path) -> Self {
        Self { keys: state_dir.join("keys"), pair: Mutex::default() }
    }

    /// What tokens are verified with: a JWK Set (RFC 7517, RFC 8037).
    pub(super) fn key_set(&self) -> Result<Value, IdentityError> {
        let pair = self.pair()?;
        let x = URL_SAFE_NO_PAD.encode(pair.public_key());
        let kid = key_id(&pair);
        Ok(json!({ "keys": [{
            "kty": "OKP", "crv": "Ed25519", "x": x, "alg": "EdDSA", "use": "sig", "kid": kid,
        }] }))
    }

    fn make(
        &self,
        subject: &Subject,
        audience: &str,
        now: Duration,
    ) -> Result<Token, IdentityError> {
        let pair = self.pair()?;
        let mut id = [0; 16];
        SystemRandom::new().fill(&mut id).map_err(|_| IdentityError::NoRandom)?;
        let seconds = now.as_secs();
        let expires = seconds + LIFE.as_secs();
        let header = json!({ "alg": "EdDSA", "typ": "JWT", "kid": key_id(&pair) });
        let claims = json!({
            "iss": subject.gateway,
            "sub": subject.text(),
            "aud": audience,
            "iat": seconds,
            "nbf": seconds.saturating_sub(LEEWAY.as_secs()),
            "exp": expires,
            "jti": URL_SAFE_NO_PAD.encode(id),
            "coracle": {
                "gateway": subject.gateway,
                "project": subject.project,
                "workload": subject.replica.workload,
                "replica": subject.replica.index,
            },
        });
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&header), part(&claims));
        let signature = URL_SAFE_NO_PAD.encode(pair.sign(signed.as_bytes()));
        Ok(Token {
            token: format!("{signed}.{signature}"),
            expires_at: Timestamp::from_unix(expires),
            refresh_after: Timestamp::from_unix(seconds + HALF.as_secs()),
        })
    }

    fn pair(&self) -> Result<Arc<Ed25519KeyPair>, IdentityError> {
        let mut known = self.pair.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pair) = &*known {
            return Ok(Arc::clone(pair));
        }
        let bytes = key_file::read_or_make(&self.keys, KEY_FILE, || {
            let made = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new());
            // Without random numbers the file holds no key, and is said to be damaged.
            Zeroizing::new(made.map(|made| made.as_ref().to_vec()).unwrap_or_default())
        })?;
        let pair = Ed25519KeyPair::from_pkcs8(&bytes)
            .map_err(|_| KeyFileError::Damaged { path: self.keys.join(KEY_FILE) })?;
        let pair = Arc::new(pair);
        *known = Some(Arc::clone(&pair));
        Ok(pair)
    }
}

/// The key's thumbprint (RFC 7638).
fn key_id(pair: &Ed25519KeyPair) -> String {
    let x = URL_SAFE_NO_PAD.encode(pair.public_key());
    let text = format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}"#);
    URL_SAFE_NO_PAD.encode(digest(&SHA256, text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use coracle_core::name::WorkloadName;
    use ring::signature::{ED25519, UnparsedPublicKey};

    use super::*;

    const NOW: Duration = Duration::from_secs(1_772_366_400);

    fn subject(project: Option<&str>) -> Subject {
        Subject {
            gateway: "3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11".parse().unwrap(),
            project: project.map(str::to_owned),
            replica: ReplicaId { workload: WorkloadName::parse("web").unwrap(), index: 2 },
        }
    }

    fn decode(part: &str) -> Vec<u8> {
        URL_SAFE_NO_PAD.decode(part).unwrap()
    }

    /// The claims, after the signature was checked with what is published.
    fn verified(signer: &Signer, token: &Token) -> Value {
        let (signed, signature) = token.token.rsplit_once('.').unwrap();
        let (header, claims) = signed.split_once('.').unwrap();
        let key = &signer.key_set().unwrap()["keys"][0];
        let public = decode(key["x"].as_str().unwrap());
        UnparsedPublicKey::new(&ED25519, public)
            .verify(signed.as_bytes(), &decode(signature))
            .unwrap();
        let header: Value = serde_json::from_slice(&decode(header)).unwrap();
        assert_eq!((&header["alg"], &header["kid"]), (&json!("EdDSA"), &key["kid"]));
        serde_json::from_slice(&decode(claims)).unwrap()
    }

    #[test]
    fn a_token_says_who_for_whom_and_how_long() {
        let dir = tempfile::tempdir().unwrap();
        let signer = Signer::new(dir.path());
        let token = Kept::default().token(&signer, &subject(Some("acme")), "mqtt", NOW).unwrap();
        let claims = verified(&signer, &token);
        let gateway = "3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11";
        assert_eq!(claims["iss"], gateway);
        assert_eq!(claims["sub"], format!("gateway/{gateway}/project/acme/workload/web/replica/2"));
        assert_eq!(claims["aud"], "mqtt");
        let seconds = NOW.as_secs();
        assert_eq!(claims["iat"], seconds);
        assert_eq!(claims["nbf"], seconds - 60);
        assert_eq!(claims["exp"], seconds + 600);
        assert_eq!(claims["coracle"]["project"], "acme");
        // The key outlives the process.
        assert_eq!(signer.key_set().unwrap(), Signer::new(dir.path()).key_set().unwrap());
    }

    #[test]
    fn whoever_asks_gets_one_with_at_least_half_its_life_left() {
        let dir = tempfile::tempdir().unwrap();
        let signer = Signer::new(dir.path());
        let mut kept = Kept::default();
        let mut at = |seconds: i64, audience: &str| {
            let now = Duration::from_secs(NOW.as_secs().checked_add_signed(seconds).unwrap());
            let token = kept.token(&signer, &subject(None), audience, now).unwrap();
            let left = token.expires_at.unix() - now.as_secs();
            assert!((300..=600).contains(&left), "{left} s left");
            token.token
        };
        let first = at(0, "a");
        assert_eq!(at(299, "a"), first);
        assert_ne!(at(299, "b"), first);
        let second = at(300, "a");
        assert_ne!(second, first);
        // The clock is set back, or far ahead.
        assert_ne!(at(-1000, "a"), second);
        assert_ne!(at(100_000, "a"), second);
        for n in 0..100 {
            at(100_000, &n.to_string());
        }
        assert_eq!(kept.0.len(), MOST_KEPT);
    }

    #[test]
    fn no_project_can_pretend_to_be_another_subject() {
        let text = subject(Some("a/workload/x")).text();
        assert!(text.contains("/project/a%2Fworkload%2Fx/workload/web/"), "{text}");
        assert!(!subject(None).text().contains("project"));
    }

    #[test]
    fn a_damaged_key_is_an_error_and_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("keys")).unwrap();
        let path = dir.path().join("keys").join(KEY_FILE);
        std::fs::write(&path, "x").unwrap();
        let error = Signer::new(dir.path()).key_set().unwrap_err();
        assert!(matches!(error, IdentityError::Key(KeyFileError::Damaged { .. })), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"x");
    }
}
