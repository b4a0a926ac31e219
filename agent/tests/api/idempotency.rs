//! The same request again, told by its key.

use std::io::Write;

use coracle::status::Operation;

use crate::api_support::{FakeAgent, refusal, wait_for};

fn ask(agent: &FakeAgent, path: &str, key: &str, body: &[u8]) -> crate::api_support::Answer {
    agent.ask_with("POST", path, &format!("idempotency-key: {key}\r\n"), body)
}

#[test]
fn it_is_answered_again_and_not_done_again() {
    let agent = FakeAgent::start();
    let first = ask(&agent, "/v1/workloads/web/stop", "k-1", b"");
    let again = ask(&agent, "/v1/workloads/web/stop", "k-1", b"");
    assert_eq!((first.status, &first.body), (200, &again.body));
    assert_eq!(again.json()["unchanged"], false);
    assert_eq!(agent.facts.lock().unwrap().operated, [("web".to_owned(), Operation::Stop)]);
    // What was refused is refused again, with the same reasons.
    agent.facts.lock().unwrap().refusal = Some(refusal());
    let first = ask(&agent, "/v1/orders", "k-2", b"an order");
    agent.facts.lock().unwrap().refusal = None;
    let again = ask(&agent, "/v1/orders", "k-2", b"an order");
    assert_eq!(
        (first.status, again.problem().1.as_str(), &first.body),
        (422, "refused", &again.body)
    );
    assert_eq!(agent.facts.lock().unwrap().applied.len(), 1);
    assert_eq!(ask(&agent, "/v1/orders", "k-3", b"an order").status, 200);
}

#[test]
fn a_key_is_for_one_request() {
    let agent = FakeAgent::start();
    assert_eq!(ask(&agent, "/v1/orders", "k", b"an order").status, 200);
    for (path, body) in [("/v1/orders", "another"), ("/v1/workloads/web/stop", "an order")] {
        let other = ask(&agent, path, "k", body.as_bytes()).problem();
        assert_eq!((other.0, other.1.as_str()), (422, "key-reused"));
    }
    for bad in ["", &"k".repeat(65), "a b"] {
        assert_eq!(ask(&agent, "/v1/orders", bad, b"x").problem().1, "bad-request", "{bad}");
    }
    // What changes nothing takes no notice of it.
    let read = agent.ask_with("GET", "/v1/status", "idempotency-key: k\r\n", b"");
    assert_eq!(read.status, 200);
    assert_eq!(agent.facts.lock().unwrap().applied.len(), 1);
}

#[test]
fn what_failed_may_be_tried_again_with_the_same_key() {
    let agent = FakeAgent::start();
    agent.facts.lock().unwrap().store_is_full = true;
    assert_eq!(ask(&agent, "/v1/workloads/web/stop", "k", b"").status, 500);
    agent.facts.lock().unwrap().store_is_full = false;
    assert_eq!(ask(&agent, "/v1/workloads/web/stop", "k", b"").status, 200);
}

#[test]
fn a_request_goes_on_without_its_client_and_is_under_way_until_then() {
    let agent = FakeAgent::start();
    // The event loop is held up while its facts are.
    let facts = agent.facts.lock().unwrap();
    let mut gone = agent.connect();
    let head =
        "POST /v1/orders HTTP/1.1\r\nhost: x\r\nidempotency-key: k\r\ncontent-length: 8\r\n\r\n";
    gone.write_all(format!("{head}an order").as_bytes()).unwrap();
    gone.shutdown(std::net::Shutdown::Both).unwrap();
    drop(facts);
    wait_for("the order to be applied", || agent.facts.lock().unwrap().applied.len() == 1);
    wait_for("the answer to be there", || {
        let answer = ask(&agent, "/v1/orders", "k", b"an order");
        assert!(matches!(answer.status, 200 | 409), "{answer:?}");
        answer.status == 200
    });
    assert_eq!(agent.facts.lock().unwrap().applied.len(), 1);
}
