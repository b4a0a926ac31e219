//! `coracle-config-check` alone, as it is shipped.

#![allow(clippy::unwrap_used, reason = "clippy.toml allows it inside #[test] functions only")]

use std::io::Write as _;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use coracle_core::template::exchange::{read_answer, write_question};
use coracle_core::template::{ConfigCheck, evaluate_all};
use serde_json::{Value, json};

fn start(arguments: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_coracle-config-check"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn ask(question: &[u8]) -> Output {
    let mut child = start(&[]);
    child.stdin.take().unwrap().write_all(question).unwrap();
    child.wait_with_output().unwrap()
}

fn check(value: Value) -> ConfigCheck {
    let schema = json!({
        "properties": { "qos": { "enum": [0, 1, 2] }, "topic": { "pattern": "^[a-z/]+$" } },
        "required": ["topic"],
    });
    ConfigCheck {
        schema: Arc::new(schema),
        schema_path: "/types/reader/config_template/schema".into(),
        value,
        value_path: "/workloads/0/config".into(),
    }
}

#[test]
fn it_judges_as_everybody_does() {
    let good = check(json!({ "topic": "a/b", "qos": 1 }));
    let bad = check(json!({ "qos": 3 }));
    for checks in [vec![good.clone()], vec![good, bad]] {
        let output = ask(&write_question(&checks));
        assert!(output.status.success(), "{output:?}");
        assert_eq!(read_answer(&output.stdout).unwrap(), evaluate_all(&checks));
    }
}

#[test]
fn it_answers_only_what_it_understands() {
    for question in ["", "{\"checks\":", "{\"templates\":{},\"checks\":[]}x"] {
        let output = ask(question.as_bytes());
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(output.stdout.is_empty() && output.stderr.starts_with(b"error: "), "{output:?}");
    }
}

#[test]
fn it_gives_up_what_it_does_not_need_before_it_reads_anything() {
    let child = start(&[]);
    let path = format!("/proc/{}/limits", child.id());
    let limits = || std::fs::read_to_string(&path).unwrap();
    let has = |name: &str, value: &str| {
        let limits = limits();
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().any(|word| word == value)
    };
    coracle_testbed::wait_for("the limits", Duration::from_secs(10), || {
        has("Max open files", "0").then_some(())
    })
    .unwrap();
    for (name, value) in [
        ("Max cpu time", "2"),
        ("Max core file size", "0"),
        ("Max file size", "0"),
        ("Max address space", "67108864"),
    ] {
        assert!(has(name, value), "{}", limits());
    }
    // Without a question it ends.
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(1));
}

#[test]
fn it_says_what_it_is() {
    let said = |argument| {
        let output = start(&[argument]).wait_with_output().unwrap();
        (output.status.code().unwrap(), [output.stdout, output.stderr].concat())
    };
    assert_eq!(said("--version"), (0, b"coracle-config-check 0.1.0\n".to_vec()));
    let (code, help) = said("--help");
    assert!(code == 0 && help.starts_with(b"usage: coracle-config-check"));
    assert_eq!(said("--no-such-flag").0, 2);
}
