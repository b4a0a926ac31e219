//! Layers in the content store become a chain of committed snapshots, through containerd's diff
//! service.
//!
//! In: layers, their uncompressed digests and chain ids. Out: a snapshot named by each chain id, its
//! files verified against the configuration and brought to the disk before it is committed: after a
//! power cut a committed snapshot with empty files would be taken for good.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_client::services::v1::ApplyRequest;
use containerd_client::services::v1::diff_client::DiffClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::snapshots::{
    CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
};
use containerd_client::tonic::{Code, Request, Status};
use containerd_client::types;
use coracle_core::image::{Digest, ImageRef};

use super::error::ImageError;
use super::lease::Lease;
use super::manifest::Descriptor;
use crate::containerd::{Containerd, under_lease};
use crate::locks::Locks;

/// Longest time for one layer: gigabytes onto a slow card.
const APPLY: Duration = Duration::from_secs(3600);

/// Unpacks under one lease.
#[derive(Debug)]
pub(crate) struct Unpacker<'a> {
    pub(crate) containerd: &'a Containerd,
    pub(crate) lease: &'a Lease,
    pub(crate) locks: &'a Locks,
    pub(crate) image: &'a ImageRef,
}

/// One layer and where it belongs.
#[derive(Debug)]
pub(crate) struct Layer<'a> {
    pub(crate) blob: &'a Descriptor,
    pub(crate) diff_id: &'a Digest,
    pub(crate) parent: &'a str,
    pub(crate) chain_id: &'a str,
}

/// Whether a snapshot of that name is there.
pub(crate) async fn has_snapshot(containerd: &Containerd, name: &str) -> Result<bool, ImageError> {
    let request =
        StatSnapshotRequest { snapshotter: containerd.snapshotter().into(), key: name.into() };
    let mut client = SnapshotsClient::new(containerd.channel());
    match client.stat(containerd.request(request)).await {
        Ok(_) => Ok(true),
        Err(status) if status.code() == Code::NotFound => Ok(false),
        Err(status) => Err(ImageError::containerd("look for a snapshot")(status)),
    }
}

impl Unpacker<'_> {
    /// Protects a snapshot from now on and tells whether it is there.
    pub(crate) async fn claim(&self, chain_id: &str) -> Result<bool, ImageError> {
        self.lease.add_snapshot(chain_id).await?;
        has_snapshot(self.containerd, chain_id).await
    }

    /// Makes the layer's snapshot if it is not there; its parent must be. `random` names the
    /// unfinished one; should the future be dropped, it goes with the lease.
    pub(crate) async fn unpack(&self, layer: &Layer<'_>, random: &str) -> Result<(), ImageError> {
        let _held = self.locks.hold(format!("snapshot {}", layer.chain_id)).await;
        if self.claim(layer.chain_id).await? {
            return Ok(());
        }
        let key = format!("extract-{random} {}", layer.chain_id);
        let mounts = self.prepare(&key, layer.parent).await?;
        let done = match self.apply(layer, mounts).await {
            Ok(()) => self.commit(&key, layer.chain_id).await,
            Err(error) => Err(error),
        };
        if !matches!(done, Ok(true)) {
            if let Err(error) = self.remove(&key).await {
                tracing::warn!(snapshot = key, error = %error, "unfinished snapshot not removed");
            }
        }
        done.map(drop)
    }

    async fn prepare(&self, key: &str, parent: &str) -> Result<Vec<types::Mount>, ImageError> {
        let request = PrepareSnapshotRequest {
            snapshotter: self.containerd.snapshotter().into(),
            key: key.into(),
            parent: parent.into(),
            ..PrepareSnapshotRequest::default()
        };
        let prepare = async {
            let request = self.leased(self.containerd.request(request))?;
            SnapshotsClient::new(self.containerd.channel()).prepare(request).await
        };
        let prepared = prepare.await.map_err(ImageError::containerd("prepare a snapshot"))?;
        Ok(prepared.into_inner().mounts)
    }

    /// Unpacks into the mounts, checks what came out, and syncs it.
    async fn apply(&self, layer: &Layer<'_>, mounts: Vec<types::Mount>) -> Result<(), ImageError> {
        let place = place(&mounts);
        let blob = layer.blob;
        let diff = types::Descriptor {
            media_type: blob.media_type.clone(),
            digest: blob.digest.to_string(),
            size: i64::try_from(blob.size).unwrap_or(i64::MAX),
            ..types::Descriptor::default()
        };
        let mut request = self.containerd.endless(ApplyRequest {
            diff: Some(diff),
            mounts,
            ..ApplyRequest::default()
        });
        request.set_timeout(APPLY);
        let apply = async {
            let request = self.leased(request)?;
            DiffClient::new(self.containerd.channel()).apply(request).await
        };
        let applied = apply.await.map_err(ImageError::containerd("unpack a layer"))?;
        let actual = applied.into_inner().applied.map_or_else(String::new, |diff| diff.digest);
        if actual != layer.diff_id.as_str() {
            return Err(ImageError::DiffId {
                image: self.image.clone(),
                layer: blob.digest.clone(),
                expected: layer.diff_id.clone(),
                actual,
            });
        }
        sync(place).await
    }

    /// Whether it was committed; `false` if somebody else had been faster.
    async fn commit(&self, key: &str, chain_id: &str) -> Result<bool, ImageError> {
        let request = CommitSnapshotRequest {
            snapshotter: self.containerd.snapshotter().into(),
            name: chain_id.into(),
            key: key.into(),
            ..CommitSnapshotRequest::default()
        };
        let commit = async {
            let request = self.leased(self.containerd.request(request))?;
            SnapshotsClient::new(self.containerd.channel()).commit(request).await
        };
        match commit.await {
            Ok(_) => Ok(true),
            Err(status) if status.code() == Code::AlreadyExists => Ok(false),
            Err(status) => Err(ImageError::containerd("commit a snapshot")(status)),
        }
    }

    async fn remove(&self, key: &str) -> Result<(), ImageError> {
        let request = RemoveSnapshotRequest {
            snapshotter: self.containerd.snapshotter().into(),
            key: key.into(),
        };
        let request = self.containerd.request(request);
        match SnapshotsClient::new(self.containerd.channel()).remove(request).await {
            Err(status) if status.code() != Code::NotFound => {
                Err(ImageError::containerd("remove a snapshot")(status))
            }
            _ => Ok(()),
        }
    }

    fn leased<T>(&self, request: Request<T>) -> Result<Request<T>, Status> {
        under_lease(request, &self.lease.id)
    }
}

