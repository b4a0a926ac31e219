//! What the link carries in a day: counted, kept over restarts, held to the policy's caps.
//!
//! In: counters of the link and of downloads. Out: whether something may be sent today, records for
//! the store, what is shown. Deliberately not here: arithmetic, which is `coracle_core::budget`.

use std::collections::BTreeMap;
use std::time::Duration;

use coracle_core::budget::{
    Allowance, Bytes, Caps, TrafficKind, Usage, allows, day_shift, is_worth_a_write,
};
use coracle_core::record::{Record, RecordId};
use coracle_protocol::health::{KindUse, LinkUse};

use super::EventLoop;
use crate::execute::Execute;
use crate::http_client::Purpose;
use crate::status::LinkDay;
use crate::store::Talk;

/// Written on its own at most this often, when it is a share of a cap.
const WRITES_APART: Duration = Duration::from_secs(60);

/// Written on its own after this at the latest; with whatever else is written before.
const WRITE_AFTER: Duration = Duration::from_secs(60 * 60);

/// Today's use of the link.
#[derive(Debug)]
pub(super) struct UsageToTell {
    usage: Usage,
    caps: Caps,
    /// When it was written.
    written_at: Duration,
    /// What was written.
    written: BTreeMap<TrafficKind, Bytes>,
}

impl UsageToTell {
    pub(super) fn new(caps: Caps) -> Self {
        let usage = Usage::default();
        Self { usage, caps, written_at: Duration::ZERO, written: BTreeMap::new() }
    }

    fn allows(&self, kind: TrafficKind, bytes: usize) -> bool {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        allows(kind, self.usage.used(), &self.caps, bytes) == Allowance::Allow
    }

    fn held_back(&self) -> Vec<TrafficKind> {
        TrafficKind::ALL.into_iter().filter(|kind| !self.allows(*kind, 1)).collect()
    }
}

/// What was downloaded since the process began.
fn download_usage() -> [(TrafficKind, Bytes); 2] {
    let of = |purpose: Purpose| Bytes { sent: 0, received: purpose.received_bytes() };
    [(TrafficKind::Images, of(Purpose::Images)), (TrafficKind::Orders, of(Purpose::Orders))]
}

impl<E: Execute> EventLoop<E> {
    pub(super) fn restore_usage(&mut self, talk: &mut Talk) {
        self.usage.usage = Usage::restore(talk.usage.take());
        self.usage.written = self.usage.usage.used().clone();
    }

    /// Takes in what was carried until now.
    pub(super) fn take_in_usage(&mut self) {
        let now = self.clock.now();
        let link = self.link.as_ref().map(|link| link.usage());
        let link = link.iter().flat_map(|usage| usage.kinds());
        let mut sums = BTreeMap::<TrafficKind, Bytes>::new();
        for (kind, bytes) in link.chain(download_usage()) {
            let sum = sums.entry(kind).or_default();
            sum.sent = sum.sent.saturating_add(bytes.sent);
            sum.received = sum.received.saturating_add(bytes.received);
        }
        let counters: Vec<_> = sums.into_iter().collect();
        let day = self.usage.usage.day();
        self.usage.usage.take_in(&counters, now.wall, day_shift(self.gateway), now.monotonic);
        if day != self.usage.usage.day() {
            self.usage.written.clear();
        }
        self.say_budget();
    }

    fn say_budget(&mut self) {
        if self.usage.caps == Caps::default() {
            return;
        }
        let held_back: Vec<_> = self.usage.held_back().iter().map(|kind| kind.as_str()).collect();
        let message = match held_back.is_empty() {
            true => "the link is within its budget for today".to_owned(),
            false => format!(
                "the link's budget for today is used up; held back until the next day: {}",
                held_back.join(", ")
            ),
        };
        let reason = if held_back.is_empty() { "within" } else { "used-up" };
        self.condition_if("budget", held_back.is_empty(), reason, &message);
    }

    /// Whether so many bytes more may be sent today for something.
    pub(super) fn may_send(&mut self, kind: TrafficKind, bytes: usize) -> bool {
        self.take_in_usage();
        self.usage.allows(kind, bytes)
    }

    /// The record, to be written with others; `alone` where nothing else is written.
    pub(super) fn usage_change(&mut self, alone: bool) -> Option<(RecordId, Option<Record>)> {
        let now = self.clock.now().monotonic;
        let used = self.usage.usage.used();
        let nothing = used.values().all(|bytes| bytes.both() == 0);
        let much = is_worth_a_write(&self.usage.written, used, &self.usage.caps);
        let after = if much { WRITES_APART } else { WRITE_AFTER };
        if nothing || alone && now < self.usage.written_at + after {
            return None;
        }
        self.usage.written_at = now;
        self.usage.written = used.clone();
        Some((RecordId::Usage, Some(Record::Usage(self.usage.usage.record()))))
    }

    /// Of all kinds, both ways together.
    pub(super) fn bytes_today(&mut self) -> u64 {
        self.take_in_usage();
        let used = self.usage.usage.used().values();
        used.fold(0, |sum: u64, bytes| sum.saturating_add(bytes.both()))
    }

    /// Today's use, for documents.
    pub(super) fn link_use(&self) -> LinkUse {
        let kind = |(kind, bytes): (&TrafficKind, &Bytes)| KindUse {
            kind: kind.as_str().into(),
            sent: bytes.sent,
            received: bytes.received,
            cap: self.usage.caps.kinds.get(kind).copied(),
        };
        LinkUse {
            day: self.usage.usage.day(),
            kinds: self.usage.usage.used().iter().map(kind).collect(),
        }
    }

    /// Today's use, for the local API.
    pub(super) fn link_day(&mut self) -> LinkDay {
        self.take_in_usage();
        LinkDay {
            link: self.link_status.clone(),
            today: self.link_use(),
            cap: self.usage.caps.total,
            held_back: self.usage.held_back().iter().map(|k| k.as_str().into()).collect(),
        }
    }
}
