//! Who a workload is, told to itself and to those that it talks to.
//!
//! In: which pods are served, and what the fleet grants each. Out: HTTP over a Unix socket that only
//! that pod finds, bind-mounted at [`DIR_IN_CONTAINER`]:
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/identity` | who one is |
//! | `GET /v1/token?audience=X` | a signed token for X, good for ten minutes |
//! | `GET /v1/credentials`, `GET /v1/credentials/NAME` | what the fleet grants, and its value |
//!
//! The directory is mounted, not the socket, so that the socket of a restarted agent shows. Who asks
//! is told by the file system: nobody else reaches the socket but root. Connections, sizes, times
//! and rates have limits for each pod. Deliberately not here: which workloads have an identity, and
//! secrets themselves.

mod answer;
mod token;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use coracle_core::backoff::Retry;
use coracle_core::name::{ReplicaId, ResourceName};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::Value;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;
use tracing::{debug, warn};

pub use token::LIFE;

use crate::config::Config;
use crate::key_file::KeyFileError;
use crate::secrets::Secrets;
use answer::Pod;
use token::{Signer, Subject};

/// Where a container finds the directory with the socket.
pub const DIR_IN_CONTAINER: &str = "/run/coracle/identity";
/// Where it finds the socket.
pub const SOCKET_IN_CONTAINER: &str = "/run/coracle/identity/socket";
/// The variable that tells it so.
pub const SOCKET_VARIABLE: &str = "CORACLE_IDENTITY_SOCKET";

const SOCKET: &str = "socket";
const SOCKET_NEW: &str = ".socket.new";

/// Connections of one pod that are served at once; further ones wait in the kernel's queue.
const MOST_CONNECTIONS: usize = 8;
/// For the request's head to arrive.
const HEAD_TIME: Duration = Duration::from_secs(5);
/// For everything.
const WHOLE_TIME: Duration = Duration::from_secs(15);
/// Largest request head, in bytes; the smallest that the library takes.
const BUFFER: usize = 8 * 1024;
const MOST_HEADERS: usize = 32;
/// Pause after the kernel could not give a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// An identity cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The socket or its directory cannot be made or removed.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The device's key cannot be had.
    #[error("this gateway's key for the identity of workloads cannot be used")]
    Key(#[from] KeyFileError),
    /// The system gives no random numbers.
    #[error("the system gives no random numbers")]
    NoRandom,
}

impl IdentityError {
    /// When the same thing is worth another try.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Key(KeyFileError::Damaged { .. }) => Retry::Rarely,
            _ => Retry::Backoff,
        }
    }
}

/// A pod that is to be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityRequest {
    /// Which; its workload is a part of it.
    pub replica: ReplicaId,
    /// The project of the order.
    pub project: Option<String>,
    /// Names of the secrets that it may have.
    pub grants: Vec<ResourceName>,
}

/// All pods that are served. Cheap to clone; with the last clone all sockets close.
#[derive(Clone)]
pub struct Identities {
    shared: Arc<Shared>,
}

struct Shared {
    pods: PathBuf,
    signer: Arc<Signer>,
    secrets: Arc<Secrets>,
    served: Mutex<BTreeMap<ReplicaId, Served>>,
}

struct Served {
    pod: Arc<Pod>,
    task: AbortHandle,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Identities {
    /// Serves nobody yet, and touches nothing.
    pub fn new(config: &Config, secrets: Arc<Secrets>) -> Self {
        let shared = Shared {
            pods: config.runtime_dir.join("pods"),
            signer: Arc::new(Signer::new(&config.state_dir)),
            secrets,
            served: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Serves a pod from now on; gives the directory to mount at [`DIR_IN_CONTAINER`], read-only.
    /// For one that is served already, what it is granted changes and nothing else. Called inside
    /// the async runtime.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn serve(&self, request: &IdentityRequest) -> Result<PathBuf, IdentityError> {
        let dir = self.dir(&request.replica);
        let subject = Subject {
            gateway: self.shared.secrets.gateway(),
            project: request.project.clone(),
            replica: request.replica.clone(),
        };
        let mut served = self.shared.served.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(there) = served.get(&request.replica) {
            if !there.task.is_finished() && dir.join(SOCKET).exists() {
                there.pod.change(subject, request.grants.clone());
                return Ok(dir);
            }
        }
        let listener = listen(&dir)?;
        let (signer, secrets) = (self.shared.signer.clone(), self.shared.secrets.clone());
        let pod = Arc::new(Pod::new(subject, request.grants.clone(), signer, secrets));
        let task = tokio::spawn(accept(listener, Arc::clone(&pod))).abort_handle();
        served.insert(request.replica.clone(), Served { pod, task });
        Ok(dir)
    }

    /// Serves a pod no longer, and removes its directory. One that is not served is no error.
    ///
    /// # Errors
    /// The directory cannot be removed.
    pub fn remove(&self, replica: &ReplicaId) -> Result<(), IdentityError> {
        self.shared.served.lock().unwrap_or_else(PoisonError::into_inner).remove(replica);
        let dir = self.dir(replica);
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed("remove", &dir)(error))
            }
            _ => Ok(()),
        }
    }

    /// Whether a pod is served.
    pub fn serves(&self, replica: &ReplicaId) -> bool {
        let served = self.shared.served.lock().unwrap_or_else(PoisonError::into_inner);
        served.get(replica).is_some_and(|served| !served.task.is_finished())
    }

    /// What tokens are verified with: a JWK Set (RFC 7517).
    ///
    /// # Errors
    /// The device's key cannot be had.
    pub fn key_set(&self) -> Result<Value, IdentityError> {
        self.shared.signer.key_set()
    }

    fn dir(&self, replica: &ReplicaId) -> PathBuf {
        self.shared.pods.join(replica.to_string()).join("identity")
    }
}

impl fmt::Debug for Identities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let served = self.shared.served.lock().unwrap_or_else(PoisonError::into_inner);
        f.debug_struct("Identities").field("served", &served.keys()).finish_non_exhaustive()
    }
}

fn failed(action: &'static str, path: &Path) -> impl Fn(io::Error) -> IdentityError + use<> {
    let path = path.to_owned();
    move |source| IdentityError::Io { action, path: path.clone(), source }
}

/// A socket in `dir`, in the place of what an agent before left there. It is bound through the
/// directory's descriptor, because a socket's path ends at 107 bytes.
fn listen(dir: &Path) -> Result<UnixListener, IdentityError> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed("make", dir))?;
    let path = dir.join(SOCKET);
    let bind = || {
        // Whichever user a container runs as; others do not get past the directories above.
        fs::set_permissions(dir, Permissions::from_mode(0o755))?;
        let new = dir.join(SOCKET_NEW);
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let opened = File::open(dir)?;
        let short = format!("/proc/self/fd/{}/{SOCKET_NEW}", opened.as_raw_fd());
        let listener = UnixListener::bind(short)?;
        fs::set_permissions(&new, Permissions::from_mode(0o666))?;
        fs::rename(&new, &path)?;
        Ok(listener)
    };
    bind().map_err(failed("listen on", &path))
}

async fn accept(listener: UnixListener, pod: Arc<Pod>) {
    let mut connections = JoinSet::new();
    loop {
        let has_room = connections.len() < MOST_CONNECTIONS;
        tokio::select! {
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended {
                    warn!(%error, "a connection of a workload broke off");
                }
            }
            accepted = listener.accept(), if has_room => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(serve(stream, Arc::clone(&pod)));
                }
                Err(error) => {
                    warn!(%error, "cannot take a connection of a workload");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
}

/// One connection, one request.
async fn serve(stream: UnixStream, pod: Arc<Pod>) {
    let service = service_fn(|request| {
        let pod = Arc::clone(&pod);
        async move { Ok::<_, Infallible>(pod.answer(&request)) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .keep_alive(false)
        .max_buf_size(BUFFER)
        .max_headers(MOST_HEADERS)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(WHOLE_TIME, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "a connection of a workload failed"),
        Err(_) => debug!("a connection of a workload took too long"),
    }
}
