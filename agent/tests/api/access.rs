//! Whom the socket lets in, and to what.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

use coracle::api::{Api, ApiError, MAX_READERS};
use coracle::config::ApiConfig;

use crate::api_support::{FakeAgent, Running, SOON, open_to_all, wait_for};

/// Nobody and its group on Debian; any id that is not root's would do.
const NOBODY: u32 = 65534;
/// User and group `daemon` on every Linux.
const DAEMON: u32 = 1;
/// Group `bin` on every Linux.
const BIN: u32 = 2;

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
    let agent = FakeAgent::at(Arc::new(dir), ApiConfig::default());
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
    let config = ApiConfig { socket: socket.to_owned(), ..ApiConfig::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let listened =
        async { tokio::time::timeout(SOON, Api::listen(&config, None, "logs".into())).await };
    runtime.block_on(listened).expect("it answers at once").unwrap_err()
}

#[test]
fn admins_may_change_and_readers_only_read() {
    // Both have the socket: it is open to all, and what one may do is judged for each connection.
    let agent = FakeAgent::configured(ApiConfig {
        admin_group: Some("bin".into()),
        group: Some("daemon".into()),
        ..ApiConfig::default()
    });
    assert_eq!(std::fs::metadata(&agent.socket).unwrap().mode() & 0o777, 0o666);
    let run = |group, args: &[&str]| {
        let output = agent.coracle_as(NOBODY, group, args).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(run(BIN, &["stop", "web"]), (Some(0), String::new()));
    assert_eq!(run(BIN, &["status"]).0, Some(0));
    assert_eq!(run(DAEMON, &["status"]).0, Some(0));
    let (code, said) = run(DAEMON, &["stop", "web"]);
    let who = "only root, the agent's own user and members of api.admin_group may start";
    assert!(code == Some(1) && said.contains(who), "{said}");
    let (code, said) = run(NOBODY, &["status"]);
    let who = "members of api.admin_group and api.group may use this API [403";
    assert!(code == Some(1) && said.contains(who), "{said}");
    assert_eq!(agent.facts.lock().unwrap().operated.len(), 1);
}

#[test]
fn with_admins_alone_the_socket_is_theirs() {
    let agent = FakeAgent::configured(ApiConfig {
        admin_group: Some("daemon".into()),
        ..ApiConfig::default()
    });
    let metadata = std::fs::metadata(&agent.socket).unwrap();
    assert_eq!((metadata.mode() & 0o777, metadata.gid()), (0o660, DAEMON));
    // By the user database, too.
    open_to_all(&agent.socket, 0o666);
    let member = agent.coracle_as(DAEMON, NOBODY, &["stop", "web"]).output().unwrap();
    assert_eq!(member.status.code(), Some(0), "{member:?}");
}
