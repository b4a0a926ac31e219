//! The cgroup controllers that limits of workloads need
//! (<https://docs.kernel.org/admin-guide/cgroup-v2.html#controllers>).

use std::fs;
use std::path::Path;

use super::{Finding, list};

const NAME: &str = "cgroups";
const NEEDED: [&str; 3] = ["cpu", "memory", "pids"];

pub(super) fn look(root: &Path) -> Finding {
    let unified = fs::read_to_string(root.join("sys/fs/cgroup/cgroup.controllers"));
    let (version, offered) = match unified {
        Ok(text) => (2, text.split_whitespace().map(str::to_owned).collect()),
        Err(_) => (1, version_1(root)),
    };
    if offered.is_empty() {
        let message = "the kernel offers no cgroup controllers: workloads cannot be started";
        return Finding::bad(NAME, "none", message);
    }
    let missing: Vec<_> =
        NEEDED.into_iter().filter(|name| !offered.iter().any(|offer| offer == name)).collect();
    match missing.is_empty() {
        true if !limits_processor_time(root, version) => {
            let message = "the kernel cannot limit processor time (CONFIG_CFS_BANDWIDTH): workloads \
                           that ask for it cannot be started";
            Finding::bad(NAME, "cpu-quota-missing", message)
        }
        true => Finding::good(NAME, "complete", format!("version {version}")),
        false => Finding::bad(
            NAME,
            "controllers-missing",
            format!(
                "the kernel offers no cgroup controller {}: it cannot be limited, and workloads \
                 that ask for it cannot be started (see the kernel's command line: \
                 cgroup_disable, cgroup_enable)",
                list(&missing)
            ),
        ),
    }
}

/// The enabled ones of `/proc/cgroups`: name, hierarchy, groups, enabled.
fn version_1(root: &Path) -> Vec<String> {
    let text = fs::read_to_string(root.join("proc/cgroups")).unwrap_or_default();
    let enabled = |line: &str| {
        let mut fields = line.split_whitespace();
        let name = fields.next().filter(|name| !name.starts_with('#'))?;
        (fields.nth(2) == Some("1")).then(|| name.to_owned())
    };
    text.lines().filter_map(enabled).collect()
}

/// Whether a group with a share of the processor can have a limit too; true if there is no such
/// group to look at.
fn limits_processor_time(root: &Path, version: u32) -> bool {
    let (dir, share, limit) = match version {
        1 => ("sys/fs/cgroup/cpu", "cpu.shares", "cpu.cfs_quota_us"),
        _ => ("sys/fs/cgroup", "cpu.weight", "cpu.max"),
    };
    let dir = root.join(dir);
    let children = fs::read_dir(&dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut groups = children.chain([dir]).filter(|group| group.join(share).exists());
    groups.next().is_none_or(|group| group.join(limit).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(path: &str, text: &str) -> Finding {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        look(root.path())
    }

    #[test]
    fn version_2() {
        assert!(with("sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory pids\n").good);
        let finding = with("sys/fs/cgroup/cgroup.controllers", "cpuset cpu io pids\n");
        assert!(!finding.good && finding.message.contains("controller memory:"), "{finding:?}");
    }

    #[test]
    fn version_1() {
        let head = "#subsys_name\thierarchy\tnum_cgroups\tenabled\n";
        let all = format!("{head}cpu\t1\t1\t1\nmemory\t2\t1\t1\npids\t3\t1\t1\n");
        assert!(with("proc/cgroups", &all).good);
        let finding = with("proc/cgroups", &all.replace("memory\t2\t1\t1", "memory\t0\t1\t0"));
        assert!(!finding.good && finding.message.contains("controller memory:"), "{finding:?}");
    }

    #[test]
    fn processor_time_takes_an_option_of_the_kernels() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join("sys/fs/cgroup").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("cgroup.controllers", "cpu memory pids\n");
        write("system.slice/cpu.weight", "100\n");
        assert_eq!(look(root.path()).reason, "cpu-quota-missing");
        write("system.slice/cpu.max", "max 100000\n");
        assert!(look(root.path()).good);
        write("cpu/cpu.shares", "1024\n");
        assert!(!limits_processor_time(root.path(), 1));
        write("cpu/cpu.cfs_quota_us", "-1\n");
        assert!(limits_processor_time(root.path(), 1));
    }

    #[test]
    fn none_at_all() {
        assert_eq!(with("proc/x", "").reason, "none");
    }
}
