//! A broker with two gateways that may come, and the fleet.

use coracle::config::LinkConfig;
use coracle_protocol::GatewayId;
use coracle_protocol::topic::{Kind, Topic};
use coracle_testbed::broker::FLEET;
use coracle_testbed::brokers::Terms;
use coracle_testbed::{AnyBroker, Make, Pki, Place};

use crate::bed::{self, Gateway};
use crate::client::Client;

pub(crate) struct Site {
    pub(crate) broker: AnyBroker,
    pub(crate) pki: Pki,
    pub(crate) id: GatewayId,
    pub(crate) other: GatewayId,
    pub(crate) place: Place,
}

impl Site {
    pub(crate) fn new(make: Make) -> Self {
        Self::with_limit(make, None)
    }

    pub(crate) fn with_limit(make: Make, packet_limit: Option<u32>) -> Self {
        let (place, pki) = bed::place_and_pki();
        let (id, other) = (GatewayId::random(), GatewayId::random());
        let terms = Terms { gateways: vec![id.to_string(), other.to_string()], packet_limit };
        let broker = AnyBroker::start(make, &place, &pki, &terms).unwrap();
        Self { broker, pki, id, other, place }
    }

    pub(crate) fn topic(&self, kind: Kind) -> String {
        Topic::new(self.id, kind).to_string()
    }

    pub(crate) fn config(&self) -> LinkConfig {
        bed::config(&self.pki, self.id, self.broker.port())
    }

    pub(crate) fn gateway(&self) -> Gateway {
        Gateway::start(self.config(), self.id)
    }

    /// A client with the fleet's certificate.
    pub(crate) fn fleet(&self) -> Client {
        self.client(FLEET)
    }

    pub(crate) fn client(&self, name: &str) -> Client {
        Client::connect(&self.pki, self.broker.port(), name, name).unwrap()
    }

    /// Publishes one message as the fleet.
    pub(crate) fn say(&self, kind: Kind, payload: &[u8], retain: bool) {
        let code = self.fleet().publish(&self.topic(kind), payload, retain, Default::default());
        assert!(matches!(code, Ok(0 | 0x10)), "{code:?}");
    }

    /// What is retained on a topic, once `wanted` accepts it.
    pub(crate) fn retained(&self, topic: &str, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let found = coracle_testbed::wait_for("what is retained", 2 * bed::SOON, || {
            let mut fleet = self.fleet();
            fleet.subscribe(topic).unwrap();
            let mut messages = fleet.messages().unwrap().into_iter();
            messages.find(|m| m.retained && wanted(&m.payload)).map(|m| m.payload)
        });
        found.unwrap()
    }
}
