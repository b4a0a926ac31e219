//! What orders may ask of one gateway, as its owner decided.
//!
//! In: a policy, and what was asked for with its place in the order. Out: refusals. Deliberately not
//! here: reading the policy, and looking at the gateway: whether a path leads somewhere else, or a
//! device is there.

use std::collections::{BTreeMap, BTreeSet};

use coracle_protocol::command::Action;
use coracle_protocol::{Code, Refusal};

use crate::desired::{Container, DeviceRequest, Network, Seccomp};

/// The capabilities that a container has unasked, as with Docker and containerd. Any of them may be
/// asked for.
pub const DEFAULT_CAPABILITIES: [&str; 14] = [
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

/// Those of them that a native service may ask for: they give it none of the gateway's files.
const HARMLESS_CAPABILITIES: [&str; 2] = ["CAP_NET_BIND_SERVICE", "CAP_NET_RAW"];

/// Groups below are the system's own (login.defs(5)).
const FIRST_GROUP: u32 = 1000;

/// Stands for every capability in [`Policy::capabilities`].
pub const ALL: &str = "ALL";

/// The kind of command that is not done unless the policy says so.
const REBOOT: &str = "reboot";

/// The kind of command that is done whatever is wrong with the policy.
const REPORT: &str = "report";

/// What orders may ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Whether workloads may share the gateway's network.
    pub host_network: bool,
    /// Whether workloads may be native services, which see the gateway's own files.
    pub native_services: bool,
    /// Whether native services may run as root.
    pub native_root: bool,
    /// Paths of the gateway that may be mounted, with everything below them.
    pub host_paths: Vec<HostPath>,
    /// Devices that may be given by path. A `*` at the end of the last component stands for the rest
    /// of it.
    pub devices: Vec<String>,
    /// Devices that may be given by name.
    pub resources: BTreeMap<String, Resource>,
    /// Capabilities that may be added, beside the default ones.
    pub capabilities: BTreeSet<String>,
    /// Whether a container may make any system call.
    pub seccomp_unconfined: bool,
    /// Names of the seccomp profiles that are installed.
    pub seccomp_profiles: BTreeSet<String>,
    /// Memory that all workloads together may have, in MiB; all of the gateway's if `None`.
    pub max_memory_mib: Option<u64>,
    /// Kinds of commands that are done: see [`Action::KINDS`].
    pub commands: BTreeSet<&'static str>,
}

/// A path of the gateway that may be mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPath {
    /// Absolute, without `.` and `..`.
    pub path: String,
    /// Whether it may only be read.
    pub read_only: bool,
}

/// Devices under one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// Their paths; as in [`Policy::devices`].
    pub devices: Vec<String>,
    /// Some of `r`, `w` and `m`.
    pub access: String,
}

/// A device that a container is to be given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// On the gateway. With a `*` at its end it stands for every device whose name goes on from
    /// there.
    pub path: String,
    /// In the container; of no meaning with a `*`.
    pub to: String,
    /// Some of `r`, `w` and `m`.
    pub access: String,
}

impl Default for Policy {
    /// What holds where no policy was written: the gateway's network, native services but not as
    /// root, and nothing else of it. Every command but a reboot.
    fn default() -> Self {
        let commands = Action::KINDS.into_iter().filter(|kind| *kind != REBOOT).collect();
        Self { host_network: true, native_services: true, commands, ..Self::strictest() }
    }
}

impl Policy {
    /// Nothing of the gateway is given to anybody, and it does no command but to report, which says
    /// nothing that it would not say by itself.
    pub fn strictest() -> Self {
        Self {
            host_network: false,
            native_services: false,
            native_root: false,
            host_paths: Vec::new(),
            devices: Vec::new(),
            resources: BTreeMap::new(),
            capabilities: BTreeSet::new(),
            seccomp_unconfined: false,
            seccomp_profiles: BTreeSet::new(),
            max_memory_mib: None,
            commands: [REPORT].into(),
        }
    }

    /// Whether commands of this kind are done.
    pub fn allows_command(&self, kind: &str) -> bool {
        self.commands.contains(kind)
    }

