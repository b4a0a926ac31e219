//! The socket in the file system: made, fenced by its mode, removed at the end.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::chown;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use super::ApiError;
use super::access::Fence;

/// Whoever has not refused a connection by then is taken to be alive.
const PROBE: Duration = Duration::from_secs(2);

/// The listening socket. Dropping it removes the file.
#[derive(Debug)]
pub(super) struct Listening {
    listener: UnixListener,
    path: PathBuf,
}

impl Listening {
    /// Listens at `path`, open to those that the fence lets past.
    pub(super) async fn start(path: PathBuf, fence: Fence) -> Result<Self, ApiError> {
        make_parent(&path)?;
        remove_stale(&path).await?;
        let listener = UnixListener::bind(&path).map_err(failed("listen on", &path))?;
        let listening = Self { listener, path };
        listening.set(fence).map_err(failed("set the access rights of", &listening.path))?;
        Ok(listening)
    }

    /// The mode is only the first fence: credentials are judged for each connection.
    fn set(&self, fence: Fence) -> io::Result<()> {
        let mode = |bits| fs::set_permissions(&self.path, Permissions::from_mode(bits));
        mode(0o600)?;
        match fence {
            Fence::OwnUser => Ok(()),
            Fence::Group(group) => {
                chown(&self.path, None, Some(group))?;
                mode(0o660)
            }
            Fence::Open => mode(0o666),
        }
    }

    pub(super) async fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(%error, "cannot remove the API socket");
        }
    }
}

fn failed(action: &'static str, path: &Path) -> impl Fn(io::Error) -> ApiError + use<> {
    let path = path.to_owned();
    move |source| ApiError::Socket { action, path: path.clone(), source }
}

fn make_parent(path: &Path) -> Result<(), ApiError> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(parent)
            .map_err(failed("create", parent)),
        _ => Ok(()),
    }
}

/// Removes what an agent that was killed left behind, and nothing else.
async fn remove_stale(path: &Path) -> Result<(), ApiError> {
    let kind = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look at", path)(error)),
    };
    if !kind.is_socket() {
        return Err(ApiError::NotASocket(path.to_owned()));
    }
    match timeout(PROBE, UnixStream::connect(path)).await {
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed("remove the stale socket", path))
        }
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(Err(error)) if error.kind() != io::ErrorKind::WouldBlock => {
            Err(failed("probe the socket", path)(error))
        }
        Ok(_) | Err(_) => Err(ApiError::InUse(path.to_owned())),
    }
}
