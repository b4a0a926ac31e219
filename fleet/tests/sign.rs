//! `keygen` and `order sign`, run as programs and judged by `openssl`.

#![allow(clippy::unwrap_used, reason = "a test may end at any of them")]

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use coracle_core::key::PublicKey;
use coracle_protocol::Envelope;
use serde_json::{Value, json};

const GATEWAY: &str = "3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11";

const YAML: &str = "
# the order of one gateway
schema: 1
gateway: 3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11
generation: 7
workloads:
  - name: web
    network: host
    containers:
      - image: registry.example/web:1.27
        env: { MODE: 'on' }
";

fn document() -> Value {
    json!({
        "schema": 1,
        "gateway": GATEWAY,
        "generation": 7,
        "workloads": [{
            "name": "web",
            "network": "host",
            "containers": [{ "image": "registry.example/web:1.27", "env": { "MODE": "on" } }],
        }],
    })
}

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        fs::write(self.path(name), content).unwrap();
        self.path(name)
    }

    /// Runs `coracle-fleet` in this directory.
    fn fleet(&self, args: &[&str], stdin: &[u8]) -> Output {
        run(Command::new(env!("CARGO_BIN_EXE_coracle-fleet")).args(args), self.0.path(), stdin)
    }

    fn openssl(&self, args: &str) -> Output {
        run(Command::new("openssl").args(args.split(' ')), self.0.path(), b"")
    }

    fn keygen(&self, name: &str) -> String {
        let output = self.fleet(&["keygen", "--out", name, "--json"], b"");
        let printed: Value = serde_json::from_slice(&succeeded(output)).unwrap();
        printed["key_id"].as_str().unwrap().to_owned()
    }
}

