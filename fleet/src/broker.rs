//! One connection to the broker, for one command: connect, subscribe, publish, listen.
//!
//! The only user of the MQTT client here. Nothing is tried again: a person or a script is there
//! to do so. Deliberately not here: what the messages mean.

use std::collections::VecDeque;
use std::path::Path;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use coracle_protocol::limits::MAX_PACKET_BYTES;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{
    ConnectProperties, Filter, Packet, PubAckReason, Publish, PublishProperties,
    SubscribeReasonCode,
};
use rumqttc::v5::{AsyncClient, ConnectionError, Event, EventLoop, MqttOptions, StateError};
use rumqttc::{TlsConfiguration, TlsError, Transport};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::time::timeout;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// One and a half keep-alives: a broker that is there says something meanwhile.
const SILENCE: Duration = Duration::from_secs(30);
/// How long one subscription or publish may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);
const DEFAULT_PORT: u16 = 8883;

/// `HOST`, `HOST:PORT`, or an IPv6 address in brackets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    host: String,
    port: u16,
}

impl FromStr for Address {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']').context("a `]` is missing")?;
                (
                    host,
                    if port.is_empty() {
                        None
                    } else {
                        Some(port.strip_prefix(':').unwrap_or(port))
                    },
                )
            }
            None => match text.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            },
        };
        if host.is_empty() {
            bail!("the host is missing");
        }
        let port = match port {
            None => DEFAULT_PORT,
            Some(port) => port.parse().ok().filter(|port| *port != 0).with_context(|| {
                format!("{port:?} is not a port; an IPv6 address is written in brackets")
            })?,
        };
        Ok(Self { host: host.into(), port })
    }
}

/// Where the broker is, and how to be known there.
#[derive(Debug, Args)]
pub(crate) struct BrokerArgs {
    /// The broker; the port is 8883 unless given
    #[arg(long, value_name = "HOST[:PORT]")]
    broker: Address,
    /// Certificates of the authorities that vouch for the broker, PEM
    #[arg(long, value_name = "FILE")]
    ca: PathBuf,
    /// Our certificate chain, PEM
    #[arg(long, value_name = "FILE")]
    cert: PathBuf,
    /// Our private key, PEM
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
}

/// A message from the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) topic: String,
    pub(crate) payload: Vec<u8>,
    /// The broker had kept it from before.
    pub(crate) retained: bool,
}

/// A message to the broker.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Outgoing<'a> {
    pub(crate) topic: &'a str,
    pub(crate) payload: &'a [u8],
    pub(crate) retain: bool,
    /// Where an answer is wanted; MQTT 5.0 section 3.3.2.3.5.
    pub(crate) response_topic: Option<&'a str>,
    /// Seconds after which the broker need not deliver it any more.
    pub(crate) expiry_seconds: Option<u32>,
}

/// A connection to the broker.
pub(crate) struct Broker {
    client: AsyncClient,
    eventloop: EventLoop,
    name: String,
    messages: VecDeque<Message>,
    packet_limit: usize,
}

