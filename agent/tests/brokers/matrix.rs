//! What has to be so with every broker.

use std::time::Duration;

use coracle::link::{Delivery, Document, LinkEvent, Parcel};
use coracle_protocol::request::{Request, Wanted};
use coracle_protocol::topic::{Kind, ReplyWord, Topic};
use coracle_protocol::{Presence, presence::PresenceState};
use coracle_testbed::Make;
use coracle_testbed::broker::FLEET;

use crate::bed::{Gateway, SOON};
use crate::client::{Beside, Client, Closed};
use crate::is_rabbitmq;
use crate::site::Site;

fn state(payload: &[u8]) -> Option<PresenceState> {
    serde_json::from_slice::<Presence>(payload).ok().map(|presence| presence.state)
}

fn online(site: &Site) -> Vec<u8> {
    let presence = Presence::online(site.id, Default::default(), vec!["web".into()]);
    serde_json::to_vec(&presence).unwrap()
}

/// Waits until the link's subscription stands: what it publishes goes out after that. `report` is
/// to be one that it has not published before.
fn settled(site: &Site, gateway: &Gateway, report: &str) {
    gateway.set_reported(report);
    site.retained(&site.topic(Kind::Reported), |p| p == report.as_bytes());
}

fn next_order(gateway: &Gateway, wanted: &str) {
    loop {
        let (order, token) = gateway.order();
        gateway.handle.acknowledge(token);
        if order == wanted {
            return;
        }
    }
}

pub(crate) fn orders_come_live_retained_and_after_a_reconnect(make: Make) {
    let mut site = Site::new(make);
    site.say(Kind::Desired, b"retained", true);
    let gateway = site.gateway();
    assert!(!gateway.connected());
    next_order(&gateway, "retained");
    settled(&site, &gateway, "settled first");
    site.say(Kind::Desired, b"live", false);
    next_order(&gateway, "live");
    // Not acknowledged: it comes again.
    site.say(Kind::Desired, b"owed", false);
    assert_eq!(gateway.order().0, "owed");
    gateway.crash();
    let gateway = site.gateway();
    assert!(gateway.connected());
    next_order(&gateway, "owed");
    site.broker.stop().unwrap();
    gateway.disconnected(SOON);
    site.broker.start_again().unwrap();
    gateway.connected();
    settled(&site, &gateway, "settled");
    site.say(Kind::Desired, b"afterwards", false);
    next_order(&gateway, "afterwards");
}

/// Without it an order or a command is late and not lost: the gateway asks for both when it is
/// connected.
pub(crate) fn what_comes_while_away_is_kept_as_documented(make: Make) {
    let site = Site::new(make);
    let gateway = site.gateway();
    gateway.connected();
    settled(&site, &gateway, "settled");
    gateway.crash();
    site.say(Kind::Desired, b"while away", false);
    let gateway = site.gateway();
    assert!(gateway.connected());
    settled(&site, &gateway, "settled again");
    site.say(Kind::Desired, b"live", false);
    let mut came = Vec::new();
    while came.last().is_none_or(|order| order != "live") {
        let (order, token) = gateway.order();
        gateway.handle.acknowledge(token);
        came.push(order);
    }
    assert_eq!(
        came.contains(&"while away".to_owned()),
        make != Make::Mosquitto20PerListener,
        "{came:?}"
    );
}

pub(crate) fn presence_is_retained_and_the_last_will_says_offline(make: Make) {
    let site = Site::new(make);
    let topic = site.topic(Kind::Status);
    let mut fleet = site.fleet();
    assert!(fleet.subscribe(&topic).unwrap() <= 1);
    let gateway = site.gateway();
    gateway.handle.set_presence(online(&site));
    let is = |wanted| move |m: &crate::client::Message| state(&m.payload) == Some(wanted);
    fleet.wait("being online", is(PresenceState::Online));
    gateway.crash();
    fleet.wait("the last will", is(PresenceState::Offline));
    drop(fleet);
    site.retained(&topic, |p| state(p) == Some(PresenceState::Offline));
    let gateway = site.gateway();
    gateway.handle.set_presence(online(&site));
    site.retained(&topic, |p| state(p) == Some(PresenceState::Online));
    gateway.leave();
    site.retained(&topic, |p| state(p) == Some(PresenceState::Offline));
}

