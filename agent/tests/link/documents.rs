use std::time::Duration;

use coracle::link::{Document, LinkEvent};
use coracle_protocol::topic::Kind;
use coracle_protocol::{Presence, presence::PresenceState};

use crate::bed::{Bed, Gateway, SOON};

fn presence(payload: &[u8]) -> PresenceState {
    serde_json::from_slice::<Presence>(payload).unwrap().state
}

fn online(bed: &Bed) -> Vec<u8> {
    serde_json::to_vec(&Presence::online(bed.id, Default::default(), vec!["web".into()])).unwrap()
}

#[test]
fn presence_is_retained_and_says_offline_after_a_crash_and_after_leaving() {
    let bed = Bed::new();
    let topic = bed.topic(Kind::Status);
    let listener = bed.broker.listen(&topic).unwrap();
    let came = |count: usize, state| {
        let all = || listener.messages();
        let seen = coracle_testbed::wait_for("presence", SOON, || {
            (all().len() >= count).then(|| presence(&all()[count - 1].payload))
        });
        assert_eq!(seen.unwrap(), state);
        let retained = bed.broker.retained(&topic, SOON).unwrap().unwrap();
        assert_eq!(presence(&retained), state);
    };

    let gateway = bed.gateway();
    gateway.handle.set_presence(online(&bed));
    came(1, PresenceState::Online);
    gateway.crash();
    came(2, PresenceState::Offline);

    let gateway = bed.gateway();
    gateway.connected();
    gateway.handle.set_presence(online(&bed));
    came(3, PresenceState::Online);
    gateway.leave();
    came(4, PresenceState::Offline);
    assert_eq!(listener.messages().len(), 4, "the last will came after leaving");
}

#[test]
fn a_gateway_that_is_back_within_the_will_delay_was_never_offline() {
    let bed = Bed::new();
    let topic = bed.topic(Kind::Status);
    let listener = bed.broker.listen(&topic).unwrap();
    let mut config = bed.config();
    config.will_delay_seconds = 3;
    let start = || {
        let gateway = Gateway::start(config.clone(), bed.id);
        gateway.handle.set_presence(online(&bed));
        gateway
    };
    let count = |wanted: usize| {
        let there = || (listener.messages().len() >= wanted).then_some(());
        coracle_testbed::wait_for("presence", SOON, there).unwrap();
    };
    let gateway = start();
    count(1);
    gateway.crash();
    let gateway = start();
    count(2);
    gateway.connected();
    gateway.stays_quiet(Duration::from_secs(5));
    assert!(listener.messages().iter().all(|m| presence(&m.payload) == PresenceState::Online));
    // Not back in time, it was.
    gateway.crash();
    count(3);
    assert_eq!(presence(&listener.messages()[2].payload), PresenceState::Offline);
}

#[test]
fn the_newest_report_wins_while_the_broker_does_not_answer() {
    let mut bed = Bed::new();
    let topic = bed.topic(Kind::Reported);
    let listener = bed.broker.listen(&topic).unwrap();
    let gateway = bed.gateway();
    gateway.connected();
    gateway.set_reported("0");
    listener.wait("the first report", SOON, |m| m.payload == b"0").unwrap();

    bed.broker.cut().unwrap();
    for n in 1..=1000 {
        gateway.set_reported(&n.to_string());
    }
    bed.broker.restore().unwrap();
    listener.wait("the newest report", SOON, |m| m.payload == b"1000").unwrap();
    let count = listener.messages().len();
    assert!(count <= 20, "{count} reports came for 1001 values");
    assert_eq!(bed.broker.retained(&topic, SOON).unwrap().unwrap(), b"1000");
}

#[test]
fn what_was_reported_offline_is_published_on_connecting() {
    let mut bed = Bed::new();
    bed.broker.stop().unwrap();
    let gateway = bed.gateway();
    gateway.disconnected(SOON);
    gateway.set_reported("old");
    gateway.set_reported("new");
    bed.broker.start_again().unwrap();
    let listener = bed.broker.listen(&bed.topic(Kind::Reported)).unwrap();
    gateway.connected();
    listener.wait("the report", SOON, |m| m.payload == b"new").unwrap();
    assert!(!listener.messages().iter().any(|m| m.payload == b"old"));
}

#[test]
fn after_a_broker_lost_its_memory_the_last_report_is_published_again() {
    let mut bed = Bed::new();
    let topic = bed.topic(Kind::Reported);
    let gateway = bed.gateway();
    gateway.connected();
    gateway.set_reported("last");
    bed.broker.listen(&topic).unwrap().wait("it", SOON, |m| m.payload == b"last").unwrap();
    bed.broker.kill().unwrap();
    gateway.disconnected(SOON);
    bed.broker.start_again().unwrap();
    assert!(!gateway.connected(), "the session was to be lost");
    bed.broker.listen(&topic).unwrap().wait("it", SOON, |m| m.payload == b"last").unwrap();
    bed.publish_order("after", false);
    assert_eq!(gateway.order().0, "after");
}

#[test]
fn a_forbidden_publish_is_told_once_for_each_value_and_the_link_goes_on() {
    let bed = Bed::with_rules(&["write coracle/1/%u/status", "read coracle/1/%u/desired"]);
    let gateway = bed.gateway();
    gateway.connected();
    let refused = || {
        gateway.wait("the refusal", SOON, |event| match event {
            LinkEvent::NotPublished { document, reason } => Some((document, reason)),
            _ => None,
        })
    };
    for value in ["one", "two"] {
        gateway.set_reported(value);
        let (document, reason) = refused();
        assert_eq!(document, Document::Reported);
        assert!(reason.contains("NotAuthorized"), "{reason}");
    }
    // What is allowed goes on, and while it does, nothing is refused again.
    let status = bed.topic(Kind::Status);
    gateway.handle.set_presence(online(&bed));
    bed.broker.listen(&status).unwrap().wait("presence", SOON, |_| true).unwrap();
    bed.publish_order("order", false);
    assert_eq!(gateway.order().0, "order");
    assert!(gateway.pending().is_empty());
}

#[test]
fn without_any_rights_nothing_is_delivered_and_nothing_spins() {
    let bed = Bed::with_rules(&["write nothing/%u"]);
    let gateway = bed.gateway();
    gateway.handle.set_presence(online(&bed));
    gateway.set_reported("report");
    let mut refused = Vec::new();
    gateway.wait("both refusals", SOON, |event| {
        match event {
            LinkEvent::NotPublished { document, .. } => refused.push(document),
            LinkEvent::Disconnected { reason, .. } => panic!("{reason}"),
            _ => {}
        }
        (refused.len() == 2).then_some(())
    });
    bed.publish_order("order", true);
    gateway.stays_quiet(Duration::from_secs(2));
}
