//! A private containerd. In: a place and a version. Out: a socket, `ctr` on it, and control over
//! the daemon's life. The host's own containerd is neither used nor seen.
//!
//! The daemon, its shims and `ctr` run in one mount namespace of their own (held by a sleeping
//! process), in which a directory of the place lies over `/run/containerd`: shims put their
//! sockets and runc its state there whatever the configuration says, and two containerds with
//! containers of equal names would meet there. Mounts made by the host later are seen inside
//! only where the host's mounts are shared; a program that must see the same mounts as the
//! containers is started with [`Containerd::inside`].

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::image::Content;
use crate::place::Place;
use crate::process::{Process, run};
use crate::sweep::Scope;
use crate::{Result, installed, procfs, wait_for};

const SHARED: &str = "/run/containerd";
const START_LIMIT: Duration = Duration::from_secs(30);
const CTR_LIMIT: Duration = Duration::from_secs(60);

/// Which containerd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// The one that is installed.
    System,
    /// Debian 12's.
    V1_6,
    /// Debian 13's.
    V1_7,
    /// Debian unstable's, a 2.x.
    V2_1,
}

impl Version {
    /// The three that are supported, each fetched by `scripts/setup --containerds`.
    pub const ALL: [Self; 3] = [Self::V1_6, Self::V1_7, Self::V2_1];

    /// The directory that holds `containerd`, its shim and `ctr`: of the installed one, or under
    /// `CORACLE_CONTAINERDS`, or under `target/containerd`. An error that says what to do if it
    /// is not there.
    pub fn bin_dir(self) -> Result<PathBuf> {
        let name = match self {
            Self::System => {
                let parent = installed("containerd")?;
                return Ok(parent.parent().context("containerd lies nowhere")?.to_owned());
            }
            Self::V1_6 => "1.6",
            Self::V1_7 => "1.7",
            Self::V2_1 => "2.1",
        };
        let exe = std::env::current_exe().context("cannot tell the running program's path")?;
        let found = match std::env::var_os("CORACLE_CONTAINERDS") {
            Some(dir) => Some(PathBuf::from(dir)),
            None => exe.ancestors().map(|dir| dir.join("containerd")).find(|dir| dir.is_dir()),
        };
        found.map(|dir| dir.join(name).join("usr/bin")).filter(|dir| dir.is_dir()).with_context(
            || format!("containerd {name} is not there: run scripts/setup --containerds"),
        )
    }
}

/// A task as `ctr tasks ls` lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// The container's id.
    pub id: String,
    /// The process id of its init; 0 when it never started.
    pub pid: i32,
    /// `RUNNING`, `STOPPED`, `CREATED`, `PAUSED`.
    pub status: String,
}

/// A private containerd; ended with everything it started when dropped.
#[derive(Debug)]
pub struct Containerd {
    daemon: Option<Process>,
    holder: Process,
    bin_dir: PathBuf,
    name: String,
    /// Sockets, state, configuration.
    run: PathBuf,
    /// Content, snapshots, metadata.
    root: PathBuf,
    address: PathBuf,
    place: Place,
}