impl Broker {
    /// Connects.
    ///
    /// # Errors
    /// The files cannot be used, or the broker cannot be reached or refuses.
    pub(crate) async fn connect(args: &BrokerArgs) -> anyhow::Result<Self> {
        let BrokerArgs { broker: Address { host, port }, ca, cert, key } = args;
        let tls = tls(ca, cert, key)?;
        let mut properties = ConnectProperties::new();
        properties.max_packet_size = u32::try_from(MAX_PACKET_BYTES).ok();
        let mut id = [0; 8];
        ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut id)
            .map_err(|_| anyhow!("the system has no randomness to give"))?;
        let id = format!("coracle-fleet-{:016x}", u64::from_le_bytes(id));
        let mut options = MqttOptions::new(id, host, *port);
        options
            .set_transport(Transport::Tls(TlsConfiguration::Rustls(tls)))
            .set_keep_alive(KEEP_ALIVE)
            .set_clean_start(true)
            .set_connect_properties(properties)
            .set_connection_timeout(CONNECT_TIMEOUT.as_secs())
            .set_outgoing_inflight_upper_limit(16);
        let (client, eventloop) = AsyncClient::new(options, 8);
        let name = format!("{host}:{port}");
        let (messages, packet_limit) = (VecDeque::new(), usize::MAX);
        let mut broker = Self { client, eventloop, name, messages, packet_limit };
        loop {
            if let Packet::ConnAck(connack) = broker.next().await? {
                let limit = connack.properties.and_then(|p| p.max_packet_size);
                broker.packet_limit = limit.map_or(usize::MAX, |limit| limit as usize);
                return Ok(broker);
            }
        }
    }

    /// Listens to messages on `topics`.
    pub(crate) async fn subscribe(&mut self, topics: &[String]) -> anyhow::Result<()> {
        let filter = |topic: &String| Filter::new(topic.clone(), QoS::AtLeastOnce);
        self.client.try_subscribe_many(topics.iter().map(filter))?;
        let answer = async {
            loop {
                if let Packet::SubAck(suback) = self.next().await? {
                    return anyhow::Ok(suback.return_codes);
                }
            }
        };
        let answer = timeout(ANSWER_TIMEOUT, answer).await;
        let codes = answer.map_err(|_| no_answer("a subscription"))??;
        for (at, topic) in topics.iter().enumerate() {
            match codes.get(at) {
                Some(SubscribeReasonCode::Success(_)) => {}
                code => bail!("the broker refused the subscription to {topic}: {code:?}"),
            }
        }
        Ok(())
    }

    /// Publishes a message and waits until the broker has it; the broker's reason if it refuses.
    pub(crate) async fn publish(
        &mut self,
        message: &Outgoing<'_>,
    ) -> anyhow::Result<Result<(), String>> {
        let properties = PublishProperties {
            response_topic: message.response_topic.map(Into::into),
            message_expiry_interval: message.expiry_seconds,
            ..PublishProperties::default()
        };
        let Outgoing { topic, payload, retain, .. } = *message;
        let packet = Publish::new(topic, QoS::AtLeastOnce, payload.to_vec(), Some(properties));
        // The packet id's two bytes are not counted yet.
        let (size, limit) = (packet.size() + 2, self.packet_limit);
        if size > limit {
            return Ok(Err(format!("a packet of {size} bytes; it takes at most {limit}")));
        }
        let properties = packet.properties.unwrap_or_default();
        self.client.try_publish_with_properties(
            topic,
            QoS::AtLeastOnce,
            retain,
            packet.payload,
            properties,
        )?;
        let answer = async {
            loop {
                if let Packet::PubAck(puback) = self.next().await? {
                    return anyhow::Ok(puback.reason);
                }
            }
        };
        let answer = timeout(ANSWER_TIMEOUT, answer).await;
        Ok(match answer.map_err(|_| no_answer("a publish"))?? {
            PubAckReason::Success | PubAckReason::NoMatchingSubscribers => Ok(()),
            reason => Err(format!("{reason:?}")),
        })
    }

    /// Returns as soon as there is at least one message to take. Safe to cancel.
    pub(crate) async fn wait_for_messages(&mut self) -> anyhow::Result<()> {
        while self.messages.is_empty() {
            self.next().await?;
        }
        Ok(())
    }

    /// The messages since the last call.
    pub(crate) fn take_messages(&mut self) -> VecDeque<Message> {
        std::mem::take(&mut self.messages)
    }

    /// Disconnects; everything that matters was acknowledged before.
    pub(crate) async fn leave(mut self) {
        if self.client.try_disconnect().is_ok() {
            let left = async {
                loop {
                    match self.eventloop.poll().await {
                        Ok(Event::Outgoing(rumqttc::Outgoing::Disconnect)) | Err(_) => return,
                        Ok(_) => {}
                    }
                }
            };
            timeout(LEAVE_TIMEOUT, left).await.unwrap_or_default();
        }
    }

    async fn next(&mut self) -> anyhow::Result<Packet> {
        loop {
            let silence = SILENCE.max(CONNECT_TIMEOUT);
            let event = match timeout(silence, self.eventloop.poll()).await {
                Ok(event) => event.map_err(|error| self.describe(error))?,
                Err(_) => bail!("the broker {} does not answer", self.name),
            };
            match event {
                Event::Incoming(packet) => {
                    if let Packet::Publish(publish) = &packet {
                        let topic = String::from_utf8_lossy(&publish.topic).into_owned();
                        let (payload, retained) = (publish.payload.to_vec(), publish.retain);
                        self.messages.push_back(Message { topic, payload, retained });
                    }
                    return Ok(packet);
                }
                Event::Outgoing(_) => {}
            }
        }
    }

    fn describe(&self, error: ConnectionError) -> anyhow::Error {
        let broker = &self.name;
        match error {
            ConnectionError::Timeout(_) => anyhow!("the broker {broker} does not answer"),
            ConnectionError::ConnectionRefused(code) => {
                anyhow!("the broker {broker} refused the connection: {code:?}")
            }
            ConnectionError::MqttState(StateError::ConnectionAborted) => {
                anyhow!("the broker {broker} closed the connection")
            }
            ConnectionError::MqttState(StateError::ServerDisconnect { reason_code, .. }) => {
                anyhow!("the broker {broker} closed the connection: {reason_code:?}")
            }
            ConnectionError::Io(error)
            | ConnectionError::Tls(TlsError::Io(error))
            | ConnectionError::MqttState(
                StateError::Io(error)
                | StateError::Deserialization(rumqttc::v5::mqttbytes::Error::Io(error)),
            ) => anyhow::Error::new(error).context(format!("no connection to the broker {broker}")),
            other => anyhow!("no connection to the broker {broker}: {other}"),
        }
    }
}

