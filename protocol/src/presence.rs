//! Presence: whether a gateway is there, retained on its status topic and set to offline by the
//! broker (last will) when the connection is lost.

use serde::{Deserialize, Serialize};

use crate::desired::SCHEMA;
use crate::id::GatewayId;

/// A gateway's presence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Presence {
    /// Major version of this document: 1.
    pub schema: u32,
    /// Whose.
    pub gateway: GatewayId,
    /// Whether the gateway is connected.
    pub state: PresenceState,
    /// The machine, when online; the last will does not carry it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<Machine>,
    /// Names of the workloads that run, sorted; when online.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub running: Vec<String>,
}

/// Whether a gateway is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PresenceState {
    /// Connected to the broker.
    Online,
    /// Not connected: said by the last will, or by the agent before it leaves.
    Offline,
}

/// What a gateway is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Version of the agent, `X.Y.Z`.
    pub agent: String,
    /// Architecture in the OCI's words, such as `arm64`.
    pub architecture: String,
    /// Kernel release.
    pub kernel: String,
    /// `PRETTY_NAME` of os-release.
    pub os: String,
    /// Host name.
    pub hostname: String,
    /// Random for each boot of the machine; with the report's sequence it orders reports.
    pub boot_id: String,
}

impl Presence {
    /// The last will: offline, nothing else.
    pub fn offline(gateway: GatewayId) -> Self {
        Self {
            schema: SCHEMA,
            gateway,
            state: PresenceState::Offline,
            machine: None,
            running: Vec::new(),
        }
    }

    /// Online, with the machine and what runs on it.
    pub fn online(gateway: GatewayId, machine: Machine, running: Vec<String>) -> Self {
        Self {
            schema: SCHEMA,
            gateway,
            state: PresenceState::Online,
            machine: Some(machine),
            running,
        }
    }
}