/// A directory on the file system that the mounts write to.
fn place(mounts: &[types::Mount]) -> Option<PathBuf> {
    let mount = mounts.last()?;
    let upper = mount.options.iter().find_map(|option| option.strip_prefix("upperdir="));
    let bound = matches!(mount.r#type.as_str(), "bind" | "rbind").then_some(&*mount.source);
    upper.or(bound).map(PathBuf::from)
}

/// Brings the file system of `place` to the disk; all of them if it cannot be seen from here.
async fn sync(place: Option<PathBuf>) -> Result<(), ImageError> {
    let path = place.clone().unwrap_or_default();
    let work = move || match place.as_deref().map(open) {
        Some(Ok(directory)) => nix::unistd::syncfs(directory).map_err(std::io::Error::from),
        _ => {
            nix::unistd::sync();
            Ok(())
        }
    };
    let done = tokio::task::spawn_blocking(work).await.map_err(std::io::Error::other);
    done.and_then(|synced| synced).map_err(|source| ImageError::Sync { path, source })
}

fn open(path: &Path) -> std::io::Result<File> {
    File::open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_to_sync_is_where_the_files_are_written() {
        let mount = |kind: &str, source: &str, options: &[&str]| types::Mount {
            r#type: kind.into(),
            source: source.into(),
            options: options.iter().map(|&option| option.into()).collect(),
            ..types::Mount::default()
        };
        let overlay = mount("overlay", "overlay", &["lowerdir=/a", "upperdir=/b/fs", "workdir=/c"]);
        assert_eq!(place(&[overlay]), Some("/b/fs".into()));
        assert_eq!(place(&[mount("bind", "/d/fs", &["rw", "rbind"])]), Some("/d/fs".into()));
        assert_eq!(place(&[mount("ext4", "/dev/x", &[])]), None);
        assert_eq!(place(&[]), None);
    }

    #[tokio::test]
    async fn syncing_needs_no_access_to_the_place() {
        sync(Some(std::env::temp_dir())).await.unwrap();
        sync(Some("/nonexistent/place".into())).await.unwrap();
        sync(None).await.unwrap();
    }
}
