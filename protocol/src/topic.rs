//! MQTT topics. The only place that spells them.
//!
//! `coracle/SCHEMA/GATEWAY/KIND`: the major schema version is a topic level, so that a fleet can
//! serve old and new agents side by side. A command may ask for its results one level deeper:
//! `coracle/SCHEMA/GATEWAY/results/WORD`.
//!
//! ```
//! use coracle_protocol::topic::{Kind, Topic};
//! let gateway = "3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11".parse().unwrap();
//! let topic = Topic::new(gateway, Kind::Desired);
//! assert_eq!(topic.to_string(), "coracle/1/3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11/desired");
//! assert_eq!(topic.to_string().parse::<Topic>().unwrap(), topic);
//! ```

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::id::GatewayId;

/// First level of every topic.
pub const ROOT: &str = "coracle";

/// What flows over a topic of a gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Fleet to gateway: the newest signed order, retained, QoS 1.
    Desired,
    /// Gateway to fleet: the newest reported state, QoS 1.
    Reported,
    /// Gateway to fleet: presence, retained; the last will says offline.
    Status,
    /// Fleet to gateway: signed commands, QoS 1.
    Commands,
    /// Fleet to gateway: what the fleet holds and need not be sent again, QoS 1.
    Receipts,
    /// Fleet to gateway: pieces of an order that is larger than a packet, QoS 1.
    Chunks,
    /// Gateway to fleet: what became of commands, QoS 1.
    Results,
    /// Gateway to fleet: what commands give, in pieces, QoS 1.
    Output,
    /// Gateway to fleet: what happened, QoS 1.
    Events,
    /// Gateway to fleet: health; JSON with QoS 1 on change and on demand, postcard with QoS 0 at
    /// intervals.
    Health,
    /// Gateway to fleet: what the gateway wants to have, QoS 1.
    Requests,
}

impl Kind {
    const ALL: [Kind; 11] = [
        Kind::Desired,
        Kind::Reported,
        Kind::Status,
        Kind::Commands,
        Kind::Receipts,
        Kind::Chunks,
        Kind::Results,
        Kind::Output,
        Kind::Events,
        Kind::Health,
        Kind::Requests,
    ];

    /// What a gateway subscribes to, in one packet.
    pub const TO_GATEWAY: [Kind; 4] = [Kind::Desired, Kind::Commands, Kind::Receipts, Kind::Chunks];

    fn level(self) -> &'static str {
        match self {
            Kind::Desired => "desired",
            Kind::Reported => "reported",
            Kind::Status => "status",
            Kind::Commands => "commands",
            Kind::Receipts => "receipts",
            Kind::Chunks => "chunks",
            Kind::Results => "results",
            Kind::Output => "output",
            Kind::Events => "events",
            Kind::Health => "health",
            Kind::Requests => "requests",
        }
    }
}

/// One topic of one gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Topic {
    /// Whose.
    pub gateway: GatewayId,
    /// Which.
    pub kind: Kind,
}

/// The text is not a topic of this protocol version.
#[derive(Debug, thiserror::Error)]
#[error("topic {topic:?} is not of the form coracle/1/GATEWAY/KIND")]
pub struct UnknownTopic {
    topic: String,
}

impl Topic {
    /// The topic of `kind` for `gateway`.
    pub fn new(gateway: GatewayId, kind: Kind) -> Self {
        Self { gateway, kind }
    }
}

/// Longest word that may follow the topic of results, in characters.
const MAX_WORD: usize = 64;

/// Where a command asked for its results: the word that follows the topic of the gateway's results,
/// up to 64 small letters, digits and hyphens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplyWord(String);

impl ReplyWord {
    /// The word of a response topic (MQTT 5.0 section 3.3.2.3.5); `None` where the topic is not one of
    /// the gateway's own results, so that nobody can make it publish elsewhere.
    pub fn of_response_topic(topic: &str, gateway: GatewayId) -> Option<Self> {
        let own = Topic::new(gateway, Kind::Results).to_string();
        let word = topic.strip_prefix(&own)?.strip_prefix('/')?;
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let good = (1..=MAX_WORD).contains(&word.len()) && word.bytes().all(fits);
        good.then(|| Self(word.to_owned()))
    }

    /// The topic that it stands for.
    pub fn topic(&self, gateway: GatewayId) -> String {
        format!("{}/{}", Topic::new(gateway, Kind::Results), self.0)
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{ROOT}/{}/{}/{}", crate::desired::SCHEMA, self.gateway, self.kind.level())
    }
}

impl FromStr for Topic {
    type Err = UnknownTopic;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = || UnknownTopic { topic: text.chars().take(256).collect() };
        let mut levels = text.split('/');
        let (Some(ROOT), Some("1"), Some(gateway), Some(kind), None) =
            (levels.next(), levels.next(), levels.next(), levels.next(), levels.next())
        else {
            return Err(unknown());
        };
        let kind = Kind::ALL.into_iter().find(|k| k.level() == kind).ok_or_else(unknown)?;
        Ok(Self::new(gateway.parse().map_err(|_| unknown())?, kind))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_read_as_it_is_written() {
        let id = "3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11".parse().unwrap();
        for kind in Kind::ALL {
            let topic = Topic::new(id, kind);
            assert_eq!(topic.to_string().parse::<Topic>().unwrap(), topic);
        }
    }

    #[test]
    fn results_are_wanted_on_the_gateways_own_topics_only() {
        let id = "3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11".parse().unwrap();
        let own = format!("coracle/1/{id}/results");
        let word = ReplyWord::of_response_topic(&format!("{own}/desk-7"), id).unwrap();
        assert_eq!(word.topic(id), format!("{own}/desk-7"));
        for bad in [
            own.clone(),
            format!("{own}/"),
            format!("{own}/a/b"),
            format!("{own}/+"),
            format!("{own}/{}", "a".repeat(65)),
            format!("coracle/1/{}/results/a", GatewayId::random()),
            format!("coracle/1/{id}/desired/a"),
        ] {
            assert_eq!(ReplyWord::of_response_topic(&bad, id), None, "{bad}");
        }
    }

    #[test]
    fn refuses_other_versions_and_kinds() {
        let id = "3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11";
        for bad in [
            format!("coracle/2/{id}/desired"),
            format!("coracle/1/{id}/desired/more"),
            format!("coracle/1/{id}/other"),
            "coracle/1/+/desired".into(),
            String::new(),
        ] {
            assert!(bad.parse::<Topic>().is_err(), "{bad}");
        }
    }
}
