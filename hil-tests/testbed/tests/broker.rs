//! The broker keeps out who has no certificate and holds gateways to their topics.

use std::process::Command;
use std::time::Duration;

use coracle_testbed::pki::Identity;
use coracle_testbed::process::{run, run_with_input};
use coracle_testbed::{Broker, Pki, Place, wait_for};

const LIMIT: Duration = Duration::from_secs(20);
const GATEWAY: &str = "7f1c0f5e-54a6-4c3e-9d06-0d5b7f1f7f10";

fn client(program: &str, broker: &Broker, pki: &Pki, identity: Option<&Identity>) -> Command {
    let mut command = Command::new(program);
    let port = broker.port().to_string();
    command.args(["-V", "mqttv5", "-h", "localhost", "-p", &port, "--cafile"]).arg(pki.ca());
    if let Some(identity) = identity {
        command.arg("--cert").arg(&identity.cert).arg("--key").arg(&identity.key);
    }
    command
}

fn publish(broker: &Broker, pki: &Pki, identity: Option<&Identity>, topic: &str) -> bool {
    let mut command = client("mosquitto_pub", broker, pki, identity);
    command.args(["-q", "1", "-r", "-t", topic, "-m", "hello"]);
    run(&mut command, LIMIT).is_ok()
}

#[test]
fn only_valid_certificates_get_in() {
    let place = Place::new().unwrap();
    let pki = Pki::new(&place.run().join("pki")).unwrap();
    let broker = Broker::start(&place, &pki).unwrap();
    let topic = format!("coracle/1/{GATEWAY}/status");
    let good = pki.client(GATEWAY).unwrap();
    assert!(publish(&broker, &pki, Some(&good), &topic), "{}", broker.log());
    assert!(!publish(&broker, &pki, None, &topic), "no certificate");
    for bad in [pki.expired(GATEWAY), pki.not_yet_valid(GATEWAY), pki.foreign(GATEWAY)] {
        let bad = bad.unwrap();
        assert!(!publish(&broker, &pki, Some(&bad), &topic), "{}", bad.cert.display());
    }
}

#[test]
fn a_gateway_is_held_to_its_own_topics() {
    let place = Place::new().unwrap();
    let pki = Pki::new(&place.run().join("pki")).unwrap();
    let broker = Broker::start(&place, &pki).unwrap();
    let gateway = pki.client(GATEWAY).unwrap();
    let fleet = pki.client("fleet").unwrap();
    let heard = broker.listen("coracle/#").unwrap();
    let topic = |name: &str, leaf: &str| format!("coracle/1/{name}/{leaf}");

    for (leaf, allowed) in [("reported", true), ("status", true), ("desired", false)] {
        publish(&broker, &pki, Some(&gateway), &topic(GATEWAY, leaf));
        let kept = broker.retained(&topic(GATEWAY, leaf), Duration::from_secs(1)).unwrap();
        assert_eq!(kept.is_some(), allowed, "{leaf}");
    }
    publish(&broker, &pki, Some(&gateway), &topic("another", "status"));
    assert!(publish(&broker, &pki, Some(&fleet), &topic("another", "desired")));
    heard.wait("the fleet's order", LIMIT, |message| message.topic.ends_with("desired")).unwrap();
    let topics: Vec<_> = heard.messages().into_iter().map(|message| message.topic).collect();
    assert_eq!(
        topics,
        [topic(GATEWAY, "reported"), topic(GATEWAY, "status"), topic("another", "desired")]
    );

    broker.publish(&topic(GATEWAY, "desired"), b"order", true).unwrap();
    for (filter, expected) in
        [(topic(GATEWAY, "desired"), "order"), (topic("another", "desired"), "")]
    {
        let mut command = client("mosquitto_sub", &broker, &pki, Some(&gateway));
        command.args(["-q", "1", "-C", "1", "-W", "2", "-N", "-t", &filter]);
        let output = run_with_input(&mut command, &[], LIMIT).unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{filter}");
    }
}

#[test]
fn it_stops_hangs_and_returns_with_what_it_kept() {
    let place = Place::new().unwrap();
    let name = place.name().to_owned();
    let pki = Pki::new(&place.run().join("pki")).unwrap();
    let mut broker = Broker::start(&place, &pki).unwrap();
    let gateway = pki.client(GATEWAY).unwrap();
    let own = format!("coracle/1/{GATEWAY}/status");
    let order = format!("coracle/1/{GATEWAY}/desired");
    broker.publish(&order, &[0, 255, b'\n'], true).unwrap();

    broker.cut().unwrap();
    let mut command = client("mosquitto_pub", &broker, &pki, Some(&gateway));
    command.args(["-t", &own, "-m", "x"]);
    let error = run(&mut command, Duration::from_millis(500)).unwrap_err();
    assert!(error.to_string().contains("still running"), "{error}");
    broker.restore().unwrap();
    assert!(publish(&broker, &pki, Some(&gateway), &own));

    broker.stop().unwrap();
    assert!(!publish(&broker, &pki, Some(&gateway), &own));
    broker.start_again().unwrap();
    assert!(publish(&broker, &pki, Some(&gateway), &own));
    let kept = broker.retained(&order, Duration::from_secs(2)).unwrap();
    assert_eq!(kept.as_deref(), Some(&[0, 255, b'\n'][..]));
    let mut command = client("mosquitto_sub", &broker, &pki, Some(&gateway));
    command.args(["-q", "1", "-C", "1", "-W", "5", "-N", "-t", &order]);
    assert_eq!(run(&mut command, LIMIT).unwrap(), [0, 255, b'\n'], "after a restart, to a gateway");

    drop(broker);
    place.close().unwrap();
    wait_for("nothing left", LIMIT, || {
        coracle_testbed::place::leftovers(&name).is_empty().then_some(())
    })
    .unwrap();
}
