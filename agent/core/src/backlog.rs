//! The backlog: events that the fleet has no receipt for.
//!
//! In: events, connections, receipts, what became of packets and of writes, the time. Out: what to
//! send next, what to write and when. Bounded: when it is full the oldest that is not important goes
//! first, then the oldest, and is counted. What a broker has acknowledged is kept all the same, until
//! the fleet's receipt names it. Deliberately not here: the store, the link, any clock.
//!
//! Flash is spared: an event joins whatever is written next, and is written on its own within a
//! minute, or at once if it is important. One that the fleet has before that is never written. So
//! that an event which is sent and not yet written never lends its number to another one after a
//! crash, numbers are reserved by the dozen, and only reserved ones are sent.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use coracle_protocol::desired::SCHEMA;
use coracle_protocol::event::{Event, Events};
use coracle_protocol::limits::MAX_EVENTS;
use coracle_protocol::receipt::ReceivedEvents;
use coracle_protocol::{GatewayId, Timestamp};
use serde::{Deserialize, Serialize};

use crate::record::{Record, RecordId};
use crate::report::one_line;

/// Most events that wait for a receipt.
pub const MOST: usize = 512;

/// How many numbers are reserved with one write.
const RESERVED: u64 = 64;

/// With fewer reserved numbers left, the next write reserves more.
const FEW: u64 = 32;

/// An event that is not important is written on its own after this.
const WRITE_AFTER: Duration = Duration::from_secs(60);

/// What cannot be sent before numbers are reserved waits this long for others to be written with.
const RESERVE_AFTER: Duration = Duration::from_secs(5);

/// That an event need not be kept any more is written on its own after this.
const FORGET_AFTER: Duration = Duration::from_secs(60 * 60);

/// First pause before what has no receipt is sent again; it doubles.
pub const FIRST_PAUSE: Duration = Duration::from_secs(60);

/// Longest pause before what has no receipt is sent again, for about a day.
pub const LONG_PAUSE: Duration = Duration::from_secs(60 * 60);

/// How many of these there are before pauses become as long as they can.
const LONG_PAUSES: u32 = 24;

/// Longest pause before what has no receipt is sent again: nobody seems to give receipts.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(24 * 60 * 60);

/// What is not important is sent at most this often when the link's budget is used up.
const APART_OVER_BUDGET: Duration = Duration::from_secs(60 * 60);

/// Longest message of an event that is kept, in bytes.
const MAX_MESSAGE_BYTES: usize = 1500;

/// Longest name of an event's kind, and of its replica, in bytes.
const MAX_NAME_BYTES: usize = 128;

/// What is kept of an event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRecord {
    /// When, in seconds since the Unix epoch by the wall clock.
    pub at: u64,
    /// What kind, for programs.
    pub kind: String,
    /// Which workload's replica, if it concerns one.
    pub replica: Option<String>,
    /// For people.
    pub message: String,
}

/// What is kept of all events together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BacklogRecord {
    /// Within which sequences count; random.
    pub stream: [u8; 16],
    /// No event has this sequence or a higher one.
    pub next: u64,
    /// How many were dropped.
    pub dropped: u64,
}

/// How much an event matters to the fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Importance {
    /// Not sent: the fleet learns of it in another way, or it says nothing of the gateway's work.
    Chatter,
    /// Sent.
    Ordinary,
    /// Sent first, written at once, dropped last.
    Important,
}

/// How much events of a kind matter.
pub fn importance(kind: &str) -> Importance {
    match kind {
        // Presence says so.
        "link-up" => Importance::Chatter,
        // They follow from an order, and the report shows what came of it.
        "refreshed" | "adjusted" | "image-removed" | "artifact-removed" | "order-pointed-to" => {
            Importance::Chatter
        }
        "order-accepted" | "order-refused" | "rolled-back" | "command-refused"
        | "store-trouble" => Importance::Important,
        _ => Importance::Ordinary,
    }
}

#[derive(Clone, Debug)]
struct Kept {
    record: EventRecord,
    important: bool,
    /// The fleet may know of it: it was given to the link, by this agent or perhaps by one before.
    given: bool,
    /// It is in the store, or on its way there.
    stored: bool,
    /// A broker has taken it on this connection or an earlier one.
    sent: bool,
    /// How often a broker has taken it on this connection.
    tries: u32,
}

/// A packet of events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The sequences of the events in it.
    pub sequences: Vec<u64>,
    /// [`Events`] as JSON.
    pub payload: Vec<u8>,
}

/// Events that the fleet has no receipt for, and how far they are.
#[derive(Clone, Debug)]
pub struct Backlog {
    stream: [u8; 16],
    next: u64,
    dropped: u64,
    events: BTreeMap<u64, Kept>,

