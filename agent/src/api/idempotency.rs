//! The same request again, told by its key, is answered again and not carried out again
//! (draft-ietf-httpapi-idempotency-key-header-07).
//!
//! In memory only: after a restart of the agent a key is unknown. A request with a key goes on when
//! its client goes away, so that the client can ask again for the answer.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hyper::body::Bytes;
use hyper::{HeaderMap, StatusCode, Uri};
use ring::digest::{Context as Digest, SHA256};

use super::reply::{Answered, Content, Kind, Obstacle, Reply};
use super::routes::Method;
use crate::clock::monotonic_now;

/// How many keys are known.
const MOST_KEYS: usize = 256;
/// For how long.
const KEPT_FOR: Duration = Duration::from_secs(3600);
/// How many requests with a key are carried out at once.
const MOST_UNDER_WAY: usize = 16;
/// Bytes of all kept answers together.
const MOST_BYTES: usize = 1024 * 1024;

/// What was answered to whom.
#[derive(Debug, Default)]
pub(super) struct Memory(Mutex<Entries>);

#[derive(Debug, Default)]
struct Entries {
    /// Oldest first.
    entries: VecDeque<Entry>,
    under_way: usize,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    key: String,
    request: [u8; 32],
    at: Instant,
    /// `None` while it is carried out.
    answer: Option<Given>,
}

/// An answer that was given.
#[derive(Clone, Debug)]
struct Given {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

/// What distinguishes one request from another.
pub(super) fn digest(method: Method, uri: &Uri, body: &[u8]) -> [u8; 32] {
    let mut digest = Digest::new(&SHA256);
    let target = uri.path_and_query().map_or("", |target| target.as_str());
    for part in [method.as_str(), target] {
        digest.update(part.as_bytes());
        digest.update(b"\n");
    }
    digest.update(body);
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest.finish().as_ref());
    bytes
}

/// Carries out what is asked, or gives the answer that was given to it before.
pub(super) async fn once(
    memory: &Arc<Memory>,
    key: String,
    request: [u8; 32],
    work: impl Future<Output = Answered> + Send + 'static,
) -> Answered {
    let ticket = match memory.claim(key, request, monotonic_now())? {
        Claim::Again(given) => return Ok(given.into()),
        Claim::New(key) => Ticket { memory: Arc::clone(memory), key },
    };
    // A task of its own, which the end of the connection does not end.
    let carried_out = tokio::spawn(async move {
        let reply = work.await.unwrap_or_else(Reply::from);
        ticket.keep(&reply);
        reply
    });
    carried_out.await.map_err(|error| {
        tracing::error!(%error, "a request broke off");
        Obstacle::new(Kind::Internal, "the request broke off")
    })
}

enum Claim {
    /// Nobody used this key: whoever gets this carries it out.
    New(String),
    Again(Given),
}

