//! The cgroups of containers: where they are, what can be limited, and what was killed in them.
//!
//! Formats: <https://docs.kernel.org/admin-guide/cgroup-v2.html> and
//! <https://docs.kernel.org/admin-guide/cgroup-v1/memory.html>.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use coracle_core::name::ContainerId;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use crate::containerd::Containerd;

const ROOT: &str = "/sys/fs/cgroup";

/// The machine's cgroups.
#[derive(Clone, Debug)]
pub(super) struct Cgroups {
    root: PathBuf,
    /// Whether the unified hierarchy is mounted at the root.
    pub(super) unified: bool,
}

impl Cgroups {
    /// Looks at this machine.
    pub(super) fn look() -> Self {
        let unified = statfs(ROOT).is_ok_and(|stat| stat.filesystem_type() == CGROUP2_SUPER_MAGIC);
        Self::at(Path::new(ROOT), unified)
    }

    fn at(root: &Path, unified: bool) -> Self {
        Self { root: root.to_owned(), unified }
    }

    /// Whether the number of processes can be limited.
    pub(super) fn limits_pids(&self) -> bool {
        if !self.unified {
            return self.root.join("pids").is_dir();
        }
        let offered = fs::read_to_string(self.root.join("cgroup.controllers")).unwrap_or_default();
        offered.split_whitespace().any(|name| name == "pids")
    }

    /// Whether swap can be limited.
    pub(super) fn limits_swap(&self) -> bool {
        if !self.unified {
            return self.root.join("memory/memory.memsw.limit_in_bytes").exists();
        }
        // The root itself has no limits; it is seen at any of its children.
        let Ok(entries) = fs::read_dir(&self.root) else { return false };
        entries.flatten().any(|entry| entry.path().join("memory.swap.max").exists())
    }

    /// A container's path in the hierarchy.
    pub(super) fn path(containerd: &Containerd, id: &ContainerId) -> String {
        let parent = containerd.cgroup().trim_end_matches('/');
        format!("{parent}/{}/{id}", containerd.namespace())
    }

    /// What the kernel killed for want of memory in the cgroup at this path; `None` if it does not
    /// say, or there is no such cgroup.
    pub(super) fn killed(&self, path: &str) -> Option<Killed> {
        let file = match self.unified {
            true => self.root.join(path.trim_start_matches('/')).join("memory.events"),
            false => {
                let hierarchy = self.root.join("memory");
                hierarchy.join(path.trim_start_matches('/')).join("memory.oom_control")
            }
        };
        let text = fs::read_to_string(&file).ok()?;
        let cgroup = fs::metadata(&file).ok()?.ino();
        Some(Killed { cgroup, count: field(&text, "oom_kill")? })
    }

    /// Bytes of memory in use in the cgroup at this path that cannot be taken from it by forgetting
    /// what is read from files; `None` if the kernel does not say.
    pub(super) fn memory_in_use(&self, path: &str) -> Option<u64> {
        let (dir, usage, files) = match self.unified {
            true => (self.root.clone(), "memory.current", ["inactive_file", "active_file"]),
            false => {
                let files = ["total_inactive_file", "total_active_file"];
                (self.root.join("memory"), "memory.usage_in_bytes", files)
            }
        };
        let dir = dir.join(path.trim_start_matches('/'));
        let used: u64 = fs::read_to_string(dir.join(usage)).ok()?.trim().parse().ok()?;
        let stat = fs::read_to_string(dir.join("memory.stat")).ok()?;
        let files: u64 = files.iter().filter_map(|name| field(&stat, name)).sum();
        Some(used.saturating_sub(files))
    }
}

/// The value of `name` in lines of a name and a number.
fn field(text: &str, name: &str) -> Option<u64> {
    let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok();
    text.lines().find_map(value)
}

/// What the kernel killed for want of memory in one cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Killed {
    /// Number of the file that says it: another one for each cgroup that has the path.
    pub(super) cgroup: u64,
    /// How many processes.
    pub(super) count: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn version_1() {
        let root = tempfile::tempdir().unwrap();
        let cgroups = Cgroups::at(root.path(), false);
        assert_eq!((cgroups.limits_pids(), cgroups.limits_swap()), (false, false));
        write(root.path(), "pids/tasks", "");
        write(root.path(), "memory/memory.memsw.limit_in_bytes", "");
        write(
            root.path(),
            "memory/coracle/x/memory.oom_control",
            "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
        );
        write(root.path(), "memory/coracle/x/memory.usage_in_bytes", "9000\n");
        write(
            root.path(),
            "memory/coracle/x/memory.stat",
            "inactive_file 7\ntotal_inactive_file 1000\ntotal_active_file 500\n",
        );
        assert_eq!(cgroups.memory_in_use("/coracle/x"), Some(7500));
        assert_eq!(cgroups.memory_in_use("/coracle/y"), None);
        assert_eq!((cgroups.limits_pids(), cgroups.limits_swap()), (true, true));
        assert_eq!(cgroups.killed("/coracle/x").map(|killed| killed.count), Some(2));
        assert_eq!(cgroups.killed("/coracle/y"), None);
    }

    #[test]
    fn version_2() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "cgroup.controllers", "cpu memory\n");
        let cgroups = Cgroups::at(root.path(), true);
        assert_eq!((cgroups.limits_pids(), cgroups.limits_swap()), (false, false));
        write(root.path(), "cgroup.controllers", "cpu memory pids\n");
        write(root.path(), "system.slice/memory.swap.max", "max\n");
        write(
            root.path(),
            "coracle/x/memory.events",
            "low 0\nhigh 0\nmax 9\noom 3\noom_kill 3\noom_group_kill 0\n",
        );
        write(root.path(), "coracle/x/memory.current", "9000\n");
        write(root.path(), "coracle/x/memory.stat", "anon 1\ninactive_file 1000\nactive_file 5\n");
        assert_eq!(cgroups.memory_in_use("/coracle/x"), Some(7995));
        assert_eq!((cgroups.limits_pids(), cgroups.limits_swap()), (true, true));
        assert_eq!(cgroups.killed("/coracle/x").map(|killed| killed.count), Some(3));
    }
}
