//! Orders that are larger than a packet: a pointer says where one is, it is fetched, and then goes the
//! way of every order. Every place is tried, again and again, until the order is there or another one
//! takes its place.

use std::time::Duration;

use coracle_core::backoff::{Retry, retry_delay};
use coracle_core::digest::sha256_hex;
use coracle_protocol::desired::SCHEMA;
use coracle_protocol::envelope::{Envelope, POINTER_PAYLOAD_TYPE};
use coracle_protocol::limits::{MAX_ENVELOPE_BYTES, MAX_PIECE_BYTES, MAX_SOURCES};
use coracle_protocol::pointer::{Chunk, Pointer, Source};
use coracle_protocol::reported::ConditionStatus;
use coracle_protocol::request::Wanted;
use coracle_protocol::{Code, Refusal, piece};
use tokio::task::AbortHandle;

use super::{Done, EventLoop};
use crate::execute::{Execute, chain};
use crate::large_orders::{Fetched, LargeOrderError, LargeOrders};
use crate::link::AckToken;

/// How long a piece is waited for before it is asked for again.
const PIECE_WITHIN: Duration = Duration::from_secs(30);

/// How often a piece is asked for in vain before the next place is tried.
const ASKED_IN_VAIN: u32 = 3;

/// What is being fetched, and with what.
#[derive(Debug)]
pub(super) struct Large {
    orders: LargeOrders,
    fetching: Option<Fetching>,
}

#[derive(Debug)]
struct Fetching {
    pointer: Pointer,
    /// Acknowledged once the order is there, or another takes its place.
    token: AckToken,
    /// The place that is asked.
    source: usize,
    /// How often all places were tried in vain.
    failures: u32,
    /// How often a piece was asked for in vain.
    unanswered: u32,
    /// Something is being done about it beside the loop.
    busy: bool,
    /// Bytes that are there; none before that was looked at.
    length: Option<u64>,
    /// When it is time to go on.
    again_at: Option<Duration>,
    /// What is being done about it beside the loop.
    task: Option<AbortHandle>,
}

