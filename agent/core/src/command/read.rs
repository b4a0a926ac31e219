//! Reads a command: first what every version says of one, so that even what is not understood gets
//! its answer, then what is to be done.

use coracle_protocol::command::Action;
use coracle_protocol::desired::SCHEMA;
use coracle_protocol::{CommandId, GatewayId, Timestamp};
use serde::Deserialize;
use serde_json::Value;

use super::{End, Kind, kind_of};

/// Longest part of what somebody sent that is kept, in characters.
const SHOWN: usize = 80;

/// A command that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrived {
    /// Which.
    pub id: CommandId,
    /// For whom.
    pub gateway: GatewayId,
    /// When it is too late for it.
    pub expires_at: Timestamp,
    /// What is to be done; or why it is not, whatever else holds.
    pub action: Result<Action, End>,
    /// What kind it said to be.
    said: String,
}

impl Arrived {
    pub(super) fn kind(&self) -> Kind {
        match &self.action {
            Ok(action) => kind_of(action),
            Err(_) => Kind { kind: self.said.clone(), ..Kind::default() },
        }
    }
}

/// What came cannot be answered: it is no command, or not for this gateway.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotForUs {
    /// It says neither which command it is nor for whom.
    #[error("it is no command: {0}")]
    NoCommand(String),
    /// It is for another gateway.
    #[error("it is for gateway {0}")]
    Other(GatewayId),
}

#[derive(Deserialize)]
struct Frame {
    schema: u32,
    id: CommandId,
    gateway: GatewayId,
    expires_at: Timestamp,
    #[serde(default)]
    action: Value,
}

/// Reads the document inside a signed command.
///
/// # Errors
/// It is not for this gateway, or so far from a command that nobody could be answered.
pub fn read(document: &[u8], gateway: GatewayId) -> Result<Arrived, NotForUs> {
    let frame: Frame = serde_json::from_slice(document)
        .map_err(|error| NotForUs::NoCommand(shown(&error.to_string())))?;
    if frame.gateway != gateway || gateway.is_nil() {
        return Err(NotForUs::Other(frame.gateway));
    }
    let said = frame.action.get("kind").and_then(Value::as_str).unwrap_or_default();
    let said = shown(said);
    let action = match frame.schema {
        SCHEMA if Action::KINDS.contains(&said.as_str()) => serde_json::from_value(frame.action)
            .map_err(|error| {
                End::rejected("malformed", format!("{said}: {}", shown(&error.to_string())))
            }),
        SCHEMA => {
            Err(End::rejected("unknown-kind", format!("this version knows no command {said:?}")))
        }
        other => {
            let message = format!("this version knows no commands of schema {other}");
            Err(End::rejected("unknown-schema", message))
        }
    };
    let Frame { id, gateway, expires_at, .. } = frame;
    Ok(Arrived { id, gateway, expires_at, action, said })
}

fn shown(text: &str) -> String {
    text.chars().take(SHOWN).collect()
}
