//! What only this gateway can tell: its volumes and its public keys. Answered beside the loop where
//! a disk is waited for.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use coracle_core::desired::{Desired, MountSource};
use coracle_core::name::ReplicaId;
use tokio::sync::oneshot;
use tracing::warn;

use super::EventLoop;
use crate::execute::{Execute, chain};
use crate::logs;
use crate::mounts::{MountError, Mounts};
use crate::secrets::Secrets;
use crate::status::{SecretsKey, VolumeRefusal, Volumes};
use crate::workload_identity::Identities;

/// What it is answered from.
#[derive(Clone, Debug)]
pub struct Local {
    /// Volumes.
    pub mounts: Mounts,
    /// The key that secrets are sealed with.
    pub secrets: Arc<Secrets>,
    /// The key that tokens are verified with.
    pub identities: Identities,
    /// Directory with what containers said.
    pub logs: PathBuf,
}

type Answer<T, E = String> = oneshot::Sender<Result<T, E>>;

impl<E: Execute> EventLoop<E> {
    pub(super) fn tell_volumes(&mut self, answer: Answer<Volumes>) {
        let (mounts, users) = (self.local.mounts.clone(), self.volume_users());
        tokio::spawn(async move {
            let volumes = mounts.volumes(users).await.map_err(|error| chain(&error));
            drop(answer.send(volumes.map(|volumes| Volumes { volumes })));
        });
    }

    pub(super) fn remove_volume(&mut self, name: String, answer: Answer<(), VolumeRefusal>) {
        let users = self.volume_users().remove(&name).unwrap_or_default();
        let mounts = self.local.mounts.clone();
        tokio::spawn(async move {
            let removed = mounts.remove_volume(&name, users).await;
            drop(answer.send(removed.map_err(|error| {
                let text = chain(&error);
                match error {
                    MountError::NoVolume { .. } => VolumeRefusal::Unknown(text),
                    MountError::InUse { .. } => VolumeRefusal::InUse(text),
                    _ => VolumeRefusal::Failed(text),
                }
            })));
        });
    }

    pub(super) fn secrets_key(&self) -> Result<SecretsKey, String> {
        let key = self.local.secrets.public_key().map_err(|error| chain(&error))?;
        Ok(SecretsKey { gateway: self.gateway, key: key.to_string() })
    }

    pub(super) fn identity_keys(&self) -> Result<serde_json::Value, String> {
        self.local.identities.key_set().map_err(|error| chain(&error))
    }

    /// What containers said that no order names is forgotten, but for the newest.
    pub(super) fn forget_logs(&self) {
        let ids = |orders: &Desired| {
            let workloads = orders.workloads.values();
            let ids = workloads.flat_map(|workload| {
                let containers = &workload.pod.containers;
                (0..workload.max_replicas()).flat_map(|index| {
                    let replica = ReplicaId { workload: workload.name.clone(), index };
                    containers.iter().map(move |container| replica.container(&container.name))
                })
            });
            ids.collect::<BTreeSet<_>>()
        };
        let mut keep = ids(&self.orders.current);
        keep.extend(ids(&self.orders.previous));
        let dir = self.local.logs.clone();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = logs::forget(&dir, &keep) {
                warn!(%error, "logs of containers that are gone are still there");
            }
        });
    }

    /// Which workloads the orders give which volumes: those in force, and those before, which may
    /// stand in or come back.
    fn volume_users(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut users: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for workload in self.orders.workloads() {
            let mounts = workload.pod.containers.iter().flat_map(|container| &container.mounts);
            for mount in mounts {
                if let MountSource::Named(volume) = &mount.source {
                    let users = users.entry(volume.to_string()).or_default();
                    users.insert(workload.name.to_string());
                }
            }
        }
        users
    }
}
