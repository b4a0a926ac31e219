//! Health, schema 1: how a gateway is, as JSON on change and on demand, and in a few bytes at
//! intervals.
//!
//! Both forms go over one topic. A document begins with `{`; a pulse with its version, 1. A fleet
//! that meets a pulse which names a document that it has not got asks for one.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::desired::SCHEMA;
use crate::id::GatewayId;
use crate::limits::MAX_REPORT_BYTES;
use crate::reported::{Condition, Phase};
use crate::time::Timestamp;

/// How a gateway is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Health {
    /// Major version of this document: 1.
    pub schema: u32,
    /// Whose.
    pub gateway: GatewayId,
    /// The kernel's boot id: random for each boot.
    pub boot_id: String,
    /// Rises with each document, also across restarts of the agent within one boot.
    pub sequence: u64,
    /// When, by the gateway's clock.
    pub at: Timestamp,
    /// Version of the agent, `X.Y.Z`.
    pub agent_version: String,
    /// Seconds since the gateway was started.
    pub uptime_seconds: u64,
    /// Named facts, sorted by name.
    pub conditions: Vec<Condition>,
    /// What was measured.
    pub numbers: Numbers,
    /// Network interfaces of the gateway, sorted by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    /// How the pods are attached, sorted by replica.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pods: Vec<PodLink>,
    /// How the ordered workloads are, sorted by name.
    pub workloads: Vec<WorkloadHealth>,
    /// What the link has carried today.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<LinkUse>,
    /// How many interfaces, pods and workloads were left out to keep to the packet's limit.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub omitted: u32,
}

/// What was measured. What this gateway cannot tell is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Numbers {
    /// Memory, in KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_total_kib: Option<u64>,
    /// Memory that could be had without swapping, in KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_available_kib: Option<u64>,
    /// The state directory's file system, in KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_total_kib: Option<u64>,
    /// What is free there, in KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_free_kib: Option<u64>,
    /// Inodes there; left out on a file system that has no fixed number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inodes_total: Option<u64>,
    /// Free inodes there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inodes_free: Option<u64>,
    /// Average of running and waiting processes over one minute, in hundredths.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_hundredths: Option<u32>,
    /// Processors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processors: Option<u32>,
    /// How busy all processors were since the numbers were read before, in percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_percent: Option<u8>,
    /// The hottest thermal zone, in tenths of a degree Celsius.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature_tenths: Option<i32>,
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address, such as `02:42:0a:58:00:01`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Its addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    /// Whether it is up and has a carrier.
    pub up: bool,
}

/// How a pod is attached to the gateway's network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PodLink {
    /// Which replica's, such as `web.0`.
    pub replica: String,
    /// The end of its veth on the gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// The hardware address of that end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface_mac: Option<String>,
    /// The hardware address of the pod's end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// The pod's addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
}

/// How a workload is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct WorkloadHealth {
    /// Its name.
    pub name: String,
    /// The worst of its replicas, in one word.
    pub phase: Phase,
    /// How many replicas there are.
    pub replicas: u32,
    /// How many of them can take work.
    pub ready: u32,
    /// Restarts of all of them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub restarts: u32,
}

/// What the link has carried on one day (UTC).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct LinkUse {
    /// The day: days since 1970-01-01 by the gateway's clock.
    pub day: u64,
    /// By kind.
    pub kinds: Vec<KindUse>,
}

/// What one kind of traffic has carried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct KindUse {
    /// `keep-alive`, `orders`, `reports`, `health`, `logs` or `images`.
    pub kind: String,
    /// Bytes to the network.
    pub sent: u64,
    /// Bytes from the network.
    pub received: u64,
    /// Most bytes that the gateway's policy allows it a day, both ways together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cap: Option<u64>,
}

