//! The one clock of the benchmark: the kernel's monotonic one, which also stamps the events of
//! its process connector.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use super::Result;

/// An instant of the monotonic clock, since its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Moment(Duration);

impl Moment {
    /// From nanoseconds, as in the connector's events.
    pub(super) fn from_nanos(nanos: u64) -> Self {
        Self(Duration::from_nanos(nanos))
    }

    /// Nanoseconds, as [`from_nanos`](Self::from_nanos) takes them.
    pub(super) fn nanos(self) -> u64 {
        u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX)
    }

    /// Reads the clock.
    pub(super) fn now() -> Result<Self> {
        Ok(Self(clock_gettime(ClockId::CLOCK_MONOTONIC)?.into()))
    }

    /// Milliseconds from an earlier moment; 0 if it is not earlier.
    pub(super) fn ms_since(self, earlier: Self) -> f64 {
        self.0.saturating_sub(earlier.0).as_secs_f64() * 1000.0
    }

    /// This moment and `duration` more.
    pub(super) fn after(self, duration: Duration) -> Self {
        Self(self.0 + duration)
    }
}
