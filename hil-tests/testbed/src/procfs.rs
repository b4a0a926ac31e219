//! What the kernel says of processes, mounts and cgroups. In: `/proc`, `/sys/fs/cgroup`. Out:
//! plain values; what vanished meanwhile is simply not listed. Changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use nix::unistd::Pid;

/// Ids of all processes that we can see.
pub(crate) fn processes() -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Fields of `/proc/PID/stat` after the command name; the first is the state.
fn stat(pid: i32) -> Option<Vec<String>> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

/// When the process started, in clock ticks since boot; `None` if it is gone or a zombie.
pub(crate) fn start_time(pid: i32) -> Option<u64> {
    let fields = stat(pid)?;
    if matches!(fields.first()?.as_str(), "Z" | "X") {
        return None;
    }
    fields.get(19)?.parse().ok()
}

fn parent(pid: i32) -> Option<i32> {
    stat(pid)?.get(1)?.parse().ok()
}

/// This process and everything above it.
pub(crate) fn ourselves() -> BTreeSet<i32> {
    let mut found = BTreeSet::new();
    let mut pid = Pid::this().as_raw();
    while pid > 0 && found.insert(pid) {
        pid = parent(pid).unwrap_or(0);
    }
    found
}

/// The descendants of `roots`, with the roots themselves.
pub(crate) fn with_descendants(roots: BTreeSet<i32>) -> BTreeSet<i32> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for pid in processes() {
        if let Some(parent) = parent(pid) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = BTreeSet::new();
    let mut open: Vec<i32> = roots.into_iter().collect();
    while let Some(pid) = open.pop() {
        if found.insert(pid) {
            open.extend(children.get(&pid).into_iter().flatten());
        }
    }
    found
}

/// The arguments of a process, separated by spaces; empty for kernel threads and zombies.
pub(crate) fn cmdline(pid: i32) -> String {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ").trim_end().to_owned()
}

/// One line of `/proc/PID/mountinfo` (proc(5)).
#[derive(Debug)]
pub(crate) struct Mount {
    pub(crate) point: PathBuf,
    pub(crate) kind: String,
    pub(crate) options: String,
}

/// The mounts that a process sees, in the order they were made.
pub(crate) fn mounts(pid: &str) -> Vec<Mount> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
    text.lines().filter_map(parse_mount).collect()
}

fn parse_mount(line: &str) -> Option<Mount> {
    let (before, after) = line.split_once(" - ")?;
    let mut after = after.split(' ');
    Some(Mount {
        point: PathBuf::from(unescape(before.split(' ').nth(4)?)),
        kind: after.next()?.to_owned(),
        options: after.nth(1).unwrap_or_default().to_owned(),
    })
}

fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
}

/// Whether the process's root is an overlay that lies in a directory named `needle`: then it is
/// a container of that directory's containerd.
pub(crate) fn root_is_in(pid: i32, needle: &str) -> bool {
    mounts(&pid.to_string())
        .iter()
        .any(|mount| mount.point == Path::new("/") && mount.options.contains(needle))
}

/// Mount points of all cgroup hierarchies, of version 1 and 2.
pub(crate) fn cgroup_hierarchies() -> Vec<PathBuf> {
    let mounts = mounts("self").into_iter();
    mounts.filter(|m| m.kind == "cgroup" || m.kind == "cgroup2").map(|m| m.point).collect()
}

/// The directory `cgroup` and everything under it, deepest first, in every hierarchy.
pub(crate) fn cgroup_dirs(cgroup: &str) -> Vec<PathBuf> {
    let relative = cgroup.trim_matches('/');
    if relative.is_empty() || relative.split('/').any(|part| part == "..") {
        return Vec::new();
    }
    let mut found = Vec::new();
    for hierarchy in cgroup_hierarchies() {
        collect_dirs(&hierarchy.join(relative), &mut found);
    }
    found
}

fn collect_dirs(dir: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect_dirs(&entry.path(), found);
        }
    }
    found.push(dir.to_owned());
}

/// Processes in the cgroup directory.
pub(crate) fn cgroup_processes(dir: &Path) -> Vec<i32> {
    let text = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 1).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_mount_line() {
        let line = "63 43 254:0 / /run/a\\040b rw,relatime shared:1 - overlay over rw,upperdir=/x";
        let mount = parse_mount(line).unwrap();
        assert_eq!(mount.point, Path::new("/run/a b"));
        assert_eq!(mount.kind, "overlay");
        assert_eq!(mount.options, "rw,upperdir=/x");
    }

    #[test]
    fn knows_itself() {
        let pid = Pid::this().as_raw();
        assert!(start_time(pid).is_some());
        assert!(ourselves().contains(&pid));
        assert!(cgroup_dirs("/").is_empty() && cgroup_dirs("/a/../..").is_empty());
    }
}
