//! The steps from one version of the records to the next.

use std::collections::BTreeMap;

use coracle_core::history::ContainerRecord;
use coracle_core::name::{ContainerId, ContainerName, ReplicaId, WorkloadName};
use coracle_protocol::Envelope;
use heed::RwTxn;
use serde_json::Value;

use super::lmdb::Records;
use super::records::{HISTORY, KEY_CURRENT, decode_order, frame, history_key, unframe};
use super::schema::MigrationError;

/// Histories were those of replicas, each of one container; now each container has its own.
pub(super) fn histories_of_containers(
    records: &Records<'_>,
    txn: &mut RwTxn<'_>,
) -> Result<(), MigrationError> {
    let broken = MigrationError::Record;
    let names = match records.get(txn, KEY_CURRENT.as_bytes())? {
        Some(order) => container_names(&decode_order(KEY_CURRENT, order).map_err(broken)?.envelope),
        None => BTreeMap::new(),
    };
    let mut old = Vec::new();
    for entry in records.iter(txn)? {
        let (key, value) = entry?;
        let key = String::from_utf8_lossy(key).into_owned();
        let Some(replica) = key.strip_prefix(HISTORY).and_then(replica) else { continue };
        let record: ContainerRecord = unframe(&key, value).map_err(broken)?;
        old.push((key, replica, record));
    }
    for (key, replica, record) in old {
        let id = container(&replica, &names);
        records.delete(txn, key.as_bytes())?;
        let key = history_key(&id);
        records.put(txn, key.as_bytes(), &frame(&key, &record))?;
    }
    Ok(())
}

/// Workloads got records, and orders are kept (3); commands, events and the link's use have records (4).
/// There are none yet. The version rises so that an agent
/// that does not know them says so, instead of taking them for damage.
pub(super) fn only_new_kinds_of_records(
    _records: &Records<'_>,
    _txn: &mut RwTxn<'_>,
) -> Result<(), MigrationError> {
    Ok(())
}

fn replica(text: &str) -> Option<ReplicaId> {
    let (workload, index) = text.rsplit_once('.')?;
    Some(ReplicaId { workload: WorkloadName::parse(workload).ok()?, index: index.parse().ok()? })
}

/// The only container of a replica, by the order or by the usual name.
fn container(replica: &ReplicaId, names: &BTreeMap<String, ContainerName>) -> ContainerId {
    match names.get(replica.workload.as_str()) {
        Some(name) => replica.container(name),
        None => ContainerId::from_listed(&format!("{replica}.main")),
    }
}

/// The name of each workload's first container.
fn container_names(envelope: &[u8]) -> BTreeMap<String, ContainerName> {
    let payload = Envelope::decode(envelope).map(|envelope| envelope.payload);
    let document: Value =
        payload.ok().and_then(|json| serde_json::from_slice(&json).ok()).unwrap_or_default();
    let named = |workload: &Value| {
        let name = workload.pointer("/containers/0/name")?.as_str()?;
        Some((workload.get("name")?.as_str()?.to_owned(), ContainerName::parse(name).ok()?))
    };
    document["workloads"].as_array().into_iter().flatten().filter_map(named).collect()
}
