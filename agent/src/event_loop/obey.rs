//! Orders: judged, stored, acknowledged, put into force.

use std::time::Duration;

use coracle_core::desired::{Accepted, Reading, parse};
use coracle_core::history::History;
use coracle_core::report;
use coracle_protocol::envelope::Envelope;
use coracle_protocol::reported::ConditionStatus;
use coracle_protocol::{Code, Refusal};
use ring::digest::Digest;

use super::{EventLoop, Unstored, payload_digest};
use crate::execute::{Execute, chain};
use crate::intake::{InForce, NotTaken, Order, judge};
use crate::link::AckToken;
use crate::status::Applied;
use crate::store::{Loaded, StoredOrder};

/// How long to wait before an order that could not be stored is tried again.
const STORE_AGAIN: Duration = Duration::from_secs(30);

impl<E: Execute> EventLoop<E> {
    /// Goes on from what the store kept.
    pub async fn restore(&mut self, loaded: Loaded, seed: u64) {
        let now = self.clock.now();
        self.history = History::new(loaded.histories, seed);
        self.in_force.generation = loaded.highest_generation;
        match &loaded.trouble {
            Some(trouble) => self.store_fails(trouble, now),
            None => self.store_works(now),
        }
        self.no_refusal();
        if let Some(previous) = &loaded.previous {
            if let Ok((accepted, _)) = open(&previous.envelope) {
                self.orders.previous = accepted.desired;
            }
        }
        if let Some(current) = loaded.current {
            self.resume(current);
        }
        for candidate in loaded.candidates {
            let place = candidate.path.display().to_string();
            let applied = self.receive(candidate.order.envelope, None).await;
            let message = match applied.accepted {
                true => format!("orders taken from {place}"),
                false => format!("orders in {place} refused: {}", sentences(&applied.refusals)),
            };
            self.happened(now, "orders-restored", None, message);
            if applied.accepted {
                break;
            }
        }
    }

    /// Puts the order that the store kept into force. It was judged when it was accepted; keys that
    /// are trusted today need not be those of that day.
    fn resume(&mut self, order: StoredOrder) {
        let now = self.clock.now();
        match open(&order.envelope) {
            Ok((accepted, payload)) => {
                self.generation_seen = order.generation;
                self.in_force.payload = Some(payload);
                self.unknown_fields = accepted.unknown_fields;
                self.orders.current = accepted.desired;
                self.envelope = Some(order.envelope);
                let message = format!(
                    "generation {} in force as it was stored: {}",
                    order.generation,
                    workloads(self.orders.current.workloads.len())
                );
                self.happened(now, "orders-restored", None, message);
            }
            Err(refusals) => {
                // Without orders nothing is touched: what runs keeps running.
                let message = format!("the stored orders cannot be read: {}", sentences(&refusals));
                self.conditions.set("orders", ConditionStatus::False, "unreadable", &message, now);
            }
        }
    }

    /// Takes in a signed order from wherever it came.
    pub(super) async fn receive(&mut self, envelope: Vec<u8>, token: Option<AckToken>) -> Applied {
        let judged = judge(&envelope, &self.keys, self.gateway, self.in_force);
        match judged {
            Ok(order) => {
                let stored = StoredOrder::new(order.desired.generation, envelope);
                self.accept(stored, order, token).await
            }
            Err(NotTaken { generation, refusals }) => {
                self.acknowledge(token);
                if refusals.is_empty() {
                    return Applied { generation, accepted: true, unchanged: true, refusals };
                }
                self.generation_seen = self.generation_seen.max(generation.unwrap_or(0));
                let digest = StoredOrder::new(0, envelope).digest;
                self.refuse(generation, digest, refusals)
            }
        }
    }

