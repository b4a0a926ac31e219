//! The API over a real Unix socket: what it answers, and whom it lets in.

#![allow(clippy::unwrap_used, reason = "clippy.toml allows it inside #[test] functions only")]

mod api_support;

use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use api_support::{Answer, FakeAgent, Running, SOON, open_to_all, refusal, wait_for};
use coracle::api::{Api, ApiError, MAX_CONNECTIONS, MAX_READERS};
use coracle::clock::monotonic_now;
use coracle::config::ApiConfig;
use coracle::status::Operation;
use coracle_protocol::limits::MAX_ENVELOPE_BYTES;
use serde_json::json;

/// Nobody and its group on Debian; any id that is not root's would do.
const NOBODY: u32 = 65534;
/// User and group `daemon` on every Linux.
const DAEMON: u32 = 1;

#[test]
fn resources_answer_in_json() {
    let agent = FakeAgent::start();
    let status = agent.ask("GET", "/v1/status", b"");
    assert_eq!(
        (status.status, status.json()["reported"]["phase"].as_str()),
        (200, Some("converged"))
    );
    assert!(status.head.contains("content-type: application/json"), "{}", status.head);
    let workloads = agent.ask("GET", "/v1/workloads", b"");
    assert_eq!(workloads.json()[0]["replicas"][0]["pid"], 4711);
    let none = agent.ask("GET", "/v1/orders", b"");
    assert_eq!((none.status, none.json()), (404, json!({"error": "no order is in force yet"})));
    agent.facts.lock().unwrap().order = Some(b"{\"payload\":1}".to_vec());
    assert_eq!(agent.ask("GET", "/v1/orders", b"").body, "{\"payload\":1}");
}

#[test]
fn what_is_not_there_is_said_so() {
    let agent = FakeAgent::start();
    assert_eq!(agent.ask("GET", "/v1/nothing", b"").status, 404);
    assert_eq!(agent.ask("GET", "/", b"").status, 404);
    let wrong = agent.ask("DELETE", "/v1/orders", b"");
    assert_eq!(wrong.status, 405);
    assert!(wrong.head.contains("allow: get, post"), "{}", wrong.head);
    let wrong = agent.ask("POST", "/v1/status", b"");
    assert!(wrong.status == 405 && wrong.head.contains("allow: get"), "{}", wrong.head);
    assert!(wrong.json()["error"].is_string());
    assert_eq!(agent.ask("GET", "/v1/events?after=x", b"").status, 400);
}

#[test]
fn orders_are_accepted_or_refused_with_reasons() {
    let agent = FakeAgent::start();
    let accepted = agent.ask("POST", "/v1/orders", b"an order");
    assert_eq!((accepted.status, &accepted.json()["accepted"]), (200, &json!(true)));
    agent.facts.lock().unwrap().refusal = Some(refusal());
    let refused = agent.ask("POST", "/v1/orders", b"another");
    assert_eq!(refused.status, 422);
    assert_eq!(refused.json()["refusals"][0]["code"], "old-generation");
    assert_eq!(agent.facts.lock().unwrap().applied, [b"an order".to_vec(), b"another".to_vec()]);
}

#[test]
fn workloads_are_operated_by_hand_or_it_is_said_why_not() {
    let agent = FakeAgent::start();
    let post = |path: &str| {
        let answer = agent.ask("POST", &format!("/v1/workloads/{path}"), b"");
        (answer.status, answer.json())
    };
    let done = json!({"message": "the replicas of web are made anew", "unchanged": false});
    assert_eq!(post("web/restart"), (200, done));
    let done = json!({"message": "web stops, until it is started by hand", "unchanged": false});
    assert_eq!(post("web/drain"), (200, done));
    let done = json!({"message": "web is stopped already", "unchanged": true});
    assert_eq!(post("web/stop"), (200, done));
    assert_eq!(post("web/restart"), (409, json!({"error": "web is stopped; start it"})));
    assert_eq!(post("web/start").0, 200);
    let unknown = json!({"error": "the orders name no workload \"db\""});
    assert_eq!(post("db/stop"), (404, unknown));
    use Operation::{Drain, Restart, Start, Stop};
    let operated = [Restart, Drain, Stop, Restart, Start].map(|what| ("web".to_owned(), what));
    assert_eq!(agent.facts.lock().unwrap().operated, operated);

    let no_resource = json!({"error": "there is no such resource"});
    for path in ["web/pause", "web", "web/", "/stop/", "web/stop/"] {
        assert_eq!(post(path), (404, no_resource.clone()), "{path}");
    }
    // What is no name is the name of nothing.
    assert_eq!(post("/stop").0, 404);
    assert_eq!(post("../web/stop").0, 404);
    let wrong = agent.ask("GET", "/v1/workloads/web/stop", b"");
    assert!(wrong.status == 405 && wrong.head.contains("allow: post"), "{}", wrong.head);
    agent.facts.lock().unwrap().store_is_full = true;
    assert_eq!(post("web/stop").0, 500);
    assert_eq!(agent.facts.lock().unwrap().operated, operated);
}

