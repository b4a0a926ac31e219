//! The command line as its users meet it: what it prints, and its exit codes.

#![allow(clippy::unwrap_used, reason = "clippy.toml allows it inside #[test] functions only")]

mod api_support;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use api_support::{FakeAgent, Running, coracle, refusal};
use coracle::status::VolumeStatus;
use coracle_protocol::Timestamp;
use coracle_protocol::envelope::{DESIRED_PAYLOAD_TYPE, Envelope, Signature};
use coracle_protocol::reported::{Phase, ReplicaState, StoppedReport, UpdateReport, UpdateState};
use serde_json::{Value, json};

const GOOD: &str = r#"{"schema":1,"gateway":"3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11","generation":7,
    "workloads":[{"name":"web","network":"host","containers":[
        {"image":"registry.example/web:1.27"}]}]}"#;
const BAD: &str = r#"{"schema":1,"gateway":"3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11","generation":0,
    "workloads":[{"name":"web","network":"host","containers":[
        {"image":"registry.example/web:1.27","readonly_rot":true}]}]}"#;

/// Exit code, standard output, standard error.
fn run(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().expect("ended by a signal"), text(stdout), text(stderr))
}

fn file(agent: &FakeAgent, text: &[u8]) -> String {
    let path = agent.dir.path().join("file");
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

fn signed() -> Vec<u8> {
    let signature = Signature { keyid: String::new(), sig: vec![0; 64] };
    let payload_type = DESIRED_PAYLOAD_TYPE.into();
    Envelope { payload_type, payload: GOOD.into(), signatures: vec![signature] }.encode()
}

#[test]
fn help_has_examples_and_exit_codes_and_usage_errors_end_with_2() {
    let with = |command: &'static str, flag: &'static str| -> Vec<&'static str> {
        command.split(' ').chain([flag]).collect()
    };
    for command in [
        "agent",
        "validate",
        "apply",
        "status",
        "ps",
        "events",
        "logs",
        "start",
        "stop",
        "drain",
        "restart",
        "volumes",
        "volumes rm",
        "artifact list",
        "artifact show",
        "artifact install",
        "artifact remove",
        "service list",
        "service show",
        "service start",
        "service stop",
        "service drain",
        "service restart",
        "service purge",
        "purge",
        "secrets key",
        "identity keys",
    ] {
        let (code, help, _) = run(&mut coracle(&with(command, "--help")));
        assert_eq!(code, 0);
        let example = format!("Examples:\n  coracle {command}");
        assert!(help.contains(&example) && help.contains("Exit codes:"), "{help}");
        assert!(help.lines().all(|line| line.chars().count() <= 100), "{help}");
        let (code, _, error) = run(&mut coracle(&with(command, "--no-such-flag")));
        assert_eq!(code, 2);
        assert!(error.contains("--no-such-flag"), "{error}");
    }
    let (code, help, _) = run(&mut coracle(&["--help"]));
    assert!(code == 0 && help.contains("Exit codes:"), "{help}");
    assert_eq!(run(&mut coracle(&[])).0, 2);
    assert_eq!(run(&mut coracle(&["frobnicate"])).0, 2);
    assert_eq!(run(&mut coracle(&["validate"])).0, 2);
    assert_eq!(run(&mut coracle(&["--version"])).1, "coracle 0.1.0\n");
}

#[test]
fn without_an_agent_every_client_ends_with_3_and_says_what_to_do() {
    let agent = FakeAgent::start();
    let order = file(&agent, &signed());
    let nowhere = agent.dir.path().join("nowhere.sock");
    let nowhere = nowhere.to_str().unwrap();
    let operate = ["start", "stop", "drain", "restart"].map(|operation| vec![operation, "web"]);
    let clients = [vec!["status"], vec!["ps"], vec!["events"], vec!["apply", &order]];
    let native = [
        vec!["artifact", "list"],
        vec!["artifact", "install", "org.example:gauge:1"],
        vec!["service", "stop", "a.gauge.alice.line-1"],
        vec!["purge", "--yes", "gauge"],
    ];
    for args in clients.into_iter().chain(operate).chain(native) {
        let (code, output, error) = run(coracle(&args).args(["--socket", nowhere]));
        assert_eq!((code, output.as_str()), (3, ""));
        assert_eq!(
            error,
            format!(
                "error: cannot reach the agent at {nowhere}: No such file or directory (os error 2)\n\
                 hint: is `coracle agent` running? Another place can be named by --socket\n"
            )
        );
    }
}

