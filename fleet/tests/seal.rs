//! `coracle-fleet secret seal`, as people and scripts call it.

#![allow(clippy::unwrap_used, reason = "clippy.toml allows it inside #[test] functions only")]

use std::io::Write;
use std::process::{Command, Output, Stdio};

use coracle_protocol::GatewayId;
use coracle_seal::{OpenError, PrivateKey, open};

const GATEWAY: &str = "3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11";

fn seal(key: &PrivateKey, more: &[&str], input: &[u8]) -> Output {
    let key = key.public().to_string();
    run(&[&["--gateway", GATEWAY, "--key", &key], more].concat(), input)
}

fn run(args: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_coracle-fleet"))
        .args(["secret", "seal"])
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Who refuses its arguments reads nothing.
    drop(child.stdin.take().unwrap().write_all(input));
    child.wait_with_output().unwrap()
}

fn opened(key: &PrivateKey, name: &str, output: &Output) -> Result<Vec<u8>, OpenError> {
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let gateway: GatewayId = GATEWAY.parse().unwrap();
    open(key, gateway, name, text.trim_end()).map(|value| value.expose().to_vec())
}

#[test]
fn the_gateway_opens_what_was_sealed() {
    let key = PrivateKey::generate();
    let output = seal(&key, &["--name", "pw"], b"hunter2\n");
    assert_eq!(opened(&key, "pw", &output).unwrap(), b"hunter2\n");
    assert_eq!(opened(&key, "other", &output), Err(OpenError::NotForUs));
    let output = seal(&key, &["--name", "pw", "--trim"], b"hunter2\n");
    assert_eq!(opened(&key, "pw", &output).unwrap(), b"hunter2");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("value");
    std::fs::write(&file, [0, 255, 1]).unwrap();
    let output = seal(&key, &["--name", "pw", "--file", file.to_str().unwrap()], b"");
    assert_eq!(opened(&key, "pw", &output).unwrap(), [0, 255, 1]);
    let output = seal(&key, &["--name", "pw", "--json"], b"hunter2");
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = json["pw"]["sealed"].as_str().unwrap();
    assert!(open(&key, GATEWAY.parse().unwrap(), "pw", text).is_ok());
}

#[test]
fn what_cannot_be_sealed_is_refused_and_the_value_is_not_repeated() {
    let key = PrivateKey::generate();
    let public = key.public().to_string();
    let cases: [(&[&str], &[u8], i32, &str); 6] = [
        (&["--gateway", GATEWAY, "--key", &public, "--name", "pw"], b"", 1, "empty"),
        (&["--gateway", GATEWAY, "--key", &public, "--name", "pw"], &[b'v'; 50_000], 1, "at most"),
        (&["--gateway", GATEWAY, "--key", &public, "--name", "P/w"], b"hunter2", 2, "lower-case"),
        (&["--gateway", "x", "--key", &public, "--name", "pw"], b"hunter2", 2, "UUID"),
        (&["--gateway", GATEWAY, "--key", "abc", "--name", "pw"], b"hunter2", 2, "secrets key"),
        (
            &["--gateway", GATEWAY, "--key", &public, "--name", "pw", "--file", "/nowhere"],
            b"",
            1,
            "/nowhere",
        ),
    ];
    for (args, input, code, said) in cases {
        let output = run(args, input);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{error}");
        assert!(error.contains(said), "{error}");
        assert!(output.stdout.is_empty() && !error.contains("hunter2"), "{error}");
    }
}
