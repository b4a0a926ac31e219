//! The commands that people and scripts use, and their exit codes.

use coracle_hil::gateway::stderr;
use coracle_hil::{Gateway, Options, Signer, orders};

use super::{gateway_running, sleepers};

fn text(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn status_ps_and_events_tell_what_is() {
    let (gateway, pids) = gateway_running(&["one"]);
    let status = gateway.coracle(&["status"]).unwrap();
    assert_eq!(status.status.code(), Some(0), "{}", stderr(&status));
    assert!(text(&status).contains("one") && text(&status).contains("converged"), "{status:?}");
    let ps = gateway.coracle(&["ps"]).unwrap();
    assert!(text(&ps).contains("one.0") && text(&ps).contains(&pids[0].to_string()), "{ps:?}");
    let kinds: Vec<String> = gateway.events().unwrap().into_iter().map(|e| e.kind).collect();
    for kind in ["order-accepted", "pulled", "started"] {
        assert!(kinds.iter().any(|k| k == kind), "no {kind} in {kinds:?}");
    }
    // 80 columns without colour, when nobody says otherwise.
    for output in [&status, &ps] {
        assert!(!text(output).contains('\u{1b}'), "{output:?}");
    }
}

#[test]
fn without_an_agent_the_exit_code_is_3_and_wrong_usage_is_2() {
    let gateway = Gateway::prepare(Options::default()).unwrap();
    let code = |args: &[&str]| gateway.coracle(args).unwrap().status.code();
    assert_eq!(code(&["status"]), Some(3));
    assert_eq!(code(&["ps", "--json"]), Some(3));
    assert_eq!(code(&["events"]), Some(3));
    assert_eq!(code(&["nonsense"]), Some(2));
    assert_eq!(code(&["apply", "/does/not/exist"]), Some(2));
}

#[test]
fn validate_needs_no_agent_and_prints_every_refusal() {
    let gateway = Gateway::prepare(Options::default()).unwrap();
    let validate = |text: &str| {
        let file = gateway.place().run().join("order.yaml");
        std::fs::write(&file, text).unwrap();
        gateway.coracle(&["validate", file.to_str().unwrap()]).unwrap()
    };
    let id = gateway.id();
    let good = format!("schema: 1\ngateway: {id}\ngeneration: 1\nworkloads: []\n");
    assert_eq!(validate(&good).status.code(), Some(0));
    let bad = format!(
        "schema: 1\ngateway: {id}\ngeneration: 0\nworkloads:\n- name: Bad\n  network: none\n  \
         containers:\n  - image: registry.example/a:1\n    readonly_rot: true\n"
    );
    let refused = validate(&bad);
    assert_eq!(refused.status.code(), Some(1), "{}", stderr(&refused));
    let said = text(&refused) + &stderr(&refused);
    for place in ["/generation", "/workloads/0/name", "readonly_rot"] {
        assert!(said.contains(place), "no {place} in {said}");
    }
}

#[test]
fn an_order_without_any_network_is_applied_by_hand() {
    let options = Options { link: false, ..Options::default() };
    let mut gateway = Gateway::prepare(options).unwrap();
    gateway.start_agent().unwrap();
    let signer = gateway.signer().unwrap();
    let order = orders::order(gateway.id(), 1, sleepers(&gateway, &["one"]));
    let applied = gateway.apply(&signer.sign(&order)).unwrap();
    assert!(applied.accepted && !applied.unchanged, "{applied:?}");
    let pid = gateway.wait_converged(1).unwrap().pid("one");
    let again = gateway.apply(&signer.sign(&order)).unwrap();
    assert!(again.accepted && again.unchanged, "{again:?}");

    let next = orders::order(gateway.id(), 2, Vec::new());
    let refused = gateway.apply(&Signer::stranger().unwrap().sign(&next)).unwrap();
    assert!(!refused.accepted, "{refused:?}");
    assert_eq!(refused.refusals[0].code.as_str(), "untrusted-key");
    assert_eq!(gateway.wait_converged(1).unwrap().pid("one"), pid);
}
