//! Waiting until the gateway is as it was asked to be, telling each change on the way.

use std::time::{Duration, Instant};

use super::client::Client;
use super::failure::Failure;
use super::{Outcome, output};
use crate::clock::monotonic_now;
use crate::status::Status;

/// Between two looks at a status that does not change by events, such as a download.
const PERIOD: u64 = 1;

/// Longest wait that is taken seriously.
const LONGEST: Duration = Duration::from_secs(86_400 * 365);

/// How long, and whether anything is told.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting<'a> {
    client: &'a Client,
    started: Instant,
    limit: Duration,
    quiet: bool,
}

impl<'a> Waiting<'a> {
    /// From now on for at most that many seconds.
    pub(super) fn new(client: &'a Client, seconds: u64, quiet: bool) -> Self {
        let limit = Duration::from_secs(seconds).min(LONGEST);
        Self { client, started: monotonic_now(), limit, quiet }
    }

    /// Looks until `judge` has an answer, and tells each change of `progress`. `None` if there was
    /// no answer in time.
    pub(super) fn until(
        &self,
        progress: impl Fn(&Status) -> String,
        judge: impl Fn(&Status) -> Option<Outcome>,
    ) -> Result<Option<Outcome>, Failure> {
        let mut told = String::new();
        let mut newest = 0;
        loop {
            let outcome = match self.client.get::<Status>("/v1/status") {
                Ok(status) => {
                    let progress = progress(&status);
                    if !self.quiet && progress != told {
                        let elapsed = self.started.elapsed().as_secs();
                        output::print(&format!("{elapsed:>4} s  {progress}\n"))?;
                        told = progress;
                    }
                    judge(&status)
                }
                Err(failure) if failure.may_pass() => None,
                Err(failure) => return Err(failure),
            };
            if outcome.is_some() || self.started.elapsed() >= self.limit {
                return Ok(outcome);
            }
            match self.client.events(newest, PERIOD) {
                Ok(page) => newest = page.newest,
                Err(_) => self.client.pause(Duration::from_secs(PERIOD)),
            }
        }
    }
}
