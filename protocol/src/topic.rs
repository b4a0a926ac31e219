//! MQTT topics. The only place that spells them.
//!
//! `coracle/SCHEMA/GATEWAY/KIND`: the major schema version is a topic level, so that a fleet can
//! serve old and new agents side by side.
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
}

impl Kind {
    const ALL: [Kind; 3] = [Kind::Desired, Kind::Reported, Kind::Status];

    fn level(self) -> &'static str {
        match self {
            Kind::Desired => "desired",
            Kind::Reported => "reported",
            Kind::Status => "status",
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
