//! Orders: judged, stored, acknowledged, put into force.

use std::collections::BTreeSet;

use coracle_core::desired::{Accepted, Reading, read};
use coracle_core::history::History;
use coracle_core::report;
use coracle_core::rollout;
use coracle_protocol::envelope::Envelope;
use coracle_protocol::reported::ConditionStatus;
use coracle_protocol::{Code, GatewayId, Refusal};
use ring::digest::Digest;
use tracing::debug;

use super::{EventLoop, STORE_AGAIN, Unstored};
use crate::execute::{Execute, chain};
use crate::intake::{self, InForce, NotTaken, Order, payload_digest};
use crate::link::AckToken;
use crate::status::Applied;
use crate::store::{Candidate, Loaded, StoreError, StoredOrder};

impl<E: Execute> EventLoop<E> {
    /// Goes on from what the store kept.
    pub async fn restore(&mut self, mut loaded: Loaded, seed: u64) {
        let now = self.clock.now();
        self.restore_usage(&mut loaded.talk);
        self.restore_backlog(&mut loaded.talk, loaded.unwritable.is_none());
        self.history = History::new(loaded.histories, loaded.workloads, seed);
        self.in_force.generation = loaded.highest_generation;
        match &loaded.unwritable {
            Some(reason) => self.store_fails(reason),
            None => self.store_works(),
        }
        if let Some(trouble) = &loaded.trouble {
            // Stays until the next start, whatever can be written meanwhile.
            let name = "store-intact";
            self.condition(name, ConditionStatus::False, "not-as-left", trouble);
            self.happened(now, "store-trouble", None, trouble.clone());
        }
        self.look_around();
        self.no_refusal();
        if let Some(current) = loaded.current {
            self.resume(current);
        }
        if let Some(Ok((previous, _))) = loaded.previous.map(|order| open(&order.envelope).accepted)
        {
            if previous.gateway == self.gateway {
                self.orders.previous = previous.desired;
            }
        }
        self.history.try_changed_units(&self.orders.current, &self.orders.previous);
        let kept = loaded.kept.into_iter().filter_map(|order| open(&order.envelope).accepted.ok());
        let kept = kept.filter(|(kept, _)| kept.gateway == self.gateway);
        let kept: Vec<_> = kept.map(|(kept, _)| kept.desired).collect();
        self.orders.find_good(&kept, &self.history);
        self.give_secrets();
        self.commands.restore(loaded.talk.commands, loaded.talk.all_commands);
        for candidate in loaded.candidates {
            if self.adopt(candidate).await {
                break;
            }
        }
    }

    /// Puts an order from a plain file into force, if it is a good one, even if it cannot be stored.
    async fn adopt(&mut self, candidate: Candidate) -> bool {
        let now = self.clock.now();
        let place = candidate.path.display();
        match self.judge(&candidate.order.envelope).await {
            Ok(order) => {
                let generation = order.desired.generation;
                let message = format!("generation {generation} taken from {place}");
                self.happened(now, "orders-restored", None, message);
                let stored = StoredOrder::new(generation, candidate.order.envelope);
                self.generation_seen = generation;
                if let Err(error) = self.store.accept(stored.clone(), BTreeSet::new()).await {
                    self.store_fails(&chain(&error));
                    let again_at = now.monotonic + STORE_AGAIN;
                    let order = stored.clone();
                    self.unstored = Some(Unstored { order, token: None, in_force: true, again_at });
                }
                self.put_into_force(stored, order);
                true
            }
            Err(NotTaken { refusals, .. }) => {
                let message = format!("orders in {place} not taken: {}", sentences(&refusals));
                self.happened(now, "orders-restored", None, message);
                false
            }
        }
    }

