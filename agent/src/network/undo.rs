//! Taking a pod's network back, as its record says, and the traces of what no record names.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::IpAddr;

use coracle_core::desired::Network;
use coracle_core::name::ReplicaId;
use tracing::{debug, warn};

use super::error::{self, NetworkError};
use super::names::{HOSTS, RESOLV_CONF};
use super::plugins::Pod;
use super::record::{self, Attached, Record, State};
use super::{Given, Inner, entries, namespace, netlink, remove_rules, rules, share};
use crate::fault::fault_point;

impl Inner {
    /// Nothing is removed that shared ports may still lead to.
    pub(super) async fn withdraw_and_remove(
        &self,
        replica: &ReplicaId,
    ) -> Result<(), NetworkError> {
        self.withdraw_before_removal(replica).await?;
        self.remove(replica).await?;
        self.readmit(replica).await;
        Ok(())
    }

    async fn remove(&self, replica: &ReplicaId) -> Result<(), NetworkError> {
        let found = self.with_records(|records| records.get(replica).cloned())?;
        match found {
            Some(record) => self.tear_down(record).await,
            None => Ok(()),
        }
    }

    /// Takes back everything that the record says, in the opposite order, as far as it can be.
    pub(super) async fn tear_down(&self, mut record: Record) -> Result<(), NetworkError> {
        let replica = record.request.replica.clone();
        let mut failures = Vec::new();
        let mut note = |result: Result<(), NetworkError>| {
            if let Err(error) = result {
                failures.push(error::chain(&error));
            }
        };
        // One that was cut off may have left what its plugins do not find again.
        let mut cut_off = !self.is_whole(&record);
        self.plugins.wait_for_leftover(&replica).await?;
        if record.state == State::Ready {
            record.state = State::Removing;
            self.put(&record)?;
        }
        let netns = self.netns_of(&replica);
        let ports = record.request.published();
        let mut failed = Vec::new();
        if let Some(attached) = &record.attached {
            if cut_off {
                note(self.remove_rules_of_addresses(attached).await);
            }
            let there = namespace::is_there(&netns).then_some(netns.as_path());
            let pod = Pod { replica: &replica, netns: there, ports };
            for (at, plugin) in attached.plugins.iter().enumerate().rev() {
                match self.plugins.delete(&pod, attached, plugin).await {
                    Ok(()) => {}
                    // It refused to begin with, so there is nothing of it.
                    Err(error @ NetworkError::Plugin { .. })
                        if attached.refused_at.is_some_and(|refused| at >= refused) =>
                    {
                        debug!(%replica, %error, "a plugin refuses to remove what it did not make");
                    }
                    Err(error) => {
                        // Nobody else removes what a plugin that is missing made.
                        if matches!(error, NetworkError::PluginMissing { .. }) {
                            note(self.remove_rules_of_addresses(attached).await);
                        }
                        debug!(%replica, %error, "a plugin is to try again without the namespace");
                        failed.push(plugin);
                    }
                }
            }
            cut_off |= !failed.is_empty();
            if cut_off {
                note(self.remove_traces(attached).await);
            }
        }
        if record.request.kind != Network::Host {
            note(namespace::remove(&replica, &netns));
        }
        // Where somebody else removed rules, a plugin stumbles over that once.
        if let Some(attached) = &record.attached {
            let pod = Pod { replica: &replica, netns: None, ports };
            for plugin in failed {
                match self.plugins.delete(&pod, attached, plugin).await {
                    // It may never come back, and its traces are removed.
                    Err(error @ NetworkError::PluginMissing { .. }) => {
                        warn!(%replica, %error, "what it made was removed without it");
                        note(self.remove_ports(attached));
                    }
                    result => note(result),
                }
            }
        }
        if let Err(error) = share::forget_flows_to(&record).await {
            warn!(%replica, %error, "whoever sends it UDP packets may go on for nobody");
        }
        note(self.remove_files(&replica));
        if failures.is_empty() {
            self.forget(&replica)?;
            if record.attached.is_some() {
                self.remove_idle_bridge().await;
            }
        }
        // Its names are gone for the others, whatever is left of it.
        self.write_names()?;
        if failures.is_empty() {
            Ok(())
        } else {
            Err(NetworkError::Incomplete { replica, failures })
        }
    }