    /// Memory that all workloads together may have, in MiB, on a gateway that has so much.
    pub fn memory_mib(&self, gateways: Option<u64>) -> Option<u64> {
        gateways.into_iter().chain(self.max_memory_mib).min()
    }

    /// Why a workload may not have this network.
    pub fn judge_network(&self, network: Network, place: &str) -> Option<Refusal> {
        let denied = network == Network::Host && !self.host_network;
        denied.then(|| not_allowed(place, "the gateway's own network"))
    }

    /// Why this path of the gateway may not be mounted.
    pub fn judge_host_path(&self, path: &str, read_only: bool, place: &str) -> Option<Refusal> {
        if self.allows_host_path(path, read_only) {
            return None;
        }
        let what = match self.allows_host_path(path, true) {
            true => format!("{path:?} to be written to; it can be mounted with read_only"),
            false => format!("{path:?} to be mounted"),
        };
        Some(not_allowed(place, &what))
    }

    /// Whether this path of the gateway may be mounted. To be asked again of where it really leads
    /// when it is mounted: there may be symbolic links in it.
    pub fn allows_host_path(&self, path: &str, read_only: bool) -> bool {
        let Some(wanted) = components(path) else { return false };
        self.host_paths.iter().any(|allowed| {
            let parent = components(&allowed.path);
            parent.is_some_and(|parent| wanted.starts_with(&parent))
                && (read_only || !allowed.read_only)
        })
    }

    /// Why a container may not have what it asks for, but for its mounts. `place` is that of the
    /// container.
    pub fn judge_container(&self, container: &Container, place: &str) -> Vec<Refusal> {
        let devices =
            container.devices.iter().enumerate().filter_map(|(i, device)| {
                self.judge_device(device, &format!("{place}/devices/{i}"))
            });
        let added = container.capabilities.add.iter().enumerate();
        let capabilities = added.filter(|(_, name)| !self.allows_capability(name));
        let capabilities = capabilities
            .map(|(i, name)| not_allowed(&format!("{place}/capabilities/add/{i}"), name));
        let seccomp = self.judge_seccomp(&container.seccomp, &format!("{place}/seccomp"));
        let native =
            container.software.artifact().and_then(|_| self.judge_native(container, place));
        devices.chain(capabilities).chain(seccomp).chain(native).collect()
    }

    fn judge_native(&self, service: &Container, place: &str) -> Option<Refusal> {
        if !self.native_services {
            return Some(not_allowed(place, "native services"));
        }
        if self.native_root {
            return None;
        }
        // With most of the default capabilities nobody is as good as root among the gateway's files.
        let mut added = service.capabilities.add.iter().enumerate();
        let may_have =
            |name: &str| HARMLESS_CAPABILITIES.contains(&name) || self.capabilities.contains(name);
        if let Some((i, name)) = added.find(|(_, name)| !may_have(name)) {
            let what = format!("{name} for a native service");
            return Some(not_allowed(&format!("{place}/capabilities/add/{i}"), &what));
        }
        let user = service.user.as_deref()?;
        let (user, group) = user.split_once(':').map_or((user, None), |(u, g)| (u, Some(g)));
        // By another name it is found out where that is resolved.
        let is_root = user.is_empty() || user == "root" || user.parse() == Ok(0_u32);
        // The gateway's own groups, by which files may be read that are not everybody's.
        let is_system = |group: &str| group.parse().map_or(true, |gid: u32| gid < FIRST_GROUP);
        let what = match group {
            _ if is_root => "native services as root",
            Some(group) if is_system(group) => "native services in groups of the gateway's own",
            _ => return None,
        };
        Some(not_allowed(&format!("{place}/user"), what))
    }

