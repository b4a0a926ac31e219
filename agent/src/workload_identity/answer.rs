//! From a request to its answer, for one pod.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use coracle_core::name::ResourceName;
use coracle_protocol::Timestamp;
use hyper::header::{ETAG, HeaderValue, IF_NONE_MATCH, RETRY_AFTER};
use hyper::{Method, Request, StatusCode};
use ring::digest::{SHA256, digest};
use serde_json::json;

use super::token::{Kept, Signer, Subject};
use crate::clock::{monotonic_now, wall_now};
use crate::http_reply::{JSON, Kind, Reply, bytes, json, problem, wrong_method};
use crate::secrets::Secrets;

/// Requests of one pod: at most this many at once, and one more for each period after that.
const BURST: u32 = 40;
const PERIOD: Duration = Duration::from_millis(50);
/// When a workload should look for another value of a credential.
const REFRESH: Duration = Duration::from_secs(300);
const MOST_AUDIENCE: usize = 256;
/// Before a credential's name.
const CREDENTIAL: &str = "/v1/credentials/";

/// A pod that is served.
pub(super) struct Pod {
    signer: Arc<Signer>,
    secrets: Arc<Secrets>,
    state: Mutex<State>,
}

struct State {
    subject: Subject,
    grants: Vec<ResourceName>,
    kept: Kept,
    /// When the requests so far will have been paid for.
    paid_at: Instant,
}

impl Pod {
    pub(super) fn new(
        subject: Subject,
        grants: Vec<ResourceName>,
        signer: Arc<Signer>,
        secrets: Arc<Secrets>,
    ) -> Self {
        let state = State { subject, grants, kept: Kept::default(), paid_at: monotonic_now() };
        Self { signer, secrets, state: Mutex::new(state) }
    }

    /// Changes who the pod is and what it is granted.
    pub(super) fn change(&self, subject: Subject, grants: Vec<ResourceName>) {
        let mut state = self.state();
        if state.subject != subject {
            state.subject = subject;
            state.kept.clear();
        }
        state.grants = grants;
    }

