//! Artifacts, native services, and what takes long.

use coracle::native_status::{ArtifactStatus, ServiceStatus};
use coracle::status::Operation;
use coracle_protocol::Timestamp;
use coracle_protocol::reported::ReplicaState;
use serde_json::json;

use crate::api_support::FakeAgent;

const GAUGE: &str = "org.example:gauge:1.4.2";
const AT: &str = "a.gauge.alice.line-1";

fn agent() -> FakeAgent {
    let agent = FakeAgent::start();
    let mut facts = agent.facts.lock().unwrap();
    facts.artifacts.artifacts = vec![ArtifactStatus {
        artifact: GAUGE.into(),
        digest: format!("sha256:{}", "0".repeat(64)),
        zip_bytes: 10,
        unpacked_bytes: 20,
        entries: 3,
        installed_at: Timestamp::from_unix(1_772_366_400),
        by_hand: false,
        used_by: vec!["web".into()],
        directory: "/native/software/org.example/gauge/1.4.2".into(),
    }];
    facts.services.services = vec![ServiceStatus {
        coordinate: AT.into(),
        workload: Some("web".into()),
        replica: Some("web.0".into()),
        artifact: Some(GAUGE.into()),
        state: Some(ReplicaState::Running),
        pid: Some(4711),
        directory: "/native/runtime/line-1/alice/gauge/a".into(),
        bytes: Some(4096),
    }];
    drop(facts);
    agent
}

#[test]
fn artifacts_are_listed_shown_installed_and_removed() {
    let agent = agent();
    let all = agent.ask("GET", "/v1/artifacts", b"");
    assert_eq!((all.status, &all.json()["artifacts"][0]["artifact"]), (200, &json!(GAUGE)));
    let one = agent.ask("GET", &format!("/v1/artifacts/{GAUGE}"), b"");
    assert_eq!((one.status, one.json()), (200, all.json()["artifacts"][0].clone()));
    let absent = agent.ask("GET", "/v1/artifacts/org.example:other:1", b"").problem();
    assert_eq!(absent.2, "artifact org.example:other:1 is not installed");
    assert_eq!(agent.ask("GET", "/v1/artifacts/gauge", b"").status, 404);

    let begun = agent.ask("POST", "/v1/artifacts", br#"{"artifact":"org.example:tool:1"}"#);
    assert_eq!(begun.status, 202);
    assert!(begun.head.contains("location: /v1/operations/operation-1"), "{}", begun.head);
    assert_eq!(begun.json()["state"], "running");
    let watched = agent.ask("GET", "/v1/operations/operation-1", b"");
    assert_eq!((watched.status, watched.json()), (200, begun.json()));
    assert_eq!(watched.json()["bytes_total"], 100);
    let all = agent.ask("GET", "/v1/operations", b"").json();
    assert_eq!(all["operations"].as_array().unwrap().len(), 1);
    assert_eq!(agent.ask("GET", "/v1/operations/operation-9", b"").status, 404);

    for (body, why) in [
        ("", "what to install: EOF while parsing a value at line 1 column 0"),
        (r#"{"artifact":"tool"}"#, "an artifact is written group:name:version"),
        (r#"{"artifact":"g:n:1","sha256":"AB"}"#, "sha256 must be 64 lower-case"),
        (r#"{"artifact":"g:n:1","shell":"x"}"#, "unknown field `shell`"),
    ] {
        let refused = agent.ask("POST", "/v1/artifacts", body.as_bytes()).problem();
        assert!(refused.0 == 400 && refused.2.contains(why), "{refused:?}");
    }
    let used = agent.ask("DELETE", &format!("/v1/artifacts/{GAUGE}"), b"").problem();
    assert_eq!((used.0, used.1.as_str()), (409, "conflict"));
    agent.facts.lock().unwrap().artifacts.artifacts[0].used_by.clear();
    assert_eq!(agent.ask("DELETE", &format!("/v1/artifacts/{GAUGE}"), b"").status, 202);
    let install = |version: u32| {
        let body = json!({ "artifact": format!("org.example:tool:{version}") });
        agent.ask("POST", "/v1/artifacts", body.to_string().as_bytes())
    };
    assert!([2, 3].into_iter().all(|version| install(version).status == 202));
    let busy = install(4);
    assert_eq!(busy.problem().0, 503);
}

#[test]
fn services_are_listed_and_operated_by_coordinate() {
    let agent = agent();
    let all = agent.ask("GET", "/v1/services", b"").json();
    assert_eq!(all["services"][0]["coordinate"], AT);
    let one = agent.ask("GET", &format!("/v1/services/{AT}"), b"");
    assert_eq!((one.status, one.json()), (200, all["services"][0].clone()));
    for unknown in ["a.other.alice.line-1", "gauge", "A.gauge.alice.line-1"] {
        assert_eq!(agent.ask("GET", &format!("/v1/services/{unknown}"), b"").status, 404);
        assert_eq!(agent.ask("POST", &format!("/v1/services/{unknown}/stop"), b"").status, 404);
    }
    assert_eq!(agent.ask("POST", &format!("/v1/services/{AT}/stop"), b"").status, 200);
    let operated = agent.facts.lock().unwrap().operated.clone();
    assert_eq!(operated, [("web".to_owned(), Operation::Stop)]);
    let purged = agent.ask("POST", &format!("/v1/services/{AT}/purge"), b"");
    assert_eq!((purged.status, &purged.json()["kind"]), (202, &json!("purge")));
    assert_eq!(agent.ask("POST", "/v1/services/a.b.c.d/purge", b"").status, 404);
}
