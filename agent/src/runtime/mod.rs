//! Containers and tasks through containerd.
//!
//! In: complete [`Start`] and [`Stop`] actions with a [`Root`]. Out: what exists, and a
//! stream of [`RuntimeEvent`]s. Only containers with our labels in our containerd namespace are
//! listed or touched.
//!
//! The container record is made before its snapshot and names it, which protects the snapshot from
//! containerd's garbage collection from its first moment on; what an interruption leaves is either
//! a record that [`Runtime::list`] shows or a snapshot that containerd collects by itself. So there
//! are no leases here and no sweep.
//!
//! Deliberately not here: deciding (that is `coracle_core::reconcile`), images, retries.

mod adjust;
mod capabilities;
mod cgroup;
mod container;
mod devices;
mod error;
mod events;
mod exec;
#[doc(hidden)]
pub mod fake;
mod labels;
mod list;
mod native;
mod oci;
mod remains;
mod resources;
mod rootfs;
mod seccomp;
mod signal;
mod start;
mod stop;
mod surroundings;
mod user;

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use coracle_core::desired::Limits;
use coracle_core::name::ContainerId;
use coracle_core::observed::{Container, Exit};
use coracle_core::plan::{Start, Stop};

pub use container::ContainerdRuntime;
pub use devices::DeviceProblem;
pub use error::{ImageProblem, RuntimeError};
pub use events::follow;
pub use native::NativeRoot;
pub use surroundings::{Bind, Device, Surroundings};
pub use user::native_owner;

use crate::containerd::LocalImage;

/// Something that runs containers: containerd, or the fault-injecting fake of the event loop's
/// tests. Cheap to clone. At most one call that changes a container is under way for each id; a
/// second one is refused.
pub trait Runtime: Clone + Send + Sync + 'static {
    /// Our containers, with the state of their tasks.
    ///
    /// # Errors
    /// containerd cannot be asked.
    fn list(
        &self,
    ) -> impl Future<Output = Result<BTreeMap<ContainerId, Container>, RuntimeError>> + Send;

    /// Makes a container and starts it; gives the process id of its main process. Dead remains
    /// under the same id are removed first. What a failure leaves behind is removed.
    ///
    /// # Errors
    /// There is a live task under this id; the id belongs to somebody else; the image cannot be
    /// run as asked; a device or a seccomp profile is not there; containerd refuses or cannot be
    /// asked.
    fn start(
        &self,
        start: &Start,
        root: &Root,
        surroundings: &Surroundings,
    ) -> impl Future<Output = Result<u32, RuntimeError>> + Send;

    /// Deletes the task of a container whose process ended, if there is one, before the container is
    /// started again: what [`start`](Self::start) would do first, beside what it needs.
    ///
    /// # Errors
    /// It has not ended; the id belongs to somebody else; containerd refuses or cannot be asked.
    fn clear_dead(&self, id: &ContainerId)
    -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// Sends the signal, waits for the end up to the grace period, kills, waits a little, then
    /// removes the container. A container that does not exist is no error.
    ///
    /// # Errors
    /// The process outlives SIGKILL; the id belongs to somebody else; containerd refuses or cannot
    /// be asked.
    fn stop(&self, stop: &Stop) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// Removes a container that does not run, with its snapshot. One that does not exist is no
    /// error.
    ///
    /// # Errors
    /// There is a live task under this id; the id belongs to somebody else; containerd refuses or
    /// cannot be asked.
    fn remove(&self, id: &ContainerId) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// Gives a running container other limits; its processes go on. Where there is none from now
    /// on, it is as if it had been started without. [`list`](Self::list) tells the new ones.
    ///
    /// # Errors
    /// It does not run; it uses more memory than it may have from now on; the id belongs to somebody
    /// else; containerd refuses or cannot be asked. What it may use is then as before, or as wanted
    /// and not told.
    fn set_limits(
        &self,
        id: &ContainerId,
        limits: &Limits,
    ) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// Runs a command in a running container, as its own user, with its variables and no input or
    /// output; gives its exit code. After `limit` from its start, or if this is dropped, it is
    /// killed with the children that it has not put into groups of their own.
    ///
    /// Several may run at once. What an agent that died left running is ended first.
    ///
    /// # Errors
    /// The container does not run; there is no such command in it; it did not end in time; the id
    /// belongs to somebody else; containerd refuses or cannot be asked.
    fn exec(
        &self,
        id: &ContainerId,
        command: &[String],
        limit: Duration,
    ) -> impl Future<Output = Result<u32, RuntimeError>> + Send;
}

/// What a container's root file system is.
#[derive(Clone, Debug)]
pub enum Root {
    /// That of an image, with a layer of the container's own.
    Image(LocalImage),
    /// The gateway's own.
    Native(NativeRoot),
}

/// What [`follow`] tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuntimeEvent {
    /// containerd answers, and every end of a container from now on will be told. What happened
    /// before must be looked up by [`Runtime::list`].
    Connected {
        /// containerd's version, as it gives it.
        version: String,
    },
    /// The main process of a container in our namespace ended; not necessarily one of ours.
    Exited {
        /// Which container.
        id: ContainerId,
        /// The process id that it had.
        pid: u32,
        /// How it ended.
        exit: Exit,
    },
    /// The kernel killed a process of a container in our namespace for want of memory: the main
    /// process, or another one in it, which the container may have outlived.
    ///
    /// If the main process ended as well, this is told before its [`Exited`](Self::Exited). What was
    /// killed is told of once in one connection to containerd, and again in the next one if the
    /// container goes on and ends there.
    OutOfMemory {
        /// Which container.
        id: ContainerId,
    },
    /// containerd went away or does not answer. Told once until the next [`Connected`].
    ///
    /// [`Connected`]: Self::Connected
    Disconnected {
        /// Why, for people.
        reason: String,
    },
}