impl Memory {
    fn claim(&self, key: String, request: [u8; 32], now: Instant) -> Result<Claim, Obstacle> {
        let mut memory = self.entries();
        memory.forget_old(now);
        let known = memory.entries.iter().find(|entry| entry.key == key);
        match known.map(|entry| (entry.request == request, &entry.answer)) {
            Some((false, _)) => Err(Obstacle::new(
                Kind::KeyReused,
                "this idempotency key was used for another request; take a new one",
            )),
            Some((true, Some(given))) => Ok(Claim::Again(given.clone())),
            Some((true, None)) => Err(Obstacle::new(
                Kind::UnderWay,
                "the same request is being carried out; ask again for its answer",
            )),
            None if memory.under_way >= MOST_UNDER_WAY => {
                let detail = "too many requests are being carried out; try again later";
                Err(Obstacle::new(Kind::Unavailable, detail))
            }
            None => {
                memory.under_way += 1;
                let entry = Entry { key: key.clone(), request, at: now, answer: None };
                memory.entries.push_back(entry);
                memory.keep_within_limits();
                Ok(Claim::New(key))
            }
        }
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entries {
    fn forget_old(&mut self, now: Instant) {
        let old = |entry: &Entry| {
            entry.answer.is_some() && now.saturating_duration_since(entry.at) >= KEPT_FOR
        };
        while self.entries.front().is_some_and(old) {
            self.remove(0);
        }
    }

    /// The oldest go; none that is being carried out.
    fn keep_within_limits(&mut self) {
        while self.entries.len() > MOST_KEYS || self.bytes > MOST_BYTES {
            let Some(oldest) = self.entries.iter().position(|entry| entry.answer.is_some()) else {
                return;
            };
            self.remove(oldest);
        }
    }

    fn remove(&mut self, at: usize) {
        if let Some(Entry { answer: Some(given), .. }) = self.entries.remove(at) {
            self.bytes -= given.body.len();
        }
    }
}

/// The right and the duty to carry out a request. Dropped without an answer to keep, its key is free
/// again.
#[derive(Debug)]
struct Ticket {
    memory: Arc<Memory>,
    key: String,
}

impl Ticket {
    /// What failed on our side is worth another try with the same key.
    fn keep(&self, reply: &Reply) {
        let Some(body) = reply.body().whole().filter(|_| !reply.status().is_server_error()) else {
            return;
        };
        let mut memory = self.memory.entries();
        let own = memory.entries.iter_mut().find(|entry| entry.key == self.key);
        let Some(entry) = own else { return };
        entry.answer = Some(Given {
            status: reply.status(),
            headers: reply.headers().clone(),
            body: body.clone(),
        });
        memory.bytes += body.len();
        memory.keep_within_limits();
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut memory = self.memory.entries();
        memory.under_way -= 1;
        let own = |entry: &Entry| entry.key == self.key && entry.answer.is_none();
        if let Some(at) = memory.entries.iter().position(own) {
            memory.remove(at);
        }
    }
}

impl From<Given> for Reply {
    fn from(given: Given) -> Self {
        let mut reply = Self::new(Content::Whole(Some(given.body)));
        *reply.status_mut() = given.status;
        *reply.headers_mut() = given.headers;
        reply
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::reply::bytes;

    const LATER: Duration = Duration::from_secs(60);

    fn claim(memory: &Arc<Memory>, key: &str, request: u8, now: Instant) -> Result<Claim, Kind> {
        let claim = memory.claim(key.to_owned(), [request; 32], now);
        claim.map_err(|obstacle| obstacle.kind())
    }

    fn new(memory: &Arc<Memory>, key: &str, now: Instant) -> Ticket {
        let Ok(Claim::New(key)) = claim(memory, key, 1, now) else { panic!("{key} is known") };
        Ticket { memory: Arc::clone(memory), key }
    }

    fn answer(memory: &Arc<Memory>, key: &str, now: Instant, body: Vec<u8>) {
        new(memory, key, now).keep(&bytes(StatusCode::OK, "text/plain", body));
    }

    /// Keys, and bytes of answers.
    fn size(memory: &Memory) -> (usize, usize) {
        let entries = memory.entries();
        (entries.entries.len(), entries.bytes)
    }

    #[test]
    fn an_answer_is_given_again_and_a_key_is_for_one_request() {
        let (memory, now) = (Arc::new(Memory::default()), monotonic_now());
        let ticket = new(&memory, "a", now);
        assert!(matches!(claim(&memory, "a", 1, now), Err(Kind::UnderWay)));
        assert!(matches!(claim(&memory, "a", 2, now), Err(Kind::KeyReused)));
        ticket.keep(&bytes(StatusCode::CONFLICT, "text/plain", "no"));
        drop(ticket);
        let Ok(Claim::Again(given)) = claim(&memory, "a", 1, now + LATER) else { panic!() };
        assert_eq!((given.status, &given.body[..]), (StatusCode::CONFLICT, &b"no"[..]));
        assert_eq!(given.headers["content-type"], "text/plain");
        assert!(matches!(claim(&memory, "a", 2, now), Err(Kind::KeyReused)));
        assert!(matches!(claim(&memory, "a", 2, now + KEPT_FOR), Ok(Claim::New(_))));
    }

    #[test]
    fn what_failed_or_broke_off_leaves_the_key_free() {
        let (memory, now) = (Arc::new(Memory::default()), monotonic_now());
        drop(new(&memory, "a", now));
        new(&memory, "a", now).keep(&bytes(StatusCode::SERVICE_UNAVAILABLE, "text/plain", ""));
        drop(new(&memory, "a", now));
        assert_eq!((size(&memory), memory.entries().under_way), ((0, 0), 0));
    }

    #[test]
    fn keys_answers_and_what_is_under_way_have_limits() {
        let (memory, now) = (Arc::new(Memory::default()), monotonic_now());
        for number in 0..=MOST_KEYS {
            answer(&memory, &number.to_string(), now, vec![0; 10]);
        }
        assert_eq!(size(&memory), (MOST_KEYS, MOST_KEYS * 10));
        answer(&memory, "0", now, vec![0; MOST_BYTES - 5]);
        assert_eq!(size(&memory), (1, MOST_BYTES - 5));
        let tickets: Vec<_> =
            (0..MOST_UNDER_WAY).map(|n| new(&memory, &format!("t{n}"), now)).collect();
        assert!(matches!(claim(&memory, "one-more", 1, now), Err(Kind::Unavailable)));
        drop(tickets);
        drop(new(&memory, "one-more", now));
        // None that is under way goes for the sake of another.
        let ticket = new(&memory, "long", now);
        for number in 0..2 * MOST_KEYS {
            answer(&memory, &format!("n{number}"), now, Vec::new());
        }
        assert!(matches!(claim(&memory, "long", 1, now), Err(Kind::UnderWay)));
        drop(ticket);
    }
}
