//! The place of one test's things: two unique directories, the children started from it, and
//! the end of it all. In: nothing. Out: nothing left, even when the owner was killed: whoever
//! makes the next place sweeps the places of dead owners.
//!
//! `/run/coracle-bed.PID.START.N` holds sockets, state, logs and records (short, because a Unix
//! socket's path ends at 107 bytes); it is in memory, as on a gateway, so where `/run` is on a disk,
//! it is below `/dev/shm`. A directory of the same name on a real disk holds data.
//! PID and START are the owner's process id and start time. The owner holds a lock on the file
//! `lock` in the first directory.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail, ensure};
use nix::fcntl::{Flock, FlockArg};
use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, TMPFS_MAGIC, statfs};
use nix::unistd::{Pid, Uid};

use crate::process::Process;
use crate::sweep::Scope;
use crate::{Result, procfs};

const PREFIX: &str = "coracle-bed.";
/// Of a place with a network of its own (RFC 5737).
pub const ADDRESS: &str = "192.0.2.1";
const NEIGHBOUR: &str = "192.0.2.2";
const NETWORK_LIMIT: Duration = Duration::from_secs(10);

/// The first directory in memory; `/run` if there is none.
fn run_base() -> &'static Path {
    let bases = ["/run", "/dev/shm"].map(Path::new);
    let in_memory =
        |base: &&Path| statfs(*base).is_ok_and(|stat| stat.filesystem_type() == TMPFS_MAGIC);
    bases.into_iter().find(in_memory).unwrap_or(bases[0])
}

/// A handle on a place; the last one dropped ends it.
#[derive(Debug, Clone)]
pub struct Place {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    run: PathBuf,
    data: PathBuf,
    records: Mutex<()>,
    next: AtomicU32,
    /// Keep the network namespace that children are started in, if it is not the machine's, and the
    /// one of a neighbour.
    network: OnceLock<[Process; 2]>,
    _lock: Flock<File>,
}

impl Place {
    /// Makes a place, after sweeping those of dead owners. Needs root.
    pub fn new() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        ensure!(Uid::effective().is_root(), "mounts and containers need root: run as root");
        let base = data_base()?;
        sweep_dead_owners()?;
        let pid = Pid::this().as_raw();
        let start = procfs::start_time(pid).context("cannot read our own /proc/PID/stat")?;
        let name = format!("{PREFIX}{pid}.{start}.{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let run = run_base().join(&name);
        let data = base.join(&name);
        for dir in [&run, &run.join("log"), &data] {
            std::fs::create_dir(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        let lock = OpenOptions::new().create(true).append(true).open(run.join("lock"))?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, error)| error)
            .context("cannot lock our own place")?;
        std::fs::write(run.join("data"), data.as_os_str().as_encoded_bytes())?;
        let records = Mutex::new(());
        let next = AtomicU32::new(0);
        let network = OnceLock::new();
        Ok(Self { inner: Arc::new(Inner { name, run, data, records, next, network, _lock: lock }) })
    }

    /// Gives the place a network of its own, with loopback and the address [`ADDRESS`]: what is
    /// started from now on sees it in place of the machine's, and cannot change the machine's. Once.
    pub fn isolate(&self) -> Result<()> {
        let hold = |name: &str, script: &str| -> Result<Process> {
            let script = format!("ip link set lo up; {script}; exec sleep infinity");
            let mut command = Command::new("unshare");
            command.args(["--net", "sh", "-ec", &script]);
            let mut holder = self.spawn(name, &command)?;
            let pid = holder.pid();
            holder.wait_until("its network is ready", NETWORK_LIMIT, || {
                (procfs::cmdline(pid) == "sleep infinity").then_some(())
            })?;
            Ok(holder)
        };
        let neighbour = hold("neighbour", ":")?;
        let join = format!(
            "ip link add eth0 type veth peer name eth0 netns {pid}; ip link set eth0 up; \
             ip addr add {ADDRESS}/24 dev eth0; nsenter --target {pid} --net sh -ec \
             'ip link set eth0 up; ip addr add {NEIGHBOUR}/24 dev eth0'",
            pid = neighbour.pid()
        );
        let network = [hold("network", &join)?, neighbour];
        self.inner.network.set(network).map_err(|_| anyhow!("the place is isolated already"))
    }

