//! What an order must fit beyond its document: this gateway.
//!
//! In: an order that was read. Out: facts for the rules, and refusals that only this gateway can
//! give: a secret that it cannot open, a configuration that its template does not allow.
//! Deliberately not here: the rules (`coracle_core::desired`).

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;

use coracle_core::desired::{Desired, Read};
use coracle_core::facts::{GatewayFacts, TakenPort};
use coracle_core::orders::Orders;
use coracle_core::policy::Policy;
use coracle_protocol::{Code, GatewayId, Refusal};
use tracing::warn;

use crate::config::TemplatesConfig;
use crate::config_check;
use crate::error_chain::chain;
use crate::ports::{BoundPort, bound_ports};
use crate::secrets::Secrets;

/// What is asked of the gateway before an order is accepted. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Preflight {
    secrets: Arc<Secrets>,
    policy: Policy,
    templates: TemplatesConfig,
}

impl Preflight {
    /// Asks nothing yet.
    pub fn new(secrets: Arc<Secrets>, policy: Policy, templates: TemplatesConfig) -> Self {
        Self { secrets, policy, templates }
    }

    /// What the gateway's owner allows.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// These orders are in force: from now on their secrets can be given. Those of the previous
    /// orders too, whose definitions may stand in.
    pub fn in_force(&self, gateway: GatewayId, orders: &Orders) {
        let both = orders.previous.secrets.iter().chain(&orders.current.secrets);
        let sealed = both.map(|(name, sealed)| (name.to_string(), sealed.clone())).collect();
        self.secrets.set(gateway, sealed);
    }

    /// What the gateway has now. Ports that the orders in force take will be free when they are
    /// needed.
    pub fn facts(&self, in_force: [&Desired; 2]) -> GatewayFacts {
        let own: BTreeSet<_> = in_force.into_iter().flat_map(Desired::host_ports).collect();
        let taken = bound_ports().unwrap_or_else(|error| {
            warn!(%error, "which ports are taken cannot be told");
            Vec::new()
        });
        let taken = taken.into_iter().filter(|bound| !own.contains(&(bound.protocol, bound.port)));
        let taken = taken.map(|BoundPort { protocol, address, port }| TakenPort {
            protocol,
            address,
            port,
        });
        GatewayFacts {
            policy: self.policy.clone(),
            memory_mib: memory_mib(),
            taken_ports: taken.collect(),
            on_host_network: in_force
                .into_iter()
                .flat_map(Desired::on_host_network)
                .cloned()
                .collect(),
        }
    }

    /// What is to be said against an order that takes looking at secrets and judging configurations.
    pub async fn check(&self, read: &Read) -> Vec<Refusal> {
        let mut refusals = Vec::new();
        for (name, sealed) in &read.secrets {
            if let Err(error) = self.secrets.check(name.as_str(), sealed) {
                let place = format!("/secrets/{name}/sealed");
                refusals.push(Refusal::new(place, Code::BAD_SECRET, chain(&error)));
            }
        }
        let program = config_check::program(&self.templates);
        refusals.extend(config_check::check_configs(&program, &read.config_checks).await);
        refusals
    }
}

/// The machine's memory (proc(5)), in MiB.
fn memory_mib() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib / 1024)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_machine_has_some_memory() {
        assert!(super::memory_mib().is_some_and(|mib| (64..1 << 30).contains(&mib)));
    }
}
