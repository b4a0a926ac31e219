//! Brokers of several makes and releases behind one interface, for the matrix of
//! `docs/brokers.md`. In: a make, an authority, who may come. Out: a TLS port on which a client's
//! user name is its certificate's common name; a hand on the plug.
//!
//! Deliberately not here: a back door. What a test has to say as the fleet it says as a client
//! named [`FLEET`](crate::broker::FLEET), as a fleet does.

use crate::Result;
use crate::broker::Broker;
use crate::pki::Pki;
use crate::place::Place;
use crate::rabbitmq::RabbitMq;

/// Which broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Make {
    /// The installed mosquitto.
    Mosquitto,
    /// mosquitto 2.0 of a later release of the distribution.
    Mosquitto20,
    /// The same with `per_listener_settings`.
    Mosquitto20PerListener,
    /// mosquitto 2.1.
    Mosquitto21,
    /// RabbitMQ 4.0.
    RabbitMq40,
}

/// What a broker is asked for.
#[derive(Debug, Clone, Default)]
pub struct Terms {
    /// The common names of the gateways that may come.
    pub gateways: Vec<String>,
    /// Largest packet that it takes, in bytes; its own default if none.
    pub packet_limit: Option<u32>,
}

/// A running broker; ended when dropped.
#[derive(Debug)]
pub enum AnyBroker {
    /// mosquitto.
    Mosquitto(Broker),
    /// RabbitMQ.
    RabbitMq(RabbitMq),
}

impl AnyBroker {
    /// Starts one and waits until it answers.
    pub fn start(make: Make, place: &Place, pki: &Pki, terms: &Terms) -> Result<Self> {
        let lines = terms.packet_limit.map(|bytes| format!("max_packet_size {bytes}"));
        let lines = lines.unwrap_or_default();
        let release =
            |name, lines: &str| Broker::start_release(place, pki, name, lines).map(Self::Mosquitto);
        match make {
            Make::Mosquitto => {
                let rules = crate::broker::GATEWAY_RULES;
                Broker::start_with(place, pki, rules, &lines).map(Self::Mosquitto)
            }
            Make::Mosquitto20 => release("mosquitto-2.0", &lines),
            Make::Mosquitto20PerListener => {
                release("mosquitto-2.0", &format!("per_listener_settings true\n{lines}"))
            }
            Make::Mosquitto21 => release("mosquitto-2.1", &lines),
            Make::RabbitMq40 => {
                let (gateways, limit) = (&terms.gateways, terms.packet_limit);
                RabbitMq::start(place, pki, "rabbitmq-4.0", gateways, limit).map(Self::RabbitMq)
            }
        }
    }

    /// The TLS port on 127.0.0.1 (also `localhost` in its certificate).
    pub fn port(&self) -> u16 {
        match self {
            Self::Mosquitto(broker) => broker.port(),
            Self::RabbitMq(broker) => broker.port(),
        }
    }

    /// Its log.
    pub fn log(&self) -> String {
        match self {
            Self::Mosquitto(broker) => broker.log(),
            Self::RabbitMq(broker) => broker.log(),
        }
    }

    /// Orderly stop. Connections are then refused.
    pub fn stop(&mut self) -> Result<()> {
        match self {
            Self::Mosquitto(broker) => broker.stop(),
            Self::RabbitMq(broker) => broker.stop(),
        }
    }

    /// SIGKILL: what it had not saved is lost.
    pub fn kill(&mut self) -> Result<()> {
        match self {
            Self::Mosquitto(broker) => broker.kill(),
            Self::RabbitMq(broker) => broker.kill(),
        }
    }

    /// Throws away what it had saved: sessions and retained messages. It must not run.
    pub fn forget(&self) -> Result<()> {
        match self {
            Self::Mosquitto(broker) => broker.forget(),
            Self::RabbitMq(broker) => broker.forget(),
        }
    }

    /// Starts it again on the same port, with what it has saved.
    pub fn start_again(&mut self) -> Result<()> {
        match self {
            Self::Mosquitto(broker) => broker.start_again(),
            Self::RabbitMq(broker) => broker.start_again(),
        }
    }
}