#[test]
fn validate_needs_no_agent_and_tells_every_refusal() {
    let agent = FakeAgent::start();
    let good = file(&agent, GOOD.as_bytes());
    let (code, output, _) = run(&mut coracle(&["validate", &good]));
    let told = "good: generation 7 for gateway 3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11, 1 workload";
    assert_eq!((code, output), (0, format!("{good}: {told}\n")));
    let order = file(&agent, &signed());
    let (code, output, _) = run(&mut coracle(&["validate", &order]));
    assert_eq!((code, output), (0, format!("{order}: {told} (its signature was not checked)\n")));
    let bad = file(&agent, BAD.as_bytes());
    let (code, output, error) = run(&mut coracle(&["validate", &bad]));
    assert_eq!((code, output.lines().count(), error.as_str()), (1, 2, ""), "{output}");
    assert!(output.contains(": /workloads/0/containers/0/readonly_rot: unknown field"), "{output}");
    let (code, output, _) = run(&mut coracle(&["validate", "--json", &bad]));
    let verdict: Value = serde_json::from_str(&output).unwrap();
    assert_eq!((code, &verdict["valid"]), (1, &Value::Bool(false)));
    assert_eq!(verdict["refusals"].as_array().unwrap().len(), 2);
    assert_eq!(run(&mut coracle(&["validate", "/no/such/file"])).0, 2);
    let yaml = "schema: 1\ngateway: 3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11\n\
        generation: 7 # and a comment\nworkloads: []\n";
    let good = file(&agent, yaml.as_bytes());
    assert_eq!(run(&mut coracle(&["validate", &good])).0, 0);
    let twice = file(&agent, format!("{yaml}generation: 8\n").as_bytes());
    let (code, output, _) = run(&mut coracle(&["validate", &twice]));
    assert!(code == 1 && output.contains("occurs twice"), "{output}");
}

/// An order with a template and, in the place of `QOS`, a configuration.
const WITH_TEMPLATE: &str = r#"{"schema":1,"gateway":"3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11",
    "generation":7,"types":{"reader":{"network":"host",
        "config_template":{"schema":{"properties":{"qos":{"enum":[0,1,2]}}}},
        "containers":[{"image":"registry.example/reader:1"}]}},
    "workloads":[{"name":"reader","type":"reader","config":{"qos":QOS}}]}"#;

#[test]
fn validate_judges_configurations_by_the_program_beside_it() {
    let agent = FakeAgent::start();
    let good = file(&agent, WITH_TEMPLATE.replace("QOS", "1").as_bytes());
    let (code, output, error) = run(&mut coracle(&["validate", &good]));
    assert_eq!(code, 0, "{output}{error}");
    let bad = file(&agent, WITH_TEMPLATE.replace("QOS", "3").as_bytes());
    let (code, output, _) = run(&mut coracle(&["validate", &bad]));
    let told = "/workloads/0/config/qos: is 3; must be 0 or 1 or 2 [config-invalid]";
    assert_eq!((code, output), (1, format!("{bad}: {told}\n")));
}

