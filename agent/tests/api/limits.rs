//! Sizes, times and places.

use std::io::{ErrorKind, Read, Write};
use std::time::Duration;

use coracle::api::MAX_CONNECTIONS;
use coracle_protocol::limits::MAX_ENVELOPE_BYTES;

use crate::api_support::{Answer, FakeAgent, SOON};

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
