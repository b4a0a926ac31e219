//! What is to be published: two documents, of which the newest value alone counts, and parcels, each
//! of which is handed back with what became of it.
//!
//! In: values and parcels from the agent, acknowledgements from the broker. Out: what to publish next.
//! One is in flight at a time, in all: the broker's receive maximum and the client's packet ids
//! can then never be overrun. Nothing is remembered but the newest value and one parcel: the agent
//! keeps what is to be kept. Deliberately not here: the connection.

use std::sync::Arc;

use coracle_protocol::topic::{Kind, ReplyWord};
use tokio::sync::{mpsc, watch};

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

/// Something to be published once. What became of it is said by a
/// [`LinkEvent::Parcel`](super::LinkEvent::Parcel) with the same ticket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parcel {
    /// The sender's own mark.
    pub ticket: u64,
    /// The topic that it is published on.
    pub kind: Kind,
    /// Where a command asked for its results, in place of their usual topic.
    pub reply: Option<ReplyWord>,
    /// What a command asked to have back; may be empty.
    pub correlation: Vec<u8>,
    /// The content.
    pub payload: Vec<u8>,
    /// Whether the broker is to acknowledge it (QoS 1); without, it may be lost unseen.
    pub acknowledged: bool,
}

/// What became of a parcel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// The broker has it; one that is not to be acknowledged is on its way.
    Done,
    /// There is no connection, or it was lost: nobody knows whether the broker has it.
    Lost,
    /// The broker refused it, or it is larger than the broker takes: why, for people.
    Refused(String),
}

/// What is in flight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Flying {
    Document(Document),
    /// By its ticket.
    Parcel(u64),
}

/// What to publish next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Document(Document, Arc<[u8]>),
    Parcel(Parcel),
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
    parcels: mpsc::Receiver<Parcel>,
    /// A parcel whose turn it is.
    waiting: Option<Parcel>,
    /// A parcel goes before the reported state, so that both get their turn.
    parcels_turn: bool,
    in_flight: Option<Flying>,
}

impl Outbox {
    pub(super) fn new(
        presence: watch::Receiver<Value>,
        reported: watch::Receiver<Value>,
        parcels: mpsc::Receiver<Parcel>,
    ) -> Self {
        let slot = |document, newest| Slot { document, newest, standing: Standing::Due };
        Self {
            slots: [slot(Document::Presence, presence), slot(Document::Reported, reported)],
            parcels,
            waiting: None,
            parcels_turn: false,
            in_flight: None,
        }
    }

    /// The connection is lost: the tickets of the parcels that are lost with it.
    pub(super) fn disconnected(&mut self) -> Vec<u64> {
        let flying = match self.in_flight.take() {
            Some(Flying::Parcel(ticket)) => Some(ticket),
            _ => None,
        };
        let waiting = self.waiting.take().map(|parcel| parcel.ticket);
        let queued = std::iter::from_fn(|| self.parcels.try_recv().ok()).map(|p| p.ticket);
        flying.into_iter().chain(waiting).chain(queued).collect()
    }

