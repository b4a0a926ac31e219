//! The only place that reads a clock.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use coracle_core::history::Now;

/// The wall clock may drift this far from where it was last seen before its position is taken anew.
/// Smaller steps would only make the times in reports flicker.
const TOLERANCE: Duration = Duration::from_secs(2);

/// Monotonic time since the agent started, and the wall clock.
#[derive(Debug)]
pub struct Clock {
    started: tokio::time::Instant,
    /// Wall-clock time, since the Unix epoch, of the start of the monotonic clock.
    epoch: Duration,
}

impl Clock {
    /// Starts the monotonic clock at zero.
    pub fn start() -> Self {
        Self { started: runtime_now(), epoch: wall_now() }
    }

    /// The time now.
    pub fn now(&mut self) -> Now {
        let monotonic = self.started.elapsed();
        let epoch = wall_now().saturating_sub(monotonic);
        if epoch.abs_diff(self.epoch) > TOLERANCE {
            self.epoch = epoch;
        }
        Now { monotonic, wall: self.epoch + monotonic }
    }

    /// How long until a moment of the monotonic clock; zero if it has passed.
    pub fn until(&self, moment: Duration) -> Duration {
        moment.saturating_sub(self.started.elapsed())
    }
}

/// A moment of the monotonic clock, for measuring how long something took.
#[expect(clippy::disallowed_methods, reason = "the one place that may")]
pub fn monotonic_now() -> Instant {
    Instant::now()
}

/// A moment of the async runtime's clock, which stands still in tests that pause it.
#[expect(clippy::disallowed_methods, reason = "the one place that may")]
pub fn runtime_now() -> tokio::time::Instant {
    tokio::time::Instant::now()
}

/// Wall-clock time since the Unix epoch.
#[expect(clippy::disallowed_methods, reason = "the one place that may")]
pub fn wall_now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