    /// Sequences below this may be sent.
    sendable: u64,
    /// The stream is in the store.
    durable: bool,
    /// In the store, and to be removed there.
    forget: BTreeSet<u64>,
    /// How many were dropped, as the store has it.
    dropped_stored: u64,
    /// A write is under way, which reserves sequences below this if it says so.
    writing: Option<Option<u64>>,
    /// When to write at the latest.
    write_at: Option<Duration>,

    connected: bool,
    /// What is not important waits until then.
    spread_until: Duration,
    /// When something that is not important was sent last.
    ordinary_at: Option<Duration>,
    /// When to send again what has no receipt.
    resend_at: Option<Duration>,
    pause: Duration,
    /// How many long pauses there were since the fleet's last receipt.
    long_pauses: u32,
    /// What was sent last was sent again.
    resending: bool,
}

impl Backlog {
    /// Goes on from what the store kept. `fresh` is the random name of a new stream, for where the
    /// store has none, or cannot be written (`writable`): sequences could then come twice.
    pub fn restore(
        record: Option<BacklogRecord>,
        events: BTreeMap<u64, EventRecord>,
        fresh: [u8; 16],
        writable: bool,
    ) -> Self {
        let after_last = events.keys().next_back().map_or(1, |last| last.saturating_add(1));
        let known = record.clone().unwrap_or_default();
        let next = known.next.max(after_last);
        let durable = record.is_some() && writable;
        let kept = |record: EventRecord| {
            let important = importance(&record.kind) == Importance::Important;
            Kept { record, important, given: true, stored: true, sent: false, tries: 0 }
        };
        let mut backlog = Self {
            stream: if durable { known.stream } else { fresh },
            next,
            dropped: known.dropped,
            events: events.into_iter().map(|(sequence, record)| (sequence, kept(record))).collect(),
            sendable: if durable { known.next } else { u64::MAX },
            durable,
            forget: BTreeSet::new(),
            dropped_stored: known.dropped,
            writing: None,
            write_at: None,
            connected: false,
            spread_until: Duration::ZERO,
            ordinary_at: None,
            resend_at: None,
            pause: FIRST_PAUSE,
            long_pauses: 0,
            resending: false,
        };
        while backlog.events.len() > MOST {
            backlog.drop_one();
        }
        backlog
    }

    /// How many events wait for a receipt.
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Whether no event waits for a receipt.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// How many events were dropped.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Takes in what happened, unless it is chatter.
    pub fn add(
        &mut self,
        now: Duration,
        at: Timestamp,
        kind: &str,
        replica: Option<&str>,
        message: &str,
    ) {
        let importance = importance(kind);
        if importance == Importance::Chatter {
            return;
        }
        let important = importance == Importance::Important;
        let record = EventRecord {
            at: at.unix(),
            kind: cut(kind, MAX_NAME_BYTES).to_owned(),
            replica: replica.map(|replica| cut(replica, MAX_NAME_BYTES).to_owned()),
            message: cut(&one_line(message), MAX_MESSAGE_BYTES).to_owned(),
        };
        let sequence = self.next;
        self.next = self.next.saturating_add(1);
        let kept = Kept { record, important, given: false, stored: false, sent: false, tries: 0 };
        self.events.insert(sequence, kept);
        if self.events.len() > MOST {
            self.drop_one();
        }
        let after = match important {
            true => Duration::ZERO,
            false if sequence >= self.sendable => RESERVE_AFTER,
            false => WRITE_AFTER,
        };
        self.write_by(now + after);
    }

    fn drop_one(&mut self) {
        let least = self.events.iter().find(|(_, kept)| !kept.important);
        let Some(sequence) = least.or(self.events.iter().next()).map(|(at, _)| *at) else { return };
        self.remove(sequence);
        self.dropped = self.dropped.saturating_add(1);
    }

    fn remove(&mut self, sequence: u64) {
        if self.events.remove(&sequence).is_some_and(|kept| kept.stored) {
            self.forget.insert(sequence);
        }
    }

    fn write_by(&mut self, moment: Duration) {
        self.write_at = Some(self.write_at.map_or(moment, |at| at.min(moment)));
    }

    /// A connection was made. What is not important waits for `spread`, so that many gateways that
    /// lost the same broker do not tell everything at once.
    pub fn connected(&mut self, now: Duration, spread: Duration) {
        self.connected = true;
        self.spread_until = now + spread;
        self.pause = FIRST_PAUSE;
        self.resending = false;
        self.events.values_mut().for_each(|kept| kept.tries = 0);
        self.resend_at = self.anything_sent().then_some(now);
    }

