//! What the agent costs, against a raw floor in the same run. In: options, the shipped binaries.
//! Out: a [`Report`]. Repetitions of both sides are interleaved, and which goes first alternates.
//!
//! | module | what it gives |
//! |---|---|
//! | [`subject`] | the agent's side: a whole gateway ordered through `coracle apply` |
//! | [`floor`] | the other side: the same containers through containerd's `ctr` |
//! | [`raw`], [`client`] | the same through a minimal gRPC client, which has a process of its own |
//! | [`loopback`] | the interface that every network has |
//! | [`connector`] | when processes ran and died, as the kernel stamps it |
//! | [`usage`] | what a process holds and does, from `/proc` |
//! | [`figures`] | minimum, median, ratio, pass or miss |
//! | [`run`], [`many`], [`rolling`], [`probing`] | the phases of a run |
//! | [`decision`] | what a decision with nothing to do costs, as a program beside the core tells |
//! | [`report`] | the table, and the same for programs |
//!
//! Deliberately not here: anything that fails because a figure is bad. This is no test.

mod client;
mod connector;
mod decision;
mod figures;
mod floor;
mod interrupt;
mod loopback;
mod machine;
mod many;
mod moment;
mod probing;
mod raw;
mod report;
mod rolling;
mod run;
mod subject;
mod usage;

use std::collections::BTreeSet;
use std::time::Duration;

use clap::ValueEnum;

pub use self::client::floor_client;
pub use self::interrupt::Interrupted;
pub use self::report::{HOW, Report};
pub use self::run::measure;

/// What everything here answers with.
type Result<T> = anyhow::Result<T>;

/// How long anything may take before the run is given up.
const LIMIT: Duration = Duration::from_secs(60);
const CONTAINERS: usize = 10;
const MANY: usize = 50;

/// What can be measured alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Part {
    /// 10 containers
    Starts,
    /// An order that changes nothing, and the idle agent
    Idle,
    /// Processes that are killed
    Restarts,
    /// Rolling updates
    Rolling,
    /// 50 workloads
    Many,
    /// 50 workloads that are probed
    Probing,
}

/// How to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// What to measure; all if it is empty.
    pub only: BTreeSet<Part>,
    /// How often 10 containers are started, and the same order applied.
    pub repetitions: u32,
    /// How often 50 workloads are started, without a network and with one.
    pub many: u32,
    /// How often 10 replicas are replaced, without a network and with one.
    pub rolling: u32,
    /// How long the agent is watched doing nothing.
    pub idle: Duration,
    /// How long the agent is watched with 50 workloads, without probes and with them.
    pub probing: Duration,
    /// Whether the binaries under test must be of the `dist` profile, else of any.
    pub dist: bool,
}

impl Options {
    fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }
}
