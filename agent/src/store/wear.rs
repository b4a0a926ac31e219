//! Counts what is written, by cause: every byte to flash is budgeted.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};

/// Why something is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Cause {
    Setup,
    Order,
    OrderFile,
    Sequence,
    Usage,
    Event,
    History,
    Workload,
    Command,
}

/// What was written for one cause since the agent started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wear {
    /// How many times something was made durable.
    pub commits: u64,
    /// Bytes given to the kernel, whole pages included; not what the file system adds.
    pub bytes: u64,
}

/// What the store wrote since the agent started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreMetrics {
    /// Making and migrating the LMDB file.
    pub setup: Wear,
    /// Orders in LMDB, kept ones among them.
    pub order: Wear,
    /// Orders in plain files.
    pub order_file: Wear,
    /// Records of containers.
    pub history: Wear,
    /// Records of workloads, and what was recorded with them.
    pub workload: Wear,
    /// Commands, and what was recorded with them.
    pub command: Wear,
    /// Events.
    pub event: Wear,
    /// What the link has used.
    pub usage: Wear,
    /// Reservations of report sequences.
    pub sequence: Wear,
    /// Writes that failed.
    pub failures: u64,
}

#[derive(Debug, Default)]
struct Cell {
    commits: AtomicU64,
    bytes: AtomicU64,
}

impl Cell {
    fn read(&self) -> Wear {
        Wear {
            commits: self.commits.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    cells: [Cell; 9],
    failures: AtomicU64,
}

impl Counters {
    /// Runs `write` and counts what this thread wrote meanwhile. `write` says whether it committed.
    pub(super) fn measure<T, E>(
        &self,
        cause: Cause,
        write: impl FnOnce() -> Result<(T, bool), E>,
    ) -> Result<T, E> {
        let before = written_by_this_thread();
        let result = write();
        let cell = &self.cells[cause as usize];
        let bytes = written_by_this_thread().saturating_sub(before);
        cell.bytes.fetch_add(bytes, Ordering::Relaxed);
        match result {
            Ok((value, committed)) => {
                cell.commits.fetch_add(u64::from(committed), Ordering::Relaxed);
                Ok(value)
            }
            Err(error) => {
                self.failures.fetch_add(1, Ordering::Relaxed);
                Err(error)
            }
        }
    }

    pub(super) fn read(&self) -> StoreMetrics {
        let cell = |cause: Cause| self.cells[cause as usize].read();
        StoreMetrics {
            setup: cell(Cause::Setup),
            order: cell(Cause::Order),
            order_file: cell(Cause::OrderFile),
            history: cell(Cause::History),
            workload: cell(Cause::Workload),
            command: cell(Cause::Command),
            event: cell(Cause::Event),
            usage: cell(Cause::Usage),
            sequence: cell(Cause::Sequence),
            failures: self.failures.load(Ordering::Relaxed),
        }
    }
}

/// Bytes given to write calls, from the kernel's own account; 0 on a kernel without one.
/// <https://docs.kernel.org/filesystems/proc.html#proc-pid-io-display-the-io-accounting-fields>
fn written_by_this_thread() -> u64 {
    fs::read_to_string("/proc/thread-self/io")
        .ok()
        .and_then(|text| {
            text.lines().find_map(|line| line.strip_prefix("wchar: ")?.trim().parse().ok())
        })
        .unwrap_or(0)
}
