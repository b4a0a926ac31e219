//! Identity of a gateway on the wire.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The id of one gateway: a UUID, written in lower case with hyphens (RFC 9562).
///
/// It is the MQTT client id, the common name of the gateway's certificate and a topic level.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct GatewayId(
    #[cfg_attr(feature = "schema", schemars(with = "String", extend("format" = "uuid")))] Uuid,
);

/// The text is not a UUID.
#[derive(Debug, thiserror::Error)]
#[error("gateway id {text:?} is not a UUID such as 3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11")]
pub struct InvalidGatewayId {
    text: String,
}

impl GatewayId {
    /// Wraps a UUID.
    pub fn new(uuid: Uuid) -> Self {
        Self(uuid)
    }

    /// The id of a gateway that has none yet. No order can be for it.
    pub fn nil() -> Self {
        Self(Uuid::nil())
    }

    /// Whether this is [`GatewayId::nil`].
    pub fn is_nil(self) -> bool {
        self.0.is_nil()
    }

    /// A fresh random id.
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }
}

impl FromStr for GatewayId {
    type Err = InvalidGatewayId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // Only the hyphenated form: one gateway has one spelling, and so one topic.
        match Uuid::try_parse(text) {
            Ok(uuid) if text.len() == 36 && !uuid.is_nil() => Ok(Self(uuid)),
            _ => Err(InvalidGatewayId { text: text.chars().take(64).collect() }),
        }
    }
}

impl fmt::Display for GatewayId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl fmt::Debug for GatewayId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
