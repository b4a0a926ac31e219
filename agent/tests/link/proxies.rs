//! The link through an HTTP proxy.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::sync::mpsc;
use std::thread;

use coracle::config::{Endpoint, LinkConfig, ProxyConfig};

use crate::bed::{Bed, Gateway, SOON};

/// What a proxy does with those who ask.
#[derive(Clone, Copy)]
enum Manner {
    /// Leads everybody on.
    Open,
    /// Leads those on who know this (in base64).
    For(&'static str),
    Answers(&'static [u8]),
    Babbles,
}

/// A proxy that leads to `broker` whoever asks for `broker.example`, and says what it was asked.
fn proxy(broker: u16, manner: Manner) -> (Endpoint, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint =
        Endpoint { host: "localhost".into(), port: listener.local_addr().unwrap().port() };
    let (asked, asks) = mpsc::channel();
    thread::spawn(move || {
        for client in listener.incoming() {
            let client = client.unwrap();
            let mut lines = BufReader::new(client.try_clone().unwrap()).lines();
            let head: Vec<String> =
                lines.by_ref().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
            let head = head.join("\n");
            let known = match manner {
                Manner::Open => true,
                Manner::For(credentials) => head.contains(&format!("Basic {credentials}")),
                Manner::Answers(_) | Manner::Babbles => false,
            };
            if asked.send(head).is_err() {
                return;
            }
            serve(client, known, manner, broker);
        }
    });
    (endpoint, asks)
}

fn serve(mut client: TcpStream, known: bool, manner: Manner, broker: u16) {
    match manner {
        Manner::Answers(answer) => client.write_all(answer).unwrap(),
        Manner::Babbles => while client.write_all(&[b'x'; 1000]).is_ok() {},
        _ if !known => client
            .write_all(b"HTTP/1.1 407 Who are you?\r\nProxy-Authenticate: Basic\r\n\r\n")
            .unwrap(),
        _ => {
            client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").unwrap();
            let broker = TcpStream::connect(("127.0.0.1", broker)).unwrap();
            let (mut from, mut to) = (client.try_clone().unwrap(), broker.try_clone().unwrap());
            thread::spawn(move || std::io::copy(&mut from, &mut to));
            let (mut from, mut to) = (broker, client);
            thread::spawn(move || std::io::copy(&mut from, &mut to));
        }
    }
}

fn through(bed: &Bed, endpoint: Endpoint, credentials: Option<&str>) -> LinkConfig {
    let mut config = bed.config();
    let credentials = credentials.map(|content| {
        let path = bed.place.run().join("proxy-credentials");
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path
    });
    config.proxy = Some(ProxyConfig { endpoint, credentials });
    config
}

#[test]
fn orders_and_reports_go_through_a_proxy() {
    let bed = Bed::new();
    let (endpoint, asks) = proxy(bed.broker.port(), Manner::Open);
    let gateway = Gateway::start(through(&bed, endpoint, None), bed.id);
    gateway.connected();
    let asked = asks.recv_timeout(SOON).unwrap();
    assert!(asked.starts_with(&format!("CONNECT localhost:{} HTTP/1.1", bed.broker.port())));
    bed.publish_order("order", false);
    assert_eq!(gateway.order().0, "order");
}

#[test]
fn a_websocket_goes_through_a_proxy() {
    let bed = Bed::new();
    let (endpoint, asks) = proxy(bed.broker.websocket_port(), Manner::Open);
    let mut config = through(&bed, endpoint, None);
    (config.port, config.websocket_path) = (bed.broker.websocket_port(), Some("/mqtt".into()));
    let gateway = Gateway::start(config, bed.id);
    gateway.connected();
    assert!(asks.recv_timeout(SOON).unwrap().starts_with("CONNECT localhost:"));
    bed.publish_order("order", false);
    assert_eq!(gateway.order().0, "order");
}

#[test]
fn a_proxy_that_asks_for_credentials_gets_those_of_the_file() {
    let bed = Bed::new();
    // gateway:open sesame
    let manner = Manner::For("Z2F0ZXdheTpvcGVuIHNlc2FtZQ==");
    let (endpoint, _asks) = proxy(bed.broker.port(), manner);
    let config = through(&bed, endpoint, Some("gateway:open sesame\n"));
    let gateway = Gateway::start(config, bed.id);
    gateway.connected();
    bed.publish_order("order", false);
    assert_eq!(gateway.order().0, "order");
}

#[test]
fn a_proxy_that_does_not_know_this_gateway_is_told_and_no_secret_with_it() {
    let bed = Bed::new();
    let (endpoint, _asks) = proxy(bed.broker.port(), Manner::For("else"));
    let config = through(&bed, endpoint, Some("gateway:open sesame"));
    let shown = format!("{config:?}");
    let (reason, delay) = Gateway::start(config, bed.id).lost();
    assert!(reason.contains("link.proxy_credentials is missing or wrong"), "{reason}");
    assert!(!reason.contains("sesame") && !shown.contains("sesame"), "{reason} {shown}");
    assert!(delay >= std::time::Duration::from_secs(5), "{delay:?}");
}

#[test]
fn a_proxy_that_is_none_is_told() {
    let bed = Bed::new();
    for (manner, said) in [
        (Manner::Answers(b"HTTP/1.1 403 Forbidden\r\n\r\n"), "it answered 403"),
        (Manner::Answers(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"), "does not answer in HTTP"),
        (Manner::Answers(b""), "the connection to the proxy broke"),
        (Manner::Babbles, "does not answer in HTTP"),
    ] {
        let (endpoint, _asks) = proxy(bed.broker.port(), manner);
        let reason = Gateway::start(through(&bed, endpoint, None), bed.id).disconnected(SOON);
        assert!(reason.contains(said), "{said}: {reason}");
    }
    let nobody = Endpoint { host: "localhost".into(), port: coracle_testbed::free_port().unwrap() };
    let reason = Gateway::start(through(&bed, nobody, None), bed.id).disconnected(SOON);
    assert!(reason.contains("cannot reach the proxy localhost:"), "{reason}");
    let (endpoint, _asks) = proxy(bed.broker.port(), Manner::Open);
    let config = through(&bed, endpoint, Some("no password"));
    let reason = Gateway::start(config, bed.id).disconnected(SOON);
    assert!(reason.contains("are not of the form USER:PASSWORD"), "{reason}");
}