fn no_answer(what: &str) -> anyhow::Error {
    anyhow!("the broker did not answer {what} within {} s", ANSWER_TIMEOUT.as_secs())
}

fn tls(ca: &Path, cert: &Path, key: &Path) -> anyhow::Result<Arc<ClientConfig>> {
    let mut authorities = RootCertStore::empty();
    for certificate in certificates(ca)? {
        authorities
            .add(certificate)
            .with_context(|| format!("{} cannot be used as an authority", ca.display()))?;
    }
    let chain = certificates(cert)?;
    let private =
        PrivateKeyDer::from_pem_file(key).map_err(|error| unusable(key, "private key", error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(authorities)
        .with_client_auth_cert(chain, private)
        .with_context(|| {
            format!("{} and {} cannot be used together", cert.display(), key.display())
        })?;
    Ok(Arc::new(config))
}

fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let unusable = |error| unusable(path, "certificate", error);
    let chain = CertificateDer::pem_file_iter(path).map_err(unusable)?;
    let chain: Vec<_> = chain.collect::<Result<_, _>>().map_err(unusable)?;
    if chain.is_empty() {
        return Err(unusable(rustls_pki_types::pem::Error::NoItemsFound));
    }
    Ok(chain)
}

/// Says nothing of the content: it may be a key.
fn unusable(path: &Path, what: &str, error: rustls_pki_types::pem::Error) -> anyhow::Error {
    match error {
        rustls_pki_types::pem::Error::Io(error) => {
            anyhow::Error::new(error).context(format!("cannot read {}", path.display()))
        }
        _ => anyhow!("{} holds no usable {what} in PEM", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_a_port_or_get_the_usual_one() {
        for (text, host, port) in [
            ("broker.example.com", "broker.example.com", 8883),
            ("127.0.0.1:1234", "127.0.0.1", 1234),
            ("[::1]:1234", "::1", 1234),
            ("[::1]", "::1", 8883),
        ] {
            assert_eq!(text.parse::<Address>().unwrap(), Address { host: host.into(), port });
        }
        for bad in ["", ":1", "host:", "host:0", "host:70000", "::1", "[::1", "host:1:2"] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }
}