pub(crate) fn the_newest_report_is_retained(make: Make) {
    let mut site = Site::new(make);
    let topic = site.topic(Kind::Reported);
    let gateway = site.gateway();
    gateway.connected();
    gateway.set_reported("one");
    site.retained(&topic, |p| p == b"one");
    site.broker.stop().unwrap();
    gateway.disconnected(SOON);
    gateway.set_reported("two");
    site.broker.start_again().unwrap();
    site.retained(&topic, |p| p == b"two");
}

pub(crate) fn a_command_and_its_result_keep_response_topic_and_correlation(make: Make) {
    let site = Site::new(make);
    let gateway = site.gateway();
    gateway.connected();
    settled(&site, &gateway, "settled");
    let results = format!("{}/desk-7", site.topic(Kind::Results));
    let mut fleet = site.fleet();
    assert!(fleet.subscribe(&results).unwrap() <= 1);
    let beside = Beside { response_topic: Some(&results), correlation: b"\0ticket\xff" };
    fleet.publish(&site.topic(Kind::Commands), b"command", false, beside).unwrap();
    let (reply, correlation) = gateway.wait("the command", SOON, |event| match event {
        LinkEvent::Command { envelope, reply, correlation, token } => {
            assert_eq!(envelope, b"command");
            gateway.handle.acknowledge(token);
            Some((reply, correlation))
        }
        _ => None,
    });
    assert_eq!(reply, ReplyWord::of_response_topic(&results, site.id));
    assert_eq!(correlation, b"\0ticket\xff");
    let payload = b"result".to_vec();
    let kind = Kind::Results;
    let result = Parcel { ticket: 7, kind, reply, correlation, payload, acknowledged: true };
    gateway.handle.send(result).unwrap();
    let came = fleet.wait("the result", |message| message.payload == b"result");
    assert_eq!((came.topic, came.retained), (results, false));
    assert_eq!(came.correlation, b"\0ticket\xff");
    delivered(&gateway, 7);
}

fn delivered(gateway: &Gateway, wanted: u64) {
    gateway.wait("the broker's word for it", SOON, |event| match event {
        LinkEvent::Parcel { ticket, delivery } if ticket == wanted => {
            assert_eq!(delivery, Delivery::Done);
            Some(())
        }
        _ => None,
    });
}

pub(crate) fn receipts_and_chunks_come(make: Make) {
    let site = Site::new(make);
    let gateway = site.gateway();
    gateway.connected();
    settled(&site, &gateway, "settled");
    site.say(Kind::Receipts, b"receipt", false);
    gateway.wait("the receipt", SOON, |event| match event {
        LinkEvent::Receipt(payload) => {
            assert_eq!(payload, b"receipt");
            Some(())
        }
        _ => None,
    });
    site.say(Kind::Chunks, b"piece", false);
    gateway.wait("the piece", SOON, |event| match event {
        LinkEvent::Chunk(payload) => {
            assert_eq!(payload, b"piece");
            Some(())
        }
        _ => None,
    });
}

pub(crate) fn a_session_that_the_broker_lost_is_made_anew(make: Make) {
    let mut site = Site::new(make);
    let gateway = site.gateway();
    gateway.connected();
    gateway.handle.set_presence(online(&site));
    gateway.set_reported("report");
    site.retained(&site.topic(Kind::Reported), |p| p == b"report");
    site.broker.kill().unwrap();
    gateway.disconnected(SOON);
    site.broker.forget().unwrap();
    site.broker.start_again().unwrap();
    assert!(!gateway.connected(), "the session was to be lost");
    // Nobody says them again but the link.
    site.retained(&site.topic(Kind::Reported), |p| p == b"report");
    site.retained(&site.topic(Kind::Status), |p| state(p) == Some(PresenceState::Online));
    settled(&site, &gateway, "settled");
    site.say(Kind::Desired, b"after", false);
    next_order(&gateway, "after");
}

