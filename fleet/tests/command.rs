//! `coracle-fleet command` against a real broker, with gateways played by the test.

#![allow(missing_docs, clippy::unwrap_used)]

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use coracle_protocol::command::{Action, OutputPiece, OutputSummary};
use coracle_protocol::envelope::COMMAND_PAYLOAD_TYPE;
use coracle_protocol::receipt::Receipt;
use coracle_protocol::topic::{Kind, Topic};
use coracle_protocol::{CommandId, Envelope, GatewayId, Timestamp, piece};
use coracle_testbed::broker::{Message, Subscription};
use coracle_testbed::process::run_with_input;
use coracle_testbed::{Broker, Pki, Place};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);

struct Bed {
    broker: Broker,
    pki: Pki,
    place: Place,
    gateway: GatewayId,
    key: PathBuf,
}

impl Bed {
    fn new() -> Self {
        let place = Place::new().unwrap();
        let pki = Pki::new(&place.run().join("pki")).unwrap();
        let broker = Broker::start(&place, &pki).unwrap();
        let mut keygen = Command::new(env!("CARGO_BIN_EXE_coracle-fleet"));
        keygen.args(["keygen", "--out"]).arg(place.run().join("orders"));
        assert!(run_with_input(&mut keygen, b"", SOON).unwrap().status.success());
        let key = place.run().join("orders.key");
        Self { broker, pki, place, gateway: GatewayId::random(), key }
    }

    fn topic(&self, kind: Kind) -> String {
        Topic::new(self.gateway, kind).to_string()
    }

    /// Runs it while the test plays the gateway.
    fn run(&self, args: &[&str], play: impl FnOnce(&Played<'_>) + Send) -> (i32, String, String) {
        let identity = self.pki.client("fleet").unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_coracle-fleet"));
        command.args(["command", "--gateway", &self.gateway.to_string(), "--sign-key"]);
        command.arg(&self.key).arg("--broker").arg(format!("localhost:{}", self.broker.port()));
        command.arg("--ca").arg(self.pki.ca()).arg("--cert").arg(&identity.cert);
        command.arg("--key").arg(&identity.key).args(args);
        let commands = self.broker.listen(&self.topic(Kind::Commands)).unwrap();
        let output: Output = std::thread::scope(|scope| {
            scope.spawn(|| {
                let message = commands.wait("the command", SOON, |_| true).unwrap();
                play(&Played::new(self, &commands, &message));
            });
            run_with_input(&mut command, b"", 3 * SOON).unwrap()
        });
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    }
}

/// The gateway, with the command that it got.
struct Played<'a> {
    bed: &'a Bed,
    commands: &'a Subscription,
    payload_type: String,
    command: coracle_protocol::Command,
}

impl<'a> Played<'a> {
    fn new(bed: &'a Bed, commands: &'a Subscription, message: &Message) -> Self {
        let envelope = Envelope::decode_of(COMMAND_PAYLOAD_TYPE, &message.payload).unwrap();
        assert_eq!(envelope.signatures.len(), 1);
        let command = serde_json::from_slice(&envelope.payload).unwrap();
        Self { bed, commands, payload_type: envelope.payload_type, command }
    }

    fn publish(&self, kind: Kind, payload: &[u8]) {
        self.bed.broker.publish(&self.bed.topic(kind), payload, false).unwrap();
    }

    fn state(&self, state: &str, more: Value) {
        self.state_of(self.command.id, state, more);
    }

    fn state_of(&self, id: CommandId, state: &str, more: Value) {
        let mut result = json!({
            "schema": 1, "gateway": self.bed.gateway, "command": id, "state": state,
            "at": "2026-11-29T00:00:00Z",
        });
        result.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.publish(Kind::Results, result.to_string().as_bytes());
    }

    fn piece(&self, offset: usize, bytes: &[u8]) {
        let head = OutputPiece { command: self.command.id, offset: offset as u64 };
        self.publish(Kind::Output, &piece::encode(&head, bytes));
    }
}

