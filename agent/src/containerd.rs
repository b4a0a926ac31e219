//! The connection to containerd, shared by `runtime` and `images`.
//!
//! In: the configuration. Out: requests with our namespace, a deadline and, where wanted, a lease.
//! The channel connects when first used and again after containerd went away; nothing here waits.

use std::path::PathBuf;
use std::time::Duration;

use containerd_client::services::v1::namespaces_client::NamespacesClient;
use containerd_client::services::v1::{CreateNamespaceRequest, Namespace};
use containerd_client::tonic::metadata::{Ascii, MetadataValue};
use containerd_client::tonic::transport::{Channel, Endpoint};
use containerd_client::tonic::{Code, Request, Status};
use coracle_core::image::{Digest, ImageRef};

use crate::config::ContainerdConfig;

/// Longest time for a call that containerd answers from memory or by one small action.
const SHORT: Duration = Duration::from_secs(60);

/// Longest error that containerd may answer with, in bytes.
const MAX_ERROR_BYTES: u32 = 256 * 1024;

/// The connection to containerd. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Containerd {
    channel: Channel,
    namespace: MetadataValue<Ascii>,
    snapshotter: String,
    runtime: String,
    cgroup: String,
}

/// An image that is complete in the content store and unpacked: all that starting a container from
/// it needs.
#[derive(Clone, Debug)]
pub struct LocalImage {
    /// The reference it was asked for by; also its name in containerd's image store.
    pub reference: ImageRef,
    /// Digest of what the reference resolved to (index or manifest).
    pub digest: Digest,
    /// The OCI image configuration, JSON
    /// (<https://github.com/opencontainers/image-spec/blob/v1.1.0/config.md>).
    pub config: Vec<u8>,
    /// Chain id of its layers: the committed snapshot to start from; `None` for an image without layers.
    pub chain_id: Option<String>,
}

/// The configuration names a containerd that cannot be.
#[derive(Debug, thiserror::Error)]
pub enum InvalidContainerd {
    /// The socket's path cannot be written as a URI.
    #[error("containerd.address {0:?} is not a usable path")]
    Address(PathBuf),
    /// The namespace is not plain ASCII.
    #[error("containerd.namespace {0:?} is not valid")]
    Namespace(String),
}

impl Containerd {
    /// A connection that is made when it is first used.
    ///
    /// # Errors
    /// The address or the namespace cannot be used.
    pub fn new(config: &ContainerdConfig) -> Result<Self, InvalidContainerd> {
        let namespace = MetadataValue::try_from(&config.namespace)
            .map_err(|_| InvalidContainerd::Namespace(config.namespace.clone()))?;
        let endpoint = Endpoint::from_shared(format!("unix://{}", config.address.display()))
            .map_err(|_| InvalidContainerd::Address(config.address.clone()))?;
        // containerd's errors come in a header, with all that runc had to say.
        let channel = endpoint.http2_max_header_list_size(MAX_ERROR_BYTES).connect_lazy();
        Ok(Self {
            channel,
            namespace,
            snapshotter: config.snapshotter.clone(),
            runtime: config.runtime.clone(),
            cgroup: config.cgroup.clone(),
        })
    }

    /// For the generated clients.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// The containerd namespace that requests are made in.
    pub fn namespace(&self) -> &str {
        self.namespace.to_str().unwrap_or_default()
    }

    /// Name of the snapshotter in use.
    pub fn snapshotter(&self) -> &str {
        &self.snapshotter
    }

    /// Name of the runtime shim in use.
    pub fn runtime(&self) -> &str {
        &self.runtime
    }

    /// Parent of the workloads' cgroups.
    pub fn cgroup(&self) -> &str {
        &self.cgroup
    }

    /// Makes our namespace if it is not there yet.
    ///
    /// # Errors
    /// containerd cannot be reached or refuses.
    pub async fn ensure_namespace(&self) -> Result<(), Status> {
        let name = self.namespace.to_str().unwrap_or_default().to_owned();
        let namespace = Some(Namespace { name, ..Namespace::default() });
        let request = self.request(CreateNamespaceRequest { namespace });
        match NamespacesClient::new(self.channel()).create(request).await {
            Err(status) if status.code() != Code::AlreadyExists => Err(status),
            _ => Ok(()),
        }
    }

    /// A request in our namespace that containerd must answer soon.
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = self.endless(message);
        request.set_timeout(SHORT);
        request
    }

    /// A request in our namespace without a deadline, for streams and for work that takes as long
    /// as it takes.
    pub fn endless<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("containerd-namespace", self.namespace.clone());
        request
    }
}

/// Where a failed call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// containerd refused.
    Containerd,
    /// No answer came in time.
    Deadline,
    /// The connection could not be made, or broke.
    Transport,
}

/// Tells where a call failed. A status that was made on this side of the socket has a source; one
/// that containerd sent has none.
pub fn origin(status: &Status) -> Origin {
    let mut source = std::error::Error::source(status);
    if source.is_none() {
        let late = status.code() == Code::DeadlineExceeded;
        return if late { Origin::Deadline } else { Origin::Containerd };
    }
    while let Some(error) = source {
        if error.is::<containerd_client::tonic::TimeoutExpired>() {
            return Origin::Deadline;
        }
        source = error.source();
    }
    Origin::Transport
}

/// Puts what a request creates under a lease, so that containerd's garbage collection spares it.
///
/// # Errors
/// The lease's id is not plain ASCII.
pub fn under_lease<T>(mut request: Request<T>, lease: &str) -> Result<Request<T>, Status> {
    let lease = MetadataValue::try_from(lease)
        .map_err(|_| Status::invalid_argument("lease id is not plain ASCII"))?;
    request.metadata_mut().insert("containerd-lease", lease);
    Ok(request)
}