impl Health {
    /// As it is sent: JSON of at most `limit` bytes, and of at most [`MAX_REPORT_BYTES`]. What does
    /// not fit is left out by rule and counted: sentences first, then pods, then interfaces, then
    /// workloads that are well, then the others from the end.
    pub fn encode(&self, limit: usize) -> Vec<u8> {
        let limit = limit.min(MAX_REPORT_BYTES);
        let mut short = self.clone();
        let left_out = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let steps: [&dyn Fn(&mut Health); 5] = [
            &|_| {},
            &|health| health.conditions.iter_mut().for_each(|c| c.message.clear()),
            &|health| {
                health.omitted += left_out(health.pods.len());
                health.pods.clear();
            },
            &|health| {
                health.omitted += left_out(health.interfaces.len());
                health.interfaces.clear();
            },
            &|health| {
                let before = health.workloads.len();
                health.workloads.retain(|workload| workload.phase != Phase::Converged);
                health.omitted += left_out(before - health.workloads.len());
            },
        ];
        for step in steps {
            step(&mut short);
            let whole = json(&short);
            if whole.len() <= limit {
                return whole;
            }
        }
        while json(&short).len() > limit && !short.workloads.is_empty() {
            let keep = short.workloads.len() / 2;
            short.omitted += left_out(short.workloads.len() - keep);
            short.workloads.truncate(keep);
        }
        json(&short)
    }
}

fn json(health: &Health) -> Vec<u8> {
    serde_json::to_vec(health).expect("health is plain structs, lists and text")
}

/// The first byte of a [`Pulse`].
pub const PULSE_VERSION: u8 = 1;

/// Longest pulse, in bytes, of a version that is known.
pub const MAX_PULSE_BYTES: usize = 100;

/// Names of the conditions that a pulse has a bit for, the lowest first. New ones go to the end; what
/// has no place here sets the highest bit.
pub const PULSE_CONDITIONS: [&str; 22] = [
    "orders",
    "containerd",
    "disk",
    "inodes",
    "memory",
    "temperature",
    "link",
    "store",
    "store-intact",
    "budget",
    "data",
    "identity",
    "trust",
    "policy",
    "kernel",
    "cgroups",
    "cni",
    "pods",
    "leftovers",
    "logs",
    "clock",
    "cpu",
];

/// The compact form: postcard (<https://postcard.jamesmunns.com/wire-format>) after one byte of
/// version. Fields may be added at the end: a reader passes over what follows those that it knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pulse {
    /// [`Health::sequence`] of the newest document that was sent; 0 before the first of this boot.
    pub health: u64,
    /// The beginning of the boot id's hexadecimal digits, as a number: which boot it is.
    pub boot: u32,
    /// Generation in force.
    pub generation: u64,
    /// Seconds since the gateway was started.
    pub uptime_seconds: u32,
    /// [`Numbers::memory_available_kib`] in MiB.
    pub memory_available_mib: u32,
    /// [`Numbers::disk_free_kib`] in MiB.
    pub disk_free_mib: u32,
    /// [`Numbers::load_hundredths`].
    pub load_hundredths: u32,
    /// [`Numbers::cpu_percent`].
    pub cpu_percent: u8,
    /// [`Numbers::temperature_tenths`].
    pub temperature_tenths: Option<i32>,
    /// Ordered workloads.
    pub workloads: u32,
    /// Those of them that are as ordered.
    pub converged: u32,
    /// Those of them that are degraded.
    pub degraded: u32,
    /// Restarts of all of them.
    pub restarts: u32,
    /// Which conditions are not good: see [`PULSE_CONDITIONS`].
    pub bad: u32,
}

/// Why a pulse cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPulse {
    /// It is of another version, or no pulse at all.
    #[error("the first byte is not that of a pulse of version {PULSE_VERSION}")]
    Version,
    /// It is longer than any, or ends too early, or is damaged.
    #[error("it is longer than a pulse may be, or not what its version says")]
    Malformed,
}

