//! How long to wait before the next connection attempt. Pure: the jitter is an argument.
//!
//! The first delay after a connection was lost is drawn from the configured window, so that the
//! gateways of a broker that restarted come back one by one; then full jitter over a window that
//! doubles with every failure. What the broker says about why it ended a connection moves the window.
//! Deliberately not here: the clock and the source of randomness.

use std::time::Duration;

/// No reconnect window is narrower: a broker that refuses is not to be asked without pause.
const SHORTEST_WINDOW: Duration = Duration::from_secs(1);

/// No configured or hinted window is wider.
const LONGEST_HINT: Duration = Duration::from_secs(3600);

/// No reconnect window grows wider by failures.
const LONGEST_WINDOW: Duration = Duration::from_secs(300);

/// The same while every attempt is in vain or does harm.
const LONGEST_IN_VAIN: Duration = Duration::from_secs(3600);

/// How much wider the window is for a gateway that the broker does not want.
const NOT_WELCOME_FACTOR: u32 = 10;

/// Window of the delay while this gateway's own network is down: an attempt costs nobody anything
/// then, and the link should be back as soon as the network is. Also for a server that the broker
/// sends us to.
const QUICK_WINDOW: Duration = Duration::from_secs(2);

/// A connection that lasted this long starts the backoff from its beginning again.
pub const STABLE: Duration = Duration::from_secs(60);

/// The same where two push each other out: each then lasts as long as the other waits.
const UNDISTURBED: Duration = Duration::from_secs(7200);

/// What is known about why there is no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// This gateway has no route at all: its own network is down.
    OwnNetwork,
    /// The broker has too much to do.
    Busy,
    /// The broker goes down, in order, and with it the links of all its gateways.
    ShuttingDown,
    /// Another client connected with this gateway's identity.
    TakenOver,
    /// The broker does not want this gateway: certificate or rights are wrong.
    NotWelcome,
    /// The broker sends us to another server, which we may use.
    Redirected,
    /// Anything else.
    Other,
}

/// The delay before the next attempt. `failures` counts the attempts that failed since the last
/// stable connection; `jitter` is drawn evenly from 0 to 1.
pub fn retry_delay(window: Duration, failures: u32, cause: Cause, jitter: f64) -> Duration {
    let window = window.clamp(SHORTEST_WINDOW, LONGEST_HINT);
    let widened = |times: u32, longest: Duration| {
        let factor = 1u32.checked_shl(failures).unwrap_or(u32::MAX);
        window.saturating_mul(factor.saturating_mul(times)).min(longest.max(window))
    };
    // Where nothing is gained by being early, no delay is shorter than this part of the window.
    let (window, least) = match cause {
        Cause::OwnNetwork | Cause::Redirected => (QUICK_WINDOW, 0.0),
        Cause::Other => (widened(1, LONGEST_WINDOW), 0.0),
        Cause::ShuttingDown => (widened(1, LONGEST_WINDOW), 0.25),
        Cause::Busy => (widened(2, LONGEST_WINDOW), 0.25),
        Cause::TakenOver => (widened(1, LONGEST_IN_VAIN), 0.5),
        Cause::NotWelcome => (widened(NOT_WELCOME_FACTOR, LONGEST_IN_VAIN), 0.5),
    };
    window.mul_f64(least + (1.0 - least) * jitter.clamp(0.0, 1.0))
}

/// The number of failures that the delay after this end of a connection is reckoned by.
pub(super) fn failures_before(failures: u32, cause: Cause, lasted: Duration) -> u32 {
    let stable = if cause == Cause::TakenOver { UNDISTURBED } else { STABLE };
    if lasted >= stable { 0 } else { failures }
}

/// The number of failures after it.
pub(super) fn failures_after(failures: u32, cause: Cause) -> u32 {
    match cause {
        Cause::OwnNetwork => failures,
        _ => failures.saturating_add(1),
    }
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
        assert_eq!(at(Duration::from_secs(u64::MAX), 1), LONGEST_HINT);
        // A window that is wider from the beginning stays so and grows no further.
        assert_eq!(at(Duration::from_secs(1800), 5), Duration::from_secs(1800));
    }

    #[test]
    fn while_the_own_network_is_down_attempts_stay_quick() {
        for failures in [0, 1, 40] {
            let delay = retry_delay(Duration::from_secs(30), failures, Cause::OwnNetwork, 1.0);
            assert_eq!(delay, Duration::from_secs(2));
        }
    }

    #[test]
    fn each_cause_has_its_range() {
        let range = |cause, failures| {
            let at = |jitter| retry_delay(Duration::from_secs(30), failures, cause, jitter);
            (at(0.0).as_secs_f64(), at(1.0).as_secs_f64())
        };
        for (cause, first, third, last) in [
            (Cause::Other, (0.0, 30.0), (0.0, 120.0), (0.0, 300.0)),
            (Cause::ShuttingDown, (7.5, 30.0), (30.0, 120.0), (75.0, 300.0)),
            (Cause::Busy, (15.0, 60.0), (60.0, 240.0), (75.0, 300.0)),
            (Cause::TakenOver, (15.0, 30.0), (60.0, 120.0), (1800.0, 3600.0)),
            (Cause::NotWelcome, (150.0, 300.0), (600.0, 1200.0), (1800.0, 3600.0)),
            (Cause::Redirected, (0.0, 2.0), (0.0, 2.0), (0.0, 2.0)),
        ] {
            assert_eq!(range(cause, 0), first, "{cause:?}");
            assert_eq!(range(cause, 2), third, "{cause:?}");
            assert_eq!(range(cause, 40), last, "{cause:?}");
        }
    }

    #[test]
    fn two_that_push_each_other_out_slow_down_although_each_stays_a_while() {
        let (mut failures, mut delay) = (0, Duration::ZERO);
        for _ in 0..12 {
            // Each connection lasts as long as the other one waits.
            failures = failures_before(failures, Cause::TakenOver, delay);
            delay = retry_delay(Duration::from_secs(30), failures, Cause::TakenOver, 0.5);
            failures = failures_after(failures, Cause::TakenOver);
        }
        assert!(delay >= Duration::from_secs(1800), "{delay:?}");
        // Anything else starts anew after a minute.
        assert_eq!(failures_before(failures, Cause::Other, STABLE), 0);
        assert_eq!(failures_before(3, Cause::Other, Duration::from_secs(59)), 3);
        assert_eq!(failures_after(3, Cause::OwnNetwork), 3);
    }

    #[test]
    fn jitter_stays_in_its_range_and_varies() {
        let drawn: Vec<f64> = (0..100).map(|_| jitter()).collect();
        assert!(drawn.iter().all(|j| (0.0..=1.0).contains(j)));
        assert!(drawn.iter().any(|j| *j < 0.5) && drawn.iter().any(|j| *j > 0.5));
    }
}
