//! What happened, for people: the newest events, in memory only.

use std::collections::VecDeque;

use coracle_protocol::Timestamp;
use tokio::sync::watch;

use crate::status::{Happening, Happenings};

/// Events kept; older ones are dropped and counted.
const KEPT: usize = 256;

/// The newest events.
#[derive(Debug)]
pub struct Journal {
    kept: VecDeque<Happening>,
    newest: watch::Sender<u64>,
}

impl Default for Journal {
    fn default() -> Self {
        Self { kept: VecDeque::new(), newest: watch::Sender::new(0) }
    }
}

impl Journal {
    /// For those who wait for the next event: the sequence of the newest.
    pub fn newest(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    /// Adds an event.
    pub fn add(&mut self, at: Timestamp, kind: &str, replica: Option<String>, message: String) {
        let sequence = *self.newest.borrow() + 1;
        if self.kept.len() == KEPT {
            self.kept.pop_front();
        }
        let kind = kind.to_owned();
        self.kept.push_back(Happening { sequence, at, kind, replica, message });
        self.newest.send_replace(sequence);
    }

    /// The events after the one with this sequence.
    pub fn after(&self, sequence: u64) -> Happenings {
        let events: Vec<_> =
            self.kept.iter().filter(|event| event.sequence > sequence).cloned().collect();
        let oldest = self.kept.front().map_or(1, |event| event.sequence);
        Happenings { events, dropped: oldest.saturating_sub(sequence + 1) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_are_kept_and_the_rest_is_counted() {
        let mut journal = Journal::default();
        for i in 0..KEPT + 10 {
            journal.add(Timestamp::from_unix(0), "x", None, i.to_string());
        }
        let all = journal.after(0);
        assert_eq!((all.events.len(), all.dropped), (KEPT, 10));
        assert_eq!(journal.after(KEPT as u64 + 9).events.len(), 1);
        let none = journal.after(KEPT as u64 + 10);
        assert_eq!((none.events.len(), none.dropped), (0, 0));
        assert_eq!(*journal.newest().borrow(), KEPT as u64 + 10);
    }
}
