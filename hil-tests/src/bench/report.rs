//! The table that people read, and the same for programs. In: what was measured. Out: text, JSON.

use std::fmt;

use serde_json::{Value, json};

use super::Options;
use super::figures::{Comparison, Samples};
use super::machine::{Machine, Size};
use super::run::IdleTime;
use super::usage::Idle;

/// Private memory of the idle agent that is good, in bytes.
const PRIVATE_TARGET: u64 = 8_000_000;

/// How each figure is measured.
pub const HOW: &str = "\
How it was measured. Moments are stamped by the kernel (process connector: exec and exit) on its
monotonic clock. Both sides use one private containerd, the snapshotter overlayfs, one image
(busybox, unpacked before), the command sleep, and a network namespace of their own without
interfaces. The sides take turns, and which goes first alternates. The ratio is of the medians.
  10 containers   agent: exec of `coracle apply` to exec of the last of 10 workloads' processes;
                  that includes the command, signature, validation and the order's way to disk.
                  floor: exec of the first to the process of the last of 10 `ctr run -d`.
  killed          agent: end of the process (SIGKILL) to exec of its replacement, each workload
                  once, so without backoff. floor: exec of one `ctr run -d` to its process.
  changes nothing agent: exec to end of `coracle apply` with the same workloads under the next
                  generation; process ids are checked to be the same. floor: `ctr version`.
  idle            private: Private_Clean and Private_Dirty of smaps_rollup; storage: write_bytes,
                  write calls: wchar of /proc/PID/io; processor time: schedstat; switches:
                  status of all threads; broker: the socket's counters, by ss. containerd's
                  figures are without its shims.";

/// Everything that was measured.
#[derive(Debug)]
pub struct Report {
    pub(super) options: Options,
    pub(super) machine: Machine,
    pub(super) starts: Comparison,
    /// From the exec of `coracle apply` to its end, of the same repetitions.
    pub(super) accepted: Samples,
    pub(super) restarts: Comparison,
    pub(super) same_order: Comparison,
    pub(super) idle: IdleTime,
    pub(super) sizes: Vec<Size>,
}

impl Report {
    /// Whether all targets are met.
    pub fn targets_met(&self) -> bool {
        let ratios = [&self.starts, &self.restarts, &self.same_order];
        self.private_met() && ratios.iter().all(|comparison| comparison.met() != Some(false))
    }

    fn private_met(&self) -> bool {
        self.idle.agent.memory.private * 1024 < PRIVATE_TARGET
    }