impl Fetching {
    /// Nothing more is fetched, and nothing that was is written any more.
    fn abort(&self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl Large {
    pub(super) fn new(orders: LargeOrders) -> Self {
        Self { orders, fetching: None }
    }

    /// When it is time to go on.
    pub(super) fn due(&self) -> Option<Duration> {
        self.fetching.as_ref().and_then(|fetching| fetching.again_at)
    }
}

impl<E: Execute> EventLoop<E> {
    /// Takes in what came on the topic of orders: an order, or where one is.
    pub(super) async fn receive_from_link(&mut self, envelope: Vec<u8>, token: AckToken) {
        if Envelope::payload_type_of(&envelope).as_deref() == Some(POINTER_PAYLOAD_TYPE) {
            self.receive_pointer(&envelope, token);
            return;
        }
        let applied = self.receive(envelope, Some(token)).await;
        let pointed_to = self.large.fetching.as_ref().map(|fetching| fetching.pointer.generation);
        let newer = applied.accepted && !applied.unchanged && applied.generation >= pointed_to;
        if newer {
            self.stop_fetching();
        }
    }

    fn receive_pointer(&mut self, envelope: &[u8], token: AckToken) {
        let digest = sha256_hex(envelope);
        let pointer = match self.judge_pointer(envelope) {
            Ok(pointer) => pointer,
            Err((generation, refusals)) => {
                self.acknowledge(Some(token));
                self.refuse(generation, digest, refusals);
                return;
            }
        };
        self.generation_seen = self.generation_seen.max(pointer.generation);
        let in_force = self.envelope.as_deref().map(sha256_hex);
        if in_force.as_ref() == Some(&pointer.digest) {
            self.stop_fetching();
            return self.acknowledge(Some(token));
        }
        if pointer.generation <= self.in_force.generation {
            self.acknowledge(Some(token));
            let message = format!(
                "generation {} is not newer than {}, which was accepted already",
                pointer.generation, self.in_force.generation
            );
            let refusal = Refusal::new("/generation", Code::OLD_GENERATION, message);
            self.refuse(Some(pointer.generation), digest, vec![refusal]);
            return;
        }
        // What was fetched and refused once is not fetched again: its pointer is retained.
        let refused = self.refused.as_ref().is_some_and(|known| known.digest == pointer.digest);
        if refused && self.large.fetching.is_none() {
            return self.acknowledge(Some(token));
        }
        if let Some(known) = &mut self.large.fetching {
            if known.pointer == pointer {
                let duplicate = std::mem::replace(&mut known.token, token);
                return self.acknowledge(Some(duplicate));
            }
            if pointer.generation < known.pointer.generation {
                return self.acknowledge(Some(token));
            }
        }
        // What there is of the earlier one goes when this one begins.
        if let Some(earlier) = self.large.fetching.take() {
            earlier.abort();
            self.acknowledge(Some(earlier.token));
        }
        let message =
            format!("generation {} of {} bytes is fetched", pointer.generation, pointer.bytes);
        let now = self.clock.now();
        self.happened(now, "order-pointed-to", None, message.clone());
        self.condition("orders", ConditionStatus::Unknown, "fetching", &message);
        self.large.fetching = Some(Fetching {
            pointer,
            token,
            source: 0,
            failures: 0,
            unanswered: 0,
            busy: false,
            length: None,
            again_at: None,
            task: None,
        });
        self.go_on_fetching();
    }

    /// The pointer, or what is to be said against it.
    fn judge_pointer(&self, envelope: &[u8]) -> Result<Pointer, (Option<u64>, Vec<Refusal>)> {
        let whole = |refusal| (None, vec![refusal]);
        let verified = self.keys.verify_of(POINTER_PAYLOAD_TYPE, envelope).map_err(whole)?;
        let pointer: Pointer = serde_json::from_slice(&verified.payload).map_err(|error| {
            let message = format!("the document inside the envelope is no pointer: {error}");
            whole(Refusal::whole(Code::MALFORMED, message))
        })?;
        let mut refusals = Vec::new();
        let mut refuse = |path: &str, code, message: String| {
            refusals.push(Refusal::new(path, code, message));
        };
        if pointer.schema != SCHEMA {
            let message = format!("schema {}; this agent knows {SCHEMA}", pointer.schema);
            refuse("/schema", Code::UNKNOWN_SCHEMA, message);
        }
        if self.gateway.is_nil() || pointer.gateway != self.gateway {
            let message =
                format!("it is for gateway {}; this is {}", pointer.gateway, self.gateway);
            refuse("/gateway", Code::WRONG_GATEWAY, message);
            // Its generation says nothing of ours.
            return Err((None, refusals));
        }
        let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if pointer.digest.len() != 64 || !pointer.digest.bytes().all(hex) {
            let message = "not a SHA-256 in 64 hexadecimal digits".to_owned();
            refuse("/digest", Code::INVALID_VALUE, message);
        }
        if !(1..=MAX_ENVELOPE_BYTES as u64).contains(&pointer.bytes) {
            let message = format!("{} bytes; at most {MAX_ENVELOPE_BYTES}", pointer.bytes);
            refuse("/bytes", Code::TOO_LARGE, message);
        }
        if !(1..=MAX_SOURCES).contains(&pointer.sources.len()) {
            let message = format!("{} places; from 1 to {MAX_SOURCES}", pointer.sources.len());
            refuse("/sources", Code::TOO_MANY, message);
        }
        match refusals.is_empty() {
            true => Ok(pointer),
            false => Err((Some(pointer.generation), refusals)),
        }
    }

    /// Another order has taken its place, or it is there.
    fn stop_fetching(&mut self) {
        let Some(fetching) = self.large.fetching.take() else { return };
        fetching.abort();
        self.acknowledge(Some(fetching.token));
        let orders = self.large.orders.clone();
        tokio::spawn(async move {
            if let Err(error) = orders.forget().await {
                tracing::warn!(error = chain(&error), "what was fetched of an order stays");
            }
        });
    }

    /// Goes on if it is time to.
    pub(super) fn fetch_order_if_due(&mut self) {
        let now = self.clock.now().monotonic;
        let Some(fetching) = &mut self.large.fetching else { return };
        if fetching.again_at.take_if(|at| *at <= now).is_none() {
            return;
        }
        if let Some(Source::Broker {}) = fetching.pointer.sources.get(fetching.source) {
            fetching.unanswered += 1;
            if fetching.unanswered > ASKED_IN_VAIN {
                let reason = "the fleet does not answer through the broker";
                return self.next_place(reason);
            }
        }
        self.go_on_fetching();
    }

    fn go_on_fetching(&mut self) {
        let now = self.clock.now().monotonic;
        let Some(fetching) = &mut self.large.fetching else { return };
        if fetching.busy {
            return;
        }
        let pointer = fetching.pointer.clone();
        let (orders, digest) = (self.large.orders.clone(), pointer.digest.clone());
        match (pointer.sources.get(fetching.source), fetching.length) {
            (Some(Source::Url(url)), _) => {
                fetching.busy = true;
                let url = url.clone();
                fetching.task = Some(self.work.spawn(async move {
                    Done::LargeOrder(digest, orders.fetch(&pointer, &url).await)
                }));
            }
            // What is there already may be all of it.
            (Some(Source::Broker {}), None) => {
                fetching.busy = true;
                fetching.task =
                    Some(self.work.spawn(async move {
                        Done::LargeOrder(digest, orders.begin(&pointer).await)
                    }));
            }
            (Some(Source::Broker {}), Some(offset)) => {
                fetching.again_at = Some(now + PIECE_WITHIN);
                let bytes = u32::try_from(MAX_PIECE_BYTES).unwrap_or(u32::MAX);
                self.want(Wanted::Chunk { digest, offset, bytes });
            }
            (None, _) => {}
        }
    }

    /// There is a connection again: what was asked for before may be lost.
    pub(super) fn ask_for_piece_again(&mut self) {
        let now = self.clock.now().monotonic;
        let Some(fetching) = &mut self.large.fetching else { return };
        if fetching.again_at.is_some() && !fetching.busy {
            fetching.unanswered = 0;
            fetching.again_at = Some(now);
        }
    }

    /// A piece came by the broker. One that nobody waits for is dropped.
    pub(super) fn on_chunk(&mut self, bytes: &[u8]) {
        let Some((Chunk { digest, offset }, bytes)) = piece::decode::<Chunk>(bytes) else {
            tracing::debug!("a piece of no order was dropped");
            return;
        };
        let Some(fetching) = &mut self.large.fetching else { return };
        let pointer = fetching.pointer.clone();
        let from_broker = pointer.sources.get(fetching.source) == Some(&Source::Broker {});
        let awaited = from_broker && fetching.length.is_some() && fetching.again_at.is_some();
        if digest != pointer.digest || !awaited || fetching.busy || bytes.len() > MAX_PIECE_BYTES {
            return;
        }
        fetching.busy = true;
        fetching.again_at = None;
        let (orders, bytes) = (self.large.orders.clone(), bytes.to_vec());
        fetching.task = Some(self.work.spawn(async move {
            Done::LargeOrder(digest, orders.append(&pointer, offset, bytes).await)
        }));
    }

    pub(super) async fn on_large_order(
        &mut self,
        digest: &str,
        result: Result<Fetched, LargeOrderError>,
    ) {
        let Some(fetching) = &mut self.large.fetching else { return };
        if fetching.pointer.digest != digest {
            return;
        }
        fetching.busy = false;
        match result {
            Ok(Fetched::Whole(envelope)) => {
                let Some(fetching) = self.large.fetching.take() else { return };
                self.receive(envelope, Some(fetching.token)).await;
                let orders = self.large.orders.clone();
                tokio::spawn(async move {
                    if let Err(error) = orders.forget().await {
                        tracing::warn!(error = chain(&error), "what was fetched of an order stays");
                    }
                });
            }
            Ok(Fetched::Part(length)) => {
                match fetching.length.replace(length) {
                    // The piece was of another place.
                    Some(before) if before == length => fetching.unanswered += 1,
                    _ => fetching.unanswered = 0,
                }
                match fetching.unanswered > ASKED_IN_VAIN {
                    true => self.next_place("the fleet sends other pieces than are asked for"),
                    false => self.go_on_fetching(),
                }
            }
            Err(error) => self.next_place(&chain(&error)),
        }
    }

    /// One place is no good just now.
    fn next_place(&mut self, reason: &str) {
        let now = self.clock.now().monotonic;
        let Some(fetching) = &mut self.large.fetching else { return };
        fetching.unanswered = 0;
        fetching.length = None;
        fetching.source += 1;
        if fetching.source < fetching.pointer.sources.len() {
            return self.go_on_fetching();
        }
        fetching.source = 0;
        let jitter = self.history.spread(&(&fetching.pointer.digest, fetching.failures));
        fetching.failures = fetching.failures.saturating_add(1);
        let delay = retry_delay(fetching.failures.saturating_add(3), Retry::Backoff, jitter);
        fetching.again_at = Some(now + delay);
        let generation = fetching.pointer.generation;
        let message = format!("generation {generation} cannot be fetched: {reason}");
        self.condition("orders", ConditionStatus::False, "not-fetched", &message);
    }
}
