//! What is around a container: network, mounts, variables, output, devices. Each is made by its own
//! adapter; here they are put together for the runtime.
//!
//! Everything is made from whatever there is already, so that a start that was broken off is simply
//! begun again. A pod is listed from the first thing that is made for it to the last that is gone.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use coracle_core::backoff::Retry;
use coracle_core::desired::{
    self, DefinitionHash, DeviceRequest, Identity, Mount, MountSource, Template,
};
use coracle_core::name::{ContainerName, ReplicaId};
use coracle_core::observed::Pod;
use coracle_core::plan::{Refresh, Start};
use coracle_core::policy::Granted;
use coracle_core::traffic::Traffic;
use tokio::task::spawn_blocking;
use tracing::warn;

use super::Failure;
use crate::config::{Config, LogsConfig};
use crate::mounts::Mounts;
use crate::network::{NetworkRequest, Networks, PortMapping};
use crate::policy::Installed;
use crate::runtime::{Bind, Device, Root, Surroundings};
use crate::workload_identity::{
    DIR_IN_CONTAINER, Identities, IdentityRequest, SOCKET_IN_CONTAINER, SOCKET_VARIABLE,
};
use crate::{logs, secret_env};

/// Of a pod of which something is left and nothing tells what it was made for.
const UNKNOWN: &str = "unknown";

/// Makes, refreshes and takes down what is around containers. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Around {
    networks: Networks,
    mounts: Mounts,
    identities: Identities,
    policy: Arc<Installed>,
    logs: LogsConfig,
    state_dir: PathBuf,
    runtime_dir: PathBuf,
}

impl Around {
    /// Joins the adapters.
    pub fn new(
        config: &Config,
        networks: Networks,
        mounts: Mounts,
        identities: Identities,
        policy: Arc<Installed>,
    ) -> Self {
        Self {
            networks,
            mounts,
            identities,
            policy,
            logs: config.logs.clone(),
            state_dir: config.state_dir.clone(),
            runtime_dir: config.runtime_dir.clone(),
        }
    }

    /// Makes what a container finds around it, or finds it made.
    pub(super) async fn make(
        &self,
        start: &Start,
        root: &Root,
    ) -> Result<(Surroundings, Pod), Failure> {
        let Start { replica, container, pod, .. } = start;
        let network = self.networks.ensure(&request(start)).await?;
        self.check_host_paths(&container.mounts).await?;
        let made = self.mounts.make(replica, &container.name, &container.mounts).await?;
        let mut binds: Vec<_> = made.into_iter().map(bind).collect();
        if !pod.in_place.is_empty() {
            // Says what they are at, so that nobody takes them for old.
            self.mounts.refresh(replica, &mounts_of(pod), &pod.in_place).await?;
        }
        let env = match root {
            Root::Image(_) => container.env.clone(),
            Root::Native(native) => {
                let directories = |value: &Template| value.map(|text| native.text(text));
                container.env.iter().map(|(k, v)| (k.clone(), directories(v))).collect()
            }
        };
        let mut variables = self.mounts.variables(replica, &container.name, &env).await?;
        if let Some(source) = self.serve_identity(replica, pod)? {
            let options =
                ["bind", "rprivate", "ro", "nosuid", "nodev", "noexec"].map(String::from).into();
            binds.push(Bind { source, path: DIR_IN_CONTAINER.into(), options });
            let socket = SOCKET_IN_CONTAINER.to_owned();
            variables.env.entry(SOCKET_VARIABLE.into()).or_insert(socket);
        }
        let runtime_options = match variables.any_hidden {
            true => Some(secret_env::runtime_options(&secret_env::install(&self.runtime_dir)?)),
            false => None,
        };
        let around = Surroundings {
            netns: network.netns,
            host_name: network.host_name,
            hosts: Some(network.hosts),
            resolv_conf: network.resolv_conf,
            binds,
            env: variables.env,
            log: logs::uri(&self.logs, &self.state_dir),
            devices: self.devices(&container.devices)?,
            seccomp: self.policy.seccomp_file(&container.seccomp),
            runtime_options,
        };
        let definition = start.definition.clone();
        Ok((around, self.pod(replica, definition, &pod.in_place, network.address)))
    }

    /// Brings what is around running containers to what is ordered.
    pub(super) async fn refresh(&self, refresh: &Refresh) -> Result<Pod, Failure> {
        let Refresh { replica, definition, pod } = refresh;
        self.mounts.refresh(replica, &mounts_of(pod), &pod.in_place).await?;
        self.serve_identity(replica, pod)?;
        let address = self.networks.address(replica);
        Ok(self.pod(replica, definition.clone(), &pod.in_place, address))
    }