pub(crate) fn the_agent_asks_for_the_newest_order_when_the_broker_lost_it(make: Make) {
    let mut site = Site::new(make);
    let topic = site.topic(Kind::Requests);
    let asks = |message: &crate::client::Message| {
        let request: Request = serde_json::from_slice(&message.payload).unwrap();
        request.gateway == site.id && matches!(request.wanted, Wanted::Connected { .. })
    };
    let mut fleet = site.fleet();
    assert!(fleet.subscribe(&topic).unwrap() <= 1);
    let mut agent = site.place.spawn("agent", &agent(&site)).unwrap();
    fleet.wait("the first request", asks);
    let desired = site.topic(Kind::Desired);
    fleet.publish(&desired, b"no order at all", true, Beside::default()).unwrap();

    // The agent stands still until the fleet listens again: nobody keeps a request for it.
    agent.freeze().unwrap();
    site.broker.kill().unwrap();
    site.broker.forget().unwrap();
    site.broker.start_again().unwrap();
    let mut fleet = site.fleet();
    fleet.subscribe(&desired).unwrap();
    assert_eq!(fleet.messages().unwrap(), [], "what was retained was to be lost");
    assert!(fleet.subscribe(&topic).unwrap() <= 1);
    agent.thaw().unwrap();
    fleet.wait("the request after it", asks);
}

/// `coracle agent` with nothing but a link: what else it misses stops nothing.
fn agent(site: &Site) -> std::process::Command {
    let (run, link) = (site.place.run(), site.config());
    let key = run.join("orders.pub");
    std::fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/trust/orders.pub"), &key).unwrap();
    let text = format!(
        "gateway = \"{}\"\nstate_dir = {:?}\nruntime_dir = {:?}\n[trust]\nkeys = [{key:?}]\n\
         [containerd]\naddress = {:?}\n[api]\nsocket = {:?}\n[link]\nhost = \"localhost\"\n\
         port = {}\nca = {:?}\ncert = {:?}\nkey = {:?}\nreconnect_window_seconds = 1\n",
        site.id,
        site.place.data().join("state"),
        run.join("runtime"),
        run.join("no.sock"),
        run.join("api.sock"),
        link.port,
        link.ca,
        link.cert,
        link.key,
    );
    let config = run.join("coracle.toml");
    std::fs::write(&config, text).unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_coracle"));
    command.arg("agent").arg("--config").arg(config);
    command
}

pub(crate) fn a_client_id_that_is_taken_over_is_told_and_survived(make: Make) {
    let site = Site::new(make);
    let first = site.gateway();
    first.connected();
    settled(&site, &first, "settled");
    // Another one of the same identity, that stays for a moment.
    let mut thief = site.client(&site.id.to_string());
    let reason = first.disconnected(SOON);
    assert!(
        reason.contains("SessionTakenOver") || reason.contains("closed the connection"),
        "{reason}"
    );
    let closed = thief.closed();
    assert!(matches!(closed, Closed(None | Some(0x8e))), "{closed:?}");
    first.connected();
    settled(&site, &first, "settled again");
    site.say(Kind::Desired, b"order", false);
    next_order(&first, "order");
}