#[test]
fn validate_says_when_configurations_were_not_judged() {
    let agent = FakeAgent::start();
    let config = agent.dir.path().join("coracle.toml");
    std::fs::write(&config, "[templates]\nprogram = \"/no/such/program\"\n").unwrap();
    let validate = |text: &str| {
        let order = file(&agent, text.as_bytes());
        run(coracle(&["validate", &order, "--config"]).arg(&config))
    };
    let (code, output, error) = validate(&WITH_TEMPLATE.replace("QOS", "3"));
    assert_eq!(code, 2, "{output}");
    assert!(
        output.contains(
            "/types/reader/config_template/schema: it cannot be judged: /no/such/program cannot be \
             started: No such file"
        ) && output.ends_with("[not-judged]\n"),
        "{output}"
    );
    let told = "error: it is not known whether the configurations satisfy their templates\nhint: ";
    assert!(error.starts_with(told) && error.contains("[templates] program"), "{error}");
    // What is bad anyway is bad, and what has no template needs nobody.
    let (code, output, error) = validate(
        &WITH_TEMPLATE.replace("QOS", "3").replace("\"generation\":7", "\"generation\":0"),
    );
    assert_eq!((code, output.lines().count(), error.as_str()), (1, 2, ""), "{output}");
    assert_eq!(validate(GOOD).0, 0);
}

