//! Network namespaces: made by a thread that lives for that alone, kept by a mount, so that they
//! outlive the agent and every container in them.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use coracle_core::name::ReplicaId;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statfs::{NSFS_MAGIC, statfs};
use tokio::sync::oneshot;

use super::error::NetworkError;
use super::netlink;
use crate::fault::fault_point;

/// How many mounts over one another are taken away at most.
const MOUNTS: usize = 16;

/// Makes a namespace with a loopback interface that is up, and mounts it at `path`.
pub(super) async fn make(replica: &ReplicaId, path: PathBuf) -> Result<(), NetworkError> {
    let error = |doing| {
        let replica = replica.clone();
        move |source| NetworkError::Namespace { doing, replica, source }
    };
    // What a crash left in its place.
    remove(replica, &path)?;
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o444)
        .open(&path)
        .map_err(NetworkError::file("create", &path))?;
    fault_point("netns.file");
    let (done, result) = oneshot::channel();
    let thread = std::thread::Builder::new().name("netns".into()).spawn(move || {
        if done.send(enter_new_and_mount(&path)).is_err() {
            tracing::debug!("nobody waits for a network namespace any more");
        }
    });
    thread.map_err(NetworkError::file("start a thread for", "a network namespace"))?;
    match result.await {
        Ok(Ok(())) => {}
        Ok(Err((doing, source))) => return Err(error(doing)(source)),
        Err(_) => return Err(NetworkError::BrokenOff { replica: replica.clone() }),
    }
    fault_point("netns.mounted");
    Ok(())
}

/// For a thread that ends afterwards.
fn enter_new_and_mount(path: &Path) -> Result<(), (&'static str, Errno)> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| ("make", errno))?;
    netlink::set_loopback_up().map_err(|errno| ("set up the loopback interface of", errno))?;
    fault_point("netns.made");
    let own = Path::new("/proc/thread-self/ns/net");
    mount(Some(own), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(|errno| ("mount", errno))
}

/// Whether a namespace is mounted at `path`.
pub(super) fn is_there(path: &Path) -> bool {
    statfs(path).is_ok_and(|fs| fs.filesystem_type() == NSFS_MAGIC)
}

/// Takes away the mount and the file; what is not there is no error.
pub(super) fn remove(replica: &ReplicaId, path: &Path) -> Result<(), NetworkError> {
    for _ in 0..MOUNTS {
        match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => fault_point("netns.unmounted"),
            // Not a mount, or not there.
            Err(Errno::EINVAL | Errno::ENOENT) => break,
            Err(source) => {
                let replica = replica.clone();
                return Err(NetworkError::Namespace { doing: "unmount", replica, source });
            }
        }
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(NetworkError::file("remove", path)(error))
        }
        _ => {
            fault_point("netns.removed");
            Ok(())
        }
    }
}