    pub(super) fn answer<B>(&self, request: &Request<B>) -> Reply {
        let mut state = self.state();
        if !state.may_ask(monotonic_now()) {
            let mut reply =
                problem(Kind::TooManyRequests, "too many requests; ask again in a second");
            reply.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
            return reply;
        }
        let path = request.uri().path();
        let known = matches!(path, "/v1/identity" | "/v1/token" | "/v1/credentials")
            || path.starts_with(CREDENTIAL);
        if !known {
            return problem(Kind::NotFound, "there is no such resource");
        }
        if request.method() != Method::GET {
            return wrong_method("GET");
        }
        match path {
            "/v1/identity" => state.identity(),
            "/v1/token" => self.token(&mut state, request.uri().query().unwrap_or_default()),
            "/v1/credentials" => state.credentials(),
            path => {
                let known = request.headers().get(IF_NONE_MATCH);
                self.credential(&state, &path[CREDENTIAL.len()..], known)
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn token(&self, state: &mut State, query: &str) -> Reply {
        let audience = match audience(query) {
            Ok(audience) => audience,
            Err(error) => return problem(Kind::BadRequest, error),
        };
        let State { subject, kept, .. } = state;
        match kept.token(&self.signer, subject, &audience, wall_now()) {
            Ok(token) => json(StatusCode::OK, &token),
            Err(error) => {
                tracing::warn!(replica = %subject.replica, %error, "no token for a workload");
                problem(Kind::Unavailable, error.to_string())
            }
        }
    }

    fn credential(&self, state: &State, name: &str, known: Option<&HeaderValue>) -> Reply {
        if !state.grants.iter().any(|grant| grant.as_str() == name) {
            // The same for what is not granted and what does not exist.
            return problem(Kind::NotFound, "no such credential is granted");
        }
        let value = match self.secrets.value(name) {
            Ok(value) => value,
            Err(error) => {
                let replica = &state.subject.replica;
                tracing::warn!(%replica, %error, "no credential for a workload");
                return problem(Kind::Unavailable, error.to_string());
            }
        };
        let tag = entity_tag(value.expose());
        let unchanged = known.and_then(|known| known.to_str().ok()).is_some_and(|known| {
            known.split(',').any(|one| one.trim().trim_start_matches("W/") == tag)
        });
        let mut reply = if unchanged {
            bytes(StatusCode::NOT_MODIFIED, JSON, Vec::new())
        } else {
            let (encoding, value) = match std::str::from_utf8(value.expose()) {
                Ok(text) => ("utf-8", text.to_owned()),
                Err(_) => ("base64", STANDARD.encode(value.expose())),
            };
            let body = json!({
                "name": name, "encoding": encoding, "value": value,
                "refresh_after": refresh_after(),
            });
            json(StatusCode::OK, &body)
        };
        if let Ok(tag) = HeaderValue::from_str(&tag) {
            reply.headers_mut().insert(ETAG, tag);
        }
        reply
    }
}

impl State {
    /// A leaky bucket: whoever asks faster than one request a period, beyond the burst, is told so.
    fn may_ask(&mut self, now: Instant) -> bool {
        let paid_at = self.paid_at.max(now);
        if paid_at.duration_since(now) >= PERIOD * BURST {
            return false;
        }
        self.paid_at = paid_at + PERIOD;
        true
    }

    fn identity(&self) -> Reply {
        let Subject { gateway, project, replica } = &self.subject;
        let body = json!({
            "issuer": gateway,
            "subject": self.subject.text(),
            "gateway": gateway,
            "project": project,
            "workload": replica.workload,
            "replica": replica.index,
            "credentials": self.grants,
        });
        json(StatusCode::OK, &body)
    }

    fn credentials(&self) -> Reply {
        let body = json!({ "credentials": self.grants, "refresh_after": refresh_after() });
        json(StatusCode::OK, &body)
    }
}

fn refresh_after() -> Timestamp {
    Timestamp::from_unix((wall_now() + REFRESH).as_secs())
}

/// Tells values apart without telling them.
fn entity_tag(value: &[u8]) -> String {
    let hash = digest(&SHA256, value);
    let digits: String = hash.as_ref()[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("\"{digits}\"")
}

/// `audience=X`, percent-encoded where it must be, and nothing else.
fn audience(query: &str) -> Result<String, &'static str> {
    const EXPECTED: &str = "say for whom the token is: /v1/token?audience=NAME";
    let text = query.strip_prefix("audience=").ok_or(EXPECTED)?;
    if text.contains('&') {
        return Err("audience is the only parameter");
    }
    let audience = percent_decode(text).ok_or("the audience is not percent-encoded UTF-8")?;
    let plain = audience.chars().all(|c| c.is_ascii_graphic());
    match audience.len() {
        0 => Err(EXPECTED),
        length if length > MOST_AUDIENCE || !plain => {
            Err("an audience has at most 256 characters, none of them a space")
        }
        _ => Ok(audience),
    }
}

fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
                u8::try_from(digit(rest.next())? * 16 + digit(rest.next())?).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn audiences_are_decoded_and_bounded() {
        assert_eq!(audience("audience=mqtt").unwrap(), "mqtt");
        assert_eq!(audience("audience=https%3A%2F%2Fx.example/").unwrap(), "https://x.example/");
        let long = format!("audience={}", "x".repeat(257));
        for bad in [
            "",
            "audience",
            "audience=",
            "audience=a&b=c",
            "b=c",
            "audience=%zz",
            "audience=%ff",
            "audience=a%20b",
            "audience=a%0ab",
            "audience=%",
            &long,
        ] {
            assert!(audience(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn requests_have_a_rate() {
        let now = monotonic_now();
        let mut state = State {
            subject: Subject {
                gateway: coracle_protocol::GatewayId::nil(),
                project: None,
                replica: coracle_core::name::ReplicaId {
                    workload: coracle_core::name::WorkloadName::parse("web").unwrap(),
                    index: 0,
                },
            },
            grants: Vec::new(),
            kept: Kept::default(),
            paid_at: now,
        };
        let burst = (0..1000).filter(|_| state.may_ask(now)).count();
        assert_eq!(burst, BURST as usize);
        let later = now + Duration::from_secs(1);
        assert_eq!((0..1000).filter(|_| state.may_ask(later)).count(), 20);
        let much_later = now + Duration::from_secs(3600);
        assert_eq!((0..1000).filter(|_| state.may_ask(much_later)).count(), BURST as usize);
    }
}
