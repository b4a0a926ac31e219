//! One private containerd with a busybox image; containers started with the URI under test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use coracle::config::LogsConfig;
use coracle::logs;
use coracle_log::line::Line;
use coracle_testbed::image::{Builder, Compression};
use coracle_testbed::{Containerd, Place, Version, bin, place, wait_for};

/// Longest time for anything that happens soon.
pub(crate) const SOON: Duration = Duration::from_secs(30);

const NAMESPACE: &str = "coracle-test";
const IMAGE: &str = "registry.example/busybox:1";

pub(crate) struct Bed {
    pub(crate) containerd: Containerd,
    pub(crate) config: LogsConfig,
    pub(crate) state: PathBuf,
    place: Place,
}

/// Runs a scenario on a fresh containerd; afterwards nothing of it may be left.
pub(crate) fn run(version: Version, scenario: fn(&mut Bed)) {
    run_with(version, |_| {}, scenario);
}

/// The same; the state directory is prepared before containerd starts.
pub(crate) fn run_with(version: Version, prepare: fn(&Path), scenario: fn(&mut Bed)) {
    let place = Place::new().unwrap();
    let state = place.data().join("state");
    fs::create_dir(&state).unwrap();
    prepare(&state);
    let containerd = Containerd::start(&place, version).unwrap();
    let image = Builder::busybox(Compression::Plain).unwrap().build().unwrap();
    containerd.import(NAMESPACE, &image, IMAGE).unwrap();
    let config = LogsConfig { program: bin("coracle-log").unwrap(), ..LogsConfig::default() };
    let mut bed = Bed { containerd, config, state, place: place.clone() };
    scenario(&mut bed);
    for task in bed.containerd.tasks(NAMESPACE).unwrap() {
        bed.remove(&task.id);
    }
    drop(bed);
    let name = place.name().to_owned();
    let left = place.contents();
    let expected = |line: &String| line.starts_with("cgroup ") || line.ends_with("/state");
    assert!(left.iter().all(expected), "{left:?}");
    place.close().unwrap();
    assert_eq!(place::leftovers(&name), Vec::<String>::new());
}

/// Makes one test of a scenario for each containerd.
#[macro_export]
macro_rules! logs_on_every_containerd {
    ($($scenario:ident),* $(,)?) => {
        mod on_1_6 { $(#[test] fn $scenario() {
            $crate::bed::run(coracle_testbed::Version::V1_6, super::$scenario);
        })* }
        mod on_1_7 { $(#[test] fn $scenario() {
            $crate::bed::run(coracle_testbed::Version::V1_7, super::$scenario);
        })* }
        mod on_2_1 { $(#[test] fn $scenario() {
            $crate::bed::run(coracle_testbed::Version::V2_1, super::$scenario);
        })* }
    };
}

impl Bed {
    /// Starts `/bin/sh -c script` as a container of that id.
    pub(crate) fn start(&self, id: &str, script: &str) {
        self.start_with(id, script, Some(&logs::uri(&self.config, &self.state).unwrap()));
    }

    /// The same, with this for standard output and error.
    pub(crate) fn start_with(&self, id: &str, script: &str, uri: Option<&str>) {
        let cgroup = format!("{}/{NAMESPACE}/{id}", self.place.cgroup());
        let mut args = vec!["--namespace", NAMESPACE, "run", "--detach", "--cgroup", &cgroup];
        args.extend(uri.map(|uri| ["--log-uri", uri]).iter().flatten());
        if uri.is_none() {
            args.push("--null-io");
        }
        args.extend([IMAGE, id, "/bin/sh", "-c", script]);
        self.containerd.ctr(&args).unwrap();
    }

    /// Waits until a container's process has ended.
    pub(crate) fn ended(&self, id: &str, limit: Duration) {
        wait_for("the container to end", limit, || {
            let tasks = self.containerd.tasks(NAMESPACE).ok()?;
            tasks.iter().any(|task| task.id == id && task.status == "STOPPED").then_some(())
        })
        .unwrap();
    }

    /// Kills and removes a container with its task.
    pub(crate) fn remove(&self, id: &str) {
        self.containerd.ctr(&["--namespace", NAMESPACE, "tasks", "rm", "--force", id]).unwrap();
        self.containerd.ctr(&["--namespace", NAMESPACE, "containers", "rm", id]).unwrap();
    }

    /// The process that writes a container's log.
    pub(crate) fn logger(&self, id: &str) -> Option<i32> {
        let wanted = format!("CONTAINER_ID={id}");
        let state = self.state.to_str().unwrap();
        fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
            let environment = fs::read_to_string(format!("/proc/{pid}/environ")).ok()?;
            let ours = line.contains(state) && line.contains("coracle-log");
            (ours && environment.split('\0').any(|variable| variable == wanted)).then_some(pid)
        })
    }

    /// All that is kept of a container.
    pub(crate) fn kept(&self, id: &str) -> Vec<u8> {
        let container = logs::dir(&self.config, &self.state).join(id);
        let numbers = coracle_log::files::numbers(&container).unwrap_or_default();
        let paths = numbers.into_iter().map(|number| coracle_log::files::path(&container, number));
        paths.flat_map(|path| fs::read(path).unwrap_or_default()).collect()
    }

    /// Texts of a container's lines, without ours.
    pub(crate) fn texts(&self, id: &str) -> Vec<String> {
        texts(&self.kept(id))
    }

    /// Bytes that all logs use.
    pub(crate) fn used(&self) -> u64 {
        let listed = logs::list(&logs::dir(&self.config, &self.state)).unwrap();
        listed.iter().map(|kept| kept.size).sum()
    }

    /// `coracle logs`, with a configuration that names the directory.
    pub(crate) fn logs(&self, args: &[&str]) -> Command {
        let config = self.state.join("coracle.toml");
        fs::write(&config, format!("state_dir = {:?}\n", self.state)).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_coracle"));
        command.arg("logs").args(args).arg("--config").arg(config).stdin(Stdio::null());
        command
    }

    /// What it prints.
    pub(crate) fn printed(&self, args: &[&str]) -> String {
        let output = self.logs(args).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }
}

/// Texts of lines, without ours. Every line must be one.
pub(crate) fn texts(kept: &[u8]) -> Vec<String> {
    let lines = kept.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    let lines = lines.map(|line| Line::parse(line).unwrap_or_else(|| panic!("{line:?}")));
    lines
        .filter(|line| line.stream != logs::Stream::Coracle)
        .map(|line| String::from_utf8_lossy(line.text).into_owned())
        .collect()
}
