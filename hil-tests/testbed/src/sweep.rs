//! Ends what belongs to a named directory: processes, mounts, cgroups. In: a [`Scope`]. Out:
//! nothing left of it, or a list of what is. Knows nothing of who made these things.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{Result, procfs, wait_for};

const PATIENCE: Duration = Duration::from_secs(10);

/// What belongs together.
#[derive(Debug, Clone, Default)]
pub(crate) struct Scope {
    /// Text, unique to this scope, that the arguments of its processes or the overlay options
    /// of its containers contain.
    pub(crate) needle: String,
    /// Processes known by id and start time.
    pub(crate) processes: Vec<(i32, u64)>,
    /// Directories under which nothing may stay mounted.
    pub(crate) dirs: Vec<PathBuf>,
    /// Cgroups, relative to the hierarchies' roots, which belong to it with all below them.
    pub(crate) cgroups: Vec<String>,
}

impl Scope {
    /// Kills the processes, unmounts, removes the cgroups.
    pub(crate) fn clear(&self) -> Result<()> {
        wait_for(&format!("the processes of {} to end", self.needle), PATIENCE, || {
            let found = self.find_processes();
            for pid in &found {
                // Gone already is as good.
                kill(Pid::from_raw(*pid), Signal::SIGKILL).ok();
            }
            found.is_empty().then_some(())
        })?;
        for mount in self.find_mounts() {
            umount2(&mount, MntFlags::MNT_DETACH)
                .with_context(|| format!("cannot unmount {}", mount.display()))?;
        }
        wait_for(&format!("the cgroups of {} to go", self.needle), PATIENCE, || {
            let dirs = self.find_cgroups();
            for dir in &dirs {
                // Busy until the kernel has buried its last process: tried again.
                std::fs::remove_dir(dir).ok();
            }
            dirs.is_empty().then_some(())
        })
    }

    /// What still exists, as sentences for a person.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let processes = self.find_processes();
        let processes =
            processes.iter().map(|pid| format!("process {pid}: {}", procfs::cmdline(*pid)));
        let mounts = self.find_mounts();
        let mounts = mounts.iter().map(|mount| format!("mount {}", mount.display()));
        let cgroups = self.find_cgroups();
        let cgroups = cgroups.iter().map(|dir| format!("cgroup {}", dir.display()));
        processes.chain(mounts).chain(cgroups).collect()
    }

    fn find_processes(&self) -> BTreeSet<i32> {
        let ours = procfs::ourselves();
        let named = procfs::processes().into_iter().filter(|pid| {
            procfs::cmdline(*pid).contains(&self.needle) || procfs::root_is_in(*pid, &self.needle)
        });
        let recorded = self
            .processes
            .iter()
            .filter(|(pid, start)| procfs::start_time(*pid) == Some(*start))
            .map(|(pid, _)| *pid);
        let grouped = self.find_cgroups();
        let grouped = grouped.iter().flat_map(|dir| procfs::cgroup_processes(dir));
        let alive = |pid: &i32| !ours.contains(pid) && procfs::start_time(*pid).is_some();
        let roots = named.chain(recorded).chain(grouped).filter(alive).collect();
        procfs::with_descendants(roots).into_iter().filter(alive).collect()
    }

    fn find_mounts(&self) -> Vec<PathBuf> {
        let inside = |point: &Path| self.dirs.iter().any(|dir| point.starts_with(dir));
        let mounts = procfs::mounts("self").into_iter().rev();
        mounts.map(|mount| mount.point).filter(|point| inside(point)).collect()
    }

    fn find_cgroups(&self) -> Vec<PathBuf> {
        self.cgroups.iter().flat_map(|cgroup| procfs::cgroup_dirs(cgroup)).collect()
    }
}
