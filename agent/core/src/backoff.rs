//! Restart arithmetic: how long to wait before the next try.

use std::time::Duration;

/// When an operation that failed is worth trying again. Classified where the error is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// As after any failure: capped exponential backoff with jitter.
    Backoff,
    /// Not before this long, as a server asked.
    After(Duration),
    /// Trying again cannot help soon; tried at the backoff's cap, because what is wrong may be
    /// mended elsewhere.
    Rarely,
}
