//! What the figures were made on and with: the machine's facts and the binaries' sizes.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, ensure};
use coracle_testbed::process::run;
use coracle_testbed::{Containerd, bin, installed};
use serde_json::{Value, json};

use super::{LIMIT, Result};

/// Facts of the machine, for people.
#[derive(Clone, Debug)]
pub(super) struct Machine {
    /// Processors that we may use.
    pub(super) cores: usize,
    /// What the processor calls itself; its architecture where it does not say.
    pub(super) processor: String,
    /// Memory in MiB.
    pub(super) memory_mib: u64,
    /// The kernel's release.
    pub(super) kernel: String,
    /// containerd's version.
    pub(super) containerd: String,
    /// runc's version.
    pub(super) runc: String,
    /// Runnable threads on average in the minute before: far above 0 means a noisy machine.
    pub(super) load: String,
}

impl Machine {
    /// Looks around.
    pub(super) fn read(containerd: &Containerd) -> Result<Self> {
        let runc = run(Command::new(installed("runc")?).arg("--version"), LIMIT)?;
        let runc = String::from_utf8_lossy(&runc);
        let version = containerd.version()?;
        let memory = value("/proc/meminfo", "MemTotal").context("no MemTotal")?;
        let memory = memory.trim_end_matches(" kB").parse::<u64>()?;
        Ok(Self {
            cores: std::thread::available_parallelism()?.get(),
            processor: value("/proc/cpuinfo", "model name")
                .unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            memory_mib: memory / 1024,
            kernel: word("/proc/sys/kernel/osrelease")?,
            containerd: version.split_whitespace().nth(2).unwrap_or(&version).to_owned(),
            runc: runc.split_whitespace().nth(2).unwrap_or_default().to_owned(),
            load: word("/proc/loadavg")?,
        })
    }

    /// The same facts for programs.
    pub(super) fn to_json(&self) -> Value {
        json!({
            "cores": self.cores,
            "processor": self.processor,
            "architecture": std::env::consts::ARCH,
            "memory_mib": self.memory_mib,
            "kernel": self.kernel,
            "containerd": self.containerd,
            "runc": self.runc,
            "load_before": self.load,
        })
    }
}

/// One binary's size.
#[derive(Clone, Debug)]
pub(super) struct Size {
    /// `coracle`, `coracle-log` or `coracle-fleet`.
    pub(super) name: &'static str,
    /// `release` or `dist`.
    pub(super) profile: String,
    /// In bytes.
    pub(super) bytes: u64,
}

/// Sizes of the binaries under test, of the profile that their directory is named after; an
/// error if `dist` is wanted and they are another's.
pub(super) fn sizes(dist: bool) -> Result<Vec<Size>> {
    ["coracle", "coracle-log", "coracle-fleet"]
        .map(|name| {
            let path = bin(name)?;
            let bytes = std::fs::metadata(&path)?.len();
            let profile = path.parent().and_then(Path::file_name).unwrap_or_default();
            let profile = profile.to_string_lossy().into_owned();
            ensure!(
                !dist || profile == "dist",
                "{} is not of the dist profile: run scripts/bench, or give --release",
                path.display()
            );
            Ok(Size { name, profile, bytes })
        })
        .into_iter()
        .collect()
}

fn word(path: &str) -> Result<String> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    Ok(text.split_whitespace().next().unwrap_or_default().to_owned())
}

fn value(path: &str, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}