fn run(command: &mut Command, dir: &Path, stdin: &[u8]) -> Output {
    let mut child = command
        .current_dir(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that refuses early does not read all of it.
    drop(child.stdin.take().unwrap().write_all(stdin));
    child.wait_with_output().unwrap()
}

fn succeeded(output: Output) -> Vec<u8> {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// What was said on standard error by a program that ended with code 1.
fn failed(output: Output) -> String {
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    String::from_utf8(output.stderr).unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn keys_made_here_sign_what_openssl_verifies() {
    let place = Place::new();
    let id = place.keygen("plant");
    assert_eq!(mode(&place.path("plant.key")), 0o600);
    let public = succeeded(place.openssl("pkey -in plant.key -pubout"));
    assert_eq!(public, fs::read(place.path("plant.pub")).unwrap());
    let der = succeeded(place.openssl("pkey -pubin -in plant.pub -outform DER -pubout"));
    assert_eq!(PublicKey::from_spki(&der).unwrap().id(), id);

    place.write("web.yaml", YAML);
    let args = ["order", "sign", "web.yaml", "--key", "plant.key", "--out", "web.order.json"];
    let output = place.fleet(&args, b"");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains(&format!("generation 7 for gateway {GATEWAY} with key {id}: ")),
        "{said}"
    );
    assert!(succeeded(output).is_empty());

    let envelope = Envelope::decode(&fs::read(place.path("web.order.json")).unwrap()).unwrap();
    let [signature] = &envelope.signatures[..] else { panic!("{envelope:?}") };
    assert_eq!(signature.keyid, id);
    place.write("signed", envelope.signed_bytes());
    place.write("sig", &signature.sig);
    succeeded(
        place.openssl("pkeyutl -verify -pubin -inkey plant.pub -rawin -in signed -sigfile sig"),
    );
    let payload: Value = serde_json::from_slice(&envelope.payload).unwrap();
    assert_eq!(payload, document());
}

#[test]
fn keys_made_by_openssl_sign_here_and_two_may_sign_one_order() {
    let place = Place::new();
    succeeded(place.openssl("genpkey -algorithm ed25519 -out theirs.key"));
    let der = succeeded(place.openssl("pkey -in theirs.key -pubout -outform DER"));
    let theirs = PublicKey::from_spki(&der).unwrap().id();
    let ours = place.keygen("ours");
    let args = ["order", "sign", "-", "--key", "theirs.key", "--key", "ours.key"];
    let envelope =
        Envelope::decode(&succeeded(place.fleet(&args, document().to_string().as_bytes())))
            .unwrap();
    let by: Vec<_> = envelope.signatures.iter().map(|signature| &signature.keyid).collect();
    assert_eq!(by, [&theirs, &ours]);

    let twice = ["order", "sign", "-", "--key", "ours.key", "--key", "ours.key"];
    let said = failed(place.fleet(&twice, YAML.as_bytes()));
    assert!(said.contains("was given twice"), "{said}");
}

#[test]
fn yaml_and_json_give_the_same_signed_order() {
    let place = Place::new();
    place.keygen("a");
    let sign = |text: &str| {
        succeeded(place.fleet(&["order", "sign", "-", "--key", "a.key"], text.as_bytes()))
    };
    let pretty = serde_json::to_string_pretty(&document()).unwrap();
    assert_eq!(sign(YAML), sign(&pretty));
}

#[test]
fn a_document_that_breaks_rules_is_refused_with_every_place_and_nothing_is_written() {
    let place = Place::new();
    place.keygen("a");
    let refused = |text: &str| {
        let args = ["order", "sign", "-", "--key", "a.key", "--out", "out.json"];
        let said = failed(place.fleet(&args, text.as_bytes()));
        assert!(!place.path("out.json").exists());
        said
    };
    let said = refused(&YAML.replace("env:", "readonly_rot: true\n        env:"));
    assert!(said.contains("/workloads/0/containers/0/readonly_rot: "), "{said}");
    assert!(said.contains("[unknown-field]"), "{said}");
    let said = refused(&YAML.replace("generation: 7", "generation: 0").replace("web:1.27", "A b"));
    assert!(said.contains("/generation: ") && said.contains("/containers/0/image: "), "{said}");
    assert!(refused("a: [").contains("(document): not YAML: "));
    assert!(refused("{\"schema\": 1,,}").contains("line 1 column 14 [malformed]"));
    assert!(refused(&format!("{YAML}schema: 1\n")).contains("\"schema\" occurs twice"));
    assert!(refused(&"#".repeat(3_200_000)).contains("[too-large]"));
    let long = format!("{YAML}        args: [{}]\n", vec!["x".repeat(8000); 110].join(", "));
    assert!(refused(&long).contains("[too-large]"));

    let args = ["order", "sign", "-", "--key", "a.key", "--json"];
    let output = place.fleet(&args, YAML.replace("name: web", "name: Web").as_bytes());
    assert_eq!(output.status.code(), Some(1));
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(printed["refusals"][0]["path"], "/workloads/0/name");
    assert_eq!(printed["refusals"][0]["code"], "invalid-name");
}

#[test]
fn keys_are_never_overwritten_unless_forced() {
    let place = Place::new();
    let first = place.keygen("./");
    let key = fs::read(place.path("orders.key")).unwrap();
    let said = failed(place.fleet(&["keygen", "--out", "orders"], b""));
    assert!(said.contains("orders.key is there already; --force"), "{said}");
    fs::remove_file(place.path("orders.key")).unwrap();
    let said = failed(place.fleet(&["keygen", "--out", "orders"], b""));
    assert!(said.contains("orders.pub is there already"), "{said}");
    assert!(!place.path("orders.key").exists());
    place.write("orders.key", &key);
    fs::set_permissions(place.path("orders.key"), fs::Permissions::from_mode(0o644)).unwrap();
    let printed = succeeded(place.fleet(&["keygen", "--out", "orders", "--force"], b""));
    assert!(!String::from_utf8(printed).unwrap().contains(&first));
    assert_ne!(fs::read(place.path("orders.key")).unwrap(), key);
    assert_eq!(mode(&place.path("orders.key")), 0o600);
}

#[test]
fn a_wrong_key_file_is_named_and_its_content_is_not() {
    let place = Place::new();
    place.keygen("a");
    succeeded(place.openssl("genpkey -algorithm RSA -out rsa.key"));
    fs::copy(place.path("a.pub"), place.path("public.key")).unwrap();
    place.write("broken.key", "-----BEGIN PRIVATE KEY-----\nc2VjcmV0");
    place.write("large.key", "c2VjcmV0".repeat(10_000));
    for (file, problem) in [
        ("missing.key", "cannot read the key file missing.key: No such file"),
        ("rsa.key", "key file rsa.key holds a key of another kind"),
        ("public.key", "key file public.key holds no private key"),
        ("broken.key", "key file broken.key holds no private key"),
        ("large.key", "key file large.key is larger"),
    ] {
        let said = failed(place.fleet(&["order", "sign", "-", "--key", file], YAML.as_bytes()));
        assert!(said.contains(problem), "{said}");
        assert!(!said.contains("c2VjcmV0"), "{said}");
    }
    fs::set_permissions(place.path("a.key"), fs::Permissions::from_mode(0o640)).unwrap();
    let output = place.fleet(&["order", "sign", "-", "--key", "a.key"], YAML.as_bytes());
    assert!(String::from_utf8_lossy(&output.stderr).contains("can be read by others"));
    succeeded(output);
}

#[test]
fn usage_is_explained_with_examples() {
    let place = Place::new();
    for args in [&["keygen", "--help"][..], &["order", "sign", "--help"]] {
        let help = String::from_utf8(succeeded(place.fleet(args, b""))).unwrap();
        assert!(help.contains("Examples:") && help.contains("Exit codes: 0 "), "{help}");
    }
    assert_eq!(place.fleet(&["order", "sign", "x"], b"").status.code(), Some(2));
}
