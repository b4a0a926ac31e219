//! Budgets of the link: bytes a day by kind.
//!
//! In: what was carried, the day, the policy's caps. Out: what may still be carried today. The least
//! important is held back first: of the total, a share is kept from each kind but the most important,
//! so that logs and images cannot use up what reports need. Deliberately not here: counting.

use std::collections::BTreeMap;
use std::time::Duration;

use coracle_protocol::GatewayId;
use serde::{Deserialize, Serialize};

/// What bytes go over the link for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrafficKind {
    /// Connections, signs of life, presence.
    KeepAlive,
    /// Orders and all else that the fleet sends, and what is asked of it.
    Orders,
    /// Reported state, events, results of commands.
    Reports,
    /// Health.
    Health,
    /// What commands give, logs above all.
    Logs,
    /// Images and artifacts.
    Images,
}

impl TrafficKind {
    /// All of them, the most important first.
    pub const ALL: [Self; 6] =
        [Self::KeepAlive, Self::Orders, Self::Reports, Self::Health, Self::Logs, Self::Images];

    /// As it is written in documents and in the policy.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::KeepAlive => "keep-alive",
            Self::Orders => "orders",
            Self::Reports => "reports",
            Self::Health => "health",
            Self::Logs => "logs",
            Self::Images => "images",
        }
    }

    /// How much of the total is kept from it for what is more important, in percent; `None` for what
    /// is never held back: without it the gateway could not be reached.
    pub fn kept_from(self) -> Option<u64> {
        match self {
            Self::KeepAlive | Self::Orders => None,
            Self::Reports => Some(10),
            Self::Health => Some(20),
            Self::Logs | Self::Images => Some(50),
        }
    }
}

/// Bytes of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bytes {
    /// To the network.
    pub sent: u64,
    /// From the network.
    pub received: u64,
}

impl Bytes {
    /// Both ways together.
    pub fn both(self) -> u64 {
        self.sent.saturating_add(self.received)
    }
}

/// What is kept of the link's use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageRecord {
    /// The day that it is of: days since the Unix epoch, by the wall clock.
    pub day: u64,
    /// How much of that day the agent has run, in seconds.
    pub elapsed: u64,
    /// By kind, in the order of [`TrafficKind`].
    pub kinds: Vec<(TrafficKind, Bytes)>,
}

/// Most bytes a day, both ways together; without a cap there is no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caps {
    /// Of all kinds together.
    pub total: Option<u64>,
    /// Of single kinds.
    pub kinds: BTreeMap<TrafficKind, u64>,
}

/// Whether something may be carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allowance {
    /// It may.
    Allow,
    /// Not before the next day.
    UntilTomorrow,
}

/// Whether `bytes` more of a kind may be carried today.
pub fn allows(
    kind: TrafficKind,
    used: &BTreeMap<TrafficKind, Bytes>,
    caps: &Caps,
    bytes: u64,
) -> Allowance {
    let Some(kept) = kind.kept_from() else { return Allowance::Allow };
    let of_kind = used.get(&kind).copied().unwrap_or_default().both();
    let of_all = used.values().fold(0, |sum: u64, bytes| sum.saturating_add(bytes.both()));
    let fits = |used: u64, cap: u64| used.saturating_add(bytes) <= cap;
    let within_kind = caps.kinds.get(&kind).is_none_or(|cap| fits(of_kind, *cap));
    let share = |total: u64| total / 100 * (100 - kept) + total % 100 * (100 - kept) / 100;
    let within_total = caps.total.is_none_or(|total| fits(of_all, share(total)));
    if within_kind && within_total { Allowance::Allow } else { Allowance::UntilTomorrow }
}

/// Use that is not written yet is written on its own when it is this share of a cap, in percent.
const WRITE_AT_PERCENT: u64 = 5;

/// Less than this is not written on its own, however small the cap.
const WRITE_AT_LEAST: u64 = 16 * 1024;

/// Whether so much more was used than was written that a crash should not forget it. Without caps
/// nothing depends on it.
pub fn is_worth_a_write(
    written: &BTreeMap<TrafficKind, Bytes>,
    used: &BTreeMap<TrafficKind, Bytes>,
    caps: &Caps,
) -> bool {
    let of = |all: &BTreeMap<TrafficKind, Bytes>, kind| {
        all.get(&kind).copied().unwrap_or_default().both()
    };
    let more = |kind| of(used, kind).saturating_sub(of(written, kind));
    let worth = |more, cap: u64| more >= (cap / 100 * WRITE_AT_PERCENT).max(WRITE_AT_LEAST);
    let of_all =
        TrafficKind::ALL.into_iter().fold(0, |sum: u64, kind| sum.saturating_add(more(kind)));
    caps.total.is_some_and(|cap| worth(of_all, cap))
        || caps.kinds.iter().any(|(kind, cap)| worth(more(*kind), *cap))
}

