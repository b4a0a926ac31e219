//! The gateway's policy: what orders may ask of it, as its owner wrote it down.
//!
//! In: a TOML file, read once at start, and the directory with the seccomp profiles. Out: a
//! [`Policy`] and what is to be said of it. A file that cannot be used never ends the agent: the
//! strictest policy takes its place, so that what is wrong with it gives nobody more than was meant.
//! What runs is not judged again: a policy counts for orders that come.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use coracle_core::backoff::Retry;
use coracle_core::budget::{Caps, TrafficKind};
use coracle_core::desired::{CAPABILITIES, Seccomp};
use coracle_core::name::ResourceName;
use coracle_core::policy::{ALL, HostPath, Policy, Resource};
use coracle_protocol::command::Action;
use serde::Deserialize;

use crate::seccomp_profile;

/// Where the policy is looked for if no other place is named.
pub const DEFAULT_PATH: &str = "/etc/coracle/policy.toml";

/// Most seccomp profiles that are looked at.
const MAX_PROFILES: usize = 64;

/// The policy as it was at start.
#[derive(Clone, Debug)]
pub struct Installed {
    /// What orders may ask for.
    pub policy: Policy,
    /// What is to be said of it.
    pub state: State,
    /// Most that the link may carry a day.
    pub caps: Caps,
    seccomp_dir: PathBuf,
}

/// What is to be said of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Whether it is as it should be.
    pub good: bool,
    /// One word, for programs.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// Why a path of the gateway is not mounted.
#[derive(Debug, thiserror::Error)]
pub enum HostPathProblem {
    /// It is not there.
    #[error("{path} is not there")]
    Missing {
        /// As asked for.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The policy does not allow it.
    #[error("the gateway's policy does not allow {path} to be mounted, which leads to {real}")]
    NotAllowed {
        /// As asked for.
        path: String,
        /// Where it leads.
        real: PathBuf,
    },
}

impl HostPathProblem {
    /// When it is worth another try.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Missing { .. } => Retry::Backoff,
            Self::NotAllowed { .. } => Retry::Rarely,
        }
    }
}

/// The file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    host_network: bool,
    native_services: bool,
    native_root: bool,
    host_paths: Vec<HostPathTable>,
    devices: Vec<String>,
    resources: BTreeMap<String, ResourceTable>,
    capabilities: BTreeSet<String>,
    seccomp_unconfined: bool,
    seccomp_dir: PathBuf,
    max_memory_mib: Option<u64>,
    commands: BTreeMap<String, Permission>,
    budget: BudgetTable,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Permission {
    Allow,
    Deny,
}

