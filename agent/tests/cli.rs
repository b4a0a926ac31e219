//! The command line as its users meet it: what it prints, and its exit codes.

#![allow(clippy::unwrap_used, reason = "clippy.toml allows it inside #[test] functions only")]

mod api_support;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use api_support::{FakeAgent, Running, coracle, refusal};
use coracle_protocol::envelope::{DESIRED_PAYLOAD_TYPE, Envelope, Signature};
use coracle_protocol::reported::Phase;
use serde_json::Value;

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
    for command in ["agent", "validate", "apply", "status", "ps", "events"] {
        let (code, help, _) = run(&mut coracle(&[command, "--help"]));
        assert_eq!(code, 0);
        let example = format!("Examples:\n  coracle {command}");
        assert!(help.contains(&example) && help.contains("Exit codes:"), "{help}");
        assert!(help.lines().all(|line| line.chars().count() <= 100), "{help}");
        let (code, _, error) = run(&mut coracle(&[command, "--no-such-flag"]));
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
    for args in [vec!["status"], vec!["ps"], vec!["events"], vec!["apply", &order]] {
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
    let agent = FakeAgent::at(dir, None);
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
