//! The OCI runtime specification of a container: a pure function of the order, the image and a few
//! facts about the machine.
//!
//! Format: <https://github.com/opencontainers/runtime-spec/blob/v1.0.2/config.md>. Defaults are
//! those that containerd's CRI plugin and Docker give an unprivileged container, and no privileges
//! can be gained on top of them. Unlike `ctr`, and like those two, nothing is mounted over the
//! image's `/run`.

use std::collections::BTreeMap;

use coracle_core::desired::Container;
use coracle_core::plan::Start;
use coracle_protocol::desired::Network;
use serde::Deserialize;
use serde_json::{Value, json};

use super::error::ImageProblem;
use super::seccomp;
use super::user::Ids;

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Docker's and containerd's default set.
const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

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

/// Character devices that a container may use: major, minor (all if `None`).
const DEVICES: [(u32, Option<u32>); 9] = [
    (1, Some(3)), // null
    (1, Some(5)), // zero
    (1, Some(7)), // full
    (1, Some(8)), // random
    (1, Some(9)), // urandom
    (5, Some(0)), // tty
    (5, Some(1)), // console
    (5, Some(2)), // ptmx
    (136, None),  // pseudo terminals
];

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

/// The specification for one container. `cgroup` is its path in the cgroup hierarchy.
///
/// # Errors
/// There is nothing to run.
pub(super) fn spec(
    start: &Start,
    image: &ImageConfig,
    ids: &Ids,
    cgroup: &str,
    host: &Host,
) -> Result<Value, ImageProblem> {
    let container = &*start.container;
    let (soft, hard) = OPEN_FILES;
    Ok(json!({
        "ociVersion": "1.0.2",
        "hostname": format!("{}-{}", start.replica.workload, start.replica.index),
        "root": { "path": "rootfs", "readonly": container.readonly_root },
        "process": {
            "args": image.args(container)?,
            "env": image.env(&container.env),
            "cwd": image.working_dir(container),
            "user": { "uid": ids.uid, "gid": ids.gid, "additionalGids": ids.groups },
            "noNewPrivileges": true,
            "capabilities": {
                "bounding": CAPABILITIES,
                "effective": CAPABILITIES,
                "permitted": CAPABILITIES,
            },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "soft": soft, "hard": hard }],
        },
        "mounts": mounts(start.network, host),
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": namespaces(start.network, host),
            "resources": { "devices": devices() },
            "maskedPaths": MASKED,
            "readonlyPaths": READONLY,
            "seccomp": seccomp::profile(host.arch),
        },
    }))
}

fn namespaces(network: Network, host: &Host) -> Vec<Value> {
    let mut kinds = vec!["pid", "ipc", "uts", "mount"];
    match network {
        Network::Host => {}
        Network::None => kinds.push("network"),
    }
    if host.cgroup_v2 {
        kinds.push("cgroup");
    }
    kinds.into_iter().map(|kind| json!({ "type": kind })).collect()
}

fn devices() -> Vec<Value> {
    let mut rules = vec![
        json!({ "allow": false, "access": "rwm" }),
        json!({ "allow": true, "type": "c", "access": "m" }),
        json!({ "allow": true, "type": "b", "access": "m" }),
    ];
    rules.extend(DEVICES.iter().map(|(major, minor)| {
        let mut rule = json!({ "allow": true, "type": "c", "major": major, "access": "rwm" });
        if let Some(minor) = minor {
            rule["minor"] = (*minor).into();
        }
        rule
    }));
    rules
}

fn mounts(network: Network, host: &Host) -> Vec<Value> {
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
    let files = [("/etc/resolv.conf", host.resolv_conf), ("/etc/hosts", host.hosts)];
    for (file, _) in files.iter().filter(|(_, there)| *there && network == Network::Host) {
        mounts.push(json!({
            "destination": file,
            "type": "bind",
            "source": file,
            "options": ["bind", "ro", "nosuid", "nodev", "noexec"],
        }));
    }
    mounts
}

#[cfg(test)]
#[path = "oci_tests.rs"]
pub(super) mod tests;