impl Containerd {
    /// Starts one and waits until it answers.
    pub fn start(place: &Place, version: Version) -> Result<Self> {
        let bin_dir = version.bin_dir()?;
        let name = format!("containerd{}", place.number());
        let (run, root) = (place.run().join(&name), place.data().join(&name));
        for dir in [&run, &root, &run.join("shared")] {
            std::fs::create_dir(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        let address = run.join("containerd.sock");
        ensure!(address.as_os_str().len() < 100, "socket path too long: {}", address.display());
        std::fs::write(run.join("config.toml"), configuration(&run, &root))?;
        let holder = hold_namespace(place, &name, &run.join("shared"))?;
        let place = place.clone();
        let mut started = Self { daemon: None, holder, bin_dir, name, run, root, address, place };
        started.start_again()?;
        Ok(started)
    }

    /// The absolute path of its gRPC socket; at most 99 bytes.
    pub fn address(&self) -> &Path {
        &self.address
    }

    /// Its root directory: content, snapshots, metadata.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Its state directory, with the bundles of running tasks.
    pub fn state(&self) -> PathBuf {
        self.run.join("state")
    }

    /// The daemon's process id, while it runs.
    pub fn pid(&self) -> Option<i32> {
        self.daemon.as_ref().map(Process::pid)
    }

    /// The end of the daemon's log (from its last start, too).
    pub fn log(&self) -> String {
        let log = self.place.run().join("log").join(format!("{}.log", self.name));
        std::fs::read_to_string(log).unwrap_or_default()
    }

    /// The daemon's answer to `containerd --version`.
    pub fn version(&self) -> Result<String> {
        let out = run(Command::new(self.bin_dir.join("containerd")).arg("--version"), CTR_LIMIT)?;
        Ok(String::from_utf8_lossy(&out).trim().to_owned())
    }

    /// SIGKILL to the daemon alone; shims and containers go on.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill()?;
        }
        Ok(())
    }

