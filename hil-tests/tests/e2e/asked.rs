//! What an operator asks of a gateway by `coracle-fleet command`, and gets.

use coracle_hil::{Gateway, orders};
use coracle_testbed::broker::FLEET;
use serde_json::Value;

use super::{SOON, busybox, gateway_running, order};

/// Runs it; its exit code, what it printed and what it said.
fn ask(gateway: &Gateway, args: &[&str]) -> (Option<i32>, String, String) {
    let fleet = gateway.pki.client(FLEET).unwrap();
    let (id, broker) = (gateway.id().to_string(), format!("localhost:{}", gateway.broker.port()));
    let ca = gateway.pki.ca();
    let path = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    let mut all = vec!["command".to_owned(), "--gateway".into(), id, "--broker".into(), broker];
    for (option, file) in [
        ("--sign-key", gateway.key()),
        ("--ca", &ca),
        ("--cert", &fleet.cert),
        ("--key", &fleet.key),
    ] {
        all.extend([option.to_owned(), path(file)]);
    }
    all.extend(args.iter().map(|arg| (*arg).to_owned()));
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let output = gateway.fleet(&all).unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_workload_is_stopped_started_and_restarted_from_afar() {
    let (mut gateway, before) = gateway_running(&["one"]);
    let (code, _, said) = ask(&gateway, &["stop", "one"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains(": accepted") || said.contains(": succeeded"), "{said}");
    let stopped = |status: &coracle_hil::Status| status.pid("one").is_none().then_some(());
    gateway.wait("the stop", SOON, stopped).unwrap();
    assert_eq!(ask(&gateway, &["start", "one"]).0, Some(0));
    let runs = |status: &coracle_hil::Status| status.pid("one");
    let again = gateway.wait("the start", SOON, runs).unwrap();
    assert_ne!(again, before[0]);
    let (code, _, said) = ask(&gateway, &["restart", "one"]);
    assert_eq!(code, Some(0), "{said}");
    let other = |status: &coracle_hil::Status| status.pid("one").filter(|pid| *pid != again);
    gateway.wait("the restart", SOON, other).unwrap();

    let (code, _, said) = ask(&gateway, &["stop", "nothing"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("no workload \"nothing\""), "{said}");
    // The gateway's own people see it all, with nothing left to be told.
    let listed = gateway.coracle(&["commands", "--json"]).unwrap();
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    let commands = listed["commands"].as_array().unwrap();
    assert_eq!(commands.len(), 4, "{listed}");
    assert!(commands.iter().all(|command| command["received"] == true), "{listed}");
}

#[test]
fn logs_and_diagnostics_are_given_and_a_reboot_is_refused() {
    let (mut gateway, _) = gateway_running(&["one"]);
    let image = busybox(&gateway);
    let talks = orders::script("talks", &image, "echo first; echo second; sleep 1000");
    order(&gateway, 2, vec![talks]);
    gateway.wait_converged(2).unwrap();
    let (code, out, said) = ask(&gateway, &["logs", "talks", "--tail", "20"]);
    assert_eq!(code, Some(0), "{said}");
    let said: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let texts: Vec<_> = said.iter().filter(|line| line["stream"] == "stdout").collect();
    let texts: Vec<_> = texts.iter().map(|line| line["text"].as_str().unwrap()).collect();
    assert_eq!(texts, ["first", "second"], "{out}");

    let (code, out, said) = ask(&gateway, &["diagnostics"]);
    assert_eq!(code, Some(0), "{said}");
    let diagnostics: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(diagnostics["status"]["reported"]["generation_applied"], 2, "{out}");
    let (code, out, _) = ask(&gateway, &["--json", "list-artifacts"]);
    assert_eq!(code, Some(0));
    let result: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(result["state"], "succeeded", "{out}");

    let (code, _, said) = ask(&gateway, &["reboot"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("rejected [not-allowed]"), "{said}");
    assert_eq!(ask(&gateway, &["report"]).0, Some(0));
}