/// Most bytes that the link may carry a day, both ways together.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct BudgetTable {
    total: Option<u64>,
    reports: Option<u64>,
    health: Option<u64>,
    logs: Option<u64>,
    images: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct HostPathTable {
    path: String,
    #[serde(default)]
    read_only: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ResourceTable {
    devices: Vec<String>,
    #[serde(default = "read_and_write")]
    access: String,
}

fn read_and_write() -> String {
    "rw".into()
}

impl Default for File {
    fn default() -> Self {
        let policy = Policy::default();
        Self {
            host_network: policy.host_network,
            native_services: policy.native_services,
            native_root: policy.native_root,
            host_paths: Vec::new(),
            devices: Vec::new(),
            resources: BTreeMap::new(),
            capabilities: BTreeSet::new(),
            seccomp_unconfined: policy.seccomp_unconfined,
            seccomp_dir: "/etc/coracle/seccomp".into(),
            max_memory_mib: policy.max_memory_mib,
            commands: BTreeMap::new(),
            budget: BudgetTable::default(),
        }
    }
}

impl Installed {
    /// Reads the policy at `path`; without a file, the default one holds.
    pub fn load(path: &Path) -> Self {
        let shown = path.display();
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let message = format!(
                    "there is no {shown}: workloads may share the gateway's network, and get \
                     nothing else of it"
                );
                return Self::of(File::default(), "default", message);
            }
            Err(error) => return Self::strictest(format!("{shown} cannot be read: {error}"), None),
        };
        match parse(&text) {
            Ok(file) => Self::of(file, "in-force", format!("as in {shown}")),
            Err(message) => {
                Self::strictest(format!("{shown} is not valid: {message}"), budget_alone(&text))
            }
        }
    }

    fn of(file: File, reason: &'static str, message: String) -> Self {
        let (seccomp_profiles, bad) = profiles(&file.seccomp_dir);
        let policy = Policy {
            host_network: file.host_network,
            native_services: file.native_services,
            native_root: file.native_root,
            host_paths: file.host_paths.into_iter().map(HostPathTable::into).collect(),
            devices: file.devices,
            resources: file.resources.into_iter().map(|(name, r)| (name, r.into())).collect(),
            capabilities: file.capabilities,
            seccomp_unconfined: file.seccomp_unconfined,
            seccomp_profiles,
            max_memory_mib: file.max_memory_mib,
            commands: commands(&file.commands),
        };
        let state = match bad {
            None => State { good: true, reason, message },
            Some(problem) => {
                let message = format!("{message}; a seccomp profile cannot be used: {problem}");
                State { good: false, reason: "profile-invalid", message }
            }
        };
        Self { policy, state, caps: file.budget.into(), seccomp_dir: file.seccomp_dir }
    }

    /// `caps` is what can be told of the budget all the same.
    fn strictest(why: String, caps: Option<Caps>) -> Self {
        let unlimited = match caps {
            Some(_) => "",
            None => ", and the link's budget has no limits",
        };
        let message = format!(
            "{why}; until it is put right and the agent restarted, orders that ask for anything of \
             the gateway are refused{unlimited}"
        );
        Self {
            policy: Policy::strictest(),
            state: State { good: false, reason: "invalid", message },
            // Without a limit where none can be read: what is wrong is to be told.
            caps: caps.unwrap_or_default(),
            seccomp_dir: File::default().seccomp_dir,
        }
    }

    /// Where a path of the gateway really leads, symbolic links followed, if that may be mounted.
    ///
    /// # Errors
    /// It is not there, or leads to where the policy does not allow.
    pub fn host_path(&self, path: &str, read_only: bool) -> Result<PathBuf, HostPathProblem> {
        let missing = |source| HostPathProblem::Missing { path: path.to_owned(), source };
        let real = fs::canonicalize(path).map_err(missing)?;
        let allowed = |real: &str| self.policy.allows_host_path(real, read_only);
        match real.to_str().is_some_and(allowed) && self.policy.allows_host_path(path, read_only) {
            true => Ok(real),
            false => Err(HostPathProblem::NotAllowed { path: path.to_owned(), real }),
        }
    }

    /// The file of the profile that a container names, if it names one.
    pub fn seccomp_file(&self, seccomp: &Seccomp) -> Option<PathBuf> {
        match seccomp {
            // It was judged when the order came, and is no path.
            Seccomp::Named(name) => {
                ResourceName::parse(name).ok()?;
                Some(self.seccomp_dir.join(format!("{name}.json")))
            }
            Seccomp::Default | Seccomp::Unconfined => None,
        }
    }
}

/// The budget of a file with something wrong elsewhere.
fn budget_alone(text: &str) -> Option<Caps> {
    let mut file: toml::Table = toml::from_str(text).ok()?;
    match file.remove("budget") {
        Some(budget) => budget.try_into::<BudgetTable>().ok().map(Caps::from),
        None => Some(Caps::default()),
    }
}

fn parse(text: &str) -> Result<File, String> {
    let file: File = toml::from_str(text).map_err(|error| error.to_string())?;
    for HostPathTable { path, .. } in &file.host_paths {
        if path == "/" {
            return Err("host_paths: / is everything; name the directories that are meant".into());
        }
        if !is_clean(path) {
            return Err(format!("host_paths: {path:?} must be an absolute path without . and .."));
        }
    }
    for device in &file.devices {
        check_device(device).map_err(|message| format!("devices: {message}"))?;
    }
    for (name, resource) in &file.resources {
        let place = |message: String| format!("resources.{name}: {message}");
        if let Err(error) = ResourceName::parse(name) {
            return Err(place(error.to_string()));
        }
        if resource.devices.is_empty() {
            return Err(place("devices is empty".into()));
        }
        for device in &resource.devices {
            check_device(device).map_err(place)?;
        }
        let access = &resource.access;
        let once = |letter: char| access.matches(letter).count() <= 1;
        if access.is_empty() || !access.chars().all(|letter| "rwm".contains(letter) && once(letter))
        {
            return Err(place(format!("access {access:?} must be some of r, w and m, each once")));
        }
    }
    for name in &file.capabilities {
        if name != ALL && !CAPABILITIES.contains(&name.as_str()) {
            return Err(format!("capabilities: {name:?} is no capability of Linux (nor ALL)"));
        }
    }
    for kind in file.commands.keys() {
        if !Action::KINDS.contains(&kind.as_str()) {
            let known = Action::KINDS.join(", ");
            return Err(format!("commands: {kind:?} is no kind of command; there are {known}"));
        }
    }
    if !file.seccomp_dir.is_absolute() {
        return Err("seccomp_dir must be an absolute path".into());
    }
    if file.max_memory_mib == Some(0) {
        return Err("max_memory_mib is 0: nothing could ever run".into());
    }
    Ok(file)
}

