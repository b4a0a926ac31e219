//! The only place that reads a clock.

use std::time::{Instant, SystemTime};

/// A moment of the monotonic clock.
#[expect(clippy::disallowed_methods, reason = "the one place that may")]
pub(crate) fn monotonic_now() -> Instant {
    Instant::now()
}

/// What the gateway takes for the time; it may be wrong.
#[expect(clippy::disallowed_methods, reason = "the one place that may")]
pub(crate) fn wall_now() -> SystemTime {
    SystemTime::now()
}
