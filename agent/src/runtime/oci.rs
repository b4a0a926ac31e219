//! The OCI runtime specification of a container: a pure function of the order, the image and a few
//! facts about the machine.
//!
//! Format: <https://github.com/opencontainers/runtime-spec/blob/v1.0.2/config.md>. Defaults are
//! those that containerd's CRI plugin and Docker give an unprivileged container, and no privileges
//! can be gained on top of them. Unlike `ctr`, and like those two, nothing is mounted over the
//! image's `/run`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use coracle_core::desired::Container;
use coracle_core::plan::Start;
use coracle_protocol::desired::Network;
use serde::Deserialize;
use serde_json::{Value, json};

use super::capabilities;
use super::devices::Node;
use super::error::ImageProblem;
use super::native::NativeRoot;
use super::resources::resources;
use super::surroundings::{Bind, Surroundings};
use super::user::Ids;

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

const READONLY: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Soft and hard limit, the kernel's own defaults: what select(2) can stand, and what every
/// containerd may give away, however it is confined itself.
const OPEN_FILES: (u64, u64) = (1024, 4096);

/// What the specification needs to know of the machine.
#[derive(Clone, Copy, Debug)]
pub(super) struct Host {
    /// Whether the unified cgroup hierarchy is mounted at `/sys/fs/cgroup`.
    pub(super) cgroup_v2: bool,
    /// Whether it has an `/etc/resolv.conf`.
    pub(super) resolv_conf: bool,
    /// Whether it has an `/etc/hosts`.
    pub(super) hosts: bool,
    /// Whether the number of processes can be limited.
    pub(super) pids_limit: bool,
    /// Whether swap can be limited.
    pub(super) swap_limit: bool,
    /// Its architecture, in Rust's name.
    pub(super) arch: &'static str,
}

/// The part of an image's configuration that says how to run it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct ImageConfig {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: String,
    user: String,
    pub(super) stop_signal: Option<String>,
}

impl ImageConfig {
    /// Reads an OCI image configuration.
    ///
    /// # Errors
    /// It is not valid.
    pub(super) fn parse(json: &[u8]) -> Result<Self, ImageProblem> {
        #[derive(Deserialize)]
        struct Whole {
            config: Option<ImageConfig>,
        }
        let whole: Whole = serde_json::from_slice(json).map_err(ImageProblem::Config)?;
        Ok(whole.config.unwrap_or_default())
    }

    /// What stands in for one where there is no image.
    pub(super) fn native(env: Vec<String>, working_dir: String, user: String) -> Self {
        Self { env: Some(env), working_dir, user, ..Self::default() }
    }

    /// The user to run as: the container's own, or the image's; empty for root.
    pub(super) fn user<'a>(&'a self, container: &'a Container) -> &'a str {
        container.user.as_deref().unwrap_or(&self.user)
    }

    /// As in a Kubernetes pod: `command` stands for the entrypoint, `args` for the image's command,
    /// and a `command` alone leaves the image's command out.
    fn args(&self, container: &Container) -> Result<Vec<String>, ImageProblem> {
        let entrypoint = container.command.as_ref().or(self.entrypoint.as_ref());
        let cmd = match (&container.command, &container.args) {
            (_, Some(args)) => Some(args),
            (Some(_), None) => None,
            (None, None) => self.cmd.as_ref(),
        };
        let args: Vec<String> = entrypoint.into_iter().chain(cmd).flatten().cloned().collect();
        match args.first() {
            Some(program) if !program.is_empty() => Ok(args),
            _ => Err(ImageProblem::NoCommand),
        }
    }

    /// A default `PATH`, then the image's variables, then the container's; a later one replaces an
    /// earlier one of the same name where that stood.
    fn env(&self, own: &BTreeMap<String, String>) -> Vec<String> {
        let own = own.iter().map(|(name, value)| format!("{name}={value}"));
        let image = self.env.iter().flatten().cloned();
        let mut env: Vec<String> = vec![DEFAULT_PATH.into()];
        for variable in image.chain(own) {
            let name = |v: &str| v.split('=').next().unwrap_or_default().to_owned();
            match env.iter_mut().find(|known| name(known) == name(&variable)) {
                Some(known) => *known = variable,
                None => env.push(variable),
            }
        }
        env
    }

    fn working_dir<'a>(&'a self, container: &'a Container) -> &'a str {
        let own = container.working_dir.as_deref();
        own.or(Some(&self.working_dir)).filter(|dir| !dir.is_empty()).unwrap_or("/")
    }
}

/// What a container is to be made of: what was asked for, and what was found for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parts<'a> {
    pub(super) start: &'a Start,
    pub(super) image: &'a ImageConfig,
    /// The root file system, if it is no image's.
    pub(super) native: Option<&'a NativeRoot>,
    pub(super) surroundings: &'a Surroundings,
    pub(super) devices: &'a [Node],
    /// The `linux.seccomp` object; none for no filter.
    pub(super) seccomp: Option<&'a Value>,
    pub(super) ids: &'a Ids,
    /// Its path in the cgroup hierarchy.
    pub(super) cgroup: &'a str,
    pub(super) host: &'a Host,
}