#[test]
fn an_order_over_the_limit_is_refused_before_it_is_read() {
    let agent = FakeAgent::start();
    let largest = vec![b'x'; MAX_ENVELOPE_BYTES];
    assert_eq!(agent.ask("POST", "/v1/orders", &largest).status, 200);
    assert_eq!(agent.ask("POST", "/v1/orders", &vec![b'x'; MAX_ENVELOPE_BYTES + 1]).status, 413);
    let mut announced = agent.connect();
    announced
        .write_all(b"POST /v1/orders HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999\r\n\r\n")
        .unwrap();
    assert_eq!(Answer::read(&mut announced).status, 413);
    // Without a length it is counted on the way.
    let mut chunked = agent.connect();
    chunked
        .write_all(b"POST /v1/orders HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        .unwrap();
    let chunk = [b"4000\r\n".as_slice(), &[b'x'; 0x4000], b"\r\n"].concat();
    for _ in 0..=MAX_ENVELOPE_BYTES / 0x4000 {
        chunked.write_all(&chunk).unwrap();
    }
    chunked.write_all(b"0\r\n\r\n").unwrap();
    assert_eq!(Answer::read(&mut chunked).status, 413);
    // One that never ends is cut off.
    let mut endless = agent.connect();
    endless
        .write_all(b"POST /v1/orders HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        .unwrap();
    while endless.write_all(&chunk).is_ok() {}
    assert_eq!(agent.facts.lock().unwrap().applied.len(), 1);
}

#[test]
fn events_are_held_back_until_something_happens() {
    let agent = FakeAgent::start();
    agent.happen(None, "first");
    let first = agent.ask("GET", "/v1/events", b"").json();
    assert_eq!((&first["newest"], &first["events"][0]["message"]), (&json!(1), &json!("first")));
    let started = monotonic_now();
    let none = agent.ask("GET", "/v1/events?after=1&wait=1", b"").json();
    assert_eq!((&none["newest"], &none["events"]), (&json!(1), &json!([])));
    assert!(started.elapsed() >= Duration::from_secs(1));
    let mut waiting = agent.connect();
    waiting.write_all(b"GET /v1/events?after=1&wait=60 HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    waiting.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert_eq!(waiting.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
    agent.happen(Some("web.0"), "second");
    waiting.set_read_timeout(Some(SOON)).unwrap();
    assert_eq!(Answer::read(&mut waiting).json()["events"][0]["message"], "second");
    // Ahead of an agent that was started anew: answered at once.
    assert_eq!(agent.ask("GET", "/v1/events?after=9&wait=60", b"").json()["newest"], 2);
}

#[test]
fn slow_clients_are_cut_off_and_block_nobody() {
    let agent = FakeAgent::start();
    let mut slow = agent.connect();
    slow.write_all(b"GET /v1/status HTTP/1.1\r\nhost:").unwrap();
    let mut slow_body = agent.connect();
    slow_body
        .write_all(b"POST /v1/orders HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nabc")
        .unwrap();
    assert_eq!(agent.ask("GET", "/v1/status", b"").status, 200);
    let mut endless = agent.connect();
    endless.write_all(b"GET /v1/status HTTP/1.1\r\n").unwrap();
    while endless.write_all(&[b'x'; 1024]).is_ok() {}
    assert_eq!(Answer::read(&mut slow_body).status, 408);
    slow.read_to_end(&mut Vec::new()).unwrap();
    assert_eq!(agent.facts.lock().unwrap().applied.len(), 0);
}

#[test]
fn more_connections_than_places_wait_for_their_turn() {
    let agent = FakeAgent::start();
    let mut idle: Vec<_> = (0..MAX_CONNECTIONS).map(|_| agent.connect()).collect();
    let mut next = agent.connect();
    next.write_all(b"GET /v1/status HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    next.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert_eq!(next.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
    idle.pop();
    next.set_read_timeout(Some(SOON)).unwrap();
    assert_eq!(Answer::read(&mut next).status, 200);
    drop(idle);
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| assert_eq!(agent.ask("GET", "/v1/status", b"").status, 200));
        }
    });
}

#[test]
fn the_group_may_read_and_nobody_else() {
    let agent = FakeAgent::with_group(Some("daemon"));
    let metadata = std::fs::metadata(&agent.socket).unwrap();
    assert_eq!((metadata.mode() & 0o777, metadata.gid()), (0o660, DAEMON));
    let status = agent.coracle_as(NOBODY, DAEMON, &["status"]).output().unwrap();
    assert_eq!(status.status.code(), Some(0), "{status:?}");
    let order = agent.dir.path().join("order");
    std::fs::write(&order, signed_order()).unwrap();
    open_to_all(&order, 0o644);
    let apply = ["apply", order.to_str().unwrap()];
    let denied = agent.coracle_as(NOBODY, DAEMON, &apply).output().unwrap();
    assert_eq!(denied.status.code(), Some(1), "{denied:?}");
    let message = String::from_utf8(denied.stderr).unwrap();
    assert!(message.contains("may give orders [403"), "{message}");
    assert!(agent.facts.lock().unwrap().applied.is_empty());
    let remove = ["volumes", "rm", "--yes", "data"];
    let denied = agent.coracle_as(NOBODY, DAEMON, &remove).output().unwrap();
    let message = String::from_utf8(denied.stderr).unwrap();
    assert!(message.contains("may remove volumes"), "{message}");
    for operation in ["start", "stop", "drain", "restart"] {
        let denied = agent.coracle_as(NOBODY, DAEMON, &[operation, "web"]).output().unwrap();
        assert_eq!(denied.status.code(), Some(1), "{denied:?}");
        let message = String::from_utf8(denied.stderr).unwrap();
        assert!(message.contains("web: only root and the agent's own user may start"), "{message}");
    }
    assert!(agent.facts.lock().unwrap().operated.is_empty());
    let fenced = agent.coracle_as(NOBODY, NOBODY, &["status"]).output().unwrap();
    assert_eq!(fenced.status.code(), Some(3), "{fenced:?}");
    let message = String::from_utf8(fenced.stderr).unwrap();
    assert!(message.contains("a member of the group daemon"), "{message}");
}

