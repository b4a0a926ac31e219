//! How long to wait before the next connection attempt. Pure: the jitter is an argument.
//!
//! The first delay after a connection was lost is drawn from the configured window, so that the
//! gateways of a broker that restarted come back one by one; then full jitter over a window that
//! doubles with every failure. Deliberately not here: the clock and the source of randomness.

use std::time::Duration;

/// No reconnect window is narrower: a broker that refuses is not to be asked without pause.
const SHORTEST_WINDOW: Duration = Duration::from_secs(1);

/// No reconnect window is wider.
const LONGEST_WINDOW: Duration = Duration::from_secs(300);

/// Window of the delay while this gateway's own network is down: an attempt costs nobody anything
/// then, and the link should be back as soon as the network is.
const OWN_NETWORK_WINDOW: Duration = Duration::from_secs(2);

/// A connection that lasted this long starts the backoff from its beginning again.
pub const STABLE: Duration = Duration::from_secs(60);

/// What is known about why there is no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// This gateway has no route at all: its own network is down.
    OwnNetwork,
    /// Anything else.
    Other,
}

/// The delay before the next attempt. `failures` counts the attempts that failed since the last
/// stable connection; `jitter` is drawn evenly from 0 to 1.
pub fn retry_delay(window: Duration, failures: u32, cause: Cause, jitter: f64) -> Duration {
    let widened = match cause {
        Cause::OwnNetwork => OWN_NETWORK_WINDOW,
        Cause::Other => {
            let factor = 1u32.checked_shl(failures).unwrap_or(u32::MAX);
            window.max(SHORTEST_WINDOW).saturating_mul(factor).min(LONGEST_WINDOW)
        }
    };
    widened.mul_f64(jitter.clamp(0.0, 1.0))
}

/// A number drawn evenly from 0 to 1; the middle if the system has no randomness to give.
pub fn jitter() -> f64 {
    use ring::rand::{SecureRandom as _, SystemRandom};
    let mut bytes = [0; 4];
    match SystemRandom::new().fill(&mut bytes) {
        Ok(()) => f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX),
        Err(ring::error::Unspecified) => 0.5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_doubles_with_every_failure_up_to_five_minutes() {
        let at = |failures, jitter| {
            retry_delay(Duration::from_secs(30), failures, Cause::Other, jitter).as_secs_f64()
        };
        for (failures, jitter, seconds) in [
            (0, 0.0, 0.0),
            (0, 0.5, 15.0),
            (0, 1.0, 30.0),
            (1, 1.0, 60.0),
            (2, 0.25, 30.0),
            (3, 1.0, 240.0),
            (4, 1.0, 300.0),
            (31, 1.0, 300.0),
            (32, 0.5, 150.0),
            (u32::MAX, 1.0, 300.0),
            (u32::MAX, 2.0, 300.0),
        ] {
            assert_eq!(at(failures, jitter), seconds, "{failures} failures, jitter {jitter}");
        }
    }

    #[test]
    fn odd_windows_stay_in_bounds() {
        let at = |window, failures| retry_delay(window, failures, Cause::Other, 1.0);
        assert_eq!(at(Duration::ZERO, 0), SHORTEST_WINDOW);
        assert_eq!(at(Duration::from_secs(u64::MAX), 1), LONGEST_WINDOW);
        assert_eq!(at(Duration::from_secs(3600), 0), LONGEST_WINDOW);
    }

    #[test]
    fn while_the_own_network_is_down_attempts_stay_quick() {
        for failures in [0, 1, 40] {
            let delay = retry_delay(Duration::from_secs(30), failures, Cause::OwnNetwork, 1.0);
            assert_eq!(delay, Duration::from_secs(2));
        }
    }

    #[test]
    fn jitter_stays_in_its_range_and_varies() {
        let drawn: Vec<f64> = (0..100).map(|_| jitter()).collect();
        assert!(drawn.iter().all(|j| (0.0..=1.0).contains(j)));
        assert!(drawn.iter().any(|j| *j < 0.5) && drawn.iter().any(|j| *j > 0.5));
    }
}