    /// Takes down what was around the containers of a replica.
    pub(super) async fn clear(&self, replica: &ReplicaId) -> Result<(), Failure> {
        self.identities.remove(replica)?;
        self.networks.remove(replica).await?;
        Ok(self.mounts.remove(replica).await?)
    }

    /// Makes shared ports lead where they are to.
    pub(super) async fn share(&self, traffic: &Traffic) -> Result<(), Failure> {
        Ok(self.networks.share(traffic).await?)
    }

    /// From now on no shared port leads to a replica.
    pub(super) async fn withdraw(&self, replica: &ReplicaId) -> Result<(), Failure> {
        Ok(self.networks.withdraw(replica).await?)
    }

    /// The file of a replica's own network; `None` on the gateway's.
    pub(super) fn namespace(&self, replica: &ReplicaId) -> Option<PathBuf> {
        self.networks.namespace(replica)
    }

    /// Every pod of which there is anything.
    pub(super) fn list(&self) -> Result<BTreeMap<ReplicaId, Pod>, Failure> {
        // The gateway's own names and name servers may have changed.
        if let Err(error) = self.networks.refresh() {
            warn!(%error, "pods are told old names or name servers");
        }
        let mut definitions = self.networks.list()?;
        let mut pods = BTreeMap::new();
        for (replica, files) in self.mounts.list()? {
            let definition = definitions.remove(&replica);
            let definition = definition.unwrap_or_else(|| DefinitionHash::from_label(UNKNOWN));
            let address = self.networks.address(&replica);
            let pod = self.pod(&replica, definition, &files.in_place, address);
            pods.insert(replica, pod);
        }
        for (replica, definition) in definitions {
            let address = self.networks.address(&replica);
            let pod = self.pod(&replica, definition, "", address);
            pods.insert(replica, pod);
        }
        Ok(pods)
    }

    /// What a path of the gateway leads to may have changed since the order came.
    /// In a thread of its own: it may lead to a file system that hangs.
    async fn check_host_paths(&self, mounts: &[Mount]) -> Result<(), Failure> {
        for mount in mounts {
            if let MountSource::Host(path) = &mount.source {
                let (policy, path, read_only) =
                    (Arc::clone(&self.policy), path.clone(), mount.read_only);
                let checked = spawn_blocking(move || policy.host_path(&path, read_only));
                checked.await.map_err(std::io::Error::other)??;
            }
        }
        Ok(())
    }

    /// The devices that fulfil a container's requests, by the policy as it is today.
    fn devices(&self, requests: &[DeviceRequest]) -> Result<Vec<Device>, Failure> {
        let mut devices = Vec::new();
        for request in requests {
            let granted = self.policy.policy.granted(request).ok_or_else(|| Failure {
                message: format!("the gateway's policy no longer has {request:?}"),
                retry: Retry::Rarely,
                unreachable: false,
            })?;
            devices.extend(granted.into_iter().map(|Granted { path, to, access }| Device {
                path: path.into(),
                to,
                access,
            }));
        }
        Ok(devices)
    }

    /// Lets a pod ask who it is, if it is to; gives what is mounted for that.
    fn serve_identity(
        &self,
        replica: &ReplicaId,
        pod: &desired::Pod,
    ) -> Result<Option<PathBuf>, Failure> {
        let Some(Identity { project, grants }) = &pod.identity else { return Ok(None) };
        let (project, grants) = (project.clone(), grants.clone());
        let request = IdentityRequest { replica: replica.clone(), project, grants };
        Ok(Some(self.identities.serve(&request)?))
    }

    fn pod(
        &self,
        replica: &ReplicaId,
        definition: DefinitionHash,
        in_place: &str,
        address: Option<IpAddr>,
    ) -> Pod {
        let serves_identity = self.identities.serves(replica);
        let shares_ports = self.networks.shares_ports(replica);
        Pod { definition, in_place: in_place.into(), serves_identity, shares_ports, address }
    }
}

fn mounts_of(pod: &desired::Pod) -> Vec<(ContainerName, Vec<Mount>)> {
    pod.containers.iter().map(|c| (c.name.clone(), c.mounts.clone())).collect()
}

fn request(start: &Start) -> NetworkRequest {
    let host_name = start.replica.host_name();
    let port = |port: &desired::Port| PortMapping {
        name: port.name.to_string(),
        container_port: port.container,
        host_port: port.host,
        host_address: port.address,
        protocol: port.protocol,
    };
    NetworkRequest {
        replica: start.replica.clone(),
        definition: start.definition.clone(),
        kind: start.pod.network,
        names: vec![start.replica.workload.to_string(), host_name.clone()],
        host_name,
        ports: start.pod.ports.iter().map(port).collect(),
        shared_ports: start.shares_ports,
    }
}

fn bind(bind: crate::mounts::Bind) -> Bind {
    let crate::mounts::Bind { source, path, options } = bind;
    Bind { source, path, options }
}
