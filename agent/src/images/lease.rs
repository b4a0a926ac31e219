//! The lease of one pull: from its first byte until the image record protects the content.
//!
//! A pull that fails, is given up or dies with the process leaves its lease behind; the next try
//! for the same reference takes it up and finds the partial downloads. Leases expire, so that what
//! nobody asks for again vanishes; one that is taken up is renewed. Within one process only one pull
//! of a reference runs at a time; two agents in one namespace would take each other's leases away,
//! and try again.

use std::time::{Duration, SystemTime};

use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::{
    AddResourceRequest, CreateRequest, DeleteRequest, Lease as Record, ListRequest,
    ListResourcesRequest, Resource,
};
use containerd_client::tonic::Code;
use containerd_client::tonic::transport::Channel;
use coracle_core::image::ImageRef;
use prost_types::Timestamp;

use super::error::ImageError;
use super::manifest::digest_of;
use crate::containerd::Containerd;

/// Which pull a lease belongs to: the hash of its reference.
const LABEL: &str = "io.coracle/pull";
const EXPIRE: &str = "containerd.io/gc.expire";
/// Partial downloads outlive a long time without network.
const LIFE: Duration = Duration::from_secs(7 * 24 * 3600);
/// A lease that is taken up again is renewed after this time.
const FRESH: Duration = Duration::from_secs(24 * 3600);

/// A lease in containerd. Dropped, it stays there.
#[derive(Debug)]
pub(crate) struct Lease {
    containerd: Containerd,
    pub(crate) id: String,
}

impl Lease {
    /// Takes up the lease of an earlier try for this reference, or makes one.
    pub(crate) async fn acquire(
        containerd: &Containerd,
        image: &ImageRef,
        random: &str,
        now: SystemTime,
    ) -> Result<Self, ImageError> {
        let hash = digest_of(image.to_string().as_bytes());
        let mut client = LeasesClient::new(containerd.channel());
        let filters = vec![format!("labels.\"{LABEL}\"=={}", hash.hex())];
        let listed = client.list(containerd.request(ListRequest { filters })).await;
        let mut old = listed.map_err(ImageError::containerd("list leases"))?.into_inner().leases;
        let is_fresh = |lease: &Record| age(lease, now).is_some_and(|age| age < FRESH);
        if let Some(at) = old.iter().position(is_fresh) {
            let id = old.swap_remove(at).id;
            return Ok(Self { containerd: containerd.clone(), id });
        }
        let id = format!("coracle-pull-{}-{random}", &hash.hex()[..16]);
        let expire = Timestamp::from(now + LIFE).to_string();
        let labels = [(LABEL.to_owned(), hash.hex().to_owned()), (EXPIRE.to_owned(), expire)];
        let request = CreateRequest { id: id.clone(), labels: labels.into() };
        let created = client.create(containerd.request(request)).await;
        created.map_err(ImageError::containerd("create a lease"))?;
        let lease = Self { containerd: containerd.clone(), id };
        for old in old {
            lease.inherit(&mut client, old.id).await?;
        }
        Ok(lease)
    }

    async fn inherit(
        &self,
        client: &mut LeasesClient<Channel>,
        old: String,
    ) -> Result<(), ImageError> {
        let request = self.containerd.request(ListResourcesRequest { id: old.clone() });
        let listed = match client.list_resources(request).await {
            Err(status) if status.code() == Code::NotFound => return Ok(()),
            listed => listed.map_err(ImageError::containerd("list the resources of a lease"))?,
        };
        for resource in listed.into_inner().resources {
            self.add(client, resource).await?;
        }
        Self { containerd: self.containerd.clone(), id: old }.delete().await
    }

    async fn add(
        &self,
        client: &mut LeasesClient<Channel>,
        resource: Resource,
    ) -> Result<(), ImageError> {
        let request = AddResourceRequest { id: self.id.clone(), resource: Some(resource) };
        match client.add_resource(self.containerd.request(request)).await {
            Err(status) if status.code() != Code::AlreadyExists => {
                Err(ImageError::containerd("lease a resource")(status))
            }
            _ => Ok(()),
        }
    }

    /// Protects a committed snapshot that another pull may have made.
    pub(crate) async fn add_snapshot(&self, name: &str) -> Result<(), ImageError> {
        let kind = format!("snapshots/{}", self.containerd.snapshotter());
        let resource = Resource { id: name.to_owned(), r#type: kind };
        self.add(&mut LeasesClient::new(self.containerd.channel()), resource).await
    }

    /// Gives everything back to containerd's garbage collection.
    pub(crate) async fn delete(self) -> Result<(), ImageError> {
        let request = self.containerd.request(DeleteRequest { id: self.id, sync: false });
        match LeasesClient::new(self.containerd.channel()).delete(request).await {
            Err(status) if status.code() != Code::NotFound => {
                Err(ImageError::containerd("delete a lease")(status))
            }
            _ => Ok(()),
        }
    }
}

/// How long ago a lease was made; `None` if that lies in the future.
fn age(lease: &Record, now: SystemTime) -> Option<Duration> {
    let created = SystemTime::try_from(lease.created_at?).ok()?;
    now.duration_since(created).ok()
}
