//! What there is, and what is said of what is not.

use std::io::Write;

use coracle::status::{Operation, VolumeStatus};
use serde_json::json;

use crate::api_support::{Answer, FakeAgent, refusal};

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
    let web = agent.ask("GET", "/v1/workloads/web", b"");
    assert_eq!((web.status, web.json()), (200, workloads.json()[0].clone()));
    let unknown = problem(404, "not-found", "the orders name no workload \"db\"");
    assert_eq!(agent.ask("GET", "/v1/workloads/db", b"").problem(), unknown);
    let none = agent.ask("GET", "/v1/orders", b"");
    assert_eq!(none.problem(), problem(404, "not-found", "no order is in force yet"));
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
    let only = "this resource answers to GET only";
    assert_eq!(wrong.problem(), problem(405, "wrong-method", only));
    for path in ["/v1/status?x=1", "/v1/events?since=3"] {
        let unknown = agent.ask("GET", path, b"").problem();
        assert!(unknown.0 == 400 && unknown.2.starts_with("unknown parameter"), "{unknown:?}");
    }
    assert_eq!(agent.ask("GET", "/v1/events?after=x", b"").problem().1, "bad-request");
    assert_eq!(agent.ask("GET", "/v1/secrets/key", b"").status, 200);
    let damaged = agent.ask("GET", "/v1/identity/keys", b"").problem();
    assert_eq!(damaged, problem(500, "internal", "the key file is damaged"));
}

#[test]
fn orders_are_accepted_or_refused_with_reasons() {
    let agent = FakeAgent::start();
    let accepted = agent.ask("POST", "/v1/orders", b"an order");
    assert_eq!((accepted.status, &accepted.json()["accepted"]), (200, &json!(true)));
    agent.facts.lock().unwrap().refusal = Some(refusal());
    let refused = agent.ask("POST", "/v1/orders", b"another");
    let words = "the order is refused; nothing was changed";
    assert_eq!(refused.problem(), problem(422, "refused", words));
    assert_eq!(refused.json()["generation"], 7);
    assert_eq!(refused.json()["refusals"][0]["code"], "old-generation");
    assert_eq!(agent.facts.lock().unwrap().applied, [b"an order".to_vec(), b"another".to_vec()]);
}

#[test]
fn workloads_are_operated_by_hand_or_it_is_said_why_not() {
    let agent = FakeAgent::start();
    let post = |path: &str| agent.ask("POST", &format!("/v1/workloads/{path}"), b"");
    let done = |path: &str| {
        let answer = post(path);
        (answer.status, answer.json())
    };
    let said = |text: &str, unchanged| (200, json!({"message": text, "unchanged": unchanged}));
    assert_eq!(done("web/restart"), said("the replicas of web are made anew", false));
    assert_eq!(done("web/drain"), said("web stops, until it is started by hand", false));
    assert_eq!(done("web/stop"), said("web is stopped already", true));
    let stopped = problem(409, "conflict", "web is stopped; start it");
    assert_eq!(post("web/restart").problem(), stopped);
    assert_eq!(post("web/start").status, 200);
    let unknown = problem(404, "not-found", "the orders name no workload \"db\"");
    assert_eq!(post("db/stop").problem(), unknown);
    use Operation::{Drain, Restart, Start, Stop};
    let operated = [Restart, Drain, Stop, Restart, Start].map(|what| ("web".to_owned(), what));
    assert_eq!(agent.facts.lock().unwrap().operated, operated);

    let no_resource = problem(404, "not-found", "there is no such resource");
    // What is no name is the name of nothing.
    for path in ["web/pause", "web/", "/stop/", "web/stop/", "/stop", "../web/stop", "We%62/stop"] {
        assert_eq!(post(path).problem(), no_resource, "{path}");
    }
    assert_eq!(post("web").status, 405);
    let wrong = agent.ask("GET", "/v1/workloads/web/stop", b"");
    assert!(wrong.status == 405 && wrong.head.contains("allow: post"), "{}", wrong.head);
    agent.facts.lock().unwrap().store_is_full = true;
    assert_eq!(post("web/stop").problem().1, "internal");
    assert_eq!(agent.facts.lock().unwrap().operated, operated);
}

#[test]
fn volumes_are_removed_by_name() {
    let agent = FakeAgent::start();
    let volume = |name: &str, used_by: &[&str]| VolumeStatus {
        name: name.into(),
        bytes: 4096,
        complete: true,
        used_by: used_by.iter().map(|user| (*user).into()).collect(),
        mounted_by: Vec::new(),
        last_used: None,
    };
    agent.facts.lock().unwrap().volumes = vec![volume("data", &["web"]), volume("old", &[])];
    let volumes = agent.ask("GET", "/v1/volumes", b"").json();
    assert_eq!(volumes["volumes"].as_array().unwrap().len(), 2);
    let delete = |name: &str| agent.ask("DELETE", &format!("/v1/volumes/{name}"), b"");
    assert_eq!(delete("data").problem(), problem(409, "conflict", "volume data is in use"));
    assert_eq!((delete("old").status, delete("old").status), (200, 404));
    assert_eq!(delete("a%2fb").problem().1, "not-found");
}

#[test]
fn an_order_is_sent_as_json_or_as_nothing_in_particular() {
    let agent = FakeAgent::start();
    let send = |kind: &str| {
        agent.ask_with("POST", "/v1/orders", &format!("content-type: {kind}\r\n"), b"an order")
    };
    assert_eq!(send("application/json; charset=utf-8").status, 200);
    let wrong = problem(415, "media-type", "a signed order is sent as application/json");
    assert_eq!(send("text/yaml").problem(), wrong);
    assert_eq!(agent.facts.lock().unwrap().applied.len(), 1);
}

#[test]
fn what_is_no_request_is_a_problem_too() {
    let agent = FakeAgent::start();
    let long = "x".repeat(20_000);
    for (text, kind) in [
        ("nonsense\r\n\r\n".to_owned(), "bad-request"),
        ("GET /v1/status HTTP/1.1\r\nno header\r\n\r\n".to_owned(), "bad-request"),
        (format!("GET /v1/status HTTP/1.1\r\nx: {long}\r\n\r\n"), "head-too-large"),
        (format!("GET /{long}"), "head-too-large"),
        (format!("GET /v1/status HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(40)), "head-too-large"),
    ] {
        let mut stream = agent.connect();
        stream.write_all(text.as_bytes()).unwrap();
        assert_eq!(Answer::read(&mut stream).problem().1, kind, "{}", &text[..20.min(text.len())]);
    }
}

fn problem(status: u16, kind: &str, detail: &str) -> (u16, String, String) {
    (status, kind.into(), detail.into())
}
