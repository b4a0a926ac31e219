//! What a container finds around it: made by others before it is started, and joined here.

use std::collections::BTreeMap;
use std::path::PathBuf;

use prost_types::Any;

/// What a container finds around it. The default is a container that has nothing but its image.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Surroundings {
    /// The network namespace that it joins, bind-mounted here. Without it a container that does not
    /// see the host's network gets an empty one of its own.
    pub netns: Option<PathBuf>,
    /// Its host name; empty for `WORKLOAD-REPLICA`.
    pub host_name: String,
    /// Its `/etc/hosts`. Without it a container on the host's network sees the gateway's.
    pub hosts: Option<PathBuf>,
    /// Its `/etc/resolv.conf`. Without it a container on the host's network sees the gateway's.
    pub resolv_conf: Option<PathBuf>,
    /// What is mounted from the gateway.
    pub binds: Vec<Bind>,
    /// Variables, added to the image's.
    pub env: BTreeMap<String, String>,
    /// Where its output goes: a URI that containerd knows. Without it, nowhere.
    pub log: Option<String>,
    /// Devices of the gateway.
    pub devices: Vec<Device>,
    /// The file of the seccomp profile, if the container names one.
    pub seccomp: Option<PathBuf>,
    /// Options for the runtime shim, such as another OCI runtime.
    pub runtime_options: Option<Any>,
}

/// A file or directory of the gateway in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bind {
    /// On the gateway.
    pub source: PathBuf,
    /// In the container.
    pub path: String,
    /// As in fstab(5); `bind` and `nosuid` are added if they are not there.
    pub options: Vec<String>,
}

/// A device of the gateway in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// On the gateway. A `*` at its end stands for every device whose name goes on from there.
    pub path: PathBuf,
    /// In the container; of no meaning with a `*`.
    pub to: String,
    /// Some of `r`, `w` and `m`.
    pub access: String,
}
