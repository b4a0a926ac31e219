//! What containers said, over the API.

use std::fs;
use std::io::{Read, Write};
use std::path::PathBuf;

use coracle::api::MAX_STREAMS;
use serde_json::json;

use crate::api_support::{Answer, FakeAgent, wait_for};

/// An agent with the logs of some containers.
fn agent() -> FakeAgent {
    let agent = FakeAgent::start();
    write(
        &agent,
        "web.0.main",
        &["10 coracle F -- start --", "11 stdout F one", "13 stderr F three"],
    );
    write(&agent, "web.1.main", &["12 stdout F two", "14 stdout P fo", "15 stdout F ur"]);
    write(&agent, "web-2.0.main", &["11 stdout F not of web"]);
    agent
}

fn write(agent: &FakeAgent, container: &str, lines: &[&str]) {
    let file = file(agent, container);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    let lines: String = lines
        .iter()
        .map(|line| format!("2026-03-01T12:00:{}.000000Z {}\n", &line[..2], &line[3..]))
        .collect();
    let mut file = fs::OpenOptions::new().create(true).append(true).open(file).unwrap();
    file.write_all(lines.as_bytes()).unwrap();
}

fn file(agent: &FakeAgent, container: &str) -> PathBuf {
    coracle_log::files::path(&agent.dir.path().join("logs").join(container), 1)
}

fn texts(agent: &FakeAgent, path: &str) -> Vec<String> {
    let answer = agent.ask("GET", path, b"");
    assert!(answer.head.contains("content-type: application/x-ndjson"), "{answer:?}");
    lines(&unchunked(&answer.body))
}

fn lines(body: &str) -> Vec<String> {
    let line = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap();
    body.lines().map(|l| line(l)["text"].as_str().unwrap().to_owned()).collect()
}

/// A body without the lengths of its pieces.
fn unchunked(body: &str) -> String {
    let (mut rest, mut whole) = (body, String::new());
    while let Some((length, after)) = rest.split_once("\r\n") {
        let length = usize::from_str_radix(length, 16).unwrap();
        let piece;
        (piece, rest) = after.split_at(length);
        whole.push_str(piece);
        rest = rest.strip_prefix("\r\n").unwrap();
    }
    whole
}

#[test]
fn lines_of_a_workload_come_by_time_as_json_or_text() {
    let agent = agent();
    assert_eq!(texts(&agent, "/v1/logs/web")[1..], ["one", "two", "three", "fo", "ur"]);
    let first = agent.ask("GET", "/v1/logs/web?replica=0&stream=stderr&tail=1", b"");
    let first = unchunked(&first.body);
    let first: serde_json::Value = serde_json::from_str(first.lines().last().unwrap()).unwrap();
    let expected = json!({
        "container": "web.0.main", "time": "2026-03-01T12:00:13.000000Z", "stream": "stderr",
        "partial": false, "text": "three",
    });
    assert_eq!(first, expected);
    assert_eq!(texts(&agent, "/v1/logs/web?replica=1&tail=1&container=main"), ["fo", "ur"]);
    let since = "since=2026-03-01T14:00:13%2B02:00&run=all";
    assert_eq!(texts(&agent, &format!("/v1/logs/web?{since}")), ["three", "fo", "ur"]);
    let plain = agent.ask_with("GET", "/v1/logs/web", "accept: text/plain\r\n", b"");
    assert!(plain.head.contains("content-type: text/plain"), "{}", plain.head);
    assert_eq!(unchunked(&plain.body), "one\ntwo\nthree\nfour\n");
}

#[test]
fn what_is_kept_is_listed_and_what_is_not_is_said() {
    let agent = agent();
    let kept = agent.ask("GET", "/v1/logs", b"").json();
    let ids: Vec<_> = kept.as_array().unwrap().iter().map(|one| &one["container"]).collect();
    assert_eq!(ids, ["web-2.0.main", "web.0.main", "web.1.main"]);
    for path in ["/v1/logs/db", "/v1/logs/web?replica=7", "/v1/logs/web?run=previous"] {
        assert_eq!(agent.ask("GET", path, b"").problem().1, "not-found", "{path}");
    }
    for path in ["/v1/logs/web?tail=x", "/v1/logs/web?since=x", "/v1/logs/web?follow=1"] {
        assert_eq!(agent.ask("GET", path, b"").problem().1, "bad-request", "{path}");
    }
    for number in 0..40 {
        write(&agent, &format!("many.{number}.main"), &["11 stdout F one"]);
    }
    assert_eq!(agent.ask("GET", "/v1/logs/many", b"").problem().1, "bad-request");
    assert_eq!(texts(&agent, "/v1/logs/many?replica=39"), ["one"]);
}

#[test]
fn following_goes_on_until_its_time_is_up_or_nobody_reads() {
    let agent = agent();
    let mut following = agent.connect();
    let path = "/v1/logs/new?follow=true&wait=600";
    following.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).unwrap();
    let mut seen = String::new();
    let mut read_until = |what: &str| {
        let mut piece = [0; 4096];
        while !seen.contains(what) {
            let count = following.read(&mut piece).unwrap();
            assert!(count > 0, "{seen}");
            seen.push_str(std::str::from_utf8(&piece[..count]).unwrap());
        }
    };
    read_until("200 OK");
    write(&agent, "new.0.main", &["11 stdout F hello"]);
    read_until("hello");
    write(&agent, "new.0.main", &["12 stdout F again"]);
    read_until("again");
    // As many as there are places; who goes makes room.
    let more: Vec<_> = (1..MAX_STREAMS)
        .map(|_| {
            let mut stream = agent.connect();
            let head = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
            stream.write_all(head.as_bytes()).unwrap();
            let mut piece = [0; 12];
            stream.read_exact(&mut piece).unwrap();
            assert_eq!(&piece, b"HTTP/1.1 200");
            stream
        })
        .collect();
    assert_eq!(agent.ask("GET", "/v1/logs/web", b"").problem().1, "unavailable");
    drop(more);
    wait_for("room", || agent.ask("GET", "/v1/logs/web", b"").status == 200);
    let mut short = agent.connect();
    let head = "GET /v1/logs/none?follow=true&wait=1 HTTP/1.1\r\nhost: x\r\n\r\n";
    short.write_all(head.as_bytes()).unwrap();
    let nothing = Answer::read(&mut short);
    assert_eq!((nothing.status, unchunked(&nothing.body).as_str()), (200, ""));
}
