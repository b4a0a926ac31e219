//! The main job: a signed order by MQTT, and its containers run.

use coracle_hil::gateway::{free_port, stderr};
use coracle_hil::{Gateway, orders};
use coracle_protocol::presence::{Presence, PresenceState};
use coracle_protocol::reported::{Phase, ReportedState};
use coracle_protocol::topic::Kind;
use coracle_testbed::image::GREETING;
use coracle_testbed::{Image, http, wait_for};

use super::{SOON, gateway_running, order, sleepers};

#[test]
fn an_order_by_mqtt_runs_a_web_server_and_the_topics_tell_it() {
    let mut gateway = Gateway::start().unwrap();
    let digest = gateway.registry.push(&Image::lighttpd().unwrap(), "web", "1").unwrap();
    let reported = gateway.broker.listen(&gateway.topic(Kind::Reported)).unwrap();
    let port = free_port().unwrap();
    let image = gateway.registry.pinned("web", &digest);
    order(&mut gateway, 1, vec![orders::web("web", &image, port)]);
    let status = gateway.wait_converged(1).unwrap();
    assert_eq!(status.workload("web").unwrap().image_digest.as_deref(), Some(&*digest));

    let page = wait_for("the page", SOON, || http::get(&format!("http://127.0.0.1:{port}/")).ok());
    assert!(page.unwrap().text().starts_with(GREETING));

    let message = reported.wait("a report of success", SOON, |message| {
        let report: ReportedState = serde_json::from_slice(&message.payload).unwrap();
        report.phase == Phase::Converged && report.generation_applied == 1
    });
    let report: ReportedState = serde_json::from_slice(&message.unwrap().payload).unwrap();
    assert_eq!(report.gateway, gateway.id());
    assert_eq!(report.generation_seen, 1);
    assert_eq!(report.workloads[0].replicas[0].pid, status.replica("web").unwrap().pid);
    let sequences: Vec<u64> = reported
        .messages()
        .iter()
        .map(|m| serde_json::from_slice::<ReportedState>(&m.payload).unwrap().sequence)
        .collect();
    assert!(sequences.windows(2).all(|pair| pair[0] < pair[1]), "{sequences:?}");
}

fn presence(gateway: &Gateway, wanted: impl Fn(&Presence) -> bool) -> Presence {
    let topic = gateway.topic(Kind::Status);
    wait_for("the retained presence", SOON, || {
        let bytes = gateway.broker.retained(&topic, SOON).unwrap()?;
        let presence: Presence = serde_json::from_slice(&bytes).unwrap();
        wanted(&presence).then_some(presence)
    })
    .unwrap()
}

#[test]
fn retained_presence_says_what_runs_and_goes_offline_however_the_agent_ends() {
    let (mut gateway, _) = gateway_running(&["one", "two"]);
    let online = presence(&gateway, |presence| presence.running.len() == 2);
    assert_eq!(online.state, PresenceState::Online);
    assert_eq!(online.running, ["one", "two"]);
    assert!(!online.machine.unwrap().kernel.is_empty());

    gateway.kill_agent().unwrap();
    presence(&gateway, |presence| presence.state == PresenceState::Offline);
    gateway.start_agent().unwrap();
    presence(&gateway, |presence| presence.state == PresenceState::Online);
    gateway.stop_agent().unwrap();
    presence(&gateway, |presence| presence.state == PresenceState::Offline);
}

#[test]
fn publishing_can_wait_for_the_gateway_and_tells_its_refusal() {
    let (mut gateway, _) = gateway_running(&["one"]);
    let publish = |gateway: &mut Gateway, generation| {
        let workloads = sleepers(gateway, &["one"]);
        let signed = gateway.sign(&orders::order(gateway.id(), generation, workloads)).unwrap();
        let mut args = gateway.publish_args(&signed).unwrap();
        args.extend(["--wait".to_owned(), "30".to_owned()]);
        gateway.fleet(&args.iter().map(String::as_str).collect::<Vec<_>>()).unwrap()
    };
    let good = publish(&mut gateway, 5);
    assert_eq!(good.status.code(), Some(0), "{}", stderr(&good));
    assert_eq!(gateway.status().unwrap().reported.generation_applied, 5);
    let refused = publish(&mut gateway, 4);
    assert_eq!(refused.status.code(), Some(1), "{}", stderr(&refused));
    let said = format!("{}{}", String::from_utf8_lossy(&refused.stdout), stderr(&refused));
    assert!(said.contains("old-generation"), "{said}");
}
