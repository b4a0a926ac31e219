//! What workloads may leave behind on a gateway: on its network, in its kernel, in its directories,
//! in its containerd. In: a gateway under test. Out: lines that can be compared. Changes nothing.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use coracle_testbed::Result;
use coracle_testbed::process::run;

use crate::gateway::{Gateway, NAMESPACE};

const LIMIT: Duration = Duration::from_secs(10);

/// Chains of the packet filter that network plugins share between pods: made with the first pod, and
/// without any but a constant rule.
const SHARED_CHAINS: [&str; 7] = [
    "CNI-HOSTPORT-DNAT",
    "CNI-HOSTPORT-MASQ",
    "CNI-HOSTPORT-SETMARK",
    "CNI-FORWARD",
    "CNI-ADMIN",
    "CNI-ISOLATION-STAGE-1",
    "CNI-ISOLATION-STAGE-2",
];

/// How the constant rules begin: they mark what comes through ports of the gateway.
const CONSTANT_RULES: [&str; 2] =
    ["-A CNI-HOSTPORT-MASQ -m mark --mark", "-A CNI-HOSTPORT-SETMARK -m comment"];

/// Everything that is there at one moment, a line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traces(BTreeSet<String>);

impl Traces {
    /// Looks.
    pub fn of(gateway: &Gateway) -> Result<Self> {
        let mut lines = BTreeSet::new();
        network(gateway, &mut lines)?;
        // Processes, mounts and cgroups; a process is told by what it runs.
        for line in gateway.place().contents() {
            let process = line.strip_prefix("process ").and_then(|rest| rest.split_once(':'));
            match process {
                Some((_, arguments)) => drop(lines.insert(format!("process:{arguments}"))),
                None if holds_all(gateway, &line) => {}
                None => drop(lines.insert(line)),
            }
        }
        let name = gateway.place().name();
        lines.extend(processes(name));
        for mount in gateway.containerd.mounts() {
            // What services see of the gateway is mounted once, and stays.
            let is_root = mount.ends_with("runtime/root");
            if mount.to_string_lossy().contains(name) && !is_root {
                lines.insert(format!("mount {}", mount.display()));
            }
        }
        files(&gateway.runtime_dir(), &mut lines);
        files(&gateway.state_dir.join("volumes/anonymous"), &mut lines);
        files(&gateway.containerd.state(), &mut lines);
        let containerd = &gateway.containerd;
        for task in containerd.tasks(NAMESPACE)? {
            lines.insert(format!("task {}", task.id));
        }
        for container in containerd.containers(NAMESPACE)? {
            lines.insert(format!("container {container}"));
        }
        // Images stay, and so do their layers.
        let snapshots = containerd.snapshots(NAMESPACE)?;
        for snapshot in snapshots.iter().filter(|name| !name.starts_with("sha256:")) {
            lines.insert(format!("snapshot {snapshot}"));
        }
        for lease in containerd.leases(NAMESPACE)? {
            lines.insert(format!("lease {lease}"));
        }
        Ok(Self(lines))
    }

    /// Waits until all is as it is here: the kernel and containerd take apart what was removed in
    /// their own time. An error tells what is left, and what is missing.
    pub fn come_back(&self, gateway: &Gateway) -> Result<()> {
        let end = Instant::now() + LIMIT;
        loop {
            let now = Self::of(gateway)?;
            if now == *self {
                return Ok(());
            }
            let left: Vec<_> = now.0.difference(&self.0).collect();
            let missing: Vec<_> = self.0.difference(&now.0).collect();
            ensure!(Instant::now() < end, "left behind: {left:#?}; missing: {missing:#?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Whether a line tells of a cgroup that holds those of all workloads. It stays.
fn holds_all(gateway: &Gateway, line: &str) -> bool {
    let all = format!("{}/{NAMESPACE}", gateway.cgroup());
    let own = gateway.place().cgroup();
    let below = line.strip_prefix("cgroup ").and_then(|path| path.split_once(&own));
    below.is_some_and(|(_, below)| all.starts_with(&format!("{own}{below}")))
}

fn network(gateway: &Gateway, lines: &mut BTreeSet<String>) -> Result<()> {
    // Of IPv6 only what is made on purpose: the kernel's own comes a moment later.
    let views = [
        ("link", "ip -o link | cut -d: -f2"),
        ("address", "ip -o -4 addr"),
        ("route", "ip -o -4 route show table all"),
        ("route", "ip -o -6 route show table all | grep -v fe80:: | grep -v ff00::"),
        ("rule", "iptables-save"),
        ("rule6", "ip6tables-save"),
        ("table", "nft list tables | grep coracle"),
    ];
    for (what, script) in views {
        let mut command = gateway.place().command("sh");
        command.args(["-c", &format!("PATH=$PATH:/usr/sbin:/sbin; {script}")]);
        let said = run(&mut command, LIMIT).with_context(|| format!("cannot run {script}"));
        // grep says no where nothing is left.
        let said =
            said.or_else(|error| if script.contains("grep") { Ok(Vec::new()) } else { Err(error) });
        for line in String::from_utf8_lossy(&said?).lines().filter(|line| !is_shared(line)) {
            lines.insert(format!("{what}: {}", line.trim()));
        }
    }
    Ok(())
}

/// Whether a line of the packet filter is there without any rule: comments, counters, chains of the
/// kernel, and those that plugins share.
fn is_shared(line: &str) -> bool {
    let plain =
        ["#", "*", "COMMIT", ":PREROUTING", ":INPUT", ":FORWARD", ":OUTPUT", ":POSTROUTING"];
    plain.iter().any(|beginning| line.starts_with(beginning))
        || SHARED_CHAINS.iter().any(|chain| {
            line.starts_with(&format!(":{chain} ")) || line.ends_with(&format!("-j {chain}"))
        })
        || CONSTANT_RULES.iter().any(|rule| line.starts_with(rule))
}

/// Shims and what belongs to them, wherever they were adopted: what says in its arguments or its
/// environment that it is of this place.
fn processes(name: &str) -> Vec<String> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let of = |path: &Path| {
        let read = |file| std::fs::read(path.join(file)).unwrap_or_default();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).replace('\0', " ");
        let program = std::fs::read_link(path.join("exe")).ok()?;
        let program = program.file_name()?.to_str()?.to_owned();
        let ours = program.contains("shim") || program == "coracle-log";
        (ours && (text(read("cmdline")) + &text(read("environ"))).contains(name))
            .then(|| format!("process of {program}"))
    };
    entries.filter_map(|entry| of(&entry.path())).collect()
}

/// Files below a directory, but for those that are to stay, and directories that are empty.
fn files(dir: &Path, lines: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            files(&path, lines);
        } else {
            let name = entry.file_name().to_string_lossy().into_owned();
            let stays = ["lock", "boot-id", "coracle-runc"].contains(&name.as_str())
                || name.starts_with("last_reserved_ip");
            if !stays {
                lines.insert(format!("file {}", path.display()));
            }
        }
    }
}
