//! `coracle-fleet order publish` against a real broker, with gateways played by the test.

#![allow(missing_docs, clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use coracle_protocol::envelope::{DESIRED_PAYLOAD_TYPE, Signature};
use coracle_protocol::reported::{Phase, Refused};
use coracle_protocol::topic::{Kind, Topic};
use coracle_protocol::{Code, Envelope, GatewayId, Refusal, ReportedState};
use coracle_testbed::pki::Identity;
use coracle_testbed::process::run_with_input;
use coracle_testbed::{Broker, Pki, Place};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);

struct Bed {
    broker: Broker,
    pki: Pki,
    place: Place,
    gateway: GatewayId,
}

impl Bed {
    fn new() -> Self {
        Self::with("")
    }

    fn with(lines: &str) -> Self {
        let place = Place::new().unwrap();
        let pki = Pki::new(&place.run().join("pki")).unwrap();
        let rules = coracle_testbed::broker::GATEWAY_RULES;
        let broker = Broker::start_with(&place, &pki, rules, lines).unwrap();
        Self { broker, pki, place, gateway: GatewayId::random() }
    }

    fn topic(&self, kind: Kind) -> String {
        Topic::new(self.gateway, kind).to_string()
    }

    fn envelope(&self, generation: u64) -> Vec<u8> {
        let payload = json!({
            "schema": 1, "gateway": self.gateway, "generation": generation, "workloads": [],
        });
        let signatures = vec![Signature { keyid: "key".into(), sig: vec![7; 64] }];
        let payload = payload.to_string().into_bytes();
        Envelope { payload_type: DESIRED_PAYLOAD_TYPE.into(), payload, signatures }.encode()
    }

    fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.place.run().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    fn command(&self, identity: &str, args: &[&str]) -> Command {
        self.command_as(&self.pki.client(identity).unwrap(), &self.pki.ca(), args)
    }

    fn command_as(&self, identity: &Identity, ca: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_coracle-fleet"));
        command.args(["order", "publish", "--broker"]);
        command.arg(format!("localhost:{}", self.broker.port()));
        command.arg("--ca").arg(ca).arg("--cert").arg(&identity.cert);
        command.arg("--key").arg(&identity.key).args(args);
        command
    }

    fn run(&self, args: &[&str], input: &[u8]) -> Output {
        run_with_input(&mut self.command("fleet", args), input, 3 * SOON).unwrap()
    }

    /// Runs it while `gateway` answers each order with reports.
    fn run_with_gateway(
        &self,
        args: &[&str],
        input: &[u8],
        reports: impl FnOnce(&str) -> Vec<ReportedState> + Send,
    ) -> Output {
        let desired = self.broker.listen(&self.topic(Kind::Desired)).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let order = desired.wait("the order", SOON, |_| true).unwrap();
                for report in reports(&sha256(&order.payload)) {
                    let report = serde_json::to_vec(&report).unwrap();
                    self.broker.publish(&self.topic(Kind::Reported), &report, true).unwrap();
                }
            });
            self.run(args, input)
        })
    }

    fn report(&self, sequence: u64, generation: u64, phase: Phase) -> ReportedState {
        ReportedState {
            omitted_workloads: 0,
            schema: 1,
            gateway: self.gateway,
            boot_id: "boot".into(),
            sequence,
            agent_version: "0.1.0".into(),
            generation_seen: generation,
            generation_applied: generation,
            phase,
            refused: None,
            unknown_fields: Vec::new(),
            conditions: Vec::new(),
            workloads: Vec::new(),
        }
    }
}