    /// What waits since the connection was made does so no longer than this from now on.
    pub fn spread_at_most(&mut self, now: Duration, spread: Duration) {
        self.spread_until = self.spread_until.min(now + spread);
    }

    /// The link's budget is used up for now: what is not important goes at most once an hour.
    pub fn over_budget(&mut self) {
        if let Some(at) = self.ordinary_at {
            self.spread_until = self.spread_until.max(at + APART_OVER_BUDGET);
        }
    }

    /// The connection is lost.
    pub fn disconnected(&mut self) {
        self.connected = false;
        self.resend_at = None;
    }

    fn anything_sent(&self) -> bool {
        self.events.values().any(|kept| kept.sent)
    }

    fn may_go(&self, sequence: u64, kept: &Kept, now: Duration) -> bool {
        let again = self.resend_at.is_some_and(|at| at <= now);
        (!kept.sent || again)
            && sequence < self.sendable
            && (kept.important || self.spread_until <= now)
    }

    /// What to send now, as a packet of at most `limit` bytes of JSON: what was sent least often
    /// first, and of that what is important, then the oldest. An event that is larger than the limit
    /// by itself has its message cut.
    ///
    /// What becomes of it is to be said by [`delivered`](Self::delivered) before the next one is
    /// asked for; a packet that was lost needs no word.
    pub fn batch(&mut self, gateway: GatewayId, limit: usize, now: Duration) -> Option<Batch> {
        if !self.connected {
            return None;
        }
        let ready = self.events.iter().filter(|(at, kept)| self.may_go(**at, kept, now));
        let mut ready: Vec<_> = ready.collect();
        ready.sort_by_key(|(at, kept)| (kept.tries, !kept.important, **at));
        let mut document = Events {
            schema: SCHEMA,
            gateway,
            stream: hexadecimal(&self.stream),
            dropped: self.dropped,
            events: Vec::new(),
        };
        let mut room = limit.saturating_sub(json(&document).len());
        let (mut sequences, mut again) = (Vec::new(), false);
        for (sequence, kept) in ready.into_iter().take(MAX_EVENTS) {
            let mut event = event(*sequence, &kept.record);
            if sequences.is_empty() {
                shorten(&mut event, room);
            }
            // A comma goes between two.
            let bytes = json(&event).len() + usize::from(!sequences.is_empty());
            if bytes > room && !sequences.is_empty() {
                break;
            }
            room = room.saturating_sub(bytes);
            again |= kept.sent;
            sequences.push(*sequence);
            document.events.push(event);
        }
        if sequences.is_empty() {
            return None;
        }
        for sequence in &sequences {
            if let Some(kept) = self.events.get_mut(sequence) {
                kept.given = true;
                if !kept.important {
                    self.ordinary_at = Some(now);
                }
            }
        }
        if again {
            self.resending = true;
            self.resend_at = Some(now + self.next_pause());
        }
        Some(Batch { sequences, payload: json(&document) })
    }

    /// A broker has taken these events, or has refused them, which is no reason to try at once again.
    pub fn delivered(&mut self, sequences: &[u64], now: Duration) {
        for sequence in sequences {
            if let Some(kept) = self.events.get_mut(sequence) {
                kept.sent = true;
                kept.tries = kept.tries.saturating_add(1);
            }
        }
        if self.connected && self.resend_at.is_none() && self.anything_sent() {
            self.resend_at = Some(now + self.next_pause());
        }
    }

