//! A small MQTT 5 client, packet by packet (MQTT 5.0, OASIS standard): the fleet, and gateways that
//! try what they may not. It sends what it is told and judges nothing.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coracle_testbed::Pki;
use coracle_testbed::pki::Identity;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};

const SOON: Duration = Duration::from_secs(20);

/// A message that came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) topic: String,
    pub(crate) payload: Vec<u8>,
    pub(crate) retained: bool,
    pub(crate) correlation: Vec<u8>,
}

/// What goes beside a message.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Beside<'a> {
    pub(crate) response_topic: Option<&'a str>,
    pub(crate) correlation: &'a [u8],
}

/// What a client was told when it came.
#[derive(Clone, Debug, Default)]
pub(crate) struct Welcome {
    pub(crate) reason: u8,
    /// Properties of one value, by their numbers (section 2.2.2.2).
    pub(crate) properties: Vec<(u8, u32)>,
}

/// The connection is closed, by a DISCONNECT with this reason if there was one.
#[derive(Debug)]
pub(crate) struct Closed(pub(crate) Option<u8>);

pub(crate) struct Client {
    stream: StreamOwned<ClientConnection, TcpStream>,
    unread: Vec<u8>,
    messages: Vec<Message>,
    packets: u16,
    pub(crate) welcome: Welcome,
}

impl Client {
    /// Comes with the certificate of `name`, under the client id `client_id`; a session of before
    /// is thrown away.
    pub(crate) fn connect(
        pki: &Pki,
        port: u16,
        name: &str,
        client_id: &str,
    ) -> Result<Self, Closed> {
        Self::connect_with_will(pki, port, name, client_id, None)
    }

    /// The same, with a retained will of QoS 1 on this topic, which is said a second after the
    /// connection is lost (section 3.1.3.2.2).
    pub(crate) fn connect_with_will(
        pki: &Pki,
        port: u16,
        name: &str,
        client_id: &str,
        will: Option<&str>,
    ) -> Result<Self, Closed> {
        let mut stream = connect_tls(pki, port, &pki.client(name).unwrap());
        let flags = if will.is_some() { 0b0010_1110 } else { 2 };
        // MQTT 5, clean start, keep-alive 60 s, session expiry 60 s.
        let mut body = vec![0, 4, b'M', b'Q', b'T', b'T', 5, flags, 0, 60, 5, 0x11, 0, 0, 0, 60];
        text(&mut body, client_id);
        if let Some(topic) = will {
            body.extend([5, 0x18, 0, 0, 0, 1]);
            text(&mut body, topic);
            text(&mut body, "will");
        }
        stream.write_all(&frame(0x10, &body)).map_err(|_| Closed(None))?;
        let mut client = Self {
            stream,
            unread: Vec::new(),
            messages: Vec::new(),
            packets: 0,
            welcome: Welcome::default(),
        };
        let (_, body) = client.expect(2)?;
        client.welcome = welcome(&body);
        if client.welcome.reason != 0 {
            return Err(Closed(Some(client.welcome.reason)));
        }
        Ok(client)
    }

    /// Asks for the messages of a filter with QoS 1: the broker's answer.
    pub(crate) fn subscribe(&mut self, filter: &str) -> Result<u8, Closed> {
        let mut body = self.packet().to_be_bytes().to_vec();
        body.push(0);
        text(&mut body, filter);
        body.push(1);
        self.send(0x82, &body)?;
        let (_, body) = self.expect(9)?;
        Ok(*body.last().unwrap())
    }

