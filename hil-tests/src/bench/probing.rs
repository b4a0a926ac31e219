//! What probes cost the agent: the same workloads without them and with them. Out: a [`Probing`].

use std::time::Duration;

use coracle_protocol::desired::{Probe, TcpAction, Workload};
use serde_json::{Value, json};

use super::run::{Run, pass, say};
use super::usage::{Counters, Memory};
use super::{MANY, Result};

/// From one question to the next.
const PERIOD_SECONDS: u32 = 5;

/// Where every workload listens, each in its own network.
const PORT: u16 = 80;

/// From an order until the time begins: each probe has asked by then, twice.
const SETTLE: Duration = Duration::from_secs(12);

/// Processor time of the agent in a minute, above that without probes, that is good.
pub(super) const TARGET_MS: f64 = 20.0;

/// Growth of private memory while it probes that is good, in bytes: a few pages that are touched
/// for the first time are no growth.
pub(super) const GROWTH_TARGET: u64 = 64 << 10;

/// 50 workloads that are asked whether they do their work.
#[derive(Clone, Debug)]
pub(super) struct Probing {
    pub(super) without: Watched,
    pub(super) with: Watched,
}

/// The agent, watched for a while.
#[derive(Clone, Copy, Debug)]
pub(super) struct Watched {
    time: Duration,
    pub(super) before: Memory,
    pub(super) after: Memory,
    counters: Counters,
}

impl Watched {
    /// Processor time in milliseconds a minute.
    pub(super) fn cpu_ms(&self) -> f64 {
        self.counters.cpu_nanos as f64 / 1e6 * 60.0 / self.time.as_secs_f64()
    }

    fn to_json(self) -> Value {
        json!({
            "seconds": self.time.as_secs_f64(),
            "cpu_ms": self.counters.cpu_nanos as f64 / 1e6,
            "voluntary_switches": self.counters.voluntary,
            "private_before_kib": self.before.private,
            "private_after_kib": self.after.private,
            "private_dirty_before_kib": self.before.dirty,
            "private_dirty_after_kib": self.after.dirty,
            "threads": self.after.threads,
        })
    }
}

impl Probing {
    /// What the probes cost, in milliseconds a minute.
    pub(super) fn more_ms(&self) -> f64 {
        self.with.cpu_ms() - self.without.cpu_ms()
    }

    /// By how many bytes private memory grew while it probed.
    pub(super) fn growth(&self) -> u64 {
        self.with.after.private.saturating_sub(self.with.before.private) * 1024
    }

    pub(super) fn cpu_met(&self) -> bool {
        self.more_ms() <= TARGET_MS
    }

    pub(super) fn growth_met(&self) -> bool {
        self.growth() <= GROWTH_TARGET
    }

    /// All of it.
    pub(super) fn to_json(&self) -> Value {
        json!({
            "workloads": MANY,
            "period_seconds": PERIOD_SECONDS,
            "without": self.without.to_json(),
            "with": self.with.to_json(),
            "more_cpu_ms_a_minute": self.more_ms(),
            "target_ms_a_minute": TARGET_MS,
            "growth_bytes": self.growth(),
            "growth_target_bytes": GROWTH_TARGET,
            "met": self.cpu_met() && self.growth_met(),
        })
    }
}

impl Run {
    /// The same workloads for as long without probes and with them.
    pub(super) fn probing(&mut self, time: Duration) -> Result<Probing> {
        let commands: Vec<_> = (0..MANY).map(listener).collect();
        self.subject.start_all(&self.watch, &commands)?;
        let pids = self.subject.settled()?;
        say(&format!("50 workloads without probes for {} s", time.as_secs()));
        let without = self.watched(time)?;
        let workloads = self.subject.workloads(&commands).into_iter().map(probed).collect();
        self.subject.order(workloads)?;
        say(&format!("50 workloads with probes for {} s", time.as_secs()));
        let with = self.watched(time)?;
        anyhow::ensure!(self.subject.settled()? == pids, "probes restarted something");
        self.subject.clear()?;
        Ok(Probing { without, with })
    }

    fn watched(&self, time: Duration) -> Result<Watched> {
        let pid = self.subject.agent_pid()?;
        pass(SETTLE)?;
        let (before, earlier) = (Memory::read(pid)?, Counters::read(pid)?);
        pass(time)?;
        let counters = Counters::read(pid)?.since(earlier);
        Ok(Watched { time, before, after: Memory::read(pid)?, counters })
    }
}

/// Listens, and accepts all connections. Its argument after `-r` is there to tell it from others.
fn listener(number: usize) -> Vec<String> {
    let (port, name) = (format!("127.0.0.1:{PORT}"), format!("probed{number}"));
    ["/bin/httpd", "-f", "-p", &port, "-r", &name].map(str::to_owned).into()
}

fn probed(mut workload: Workload) -> Workload {
    let tcp = Some(TcpAction { port: PORT });
    let probe = Probe { tcp, period_seconds: PERIOD_SECONDS, ..Probe::default() };
    for container in &mut workload.containers {
        container.probes.liveness = Some(probe.clone());
    }
    workload
}