    /// Parcels that come while there is no connection: their tickets. Safe to cancel.
    pub(super) async fn undeliverable(&mut self) -> u64 {
        match self.parcels.recv().await {
            Some(parcel) => parcel.ticket,
            None => std::future::pending().await,
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

    /// What to publish now, which is then in flight; nothing while something is.
    pub(super) fn take_next(&mut self) -> Option<Next> {
        if self.in_flight.is_some() {
            return None;
        }
        if self.waiting.is_none() {
            self.waiting = self.parcels.try_recv().ok();
        }
        for slot in &mut self.slots {
            if slot.document == Document::Reported && self.parcels_turn && self.waiting.is_some() {
                continue;
            }
            // An error means that nobody can change the value any more; it stays as it is.
            if slot.newest.has_changed().unwrap_or(false) {
                slot.standing = Standing::Due;
            }
            if slot.standing != Standing::Due {
                continue;
            }
            let value = slot.newest.borrow_and_update().clone();
            if let Some(value) = value {
                self.parcels_turn = true;
                self.in_flight = Some(Flying::Document(slot.document));
                return Some(Next::Document(slot.document, value));
            }
        }
        let parcel = self.waiting.take()?;
        self.parcels_turn = false;
        self.in_flight = Some(Flying::Parcel(parcel.ticket));
        Some(Next::Parcel(parcel))
    }

    /// Whether something waits for its acknowledgement.
    pub(super) fn is_in_flight(&self) -> bool {
        self.in_flight.is_some()
    }

    /// The broker acknowledged what was in flight.
    pub(super) fn acknowledged(&mut self) -> Option<Flying> {
        self.settle(Standing::Acknowledged)
    }

    /// What was in flight was refused, or could not be sent: a document is not tried again with this
    /// value on this connection.
    pub(super) fn refused(&mut self) -> Option<Flying> {
        self.settle(Standing::Refused)
    }

    fn settle(&mut self, standing: Standing) -> Option<Flying> {
        let flying = self.in_flight.take()?;
        if let Flying::Document(document) = flying {
            for slot in self.slots.iter_mut().filter(|slot| slot.document == document) {
                slot.standing = standing;
            }
        }
        Some(flying)
    }

    /// Waits until there is something to publish. Safe to cancel.
    pub(super) async fn changed(&mut self) {
        if self.waiting.is_some() {
            return;
        }
        let [presence, reported] = &mut self.slots;
        tokio::select! {
            Some(parcel) = self.parcels.recv() => self.waiting = Some(parcel),
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
        parcels: mpsc::Sender<Parcel>,
        outbox: Outbox,
    }

    fn agent() -> Agent {
        let (presence, presence_rx) = watch::channel(None);
        let (reported, reported_rx) = watch::channel(None);
        let (parcels, parcels_rx) = mpsc::channel(4);
        Agent {
            presence,
            reported,
            parcels,
            outbox: Outbox::new(presence_rx, reported_rx, parcels_rx),
        }
    }

    fn set(sender: &watch::Sender<Value>, text: &str) {
        sender.send_replace(Some(text.as_bytes().into()));
    }

    fn next(agent: &mut Agent) -> String {
        match agent.outbox.take_next() {
            Some(Next::Document(document, value)) => {
                format!("{document:?} {}", String::from_utf8_lossy(&value))
            }
            Some(Next::Parcel(parcel)) => format!("parcel {}", parcel.ticket),
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
        assert_eq!(agent.outbox.refused(), Some(Flying::Document(Document::Reported)));
        assert_eq!(next(&mut agent), "nothing");
        set(&agent.reported, "r2");
        assert_eq!(next(&mut agent), "Reported r2");
        agent.outbox.refused();
        agent.outbox.connected(true);
        assert_eq!(next(&mut agent), "Reported r2");
    }

    fn send(agent: &Agent, ticket: u64) {
        let kind = Kind::Events;
        let (reply, correlation, payload) = (None, Vec::new(), Vec::new());
        let parcel = Parcel { ticket, kind, reply, correlation, payload, acknowledged: true };
        agent.parcels.try_send(parcel).unwrap();
    }

    #[test]
    fn parcels_and_the_reported_state_take_turns() {
        let mut agent = agent();
        agent.outbox.connected(false);
        set(&agent.reported, "r1");
        send(&agent, 1);
        send(&agent, 2);
        assert_eq!(next(&mut agent), "Reported r1");
        set(&agent.reported, "r2");
        agent.outbox.acknowledged();
        assert_eq!(next(&mut agent), "parcel 1");
        assert_eq!(agent.outbox.acknowledged(), Some(Flying::Parcel(1)));
        set(&agent.presence, "p1");
        assert_eq!(next(&mut agent), "Presence p1");
        agent.outbox.acknowledged();
        assert_eq!(next(&mut agent), "parcel 2");
        agent.outbox.acknowledged();
        assert_eq!(next(&mut agent), "Reported r2");
    }

    #[test]
    fn parcels_are_handed_back_when_the_connection_is_lost() {
        let mut agent = agent();
        agent.outbox.connected(false);
        for ticket in 1..4 {
            send(&agent, ticket);
        }
        assert_eq!(next(&mut agent), "parcel 1");
        assert_eq!(agent.outbox.disconnected(), [1, 2, 3]);
        agent.outbox.connected(true);
        assert_eq!(next(&mut agent), "nothing");
    }

    #[tokio::test]
    async fn values_outlive_their_senders() {
        let agent = agent();
        set(&agent.reported, "r1");
        let Agent { mut outbox, .. } = agent;
        outbox.connected(false);
        outbox.changed().await;
        assert!(matches!(outbox.take_next(), Some(Next::Document(Document::Reported, _))));
        outbox.acknowledged();
        let never = tokio::time::timeout(std::time::Duration::from_millis(20), outbox.changed());
        assert!(never.await.is_err());
    }
}
