//! Where shared ports of the gateway lead: to which replicas of which workloads.

use std::net::IpAddr;

use crate::desired::{Protocol, UpdateStrategy, Workload};
use crate::name::{ReplicaId, ResourceName, WorkloadName};
use crate::situation::Situation;

/// All shared ports, sorted by workload and name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic(pub Vec<SharedPort>);

/// A port of the gateway that is shared out over replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedPort {
    /// Whose.
    pub workload: WorkloadName,
    /// Its name.
    pub name: ResourceName,
    /// Over which protocol.
    pub protocol: Protocol,
    /// On the gateway.
    pub host: u16,
    /// Only on this address of the gateway.
    pub address: Option<IpAddr>,
    /// Where new connections go, evenly; nowhere if there are none.
    pub targets: Vec<Target>,
}

/// Where connections go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// To which replica.
    pub replica: ReplicaId,
    /// Its address in the pods' network.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
}

impl Traffic {
    /// No port leads to this replica any more.
    pub fn withdraw(&mut self, replica: &ReplicaId) {
        for port in &mut self.0 {
            port.targets.retain(|target| target.replica != *replica);
        }
    }

    /// Whether a shared port leads to a replica.
    pub fn leads_to(&self, replica: &ReplicaId) -> bool {
        let mut ports = self.0.iter().filter(|port| port.workload == replica.workload);
        ports.any(|port| port.targets.iter().any(|target| target.replica == *replica))
    }
}

/// Where shared ports are to lead: to each replica that is ready, by the ports of its own
/// definition. Where all replicas are replaced at once: to the old ones until all new ones are ready.
pub fn traffic(situation: &Situation<'_>) -> Traffic {
    let mut ports = Vec::new();
    for wanted in situation.orders.current.workloads.values() {
        if situation.shares_ports(wanted) {
            ports.extend(shared_ports(situation, wanted));
        }
    }
    Traffic(ports)
}

fn shared_ports(situation: &Situation<'_>, wanted: &Workload) -> Vec<SharedPort> {
    let target = situation.target(wanted);
    let slots = situation.slots(wanted, &target);
    let mut ready: Vec<_> = slots.iter().filter(|slot| slot.ready).collect();
    if wanted.update.strategy == UpdateStrategy::BlueGreen {
        let new = ready.iter().filter(|slot| slot.is_new).count();
        let old = ready.len() - new;
        let all = new >= wanted.replicas as usize;
        ready.retain(|slot| slot.is_new == (all || old == 0));
    }
    let mut ports: Vec<SharedPort> = Vec::new();
    let own = [target.workload].into_iter();
    let held = slots.iter().filter_map(|slot| slot.holds.map(|holds| holds.workload));
    for port in own.chain(held).flat_map(|workload| &workload.pod.ports) {
        let key = (port.protocol, port.host, port.address);
        if !ports.iter().any(|known| (known.protocol, known.host, known.address) == key) {
            ports.push(SharedPort {
                workload: wanted.name.clone(),
                name: port.name.clone(),
                protocol: port.protocol,
                host: port.host,
                address: port.address,
                targets: Vec::new(),
            });
        }
    }
    for slot in ready {
        let pod = situation.observed.pods.get(&slot.replica);
        let Some(address) = pod.and_then(|pod| pod.address) else { continue };
        for port in slot.holds.iter().flat_map(|holds| &holds.workload.pod.ports) {
            let key = (port.protocol, port.host, port.address);
            let mut all = ports.iter_mut();
            let shared = all.find(|known| (known.protocol, known.host, known.address) == key);
            let replica = slot.replica.clone();
            if let Some(shared) = shared {
                shared.targets.push(Target { replica, address, port: port.container });
            }
        }
    }
    ports
}