    /// Orderly stop of the daemon alone; shims and containers go on.
    pub fn stop(&mut self) -> Result<()> {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.terminate(Duration::from_secs(10))?;
        }
        Ok(())
    }

    /// Starts the daemon if it was stopped or killed, with the same directories and socket, and
    /// waits until it answers.
    pub fn start_again(&mut self) -> Result<()> {
        if self.daemon.as_mut().is_some_and(Process::is_running) {
            return Ok(());
        }
        let mut command = self.inside(self.bin_dir.join("containerd"));
        command.arg("--config").arg(self.run.join("config.toml"));
        let mut daemon = self.place.spawn(&self.name, &command)?;
        let answers = || {
            UnixStream::connect(&self.address).ok()?;
            self.ctr(&["version"]).ok()
        };
        daemon.wait_until("containerd answers", START_LIMIT, answers)?;
        self.daemon = Some(daemon);
        Ok(())
    }

    /// [`stop`](Self::stop) and [`start_again`](Self::start_again).
    pub fn restart(&mut self) -> Result<()> {
        self.stop()?;
        self.start_again()
    }

    /// SIGSTOP to the daemon: its socket accepts and nobody answers.
    pub fn freeze(&mut self) -> Result<()> {
        self.daemon.as_mut().map_or(Ok(()), Process::freeze)
    }

    /// Ends [`freeze`](Self::freeze).
    pub fn thaw(&mut self) -> Result<()> {
        self.daemon.as_mut().map_or(Ok(()), Process::thaw)
    }

    /// A command that will run in the mount namespace of this containerd and its containers,
    /// with this version's programs first in `PATH` and in our own working directory.
    pub fn inside(&self, program: impl AsRef<Path>) -> Command {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let system = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"];
        let dirs = [self.bin_dir.clone()].into_iter().chain(std::env::split_paths(&path));
        let path = std::env::join_paths(dirs.chain(system.map(PathBuf::from))).unwrap_or(path);
        let mut command = Command::new("nsenter");
        // --root: entering a mount namespace otherwise leaves a chroot that we may be in.
        command.args(["--target", &self.holder.pid().to_string(), "--mount", "--root", "--wd"]);
        command.arg("--").arg(program.as_ref()).env("PATH", path);
        command
    }

    /// Runs this version's `ctr` on our socket; gives its standard output.
    pub fn ctr(&self, args: &[&str]) -> Result<String> {
        let mut command = self.inside(self.bin_dir.join("ctr"));
        command.arg("--address").arg(&self.address).args(args);
        Ok(String::from_utf8_lossy(&run(&mut command, CTR_LIMIT)?).into_owned())
    }

    /// The tasks of a containerd namespace, by id.
    pub fn tasks(&self, namespace: &str) -> Result<Vec<Task>> {
        let listed = self.ctr(&["--namespace", namespace, "tasks", "ls"])?;
        let task = |line: &str| {
            let mut fields = line.split_whitespace();
            let (id, pid, status) = (fields.next()?, fields.next()?, fields.next()?);
            Some(Task { id: id.to_owned(), pid: pid.parse().ok()?, status: status.to_owned() })
        };
        let mut tasks: Vec<Task> = listed.lines().skip(1).filter_map(task).collect();
        tasks.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(tasks)
    }

    /// Names of the containers of a containerd namespace.
    pub fn containers(&self, namespace: &str) -> Result<Vec<String>> {
        self.list(&["--namespace", namespace, "containers", "ls", "--quiet"])
    }

    /// Names of the images of a containerd namespace.
    pub fn images(&self, namespace: &str) -> Result<Vec<String>> {
        self.list(&["--namespace", namespace, "images", "ls", "--quiet"])
    }

    fn list(&self, args: &[&str]) -> Result<Vec<String>> {
        Ok(self.ctr(args)?.lines().map(str::to_owned).collect())
    }

    /// Imports an image without any registry, unpacked and named `reference`.
    pub fn import(&self, namespace: &str, image: &dyn Content, reference: &str) -> Result<()> {
        let file = self.run.join(format!("import{}.tar", self.place.number()));
        std::fs::write(&file, crate::image::archive(image, reference)?)?;
        let path = file.to_str().context("path is not UTF-8")?;
        self.ctr(&["--namespace", namespace, "images", "import", path])?;
        Ok(std::fs::remove_file(&file)?)
    }

    /// What is mounted where its containers' mounts are made: points, in the order they were made.
    pub fn mounts(&self) -> Vec<PathBuf> {
        let mounts = procfs::mounts(&self.holder.pid().to_string());
        mounts.into_iter().map(|mount| mount.point).collect()
    }

    /// Names of the leases of a containerd namespace.
    pub fn leases(&self, namespace: &str) -> Result<Vec<String>> {
        self.list(&["--namespace", namespace, "leases", "ls", "--quiet"])
    }

    /// Names of the snapshots of a containerd namespace.
    pub fn snapshots(&self, namespace: &str) -> Result<Vec<String>> {
        let listed = self.ctr(&["--namespace", namespace, "snapshots", "ls"])?;
        let names = listed.lines().skip(1).filter_map(|line| line.split_whitespace().next());
        Ok(names.map(str::to_owned).collect())
    }

    /// Starts a container with `ctr run --detach`, in the place's cgroup; the baseline that the
    /// agent is compared with. `command` replaces the image's.
    pub fn run(&self, namespace: &str, image: &str, id: &str, command: &[&str]) -> Result<()> {
        let cgroup = format!("{}/{namespace}/{id}", self.place.cgroup());
        let mut args = vec!["--namespace", namespace, "run", "--detach", "--cgroup", &cgroup];
        args.extend([image, id].iter().chain(command));
        self.ctr(&args).map(drop)
    }

    /// Process ids of the shims that serve this containerd.
    pub fn shims(&self) -> Vec<i32> {
        let address = self.address.to_string_lossy();
        let ours = |pid: &i32| {
            let line = procfs::cmdline(*pid);
            line.contains("containerd-shim") && line.contains(&*address)
        };
        procfs::processes().into_iter().filter(ours).collect()
    }

    /// SIGKILL to one of [`shims`](Self::shims).
    pub fn kill_shim(&self, pid: i32) -> Result<()> {
        ensure!(self.shims().contains(&pid), "process {pid} is no shim of ours");
        kill(Pid::from_raw(pid), Signal::SIGKILL)?;
        wait_for("the shim to die", START_LIMIT, || procfs::start_time(pid).is_none().then_some(()))
    }

    /// A power cut, as far as containers can tell: daemon, shims and containers die at once, and
    /// all that lies under `/run` on a real machine is gone. The caller ends what else runs
    /// [`inside`](Self::inside) first.
    pub fn power_off(&mut self) -> Result<()> {
        self.clear()?;
        for dir in [self.state(), self.run.join("shared")] {
            std::fs::remove_dir_all(&dir)
                .with_context(|| format!("cannot remove {}", dir.display()))?;
        }
        Ok(())
    }

    /// Boots after [`power_off`](Self::power_off): the daemon with what the disk holds.
    pub fn power_on(&mut self) -> Result<()> {
        let shared = self.run.join("shared");
        std::fs::create_dir(&shared)
            .with_context(|| format!("cannot make {}", shared.display()))?;
        self.holder = hold_namespace(&self.place, &self.name, &shared)?;
        self.start_again()
    }

    fn clear(&mut self) -> Result<()> {
        let scope = Scope {
            needle: format!("{}/", self.run.display()),
            dirs: vec![self.run.clone(), self.root.clone()],
            cgroups: bundle_cgroups(&self.run),
            ..Scope::default()
        };
        self.kill()?;
        scope.clear()?;
        // Containers are told by the root directory that their overlay lies in.
        Scope { needle: format!("{}/", self.root.display()), ..Scope::default() }.clear()?;
        self.holder.kill().map(drop)
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if let Err(error) = self.clear() {
            eprintln!("testbed: cannot end {}: {error:#}", self.name);
        }
    }
}

