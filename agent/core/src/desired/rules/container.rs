//! What a container says for itself.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use coracle_protocol::Code;
use coracle_protocol::desired as wire;
use coracle_protocol::limits::MAX_ENTRIES;

use super::shared::Shared;
use super::{Found, check_text, environment, escaped, mounts, probes, resource_name, shortened};
use crate::artifact::{ArtifactRef, Software};
use crate::desired::{Capabilities, Container, DeviceRequest, Limits, Seccomp, Template};
use crate::image::ImageRef;
use crate::name::ContainerName;

/// Every capability up to Linux 6.12 (capabilities(7)).
pub const CAPABILITIES: [&str; 41] = [
    "CAP_AUDIT_CONTROL",
    "CAP_AUDIT_READ",
    "CAP_AUDIT_WRITE",
    "CAP_BLOCK_SUSPEND",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_KILL",
    "CAP_LEASE",
    "CAP_LINUX_IMMUTABLE",
    "CAP_MAC_ADMIN",
    "CAP_MAC_OVERRIDE",
    "CAP_MKNOD",
    "CAP_NET_ADMIN",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_RAW",
    "CAP_PERFMON",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYSLOG",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_CHROOT",
    "CAP_SYS_MODULE",
    "CAP_SYS_NICE",
    "CAP_SYS_PACCT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_WAKE_ALARM",
];

/// Devices that the runtime gives every container.
const OWN_DEVICES: [&str; 8] = [
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
    "/dev/console",
    "/dev/ptmx",
];

/// What the runtime mounts below /dev: a device there would be under it, and not seen.
const OWN_MOUNTS: [&str; 3] = ["/dev/pts", "/dev/shm", "/dev/mqueue"];

/// Judges one container. Its mounts are added by the workload, which knows what is given. `artifact`:
/// it is a native service, and this came of its artifact.
pub(super) fn check(
    container: wire::Container,
    artifact: Option<Option<ArtifactRef>>,
    place: &str,
    workload: Option<&str>,
    shared: &Shared<'_>,
    found: &mut Found<'_>,
) -> Option<Container> {
    let name = ContainerName::parse(&container.name).map_err(|error| {
        found.refuse(format!("{place}/name"), Code::INVALID_NAME, error.to_string())
    });
    let software = match artifact {
        Some(artifact) => artifact.map(Software::Artifact),
        None => ImageRef::parse(&container.image)
            .map(Software::Image)
            .map_err(|error| {
                found.refuse(format!("{place}/image"), Code::INVALID_IMAGE, error.to_string())
            })
            .ok(),
    };
    for (list, field) in [(&container.command, "command"), (&container.args, "args")] {
        for (i, text) in list.iter().flatten().enumerate() {
            check_text(text, || format!("{place}/{field}/{i}"), found);
        }
    }
    if container.command.as_ref().and_then(|command| command.first()).is_some_and(String::is_empty)
    {
        found.refuse(format!("{place}/command/0"), Code::INVALID_VALUE, "must name a program");
    }
    let env = check_env(&container.env, place, workload, shared, found);
    if let Some(directory) = &container.working_dir {
        let path = || format!("{place}/working_dir");
        if !directory.starts_with('/') {
            found.refuse(path(), Code::INVALID_VALUE, "must be an absolute path");
        }
        check_text(directory, path, found);
    }
    if let Some(user) = &container.user {
        if !is_user(user) {
            let message = "must be USER, UID, USER:GROUP or UID:GID";
            found.refuse(format!("{place}/user"), Code::INVALID_VALUE, message);
        }
    }
    let devices = check_devices(&container.devices, place, found);
    let capabilities = check_capabilities(container.capabilities, place, found);
    let seccomp = check_seccomp(container.seccomp.as_deref(), place, found);
    let probes = probes::check(&container.probes, place, found);
    let container = Container {
        name: name.ok()?,
        software: software?,
        command: container.command,
        args: container.args,
        env,
        working_dir: container.working_dir,
        user: container.user,
        readonly_root: container.readonly_root,
        mounts: Vec::new(),
        limits: limits(container.limits),
        devices,
        capabilities,
        seccomp,
        probes,
    };
    found.add(shared.policy.iter().flat_map(|policy| policy.judge_container(&container, place)));
    Some(container)
}

pub(super) fn check_name_is_new(
    name: &str,
    names: &mut BTreeSet<String>,
    place: &str,
    found: &mut Found<'_>,
) {
    if !names.insert(name.to_owned()) {
        let message = match name {
            "main" => "another container is called main already, as is one without a name",
            _ => "another container of this workload has this name already",
        };
        found.refuse(format!("{place}/name"), Code::DUPLICATE_NAME, message);
    }
}

fn limits(limits: wire::Limits) -> Limits {
    let wire::Limits { memory_mib, cpu_millis, pids } = limits;
    Limits { memory_mib, cpu_millis, pids }
}