/// The kinds of commands that are done, where the file says something else than the default.
fn commands(said: &BTreeMap<String, Permission>) -> BTreeSet<&'static str> {
    let default = Policy::default().commands;
    let allowed = |kind: &&'static str| match said.get(*kind) {
        Some(permission) => *permission == Permission::Allow,
        None => default.contains(kind),
    };
    Action::KINDS.into_iter().filter(allowed).collect()
}

fn check_device(path: &str) -> Result<(), String> {
    let dir = path.strip_suffix('*').unwrap_or(path);
    let named = dir.strip_suffix('/').unwrap_or(dir);
    if dir.contains('*') {
        return Err(format!("{path:?}: a * can only stand at the end"));
    }
    let below = named.starts_with("/dev/") || dir == "/dev/" && path != dir;
    if !below || !is_clean(named) || (dir.ends_with('/') && path == dir) {
        return Err(format!("{path:?} must be a path below /dev, without . and .."));
    }
    Ok(())
}

/// Whether a path is absolute and every component a plain name.
fn is_clean(path: &str) -> bool {
    let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
    path.strip_prefix('/').is_some_and(|rest| rest.split('/').all(plain))
}

/// The names of the good profiles, and what is wrong with the first one that is not.
fn profiles(dir: &Path) -> (BTreeSet<String>, Option<String>) {
    let (mut good, mut bad) = (BTreeSet::new(), None);
    let Ok(entries) = fs::read_dir(dir) else { return (good, bad) };
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths.into_iter().take(MAX_PROFILES) {
        let name = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".json"));
        let Some(name) = name else { continue };
        let checked = match ResourceName::parse(name) {
            Ok(_) => seccomp_profile::read(&path).map_err(|error| error.to_string()),
            Err(error) => Err(format!("{}: {error}", path.display())),
        };
        match checked {
            Ok(_) => drop(good.insert(name.to_owned())),
            Err(message) => bad = bad.or(Some(message)),
        }
    }
    (good, bad)
}

impl From<HostPathTable> for HostPath {
    fn from(table: HostPathTable) -> Self {
        Self { path: table.path, read_only: table.read_only }
    }
}

impl From<BudgetTable> for Caps {
    fn from(table: BudgetTable) -> Self {
        let kinds = [
            (TrafficKind::Reports, table.reports),
            (TrafficKind::Health, table.health),
            (TrafficKind::Logs, table.logs),
            (TrafficKind::Images, table.images),
        ];
        let kinds = kinds.into_iter().filter_map(|(kind, cap)| Some((kind, cap?)));
        Self { total: table.total, kinds: kinds.collect() }
    }
}

impl From<ResourceTable> for Resource {
    fn from(table: ResourceTable) -> Self {
        Self { devices: table.devices, access: table.access }
    }
}

#[cfg(test)]
mod tests {
    use coracle_core::desired::{DeviceRequest, Network};

    use super::*;

    fn load(text: &str) -> Installed {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("policy.toml");
        fs::write(&path, text.replace("DIR", dir.path().to_str().unwrap())).unwrap();
        Installed::load(&path)
    }

    /// The example of docs/policy.md.
    fn documented() -> String {
        let text = include_str!("../../docs/policy.md");
        let (_, example) = text.split_once("```toml\n").unwrap();
        example.split_once("```").unwrap().0.to_owned()
    }

