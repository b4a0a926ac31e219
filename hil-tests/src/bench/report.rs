//! The table that people read, and the same for programs. In: what was measured. Out: text, JSON.

use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

use super::Options;
use super::decision::{Decision, TARGET_MICROS};
use super::figures::{Comparison, Samples, Target};
use super::machine::{Machine, Size};
use super::many::Many;
use super::probing::{GROWTH_TARGET, Probing, TARGET_MS, Watched};
use super::run::IdleTime;
use super::usage::{Idle, Memory};

/// Private memory of the idle agent that is good, in bytes.
const PRIVATE_TARGET: u64 = 8_000_000;

/// Private memory of the process that writes what one container says that is good, in bytes.
const LOG_TARGET: f64 = 300_000.0;

/// How each figure is measured.
pub const HOW: &str = "\
How it was measured. Moments are stamped by the kernel (process connector: exec and exit) on its
monotonic clock. Both sides use one private containerd, the snapshotter overlayfs, one image
(busybox, unpacked before), the command sleep, and a network namespace for each container, without
interfaces unless a bridge is named. The sides take turns, and which goes first alternates. The
ratio is of the medians. All of it runs in a network of its own that ends with the run.
  10 containers   agent: exec of `coracle apply` to exec of the last of 10 workloads' processes;
                  that includes the command, signature, validation and the order's way to disk.
                  floor: exec of the first to the process of the last of 10 `ctr run -d`.
  killed          agent: end of the process (SIGKILL) to exec of its replacement, each workload
                  once, so without backoff. floor: exec of one `ctr run -d` to its process; beside
                  bare calls: the client of the 50 workloads, from its first call to the exec.
  rolling update  agent: exec of `coracle apply` to exec of the last of 10 new processes of one
                  workload, max_unavailable 1, min_ready_seconds 0, no probes; each process ends at
                  once on SIGTERM. floor: the client of the 50 workloads; for one container after
                  the other it sends SIGTERM, waits for the end, deletes task, snapshot and record,
                  and makes and starts the new one; from its first call to the last exec.
  changes nothing agent: exec to end of `coracle apply` with the same workloads under the next
                  generation; process ids are checked to be the same. floor: `ctr version`.
  50 workloads    agent: exec of `coracle apply` to exec of the last of 50 workloads' processes.
                  floor: a client that makes the same gRPC calls with the same specification and
                  log, read back from containerd, on a connection that stands, from its first call
                  to the exec of the last process; so many at once as were best of 1, 2, 4 and 8.
                  On a bridge it makes the namespaces too and calls the plugins bridge (with
                  host-local), portmap and firewall directly, with the agent's configuration; no
                  port is published. order that changes nothing: the agent's processor time
                  for the 50 under the next generation, from signature to report.
  reconcile       processor time of one call of the agent's decision with 200 workloads that all
                  run as ordered, alone in a program built like the agent.
  idle            private: Private_Clean and Private_Dirty of smaps_rollup; storage: write_bytes,
                  write calls: wchar of /proc/PID/io; processor time: the process's clock; switches:
                  status of all threads; broker: the socket's counters, by ss. containerd's
                  figures are without its shims. coracle-log: private, of the processes that keep
                  what these containers say, one for each; the target is for the largest.
  probes          the same agent with the same 50 workloads, first without probes, then each asked
                  by a connection every 5 s, over as long a time each; processor time of all of the
                  agent's threads, growth of private memory from the first questions to the end.";

/// Everything that was measured.
#[derive(Debug)]
pub struct Report {
    pub(super) options: Options,
    pub(super) machine: Machine,
    pub(super) comparisons: Vec<Comparison>,
    /// From the exec of `coracle apply` to its end, when 10 containers were started.
    pub(super) accepted: Option<Samples>,
    /// Without a network, and on a bridge.
    pub(super) many: Vec<Many>,
    pub(super) decision: Option<Decision>,
    pub(super) idle: Option<IdleTime>,
    pub(super) probing: Option<Probing>,
    pub(super) sizes: Vec<Size>,
}