    /// Stores an order that passed every rule, then acknowledges it and puts it into force.
    async fn accept(
        &mut self,
        stored: StoredOrder,
        order: Order,
        token: Option<AckToken>,
    ) -> Applied {
        let now = self.clock.now();
        let generation = Some(stored.generation);
        self.generation_seen = self.generation_seen.max(stored.generation);
        if let Err(error) = self.store.accept(stored.clone()).await {
            let message = format!("the order could not be stored: {}", chain(&error));
            self.store_fails(&message, now);
            let digest = stored.digest.clone();
            let again_at = now.monotonic + STORE_AGAIN;
            self.unstored = Some(Unstored { order: stored, token, again_at });
            return self.refuse(
                generation,
                digest,
                vec![Refusal::whole(Code::NOT_STORED, message)],
            );
        }
        self.store_works(now);
        self.acknowledge(token);
        self.unstored = None;
        self.put_into_force(stored, order);
        Applied { generation, accepted: true, unchanged: false, refusals: Vec::new() }
    }

    fn put_into_force(&mut self, stored: StoredOrder, order: Order) {
        let now = self.clock.now();
        let count = workloads(order.desired.workloads.len());
        self.in_force = InForce { generation: stored.generation, payload: Some(order.payload) };
        self.envelope = Some(stored.envelope);
        self.unknown_fields = order.unknown_fields;
        self.orders.previous = std::mem::replace(&mut self.orders.current, order.desired);
        self.history.ordered(&self.orders.current);
        self.call_off_pulls();
        self.no_refusal();
        let message = format!("generation {} accepted: {count}", stored.generation);
        self.happened(now, "order-accepted", None, message);
    }

    fn refuse(
        &mut self,
        generation: Option<u64>,
        digest: String,
        refusals: Vec<Refusal>,
    ) -> Applied {
        let now = self.clock.now();
        let message = match generation {
            Some(generation) => {
                format!("generation {generation} refused: {}", sentences(&refusals))
            }
            None => format!("an order was refused: {}", sentences(&refusals)),
        };
        self.conditions.set("orders", ConditionStatus::False, "refused", &message, now);
        // The broker gives a retained order again after each reconnect: once is enough to tell.
        if self.refused.as_ref().is_none_or(|known| known.digest != digest) {
            self.happened(now, "order-refused", None, message);
        }
        self.refused = Some(report::refused(generation, digest, refusals.clone()));
        Applied { generation, accepted: false, unchanged: false, refusals }
    }

    fn no_refusal(&mut self) {
        let now = self.clock.now();
        self.refused = None;
        self.conditions.set(
            "orders",
            ConditionStatus::True,
            "accepted",
            "no order is refused",
            now,
        );
    }

    /// Tries again to store an order that could not be stored, when it is time.
    pub(super) async fn store_again(&mut self) {
        let now = self.clock.now().monotonic;
        if let Some(unstored) = self.unstored.take_if(|unstored| unstored.again_at <= now) {
            self.receive(unstored.order.envelope, unstored.token).await;
        }
    }

    fn acknowledge(&self, token: Option<AckToken>) {
        if let (Some(link), Some(token)) = (&self.link, token) {
            link.acknowledge(token);
        }
    }
}

/// Reads an order whose signature was judged before.
fn open(envelope: &[u8]) -> Result<(Accepted, Digest), Vec<Refusal>> {
    let envelope = Envelope::decode(envelope).map_err(|refusal| vec![refusal])?;
    let payload = payload_digest(&envelope.payload);
    let document = serde_json::from_slice(&envelope.payload)
        .map_err(|error| vec![Refusal::whole(Code::MALFORMED, error.to_string())])?;
    Ok((parse(&document, Reading::Tolerant)?, payload))
}

/// How many workloads, for people.
fn workloads(count: usize) -> String {
    match count {
        1 => "1 workload".into(),
        _ => format!("{count} workloads"),
    }
}

/// Refusals in one line, for people.
fn sentences(refusals: &[Refusal]) -> String {
    let shown: Vec<_> = refusals.iter().take(3).map(ToString::to_string).collect();
    let more = refusals.len().saturating_sub(shown.len());
    let tail = if more > 0 { format!("; and {more} more") } else { String::new() };
    shown.join("; ") + &tail
}