/// Starts the process that keeps the mount namespace.
fn hold_namespace(place: &Place, name: &str, over: &Path) -> Result<Process> {
    std::fs::create_dir_all(SHARED).with_context(|| format!("cannot make {SHARED}"))?;
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "slave", "sh", "-ec"]);
    command.args([r#"mount --bind "$1" "$2"; exec sleep infinity"#, "sh"]).arg(over).arg(SHARED);
    let mut holder = place.spawn(&format!("{name}-namespace"), &command)?;
    let pid = holder.pid().to_string();
    holder.wait_until("its mount namespace is ready", START_LIMIT, || {
        let mounted = procfs::mounts(&pid).iter().any(|mount| mount.point == Path::new(SHARED));
        (mounted && procfs::cmdline(pid.parse().ok()?) == "sleep infinity").then_some(())
    })?;
    Ok(holder)
}

/// Only the plugins that containers need. Configuration version 2 is read by all of 1.6 to 2.x
/// (containerd, docs/PLUGINS.md and docs/man/containerd-config.toml.5.md); names unknown to a
/// version are ignored.
fn configuration(run: &Path, root: &Path) -> String {
    let (run, root) = (run.display(), root.display());
    format!(
        r#"version = 2
root = "{root}"
state = "{run}/state"
disabled_plugins = [
  "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime",
  "io.containerd.podsandbox.controller.v1.podsandbox", "io.containerd.nri.v1.nri",
  "io.containerd.internal.v1.opt", "io.containerd.internal.v1.restart",
  "io.containerd.internal.v1.tracing", "io.containerd.tracing.processor.v1.otlp",
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.erofs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.differ.v1.erofs",
]

[grpc]
  address = "{run}/containerd.sock"

[debug]
  level = "warn"
"#
    )
}

/// The cgroups that the bundles of every containerd under a place's run directory name: an
/// agent may put its containers anywhere.
pub(crate) fn cgroups_of_bundles(run: &Path) -> Vec<String> {
    children(run).iter().flat_map(|containerd| bundle_cgroups(containerd)).collect()
}

fn bundle_cgroups(containerd: &Path) -> Vec<String> {
    let namespaces = children(&containerd.join("state/io.containerd.runtime.v2.task"));
    let bundles = namespaces.iter().flat_map(|namespace| children(namespace));
    bundles.filter_map(|bundle| cgroup_of_bundle(&bundle)).collect()
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

fn cgroup_of_bundle(bundle: &Path) -> Option<String> {
    let bytes = std::fs::read(bundle.join("config.json")).ok()?;
    let spec: serde_json::Value = serde_json::from_slice(&bytes).ok()?;
    let cgroup = spec.pointer("/linux/cgroupsPath")?.as_str()?;
    // At least two levels: nothing that others could share.
    (cgroup.starts_with('/') && cgroup.matches('/').count() >= 2).then(|| cgroup.to_owned())
}