impl Report {
    /// Nothing measured yet that takes a gateway.
    pub(super) fn new(
        options: Options,
        machine: Machine,
        decision: Option<Decision>,
        sizes: Vec<Size>,
    ) -> Self {
        Self {
            options,
            machine,
            comparisons: Vec::new(),
            accepted: None,
            many: Vec::new(),
            decision,
            idle: None,
            probing: None,
            sizes,
        }
    }

    /// Whether all targets of what was measured are met.
    pub fn targets_met(&self) -> bool {
        let many = self.many.iter().map(|many| &many.starts);
        let probing = |probing: &Probing| probing.cpu_met() && probing.growth_met();
        self.idle.as_ref().is_none_or(|idle| private_met(idle) && logs_met(idle))
            && self.decision.as_ref().is_none_or(Decision::met)
            && self.probing.as_ref().is_none_or(probing)
            && self.comparisons.iter().chain(many).all(|comparison| comparison.met() != Some(false))
    }

    /// All of it, with every sample.
    pub fn to_json(&self) -> Value {
        let size = |size: &Size| json!({ "name": size.name, "profile": size.profile, "bytes": size.bytes });
        json!({
            "machine": self.machine.to_json(),
            "repetitions": self.options.repetitions,
            "comparisons": self.comparisons.iter().map(Comparison::to_json).collect::<Vec<_>>(),
            "apply_answered": self.accepted.as_ref().map(|accepted| json!({
                "min_ms": accepted.min(), "median_ms": accepted.median(),
            })),
            "many": self.many.iter().map(Many::to_json).collect::<Vec<_>>(),
            "decision": self.decision.as_ref().map(Decision::to_json),
            "idle": self.idle.as_ref().map(|idle| json!({
                "seconds": self.options.idle.as_secs(),
                "agent": idle.agent.to_json(),
                "containerd": idle.containerd.to_json(),
                "broker_bytes_sent": idle.link.map(|link| link.0),
                "broker_bytes_received": idle.link.map(|link| link.1),
                "private_target_bytes": PRIVATE_TARGET,
                "met": private_met(idle),
                "log_private_bytes": idle.logs.to_json(),
                "log_private_target_bytes": LOG_TARGET,
                "log_met": logs_met(idle),
            })),
            "probing": self.probing.as_ref().map(Probing::to_json),
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
        for comparison in &self.comparisons {
            comparison_line(f, comparison)?;
        }
        if let Some(accepted) = &self.accepted {
            samples_line(f, "  of the first: until apply answered", accepted)?;
        }
        for many in &self.many {
            many_lines(f, many)?;
        }
        if let Some(decision) = &self.decision {
            decision_line(f, decision)?;
        }
        if let Some(idle) = &self.idle {
            idle_lines(f, idle, self.options.idle)?;
        }
        if let Some(probing) = &self.probing {
            probing_lines(f, probing)?;
        }
        writeln!(f)?;
        for size in &self.sizes {
            let name = format!("{} ({})", size.name, size.profile);
            writeln!(f, "{name:<38}  {:>12} MB", mb(size.bytes))?;
        }
        Ok(())
    }
}

fn idle_lines(f: &mut fmt::Formatter<'_>, idle: &IdleTime, time: Duration) -> fmt::Result {
    let title = format!("\nidle with 10 containers, {} s", time.as_secs());
    writeln!(
        f,
        "{title:<39}  {:>15}  {:>15}  {:>5}  {:>7}",
        "coracle", "containerd", "", "target"
    )?;
    let (agent, daemon) = (&idle.agent, &idle.containerd);
    let private = |idle: &Idle| mb(idle.memory.private * 1024);
    writeln!(
        f,
        "{:<38}  {:>15}  {:>15}  {:>5}  {:>7}  {}",
        "private memory, MB",
        private(agent),
        private(daemon),
        "",
        "< 8",
        verdict(private_met(idle))
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
    let link = idle.link;
    let link = link.map_or("not measured".into(), |(sent, got)| format!("{sent}, {got}"));
    writeln!(f, "{:<38}  {link:>15}", "to and from the broker, bytes")?;
    let kb = |bytes: Option<f64>| bytes.map_or("-".into(), |bytes| format!("{:.0}", bytes / 1e3));
    let logs = &idle.logs;
    let logs = format!("{} {:>7}", kb(logs.median()), kb(logs.max()));
    writeln!(
        f,
        "{:<38}  {logs:>15}  {:>15}  {:>5}  {:>7}  {}",
        "one coracle-log, kB (median, largest)",
        "",
        "",
        "< 300",
        verdict(logs_met(idle))
    )
}

fn decision_line(f: &mut fmt::Formatter<'_>, decision: &Decision) -> fmt::Result {
    let Decision { workloads, micros } = decision;
    writeln!(
        f,
        "\n{:<38}  {:>15}  {:>15}  {:>5}  {:>7}",
        "microseconds of processor time", "coracle", "", "", "target"
    )?;
    let name = format!("reconcile of {workloads}, nothing to do");
    let (min, median) = (number(micros.min()), number(micros.median()));
    let target = format!("< {TARGET_MICROS:.0}");
    writeln!(
        f,
        "{name:<38}  {min:>7} {median:>7}  {:>15}  {:>5}  {target:>7}  {}",
        "",
        "",
        verdict(decision.met())
    )
}
fn probing_lines(f: &mut fmt::Formatter<'_>, probing: &Probing) -> fmt::Result {
    let Probing { without, with } = probing;
    writeln!(
        f,
        "\n{:<38}  {:>15}  {:>15}  {:>5}  {:>7}",
        "50 workloads, TCP every 5 s", "probed", "not probed", "more", "target"
    )?;
    let name = "processor time of the agent, ms/min";
    let (cpu, before, more) = (with.cpu_ms(), without.cpu_ms(), probing.more_ms());
    let met = verdict(probing.cpu_met());
    writeln!(
        f,
        "{name:<38}  {cpu:>15.1}  {before:>15.1}  {more:>5.1}  {:>7}  {met}",
        format!("<= {TARGET_MS}")
    )?;
    let private = |memory: &Memory| memory.private as f64 * 1.024 / 1e3;
    let both = |watched: &Watched| {
        format!("{:.2} {:>7.2}", private(&watched.before), private(&watched.after))
    };
    let (name, met) = ("private memory, MB (before, after)", verdict(probing.growth_met()));
    let (with, without, more) = (both(with), both(without), probing.growth() as f64 / 1e6);
    let target = format!("<= {:.2}", GROWTH_TARGET as f64 / 1e6);
    writeln!(f, "{name:<38}  {with:>15}  {without:>15}  {more:>5.2}  {target:>7}  {met}")
}

fn logs_met(idle: &IdleTime) -> bool {
    idle.logs.max().is_some_and(|largest| largest < LOG_TARGET)
}

fn private_met(idle: &IdleTime) -> bool {
    idle.agent.memory.private * 1024 < PRIVATE_TARGET
}

fn many_lines(f: &mut fmt::Formatter<'_>, many: &Many) -> fmt::Result {
    comparison_line(f, &many.starts)?;
    samples_line(f, "  until apply answered", &many.accepted)?;
    samples_line(f, "  processor time, changes nothing", &many.same_order)?;
    for (at_once, samples) in &many.tried {
        let best = if *at_once == many.at_once { "  best" } else { "" };
        let (min, median) = (number(samples.min()), number(samples.median()));
        let name = format!("  tried: floor with {at_once} at once");
        writeln!(f, "{name:<38}  {:>15}  {min:>7} {median:>7}{best}", "")?;
    }
    Ok(())
}

fn samples_line(f: &mut fmt::Formatter<'_>, name: &str, samples: &Samples) -> fmt::Result {
    let (min, median) = (number(samples.min()), number(samples.median()));
    writeln!(f, "{name:<38}  {min:>7} {median:>7}")
}

fn comparison_line(f: &mut fmt::Formatter<'_>, comparison: &Comparison) -> fmt::Result {
    let side = |samples: &Samples| (number(samples.min()), number(samples.median()));
    let ((min, median), (floor_min, floor_median)) =
        (side(&comparison.agent), side(&comparison.floor));
    let ratio = comparison.ratio().map_or("-".into(), |ratio| format!("{ratio:.2}"));
    let target = comparison.target.map_or("-".into(), |target| match target {
        Target::Times(times) => format!("<= {times}"),
        Target::Plus(ms) => format!("<= +{ms}"),
    });
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