    /// Publishes with QoS 1: the broker's answer, 0 or 0x10 if it took it.
    pub(crate) fn publish(
        &mut self,
        topic: &str,
        payload: &[u8],
        retain: bool,
        beside: Beside<'_>,
    ) -> Result<u8, Closed> {
        let mut body = Vec::new();
        text(&mut body, topic);
        body.extend(self.packet().to_be_bytes());
        let mut properties = Vec::new();
        if let Some(topic) = beside.response_topic {
            properties.push(8);
            text(&mut properties, topic);
        }
        if !beside.correlation.is_empty() {
            properties.push(9);
            properties.extend(u16::try_from(beside.correlation.len()).unwrap().to_be_bytes());
            properties.extend(beside.correlation);
        }
        body.extend(length(properties.len()));
        body.extend(properties);
        body.extend(payload);
        self.send(if retain { 0x33 } else { 0x32 }, &body)?;
        let (_, body) = self.expect(4)?;
        Ok(body.get(2).copied().unwrap_or(0))
    }

    /// The first message that `wanted` accepts, of those before and after this call.
    pub(crate) fn wait(&mut self, what: &str, wanted: impl Fn(&Message) -> bool) -> Message {
        let end = Instant::now() + SOON;
        loop {
            if let Some(found) = self.messages.iter().find(|message| wanted(message)) {
                return found.clone();
            }
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "waited in vain for {what}; came: {:#?}", self.messages);
            match self.read(left) {
                Ok(Some((kind, body))) => self.took(kind, body),
                Ok(None) => {}
                Err(closed) => panic!("no {what}: {closed:?}; came: {:#?}", self.messages),
            }
        }
    }

    /// Every message that came; with a round trip first, so that those that were under way are in.
    pub(crate) fn messages(&mut self) -> Result<Vec<Message>, Closed> {
        self.send(0xc0, &[])?;
        self.expect(13)?;
        Ok(self.messages.clone())
    }

    /// Waits until the broker closes the connection.
    pub(crate) fn closed(&mut self) -> Closed {
        let end = Instant::now() + SOON;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "the connection stays open");
            match self.read(left) {
                Ok(Some((kind, body))) => self.took(kind, body),
                Ok(None) => {}
                Err(closed) => return closed,
            }
        }
    }

    fn packet(&mut self) -> u16 {
        self.packets += 1;
        self.packets
    }

    fn send(&mut self, first: u8, body: &[u8]) -> Result<(), Closed> {
        let sent = self.stream.write_all(&frame(first, body)).and_then(|()| self.stream.flush());
        // What was said before the connection was closed is still to be read.
        sent.map_err(|_| match self.read(Duration::from_secs(1)) {
            Err(closed) => closed,
            Ok(_) => Closed(None),
        })
    }

    /// The next packet of that type; messages meanwhile are kept.
    fn expect(&mut self, wanted: u8) -> Result<(u8, Vec<u8>), Closed> {
        let end = Instant::now() + SOON;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no packet of type {wanted} came");
            match self.read(left)? {
                Some((kind, body)) if kind >> 4 == wanted => return Ok((kind, body)),
                Some((kind, body)) => self.took(kind, body),
                None => {}
            }
        }
    }

    fn took(&mut self, kind: u8, body: Vec<u8>) {
        if kind >> 4 == 3 {
            let (message, packet) = message(kind, &body);
            self.messages.push(message);
            if let Some(packet) = packet {
                // An acknowledgement that cannot be sent is found out by the next reading.
                self.stream.write_all(&frame(0x40, &packet.to_be_bytes())).ok();
            }
        }
    }

    /// One packet, if one comes in time.
    fn read(&mut self, limit: Duration) -> Result<Option<(u8, Vec<u8>)>, Closed> {
        let end = Instant::now() + limit;
        loop {
            if let Some((kind, body)) = self.cut_packet() {
                if kind >> 4 == 14 {
                    return Err(Closed(Some(body.first().copied().unwrap_or(0))));
                }
                return Ok(Some((kind, body)));
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.stream.sock.set_read_timeout(Some(left)).unwrap();
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(Closed(None)),
                Ok(count) => self.unread.extend_from_slice(&buffer[..count]),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(_) => return Err(Closed(None)),
            }
        }
    }

    fn cut_packet(&mut self) -> Option<(u8, Vec<u8>)> {
        let first = *self.unread.first()?;
        let (bytes, taken) = number(self.unread.get(1..)?)?;
        let end = 1 + taken + bytes;
        let body = self.unread.get(1 + taken..end)?.to_vec();
        self.unread.drain(..end);
        Some((first, body))
    }
}