    /// Runs `work` in the network that the place's children see.
    pub fn in_network<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        match self.inner.network.get() {
            Some([holder, _]) => in_network_of(holder, work),
            None => Ok(work()),
        }
    }

    /// Runs `work` where another machine on the place's own network would be.
    pub fn from_outside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let network = self.inner.network.get().context("the place has no network of its own")?;
        in_network_of(&network[1], work)
    }

    /// A command that will run in the network that the place's children see.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let program = program.as_ref();
        let Some([holder, _]) = self.inner.network.get() else { return Command::new(program) };
        let mut command = Command::new("nsenter");
        command.args(["--target", &holder.pid().to_string(), "--net", "--"]).arg(program);
        command
    }

    /// The unique name, `coracle-bed.PID.START.N`.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The directory for sockets, configuration and state; 40 bytes at most.
    pub fn run(&self) -> &Path {
        &self.inner.run
    }

    /// The directory for bulk data, on a file system that overlayfs can write on.
    pub fn data(&self) -> &Path {
        &self.inner.data
    }

    /// A cgroup (`/NAME`, relative to the root of each hierarchy) for the place's containers;
    /// removed with all below it. Containers elsewhere are found too, but two places whose
    /// containers have the same cgroup path would end each other's.
    pub fn cgroup(&self) -> String {
        format!("/{}", self.inner.name)
    }

    /// Declares a further cgroup, relative to the root of each hierarchy, as this place's own:
    /// at the end its processes are killed and it is removed with all below it.
    pub fn own_cgroup(&self, cgroup: &str) -> Result<()> {
        self.inner.record("cgroups", cgroup)
    }

    /// A number that this place has not given out before.
    pub(crate) fn number(&self) -> u32 {
        self.inner.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Starts a child that is killed with the place, or with the owner. Its output goes to
    /// `RUN/log/NAME.log`.
    pub fn spawn(&self, name: &str, command: &Command) -> Result<Process> {
        let log = self.inner.run.join("log").join(format!("{name}.log"));
        let mut there = self.command(command.get_program());
        there.args(command.get_args());
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => there.env(key, value),
                None => there.env_remove(key),
            };
        }
        if let Some(dir) = command.get_current_dir() {
            there.current_dir(dir);
        }
        let process = Process::start(name, &there, log)?;
        if let Some(start) = procfs::start_time(process.pid()) {
            self.inner.record("processes", &format!("{} {start}", process.pid()))?;
        }
        Ok(process)
    }

    /// What exists of this place besides its directories: processes, mounts, cgroups.
    pub fn contents(&self) -> Vec<String> {
        self.inner.scope().leftovers()
    }

    /// Ends the place now; an error if other handles on it (for example a containerd's) remain
    /// or something could not be removed.
    pub fn close(self) -> Result<()> {
        let inner = Arc::into_inner(self.inner).context("the place is still in use")?;
        inner.clear()
    }
}