/// A day of the monotonic clock.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Within this after midnight UTC days begin.
const LONGEST_SHIFT: u64 = 2 * 60 * 60;

/// How long after midnight UTC the days of a gateway begin: all gateways at the same moment would
/// send at once what they held back.
pub fn day_shift(gateway: GatewayId) -> Duration {
    let mix = |sum: u64, byte: u8| sum.wrapping_mul(31).wrapping_add(byte.into());
    Duration::from_secs(gateway.to_string().bytes().fold(0, mix) % LONGEST_SHIFT)
}

/// What the link has carried today.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    day: u64,
    used: BTreeMap<TrafficKind, Bytes>,
    /// Sums of the counters when they were last taken in.
    counted: BTreeMap<TrafficKind, Bytes>,
    /// How long this day has been counted, over all lives of the agent.
    elapsed: Duration,
    /// When this was last called, by the monotonic clock.
    seen: Option<Duration>,
}

impl Usage {
    /// Goes on with what was kept.
    pub fn restore(record: Option<UsageRecord>) -> Self {
        let UsageRecord { day, elapsed, kinds } = record.unwrap_or_default();
        let elapsed = Duration::from_secs(elapsed);
        Self { day, elapsed, used: kinds.into_iter().collect(), ..Self::default() }
    }

    /// Takes in counters that began with the process, and begins a new day when it is one. A clock
    /// that was set back does not begin the same day anew; if it stays back, a day is over after 24
    /// hours in which the agent ran, over restarts. Days begin `shift` after midnight UTC.
    pub fn take_in(
        &mut self,
        counters: &[(TrafficKind, Bytes)],
        wall: Duration,
        shift: Duration,
        monotonic: Duration,
    ) {
        let today = wall.saturating_sub(shift).as_secs() / DAY.as_secs();
        let before = self.seen.replace(monotonic).unwrap_or(monotonic);
        self.elapsed = self.elapsed.saturating_add(monotonic.saturating_sub(before));
        if today > self.day || today < self.day && self.elapsed >= DAY {
            self.used.clear();
            self.day = today;
            self.elapsed = Duration::ZERO;
        }
        for (kind, now) in counters {
            let before = self.counted.insert(*kind, *now).unwrap_or_default();
            let used = self.used.entry(*kind).or_default();
            let more = |now: u64, before: u64| now.saturating_sub(before);
            used.sent = used.sent.saturating_add(more(now.sent, before.sent));
            used.received = used.received.saturating_add(more(now.received, before.received));
        }
    }

    /// Days since the Unix epoch.
    pub fn day(&self) -> u64 {
        self.day
    }

    /// By kind.
    pub fn used(&self) -> &BTreeMap<TrafficKind, Bytes> {
        &self.used
    }

