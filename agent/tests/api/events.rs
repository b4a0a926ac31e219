//! What happened, and what happens.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use coracle::api::MAX_STREAMS;
use coracle::clock::monotonic_now;
use serde_json::json;

use crate::api_support::{Answer, FakeAgent, SOON, wait_for};

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

/// A stream of events, read piece by piece.
struct Following {
    stream: UnixStream,
    seen: String,
}

impl Following {
    fn start(agent: &FakeAgent, path: &str, lines: &str) -> Self {
        let mut stream = agent.connect();
        let accept = "accept: text/event-stream";
        let head = format!("GET {path} HTTP/1.1\r\nhost: x\r\n{accept}\r\n{lines}\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        Self { stream, seen: String::new() }
    }

    /// Reads until there is an event with this in it; gives it.
    fn until(&mut self, what: &str) -> String {
        let mut piece = [0; 4096];
        loop {
            let whole = self.seen.rfind("\n\n").map_or("", |end| &self.seen[..end]);
            if let Some(event) = whole.split("\n\n").find(|event| event.contains(what)) {
                return event.to_owned();
            }
            let count = self.stream.read(&mut piece).unwrap();
            assert!(count > 0, "{}", self.seen);
            self.seen.push_str(std::str::from_utf8(&piece[..count]).unwrap());
        }
    }
}

#[test]
fn a_stream_tells_what_happens_as_it_happens() {
    let agent = FakeAgent::start();
    agent.happen(None, "first");
    let mut following = Following::start(&agent, "/v1/events", "");
    assert!(following.until("event: agent").contains(r#""newest":1"#));
    assert!(following.seen.contains("content-type: text/event-stream"), "{}", following.seen);
    let first = following.until("first");
    assert!(first.contains("id: 1\nevent: test\ndata: {\"sequence\":1,"), "{first}");
    agent.happen(Some("web.0"), "second");
    assert!(following.until("second").contains(r#""replica":"web.0""#));
    // It goes on from where a reader was, which the header says rather than the address.
    let mut again = Following::start(&agent, "/v1/events?after=0", "last-event-id: 1\r\n");
    again.until("second");
    assert!(!again.seen.contains("first"), "{}", again.seen);
    // Ahead of an agent that was started anew: all of it.
    Following::start(&agent, "/v1/events?after=9", "").until("first");
    let bad = "accept: text/event-stream\r\nlast-event-id: x\r\n";
    assert_eq!(agent.ask_with("GET", "/v1/events", bad, b"").status, 400);
    drop(agent);
    let mut rest = Vec::new();
    // The end of the agent is the end of the stream.
    drop(following.stream.read_to_end(&mut rest));
}

#[test]
fn streams_have_places_of_their_own() {
    let agent = FakeAgent::start();
    let mut all: Vec<_> =
        (0..MAX_STREAMS).map(|_| Following::start(&agent, "/v1/events", "")).collect();
    for following in &mut all {
        following.until("event: agent");
    }
    let accept = "accept: text/event-stream\r\n";
    let full = agent.ask_with("GET", "/v1/events", accept, b"").problem();
    assert_eq!((full.0, full.1.as_str()), (503, "unavailable"));
    assert_eq!(agent.ask("GET", "/v1/events", b"").status, 200);
    all.pop();
    wait_for("a place", || {
        let mut one = Following::start(&agent, "/v1/events", "");
        let mut status = [0; 12];
        one.stream.read_exact(&mut status).unwrap();
        &status == b"HTTP/1.1 200"
    });
}