fn check_env(
    env: &BTreeMap<String, String>,
    place: &str,
    workload: Option<&str>,
    shared: &Shared<'_>,
    found: &mut Found<'_>,
) -> BTreeMap<String, Template> {
    if env.len() > MAX_ENTRIES {
        let message = format!("more than {MAX_ENTRIES} entries");
        found.refuse(format!("{place}/env"), Code::TOO_MANY, message);
    }
    let mut templates = BTreeMap::new();
    for (name, value) in env {
        let path = || format!("{place}/env/{}", escaped(name));
        check_variable(name, path, found);
        check_text(value, path, found);
        templates.insert(name.clone(), environment::check(value, workload, path, shared, found));
    }
    templates
}

pub(super) fn check_variable(name: &str, place: impl Fn() -> String, found: &mut Found<'_>) {
    if name.is_empty() || name.contains(['=', '\0']) || name.len() > 256 {
        let message = "a variable's name must not be empty, hold = or NUL, or exceed 256 bytes";
        found.refuse(place(), Code::INVALID_NAME, message);
    }
}

fn is_user(text: &str) -> bool {
    let part = |p: &str| {
        !p.is_empty()
            && p.len() <= 64
            && !p.starts_with('-')
            && p.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
    };
    match text.split_once(':') {
        Some((user, group)) => part(user) && part(group),
        None => part(text),
    }
}

fn check_devices(
    devices: &[wire::Device],
    place: &str,
    found: &mut Found<'_>,
) -> Vec<DeviceRequest> {
    let mut requests = Vec::new();
    let mut taken = BTreeSet::new();
    for (i, device) in devices.iter().enumerate() {
        let place = format!("{place}/devices/{i}");
        let request = match (&device.path, &device.resource) {
            (Some(path), None) => {
                if !taken.insert(device.to.as_ref().unwrap_or(path)) {
                    let message = "another device of this container is there already";
                    found.refuse(format!("{place}/to"), Code::INVALID_PATH, message);
                }
                check_device_path(device, path, &place, found)
            }
            (None, Some(resource)) => {
                if device.to.is_some() || device.access.is_some() {
                    let message =
                        "a resource says itself where its devices are and what they allow";
                    found.refuse(&*place, Code::CONFLICTING_FIELD, message);
                }
                resource_name(resource, format!("{place}/resource"), found)
                    .map(|name| DeviceRequest::Resource(name.to_string()))
            }
            _ => {
                found.refuse(&*place, Code::INVALID_VALUE, "must have either path or resource");
                None
            }
        };
        requests.extend(request);
    }
    requests
}

fn check_device_path(
    device: &wire::Device,
    path: &str,
    place: &str,
    found: &mut Found<'_>,
) -> Option<DeviceRequest> {
    let to = device.to.as_deref().unwrap_or(path);
    for (path, field) in [(path, "path"), (to, "to")] {
        if !mounts::is_clean(path) || !path.starts_with("/dev/") {
            let message = "must be a path below /dev, without . and ..";
            found.refuse(format!("{place}/{field}"), Code::INVALID_PATH, message);
        }
    }
    let is_own = |own: &&str| Path::new(to).starts_with(own);
    if OWN_DEVICES.contains(&to) || OWN_MOUNTS.iter().any(is_own) {
        let message = "is the runtime's own in every container; give the device another place";
        found.refuse(format!("{place}/to"), Code::INVALID_PATH, message);
    }
    let access = device.access.as_deref().unwrap_or("rw");
    let mut letters: Vec<char> = access.chars().collect();
    letters.sort_unstable();
    letters.dedup();
    let good = letters.len() == access.len() && letters.iter().all(|c| "rwm".contains(*c));
    if !good || access.is_empty() {
        let message = "must be r, w and m in some combination";
        found.refuse(format!("{place}/access"), Code::INVALID_VALUE, message);
    }
    Some(DeviceRequest::Path { path: path.into(), to: to.into(), access: access.into() })
}

fn check_capabilities(
    capabilities: wire::Capabilities,
    place: &str,
    found: &mut Found<'_>,
) -> Capabilities {
    let wire::Capabilities { add, drop } = capabilities;
    for (list, field) in [(&add, "add"), (&drop, "drop")] {
        for (i, name) in list.iter().enumerate() {
            let all = field == "drop" && name == "ALL";
            if !all && !CAPABILITIES.contains(&name.as_str()) {
                let mut message = format!("{:?} is no capability of Linux", shortened(name));
                if CAPABILITIES.contains(&format!("CAP_{name}").as_str()) {
                    message.push_str(&format!("; CAP_{name} is"));
                }
                let place = format!("{place}/capabilities/{field}/{i}");
                found.refuse(place, Code::INVALID_VALUE, message);
            }
        }
    }
    Capabilities { add, drop }
}

fn check_seccomp(profile: Option<&str>, place: &str, found: &mut Found<'_>) -> Seccomp {
    match profile {
        None | Some("default") => Seccomp::Default,
        Some("unconfined") => Seccomp::Unconfined,
        Some(name) => {
            resource_name(name, format!("{place}/seccomp"), found);
            Seccomp::Named(name.to_owned())
        }
    }
}