pub(crate) fn no_gateway_reads_or_writes_what_is_anothers(make: Make) {
    let site = Site::new(make);
    let (own, foreign) = (site.id.to_string(), site.other);
    let to_fleet = [
        Kind::Reported,
        Kind::Status,
        Kind::Results,
        Kind::Output,
        Kind::Events,
        Kind::Health,
        Kind::Requests,
    ];
    let all: Vec<Kind> = Kind::TO_GATEWAY.into_iter().chain(to_fleet).collect();
    let mut fleet = site.fleet();
    for kind in &all {
        fleet.subscribe(&Topic::new(foreign, *kind).to_string()).unwrap();
    }
    let words = format!("{}/word", Topic::new(foreign, Kind::Results));
    fleet.subscribe(&words).unwrap();

    // It writes: refused, or the connection is ended, and nothing comes.
    let topics = all.iter().map(|kind| Topic::new(foreign, *kind).to_string());
    for topic in topics.clone().chain([words.clone()]) {
        for retain in [false, true] {
            let mut thief = site.client(&own);
            let answer = thief.publish(&topic, b"forged", retain, Beside::default());
            assert!(!matches!(answer, Ok(0 | 0x10)), "{topic}: {answer:?}");
        }
    }
    // Nor what only the fleet writes, on its own topics.
    for kind in Kind::TO_GATEWAY {
        let topic = site.topic(kind);
        let answer = site.client(&own).publish(&topic, b"forged", false, Beside::default());
        assert!(!matches!(answer, Ok(0 | 0x10)), "{topic}: {answer:?}");
    }
    let forged = fleet.messages().unwrap().into_iter().find(|m| m.payload == b"forged");
    assert_eq!(forged, None);

    // It reads: whatever the broker answers, nothing comes, be it live or retained.
    for topic in topics.clone().chain([words]) {
        let answer = fleet.publish(&topic, b"secret, retained", true, Beside::default());
        assert!(matches!(answer, Ok(0 | 0x10)), "{topic}: {answer:?}");
    }
    let wildcards = ["#", "+/#", "coracle/#", "coracle/1/+/desired", "coracle/+/+/commands"];
    let other = format!("coracle/1/{foreign}/#");
    let filters = topics.clone().chain(wildcards.map(str::to_owned)).chain([other]);
    for filter in filters {
        let mut thief = site.client(&own);
        // A broker may end the connection over it.
        let Ok(_) = thief.subscribe(&filter) else { continue };
        for topic in topics.clone() {
            fleet.publish(&topic, b"secret", false, Beside::default()).unwrap();
        }
        let Ok(came) = thief.messages() else { continue };
        let foreign = came.into_iter().find(|m| m.payload.starts_with(b"secret"));
        assert_eq!(foreign, None, "by the filter {filter}");
    }
    // And what is its own still works.
    let mut own = site.client(&own);
    assert!(own.subscribe(&site.topic(Kind::Desired)).unwrap() <= 1);
    let answer = own.publish(&site.topic(Kind::Events), b"mine", false, Beside::default());
    assert!(matches!(answer, Ok(0 | 0x10)), "{answer:?}");
}

pub(crate) fn a_client_id_of_another_gateway_gives_nothing(make: Make) {
    let site = Site::new(make);
    let gateway = site.gateway();
    gateway.connected();
    settled(&site, &gateway, "settled");
    // The certificate is the other one's, the client id is ours.
    let thief = Client::connect(
        &site.pki,
        site.broker.port(),
        &site.other.to_string(),
        &site.id.to_string(),
    );
    if let Ok(mut thief) = thief {
        // Where it is let in, neither our messages nor our session are its own.
        let subscribed = thief.subscribe(&site.topic(Kind::Commands));
        site.say(Kind::Commands, b"command", false);
        if subscribed.is_ok() {
            let came = thief.messages().unwrap_or_default();
            assert!(came.is_empty(), "{came:?}");
        }
        drop(thief);
    } else {
        site.say(Kind::Commands, b"command", false);
    }
    gateway.wait("the command", 2 * SOON, |event| match event {
        LinkEvent::Command { .. } => Some(()),
        _ => None,
    });
}

pub(crate) fn a_packet_over_the_brokers_limit_is_told_and_the_link_goes_on(make: Make) {
    const LIMIT: u32 = 4000;
    let site = Site::with_limit(make, Some(LIMIT));
    let gateway = site.gateway();
    let announced = gateway.wait("a connection", 2 * SOON, |event| match event {
        LinkEvent::Connected { packet_limit, .. } => Some(packet_limit),
        _ => None,
    });
    assert_eq!(announced, LIMIT as usize);
    settled(&site, &gateway, "settled");
    gateway.set_reported(&"x".repeat(5000));
    let (document, reason) = gateway.wait("the refusal", SOON, |event| match event {
        LinkEvent::NotPublished { document, reason } => Some((document, reason)),
        LinkEvent::Disconnected { reason, .. } => panic!("{reason}"),
        _ => None,
    });
    assert_eq!(document, Document::Reported);
    assert!(reason.contains("larger than the 4000"), "{reason}");
    gateway.set_reported("small");
    site.retained(&site.topic(Kind::Reported), |p| p == b"small");
    gateway.stays_quiet(Duration::from_millis(500));
    // Sent all the same, it is not taken; whether the connection is ended is the broker's choice.
    let mut rude = site.client(FLEET);
    let answer = rude.publish(&site.topic(Kind::Desired), &[b'x'; 5000], false, Beside::default());
    assert!(!matches!(answer, Ok(0 | 0x10)) || is_rabbitmq(make), "{answer:?}");
}
