//! What is to be published: two documents, of which the newest value alone counts.
//!
//! In: values from the agent, acknowledgements from the broker. Out: the document to publish next.
//! One is in flight at a time, in all: the broker's receive maximum and the client's packet ids
//! can then never be overrun. Nothing is remembered but the newest value, so an offline gateway
//! holds no backlog. Deliberately not here: the connection.

use std::sync::Arc;

use coracle_protocol::topic::Kind;
use tokio::sync::watch;

/// A document that the gateway publishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Document {
    /// Presence, on the status topic.
    Presence,
    /// The reported state.
    Reported,
}

impl Document {
    /// The topic that it is published on.
    pub(super) fn kind(self) -> Kind {
        match self {
            Document::Presence => Kind::Status,
            Document::Reported => Kind::Reported,
        }
    }
}

/// The newest value of a document, as JSON; none before there is one.
pub(super) type Value = Option<Arc<[u8]>>;

/// How the broker stands to a slot's newest value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Has not acknowledged it.
    Due,
    /// Refused it, or cannot take it: tried again on the next connection.
    Refused,
    /// Has it.
    Acknowledged,
}

struct Slot {
    document: Document,
    newest: watch::Receiver<Value>,
    standing: Standing,
}

/// The documents to publish and what became of them.
pub(super) struct Outbox {
    /// In order of precedence.
    slots: [Slot; 2],
    in_flight: Option<Document>,
}

impl Outbox {
    pub(super) fn new(presence: watch::Receiver<Value>, reported: watch::Receiver<Value>) -> Self {
        let slot = |document, newest| Slot { document, newest, standing: Standing::Due };
        Self {
            slots: [slot(Document::Presence, presence), slot(Document::Reported, reported)],
            in_flight: None,
        }
    }

    /// A new connection: presence is published again, because the last will may have replaced it;
    /// the rest where the broker has not acknowledged it or has lost its memory of us.
    pub(super) fn connected(&mut self, session_present: bool) {
        self.in_flight = None;
        for slot in &mut self.slots {
            let held = slot.standing == Standing::Acknowledged && session_present;
            if slot.document == Document::Presence || !held {
                slot.standing = Standing::Due;
            }
        }
    }

    /// The document to publish now, which is then in flight; none while one is.
    pub(super) fn take_next(&mut self) -> Option<(Document, Arc<[u8]>)> {
        if self.in_flight.is_some() {
            return None;
        }
        for slot in &mut self.slots {
            // An error means that nobody can change the value any more; it stays as it is.
            if slot.newest.has_changed().unwrap_or(false) {
                slot.standing = Standing::Due;
            }
            if slot.standing != Standing::Due {
                continue;
            }
            let value = slot.newest.borrow_and_update().clone();
            if let Some(value) = value {
                self.in_flight = Some(slot.document);
                return Some((slot.document, value));
            }
        }
        None
    }

    /// Whether a document waits for its acknowledgement.
    pub(super) fn is_in_flight(&self) -> bool {
        self.in_flight.is_some()
    }

    /// The broker acknowledged the document in flight.
    pub(super) fn acknowledged(&mut self) {
        self.settle(Standing::Acknowledged);
    }

    /// The document in flight was refused, or could not be sent: not tried again with this value
    /// on this connection.
    pub(super) fn refused(&mut self) -> Option<Document> {
        self.settle(Standing::Refused)
    }

    fn settle(&mut self, standing: Standing) -> Option<Document> {
        let document = self.in_flight.take()?;
        for slot in self.slots.iter_mut().filter(|slot| slot.document == document) {
            slot.standing = standing;
        }
        Some(document)
    }

    /// Waits until a value changes. Safe to cancel.
    pub(super) async fn changed(&mut self) {
        let [presence, reported] = &mut self.slots;
        tokio::select! {
            () = changed_or_never(&mut presence.newest) => presence.standing = Standing::Due,
            () = changed_or_never(&mut reported.newest) => reported.standing = Standing::Due,
        }
    }
}

