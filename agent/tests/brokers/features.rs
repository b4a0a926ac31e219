//! What brokers may do without, and which of them does: the table of `docs/brokers.md`.

use coracle_protocol::topic::{Kind, Topic};
use coracle_testbed::Make;

use crate::client::{Beside, Client};
use crate::is_rabbitmq;
use crate::site::Site;

/// Retain available, and shared subscriptions available (MQTT 5.0 sections 3.2.2.3.5 and .13): not
/// there means yes.
const RETAIN: u8 = 0x25;
const SHARED: u8 = 0x2a;

/// In a PUBACK and a SUBACK (sections 3.4.2.1 and 3.9.3).
const NOT_AUTHORIZED: u8 = 0x87;

pub(crate) fn what_the_broker_offers_is_as_documented(make: Make) {
    let site = Site::new(make);
    let mut fleet = site.fleet();
    let offers = |id: u8| {
        let properties = &fleet.welcome.properties;
        properties.iter().find(|(known, _)| *known == id).is_none_or(|(_, value)| *value != 0)
    };
    assert!(offers(RETAIN), "{:?}", fleet.welcome);
    assert_eq!(offers(SHARED), !is_rabbitmq(make), "{:?}", fleet.welcome);

    // Nothing of ours asks for shared subscriptions; a fleet's server may, where they are.
    let topic = Topic::new(site.id, Kind::Events).to_string();
    let granted = fleet.subscribe(&format!("$share/servers/{topic}"));
    let came = granted.is_ok_and(|code| code <= 1) && {
        let mut gateway = site.client(&site.id.to_string());
        gateway.publish(&topic, b"event", false, Beside::default()).unwrap();
        fleet.messages().is_ok_and(|messages| messages.iter().any(|m| m.payload == b"event"))
    };
    assert_eq!(came, !is_rabbitmq(make));
}

pub(crate) fn a_wildcard_gives_retained_messages_as_documented(make: Make) {
    let site = Site::new(make);
    let mut gateway = site.client(&site.id.to_string());
    let topic = Topic::new(site.id, Kind::Status).to_string();
    gateway.publish(&topic, b"presence", true, Beside::default()).unwrap();
    let mut fleet = site.fleet();
    fleet.subscribe("coracle/1/+/status").unwrap();
    let came = fleet.messages().unwrap();
    assert_eq!(came.len(), usize::from(!is_rabbitmq(make)), "{came:?}");
    fleet.subscribe(&topic).unwrap();
    fleet.wait("what is retained", |message| message.retained && message.payload == b"presence");
}

/// What a gateway without a delay says is retained everywhere: see the matrix.
pub(crate) fn a_delayed_will_comes_and_is_retained_as_documented(make: Make) {
    let site = Site::new(make);
    let topic = Topic::new(site.id, Kind::Status).to_string();
    let mut fleet = site.fleet();
    fleet.subscribe(&topic).unwrap();
    let (id, port) = (site.id.to_string(), site.broker.port());
    let gateway = Client::connect_with_will(&site.pki, port, &id, &id, Some(&topic)).unwrap();
    drop(gateway);
    fleet.wait("the will", |message| message.payload == b"will");
    drop(fleet);
    let mut fleet = site.fleet();
    fleet.subscribe(&topic).unwrap();
    let came = fleet.messages().unwrap();
    assert_eq!(came.len(), usize::from(!is_rabbitmq(make)), "{came:?}");
}

/// How a gateway is told that it may not. Nothing of ours depends on it but what is said of it.
pub(crate) fn what_is_forbidden_is_told_as_documented(make: Make) {
    let site = Site::new(make);
    let (own, foreign) = (site.id.to_string(), Topic::new(site.other, Kind::Events).to_string());
    let published = site.client(&own).publish(&foreign, b"forged", false, Beside::default());
    let subscribed = site.client(&own).subscribe(&foreign);
    if is_rabbitmq(make) {
        assert!(published.is_err(), "{published:?}");
        assert_eq!(subscribed.unwrap(), NOT_AUTHORIZED);
    } else {
        assert_eq!(published.unwrap(), NOT_AUTHORIZED);
        assert_eq!(subscribed.unwrap(), 1);
    }
}
