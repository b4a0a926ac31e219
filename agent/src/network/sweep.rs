//! What is done once, when the agent starts: everything that a crash or a reboot left behind, and
//! that no record of a complete network names, is removed.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::sync::Arc;

use coracle_core::desired::Network;
use coracle_core::name::ReplicaId;
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::error::{NetworkError, chain};
use super::record::{Attached, Record, State, Unreadable};
use super::{Inner, entries, lock, namespace, netlink, record, rules};
use crate::conflist::Conflist;
use crate::fault::fault_point;
use crate::machine;

/// Which boot the records are of.
const BOOT_ID: &str = "boot-id";

/// How many networks that are not whole are removed at once. One after the other, each plugin that
/// hangs would be waited for anew.
const AT_ONCE: usize = 8;

fn said(what: &str, result: Result<(), NetworkError>) {
    if let Err(error) = result {
        warn!(error = chain(&error), "{what}");
    }
}

/// What is quick: forgets the last boot and reads the records of this one.
pub(super) fn read(inner: &Inner) {
    said("directories for networks cannot be made", inner.make_directories());
    said("networks of the last boot are left", forget_last_boot(inner));
    said("records of networks cannot be read", read_records(inner));
}

/// What may take long: runs plugins and changes the packet filter.
pub(super) async fn clean(inner: &Arc<Inner>) {
    tear_down_broken(inner).await;
    said("what no record of a network names is left", remove_nameless(inner));
    said("rules or addresses of pods that are gone are left", remove_traces(inner).await);
    inner.remove_idle_bridge().await;
    said("names of pods cannot be written", inner.write_names());
}

/// After a boot nothing of what was recorded exists any more, nor is any address taken.
fn forget_last_boot(inner: &Inner) -> Result<(), NetworkError> {
    let path = inner.records_dir.join(BOOT_ID);
    let now = machine::boot_id();
    if fs::read_to_string(&path).is_ok_and(|then| then == now) {
        return Ok(());
    }
    for (replica, _) in record::names(&inner.records_dir)? {
        inner.remove_files(&replica)?;
        record::remove(&inner.records_dir, &replica)?;
    }
    let ipam = inner.records_dir.join("ipam");
    match fs::remove_dir_all(&ipam) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(NetworkError::file("remove", ipam)(error));
        }
        _ => {}
    }
    *lock(&inner.records) = None;
    fault_point("sweep.forgotten");
    fs::write(&path, now).map_err(NetworkError::file("write", &path))?;
    fault_point("sweep.boot_id");
    Ok(())
}

/// Reads the records; of one that cannot be read, only whose it was is known. Its pod is detached
/// from the network that is configured now.
fn read_records(inner: &Inner) -> Result<(), NetworkError> {
    let (mut records, unreadable) = record::read_all(&inner.records_dir)?;
    for Unreadable { replica, error } in unreadable {
        warn!(%replica, error, "the record of a network is damaged: it is removed");
        let attached = Conflist::load(&inner.config).ok().map(|network| Attached {
            version: network.versions.last().copied().unwrap_or_default().to_owned(),
            network: network.name,
            plugins: network.plugins,
            id: inner.id_of(&replica),
            result: None,
            refused_at: None,
        });
        let request = super::NetworkRequest {
            definition: coracle_core::desired::DefinitionHash::from_label(""),
            kind: Network::Pod,
            host_name: format!("{}-{}", replica.workload, replica.index),
            ports: Vec::new(),
            shared_ports: false,
            names: Vec::new(),
            replica: replica.clone(),
        };
        records.insert(replica, Record { state: State::Removing, request, attached });
    }
    *lock(&inner.records) = Some(records);
    Ok(())
}

async fn tear_down_broken(inner: &Arc<Inner>) {
    let mut tasks = JoinSet::new();
    let records = inner.with_records(|records| records.values().cloned().collect::<Vec<_>>());
    for record in records.unwrap_or_default() {
        if inner.is_whole(&record) {
            continue;
        }
        if tasks.len() == AT_ONCE {
            tasks.join_next().await;
        }
        let inner = inner.clone();
        tasks.spawn(async move {
            let replica = record.request.replica.clone();
            match inner.tear_down(record).await {
                Ok(()) => info!(%replica, "a network that was not complete was removed"),
                Err(error) => warn!(%replica, error = chain(&error), "parts of a network are left"),
            }
        });
    }
    while tasks.join_next().await.is_some() {}
}

/// Files, mounts and ports of our bridge that no record names.
fn remove_nameless(inner: &Inner) -> Result<(), NetworkError> {
    let known: BTreeSet<ReplicaId> =
        inner.with_records(|records| records.keys().cloned().collect())?;
    for path in entries(&inner.netns_dir)? {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let replica = record::parse_name(name).map(|(replica, _)| replica);
        if let Some(replica) = replica.filter(|replica| !known.contains(replica)) {
            namespace::remove(&replica, &path)?;
        }
    }
    for (replica, _) in record::names(&inner.records_dir)? {
        if !known.contains(&replica) {
            record::remove(&inner.records_dir, &replica)?;
        }
    }
    for (replica, _) in record::names(&inner.pods_dir)? {
        if !known.contains(&replica) {
            inner.remove_files(&replica)?;
        }
    }
    if inner.config.cni.conflist.is_none() {
        remove_nameless_ports(inner)?;
    }
    Ok(())
}

fn remove_nameless_ports(inner: &Inner) -> Result<(), NetworkError> {
    let named: BTreeSet<String> = inner.with_records(|records| {
        let attached = records.values().filter_map(|record| record.attached.as_ref());
        attached.flat_map(Attached::interfaces).collect()
    })?;
    let bridge = inner.config.cni.bridge.as_str();
    let failed = |errno: nix::errno::Errno| {
        NetworkError::file("look at the ports of bridge", bridge)(errno.into())
    };
    let links = netlink::links().map_err(failed)?;
    let Some(bridge) = links.get(bridge) else { return Ok(()) };
    for (name, link) in &links {
        if link.bridge == Some(bridge.index) && !named.contains(name) {
            netlink::delete(link.index).map_err(failed)?;
            fault_point("sweep.port_deleted");
        }
    }
    Ok(())
}

/// Addresses and rules of pods without a record.
async fn remove_traces(inner: &Inner) -> Result<(), NetworkError> {
    let living = inner.living_ids("")?;
    let mut nobodys = BTreeSet::new();
    for (address, given) in inner.given_addresses()? {
        if !living.contains(&given.id) {
            record::remove_file(&given.file)?;
            fault_point("address.freed");
            nobodys.insert(address);
        }
    }
    let gone = rules::Gone {
        prefix: Some(inner.prefix.clone()),
        living,
        chains: BTreeSet::new(),
        addresses: nobodys,
    };
    rules::remove(&gone).await.map_err(|source| NetworkError::File {
        doing: "remove rules of the packet filter left of",
        path: inner.prefix.clone().into(),
        source,
    })
}