fn connect_tls(pki: &Pki, port: u16, own: &Identity) -> StreamOwned<ClientConnection, TcpStream> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(pki.ca()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain = CertificateDer::pem_file_iter(&own.cert).unwrap().map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_file(&own.key).unwrap();
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
    socket.set_nodelay(true).unwrap();
    StreamOwned::new(connection, socket)
}

fn frame(first: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    frame.extend(length(body.len()));
    frame.extend(body);
    frame
}

fn text(body: &mut Vec<u8>, text: &str) {
    body.extend(u16::try_from(text.len()).unwrap().to_be_bytes());
    body.extend(text.as_bytes());
}

/// A variable byte integer (section 1.5.5).
fn length(mut value: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = u8::try_from(value & 0x7f).unwrap();
        value >>= 7;
        bytes.push(if value == 0 { low } else { low | 0x80 });
        if value == 0 {
            return bytes;
        }
    }
}

/// The integer and how many bytes it takes; `None` while some are missing.
fn number(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut value = 0;
    for (at, byte) in bytes.iter().enumerate().take(4) {
        value |= usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Some((value, at + 1));
        }
    }
    None
}

fn message(first: u8, body: &[u8]) -> (Message, Option<u16>) {
    let two = |at: usize| u16::from_be_bytes([body[at], body[at + 1]]);
    let topic_end = 2 + usize::from(two(0));
    let topic = String::from_utf8(body[2..topic_end].to_vec()).unwrap();
    let acknowledged = first & 6 != 0;
    let packet = acknowledged.then(|| two(topic_end));
    let rest = &body[topic_end + if acknowledged { 2 } else { 0 }..];
    let (bytes, taken) = number(rest).unwrap();
    let correlation = correlation(&rest[taken..taken + bytes]);
    let payload = rest[taken + bytes..].to_vec();
    (Message { topic, payload, retained: first & 1 != 0, correlation }, packet)
}

/// The correlation data among a message's properties.
fn correlation(mut properties: &[u8]) -> Vec<u8> {
    let two = |at: &[u8]| usize::from(u16::from_be_bytes([at[0], at[1]]));
    while let Some((id, rest)) = properties.split_first() {
        let taken = match id {
            1 => 1,
            2 => 4,
            11 => number(rest).unwrap().1,
            35 => 2,
            9 => return rest[2..2 + two(rest)].to_vec(),
            38 => {
                let name = 2 + two(rest);
                name + 2 + two(&rest[name..])
            }
            _ => 2 + two(rest),
        };
        properties = &rest[taken..];
    }
    Vec::new()
}

fn welcome(body: &[u8]) -> Welcome {
    let (bytes, taken) = number(&body[2..]).unwrap();
    let mut rest = &body[2 + taken..2 + taken + bytes];
    let mut properties = Vec::new();
    while let Some((id, value)) = rest.split_first() {
        let size = match id {
            0x24 | 0x25 | 0x28 | 0x29 | 0x2a => 1,
            0x13 | 0x21 | 0x22 => 2,
            0x11 | 0x27 => 4,
            0x26 => {
                let name = 2 + usize::from(u16::from_be_bytes([value[0], value[1]]));
                let second = &value[name..];
                name + 2 + usize::from(u16::from_be_bytes([second[0], second[1]]))
            }
            _ => 2 + usize::from(u16::from_be_bytes([value[0], value[1]])),
        };
        if size <= 4 && matches!(id, 0x11 | 0x13 | 0x21 | 0x22 | 0x24..=0x2a) {
            let number = value[..size].iter().fold(0, |n, byte| n << 8 | u32::from(*byte));
            properties.push((*id, number));
        }
        rest = &value[size..];
    }
    Welcome { reason: body[1], properties }
}
