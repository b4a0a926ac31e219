//! Events for the fleet: kept, written, sent until a receipt names them.
//!
//! In: what happened, connections, receipts and hints. Out: packets of events and records for the
//! store. Deliberately not here: what is sent and written when, which `coracle_core::backlog` decides.

use std::time::Duration;

use coracle_core::backlog::Backlog;
use coracle_core::budget::TrafficKind;
use coracle_core::history::Now;
use coracle_protocol::Timestamp;
use coracle_protocol::receipt::{Hints, ReceivedEvents};
use coracle_protocol::topic::Kind;
use ring::rand::{SecureRandom, SystemRandom};
use tracing::{debug, warn};

use super::EventLoop;
use super::parcels::{Freight, parcel};
use crate::clock::wall_now;
use crate::execute::{Execute, chain};
use crate::link::{self, Delivery, Parcel};
use crate::store::Talk;

/// Over how long what is not important is spread after a reconnect, unless the fleet hints otherwise.
const SPREAD: Duration = Duration::from_secs(30);

/// Longest spread that a hint may ask for.
const LONGEST_SPREAD: Duration = Duration::from_secs(60 * 60);

/// Events without a receipt, and what is known of the fleet's wishes.
#[derive(Debug)]
pub(super) struct EventsToTell {
    backlog: Backlog,
    spread: Duration,
    /// When there is something to send that could not be sent when it was last tried.
    send_at: Option<Duration>,
}

impl Default for EventsToTell {
    fn default() -> Self {
        let backlog = Backlog::restore(None, Default::default(), random(), false);
        Self { backlog, spread: SPREAD, send_at: None }
    }
}

impl EventsToTell {
    /// When there is something to send or to write.
    pub(super) fn due(&self) -> Option<Duration> {
        [self.send_at, self.backlog.write_due()].into_iter().flatten().min()
    }

    /// What is to be written along with other records, or by itself if it is time.
    pub(super) fn backlog_mut(&mut self) -> &mut Backlog {
        &mut self.backlog
    }

    /// Whether something is to be written now, even if nothing else is.
    pub(super) fn write_is_due(&self, now: Now) -> bool {
        self.backlog.write_due().is_some_and(|at| at <= now.monotonic)
    }
}

impl<E: Execute> EventLoop<E> {
    /// Goes on with what the store kept of events.
    pub(super) fn restore_backlog(&mut self, talk: &mut Talk, writable: bool) {
        let (record, events) = (talk.backlog.take(), std::mem::take(&mut talk.events));
        self.events.backlog = Backlog::restore(record, events, random(), writable);
    }

    /// Keeps what happened for the fleet, if there is a way to it.
    pub(super) fn keep_event(
        &mut self,
        now: Now,
        kind: &str,
        replica: Option<&str>,
        message: &str,
    ) {
        if self.link.is_some() {
            let at = Timestamp::from_unix(now.wall.as_secs());
            self.events.backlog.add(now.monotonic, at, kind, replica, message);
        }
    }

    pub(super) fn backlog_connected(&mut self) {
        let now = self.clock.now().monotonic;
        let spread = self.events.spread.mul_f64(random_part());
        self.events.backlog.connected(now, spread);
    }

    pub(super) fn backlog_disconnected(&mut self) {
        self.events.backlog.disconnected();
    }

    /// The fleet holds these events.
    pub(super) fn on_received_events(&mut self, received: &ReceivedEvents) {
        let now = self.clock.now().monotonic;
        self.events.backlog.received(received, now);
    }

    /// The fleet would like something.
    pub(super) fn on_hints(&mut self, hints: Hints) {
        if let (Some(link), Some(seconds)) = (&self.link, hints.reconnect_window_seconds) {
            let window = Duration::from_secs(seconds.into());
            link.hint(link::Hints { reconnect_window: Some(window) });
        }
        if let Some(seconds) = hints.backlog_spread_seconds {
            let spread = Duration::from_secs(seconds.into()).min(LONGEST_SPREAD);
            self.events.spread = spread;
            let now = self.clock.now().monotonic;
            self.events.backlog.spread_at_most(now, spread);
        }
    }

    /// Nothing can be sent for now.
    pub(super) fn rest_events(&mut self) {
        self.events.send_at = None;
    }

    /// Some events that are to be sent now.
    pub(super) fn next_events(&mut self) -> Option<(Freight, Parcel)> {
        let now = self.clock.now().monotonic;
        if !self.events.backlog.is_empty() && !self.may_send(TrafficKind::Reports, 1) {
            self.events.backlog.over_budget();
        }
        let limit = self.payload_limit(Kind::Events);
        let batch = self.events.backlog.batch(self.gateway, limit, now);
        self.events.send_at = self.events.backlog.due(now);
        let batch = batch?;
        debug!(events = batch.sequences.len(), bytes = batch.payload.len(), "telling events");
        Some((Freight::Events(batch.sequences), parcel(Kind::Events, batch.payload)))
    }

    pub(super) fn events_delivered(&mut self, sequences: &[u64], delivery: &Delivery) {
        let now = self.clock.now().monotonic;
        match delivery {
            Delivery::Done => self.events.backlog.delivered(sequences, now),
            // Tried again like what has no receipt.
            Delivery::Refused(reason) => {
                warn!(reason, "events could not be published");
                self.events.backlog.delivered(sequences, now);
            }
            Delivery::Lost => {}
        }
    }

    /// Writes what has not been written yet, before the agent ends. A write that was under way may
    /// have been called off.
    pub(super) async fn store_backlog(&mut self) {
        let now = self.clock.now().monotonic;
        let mut changes = self.events.backlog.take_all_changes(now);
        changes.extend(self.usage_change(false));
        if changes.is_empty() {
            return;
        }
        if let Err(error) = self.store.record(changes).await {
            warn!(error = chain(&error), "events that nobody has a receipt for are lost");
        }
    }
}

/// A random number from 0 to 1.
pub(super) fn random_part() -> f64 {
    f64::from(u16::from_le_bytes(random())) / f64::from(u16::MAX)
}

/// Random bytes. Without any from the kernel, the clock's: nothing secret depends on them.
fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    if SystemRandom::new().fill(&mut bytes).is_err() {
        let clock = wall_now().as_nanos().to_le_bytes();
        bytes.iter_mut().zip(clock).for_each(|(byte, clock)| *byte = clock);
    }
    bytes
}
