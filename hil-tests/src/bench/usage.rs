//! What a process uses, as the kernel counts it. In: `/proc/PID` (proc(5)) and
//! the process's clock (clock_getcpuclockid(3)). Out: memory now, and
//! counters whose difference is what happened in between.

use std::time::Duration;

use anyhow::Context as _;
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::Result;

/// Memory and threads at one moment; sizes in KiB.
#[derive(Clone, Copy, Debug)]
pub(super) struct Memory {
    /// `Private_Clean` and `Private_Dirty` of `smaps_rollup`: gone if the process ended.
    pub(super) private: u64,
    /// `Private_Dirty` alone: what the kernel cannot drop and read again, as it can program text.
    pub(super) dirty: u64,
    /// Proportional set size: shared pages divided among those who share them.
    pub(super) pss: u64,
    /// Resident set size.
    pub(super) rss: u64,
    /// The largest resident set size so far.
    pub(super) peak_rss: u64,
    /// Threads.
    pub(super) threads: u64,
}

impl Memory {
    /// Reads it; needs to be root or the process's own user.
    pub(super) fn read(pid: i32) -> Result<Self> {
        let rollup = read(pid, "smaps_rollup")?;
        let status = read(pid, "status")?;
        let dirty = field(&rollup, "Private_Dirty")?;
        Ok(Self {
            private: field(&rollup, "Private_Clean")? + dirty,
            dirty,
            pss: field(&rollup, "Pss")?,
            rss: field(&rollup, "Rss")?,
            peak_rss: field(&status, "VmHWM")?,
            threads: field(&status, "Threads")?,
        })
    }
}

/// Counters since the process began.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counters {
    /// Times that a thread gave up the processor of its own accord: each is a wake-up later.
    pub(super) voluntary: u64,
    /// Times that a thread had the processor taken away.
    pub(super) involuntary: u64,
    /// Processor time in nanoseconds, of all its threads, also those that have ended.
    pub(super) cpu_nanos: u64,
    /// Bytes that went towards storage (`write_bytes`).
    pub(super) written: u64,
    /// Bytes given to write calls of any kind, sockets too (`wchar`).
    pub(super) write_calls: u64,
}

impl Counters {
    /// Reads them; the switches are those of the threads that exist now.
    pub(super) fn read(pid: i32) -> Result<Self> {
        let io = read(pid, "io")?;
        let mut counters = Self {
            written: field(&io, "write_bytes")?,
            write_calls: field(&io, "wchar")?,
            cpu_nanos: cpu_nanos(pid).context("cannot read the clock of a process")?,
            ..Self::default()
        };
        let threads = std::fs::read_dir(format!("/proc/{pid}/task"));
        for thread in threads.with_context(|| format!("process {pid} has ended"))?.flatten() {
            // A thread may end while we look.
            let Ok(status) = std::fs::read_to_string(thread.path().join("status")) else {
                continue;
            };
            counters.voluntary += field(&status, "voluntary_ctxt_switches")?;
            counters.involuntary += field(&status, "nonvoluntary_ctxt_switches")?;
        }
        Ok(counters)
    }

    /// What happened since an earlier reading.
    pub(super) fn since(self, earlier: Self) -> Self {
        Self {
            voluntary: self.voluntary.saturating_sub(earlier.voluntary),
            involuntary: self.involuntary.saturating_sub(earlier.involuntary),
            cpu_nanos: self.cpu_nanos.saturating_sub(earlier.cpu_nanos),
            written: self.written.saturating_sub(earlier.written),
            write_calls: self.write_calls.saturating_sub(earlier.write_calls),
        }
    }
}

/// One process, idle.
#[derive(Clone, Copy, Debug)]
pub(super) struct Idle {
    /// At the end of the time.
    pub(super) memory: Memory,
    /// Over the time.
    pub(super) counters: Counters,
}

impl Idle {
    /// Sizes in KiB, the rest over the time of the measurement.
    pub(super) fn to_json(self) -> Value {
        let (memory, counters) = (self.memory, self.counters);
        json!({
            "private_kib": memory.private,
            "private_dirty_kib": memory.dirty,
            "pss_kib": memory.pss,
            "rss_kib": memory.rss,
            "peak_rss_kib": memory.peak_rss,
            "threads": memory.threads,
            "voluntary_switches": counters.voluntary,
            "involuntary_switches": counters.involuntary,
            "cpu_ms": counters.cpu_nanos as f64 / 1e6,
            "storage_bytes": counters.written,
            "write_call_bytes": counters.write_calls,
        })
    }
}

/// Processes of this name whose parent is one of these.
pub(super) fn children(parents: &[i32], name: &str) -> Result<Vec<i32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // A process may end while we look.
        let Ok(status) = read(pid, "status") else { continue };
        let called = status.lines().next().and_then(|line| line.strip_prefix("Name:"));
        let parent = field(&status, "PPid")?;
        if called.is_some_and(|called| called.trim() == name)
            && parents.iter().any(|shim| u64::try_from(*shim) == Ok(parent))
        {
            found.push(pid);
        }
    }
    Ok(found)
}

fn cpu_nanos(pid: i32) -> Result<u64> {
    let spent: Duration = clock_gettime(clock_getcpuclockid(Pid::from_raw(pid))?)?.into();
    Ok(u64::try_from(spent.as_nanos())?)
}

fn read(pid: i32, file: &str) -> Result<String> {
    let path = format!("/proc/{pid}/{file}");
    std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
}

/// The number after `NAME:` at the start of a line.
fn field(text: &str, name: &str) -> Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let number = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    number.with_context(|| format!("the kernel does not tell {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let text = "Pss_Dirty:  9 kB\nPss:   12 kB\nnonvoluntary_ctxt_switches:\t3\nvoluntary_ctxt_switches:\t5\n";
        assert_eq!(field(text, "Pss").unwrap(), 12);
        assert_eq!(field(text, "voluntary_ctxt_switches").unwrap(), 5);
        assert!(field(text, "Rss").is_err());
    }

    #[test]
    fn finds_a_child_by_its_name() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let (own, its) = (std::process::id().cast_signed(), child.id().cast_signed());
        let mut found = Vec::new();
        // Between fork and exec it still has our name.
        while found.is_empty() {
            found = children(&[own], "sleep").unwrap();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(found, [its]);
        assert!(children(&[its], "sleep").unwrap().is_empty());
    }

    #[test]
    fn reads_this_very_process() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let memory = Memory::read(pid).unwrap();
        assert!(memory.private > 0 && memory.pss <= memory.rss && memory.rss <= memory.peak_rss);
        assert!(Counters::read(pid).unwrap().cpu_nanos > 0);
    }
}
