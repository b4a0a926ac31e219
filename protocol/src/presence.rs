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
    /// Coordinates of the native services that run, sorted; when online.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<String>,
    /// How many more names and coordinates there are, left out to keep it small.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub omitted: u32,
    /// Where the local API listens; when online.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api: Option<Listening>,
    /// Why the gateway went offline, if it said so before it left. The last will does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<OfflineReason>,
}

/// Where the local API, and what is built on it, can be reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listening {
    /// Path of its Unix socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<String>,
    /// `ADDRESS:PORT` that it listens on with TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<String>,
    /// URL of the console, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub console: Option<String>,
}

/// Why a gateway goes offline on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OfflineReason {
    /// The agent ends; workloads keep running.
    Shutdown,
    /// The gateway is about to boot anew.
    Reboot,
}

/// Largest presence, in bytes: it is retained, and published at each connection.
pub const MAX_PRESENCE_BYTES: usize = 4 * 1024;

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
            services: Vec::new(),
            omitted: 0,
            api: None,
            reason: None,
        }
    }

    /// Offline, as said by who leaves on purpose.
    pub fn leaving(gateway: GatewayId, reason: OfflineReason) -> Self {
        Self { reason: Some(reason), ..Self::offline(gateway) }
    }

    /// Online, with the machine and what runs on it.
    pub fn online(gateway: GatewayId, machine: Machine, running: Vec<String>) -> Self {
        Self {
            schema: SCHEMA,
            gateway,
            state: PresenceState::Online,
            machine: Some(machine),
            running,
            ..Self::offline(gateway)
        }
    }

    /// As it is sent: JSON of at most `limit` bytes and of at most [`MAX_PRESENCE_BYTES`]. Of longer
    /// lists the ends are left out, and counted.
    pub fn encode(&self, limit: usize) -> Vec<u8> {
        let limit = limit.min(MAX_PRESENCE_BYTES);
        let json = |presence: &Self| {
            serde_json::to_vec(presence).expect("presence is plain text and lists")
        };
        let mut short = self.clone();
        loop {
            let bytes = json(&short);
            let longer = match short.running.len() >= short.services.len() {
                true => &mut short.running,
                false => &mut short.services,
            };
            if bytes.len() <= limit || longer.is_empty() {
                return bytes;
            }
            let keep = longer.len() * 3 / 4;
            short.omitted += u32::try_from(longer.len() - keep).unwrap_or(u32::MAX);
            longer.truncate(keep);
        }
    }
}

fn is_zero(value: &u32) -> bool {
    *value == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_presence_is_shortened_and_says_by_how_much() {
        let names = |kind: &str| (0..256).map(|n| format!("{kind}-{n:040}")).collect::<Vec<_>>();
        let mut presence = Presence::online(GatewayId::random(), Machine::default(), names("w"));
        presence.services = names("s");
        for limit in [usize::MAX, 1000] {
            let bytes = presence.encode(limit);
            assert!(bytes.len() <= limit.min(MAX_PRESENCE_BYTES));
            let read: Presence = serde_json::from_slice(&bytes).unwrap();
            assert_eq!(read.running.len() + read.services.len() + read.omitted as usize, 512);
            assert_eq!(read.running[..], presence.running[..read.running.len()]);
        }
        presence.running.truncate(3);
        presence.services.clear();
        assert_eq!(serde_json::from_slice::<Presence>(&presence.encode(4096)).unwrap(), presence);
    }
}