    #[test]
    fn no_file_allows_the_hosts_network_and_nothing_else() {
        let installed = Installed::load(Path::new("/no/such/policy.toml"));
        assert_eq!(installed.policy, Policy::default());
        assert!(installed.state.good && installed.state.reason == "default");
        assert_eq!(load("").policy, Policy::default(), "an empty file says nothing else");
    }

    #[test]
    fn a_budget_is_bytes_a_day_and_none_is_kept_from_what_keeps_the_link() {
        let caps = load("[budget]\ntotal = 5_000_000\nlogs = 1_000_000").caps;
        assert_eq!(
            (caps.total, caps.kinds.get(&TrafficKind::Logs)),
            (Some(5_000_000), Some(&1_000_000))
        );
        assert_eq!(load("").caps, Caps::default());
        for bad in ["[budget]\norders = 1", "[budget]\nkeep-alive = 1", "[budget]\ntotal = -1"] {
            assert!(!load(bad).state.good, "{bad}");
        }
    }

    #[test]
    fn a_budget_holds_although_something_else_is_wrong() {
        for (text, total, unlimited) in [
            ("hostnetwork = true\n[budget]\ntotal = 7", Some(7), false),
            ("max_memory_mib = 0\n[budget]\ntotal = 7", Some(7), false),
            ("hostnetwork = true", None, false),
            ("[budget]\ntotal = 7\nall = 8", None, true),
            ("[budget]\ntotal = 7\nno toml at all", None, true),
        ] {
            let installed = load(text);
            assert_eq!(installed.policy, Policy::strictest(), "{text}");
            assert_eq!(installed.caps.total, total, "{text}");
            let said = installed.state.message.contains("budget has no limits");
            assert_eq!(said, unlimited, "{text}: {}", installed.state.message);
        }
        assert!(Installed::load(Path::new("/proc")).state.message.contains("no limits"));
    }

    #[test]
    fn the_documented_example_is_what_it_says() {
        let installed = load(&documented());
        assert_eq!(installed.state.reason, "in-force", "{:?}", installed.state);
        let policy = installed.policy;
        assert!(policy.judge_network(Network::Host, "").is_some());
        assert!(policy.allows_host_path("/srv/data/x", false));
        assert!(policy.allows_host_path("/etc/ssl/certs", true));
        assert!(!policy.allows_host_path("/etc/ssl/certs", false));
        assert!(policy.granted(&DeviceRequest::Resource("gps".into())).is_some());
        assert!(policy.capabilities.contains("CAP_NET_ADMIN"));
        assert_eq!(policy.memory_mib(Some(512)), Some(400));
        assert!(policy.allows_command("reboot") && !policy.allows_command("read-logs"));
        assert!(policy.allows_command("stop-workload"));
    }

    #[test]
    fn a_gateway_is_not_rebooted_from_afar_unless_its_policy_says_so() {
        assert!(!Policy::default().allows_command("reboot"));
        assert!(load("[commands]\nreboot = \"allow\"").policy.allows_command("reboot"));
        assert!(!load("[commands]\nreport = \"deny\"").policy.allows_command("report"));
        let broken = load("[commands]\nreboot = \"perhaps\"").policy;
        let allowed = |kind: &&str| broken.allows_command(kind);
        assert_eq!(Action::KINDS.into_iter().filter(allowed).collect::<Vec<_>>(), ["report"]);
    }