#[test]
fn validate_reads_standard_input() {
    let mut child =
        coracle(&["validate", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(GOOD.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert!(output.stdout.starts_with(b"standard input: good: generation 7"));
}

#[test]
fn status_answers_and_judges_only_if_asked() {
    let agent = FakeAgent::start();
    let (code, output, _) = run(&mut agent.coracle(&["status", "--check"]));
    assert_eq!(code, 0);
    assert!(output.contains("web.0     running  pid 4711\n"), "{output}");
    assert!(output.is_ascii() && !output.contains('\x1b'), "{output}");
    agent.set_phase(Phase::Degraded);
    assert_eq!(run(&mut agent.coracle(&["status"])).0, 0);
    assert_eq!(run(&mut agent.coracle(&["status", "--check"])).0, 1);
    assert_eq!(run(&mut agent.coracle(&["status", "-q"])), (1, String::new(), String::new()));
    let (_, output, _) = run(&mut agent.coracle(&["status", "--json"]));
    let status: Value = serde_json::from_str(&output).unwrap();
    assert_eq!(status["reported"]["phase"], "degraded");
}

#[test]
fn what_was_stopped_or_taken_back_is_seen_and_only_the_latter_is_judged() {
    let agent = FakeAgent::start();
    let since = Timestamp::from_unix(1_772_366_400);
    {
        let mut facts = agent.facts.lock().unwrap();
        facts.web().stopped = Some(StoppedReport { drained: true, since });
        facts.web().replicas[0].state = ReplicaState::Stopped;
    }
    let (code, output, _) = run(&mut agent.coracle(&["status", "--check"]));
    assert_eq!(code, 0);
    assert!(output.contains("web.0     stopped  drained by hand "), "{output}");
    {
        let mut facts = agent.facts.lock().unwrap();
        let (state, reason) = (UpdateState::RolledBack, Some("web.0: out of memory".into()));
        facts.web().stopped = None;
        facts.web().update = Some(UpdateReport { state, updated: 0, replicas: 1, reason });
        facts.web().replicas[0].state = ReplicaState::Running;
    }
    agent.set_phase(Phase::Degraded);
    let (code, output, _) = run(&mut agent.coracle(&["status", "--check"]));
    assert_eq!(code, 1);
    let row = "rolled-back  update taken back: web.0: out of memory; runs generation 7\n";
    assert!(output.contains(row), "{output}");
    let (_, output, _) = run(&mut agent.coracle(&["ps"]));
    assert!(output.contains("as in generation 7\n\nweb: update taken back: "), "{output}");
}

#[test]
fn ps_lists_replicas() {
    let agent = FakeAgent::start();
    let (code, output, _) = run(&mut agent.coracle(&["ps"]));
    assert_eq!(code, 0);
    assert_eq!(output.lines().count(), 2, "{output}");
    let (_, output, _) = run(&mut agent.coracle(&["ps", "--json"]));
    let list: Value = serde_json::from_str(&output).unwrap();
    assert_eq!(list[0]["replicas"][0]["state"], "running");
}

#[test]
fn apply_tells_what_became_of_the_order() {
    let agent = FakeAgent::start();
    let order = file(&agent, &signed());
    let accepted = run(&mut agent.coracle(&["apply", &order]));
    assert_eq!(accepted, (0, "generation 7: accepted\n".into(), String::new()));
    agent.facts.lock().unwrap().refusal = Some(refusal());
    let (code, output, _) = run(&mut agent.coracle(&["apply", &order]));
    assert_eq!(code, 1);
    assert_eq!(
        output,
        "generation 7: refused, nothing was changed\n  \
         /generation: generation 8 is in force already [old-generation]\n"
    );
    let (code, output, _) = run(&mut agent.coracle(&["apply", "--json", &order]));
    let answer: Value = serde_json::from_str(&output).unwrap();
    assert_eq!((code, &answer["accepted"]), (1, &Value::Bool(false)));
    let sent = agent.facts.lock().unwrap().applied.len();
    let unsigned = file(&agent, GOOD.as_bytes());
    let (code, output, _) = run(&mut agent.coracle(&["apply", &unsigned]));
    assert!(code == 1 && output.contains("coracle-fleet order sign"), "{output}");
    assert_eq!(agent.facts.lock().unwrap().applied.len(), sent);
}

#[test]
fn apply_waits_until_everything_is_as_ordered() {
    let agent = FakeAgent::start();
    let order = file(&agent, &signed());
    agent.set_phase(Phase::Progressing);
    let late = run(&mut agent.coracle(&["apply", "--wait", "1", &order]));
    assert_eq!((late.0, late.2.contains("not everything is as ordered")), (1, true), "{late:?}");
    let mut waiting = agent.coracle(&["apply", "--wait", "60", &order]);
    let mut waiting = Running(waiting.stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(waiting.0.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert_eq!(lines.next().unwrap(), "generation 7: accepted");
    assert!(lines.next().unwrap().ends_with("progressing"));
    agent.set_phase(Phase::Converged);
    agent.happen(None, "converged");
    assert!(lines.next().unwrap().ends_with("everything is as ordered"));
    assert!(waiting.0.wait().unwrap().success());
}

#[test]
fn apply_does_not_wait_for_what_was_taken_back() {
    let agent = FakeAgent::start();
    let order = file(&agent, &signed());
    agent.set_phase(Phase::Degraded);
    let (state, reason) = (UpdateState::RolledBack, Some("web.0: out of memory".into()));
    {
        let mut facts = agent.facts.lock().unwrap();
        facts.web().phase = Phase::Degraded;
        facts.web().update = Some(UpdateReport { state, updated: 0, replicas: 1, reason });
    }
    let (code, output, error) = run(&mut agent.coracle(&["apply", "--wait", "3600", &order]));
    assert_eq!((code, output.lines().count()), (1, 2), "{output}");
    assert!(error.contains("the update of web was taken back"), "{error}");
}

/// A child, and the lines that it prints.
fn follow(mut command: Command) -> (Running, impl Iterator<Item = String>) {
    let mut child = Running(command.stdout(Stdio::piped()).spawn().unwrap());
    let lines = BufReader::new(child.0.stdout.take().unwrap()).lines().map(Result::unwrap);
    (child, lines)
}

#[test]
fn workloads_are_operated_by_hand_each_by_itself() {
    let agent = FakeAgent::start();
    let stopped = run(&mut agent.coracle(&["stop", "web"]));
    assert_eq!(stopped, (0, "web stops, until it is started by hand\n".into(), String::new()));
    let (code, output, error) = run(&mut agent.coracle(&["drain", "db", "web", "cam"]));
    assert_eq!((code, output.as_str()), (1, "web is stopped already\n"));
    let unknown = |name| format!("error: {name}: the orders name no workload {name:?}\n");
    assert_eq!(error, unknown("db") + &unknown("cam"));
    let (code, _, error) = run(&mut agent.coracle(&["restart", "web"]));
    assert_eq!((code, error.as_str()), (1, "error: web: web is stopped; start it\n"));
    let (code, output, error) = run(&mut agent.coracle(&["start", "--json", "web", "db"]));
    let answer: Value = serde_json::from_str(&output).unwrap();
    assert_eq!((code, error.as_str()), (1, ""));
    let done = json!([{"name": "web", "message": "web runs again", "unchanged": false}]);
    let reason = "the orders name no workload \"db\"";
    let refused = json!([{"name": "db", "reason": reason}]);
    assert_eq!(answer, json!({"done": done, "refused": refused}));
    let (code, _, error) = run(&mut agent.coracle(&["stop", "../x"]));
    assert!(code == 2 && error.contains("lower-case"), "{error}");
    assert_eq!(run(&mut agent.coracle(&["stop"])).0, 2);
    agent.facts.lock().unwrap().store_is_full = true;
    let (code, _, error) = run(&mut agent.coracle(&["stop", "web"]));
    assert!(code == 3 && error.contains("it could not be stored: no space"), "{error}");
}

#[test]
fn it_is_waited_until_a_workload_is_as_asked() {
    let agent = FakeAgent::start();
    let change = |change: &dyn Fn(&mut coracle_protocol::reported::WorkloadReport)| {
        change(agent.facts.lock().unwrap().web());
        agent.happen(None, "something");
    };
    let (mut stop, mut lines) = follow(agent.coracle(&["stop", "--wait", "60", "web"]));
    assert_eq!(lines.next().unwrap(), "web stops, until it is started by hand");
    assert_eq!(lines.next().unwrap(), "   0 s  web.0 stopping");
    change(&|web| {
        web.replicas[0].pid = None;
        web.replicas[0].state = ReplicaState::Stopped;
    });
    assert!(lines.next().unwrap().ends_with(" s  done"));
    assert!(stop.0.wait().unwrap().success());

    let (mut start, mut lines) = follow(agent.coracle(&["start", "--wait", "60", "web"]));
    assert_eq!(lines.next().unwrap(), "web runs again");
    assert_eq!(lines.next().unwrap(), "   0 s  web.0 starting");
    change(&|web| {
        web.replicas[0].ready = false;
        web.replicas[0].state = ReplicaState::Running;
    });
    assert!(lines.next().unwrap().ends_with(" s  web.0 not ready"));
    change(&|web| {
        web.replicas[0].ready = true;
        web.replicas[0].pid = Some(4712);
        web.phase = Phase::Converged;
    });
    assert!(lines.next().unwrap().ends_with(" s  done"));
    assert!(start.0.wait().unwrap().success());

    let (mut restart, mut lines) = follow(agent.coracle(&["restart", "--wait", "60", "web"]));
    assert_eq!(lines.next().unwrap(), "the replicas of web are made anew");
    assert_eq!(lines.next().unwrap(), "   0 s  web.0 not restarted yet");
    change(&|web| web.replicas[0].pid = Some(4713));
    assert!(lines.next().unwrap().ends_with(" s  done"));
    assert!(restart.0.wait().unwrap().success());

    let (code, _, error) = run(&mut agent.coracle(&["drain", "--wait", "1", "web"]));
    assert!(code == 1 && error.contains("it is not done yet"), "{error}");
    let (code, _, error) = run(&mut agent.coracle(&["start", "--json", "--wait", "0", "web"]));
    assert!(code == 1 && error.contains("it is not done yet"), "{error}");
}

#[test]
fn events_are_told_and_followed() {
    let agent = FakeAgent::start();
    let (code, output, error) = run(&mut agent.coracle(&["events"]));
    assert_eq!((code, output.as_str()), (0, ""));
    assert!(error.starts_with("no events since the agent started at "), "{error}");
    agent.happen(Some("web.0"), "started, pid 4711");
    let (_, output, _) = run(&mut agent.coracle(&["events"]));
    assert_eq!(output, "2026-03-01T12:00:00Z  web.0: started, pid 4711\n");
    let (_, output, _) = run(&mut agent.coracle(&["events", "--json"]));
    assert_eq!(serde_json::from_str::<Value>(&output).unwrap()["sequence"], 1);
    let mut follow = agent.coracle(&["events", "--follow"]);
    let mut follow = Running(follow.stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(follow.0.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.next().unwrap().ends_with("pid 4711"));
    agent.happen(None, "an order was refused");
    assert!(lines.next().unwrap().ends_with("an order was refused"));
    let dir = Arc::clone(&agent.dir);
    drop(agent);
    let agent = FakeAgent::at(dir, coracle::config::ApiConfig::default());
    agent.happen(None, "started anew");
    assert!(lines.next().unwrap().ends_with("started anew"));
}

#[test]
fn a_reader_that_has_enough_is_no_error() {
    let agent = FakeAgent::start();
    let mut status = agent.coracle(&["status"]);
    let (reader, writer) = UnixStream::pair().unwrap();
    drop(reader);
    let (code, _, error) = {
        let output = status.stdout(OwnedFd::from(writer)).stderr(Stdio::piped()).output().unwrap();
        (output.status.code(), output.stdout, String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!((code, error.as_str()), (Some(0), ""));
}

#[test]
fn the_daemon_refuses_a_bad_configuration_with_its_place() {
    let agent = FakeAgent::start();
    let config = file(&agent, b"gateway = 1");
    let (code, _, error) = run(&mut coracle(&["agent", "--config", &config]));
    assert_eq!(code, 1);
    assert!(error.starts_with("error: configuration ") && error.contains("gateway"), "{error}");
    assert_eq!(run(&mut coracle(&["agent", "--log-level", "loud"])).0, 2);
}

#[test]
fn an_agent_that_talks_nonsense_is_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("api.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        assert!(stream.read(&mut [0; 1024]).unwrap() > 0);
        stream.write_all(b"SSH-2.0-OpenSSH\r\n").unwrap();
    });
    let (code, _, error) = run(coracle(&["status", "--socket"]).arg(&socket));
    server.join().unwrap();
    assert_eq!(code, 3);
    assert!(error.contains("does not answer"), "{error}");
}

fn volume(name: &str, used_by: &[&str]) -> VolumeStatus {
    VolumeStatus {
        name: name.into(),
        bytes: 4096,
        complete: true,
        used_by: used_by.iter().map(|user| (*user).into()).collect(),
        mounted_by: Vec::new(),
        last_used: None,
    }
}

#[test]
fn volumes_are_listed_and_removed_only_by_those_who_are_sure() {
    let agent = FakeAgent::start();
    let names = || -> Vec<String> {
        let facts = agent.facts.lock().unwrap();
        facts.volumes.iter().map(|volume| volume.name.clone()).collect()
    };
    agent.facts.lock().unwrap().volumes =
        vec![volume("data", &["web"]), volume("old", &[]), volume("older", &[])];
    let (code, text, _) = run(&mut agent.coracle(&["volumes"]));
    assert_eq!((code, text.lines().count()), (0, 4), "{text}");
    let (_, text, _) = run(&mut agent.coracle(&["volumes", "--json"]));
    let listed: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(listed["volumes"][0]["used_by"][0], "web");
    // Nobody can be asked.
    let (code, _, error) = run(&mut agent.coracle(&["volumes", "rm", "old"]));
    assert_eq!(code, 1);
    assert!(error.contains("--yes"), "{error}");
    assert_eq!(names().len(), 3);
    let (code, text, error) =
        run(&mut agent.coracle(&["volumes", "rm", "--yes", "old", "data", "none", "older"]));
    assert_eq!(code, 1);
    assert_eq!(text, "old: removed\nolder: removed\n");
    assert!(error.contains("data: volume data is in use"), "{error}");
    assert!(error.contains("none: there is no volume none"), "{error}");
    assert_eq!(names(), ["data"]);
    let (code, _, error) = run(&mut agent.coracle(&["volumes", "rm", "--yes", "../x"]));
    assert_eq!(code, 2);
    assert!(error.contains("lower-case"), "{error}");
}

#[test]
fn public_keys_are_printed() {
    let agent = FakeAgent::start();
    let (code, text, _) = run(&mut agent.coracle(&["secrets", "key"]));
    assert_eq!((code, text.as_str()), (0, "coracle-x25519:AAAA\n"));
    let (_, text, _) = run(&mut agent.coracle(&["secrets", "key", "--json"]));
    let key: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(key["gateway"], "3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11");
    let (code, text, error) = run(&mut agent.coracle(&["identity", "keys"]));
    assert_eq!((code, text.as_str()), (3, ""));
    assert!(error.contains("the key file is damaged"), "{error}");
}