#[test]
fn credentials_decide_even_if_the_socket_is_open_to_all() {
    let agent = FakeAgent::with_group(Some("daemon"));
    open_to_all(&agent.socket, 0o666);
    let stranger = agent.coracle_as(NOBODY, NOBODY, &["status"]).output().unwrap();
    assert_eq!(stranger.status.code(), Some(1), "{stranger:?}");
    assert!(String::from_utf8(stranger.stderr).unwrap().contains("[403"));
    // The user database counts, not only the group that the process happens to have.
    let member = agent.coracle_as(DAEMON, NOBODY, &["status"]).output().unwrap();
    assert_eq!(member.status.code(), Some(0), "{member:?}");
}

#[test]
fn without_a_group_only_root_gets_in() {
    let agent = FakeAgent::start();
    assert_eq!(std::fs::metadata(&agent.socket).unwrap().mode() & 0o777, 0o600);
    open_to_all(&agent.socket, 0o666);
    let stranger = agent.coracle_as(DAEMON, DAEMON, &["ps"]).output().unwrap();
    assert_eq!(stranger.status.code(), Some(1), "{stranger:?}");
}

#[test]
fn readers_cannot_take_all_places() {
    let agent = FakeAgent::with_group(Some("daemon"));
    let start = || {
        let mut command = agent.coracle_as(NOBODY, DAEMON, &["events", "--follow"]);
        Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    };
    let mut followers: Vec<_> = (0..MAX_READERS).map(|_| start()).collect();
    wait_for("a reader to be turned away", || {
        // One that was itself turned away at first.
        for ended in followers.iter_mut().filter_map(|f| f.0.try_wait().unwrap().map(|_| f)) {
            *ended = start();
        }
        let reader = agent.coracle_as(NOBODY, DAEMON, &["status"]).output().unwrap();
        let message = String::from_utf8(reader.stderr).unwrap();
        reader.status.code() == Some(3) && message.contains("too many connections")
    });
    assert_eq!(agent.ask("GET", "/v1/status", b"").status, 200);
    followers.clear();
    wait_for("readers to get in again", || {
        agent.coracle_as(NOBODY, DAEMON, &["status"]).output().unwrap().status.success()
    });
}

fn signed_order() -> Vec<u8> {
    coracle_protocol::Envelope {
        payload_type: coracle_protocol::envelope::DESIRED_PAYLOAD_TYPE.into(),
        payload: b"{}".to_vec(),
        signatures: vec![coracle_protocol::envelope::Signature {
            keyid: String::new(),
            sig: vec![0; 64],
        }],
    }
    .encode()
}

#[test]
fn a_stale_socket_is_replaced_and_the_own_one_removed() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("run")).unwrap();
    let socket = dir.path().join("run/api.sock");
    drop(UnixListener::bind(&socket).unwrap());
    assert!(socket.exists());
    let agent = FakeAgent::at(Arc::new(dir), None);
    assert_eq!(agent.ask("GET", "/v1/status", b"").status, 200);
    let message = refused(&socket);
    assert!(matches!(message, ApiError::InUse(_)), "{message}");
    assert_eq!(agent.ask("GET", "/v1/status", b"").status, 200);
    let dir = std::fs::metadata(socket.parent().unwrap()).unwrap();
    assert_eq!(dir.permissions().mode() & 0o777, 0o755);
    drop(agent);
    assert!(!socket.exists());
}

#[test]
fn what_is_no_socket_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("api.sock");
    std::fs::write(&file, "precious").unwrap();
    assert!(matches!(refused(&file), ApiError::NotASocket(_)));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
}

#[test]
fn a_group_that_does_not_exist_leaves_root_alone_with_the_api() {
    let agent = FakeAgent::with_group(Some("no-such-group-here"));
    assert_eq!(agent.ask("GET", "/v1/status", b"").status, 200);
    let mode = std::fs::metadata(&agent.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

fn refused(socket: &Path) -> ApiError {
    let config = ApiConfig { socket: socket.to_owned(), group: None };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let listened = async { tokio::time::timeout(SOON, Api::listen(config)).await };
    runtime.block_on(listened).expect("it answers at once").unwrap_err()
}