    /// Puts the order that the store kept into force. It was judged when it was accepted; keys that
    /// are trusted today need not be those of that day.
    fn resume(&mut self, order: StoredOrder) {
        let now = self.clock.now();
        let opened = open(&order.envelope);
        self.in_force.payload = opened.payload;
        let stranger = |gateway: GatewayId| !self.gateway.is_nil() && gateway != self.gateway;
        // Without orders nothing is touched: what runs keeps running.
        let unusable = match opened.accepted {
            Ok((accepted, _)) if stranger(accepted.gateway) => format!(
                "the stored orders are those of gateway {}; correct `gateway` or remove the store",
                accepted.gateway
            ),
            Ok((accepted, refusals)) => {
                if !refusals.is_empty() {
                    let message = format!(
                        "this version would refuse the order in force, and keeps what it can of \
                         it: {}",
                        sentences(&refusals)
                    );
                    self.condition("orders", ConditionStatus::False, "partly-unusable", &message);
                }
                // An identity that was lost is no reason to stop: the orders say whose they are.
                self.gateway = accepted.gateway;
                self.generation_seen = order.generation;
                self.unknown_fields = accepted.unknown_fields;
                self.orders.current = accepted.desired;
                self.envelope = Some(order.envelope);
                let message = format!(
                    "generation {} in force as it was stored: {}",
                    order.generation,
                    workloads(self.orders.current.workloads.len())
                );
                return self.happened(now, "orders-restored", None, message);
            }
            Err(refusals) => format!(
                "the stored orders cannot be read by this version: {}",
                sentences(&refusals)
            ),
        };
        self.condition("orders", ConditionStatus::False, "unusable", &unusable);
    }