    /// Rules for the pod's addresses, before the plugins give the addresses back: afterwards they
    /// may be another pod's.
    pub(super) async fn remove_rules_of_addresses(
        &self,
        attached: &Attached,
    ) -> Result<(), NetworkError> {
        let given = self.given_addresses()?;
        let mut addresses: BTreeSet<_> = attached.addresses().into_iter().collect();
        addresses.extend(given.keys());
        let held = self.with_records(|records| {
            let others = records.values().filter_map(|record| record.attached.as_ref());
            let others = others.filter(|other| other.id != attached.id);
            others.flat_map(Attached::addresses).collect::<BTreeSet<_>>()
        })?;
        addresses.retain(|address| match given.get(address) {
            Some(given) => given.id == attached.id,
            None => !held.contains(address),
        });
        let gone = rules::Gone { addresses, ..rules::Gone::default() };
        remove_rules(attached, &gone).await
    }

    /// What plugins leave behind when they are killed: rules, and addresses that stay taken.
    pub(super) async fn remove_traces(&self, attached: &Attached) -> Result<(), NetworkError> {
        let gone = rules::Gone {
            prefix: Some(attached.id.clone()),
            living: self.living_ids(&attached.id)?,
            chains: rules::chains(&attached.network, &attached.id).into(),
            addresses: BTreeSet::new(),
        };
        let rules = remove_rules(attached, &gone).await;
        for given in self.given_addresses()?.into_values().filter(|given| given.id == attached.id) {
            record::remove_file(&given.file)?;
            fault_point("address.freed");
        }
        rules
    }

    /// The pod's ports of our own bridge. They would go with the namespace as well, but later than
    /// the bridge is looked at.
    fn remove_ports(&self, attached: &Attached) -> Result<(), NetworkError> {
        if self.config.cni.conflist.is_some() {
            return Ok(());
        }
        let bridge = self.config.cni.bridge.as_str();
        let failed = |errno: nix::errno::Errno| {
            NetworkError::file("remove a port of bridge", bridge)(errno.into())
        };
        let links = netlink::links().map_err(failed)?;
        let Some(bridge) = links.get(bridge) else { return Ok(()) };
        for name in attached.interfaces() {
            if let Some(link) = links.get(&name).filter(|link| link.bridge == Some(bridge.index)) {
                netlink::delete(link.index).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Ids of attached pods, but for one.
    pub(super) fn living_ids(&self, but: &str) -> Result<BTreeSet<String>, NetworkError> {
        self.with_records(|records| {
            let ids = records.values().filter_map(|record| record.attached.as_ref());
            ids.map(|attached| attached.id.clone()).filter(|id| id != but).collect()
        })
    }

    /// Addresses that host-local has given. Its files are named after addresses and begin with the
    /// id of whose they are.
    pub(super) fn given_addresses(&self) -> Result<BTreeMap<IpAddr, Given>, NetworkError> {
        let mut addresses = BTreeMap::new();
        for network in entries(&self.records_dir.join("ipam"))? {
            for file in entries(&network)? {
                let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                let Ok(address) = name.parse::<IpAddr>() else { continue };
                let text = match fs::read_to_string(&file) {
                    // Given back meanwhile.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    text => text.map_err(NetworkError::file("read", &file))?,
                };
                let id = text.lines().next().unwrap_or_default().trim().to_owned();
                addresses.insert(address, Given { id, file });
            }
        }
        Ok(addresses)
    }

    /// The bridge of our own network goes with its last pod, and its addresses and routes with it.
    pub(super) async fn remove_idle_bridge(&self) {
        // While one is being attached there is nothing idle.
        let Ok(mut warm) = self.warm.try_write() else { return };
        let used = self.with_records(|records| records.values().any(|r| r.attached.is_some()));
        if used.unwrap_or(true) || self.config.cni.conflist.is_some() {
            return;
        }
        let result = netlink::links().and_then(|links| {
            let Some(bridge) = links.get(self.config.cni.bridge.as_str()) else { return Ok(()) };
            let has_ports = links.values().any(|link| link.bridge == Some(bridge.index));
            if has_ports { Ok(()) } else { netlink::delete(bridge.index) }
        });
        *warm = false;
        fault_point("bridge.removed");
        if let Err(error) = result {
            warn!(%error, "the bridge of pods that are gone stays");
        }
    }

    /// Files of the pod's that are ours; its directory if nothing else is in it.
    pub(super) fn remove_files(&self, replica: &ReplicaId) -> Result<(), NetworkError> {
        let dir = self.pod_dir(replica);
        for name in [HOSTS, RESOLV_CONF] {
            record::remove_file(&dir.join(name))?;
            record::remove_file(&dir.join(name).with_extension("new"))?;
            fault_point("names.removed");
        }
        match fs::remove_dir(&dir) {
            Err(error)
                if !matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty
                ) =>
            {
                Err(NetworkError::file("remove", dir)(error))
            }
            _ => Ok(()),
        }
    }
}
