//! Records for tests.

use coracle_core::desired::{DefinitionHash, Network};
use coracle_core::name::{ReplicaId, WorkloadName};
use serde_json::json;

use super::NetworkRequest;
use super::record::{Attached, Record, State};

pub(super) fn record(workload: &str, index: u32, kind: Network) -> Record {
    let replica = ReplicaId { workload: WorkloadName::parse(workload).unwrap(), index };
    let request = NetworkRequest {
        definition: DefinitionHash::from_label("0123"),
        kind,
        host_name: format!("{}-{}", replica.workload, replica.index),
        ports: Vec::new(),
        shared_ports: false,
        names: vec![workload.into()],
        replica,
    };
    Record { state: State::Ready, request, attached: None }
}

pub(super) fn attached(workload: &str, index: u32, address: &str) -> Record {
    let mut record = record(workload, index, Network::Pod);
    record.attached = Some(Attached {
        network: "coracle".into(),
        version: "1.0.0".into(),
        plugins: Vec::new(),
        id: format!("coracle-0.{workload}.{index}"),
        result: Some(json!({
            "interfaces": [{"name": "veth0"}, {"name": "eth0", "sandbox": "/netns"}],
            "ips": [{"address": format!("{address}/16"), "gateway": "10.88.0.1"}],
        })),
        refused_at: None,
    });
    record
}
