//! The identity of workloads, as they ask for it over their socket.

#![allow(clippy::unwrap_used, reason = "clippy.toml allows it inside #[test] functions only")]
#![allow(clippy::disallowed_methods, reason = "tests measure real time")]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use coracle::config::Config;
use coracle::secrets::Secrets;
use coracle::workload_identity::{Identities, IdentityRequest};
use coracle_core::name::{ReplicaId, ResourceName, WorkloadName};
use coracle_protocol::GatewayId;
use coracle_seal::{Plain, seal};
use serde_json::Value;
use tempfile::TempDir;

const SECRET: &str = "correct-horse-battery-staple";
const GATEWAY: &str = "3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11";

struct Bed {
    _place: TempDir,
    config: Config,
    secrets: Arc<Secrets>,
    identities: Identities,
    runtime: tokio::runtime::Handle,
    /// Dropping it ends the runtime.
    _end: tokio::sync::oneshot::Sender<()>,
}

impl Bed {
    fn new() -> Self {
        // Longer than any socket's path may be.
        let place = tempfile::tempdir().unwrap();
        let config = Config {
            state_dir: place.path().join("state"),
            runtime_dir: place.path().join("x".repeat(100)),
            ..Config::default()
        };
        let gateway: GatewayId = GATEWAY.parse().unwrap();
        let secrets = Arc::new(Secrets::new(&config.state_dir, gateway));
        let identities = Identities::new(&config, secrets.clone());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let handle = runtime.handle().clone();
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        std::thread::spawn(move || drop(runtime.block_on(ended)));
        let bed = Self { _place: place, config, secrets, identities, runtime: handle, _end: end };
        bed.give([("pw", SECRET.as_bytes()), ("bin", &[0, 255]), ("other", b"x")]);
        bed
    }

    fn give<const N: usize>(&self, values: [(&str, &[u8]); N]) {
        let key = self.secrets.public_key().unwrap();
        let gateway: GatewayId = GATEWAY.parse().unwrap();
        let sealed = values.map(|(name, value)| {
            (name.to_owned(), seal(&key, gateway, name, &Plain::new(value.to_vec())).unwrap())
        });
        self.secrets.set(gateway, BTreeMap::from(sealed));
    }

    fn serve(&self, identities: &Identities, grants: &[&str]) -> PathBuf {
        let _inside = self.runtime.enter();
        let grants = grants.iter().map(|name| ResourceName::parse(name).unwrap()).collect();
        let request = IdentityRequest { replica: web(), project: Some("acme".into()), grants };
        identities.serve(&request).unwrap()
    }
}

fn web() -> ReplicaId {
    ReplicaId { workload: WorkloadName::parse("web").unwrap(), index: 0 }
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).expect(&self.body)
    }
}

/// By a link that is short enough for a socket's path.
fn connect(dir: &Path) -> std::io::Result<UnixStream> {
    let short = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(dir, short.path().join("d")).unwrap();
    let stream = UnixStream::connect(short.path().join("d/socket"))?;
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    Ok(stream)
}

fn send(dir: &Path, request: &str) -> Answer {
    let mut stream = connect(dir).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").expect(&text);
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.to_lowercase(), body: body.to_owned() }
}

