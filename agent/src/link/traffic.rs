//! What the link costs on the wire: bytes by kind, counted since the process began.
//!
//! In: what was really written to and read from the connection, TLS and all, and which packet it was
//! for. Out: [`Usage`]. What the kernel adds around it cannot be seen from here and is reckoned by the
//! constants below. Deliberately not here: days and budgets, look-ups of names, link layers below IP.

use std::sync::atomic::{AtomicU64, Ordering};

use coracle_core::budget::{Bytes, TrafficKind};
use coracle_protocol::topic::Kind;

/// IPv4 (20) and TCP (20) with its timestamps (12), as Linux sends them.
const HEADERS: u64 = 52;

/// Content of one full segment: an Ethernet's 1,500 bytes less the headers. What is sent and not full
/// is a segment as well.
const SEGMENT: u64 = 1500 - HEADERS;

/// An acknowledgement by itself. What is answered by a packet is acknowledged by that packet.
const ACKNOWLEDGEMENT: u64 = HEADERS;

/// TCP's first and second packet: 8 bytes more of options than others.
const SYN: u64 = HEADERS + 8;

/// One kind of traffic.
const KINDS: [TrafficKind; 6] = [
    TrafficKind::KeepAlive,
    TrafficKind::Orders,
    TrafficKind::Reports,
    TrafficKind::Health,
    TrafficKind::Logs,
    TrafficKind::Images,
];

/// What a packet on a topic is for.
pub(super) fn kind_of(topic: Kind) -> TrafficKind {
    match topic {
        Kind::Status => TrafficKind::KeepAlive,
        Kind::Desired | Kind::Commands | Kind::Receipts | Kind::Chunks | Kind::Requests => {
            TrafficKind::Orders
        }
        Kind::Reported | Kind::Events | Kind::Results => TrafficKind::Reports,
        Kind::Health => TrafficKind::Health,
        Kind::Output => TrafficKind::Logs,
    }
}

/// Bytes of the link by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage([Bytes; KINDS.len()]);

impl Usage {
    /// What went for one kind.
    pub fn of(&self, kind: TrafficKind) -> Bytes {
        self.0[at(kind)]
    }

    /// All kinds with what went for them.
    pub fn kinds(&self) -> impl Iterator<Item = (TrafficKind, Bytes)> + '_ {
        KINDS.into_iter().zip(self.0.iter().copied())
    }

    /// All together.
    pub fn total(&self) -> Bytes {
        self.0.iter().fold(Bytes::default(), |sum, bytes| Bytes {
            sent: sum.sent + bytes.sent,
            received: sum.received + bytes.received,
        })
    }
}

fn at(kind: TrafficKind) -> usize {
    KINDS.iter().position(|known| *known == kind).unwrap_or_default()
}

/// How what was written or read is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// By a packet that comes soon.
    Packet,
    /// By nothing but TCP.
    None,
}

/// The count.
#[derive(Debug, Default)]
pub(super) struct Meter {
    sent: [AtomicU64; KINDS.len()],
    received: [AtomicU64; KINDS.len()],
}

impl Meter {
    pub(super) fn usage(&self) -> Usage {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let both =
            |n: usize| Bytes { sent: load(&self.sent[n]), received: load(&self.received[n]) };
        Usage(std::array::from_fn(both))
    }

    /// A TCP connection is asked for.
    pub(super) fn dialling(&self) {
        self.add(TrafficKind::KeepAlive, Bytes { sent: SYN, received: 0 });
    }

    /// It is made.
    pub(super) fn dialled(&self) {
        self.add(TrafficKind::KeepAlive, Bytes { sent: ACKNOWLEDGEMENT, received: SYN });
    }

    /// It is closed, by both.
    pub(super) fn closed(&self) {
        let both = HEADERS + ACKNOWLEDGEMENT;
        self.add(TrafficKind::KeepAlive, Bytes { sent: both, received: both });
    }

    /// `bytes` were written for `kind`, at once.
    pub(super) fn sent(&self, kind: TrafficKind, bytes: u64, answer: Answer) {
        let (data, acknowledgements) = cost(bytes, answer);
        self.add(kind, Bytes { sent: data, received: acknowledgements });
    }

    /// `bytes` were read for `kind`, at once.
    pub(super) fn received(&self, kind: TrafficKind, bytes: u64, answer: Answer) {
        let (data, acknowledgements) = cost(bytes, answer);
        self.add(kind, Bytes { sent: acknowledgements, received: data });
    }

    fn add(&self, kind: TrafficKind, bytes: Bytes) {
        self.sent[at(kind)].fetch_add(bytes.sent, Ordering::Relaxed);
        self.received[at(kind)].fetch_add(bytes.received, Ordering::Relaxed);
    }
}

/// What some bytes of a stream cost in their direction, and what comes back for them. Of many
/// segments, every second one is acknowledged (RFC 5681 section 4.2).
fn cost(bytes: u64, answer: Answer) -> (u64, u64) {
    if bytes == 0 {
        return (0, 0);
    }
    let segments = bytes.div_ceil(SEGMENT);
    let last = u64::from(answer == Answer::None);
    let acknowledgements = (segments - 1).div_ceil(2) + last;
    (bytes + segments * HEADERS, acknowledgements * ACKNOWLEDGEMENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What TLS 1.3 adds to a record (RFC 8446 section 5.2): header 5, type 1, tag 16.
    const RECORD: u64 = 22;

    fn total(count: impl Fn(&Meter)) -> u64 {
        let meter = Meter::default();
        count(&meter);
        let Bytes { sent, received } = meter.usage().total();
        sent + received
    }

    /// The figures on the left were captured from the wire.
    #[test]
    fn the_cost_is_what_was_captured() {
        let ping = total(|meter| {
            meter.sent(TrafficKind::KeepAlive, 2 + RECORD, Answer::Packet);
            meter.received(TrafficKind::KeepAlive, 2 + RECORD, Answer::None);
        });
        assert_eq!(ping, 204);
        // 80 bytes of payload on a topic of 24 bytes.
        let publish = |id: u64| 2 + 2 + 24 + id + 1 + 80 + RECORD;
        let unacknowledged =
            total(|meter| meter.sent(TrafficKind::Health, publish(0), Answer::None));
        assert_eq!(unacknowledged, 235);
        let acknowledged = total(|meter| {
            meter.sent(TrafficKind::Reports, publish(2), Answer::Packet);
            meter.received(TrafficKind::Reports, 4 + RECORD, Answer::None);
        });
        assert_eq!(acknowledged, 315);
    }

    #[test]
    fn much_at_once_is_many_segments() {
        assert_eq!(cost(0, Answer::None), (0, 0));
        assert_eq!(cost(1, Answer::None), (53, 52));
        assert_eq!(cost(1448, Answer::Packet), (1500, 0));
        assert_eq!(cost(1449, Answer::Packet), (1449 + 104, 52));
        assert_eq!(cost(14_480, Answer::None), (15_000, 6 * 52));
    }

    #[test]
    fn each_kind_is_counted_by_itself() {
        let meter = Meter::default();
        for kind in KINDS {
            meter.sent(kind, 1, Answer::Packet);
        }
        let usage = meter.usage();
        for kind in KINDS {
            assert_eq!(usage.of(kind), Bytes { sent: 53, received: 0 });
        }
        assert_eq!(usage.total().sent, 6 * 53);
    }
}