    #[test]
    fn a_file_that_cannot_be_used_is_the_strictest_policy_and_says_why() {
        for (text, wanted) in [
            ("host_network = 1", "host_network"),
            ("hostnetwork = true", "unknown field `hostnetwork`"),
            ("[[host_paths]]\npath = \"/\"", "/ is everything"),
            ("[[host_paths]]\npath = \"srv\"", "\"srv\" must be an absolute path"),
            ("[[host_paths]]\npath = \"/srv/../etc\"", "must be an absolute path"),
            ("[[host_paths]]\npath = \"/srv/\"", "must be an absolute path"),
            ("[[host_paths]]\npath = \"/srv\"\nreadonly = true", "unknown field `readonly`"),
            ("devices = [\"/etc/x\"]", "must be a path below /dev"),
            ("devices = [\"/dev\"]", "must be a path below /dev"),
            ("devices = [\"/dev/\"]", "must be a path below /dev"),
            ("devices = [\"/dev/x/\"]", "must be a path below /dev"),
            ("devices = [\"/dev*\"]", "must be a path below /dev"),
            ("devices = [\"/dev/../etc/*\"]", "must be a path below /dev"),
            ("devices = [\"/dev/*/x\"]", "can only stand at the end"),
            ("[resources.gps]\ndevices = []", "resources.gps: devices is empty"),
            ("[resources.gps]\ndevices = [\"x\"]", "resources.gps: \"x\" must be"),
            ("[resources.GPS]\ndevices = [\"/dev/x\"]", "resources.GPS: name must be"),
            ("[resources.gps]\ndevices = [\"/dev/x\"]\naccess = \"rr\"", "access \"rr\" must be"),
            ("[resources.gps]\ndevices = [\"/dev/x\"]\naccess = \"\"", "access \"\" must be"),
            ("capabilities = [\"CAP_NETADMIN\"]", "\"CAP_NETADMIN\" is no capability"),
            ("capabilities = [\"NET_ADMIN\"]", "\"NET_ADMIN\" is no capability"),
            ("seccomp_dir = \"seccomp\"", "seccomp_dir must be an absolute path"),
            ("[commands]\nlaunch = \"deny\"", "\"launch\" is no kind of command"),
            ("[commands]\nreboot = true", "reboot = true"),
            ("max_memory_mib = 0", "nothing could ever run"),
            ("max_memory_mib = -1", "max_memory_mib"),
            ("no toml at all", "not valid"),
        ] {
            let installed = load(text);
            assert_eq!(installed.policy, Policy::strictest(), "{text}");
            let State { good, reason, message } = installed.state;
            assert!(!good && reason == "invalid", "{text}");
            assert!(message.contains(wanted), "{text}: {message}");
        }
        for text in ["devices = [\"/dev/*\"]", "devices = [\"/dev/dri/*\", \"/dev/ttyUSB*\"]"] {
            assert!(load(text).state.good, "{text}");
        }
        let unreadable = Installed::load(Path::new("/proc"));
        assert_eq!(unreadable.policy, Policy::strictest());
    }

    #[test]
    fn profiles_are_those_in_their_directory_that_can_be_used() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        let good = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []}"#;
        write("strict.json", good);
        write("README", "not a profile");
        let policy = format!("seccomp_dir = {:?}", dir.path());
        let installed = load(&policy);
        assert!(installed.state.good);
        let names = |installed: &Installed| {
            installed.policy.seccomp_profiles.iter().cloned().collect::<Vec<_>>()
        };
        assert_eq!(names(&installed), ["strict"]);
        let file = installed.seccomp_file(&Seccomp::Named("strict".into()));
        assert_eq!(file, Some(dir.path().join("strict.json")));
        assert_eq!(installed.seccomp_file(&Seccomp::Named("../x".into())), None);
        assert_eq!(installed.seccomp_file(&Seccomp::Default), None);

        write("loose.json", "{}");
        let installed = load(&policy);
        assert_eq!(installed.state.reason, "profile-invalid");
        assert!(installed.state.message.contains("loose.json"), "{:?}", installed.state);
        assert_eq!(names(&installed), ["strict"], "the others are as good as before");
    }

    #[test]
    fn a_path_is_judged_by_where_it_leads() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("data/inner")).unwrap();
        fs::create_dir_all(root.join("secret")).unwrap();
        std::os::unix::fs::symlink(root.join("secret"), root.join("data/out")).unwrap();
        std::os::unix::fs::symlink(root.join("data/inner"), root.join("data/in")).unwrap();
        let installed = load(&format!("[[host_paths]]\npath = {:?}", root.join("data")));
        let resolve = |name: &str| installed.host_path(root.join(name).to_str().unwrap(), false);
        assert_eq!(resolve("data/inner").unwrap(), root.join("data/inner"));
        assert_eq!(resolve("data/in").unwrap(), root.join("data/inner"));
        for (name, missing) in [("data/out", false), ("secret", false), ("data/none", true)] {
            let problem = resolve(name).unwrap_err();
            let is_missing = matches!(problem, HostPathProblem::Missing { .. });
            assert_eq!(is_missing, missing, "{name}: {problem}");
        }
    }
}
