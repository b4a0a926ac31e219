//! Lines of a workload's logs: what there is, or what comes until a lease ends.

use std::io;
use std::path::Path;
use std::time::Duration;

use coracle_protocol::command::LogQuery;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::Taken;
use crate::clock::runtime_now;
use crate::logs::{Pattern, Run, Selection, Sources, line_of};

/// Bytes that are read at once.
const BATCH: usize = 64 * 1024;

/// Between two looks for something new.
const LOOK: Duration = Duration::from_millis(500);

/// Longest that a line waits for others to go with.
const GATHER: Duration = Duration::from_secs(2);

/// Most containers that are read at once: each takes as much memory as a piece of its file.
const MOST_CONTAINERS: usize = 32;

/// Lines of newest runs given where no number is asked for, of each container, when following: what
/// was said before is there to be read by itself.
const TAIL: u64 = 10;

/// Until when lines are followed. It can be moved, to now as well.
pub type Lease = watch::Sender<Instant>;

/// Lines of logs.
#[derive(Debug)]
pub struct LogLines {
    sources: Sources,
    /// What is read of containers that are there at the beginning, until they were looked at.
    first: Option<Selection>,
    lease: Option<watch::Receiver<Instant>>,
    /// When to look next.
    look_at: Instant,
    /// Since when something waits to be given.
    waits_since: Option<Instant>,
}

impl LogLines {
    /// What is kept of a workload's containers; with a lease, from the last lines on.
    ///
    /// # Errors
    /// The query names what cannot be.
    pub fn new(
        dir: &Path,
        query: &LogQuery,
        lease: Option<watch::Receiver<Instant>>,
    ) -> Result<Self, &'static str> {
        let pattern: Pattern = match query.replica {
            Some(replica) => format!("{}.{replica}", query.workload),
            None => query.workload.clone(),
        }
        .parse()?;
        let tail = query.tail.map(u64::from).or(lease.is_some().then_some(TAIL));
        let sources = Sources::new(dir, pattern, query.container.clone());
        let first = Some(Selection { run: Run::Newest, tail, since: None, stream: None });
        Ok(Self { sources, first, lease, look_at: runtime_now(), waits_since: None })
    }

    /// Waits until it is time to look, or the lease has ended.
    pub(super) async fn wait(&mut self) {
        let Some(lease) = &mut self.lease else { return };
        let until = *lease.borrow_and_update();
        tokio::select! {
            () = sleep_until(self.look_at.min(until)) => {}
            changed = lease.changed() => {
                // Nobody can lengthen it any more.
                if changed.is_err() {
                    sleep_until(self.look_at).await;
                }
            }
        }
    }

    /// The next lines. Blocks while files are read.
    pub(super) fn next(&mut self) -> io::Result<(Vec<u8>, Taken)> {
        let follows = self.lease.is_some();
        let later = Selection { run: Run::All, tail: None, since: None, stream: None };
        match self.first.take() {
            Some(first) => self.sources.look(first)?,
            None if follows => self.sources.look(later)?,
            None => {}
        }
        if self.sources.read().len() > MOST_CONTAINERS {
            let message = "its containers are too many to be read at once; name a replica, or a \
                           container of all replicas";
            return Err(io::Error::other(message));
        }
        if !follows && !self.sources.knows_any() {
            return Err(io::Error::other("nothing of what it said is kept"));
        }
        let mut lines = Vec::new();
        while lines.len() < BATCH {
            let Some((id, item, _)) = self.sources.next_item()? else {
                let taken = self.pause(!lines.is_empty());
                return Ok((lines, taken));
            };
            serde_json::to_writer(&mut lines, &line_of(&id, &item))?;
            lines.push(b'\n');
        }
        let now = runtime_now();
        self.waits_since = self.waits_since.or(Some(now));
        match &self.lease {
            // The workload talks faster than its lines can be sent.
            Some(lease) if now >= *lease.borrow() => Ok((lines, Taken::TooMuch)),
            _ => Ok((lines, Taken::Some)),
        }
    }

    /// All that there is has been read.
    fn pause(&mut self, found: bool) -> Taken {
        let now = runtime_now();
        let Some(lease) = &self.lease else { return Taken::Last };
        if now >= *lease.borrow() {
            return Taken::Last;
        }
        self.look_at = now + LOOK;
        if found {
            self.waits_since = self.waits_since.or(Some(now));
        }
        match self.waits_since {
            Some(since) if now >= since + GATHER => {
                self.waits_since = None;
                Taken::Pause
            }
            _ => Taken::Some,
        }
    }
}
