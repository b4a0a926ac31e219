use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use coracle_core::record::{Record, RecordId};
use tokio::sync::{mpsc, oneshot};

use super::check::CheckOutcome;
use super::error::StoreError;
use super::site::Site;
use super::wear::{Counters, StoreMetrics};
use super::worker::{Request, Worker};
use super::{Loaded, StoredOrder};

/// Requests that wait for the committing thread; further ones wait for a place.
const QUEUE: usize = 16;

/// A handle on the store. Clones share one committing thread, which ends with the last of them.
#[derive(Clone, Debug)]
pub struct Store {
    requests: mpsc::Sender<Request>,
    counters: Arc<Counters>,
}

impl Store {
    /// Opens the store in `dir`, which is made if need be, and reads everything that is there.
    /// Blocks: for the start of the process, before anything else runs.
    ///
    /// `check` says whether an LMDB file can be opened; the agent gives
    /// [`check_in_child`](super::check_in_child).
    ///
    /// A store that is damaged, or whose directory cannot be written, is no error: [`Loaded`] says
    /// what could be saved and what is wrong, and each write tries to open it anew and gives an
    /// error as long as that fails.
    ///
    /// # Errors
    /// Another agent has the directory, or no thread can be started.
    pub fn open(
        dir: &Path,
        factory: Option<&Path>,
        check: impl Fn(&Path) -> CheckOutcome + Send + 'static,
    ) -> Result<(Self, Loaded), StoreError> {
        let counters = Arc::new(Counters::default());
        let mut site = Site::new(dir, Box::new(check), counters.clone());
        let mut unwritable = None;
        let (env, contents) = match site.open() {
            Ok((env, contents)) => (Some(env), contents),
            Err(error @ StoreError::InUse { .. }) => return Err(error),
            Err(error) => {
                unwritable = Some(error.chain());
                (None, site.read_only().unwrap_or_default())
            }
        };
        let candidates = match contents.current {
            Some(_) => Vec::new(),
            None => site.candidates(factory),
        };
        let loaded = Loaded {
            current: contents.current,
            previous: contents.previous,
            kept: contents.kept,
            highest_generation: contents.highest_generation,
            histories: contents.histories,
            workloads: contents.workloads,
            talk: contents.talk,
            candidates,
            unwritable,
            trouble: site.take_trouble(),
        };
        let worker = Worker::new(site, env, loaded.highest_generation, loaded.current.clone());
        let (requests, inbox) = mpsc::channel(QUEUE);
        thread::Builder::new()
            .name("store".into())
            .spawn(move || worker.run(inbox))
            .map_err(|error| StoreError::io("start a thread for", dir, error))?;
        Ok((Self { requests, counters }, loaded))
    }

    /// Makes `order` the current order and the current one the previous. Durable when it returns.
    /// The same order again is no error and writes nothing.
    ///
    /// `keep` names the generations that are still needed: the one that was the previous until now is
    /// kept if it is among them, and kept ones that are not are removed, all in one transaction. Of
    /// more than 8 the oldest go. Generations that are not there are passed over; those of the
    /// current and the previous order are there anyway.
    ///
    /// # Errors
    /// [`StoreError::NotNewer`] if its generation is not above every accepted one; otherwise it
    /// could not be stored. Either way nothing has changed.
    pub async fn accept(&self, order: StoredOrder, keep: BTreeSet<u64>) -> Result<(), StoreError> {
        self.ask(|reply| Request::Accept { order, keep, reply }).await
    }

    /// Stores records in one transaction, `None` removing one. Durable
    /// when it returns; records that do not change cost nothing.
    ///
    /// # Errors
    /// Nothing of it could be stored.
    pub async fn record(&self, changes: Vec<(RecordId, Option<Record>)>) -> Result<(), StoreError> {
        self.ask(|reply| Request::Record(changes, reply)).await
    }

    /// Report sequences that were never handed out in the boot `boot_id`, none below `at_least`.
    /// Handed out by the thousand, so that a report costs no write.
    ///
    /// `at_least` guards against a store that was lost within one boot: the milliseconds since boot
    /// will do, as no agent sends a thousand reports a second.
    ///
    /// # Errors
    /// The reservation could not be stored.
    pub async fn reserve_sequence(
        &self,
        boot_id: &str,
        at_least: u64,
    ) -> Result<Range<u64>, StoreError> {
        let boot_id = boot_id.to_owned();
        self.ask(|reply| Request::Reserve { boot_id, at_least, reply }).await
    }

    /// Whether the committing thread answers: it does once it is done with what was asked before.
    pub async fn answers(&self) -> bool {
        self.ask(Request::Answer).await.is_ok()
    }

    /// What was written so far, by cause.
    pub fn metrics(&self) -> StoreMetrics {
        self.counters.read()
    }

    /// Finishes what was asked before, closes the file and frees the directory.
    pub async fn close(self) {
        let (reply, answer) = oneshot::channel();
        if self.requests.send(Request::Close(reply)).await.is_ok() {
            // An error says that the thread has ended already, which is what is wanted.
            drop(answer.await);
        }
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Request,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }
}