    /// All of it, with every sample.
    pub fn to_json(&self) -> Value {
        let size = |size: &Size| json!({ "name": size.name, "profile": size.profile, "bytes": size.bytes });
        json!({
            "machine": self.machine.to_json(),
            "repetitions": self.options.repetitions,
            "comparisons": [
                self.starts.to_json(), self.restarts.to_json(), self.same_order.to_json(),
            ],
            "apply_answered": {
                "min_ms": self.accepted.min(), "median_ms": self.accepted.median(),
            },
            "idle": {
                "seconds": self.options.idle.as_secs(),
                "agent": self.idle.agent.to_json(),
                "containerd": self.idle.containerd.to_json(),
                "broker_bytes_sent": self.idle.link.map(|link| link.0),
                "broker_bytes_received": self.idle.link.map(|link| link.1),
                "private_target_bytes": PRIVATE_TARGET,
                "met": self.private_met(),
            },
            "sizes": self.sizes.iter().map(size).collect::<Vec<_>>(),
            "targets_met": self.targets_met(),
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let m = &self.machine;
        writeln!(
            f,
            "{} cores ({}), {} MiB, Linux {}, containerd {}, runc {}, load before {}\n",
            m.cores, m.processor, m.memory_mib, m.kernel, m.containerd, m.runc, m.load
        )?;
        writeln!(
            f,
            "{:<38}  {:>15}  {:>15}  {:>5}  {:>7}",
            "milliseconds (minimum, median)", "coracle", "floor", "ratio", "target"
        )?;
        for comparison in [&self.starts, &self.restarts, &self.same_order] {
            comparison_line(f, comparison)?;
        }
        let (min, median) = (number(self.accepted.min()), number(self.accepted.median()));
        writeln!(f, "{:<38}  {min:>7} {median:>7}", "  of the first: until apply answered")?;
        writeln!(f)?;
        self.idle_lines(f)?;
        writeln!(f)?;
        for size in &self.sizes {
            let name = format!("{} ({})", size.name, size.profile);
            writeln!(f, "{name:<38}  {:>12} MB", mb(size.bytes))?;
        }
        Ok(())
    }
}

impl Report {
    fn idle_lines(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let title = format!("idle with 10 containers, {} s", self.options.idle.as_secs());
        writeln!(
            f,
            "{title:<38}  {:>15}  {:>15}  {:>5}  {:>7}",
            "coracle", "containerd", "", "target"
        )?;
        let verdict = verdict(self.private_met());
        let (agent, daemon) = (&self.idle.agent, &self.idle.containerd);
        let private = |idle: &Idle| mb(idle.memory.private * 1024);
        writeln!(
            f,
            "{:<38}  {:>15}  {:>15}  {:>5}  {:>7}  {verdict}",
            "private memory, MB",
            private(agent),
            private(daemon),
            "",
            "< 8"
        )?;
        type Column = fn(&Idle) -> String;
        let columns: [(&str, Column); 10] = [
            ("  of it dirty (not program text), MB", |idle| mb(idle.memory.dirty * 1024)),
            ("proportional set size, MB", |idle| mb(idle.memory.pss * 1024)),
            ("resident set size, MB", |idle| mb(idle.memory.rss * 1024)),
            ("largest resident set size so far, MB", |idle| mb(idle.memory.peak_rss * 1024)),
            ("threads", |idle| idle.memory.threads.to_string()),
            ("context switches, voluntary", |idle| idle.counters.voluntary.to_string()),
            ("context switches, involuntary", |idle| idle.counters.involuntary.to_string()),
            ("processor time, ms", |idle| format!("{:.1}", idle.counters.cpu_nanos as f64 / 1e6)),
            ("written to storage, bytes", |idle| idle.counters.written.to_string()),
            ("given to write calls, bytes", |idle| idle.counters.write_calls.to_string()),
        ];
        for (name, column) in columns {
            writeln!(f, "{name:<38}  {:>15}  {:>15}", column(agent), column(daemon))?;
        }
        let link = self.idle.link;
        let link = link.map_or("not measured".into(), |(sent, got)| format!("{sent}, {got}"));
        writeln!(f, "{:<38}  {link:>15}", "to and from the broker, bytes")
    }
}

fn comparison_line(f: &mut fmt::Formatter<'_>, comparison: &Comparison) -> fmt::Result {
    let side = |samples: &Samples| (number(samples.min()), number(samples.median()));
    let ((min, median), (floor_min, floor_median)) =
        (side(&comparison.agent), side(&comparison.floor));
    let ratio = comparison.ratio().map_or("-".into(), |ratio| format!("{ratio:.2}"));
    let target = comparison.target.map_or("-".into(), |target| format!("<= {target:.1}"));
    write!(
        f,
        "{:<38}  {min:>7} {median:>7}  {floor_min:>7} {floor_median:>7}  {ratio:>5}  {target:>7}",
        comparison.name
    )?;
    match comparison.met() {
        Some(met) => writeln!(f, "  {}", verdict(met)),
        None => writeln!(f),
    }
}

fn verdict(met: bool) -> &'static str {
    if met { "pass" } else { "MISS" }
}

fn number(ms: Option<f64>) -> String {
    ms.map_or("-".into(), |ms| if ms < 100.0 { format!("{ms:.1}") } else { format!("{ms:.0}") })
}

fn mb(bytes: u64) -> String {
    format!("{:.2}", bytes as f64 / 1e6)
}