fn get(dir: &Path, path: &str) -> Answer {
    send(dir, &format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n"))
}

#[test]
fn a_workload_learns_who_it_is_and_gets_what_it_was_granted() {
    let bed = Bed::new();
    let dir = bed.serve(&bed.identities, &["pw", "bin"]);
    assert_eq!(std::fs::metadata(&dir).unwrap().mode() & 0o777, 0o755);
    let socket = std::fs::metadata(dir.join("socket")).unwrap();
    assert_eq!(socket.permissions().mode() & 0o777, 0o666);
    let who = get(&dir, "/v1/identity").json();
    assert_eq!(who["subject"], format!("gateway/{GATEWAY}/project/acme/workload/web/replica/0"));
    assert_eq!(who["credentials"], serde_json::json!(["pw", "bin"]));
    let token = get(&dir, "/v1/token?audience=mqtt");
    assert_eq!(token.status, 200, "{}", token.body);
    assert!(token.head.contains("cache-control: no-store"), "{}", token.head);
    let token = token.json();
    assert_eq!(token["token"].as_str().unwrap().split('.').count(), 3);
    assert!(token["expires_at"].is_string() && token["refresh_after"].is_string());
    assert_eq!(get(&dir, "/v1/token?audience=mqtt").json(), token);
    let list = get(&dir, "/v1/credentials").json();
    assert_eq!(list["credentials"], serde_json::json!(["pw", "bin"]));
    let value = get(&dir, "/v1/credentials/pw").json();
    assert_eq!((&value["encoding"], &value["value"]), (&"utf-8".into(), &SECRET.into()));
    let value = get(&dir, "/v1/credentials/bin").json();
    assert_eq!((&value["encoding"], &value["value"]), (&"base64".into(), &"AP8=".into()));
}

#[test]
fn what_is_not_granted_or_not_asked_rightly_is_refused() {
    let bed = Bed::new();
    let dir = bed.serve(&bed.identities, &["pw", "missing"]);
    for (path, status) in [
        ("/v1/credentials/other", 404),
        ("/v1/credentials/unheard-of", 404),
        ("/v1/credentials/missing", 503),
        ("/v1/credentials/", 404),
        ("/v1/token", 400),
        ("/v1/token?audience=", 400),
        ("/", 404),
        ("/v1/status", 404),
    ] {
        let answer = get(&dir, path);
        assert_eq!(answer.status, status, "{path}: {}", answer.body);
        assert!(answer.json()["detail"].is_string() && !answer.body.contains(SECRET));
    }
    let refused = send(&dir, "DELETE /v1/credentials/pw HTTP/1.1\r\nhost: x\r\n\r\n");
    assert_eq!(refused.status, 405);
    let large = format!("GET /v1/token HTTP/1.1\r\nx: {}\r\n\r\n", "x".repeat(100_000));
    let mut stream = connect(&dir).unwrap();
    // It may be cut off before all of it is written.
    drop(stream.write_all(large.as_bytes()));
    let mut text = Vec::new();
    drop(stream.read_to_end(&mut text));
    let text = String::from_utf8_lossy(&text);
    assert!(text.is_empty() || text.starts_with("HTTP/1.1 431"), "{text}");
    assert_eq!(get(&dir, "/v1/identity").status, 200);
}

#[test]
fn a_client_knows_when_a_credential_has_changed() {
    let bed = Bed::new();
    let dir = bed.serve(&bed.identities, &["pw"]);
    let first = get(&dir, "/v1/credentials/pw");
    let tag = |answer: &Answer| {
        let line = answer.head.lines().find_map(|line| line.strip_prefix("etag: "));
        line.unwrap().to_owned()
    };
    let ask = |tag: &str| {
        let head = format!("host: x\r\nif-none-match: \"zz\", {tag}");
        send(&dir, &format!("GET /v1/credentials/pw HTTP/1.1\r\n{head}\r\n\r\n"))
    };
    let again = ask(&tag(&first));
    assert_eq!((again.status, again.body.as_str()), (304, ""));
    bed.give([("pw", b"new")]);
    let changed = ask(&tag(&first));
    assert_eq!((changed.status, &changed.json()["value"]), (200, &"new".into()));
    assert_ne!(tag(&changed), tag(&first));
}

#[test]
fn grants_change_and_end_while_it_is_served() {
    let bed = Bed::new();
    let dir = bed.serve(&bed.identities, &["pw"]);
    let token = get(&dir, "/v1/token?audience=a").json();
    bed.serve(&bed.identities, &["other"]);
    assert_eq!(get(&dir, "/v1/credentials/pw").status, 404);
    assert_eq!(get(&dir, "/v1/credentials/other").status, 200);
    assert_eq!(get(&dir, "/v1/token?audience=a").json(), token);
    assert!(bed.identities.serves(&web()));
    bed.identities.remove(&web()).unwrap();
    bed.identities.remove(&web()).unwrap();
    assert!(!dir.exists() && !bed.identities.serves(&web()));
}

#[test]
fn the_socket_of_a_restarted_agent_is_in_the_same_directory() {
    let bed = Bed::new();
    let dir = bed.serve(&bed.identities, &["pw"]);
    let before = std::fs::metadata(&dir).unwrap().ino();
    let keys = bed.identities.key_set().unwrap();
    let again = Identities::new(&bed.config, bed.secrets.clone());
    // As a container that runs has it mounted: by its inode.
    assert_eq!(bed.serve(&again, &["pw"]), dir);
    assert_eq!(std::fs::metadata(&dir).unwrap().ino(), before);
    assert_eq!(get(&dir, "/v1/identity").status, 200);
    assert_eq!(again.key_set().unwrap(), keys);
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1);
}

#[test]
fn whoever_asks_too_often_or_holds_connections_hurts_only_itself() {
    let bed = Bed::new();
    let dir = bed.serve(&bed.identities, &[]);
    let held: Vec<_> = (0..8).map(|_| connect(&dir).unwrap()).collect();
    // One more waits until one of them goes.
    let mut waiting = connect(&dir).unwrap();
    waiting.write_all(b"GET /v1/identity HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    waiting.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(waiting.read(&mut [0; 1]).is_err());
    drop(held);
    waiting.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    assert!(waiting.read(&mut [0; 1]).is_ok_and(|read| read == 1));
    let answers: Vec<_> = (0..200).map(|_| get(&dir, "/v1/identity").status).collect();
    let refused = answers.iter().filter(|status| **status == 429).count();
    assert!(refused > 50 && answers[..20].iter().all(|status| *status == 200), "{answers:?}");
    // Nobody holds a connection for ever.
    let mut silent = connect(&dir).unwrap();
    let mut text = Vec::new();
    drop(silent.read_to_end(&mut text));
    assert!(connect(&dir).is_ok());
}