fn sha256(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn said(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn an_order_is_retained_byte_for_byte() {
    let bed = Bed::new();
    let envelope = bed.envelope(7);
    let file = bed.file("order.json", &[&envelope[..], b"\n"].concat());
    let (code, out, err) = said(&bed.run(&[file.to_str().unwrap()], b""));
    assert_eq!(code, Some(0), "{err}");
    assert_eq!(out, format!("{} generation 7: published\n", bed.gateway));
    let retained = bed.broker.retained(&bed.topic(Kind::Desired), SOON).unwrap();
    assert_eq!(retained.unwrap(), envelope);
}

#[test]
fn waits_until_the_gateway_has_converged() {
    let bed = Bed::new();
    let output = bed.run_with_gateway(&["-", "--wait", "30"], &bed.envelope(7), |_| {
        vec![
            bed.report(1, 6, Phase::Converged),
            bed.report(2, 7, Phase::Progressing),
            bed.report(3, 7, Phase::Converged),
        ]
    });
    let (code, out, err) = said(&output);
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(out.contains("generation 7: converged in "), "{out}");
    assert!(err.contains("generation 7 progressing"), "{err}");
}

#[test]
fn prints_every_refusal() {
    let bed = Bed::new();
    let output =
        bed.run_with_gateway(&["-", "--wait", "30", "--json"], &bed.envelope(7), |digest| {
            let refusals = ["/a", "/b"].map(|at| Refusal::new(at, Code::INVALID_VALUE, "is wrong"));
            let refused = Refused {
                generation: Some(7),
                digest: digest.into(),
                refusals: refusals.into(),
                omitted: 0,
            };
            vec![ReportedState { refused: Some(refused), ..bed.report(1, 6, Phase::Converged) }]
        });
    let (code, out, err) = said(&output);
    assert_eq!(code, Some(1), "{out}{err}");
    let printed: Value = serde_json::from_str(&out).unwrap();
    let order = &printed["orders"][0];
    assert_eq!(order["outcome"], "refused");
    assert_eq!(order["refusals"].as_array().unwrap().len(), 2);
    let text = order["reason"].as_str().unwrap();
    assert!(text.contains("/a: is wrong [invalid-value]\n  /b: is wrong"), "{text}");
}

#[test]
fn a_report_from_before_counts_only_if_no_other_comes() {
    let bed = Bed::new();
    let report = serde_json::to_vec(&bed.report(1, 7, Phase::Converged)).unwrap();
    bed.broker.publish(&bed.topic(Kind::Reported), &report, true).unwrap();
    let (code, out, err) = said(&bed.run(&["-", "--wait", "30"], &bed.envelope(7)));
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(out.contains("converged"), "{out}");

    let output = bed.run_with_gateway(&["-", "--wait", "30"], &bed.envelope(7), |digest| {
        let refusals = vec![Refusal::whole(Code::GENERATION_REUSED, "other content")];
        let digest = digest.into();
        let refused = Refused { generation: Some(7), digest, refusals, omitted: 0 };
        vec![ReportedState { refused: Some(refused), ..bed.report(2, 7, Phase::Converged) }]
    });
    let (code, out, err) = said(&output);
    assert_eq!(code, Some(1), "{out}{err}");
    assert!(out.contains("generation-reused"), "{out}");
}

#[test]
fn time_runs_out_and_newer_orders_win() {
    let bed = Bed::new();
    let (code, out, _) = said(&bed.run(&["-", "--wait", "1"], &bed.envelope(7)));
    assert_eq!(code, Some(1));
    assert!(out.contains("no report within 1."), "{out}");

    let output = bed.run_with_gateway(&["-", "--wait", "2"], &bed.envelope(7), |_| {
        vec![bed.report(1, 7, Phase::Degraded)]
    });
    let (code, out, _) = said(&output);
    assert_eq!(code, Some(1));
    assert!(out.contains("last seen: generation 7 degraded"), "{out}");

    let output = bed.run_with_gateway(&["-", "--wait", "30"], &bed.envelope(7), |_| {
        vec![bed.report(2, 9, Phase::Converged)]
    });
    let (code, out, _) = said(&output);
    assert_eq!(code, Some(1));
    assert!(out.contains("superseded: the gateway keeps generation 9"), "{out}");
}

#[test]
fn bad_files_are_refused_before_connecting() {
    let mut bed = Bed::new();
    bed.broker.stop().unwrap();
    let (code, _, err) = said(&bed.run(&["-"], b"nonsense"));
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("not a signed order"), "{err}");
    let (code, _, err) = said(&bed.run(&["-"], &vec![b'x'; 2_000_000]));
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("at most"), "{err}");
    let (code, _, err) = said(&bed.run(&["/no/such/file"], b""));
    assert_eq!(code, Some(1), "{err}");
    let (one, two) = (bed.file("one", &bed.envelope(1)), bed.file("two", &bed.envelope(2)));
    let both = [one.to_str().unwrap(), two.to_str().unwrap()];
    let (code, _, err) = said(&bed.run(&both, b""));
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("are both for gateway"), "{err}");
    let (code, _, err) = said(&bed.run(&[], b""));
    assert_eq!(code, Some(2), "{err}");
}

#[test]
fn a_broker_that_is_away_or_refuses_is_told() {
    let mut bed = Bed::new();
    let envelope = bed.envelope(7);
    // A gateway's certificate gives no right to order.
    let mut command = bed.command(&bed.gateway.to_string(), &["-"]);
    let (code, out, err) = said(&run_with_input(&mut command, &envelope, SOON).unwrap());
    assert_eq!(code, Some(3), "{out}{err}");
    assert!(out.contains("the broker refused it: NotAuthorized"), "{out}");

    let (good, expired) = (bed.pki.client("fleet").unwrap(), bed.pki.expired("fleet").unwrap());
    for (ca, identity, reason) in [
        (bed.pki.ca(), expired, "CertificateExpired"),
        (bed.pki.foreign_ca(), good, "UnknownIssuer"),
    ] {
        let mut command = bed.command_as(&identity, &ca, &["-"]);
        let (code, _, err) = said(&run_with_input(&mut command, &envelope, SOON).unwrap());
        assert_eq!(code, Some(3), "{err}");
        assert!(err.contains(reason), "{err}");
    }

    bed.broker.stop().unwrap();
    let (code, _, err) = said(&bed.run(&["-"], &envelope));
    assert_eq!(code, Some(3), "{err}");
    assert!(err.contains("no connection to the broker localhost:"), "{err}");
    assert!(err.contains("refused"), "{err}");
}

#[test]
fn an_order_over_the_brokers_limit_is_told() {
    let bed = Bed::with("max_packet_size 300");
    let (code, out, err) = said(&bed.run(&["-"], &bed.envelope(7)));
    assert_eq!(code, Some(3), "{out}{err}");
    assert!(out.contains("it takes at most 300"), "{out}");
}
