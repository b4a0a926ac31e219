//! What the agent costs, against a raw floor in the same run. In: options, the shipped binaries.
//! Out: a [`Report`]. Repetitions of both sides are interleaved, and which goes first alternates.
//!
//! | module | what it gives |
//! |---|---|
//! | [`subject`] | the agent's side: a whole gateway ordered through `coracle apply` |
//! | [`floor`] | the other side: the same containers through containerd's `ctr` |
//! | [`connector`] | when processes ran and died, as the kernel stamps it |
//! | [`usage`] | what a process holds and does, from `/proc` |
//! | [`figures`] | minimum, median, ratio, pass or miss |
//! | [`run`] | the phases of a run |
//! | [`report`] | the table, and the same for programs |
//!
//! Deliberately not here: anything that fails because a figure is bad. This is no test.

mod connector;
mod figures;
mod floor;
mod interrupt;
mod machine;
mod moment;
mod report;
mod run;
mod subject;
mod usage;

use std::time::Duration;

pub use self::interrupt::Interrupted;
pub use self::report::{HOW, Report};
pub use self::run::measure;

/// What everything here answers with.
type Result<T> = anyhow::Result<T>;

/// How long anything may take before the run is given up.
const LIMIT: Duration = Duration::from_secs(60);
const CONTAINERS: usize = 10;

/// How to measure.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How often 10 containers are started, and the same order applied.
    pub repetitions: u32,
    /// How long the agent is watched doing nothing.
    pub idle: Duration,
    /// Whether the binaries under test must be of the `dist` profile, else of any.
    pub dist: bool,
}