fn gzip(text: &str) -> (Vec<u8>, OutputSummary) {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(text.as_bytes()).unwrap();
    let all = encoder.finish().unwrap();
    let digest = ring::digest::digest(&ring::digest::SHA256, &all);
    let digest = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let summary = OutputSummary { bytes: all.len() as u64, digest, truncated: false };
    (all, summary)
}

#[test]
fn what_a_command_gives_is_printed_and_its_end_gets_a_receipt() {
    let bed = Bed::new();
    let receipts = bed.broker.listen(&bed.topic(Kind::Receipts)).unwrap();
    let (code, out, err) = bed.run(&["logs", "web", "--tail", "2"], |played| {
        assert_eq!(played.payload_type, COMMAND_PAYLOAD_TYPE);
        let Action::ReadLogs(query) = &played.command.action else { panic!() };
        assert_eq!((query.workload.as_str(), query.tail), ("web", Some(2)));
        played.state("accepted", json!({}));
        played.state("running", json!({}));
        let (all, summary) = gzip("one\ntwo\n");
        played.piece(0, &all[..12]);
        played.piece(0, &all[..12]);
        played.piece(12, &all[12..]);
        let other = CommandId::new(Timestamp::from_unix(1_700_000_000));
        played.state_of(other, "failed", json!({"message": "of another command"}));
        played.state("succeeded", json!({ "output": summary }));
        let receipt = receipts.wait("the receipt", SOON, |_| true).unwrap();
        let receipt: Receipt = serde_json::from_slice(&receipt.payload).unwrap();
        assert_eq!(receipt.results, [played.command.id]);
    });
    assert_eq!((code, out.as_str()), (0, "one\ntwo\n"), "{err}");
    assert!(err.contains(": accepted\n") && err.contains(": succeeded\n"), "{err}");
    assert!(!err.contains("of another command"), "{err}");
}

#[test]
fn a_gateway_that_connects_gets_the_command_again_and_says_no() {
    let bed = Bed::new();
    let (code, _, err) = bed.run(&["reboot"], |played| {
        assert_eq!(played.command.action, Action::Reboot {});
        let connected = json!({
            "schema": 1, "gateway": bed.gateway, "kind": "connected", "generation": 0,
        });
        played.publish(Kind::Requests, connected.to_string().as_bytes());
        let twice = || (played.commands.messages().len() == 2).then_some(());
        coracle_testbed::wait_for("the command again", SOON, twice).unwrap();
        let messages = played.commands.messages();
        assert_eq!(messages[0].payload, messages[1].payload);
        let reason = json!({"reason": "not-allowed", "message": "the policy denies it"});
        played.state("rejected", reason);
    });
    assert_eq!(code, 1);
    assert!(err.contains("rejected [not-allowed]: the policy denies it"), "{err}");
}

#[test]
fn silence_is_told_and_so_is_a_missing_piece() {
    let bed = Bed::new();
    let (code, out, err) = bed.run(&["--wait", "1", "restart", "web"], |_| {});
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.contains("no answer from the gateway after 1 s"), "{err}");

    let (code, _, err) = bed.run(&["diagnostics"], |played| {
        let (all, _) = gzip("one\n");
        played.piece(5, &all[5..]);
    });
    assert_eq!(code, 1);
    assert!(err.contains("a piece of what the command gave is missing"), "{err}");
}

#[test]
fn without_waiting_it_is_sent_and_no_more() {
    let bed = Bed::new();
    let (code, _, err) = bed.run(&["--wait", "0", "--expires", "60", "stop", "web"], |played| {
        assert_eq!(played.command.action, Action::StopWorkload { workload: "web".into() });
    });
    assert_eq!(code, 0, "{err}");
    let key = bed.place.run().join("nothing.key");
    std::fs::write(&key, "nonsense").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_coracle-fleet"));
    command.args(["command", "--gateway", &bed.gateway.to_string(), "--sign-key"]).arg(&key);
    command.args(["--broker", "localhost:1", "--ca", "x", "--cert", "x", "--key", "x", "report"]);
    let output = run_with_input(&mut command, b"", SOON).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("holds no private key"), "{said}");
}