    fn judge_device(&self, device: &DeviceRequest, place: &str) -> Option<Refusal> {
        match device {
            DeviceRequest::Path { path, .. } if path.contains('*') => {
                let message =
                    "must be one device; a resource of the gateway's can stand for several";
                Some(Refusal::new(format!("{place}/path"), Code::INVALID_PATH, message))
            }
            DeviceRequest::Path { path, .. } => {
                let allowed = self.devices.iter().any(|pattern| fits(pattern, path));
                (!allowed)
                    .then(|| not_allowed(&format!("{place}/path"), &format!("device {path:?}")))
            }
            DeviceRequest::Resource(name) => {
                let known: Vec<_> = self.resources.keys().map(String::as_str).collect();
                (!known.contains(&name.as_str()))
                    .then(|| unknown(&format!("{place}/resource"), "resource", name, &known))
            }
        }
    }

    fn allows_capability(&self, name: &str) -> bool {
        DEFAULT_CAPABILITIES.contains(&name)
            || self.capabilities.contains(name)
            || self.capabilities.contains(ALL)
    }

    fn judge_seccomp(&self, seccomp: &Seccomp, place: &str) -> Option<Refusal> {
        match seccomp {
            Seccomp::Default => None,
            Seccomp::Unconfined if self.seccomp_unconfined => None,
            Seccomp::Unconfined => Some(not_allowed(place, "unconfined system calls")),
            Seccomp::Named(name) if self.seccomp_profiles.contains(name) => None,
            Seccomp::Named(name) => {
                let known: Vec<_> = self.seccomp_profiles.iter().map(String::as_str).collect();
                Some(unknown(place, "seccomp profile", name, &known))
            }
        }
    }

    /// The devices that fulfil a request which was not refused; `None` if the policy no longer has
    /// a resource of this name.
    pub fn granted(&self, request: &DeviceRequest) -> Option<Vec<Granted>> {
        match request {
            DeviceRequest::Path { path, to, access } => {
                Some(vec![Granted { path: path.clone(), to: to.clone(), access: access.clone() }])
            }
            DeviceRequest::Resource(name) => {
                let Resource { devices, access } = self.resources.get(name)?;
                let granted = devices.iter().map(|path| Granted {
                    path: path.clone(),
                    to: path.clone(),
                    access: access.clone(),
                });
                Some(granted.collect())
            }
        }
    }
}

fn not_allowed(place: &str, what: &str) -> Refusal {
    let message = format!("the gateway's policy does not allow {what}");
    Refusal::new(place, Code::NOT_ALLOWED, message)
}

fn unknown(place: &str, kind: &str, name: &str, known: &[&str]) -> Refusal {
    let has = match known {
        [] => format!("no {kind}s"),
        known => known.join(", "),
    };
    let message = format!("the gateway has no {kind} {name:?}; its policy has {has}");
    Refusal::new(place, Code::UNKNOWN_RESOURCE, message)
}

/// Whether a device is one of those that a pattern names.
fn fits(pattern: &str, path: &str) -> bool {
    let (Some(pattern), Some(path)) = (components(pattern), components(path)) else { return false };
    match (pattern.split_last(), path.split_last()) {
        (Some((last, dir)), Some((name, place))) if dir == place => match last.strip_suffix('*') {
            Some(beginning) => name.starts_with(beginning),
            None => name == last,
        },
        _ => false,
    }
}

