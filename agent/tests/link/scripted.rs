//! A broker that does what it is told, packet by packet (MQTT 5.0, OASIS standard).

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use coracle_testbed::{Pki, Place};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// For what takes milliseconds on a quiet machine.
const SOON: Duration = Duration::from_secs(20);

pub(crate) const CONNECT: u8 = 1;
pub(crate) const PUBLISH: u8 = 3;
pub(crate) const SUBSCRIBE: u8 = 8;
pub(crate) const PINGREQ: u8 = 12;

pub(crate) const NEW_SESSION: [u8; 5] = [0x20, 3, 0, 0, 0];
pub(crate) const OLD_SESSION: [u8; 5] = [0x20, 3, 1, 0, 0];

pub(crate) struct Hostile {
    pub(crate) listener: TcpListener,
    tls: Arc<ServerConfig>,
    pub(crate) pki: Arc<Pki>,
    place: Arc<Place>,
}

impl Hostile {
    pub(crate) fn new() -> Self {
        let place = Place::new().unwrap();
        let pki = Pki::new(&place.run().join("pki")).unwrap();
        let server = pki.server();
        let chain = CertificateDer::pem_file_iter(&server.cert).unwrap();
        let key = PrivateKeyDer::from_pem_file(&server.key).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain.map(Result::unwrap).collect(), key)
            .unwrap();
        let listener = TcpListener::bind("0.0.0.0:0").unwrap();
        Self { listener, tls: Arc::new(tls), pki: Arc::new(pki), place: Arc::new(place) }
    }

    /// Another broker with the same certificates.
    pub(crate) fn another(&self) -> Self {
        let listener = TcpListener::bind("0.0.0.0:0").unwrap();
        let (tls, pki) = (Arc::clone(&self.tls), Arc::clone(&self.pki));
        Self { listener, tls, pki, place: Arc::clone(&self.place) }
    }

    pub(crate) fn port(&self) -> u16 {
        self.listener.local_addr().unwrap().port()
    }

    /// The next connection, after its CONNECT was answered with `connack`.
    pub(crate) fn accept(&self, connack: &[u8]) -> Peer {
        let mut peer = self.connection();
        peer.expect(CONNECT);
        peer.send(connack);
        peer
    }

    pub(crate) fn connection(&self) -> Peer {
        let socket = self.socket();
        let connection = ServerConnection::new(Arc::clone(&self.tls)).unwrap();
        Peer(StreamOwned::new(connection, socket))
    }

    /// The next connection, before any TLS.
    pub(crate) fn socket(&self) -> TcpStream {
        // Counts for accept(2) as well: socket(7), SO_RCVTIMEO.
        set_socket_timeout(&self.listener, Timeout::Recv, Some(2 * SOON)).unwrap();
        let (socket, _) = self.listener.accept().expect("no connection came");
        socket.set_read_timeout(Some(SOON)).unwrap();
        socket.set_nodelay(true).unwrap();
        socket
    }
}

pub(crate) struct Peer(pub(crate) StreamOwned<ServerConnection, TcpStream>);

impl Peer {
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
        self.0.flush().unwrap();
    }

    /// The next packet: type and body.
    pub(crate) fn read(&mut self) -> std::io::Result<(u8, Vec<u8>)> {
        let mut byte = [0];
        self.0.read_exact(&mut byte)?;
        let (kind, mut length, mut shift) = (byte[0] >> 4, 0, 0);
        loop {
            self.0.read_exact(&mut byte)?;
            length |= usize::from(byte[0] & 0x7f) << shift;
            shift += 7;
            if byte[0] & 0x80 == 0 {
                break;
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        Ok((kind, body))
    }

    /// The next packet, which is to be of this type; pings are answered.
    pub(crate) fn expect(&mut self, wanted: u8) -> Vec<u8> {
        loop {
            let (kind, body) = self.read().unwrap();
            if kind == wanted {
                return body;
            }
            assert_eq!(kind, PINGREQ, "{body:?}");
            self.send(&[0xd0, 0]);
        }
    }

    /// Answers the subscription, in however many packets it comes: QoS 1 on every topic.
    pub(crate) fn grant(&mut self) {
        self.answer_subscription(&[1; 4]);
    }

    /// Answers the subscription with one code for each of its topics.
    pub(crate) fn answer_subscription(&mut self, mut codes: &[u8]) {
        while !codes.is_empty() {
            let body = self.expect(SUBSCRIBE);
            let (now, later) = codes.split_at(filters(&body));
            let length = u8::try_from(3 + now.len()).unwrap();
            self.send(&[&[0x90, length, body[0], body[1], 0], now].concat());
            codes = later;
        }
    }

    /// The next publish: packet id and payload (no properties).
    pub(crate) fn publish(&mut self) -> ([u8; 2], String) {
        let body = self.expect(PUBLISH);
        let at = 2 + usize::from(u16::from_be_bytes([body[0], body[1]]));
        let payload = String::from_utf8(body[at + 3..].to_vec()).unwrap();
        ([body[at], body[at + 1]], payload)
    }

    pub(crate) fn acknowledge(&mut self, [high, low]: [u8; 2]) {
        self.send(&[0x40, 2, high, low]);
    }
}

/// How many topics a SUBSCRIBE without properties asks for.
fn filters(body: &[u8]) -> usize {
    let (mut at, mut count) = (3, 0);
    while at < body.len() {
        at += 3 + usize::from(u16::from_be_bytes([body[at], body[at + 1]]));
        count += 1;
    }
    count
}

/// A packet.
pub(crate) fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    let mut left = body.len();
    loop {
        let more = if left >= 0x80 { 0x80 } else { 0 };
        frame.push(u8::try_from(left % 0x80).unwrap() | more);
        left /= 0x80;
        if left == 0 {
            break;
        }
    }
    [frame, body.to_vec()].concat()
}

/// A PUBLISH with this first byte, which says the QoS.
pub(crate) fn publish(
    first: u8,
    topic: &str,
    id: u16,
    properties: &[u8],
    payload: &[u8],
) -> Vec<u8> {
    let length = u16::try_from(topic.len()).unwrap().to_be_bytes();
    let id = if first & 6 == 0 { vec![] } else { id.to_be_bytes().to_vec() };
    let size = u8::try_from(properties.len()).unwrap();
    let body = [&length, topic.as_bytes(), &id, &[size], properties, payload].concat();
    packet(first, &body)
}

/// Memory of this process that it shares with nobody, in kB.
pub(crate) fn private_kb() -> u64 {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let lines = text.lines().filter(|line| line.starts_with("Private_"));
    lines.map(|line| line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()).sum()
}