/// A value that nobody can change any more never changes.
async fn changed_or_never(value: &mut watch::Receiver<Value>) {
    if value.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Agent {
        presence: watch::Sender<Value>,
        reported: watch::Sender<Value>,
        outbox: Outbox,
    }

    fn agent() -> Agent {
        let (presence, presence_rx) = watch::channel(None);
        let (reported, reported_rx) = watch::channel(None);
        Agent { presence, reported, outbox: Outbox::new(presence_rx, reported_rx) }
    }

    fn set(sender: &watch::Sender<Value>, text: &str) {
        sender.send_replace(Some(text.as_bytes().into()));
    }

    fn next(agent: &mut Agent) -> String {
        match agent.outbox.take_next() {
            Some((document, value)) => {
                format!("{document:?} {}", String::from_utf8_lossy(&value))
            }
            None => "nothing".into(),
        }
    }

    #[test]
    fn publishes_presence_first_one_at_a_time_and_only_the_newest() {
        let mut agent = agent();
        agent.outbox.connected(false);
        assert_eq!(next(&mut agent), "nothing");
        set(&agent.reported, "r1");
        set(&agent.presence, "p1");
        assert_eq!(next(&mut agent), "Presence p1");
        for n in 2..1000 {
            set(&agent.reported, &format!("r{n}"));
        }
        assert_eq!(next(&mut agent), "nothing");
        agent.outbox.acknowledged();
        assert_eq!(next(&mut agent), "Reported r999");
        agent.outbox.acknowledged();
        assert_eq!(next(&mut agent), "nothing");
    }

    #[test]
    fn a_value_that_changed_in_flight_is_published_next() {
        let mut agent = agent();
        agent.outbox.connected(false);
        set(&agent.reported, "r1");
        assert_eq!(next(&mut agent), "Reported r1");
        set(&agent.reported, "r2");
        agent.outbox.acknowledged();
        assert_eq!(next(&mut agent), "Reported r2");
    }

    #[test]
    fn after_a_reconnect_comes_what_was_not_acknowledged_and_always_presence() {
        let mut agent = agent();
        agent.outbox.connected(false);
        set(&agent.presence, "p1");
        set(&agent.reported, "r1");
        assert_eq!(next(&mut agent), "Presence p1");
        agent.outbox.acknowledged();
        assert_eq!(next(&mut agent), "Reported r1");
        agent.outbox.connected(true);
        assert_eq!(next(&mut agent), "Presence p1");
        agent.outbox.acknowledged();
        assert_eq!(next(&mut agent), "Reported r1");
        agent.outbox.acknowledged();

        agent.outbox.connected(true);
        assert_eq!(next(&mut agent), "Presence p1");
        agent.outbox.acknowledged();
        assert_eq!(next(&mut agent), "nothing");

        agent.outbox.connected(false);
        assert_eq!(next(&mut agent), "Presence p1");
        agent.outbox.acknowledged();
        assert_eq!(next(&mut agent), "Reported r1");
    }

    #[test]
    fn a_refused_value_is_not_tried_again_until_it_changes_or_the_connection_does() {
        let mut agent = agent();
        agent.outbox.connected(false);
        set(&agent.reported, "r1");
        assert_eq!(next(&mut agent), "Reported r1");
        assert_eq!(agent.outbox.refused(), Some(Document::Reported));
        assert_eq!(next(&mut agent), "nothing");
        set(&agent.reported, "r2");
        assert_eq!(next(&mut agent), "Reported r2");
        agent.outbox.refused();
        agent.outbox.connected(true);
        assert_eq!(next(&mut agent), "Reported r2");
    }

    #[tokio::test]
    async fn values_outlive_their_senders() {
        let agent = agent();
        set(&agent.reported, "r1");
        let Agent { mut outbox, .. } = agent;
        outbox.connected(false);
        outbox.changed().await;
        assert!(matches!(outbox.take_next(), Some((Document::Reported, _))));
        outbox.acknowledged();
        let never = tokio::time::timeout(std::time::Duration::from_millis(20), outbox.changed());
        assert!(never.await.is_err());
    }
}