fn in_network_of<T: Send>(holder: &Process, work: impl FnOnce() -> T + Send) -> Result<T> {
    let file = File::open(format!("/proc/{}/ns/net", holder.pid()));
    let file = file.context("the place's network is gone")?;
    // A thread of its own: a namespace is a thread's, and that of the caller stays as it is.
    let ran = std::thread::scope(|scope| {
        let enter = || setns(&file, CloneFlags::CLONE_NEWNET).map(|()| work());
        scope.spawn(enter).join()
    });
    match ran {
        Ok(entered) => entered.context("cannot enter the place's network"),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

impl Inner {
    fn record(&self, file: &str, line: &str) -> Result<()> {
        let _held = self.records.lock().map_err(|_| anyhow::anyhow!("a recorder panicked"))?;
        let mut file = OpenOptions::new().create(true).append(true).open(self.run.join(file))?;
        Ok(writeln!(file, "{line}")?)
    }

    fn scope(&self) -> Scope {
        scope(&self.name, &self.run, &self.data)
    }

    fn clear(&self) -> Result<()> {
        if !self.run.exists() && !self.data.exists() {
            return Ok(());
        }
        clear(&self.name, &self.run, &self.data)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Err(error) = self.clear() {
            eprintln!("testbed: {error:#}");
        }
    }
}

/// What exists of the place of that name, as sentences: directories, processes, mounts and
/// cgroups. Empty when nothing was left.
pub fn leftovers(name: &str) -> Vec<String> {
    let (run, data) = dirs_of(name);
    let mut found = scope(name, &run, &data).leftovers();
    let dirs = [run, data].into_iter().filter(|dir| dir.exists());
    found.extend(dirs.map(|dir| format!("directory {}", dir.display())));
    found
}

/// Ends the places whose owner is dead; gives their names. Done by [`Place::new`] as well.
pub fn sweep_dead_owners() -> Result<Vec<String>> {
    let mut swept = Vec::new();
    for base in [run_base().to_owned(), data_base()?] {
        let entries = std::fs::read_dir(&base);
        let entries = entries.with_context(|| format!("cannot read {}", base.display()))?;
        for entry in entries.flatten() {
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
            if owner(&name).is_none_or(|(pid, start)| procfs::start_time(pid) == Some(start)) {
                continue;
            }
            let (run, data) = dirs_of(&name);
            // Locked: its owner lives in another process namespace, or another sweeper is at it.
            let _lock = match File::open(run.join("lock")) {
                Ok(file) => match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                    Ok(lock) => Some(lock),
                    Err(_) => continue,
                },
                Err(_) => None,
            };
            clear(&name, &run, &data).with_context(|| format!("cannot sweep {name}"))?;
            swept.push(name);
        }
    }
    Ok(swept)
}

fn owner(name: &str) -> Option<(i32, u64)> {
    let mut parts = name.strip_prefix(PREFIX)?.split('.');
    let owner = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    parts.next()?.parse::<u32>().ok()?;
    parts.next().is_none().then_some(owner)
}

fn dirs_of(name: &str) -> (PathBuf, PathBuf) {
    let run = run_base().join(name);
    let recorded = std::fs::read_to_string(run.join("data")).ok();
    let data = recorded.filter(|data| data.ends_with(name)).map(PathBuf::from);
    let data = data.unwrap_or_else(|| data_base().unwrap_or_default().join(name));
    (run, data)
}

fn scope(name: &str, run: &Path, data: &Path) -> Scope {
    let records = |file| std::fs::read_to_string(run.join(file)).unwrap_or_default();
    let processes = records("processes");
    let processes = processes.lines().filter_map(|line| {
        let (pid, start) = line.split_once(' ')?;
        Some((pid.parse().ok()?, start.parse().ok()?))
    });
    let own = [format!("/{name}")];
    let recorded = records("cgroups");
    let cgroups = own.into_iter().chain(recorded.lines().map(str::to_owned));
    Scope {
        needle: name.to_owned(),
        processes: processes.collect(),
        dirs: vec![run.to_owned(), data.to_owned()],
        cgroups: cgroups.chain(crate::containerd::cgroups_of_bundles(run)).collect(),
    }
}

fn clear(name: &str, run: &Path, data: &Path) -> Result<()> {
    let scope = scope(name, run, data);
    scope.clear()?;
    // The run directory goes last: its records are what a second try would go by.
    for dir in [data, run] {
        match std::fs::remove_dir_all(dir) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(error).with_context(|| format!("cannot remove {}", dir.display()));
            }
        }
    }
    let left = scope.leftovers();
    ensure!(left.is_empty(), "left of {name}: {}", left.join("; "));
    Ok(())
}

/// The first of `CORACLE_BED_DATA`, `TMPDIR`, `/var/tmp` and `/dev/shm` that is not itself on an
/// overlay, which cannot be the upper layer of another.
fn data_base() -> Result<PathBuf> {
    let variables = ["CORACLE_BED_DATA", "TMPDIR"].iter().filter_map(std::env::var_os);
    let candidates = variables.map(PathBuf::from);
    for dir in candidates.chain(["/var/tmp".into(), "/dev/shm".into()]) {
        if statfs(&dir).is_ok_and(|fs| fs.filesystem_type() != OVERLAYFS_SUPER_MAGIC) {
            return std::fs::canonicalize(&dir)
                .with_context(|| format!("cannot resolve {}", dir.display()));
        }
    }
    bail!("TMPDIR, /var/tmp and /dev/shm are on overlayfs: set CORACLE_BED_DATA to a real disk")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_its_own_names_from_others() {
        assert_eq!(owner("coracle-bed.12.345.0"), Some((12, 345)));
        for other in ["coracle-bed", "coracle-bed.1.2", "coracle-bed.1.2.3.4", "coracle-bed.x.1.2"]
        {
            assert_eq!(owner(other), None, "{other}");
        }
    }
}