    /// What is to be kept of it.
    pub fn record(&self) -> UsageRecord {
        UsageRecord {
            day: self.day,
            elapsed: self.elapsed.as_secs(),
            kinds: self.used.iter().map(|(kind, bytes)| (*kind, *bytes)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(sent: u64, received: u64) -> Bytes {
        Bytes { sent, received }
    }

    #[test]
    fn the_least_important_is_held_back_first() {
        use TrafficKind::*;
        let caps = Caps { total: Some(1000), kinds: BTreeMap::new() };
        for (used, held_back) in [
            (0, vec![]),
            (499, vec![]),
            (500, vec![Logs, Images]),
            (799, vec![Logs, Images]),
            (800, vec![Health, Logs, Images]),
            (900, vec![Reports, Health, Logs, Images]),
            (u64::MAX, vec![Reports, Health, Logs, Images]),
        ] {
            let used = BTreeMap::from([(Orders, bytes(used / 2, used - used / 2))]);
            let back = TrafficKind::ALL
                .into_iter()
                .filter(|kind| allows(*kind, &used, &caps, 1) == Allowance::UntilTomorrow);
            assert_eq!(back.collect::<Vec<_>>(), held_back, "{used:?}");
        }
    }

    #[test]
    fn use_is_written_when_it_is_a_part_of_a_cap() {
        use TrafficKind::*;
        let total = Caps { total: Some(1_000_000), kinds: BTreeMap::new() };
        let logs = Caps { total: None, kinds: BTreeMap::from([(Logs, 1_000_000)]) };
        let tiny = Caps { total: Some(1000), kinds: BTreeMap::new() };
        let written = BTreeMap::from([(Logs, bytes(70_000, 0))]);
        for (kind, more, caps, worth) in [
            (Orders, 49_999, &total, false),
            (Orders, 50_000, &total, true),
            (Orders, 50_000, &logs, false),
            (Logs, 50_000, &logs, true),
            (Logs, 500, &tiny, false),
            (Logs, 16_384, &tiny, true),
            (Logs, u64::MAX, &Caps::default(), false),
        ] {
            let mut used = written.clone();
            let of_kind = used.entry(kind).or_default();
            of_kind.received = more;
            assert_eq!(is_worth_a_write(&written, &used, caps), worth, "{kind:?} {more} {caps:?}");
        }
    }

    #[test]
    fn a_kind_has_a_cap_of_its_own_and_what_keeps_the_link_has_none() {
        let kinds = TrafficKind::ALL.into_iter().map(|kind| (kind, 100)).collect();
        let caps = Caps { total: None, kinds };
        let used = TrafficKind::ALL.into_iter().map(|kind| (kind, bytes(40, 40))).collect();
        for kind in TrafficKind::ALL {
            assert_eq!(allows(kind, &used, &caps, 20), Allowance::Allow);
            let free = matches!(kind, TrafficKind::KeepAlive | TrafficKind::Orders);
            assert_eq!(allows(kind, &used, &caps, 21) == Allowance::Allow, free, "{kind:?}");
        }
        assert_eq!(allows(TrafficKind::Logs, &used, &Caps::default(), 1 << 40), Allowance::Allow);
    }

    fn at(day: u64, hour: u64) -> Duration {
        Duration::from_secs((day * 24 + hour) * 3600)
    }

    /// Days of the clock.
    const SHIFT: Duration = Duration::ZERO;

    #[test]
    fn days_of_gateways_begin_at_different_moments() {
        let shifts: std::collections::BTreeSet<_> =
            (0..1000).map(|_| day_shift(GatewayId::random())).collect();
        assert!(shifts.len() > 800 && *shifts.last().unwrap() < Duration::from_secs(7200));
        let mut usage = Usage::restore(None);
        let shift = Duration::from_secs(3600);
        let health = TrafficKind::Health;
        usage.take_in(&[(health, bytes(1, 0))], at(100, 2), shift, at(0, 0));
        usage.take_in(&[(health, bytes(3, 0))], at(101, 0), shift, at(0, 22));
        assert_eq!((usage.day(), usage.used()[&health].sent), (100, 3));
        usage.take_in(&[(health, bytes(4, 0))], at(101, 1), shift, at(0, 23));
        assert_eq!((usage.day(), usage.used()[&health].sent), (101, 1));
    }

    #[test]
    fn days_are_counted_over_restarts_and_not_begun_twice() {
        use TrafficKind::{Health, Reports};
        let mut usage = Usage::restore(None);
        usage.take_in(&[(Health, bytes(10, 1))], at(100, 5), SHIFT, at(0, 0));
        usage.take_in(
            &[(Health, bytes(30, 2)), (Reports, bytes(5, 0))],
            at(100, 6),
            SHIFT,
            at(0, 1),
        );
        assert_eq!(usage.used()[&Health], bytes(30, 2));

        // The process begins to count anew.
        let mut usage = Usage::restore(Some(usage.record()));
        usage.take_in(&[(Health, bytes(7, 0))], at(100, 7), SHIFT, at(0, 0));
        assert_eq!(usage.used()[&Health], bytes(37, 2));
        assert_eq!(usage.used()[&Reports], bytes(5, 0));

        // The clock is set back, and forth again.
        usage.take_in(&[(Health, bytes(8, 0))], at(3, 0), SHIFT, at(0, 1));
        usage.take_in(&[(Health, bytes(9, 0))], at(100, 8), SHIFT, at(0, 2));
        assert_eq!((usage.day(), usage.used()[&Health]), (100, bytes(39, 2)));

        usage.take_in(&[(Health, bytes(19, 0))], at(101, 0), SHIFT, at(0, 3));
        assert_eq!((usage.day(), usage.used()[&Health]), (101, bytes(10, 0)));
        assert!(!usage.used().contains_key(&Reports));

        // Set back for good: the days go on from there.
        usage.take_in(&[(Health, bytes(20, 0))], at(3, 0), SHIFT, at(1, 2));
        assert_eq!((usage.day(), usage.used()[&Health]), (101, bytes(11, 0)));
        usage.take_in(&[(Health, bytes(21, 0))], at(3, 1), SHIFT, at(1, 3));
        assert_eq!((usage.day(), usage.used()[&Health]), (3, bytes(1, 0)));
    }

    #[test]
    fn a_leap_of_the_clock_is_over_after_a_day_however_often_the_agent_restarts() {
        use TrafficKind::Health;
        let mut usage = Usage::restore(None);
        usage.take_in(&[(Health, bytes(10, 0))], at(9000, 0), SHIFT, at(0, 0));
        // Right again, in lives of seven hours each.
        for life in 1..=4 {
            usage = Usage::restore(Some(usage.record()));
            usage.take_in(&[], at(100, 7 * life), SHIFT, at(50, 0));
            usage.take_in(&[], at(100, 7 * life), SHIFT, at(50, 7));
            assert_eq!(usage.day() == 9000, life < 4, "{life}");
            assert_eq!(usage.used().contains_key(&Health), life < 4, "{life}");
        }
        assert_eq!(usage.day(), 101);
    }
}