/// The components of an absolute path; `None` if it is not absolute or goes up.
fn components(path: &str) -> Option<Vec<&str>> {
    let parts = path.strip_prefix('/')?.split('/').filter(|part| !part.is_empty() && *part != ".");
    let parts: Vec<_> = parts.collect();
    (!parts.contains(&"..") && !path.contains('\0')).then_some(parts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::Capabilities;

    fn container(change: impl FnOnce(&mut Container)) -> Container {
        let mut container = Container {
            name: crate::name::ContainerName::parse("main").unwrap(),
            software: crate::artifact::Software::Image(
                crate::image::ImageRef::parse("registry.example/web:1").unwrap(),
            ),
            command: None,
            args: None,
            env: BTreeMap::new(),
            working_dir: None,
            user: None,
            readonly_root: false,
            mounts: Vec::new(),
            limits: Default::default(),
            devices: Vec::new(),
            capabilities: Capabilities::default(),
            seccomp: Seccomp::Default,
            probes: Default::default(),
        };
        change(&mut container);
        container
    }

    fn workshop() -> Policy {
        let path = |path: &str, read_only| HostPath { path: path.into(), read_only };
        Policy {
            host_network: false,
            host_paths: vec![path("/srv/data", false), path("/etc/ssl/certs", true)],
            devices: ["/dev/ttyS0", "/dev/ttyUSB*", "/dev/dri/*"].map(String::from).into(),
            resources: [(
                "gps".to_owned(),
                Resource { devices: vec!["/dev/ttyACM*".into()], access: "r".into() },
            )]
            .into(),
            capabilities: ["CAP_NET_ADMIN".to_owned()].into(),
            seccomp_profiles: ["strict".to_owned()].into(),
            max_memory_mib: Some(400),
            ..Policy::strictest()
        }
    }

    fn said(refusals: impl IntoIterator<Item = Refusal>) -> Vec<String> {
        let said = refusals.into_iter();
        said.map(|r| format!("{} {}: {}", r.code, r.path, r.message)).collect()
    }

    fn path(path: &str) -> DeviceRequest {
        DeviceRequest::Path { path: path.into(), to: "/dev/x".into(), access: "rw".into() }
    }

    #[test]
    fn host_paths_are_allowed_by_whole_components() {
        let policy = workshop();
        for allowed in ["/srv/data", "/srv/data/", "/srv/data/x/y", "/srv//data/./x"] {
            assert_eq!(policy.judge_host_path(allowed, false, "/p"), None, "{allowed}");
            assert_eq!(policy.judge_host_path(allowed, true, "/p"), None, "{allowed}");
        }
        for denied in [
            "/srv/database",
            "/srv/data2/x",
            "/srv",
            "/",
            "/srv/data/../../etc",
            "/srv/data/..",
            "srv/data",
            "",
            "/SRV/data",
            "/srv/data\0/x",
        ] {
            assert!(policy.judge_host_path(denied, true, "/p").is_some(), "{denied}");
        }
        assert_eq!(
            said(policy.judge_host_path("/srv/database", false, "/workloads/0/mounts/d/host")),
            ["not-allowed /workloads/0/mounts/d/host: the gateway's policy does not allow \
              \"/srv/database\" to be mounted"]
        );
    }

    #[test]
    fn what_may_only_be_read_is_not_written_to() {
        let policy = workshop();
        assert_eq!(policy.judge_host_path("/etc/ssl/certs/a", true, "/p"), None);
        assert_eq!(
            said(policy.judge_host_path("/etc/ssl/certs/a", false, "/p")),
            ["not-allowed /p: the gateway's policy does not allow \"/etc/ssl/certs/a\" to be \
              written to; it can be mounted with read_only"]
        );
        // A wider entry that only lets read takes nothing from a narrower one.
        let mut policy = workshop();
        policy.host_paths.insert(0, HostPath { path: "/srv".into(), read_only: true });
        assert!(policy.allows_host_path("/srv/data/x", false));
        assert!(!policy.allows_host_path("/srv/other", false));
    }

    #[test]
    fn devices_are_allowed_by_name_and_by_the_beginning_of_a_name() {
        let policy = workshop();
        let judge = |device| policy.judge_device(&device, "/d");
        for allowed in ["/dev/ttyS0", "/dev/ttyUSB", "/dev/ttyUSB7", "/dev/dri/card0"] {
            assert_eq!(judge(path(allowed)), None, "{allowed}");
        }
        for denied in [
            "/dev/ttyS01",
            "/dev/ttyS",
            "/dev/ttyUSB0/x",
            "/dev/dri",
            "/dev/dri/by-path/x",
            "/dev/ttyUSB0/../mem",
            "/dev/mem",
        ] {
            let refusal = judge(path(denied)).unwrap();
            assert_eq!((refusal.code.as_str(), refusal.path.as_str()), ("not-allowed", "/d/path"));
        }
        let several = judge(path("/dev/ttyUSB*")).unwrap();
        assert_eq!(several.code, Code::INVALID_PATH);
    }

    #[test]
    fn resources_are_those_that_the_policy_has() {
        let policy = workshop();
        let gps = DeviceRequest::Resource("gps".into());
        assert_eq!(policy.judge_device(&gps, "/d"), None);
        let granted = policy.granted(&gps).unwrap();
        let wanted =
            Granted { path: "/dev/ttyACM*".into(), to: "/dev/ttyACM*".into(), access: "r".into() };
        assert_eq!(granted, [wanted]);
        let modem = DeviceRequest::Resource("modem".into());
        assert_eq!(policy.granted(&modem), None);
        assert_eq!(
            said(policy.judge_device(&modem, "/d")),
            [
                "unknown-resource /d/resource: the gateway has no resource \"modem\"; its policy has gps"
            ]
        );
        let none = Policy::default();
        assert_eq!(
            said(none.judge_device(&modem, "/d")),
            [
                "unknown-resource /d/resource: the gateway has no resource \"modem\"; its policy has no \
              resources"
            ]
        );
    }

    #[test]
    fn every_reason_against_a_container_is_told() {
        let wanted = container(|c| {
            c.devices = vec![path("/dev/mem"), path("/dev/ttyS0"), path("/dev/kvm")];
            let add = ["CAP_NET_ADMIN", "CAP_SYS_ADMIN", "CAP_KILL"];
            c.capabilities.add = add.map(String::from).into();
            c.seccomp = Seccomp::Unconfined;
        });
        assert_eq!(
            said(workshop().judge_container(&wanted, "/workloads/0/containers/0")),
            [
                "not-allowed /workloads/0/containers/0/devices/0/path: the gateway's policy does not \
                 allow device \"/dev/mem\"",
                "not-allowed /workloads/0/containers/0/devices/2/path: the gateway's policy does not \
                 allow device \"/dev/kvm\"",
                "not-allowed /workloads/0/containers/0/capabilities/add/1: the gateway's policy does \
                 not allow CAP_SYS_ADMIN",
                "not-allowed /workloads/0/containers/0/seccomp: the gateway's policy does not allow \
                 unconfined system calls",
            ]
        );
        assert_eq!(workshop().judge_container(&container(|_| {}), "/c"), []);
        assert_eq!(Policy::strictest().judge_container(&container(|_| {}), "/c"), []);
    }

    #[test]
    fn seccomp_profiles_are_those_that_are_installed() {
        let named = |name: &str| container(|c| c.seccomp = Seccomp::Named(name.into()));
        assert_eq!(workshop().judge_container(&named("strict"), "/c"), []);
        assert_eq!(
            said(workshop().judge_container(&named("loose"), "/c")),
            [
                "unknown-resource /c/seccomp: the gateway has no seccomp profile \"loose\"; its policy \
              has strict"
            ]
        );
        let mut policy = workshop();
        policy.seccomp_unconfined = true;
        let free = container(|c| c.seccomp = Seccomp::Unconfined);
        assert_eq!(policy.judge_container(&free, "/c"), []);
    }

    #[test]
    fn all_capabilities_may_be_allowed() {
        let admin = container(|c| c.capabilities.add = vec!["CAP_SYS_ADMIN".into()]);
        assert_eq!(Policy::default().judge_container(&admin, "/c").len(), 1);
        let all = Policy { capabilities: [ALL.to_owned()].into(), ..Policy::default() };
        assert_eq!(all.judge_container(&admin, "/c"), []);
    }

    #[test]
    fn the_network_and_the_memory() {
        assert_eq!(Policy::default().judge_network(Network::Host, "/n"), None);
        assert_eq!(
            said(workshop().judge_network(Network::Host, "/n")),
            ["not-allowed /n: the gateway's policy does not allow the gateway's own network"]
        );
        for own in [Network::None, Network::Pod] {
            assert_eq!(Policy::strictest().judge_network(own, "/n"), None);
        }
        assert_eq!(workshop().memory_mib(Some(512)), Some(400));
        assert_eq!(workshop().memory_mib(Some(256)), Some(256));
        assert_eq!(workshop().memory_mib(None), Some(400));
        assert_eq!(Policy::default().memory_mib(Some(512)), Some(512));
        assert_eq!(Policy::default().memory_mib(None), None);
    }
}
