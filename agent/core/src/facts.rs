//! What an order must fit: facts about one gateway, as its agent found them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::desired::Protocol;
use crate::name::WorkloadName;
use crate::policy::Policy;

/// Facts about the gateway that an order is for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GatewayFacts {
    /// What orders may ask for.
    pub policy: Policy,
    /// The gateway's memory, in MiB; `None` if it is not known.
    pub memory_mib: Option<u64>,
    /// Ports that something listens on, but for those that the orders in force give to workloads.
    pub taken_ports: Vec<TakenPort>,
    /// Workloads that are on the gateway's network now: what listens may be theirs.
    pub on_host_network: BTreeSet<WorkloadName>,
}

/// A port that something listens on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TakenPort {
    /// Over which protocol.
    pub protocol: Protocol,
    /// On which address; unspecified for all.
    pub address: IpAddr,
    /// Which.
    pub port: u16,
}
