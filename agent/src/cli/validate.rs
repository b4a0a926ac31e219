//! `coracle validate`: every reason against an order, without the agent.

use std::path::{Path, PathBuf};

use coracle_core::desired::{Accepted, Reading, read};
use coracle_core::text::{self, MAX_TEXT_BYTES};
use coracle_protocol::envelope::too_large;
use coracle_protocol::limits::MAX_DOCUMENT_BYTES;
use coracle_protocol::{Code, Envelope, GatewayId, Refusal};
use serde::Serialize;
use serde_json::Value;

use super::failure::Failure;
use super::style::Style;
use super::text::{clean, count};
use super::{Outcome, config_file, input, output};
use crate::config_check;

/// Arguments of `coracle validate`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Desired state in YAML or JSON, or a signed order; - for standard input
    file: PathBuf,
    /// Print what was found as JSON
    #[arg(long)]
    json: bool,
    /// Configuration file that says where the program is that judges configurations by their
    /// templates; /etc/coracle/coracle.toml if there is one
    #[arg(long, value_name = "PATH")]
    config: Option<PathBuf>,
}

/// What was found, as `--json` prints it.
#[derive(Debug, Serialize)]
struct Verdict {
    file: String,
    valid: bool,
    /// Whether it came in a signed envelope. The signature itself was not checked.
    signed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    gateway: Option<GatewayId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    generation: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    workloads: Option<usize>,
    refusals: Vec<Refusal>,
}

pub(super) fn run(args: &Args) -> Result<Outcome, Failure> {
    let bytes = input::read(&args.file, MAX_TEXT_BYTES)?;
    // What is wrong with a configuration that nobody asked for concerns the agent.
    let (config, _) = config_file::read(args.config.as_deref(), "read the configuration")?;
    let program = config_check::program(&config.templates);
    let verdict = judge(input::name(&args.file), &bytes, &program);
    if args.json {
        output::print_json(&verdict)?;
    } else {
        output::print(&render(&verdict, &Style::of_stdout()))?;
    }
    // Neither good nor bad.
    let unknown = verdict.refusals.iter().all(|refusal| refusal.code == Code::NOT_JUDGED);
    match verdict.valid {
        true => Ok(Outcome::Good),
        false if unknown => Err(Failure::NotJudged),
        false => Ok(Outcome::No),
    }
}

fn judge(file: String, bytes: &[u8], program: &Path) -> Verdict {
    let (signed, document) = open(bytes);
    let judged = document.and_then(|document| {
        let read = read(&document, Reading::Strict, None);
        let found = config_check::check_configs_and_wait(program, &read.config_checks);
        read.verdict(found)
    });
    match judged {
        Ok(Accepted { gateway, desired, .. }) => Verdict {
            file,
            valid: true,
            signed,
            gateway: Some(gateway),
            generation: Some(desired.generation),
            workloads: Some(desired.workloads.len()),
            refusals: Vec::new(),
        },
        Err(refusals) => Verdict {
            file,
            valid: false,
            signed,
            gateway: None,
            generation: None,
            workloads: None,
            refusals,
        },
    }
}

/// Whether it is signed, and the document inside.
fn open(bytes: &[u8]) -> (bool, Result<Value, Vec<Refusal>>) {
    let value = match text::parse(bytes) {
        Ok(value) => value,
        Err(refusal) => return (false, Err(vec![refusal])),
    };
    if value.get("payloadType").is_none() {
        return (false, within_limit(value));
    }
    let payload = match Envelope::decode(bytes) {
        Ok(envelope) => text::parse(&envelope.payload),
        Err(refusal) => Err(refusal),
    };
    (true, payload.map_err(|refusal| vec![refusal]))
}

/// Judges the size that it will have when it is signed.
fn within_limit(document: Value) -> Result<Value, Vec<Refusal>> {
    match serde_json::to_vec(&document).map_or(0, |bytes| bytes.len()) {
        size if size > MAX_DOCUMENT_BYTES => {
            Err(vec![too_large("desired state", size, MAX_DOCUMENT_BYTES)])
        }
        _ => Ok(document),
    }
}

/// Never wrapped: one refusal is one line.
fn render(verdict: &Verdict, style: &Style) -> String {
    let file = clean(&verdict.file, style);
    if let (Some(gateway), Some(generation)) = (verdict.gateway, verdict.generation) {
        let workloads = count(verdict.workloads.unwrap_or(0), "workload");
        let note = if verdict.signed { " (its signature was not checked)" } else { "" };
        return format!(
            "{file}: good: generation {generation} for gateway {gateway}, {workloads}{note}\n"
        );
    }
    verdict.refusals.iter().map(|refusal| format!("{file}: {}\n", place(refusal, style))).collect()
}

/// `PLACE: MESSAGE [CODE]`, without the place if it is the whole document.
pub(super) fn place(refusal: &Refusal, style: &Style) -> String {
    let Refusal { path, code, message } = refusal;
    let text = if path.is_empty() { format!("{message} [{code}]") } else { refusal.to_string() };
    clean(&text, style)
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    /// There is nothing to judge by templates here.
    const NOBODY: &str = "/no/such/program";

    fn check(document: &str, expect: Expect) {
        let style = Style { width: None, colour: false, utf8: false };
        expect
            .assert_eq(&render(&judge("f".into(), document.as_bytes(), Path::new(NOBODY)), &style));
    }

    #[test]
    fn every_refusal_has_a_line_with_its_place() {
        check(
            r#"{"schema":1,"gateway":"3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11","generation":7,
                "workloads":[]}"#,
            expect![[r#"
                f: good: generation 7 for gateway 3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11, 0 workloads
            "#]],
        );
        check(
            r#"{"schema":1,"gateway":"3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11","generation":7,
                "workloads":[{"name":"Web","network":"host","containers":[
                    {"image":"nginx","readonly_rot":true}]}]}"#,
            expect![[r#"
                f: /workloads/0/name: name must be lower-case letters, digits and single hyphens between them, at most 40 [invalid-name]
                f: /workloads/0/containers/0/image: image reference needs its registry, such as docker.io/library/nginx [invalid-image]
                f: /workloads/0/containers/0/readonly_rot: unknown field "readonly_rot"; schema 1 does not have it here [unknown-field]
            "#]],
        );
        check(
            "{",
            expect![[r#"
            f: not JSON: EOF while parsing an object at line 1 column 1 [malformed]
        "#]],
        );
    }

    #[test]
    fn a_signed_order_is_opened() {
        let payload = r#"{"schema":1,"gateway":"3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11",
            "generation":7,"workloads":[]}"#;
        let envelope = Envelope {
            payload_type: coracle_protocol::envelope::DESIRED_PAYLOAD_TYPE.into(),
            payload: payload.into(),
            signatures: vec![coracle_protocol::envelope::Signature {
                keyid: String::new(),
                sig: vec![0; 64],
            }],
        };
        let verdict = judge("f".into(), &envelope.encode(), Path::new(NOBODY));
        assert!(verdict.valid && verdict.signed);
        let unsigned = Envelope { signatures: Vec::new(), ..envelope };
        check(
            &String::from_utf8(unsigned.encode()).unwrap(),
            expect![[r#"
            f: the order carries no signature [unsigned]
        "#]],
        );
    }
}
