//! One record for each pod, written before anything is made for it and removed after everything of
//! it is gone. It alone says what has to be taken back.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use coracle_core::name::{ReplicaId, WorkloadName};
use coracle_protocol::health::PodLink;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::NetworkRequest;
use super::error::NetworkError;
use super::share::Subnet;
use crate::fault::fault_point;

/// How far a pod's network is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum State {
    /// Being made, or left half-made.
    Making,
    /// Complete.
    Ready,
    /// Being removed, or left half-removed.
    Removing,
}

/// Everything about one pod's network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) state: State,
    pub(super) request: NetworkRequest,
    /// How it is attached by plugins, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) attached: Option<Attached>,
}

/// A pod's place in a network, as the plugins know it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Attached {
    /// The network's name.
    pub(super) network: String,
    /// Version of the specification that all plugins were called with.
    pub(super) version: String,
    /// Their configurations, in order.
    pub(super) plugins: Vec<Map<String, Value>>,
    /// Under which id.
    pub(super) id: String,
    /// What the plugin that was called last answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) result: Option<Value>,
    /// The plugin, counted from 0, that answered that it cannot attach the pod. It and those after
    /// it made nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) refused_at: Option<usize>,
}

impl Record {
    /// Whether it is what is asked for. A pod whose ports a plugin publishes may as well share
    /// them out with others: shared ones come first.
    pub(super) fn is_for(&self, request: &NetworkRequest) -> bool {
        let shared_ports = self.request.shared_ports;
        (request.shared_ports || !shared_ports)
            && self.request == NetworkRequest { shared_ports, ..request.clone() }
    }
}

impl Attached {
    /// The pod's addresses.
    pub(super) fn addresses(&self) -> Vec<IpAddr> {
        self.each("address")
    }

    /// The subnets that they are in.
    pub(super) fn subnets(&self) -> Vec<Subnet> {
        let ips = self.result.as_ref().and_then(|result| result["ips"].as_array());
        let subnet = |ip: &Value| {
            let (address, prefix) = ip["address"].as_str()?.split_once('/')?;
            Some(Subnet::of(address.parse().ok()?, prefix.parse().ok()?))
        };
        ips.into_iter().flatten().filter_map(subnet).collect()
    }

    /// The gateway's own address in the network, as the pod sees it.
    pub(super) fn gateway(&self) -> Option<IpAddr> {
        self.each("gateway").into_iter().next()
    }

    /// Names of the interfaces that plugins made on the gateway's side.
    pub(super) fn interfaces(&self) -> Vec<String> {
        let all = self.result.as_ref().and_then(|result| result["interfaces"].as_array());
        let outside = |one: &&Value| one["sandbox"].as_str().is_none_or(str::is_empty);
        let name = |one: &Value| Some(one["name"].as_str()?.to_owned());
        all.into_iter().flatten().filter(outside).filter_map(name).collect()
    }

    /// Both ends of the pod's veth, as plugins told of them. Of bridges and other interfaces on the
    /// gateway's side, the last one is the pod's own.
    pub(super) fn link(&self) -> PodLink {
        let all = self.result.as_ref().and_then(|result| result["interfaces"].as_array());
        let (mut link, addresses) = (PodLink::default(), self.addresses());
        for one in all.into_iter().flatten() {
            let text = |key: &str| one[key].as_str().filter(|t| !t.is_empty()).map(str::to_owned);
            match text("sandbox") {
                Some(_) => link.mac = link.mac.or(text("mac")),
                None => (link.interface, link.interface_mac) = (text("name"), text("mac")),
            }
        }
        PodLink { addresses, ..link }
    }

    fn each(&self, key: &str) -> Vec<IpAddr> {
        let ips = self.result.as_ref().and_then(|result| result["ips"].as_array());
        let address = |ip: &Value| {
            let text = ip[key].as_str()?;
            text.split_once('/').map_or(text, |(address, _)| address).parse().ok()
        };
        ips.into_iter().flatten().filter_map(address).collect()
    }
}