/// The specification for one container.
///
/// # Errors
/// There is nothing to run.
pub(super) fn spec(parts: Parts<'_>) -> Result<Value, ImageProblem> {
    let Parts { start, image, surroundings, ids, host, .. } = parts;
    let container = &*start.container;
    let (soft, hard) = OPEN_FILES;
    let mut args = image.args(container)?;
    if let Some(native) = parts.native {
        let rest = args.iter().skip(1).map(|text| native.text(text));
        args = [native.program(&args[0])].into_iter().chain(rest).collect();
    }
    let mut spec = json!({
        "ociVersion": "1.0.2",
        "hostname": host_name(start, surroundings),
        "root": { "path": "rootfs", "readonly": container.readonly_root },
        "process": {
            "args": args,
            "env": image.env(&surroundings.env),
            "cwd": image.working_dir(container),
            "user": { "uid": ids.uid, "gid": ids.gid, "additionalGids": ids.groups },
            "noNewPrivileges": true,
            "capabilities": capabilities::sets(&container.capabilities),
            "rlimits": [{ "type": "RLIMIT_NOFILE", "soft": soft, "hard": hard }],
            // Not containerd's own, which is -999: it would be inherited.
            "oomScoreAdj": 0,
        },
        "mounts": mounts(parts)?,
        "linux": {
            "cgroupsPath": parts.cgroup,
            "namespaces": namespaces(start.pod.network, surroundings, host),
            "resources": resources(&container.limits, parts.devices, host),
            "maskedPaths": masked(parts.native),
            "readonlyPaths": READONLY,
        },
    });
    if parts.native.is_some() {
        spec["linux"]["rootfsPropagation"] = "private".into();
    }
    if !parts.devices.is_empty() {
        let nodes = parts.devices.iter().map(|device| device.node(ids));
        spec["linux"]["devices"] = nodes.collect();
    }
    if let Some(profile) = parts.seccomp {
        spec["linux"]["seccomp"] = profile.clone();
    }
    Ok(spec)
}

/// What is never to be seen.
fn masked(native: Option<&NativeRoot>) -> Vec<&Path> {
    let own = native.into_iter().flat_map(|native| &native.masked);
    MASKED.iter().map(Path::new).chain(own.map(PathBuf::as_path)).collect()
}

fn host_name(start: &Start, surroundings: &Surroundings) -> String {
    match surroundings.host_name.as_str() {
        "" => format!("{}-{}", start.replica.workload, start.replica.index),
        name => name.to_owned(),
    }
}

/// All its own, but for the network: that of the gateway, or one that the containers of a replica
/// share.
fn namespaces(network: Network, surroundings: &Surroundings, host: &Host) -> Vec<Value> {
    let kinds =
        ["pid", "ipc", "uts", "mount"].into_iter().chain(host.cgroup_v2.then_some("cgroup"));
    let mut namespaces: Vec<_> = kinds.map(|kind| json!({ "type": kind })).collect();
    match (network, &surroundings.netns) {
        (Network::Host, _) => {}
        (_, Some(path)) => namespaces.push(json!({ "type": "network", "path": path })),
        (_, None) => namespaces.push(json!({ "type": "network" })),
    }
    namespaces
}

fn mounts(parts: Parts<'_>) -> Result<Vec<Value>, ImageProblem> {
    let Parts { start, surroundings, host, .. } = parts;
    let network = start.pod.network;
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": kind, "options": options });
    let mut mounts = vec![
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
    ];
    if let Some(native) = parts.native {
        mounts.extend(native.mounts()?);
    }
    let own = |file: &'static str, there: bool| {
        (there && network == Network::Host).then(|| Path::new(file))
    };
    let files = [
        ("/etc/resolv.conf", &surroundings.resolv_conf, host.resolv_conf),
        ("/etc/hosts", &surroundings.hosts, host.hosts),
    ];
    // A gateway without name servers may have no file for them, and its services none then.
    let has_place = |file: &str| parts.native.is_none() || NativeRoot::has_place(Path::new(file));
    for (file, given, there) in files.into_iter().filter(|(file, ..)| has_place(file)) {
        if let Some(source) = given.as_deref().or(own(file, there)) {
            mounts.push(json!({
                "destination": file,
                "type": "bind",
                "source": source,
                "options": ["bind", "ro", "nosuid", "nodev", "noexec"],
            }));
        }
    }
    // What is mounted below another mount comes after it.
    let mut binds: Vec<_> = surroundings.binds.iter().collect();
    binds.sort_by(|one, other| one.path.cmp(&other.path));
    mounts.extend(binds.into_iter().map(bind));
    Ok(mounts)
}

fn bind(bind: &Bind) -> Value {
    let mut options = bind.options.clone();
    let is_bind = |option: &String| option == "bind" || option == "rbind";
    if !options.iter().any(is_bind) {
        options.insert(0, "bind".into());
    }
    // Within a container nobody gains privileges, whatever is mounted.
    if !options.iter().any(|option| option == "nosuid") {
        options.push("nosuid".into());
    }
    json!({ "destination": bind.path, "type": "bind", "source": bind.source, "options": options })
}

#[cfg(test)]
#[path = "oci_tests.rs"]
pub(super) mod tests;