impl Pulse {
    /// As it is sent.
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_extend(self, vec![PULSE_VERSION])
            .expect("a pulse is a plain struct of known length")
    }

    /// Reads one.
    ///
    /// # Errors
    /// It is not one, or of a version that is not known.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadPulse> {
        if bytes.len() > MAX_PULSE_BYTES {
            return Err(BadPulse::Malformed);
        }
        match bytes.split_first() {
            Some((&PULSE_VERSION, rest)) => postcard::take_from_bytes(rest)
                .map(|(pulse, _)| pulse)
                .map_err(|_| BadPulse::Malformed),
            _ => Err(BadPulse::Version),
        }
    }

    /// The bit of a condition.
    pub fn bit(condition: &str) -> u32 {
        let place = PULSE_CONDITIONS.iter().position(|name| *name == condition);
        1 << place.unwrap_or(31)
    }

    /// The beginning of a boot id as a number; 0 where it has no hexadecimal digits.
    pub fn boot(boot_id: &str) -> u32 {
        boot_id.get(..8).and_then(|text| u32::from_str_radix(text, 16).ok()).unwrap_or(0)
    }
}

/// What came over the topic of health.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HealthMessage {
    /// A document.
    Health(Box<Health>),
    /// A pulse.
    Pulse(Pulse),
}

impl HealthMessage {
    /// Reads either form.
    ///
    /// # Errors
    /// It is neither, in words.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        if bytes.first() == Some(&b'{') {
            let health: Health = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
            return match health.schema {
                SCHEMA => Ok(Self::Health(Box::new(health))),
                other => Err(format!("health of schema {other}")),
            };
        }
        Pulse::decode(bytes).map(Self::Pulse).map_err(|error| error.to_string())
    }
}

fn is_zero(value: &u32) -> bool {
    *value == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pulse() -> Pulse {
        Pulse {
            health: 86_400_123,
            boot: 0x3f0c_52a4,
            generation: 7,
            uptime_seconds: 86_400,
            memory_available_mib: 412,
            disk_free_mib: 5123,
            load_hundredths: 37,
            cpu_percent: 12,
            temperature_tenths: Some(523),
            workloads: 5,
            converged: 4,
            degraded: 1,
            restarts: 3,
            bad: Pulse::bit("memory") | Pulse::bit("something-new"),
        }
    }

    #[test]
    fn a_pulse_stays_as_it_was_on_the_wire() {
        // Never to be changed: gateways in the field send this.
        let golden = [
            1, 251, 184, 153, 41, 164, 165, 177, 248, 3, 7, 128, 163, 5, 156, 3, 131, 40, 37, 12,
            1, 150, 8, 5, 4, 1, 3, 144, 128, 128, 128, 8,
        ];
        assert_eq!(pulse().encode(), golden);
        assert_eq!(Pulse::decode(&golden), Ok(pulse()));
        assert_eq!(HealthMessage::decode(&golden), Ok(HealthMessage::Pulse(pulse())));
    }

    #[test]
    fn a_pulse_is_small_whatever_is_in_it() {
        let u = u32::MAX;
        let largest = Pulse {
            health: u64::MAX,
            boot: u,
            generation: u64::MAX,
            uptime_seconds: u,
            memory_available_mib: u,
            disk_free_mib: u,
            load_hundredths: u,
            cpu_percent: u8::MAX,
            temperature_tenths: Some(i32::MIN),
            workloads: u,
            converged: u,
            degraded: u,
            restarts: u,
            bad: u,
        };
        assert!(largest.encode().len() <= MAX_PULSE_BYTES);
        assert!(pulse().encode().len() <= 40);
    }

    #[test]
    fn what_is_no_pulse_is_refused_and_what_follows_one_is_passed_over() {
        let mut newer = pulse().encode();
        newer.extend([1, 2, 3]);
        assert_eq!(Pulse::decode(&newer), Ok(pulse()));
        assert_eq!(Pulse::decode(&[]), Err(BadPulse::Version));
        assert_eq!(Pulse::decode(b"{}"), Err(BadPulse::Version));
        assert_eq!(Pulse::decode(&[1, 2]), Err(BadPulse::Malformed));
        assert_eq!(Pulse::decode(&[1; 101]), Err(BadPulse::Malformed));
        assert!(HealthMessage::decode(b"{}").is_err());
    }
}
