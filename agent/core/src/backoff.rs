//! Restart arithmetic: how long to wait before the next try.

use std::time::Duration;

/// Delay before the second try in a row; doubles with each further one.
pub const BASE: Duration = Duration::from_secs(1);

/// Longest delay between tries.
pub const CAP: Duration = Duration::from_secs(300);

/// A container that ran this long has recovered: its failures are forgotten.
pub const HEALTHY_AFTER: Duration = Duration::from_secs(60);

/// When an operation that failed is worth trying again. Classified where the error is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// As after any failure: capped exponential backoff with jitter.
    Backoff,
    /// Not before this long, as a server asked.
    After(Duration),
    /// Trying again cannot help soon; tried with long pauses, because what is wrong may be mended
    /// elsewhere.
    Rarely,
}

/// Delay before a container that ended `failures` times in a row is started again: none after the
/// first failure, then from half of [`BASE`], doubled each time, to [`CAP`].
///
/// `unit` in [0, 1) spreads the delay over its upper half, so that what failed together does not
/// try again together.
pub fn restart_delay(failures: u32, unit: f64) -> Duration {
    match failures {
        0 | 1 => Duration::ZERO,
        n => {
            let full = BASE.saturating_mul(1 << (n - 2).min(20)).min(CAP);
            full.mul_f64(0.5 + unit.clamp(0.0, 1.0) / 2.0)
        }
    }
}

/// Delay before an operation that failed `failures` times in a row is tried again. Never none: the
/// same thing done again at once fails again.
pub fn retry_delay(failures: u32, retry: Retry, unit: f64) -> Duration {
    let delay = restart_delay(failures.saturating_add(1), unit);
    match retry {
        Retry::Backoff => delay,
        Retry::After(least) => delay.max(least),
        Retry::Rarely => restart_delay(failures.saturating_add(5), unit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_restart_is_immediate_and_later_ones_wait_up_to_the_cap() {
        let full = |failures| restart_delay(failures, 1.0).as_secs();
        assert_eq!(
            (0..=12).map(full).collect::<Vec<_>>(),
            [0, 0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
        );
        assert_eq!(restart_delay(u32::MAX, 1.0), CAP);
        assert_eq!(restart_delay(3, 0.0), Duration::from_secs(1));
    }

    #[test]
    fn servers_are_obeyed_and_hopeless_tries_are_rare() {
        assert_eq!(retry_delay(1, Retry::Backoff, 1.0), BASE);
        assert_eq!(retry_delay(1, Retry::After(Duration::from_secs(90)), 1.0).as_secs(), 90);
        let rarely = |failures| retry_delay(failures, Retry::Rarely, 1.0).as_secs();
        assert_eq!((1..=6).map(rarely).collect::<Vec<_>>(), [16, 32, 64, 128, 256, 300]);
    }
}
