//! Ports: what containers listen on, matched to ports of the gateway, and clashes.

use std::collections::BTreeMap;
use std::net::IpAddr;

use coracle_protocol::Code;
use coracle_protocol::desired as wire;

use super::{Found, escaped, resource_name, shortened};
use crate::desired::{Network, Port, Protocol, Workload};
use crate::facts::{GatewayFacts, TakenPort};
use crate::name::ResourceName;

/// One workload's requirements, with the place of each, and what it gives for them.
pub(super) struct Ports<'a> {
    pub(super) required: Vec<(String, &'a wire::PortRequirement)>,
    pub(super) given: &'a BTreeMap<String, wire::HostPort>,
    pub(super) network: Network,
    pub(super) replicas: u32,
    /// Whether all that is given and required is known.
    pub(super) complete: bool,
    /// Of the workload.
    pub(super) place: &'a str,
}

impl Ports<'_> {
    /// The ports of the gateway that lead to the workload.
    pub(super) fn check(&self, found: &mut Found<'_>) -> Vec<Port> {
        let mut names = BTreeMap::new();
        let mut numbers = BTreeMap::new();
        let mut ports = Vec::new();
        for (place, requirement) in &self.required {
            let name = resource_name(&requirement.name, format!("{place}/name"), found);
            if names.insert(&requirement.name, *requirement).is_some() {
                let message = "another port of this workload has this name already";
                found.refuse(format!("{place}/name"), Code::DUPLICATE_NAME, message);
            }
            let number = (requirement.protocol, requirement.port);
            if let Some(other) = numbers.insert(number, &requirement.name) {
                let message = format!(
                    "{} is listened on as {:?} already; the containers of a pod share their ports",
                    shown(number),
                    shortened(other)
                );
                found.refuse(format!("{place}/port"), Code::PORT_CLASH, message);
            }
            let port = self.matched(name, requirement, found);
            ports.extend(port);
        }
        let unused = |name: &&String| self.complete && !names.contains_key(name);
        for name in self.given.keys().filter(unused) {
            let message = format!("no container listens on a port {:?}", shortened(name));
            found.refuse(self.at(name), Code::UNKNOWN_PORT, message);
        }
        ports
    }

    fn at(&self, name: &str) -> String {
        format!("{}/ports/{}", self.place, escaped(name))
    }

    fn matched(
        &self,
        name: Option<ResourceName>,
        requirement: &wire::PortRequirement,
        found: &mut Found<'_>,
    ) -> Option<Port> {
        let place = self.at(&requirement.name);
        let mut address = None;
        let host = match self.given.get(&requirement.name) {
            Some(given) => {
                address = given.address.as_deref().and_then(|text| {
                    let parsed = text.parse::<IpAddr>();
                    let message = || format!("{:?} is no IP address", shortened(text));
                    parsed
                        .map_err(|_| {
                            found.refuse(
                                format!("{place}/address"),
                                Code::INVALID_VALUE,
                                message(),
                            );
                        })
                        .ok()
                });
                given.host
            }
            // On the gateway's own network a container that listens takes that port.
            None if self.network == Network::Host => requirement.port,
            None if requirement.optional || !self.complete => return None,
            None => {
                let message = format!(
                    "the port {:?} is required ({}) and not given",
                    shortened(&requirement.name),
                    shown((requirement.protocol, requirement.port))
                );
                found.refuse(place, Code::MISSING_PORT, message);
                return None;
            }
        };
        match self.network {
            Network::Host if host != requirement.port => {
                let message = format!(
                    "must be {}: on the gateway's own network a port cannot lead to another one",
                    requirement.port
                );
                found.refuse(format!("{place}/host"), Code::INVALID_VALUE, message);
            }
            Network::None => {
                let message = "a workload without a network can have no port of the gateway";
                found.refuse(place, Code::CONFLICTING_FIELD, message);
                return None;
            }
            _ => {}
        }
        if self.replicas > 1 && self.network == Network::Host {
            let message = format!(
                "{} replicas on the gateway's own network cannot share {}",
                self.replicas,
                shown((requirement.protocol, host))
            );
            found.refuse(self.at(&requirement.name), Code::PORT_CLASH, message);
        }
        let (container, protocol) = (requirement.port, requirement.protocol);
        Some(Port { name: name?, container, host, address, protocol })
    }
}

/// Clashes between workloads, and with what listens on the gateway already.
pub(super) fn check_together(
    judged: &[(String, Workload)],
    facts: Option<&GatewayFacts>,
    found: &mut Found<'_>,
) {
    let mut taken: Vec<(&Workload, &Port)> = Vec::new();
    for (place, workload) in judged {
        for port in &workload.pod.ports {
            let path = || format!("{place}/ports/{}", escaped(port.name.as_str()));
            let wanted = shown((port.protocol, port.host));
            let other = taken.iter().find(|(other, known)| {
                other.name != workload.name
                    && (known.protocol, known.host) == (port.protocol, port.host)
                    && overlap(known.address, port.address)
            });
            if let Some((other, _)) = other {
                let message = format!("{wanted} is taken by the workload {} already", other.name);
                found.refuse(path(), Code::PORT_CLASH, message);
            }
            let in_use = facts.is_some_and(|facts| {
                let mut taken = facts.taken_ports.iter();
                !facts.on_host_network.contains(&workload.name)
                    && taken.any(|taken| takes(taken, port))
            });
            if in_use {
                let message = format!("{wanted} is taken on this gateway by something else");
                found.refuse(path(), Code::PORT_IN_USE, message);
            }
            taken.push((workload, port));
        }
    }
}

fn takes(taken: &TakenPort, port: &Port) -> bool {
    (taken.protocol, taken.port) == (port.protocol, port.host)
        && overlap(Some(taken.address), port.address)
}

/// Whether two addresses, none or an unspecified one for all, have one in common.
fn overlap(one: Option<IpAddr>, other: Option<IpAddr>) -> bool {
    let all = |address: Option<IpAddr>| address.is_none_or(|address| address.is_unspecified());
    all(one) || all(other) || one == other
}

fn shown((protocol, number): (Protocol, u16)) -> String {
    match protocol {
        Protocol::Tcp => format!("TCP port {number}"),
        Protocol::Udp => format!("UDP port {number}"),
    }
}