/// A file that is not a record, by whose name it is one of a replica.
#[derive(Debug)]
pub(super) struct Unreadable {
    pub(super) replica: ReplicaId,
    pub(super) error: String,
}

/// Writes it, so that there is always a whole one once there was one.
pub(super) fn write(dir: &Path, record: &Record) -> Result<(), NetworkError> {
    let name = &record.request.replica;
    let (new, path) = (dir.join(format!("{name}.new")), dir.join(format!("{name}.json")));
    let text = serde_json::to_vec(record)
        .map_err(|error| NetworkError::file("write", &path)(error.into()))?;
    fs::write(&new, text).map_err(NetworkError::file("write", &new))?;
    fault_point("record.written");
    fs::rename(&new, &path).map_err(NetworkError::file("rename", &new))?;
    fault_point("record.renamed");
    Ok(())
}

/// Removes it and what belongs to it.
pub(super) fn remove(dir: &Path, replica: &ReplicaId) -> Result<(), NetworkError> {
    for extension in ["stdin", "new", "json"] {
        remove_file(&dir.join(format!("{replica}.{extension}")))?;
        fault_point("record.removed");
    }
    Ok(())
}

/// Everything that is written down.
pub(super) fn read_all(
    dir: &Path,
) -> Result<(BTreeMap<ReplicaId, Record>, Vec<Unreadable>), NetworkError> {
    let (mut records, mut unreadable) = (BTreeMap::new(), Vec::new());
    for (replica, extension) in names(dir)? {
        if extension != "json" {
            continue;
        }
        let path = dir.join(format!("{replica}.json"));
        let text = fs::read(&path).map_err(NetworkError::file("read", &path))?;
        match serde_json::from_slice::<Record>(&text) {
            Ok(record) if record.request.replica == replica => {
                records.insert(replica, record);
            }
            Ok(_) => unreadable.push(Unreadable { replica, error: "it is another pod's".into() }),
            Err(error) => unreadable.push(Unreadable { replica, error: error.to_string() }),
        }
    }
    Ok((records, unreadable))
}

/// Files of a directory that are called after a replica, with what follows the replica.
pub(super) fn names(dir: &Path) -> Result<Vec<(ReplicaId, String)>, NetworkError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(NetworkError::file("read", dir))?,
    };
    let name = |entry: io::Result<fs::DirEntry>| entry.ok()?.file_name().into_string().ok();
    Ok(entries.filter_map(name).filter_map(|name| parse_name(&name)).collect())
}

/// `WORKLOAD.INDEX`, or that with something after it.
pub(super) fn parse_name(name: &str) -> Option<(ReplicaId, String)> {
    let mut parts = name.splitn(3, '.');
    let workload = WorkloadName::parse(parts.next()?).ok()?;
    let index = parts.next()?.parse().ok()?;
    Some((ReplicaId { workload, index }, parts.next().unwrap_or_default().to_owned()))
}

/// What is not there is no error.
pub(super) fn remove_file(path: &Path) -> Result<(), NetworkError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(NetworkError::file("remove", path)(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::network::testing;

    #[test]
    fn the_last_interface_outside_is_the_pods_own_and_not_the_bridge() {
        let record = testing::attached("web", 0, "10.88.0.5");
        let mut attached = record.attached.unwrap();
        attached.result.as_mut().unwrap()["interfaces"] = json!([
            { "name": "coracle0", "mac": "02:00:00:00:00:01" },
            { "name": "veth1", "mac": "02:00:00:00:00:02" },
            { "name": "eth0", "mac": "02:00:00:00:00:03", "sandbox": "/netns" },
        ]);
        let link = attached.link();
        assert_eq!(link.interface.as_deref(), Some("veth1"));
        assert_eq!(link.interface_mac.as_deref(), Some("02:00:00:00:00:02"));
        assert_eq!(link.mac.as_deref(), Some("02:00:00:00:00:03"));
        assert_eq!(link.addresses, [IpAddr::from([10, 88, 0, 5])]);
        attached.result = Some(json!({ "interfaces": 7 }));
        assert_eq!(attached.link(), PodLink::default());
    }
}
