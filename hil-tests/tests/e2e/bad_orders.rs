//! Orders that must not be carried out, by MQTT: each is refused with its reason, here and in the
//! report, nothing changes, and the next good order is accepted.

use coracle_hil::{Gateway, Signer, orders};
use coracle_protocol::envelope::{Envelope, POINTER_PAYLOAD_TYPE};
use coracle_protocol::limits::{MAX_PACKET_BYTES, MAX_SMALL_ENVELOPE_BYTES};
use coracle_protocol::reported::ReportedState;
use coracle_protocol::topic::Kind;
use coracle_protocol::{DesiredState, GatewayId};

use super::{SOON, gateway_running, order, pids, sleepers, tasks};

const IN_FORCE: u64 = 10;

struct Case {
    name: &'static str,
    envelope: Vec<u8>,
    code: &'static str,
}

fn cases(gateway: &Gateway) -> Vec<Case> {
    let signer = gateway.signer().unwrap();
    let one = sleepers(gateway, &["one"]);
    let order = |generation| orders::order(gateway.id(), generation, one.clone());
    let signed = |order: &DesiredState| signer.sign(order);
    let document = |text: &str| signer.sign_bytes(text.as_bytes()).encode();
    let good = String::from_utf8(serde_json::to_vec(&order(11)).unwrap()).unwrap();
    let case = |name, envelope, code| Case { name, envelope, code };

    let mut duplicate = order(11);
    duplicate.workloads.push(duplicate.workloads[0].clone());
    let mut requires = order(11);
    requires.requires.push("time-travel".to_owned());
    let mut elsewhere = order(11);
    elsewhere.gateway = GatewayId::random();
    let mut reused = order(IN_FORCE);
    reused.workloads[0].containers[0].env.insert("A".into(), "B".into());
    let mut image = order(11);
    image.workloads[0].containers[0].image = "Not An Image".into();
    // By the shipped signer, so that it names the trusted key, and then tampered with.
    let by_fleet = gateway.sign(&order(12)).unwrap();
    let mut tampered = Envelope::decode(&std::fs::read(by_fleet).unwrap()).unwrap();
    tampered.payload = String::from_utf8(tampered.payload).unwrap().replace("one", "two").into();
    let mut unsigned = signer.sign_bytes(good.as_bytes());
    unsigned.signatures.clear();
    let mut other_type = signer.sign_bytes(good.as_bytes());
    other_type.payload_type = "text/plain".to_owned();

    vec![
        case("not an envelope", b"nonsense".to_vec(), "malformed"),
        case("malformed JSON inside", document("{\"schema\":1,"), "malformed"),
        case("unsigned", unsigned.encode(), "unsigned"),
        case("wrong signature", tampered.encode(), "bad-signature"),
        case("wrong key", Signer::stranger().unwrap().sign(&order(11)), "untrusted-key"),
        case("another payload type", other_type.encode(), "wrong-payload-type"),
        case("wrong gateway", signed(&elsewhere), "wrong-gateway"),
        case(
            "unknown schema",
            document(&good.replace("\"schema\":1", "\"schema\":9")),
            "unknown-schema",
        ),
        case("older generation", signed(&order(9)), "old-generation"),
        case("other content", signed(&reused), "generation-reused"),
        case("duplicate names", signed(&duplicate), "duplicate-name"),
        case("unknown feature", signed(&requires), "unsupported-feature"),
        case("image reference", signed(&image), "invalid-image"),
        case(
            "oversized",
            signer.sign_as(POINTER_PAYLOAD_TYPE, &[b' '; MAX_SMALL_ENVELOPE_BYTES]).encode(),
            "too-large",
        ),
    ]
}

#[test]
fn each_bad_order_is_refused_with_its_reason_and_the_next_good_one_accepted() {
    let (mut gateway, before) = gateway_running(&["one"]);
    let reports = gateway.broker.listen(&gateway.topic(Kind::Reported)).unwrap();
    let workloads = sleepers(&gateway, &["one"]);
    order(&gateway, IN_FORCE, workloads.clone());
    assert_eq!(pids(&mut gateway, IN_FORCE, &["one"]), before);
    let tasks_before = tasks(&gateway);
    for case in cases(&gateway) {
        let Case { name, envelope, code } = case;
        gateway.publish_raw(&envelope).unwrap();
        let status = gateway
            .wait(name, SOON, |status| status.refused_with(code).map(|_| status.clone()))
            .unwrap();
        assert_eq!(status.reported.generation_applied, IN_FORCE, "{name}");
        assert_eq!(status.pid("one"), Some(before[0]), "{name}");
        reports
            .wait(&format!("a report of {name}"), SOON, |message| {
                let report: ReportedState = serde_json::from_slice(&message.payload).unwrap();
                report.refused.is_some_and(|refused| {
                    refused.refusals.iter().any(|refusal| refusal.code.as_str() == code)
                })
            })
            .unwrap();
    }
    assert_eq!(tasks(&gateway), tasks_before);

    // Past what a packet may hold: a broker drops it, and the link goes on.
    gateway.publish_raw(&vec![b' '; 2 * MAX_PACKET_BYTES]).unwrap();
    order(&gateway, 20, workloads);
    assert_eq!(pids(&mut gateway, 20, &["one"]), before);
    assert!(gateway.status().unwrap().reported.refused.is_none());
}

#[test]
fn a_replayed_order_changes_nothing_and_is_no_reason_to_complain() {
    let (mut gateway, before) = gateway_running(&["one"]);
    let signed = std::fs::read(gateway.place().run().join("order-1.signed.json")).unwrap();
    for _ in 0..3 {
        gateway.publish_raw(&signed).unwrap();
    }
    assert_eq!(pids(&mut gateway, 1, &["one"]), before);
    // A later order shows that the replayed ones have been dealt with.
    let workloads = sleepers(&gateway, &["one"]);
    order(&gateway, 2, workloads);
    assert_eq!(pids(&mut gateway, 2, &["one"]), before);
    gateway.publish_raw(&signed).unwrap();
    let refused = gateway.wait("the old one", SOON, |status| {
        status.refused_with("old-generation").map(|refused| refused.generation)
    });
    assert_eq!(refused.unwrap(), Some(1));
    assert_eq!(gateway.status().unwrap().pid("one"), Some(before[0]));
}

#[test]
fn fields_of_a_newer_fleet_are_tolerated_and_reported() {
    let (mut gateway, before) = gateway_running(&["one"]);
    let order = orders::order(gateway.id(), 2, sleepers(&gateway, &["one"]));
    let mut document = serde_json::to_value(&order).unwrap();
    document["workloads"][0]["colour"] = "blue".into();
    let signed = gateway.signer().unwrap().sign_bytes(document.to_string().as_bytes());
    gateway.publish_raw(&signed.encode()).unwrap();
    assert_eq!(pids(&mut gateway, 2, &["one"]), before);
    assert_eq!(gateway.status().unwrap().reported.unknown_fields, ["/workloads/0/colour"]);
}