    fn next_pause(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).min(LONG_PAUSE);
        if pause < LONG_PAUSE {
            return pause;
        }
        self.long_pauses = self.long_pauses.saturating_add(1);
        if self.long_pauses > LONG_PAUSES { LONGEST_PAUSE } else { LONG_PAUSE }
    }

    /// The fleet holds these. It cannot hold what was never sent: nobody signs receipts, so a broker
    /// could claim any.
    pub fn received(&mut self, received: &ReceivedEvents, now: Duration) {
        if received.stream != hexadecimal(&self.stream) {
            return;
        }
        let held = |at: &u64| received.sequences.iter().any(|(a, b)| (a..=b).contains(&at));
        let given = self.events.iter().filter(|(_, kept)| kept.given).map(|(at, _)| *at);
        let held: Vec<_> = given.filter(held).collect();
        if held.is_empty() {
            return;
        }
        held.into_iter().for_each(|sequence| self.remove(sequence));
        if !self.forget.is_empty() {
            self.write_by(now + FORGET_AFTER);
        }
        // The fleet answers: what else has no receipt was lost on its way.
        self.pause = FIRST_PAUSE;
        self.long_pauses = 0;
        let again = match self.resending {
            true => now,
            false => now + FIRST_PAUSE,
        };
        self.resend_at = match self.connected && self.anything_sent() {
            true => Some(self.resend_at.map_or(again, |at| at.min(again))),
            false => None,
        };
        self.resending &= self.resend_at.is_some();
    }

    /// When there is something to send, if not now; `now` is when it was last asked for.
    pub fn due(&self, now: Duration) -> Option<Duration> {
        if !self.connected {
            return None;
        }
        let moments = self.events.iter().filter(|(at, _)| **at < self.sendable);
        let moments = moments.filter_map(|(_, kept)| {
            let calm = if kept.important { Duration::ZERO } else { self.spread_until };
            match kept.sent {
                false => Some(calm),
                true => self.resend_at.map(|at| at.max(calm)),
            }
        });
        moments.filter(|at| *at > now).min()
    }

    /// When something is to be written even if nothing else is.
    pub fn write_due(&self) -> Option<Duration> {
        self.write_at.filter(|_| self.writing.is_none())
    }

    /// What is to be written, with whatever else is; it is on its way then, until
    /// [`stored`](Self::stored) or [`not_stored`](Self::not_stored). Nothing while a write is.
    pub fn take_changes(&mut self) -> Vec<(RecordId, Option<Record>)> {
        if self.writing.is_some() {
            return Vec::new();
        }
        let forget = std::mem::take(&mut self.forget);
        let mut changes: Vec<_> =
            forget.into_iter().map(|sequence| (RecordId::Event(sequence), None)).collect();
        for (sequence, kept) in self.events.iter_mut().filter(|(_, kept)| !kept.stored) {
            kept.stored = true;
            let record = Record::Event(kept.record.clone());
            changes.push((RecordId::Event(*sequence), Some(record)));
        }
        let reserved = if self.durable { self.sendable } else { 0 };
        let few = reserved.saturating_sub(self.next) < FEW;
        let counts = self.dropped != self.dropped_stored;
        if counts || few && !changes.is_empty() {
            let reserve = self.next.saturating_add(RESERVED).max(reserved);
            let record =
                BacklogRecord { stream: self.stream, next: reserve, dropped: self.dropped };
            changes.push((RecordId::Backlog, Some(Record::Backlog(record))));
            self.dropped_stored = self.dropped;
            self.writing = Some(Some(reserve));
            if !self.durable {
                self.sendable = reserve;
            }
        } else if !changes.is_empty() {
            self.writing = Some(None);
        }
        self.write_at = None;
        changes
    }

    /// Everything that is to be written before the agent ends, whatever became of a write that is
    /// under way.
    pub fn take_all_changes(&mut self, now: Duration) -> Vec<(RecordId, Option<Record>)> {
        if self.writing.is_some() {
            let events: Vec<_> = self.events.keys().map(|at| RecordId::Event(*at)).collect();
            self.not_stored(&events, now);
            self.dropped_stored = u64::MAX;
        }
        self.take_changes()
    }

    /// What was on its way to the store, these among others, is there.
    pub fn stored(&mut self, records: &[RecordId]) {
        if !records.iter().any(is_ours) {
            return;
        }
        if let Some(Some(reserve)) = self.writing.take() {
            self.durable = true;
            self.sendable = reserve;
        }
    }

    /// What was on its way to the store is not there; it is tried again at `again`.
    pub fn not_stored(&mut self, records: &[RecordId], again: Duration) {
        if !records.iter().any(is_ours) {
            return;
        }
        if self.writing.take().flatten().is_some() && !self.durable {
            self.sendable = u64::MAX;
        }
        for id in records {
            match id {
                RecordId::Event(sequence) => match self.events.get_mut(sequence) {
                    Some(kept) => kept.stored = false,
                    None => drop(self.forget.insert(*sequence)),
                },
                // Reserves and counts anew.
                RecordId::Backlog => self.dropped_stored = u64::MAX,
                _ => {}
            }
        }
        self.write_at = Some(again);
    }
}

fn is_ours(id: &RecordId) -> bool {
    matches!(id, RecordId::Event(_) | RecordId::Backlog)
}

fn event(sequence: u64, record: &EventRecord) -> Event {
    Event {
        sequence,
        at: Timestamp::from_unix(record.at),
        kind: record.kind.clone(),
        replica: record.replica.clone(),
        message: record.message.clone(),
    }
}

/// Cuts the message until the event is of at most so many bytes, or has none left.
fn shorten(event: &mut Event, limit: usize) {
    while json(event).len() > limit && !event.message.is_empty() {
        let half = event.message.len() / 2;
        event.message = cut(&event.message, half).to_owned();
    }
}

/// The beginning of a text, at most so many bytes.
fn cut(text: &str, most: usize) -> &str {
    let mut end = most.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("events are plain structs, lists and text")
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