    /// Takes in a signed order from wherever it came.
    pub(super) async fn receive(&mut self, envelope: Vec<u8>, token: Option<AckToken>) -> Applied {
        match self.judge(&envelope).await {
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

    /// Judges an order by all there is: its document, this gateway, its templates.
    async fn judge(&self, envelope: &[u8]) -> Result<Order, NotTaken> {
        let facts = self.preflight.facts([&self.orders.current, &self.orders.previous]);
        let opened = intake::open(envelope, &self.keys, self.gateway, self.in_force, Some(&facts))?;
        let found = self.preflight.check(&opened.read).await;
        opened.verdict(found)
    }

    /// Stores an order that passed every rule, then acknowledges it and puts it into force.
    async fn accept(
        &mut self,
        stored: StoredOrder,
        order: Order,
        token: Option<AckToken>,
    ) -> Applied {
        let generation = Some(stored.generation);
        self.generation_seen = self.generation_seen.max(stored.generation);
        let now = self.clock.now();
        rollout::settle(&self.orders, &self.observed, &mut self.history, now);
        // What is good enough to return to is to be known as that after a power cut, too.
        self.record_at_once().await;
        let mut orders = self.orders.clone();
        orders.advance(order.desired.clone(), &self.history, &self.observed);
        match self.store.accept(stored.clone(), orders.kept_generations()).await {
            Ok(()) => {
                self.store_works();
                self.acknowledge(token);
                let superseded = self.unstored.take().and_then(|unstored| unstored.token);
                self.acknowledge(superseded);
                self.put_into_force(stored, order);
                Applied { generation, accepted: true, unchanged: false, refusals: Vec::new() }
            }
            Err(error @ StoreError::NotNewer { .. }) => {
                self.acknowledge(token);
                let refusal = Refusal::new("/generation", Code::OLD_GENERATION, chain(&error));
                self.refuse(generation, stored.digest, vec![refusal])
            }
            Err(error) => {
                let message = format!("the order could not be stored: {}", chain(&error));
                self.store_fails(&message);
                let digest = stored.digest.clone();
                self.keep_for_later(stored, token);
                self.refuse(generation, digest, vec![Refusal::whole(Code::NOT_STORED, message)])
            }
        }
    }

    /// Keeps an order that came by the link and could not be stored; who applied one by hand was
    /// told. Only the newest counts.
    fn keep_for_later(&mut self, order: StoredOrder, token: Option<AckToken>) {
        if token.is_none() {
            return;
        }
        let known = self.unstored.as_ref().map(|unstored| unstored.order.generation);
        if known.is_some_and(|known| known > order.generation) {
            return self.acknowledge(token);
        }
        let again_at = self.clock.now().monotonic + STORE_AGAIN;
        let new = Unstored { order, token, in_force: false, again_at };
        let superseded = self.unstored.replace(new).and_then(|unstored| unstored.token);
        self.acknowledge(superseded);
    }

    /// Tries again to store an order that could not be stored, when it is time.
    pub(super) async fn store_again(&mut self) {
        let now = self.clock.now();
        let due = self.unstored.take_if(|unstored| unstored.again_at <= now.monotonic);
        let Some(unstored) = due else { return };
        if !unstored.in_force {
            self.receive(unstored.order.envelope, unstored.token).await;
            return;
        }
        let keep = self.orders.kept_generations();
        match self.store.accept(unstored.order.clone(), keep).await {
            Ok(()) | Err(StoreError::NotNewer { .. }) => self.store_works(),
            Err(error) => {
                self.store_fails(&chain(&error));
                let again_at = now.monotonic + STORE_AGAIN;
                self.unstored = Some(Unstored { again_at, ..unstored });
            }
        }
    }

    fn put_into_force(&mut self, stored: StoredOrder, order: Order) {
        let now = self.clock.now();
        let count = workloads(order.desired.workloads.len());
        self.in_force = InForce { generation: stored.generation, payload: Some(order.payload) };
        self.envelope = Some(stored.envelope);
        self.unknown_fields = order.unknown_fields;
        self.orders.advance(order.desired, &self.history, &self.observed);
        self.history.ordered(&self.orders.current);
        self.history.try_changed_units(&self.orders.current, &self.orders.previous);
        self.give_secrets();
        self.forget_logs();
        self.call_off_pulls();
        self.no_refusal();
        let message = format!("generation {} accepted: {count}", stored.generation);
        self.happened(now, "order-accepted", None, message);
    }

    fn give_secrets(&self) {
        self.preflight.in_force(self.gateway, &self.orders);
    }

    pub(super) fn refuse(
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
        let applied =
            Applied { generation, accepted: false, unchanged: false, refusals: refusals.clone() };
        // The broker gives a retained order again after each reconnect: once is enough to tell.
        if self.refused.as_ref().is_none_or(|known| known.digest != digest) {
            let in_force = self.in_force.generation;
            let Some(shown) = self.refusals.show(generation, in_force, now.monotonic) else {
                debug!("{message}");
                return applied;
            };
            let kind = if shown.important { "order-refused" } else { "order-turned-away" };
            let told = match shown.untold {
                0 => message.clone(),
                untold => format!("{message}; {untold} more before it"),
            };
            self.happened(now, kind, None, told);
        }
        self.condition("orders", ConditionStatus::False, "refused", &message);
        self.refused = Some(report::refused(generation, digest, refusals));
        applied
    }

    fn no_refusal(&mut self) {
        self.refused = None;
        self.condition("orders", ConditionStatus::True, "accepted", "no order is refused");
    }

    pub(super) fn acknowledge(&self, token: Option<AckToken>) {
        if let (Some(link), Some(token)) = (&self.link, token) {
            link.acknowledge(token);
        }
    }
}

/// An order whose signature was judged before, read again.
struct Opened {
    /// Digest of its document, if there is one.
    payload: Option<Digest>,
    /// What can be made of it, and what is said against the rest: the rules of the version that
    /// accepted it may have been others.
    accepted: Result<(Accepted, Vec<Refusal>), Vec<Refusal>>,
}

fn open(envelope: &[u8]) -> Opened {
    let envelope = match Envelope::decode(envelope) {
        Ok(envelope) => envelope,
        Err(refusal) => return Opened { payload: None, accepted: Err(vec![refusal]) },
    };
    let accepted = serde_json::from_slice(&envelope.payload)
        .map_err(|error| vec![Refusal::whole(Code::MALFORMED, error.to_string())])
        .and_then(|document| read(&document, Reading::Tolerant, None).as_far_as_possible());
    Opened { payload: Some(payload_digest(&envelope.payload)), accepted }
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
