//! The thread that commits. One request after the other, each in one transaction.

use std::ops::Range;

use coracle_core::history::ReplicaRecord;
use coracle_core::name::ReplicaId;
use heed::RwTxn;
use tokio::sync::{mpsc, oneshot};

use super::StoredOrder;
use super::error::StoreError;
use super::fault::fault_point;
use super::lmdb::{self, Env, Records};
use super::order_files;
use super::records::{
    KEY_CURRENT, KEY_GENERATION, KEY_PREVIOUS, KEY_SEQUENCE, MAX_HISTORIES, SequenceRecord,
    decode_order, encode_history, encode_order, frame, history_key, unframe,
};
use super::site::Site;
use super::wear::Cause;

/// What is handed out at once: with a report every second, one write in 17 minutes.
const SEQUENCE_BLOCK: u64 = 1024;

pub(super) type Change = (ReplicaId, Option<ReplicaRecord>);
pub(super) type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

pub(super) enum Request {
    Accept(StoredOrder, Reply<()>),
    Record(Vec<Change>, Reply<()>),
    Reserve { boot_id: String, at_least: u64, reply: Reply<Range<u64>> },
    Close(Reply<()>),
}

pub(super) struct Worker {
    site: Site,
    /// `None` until it could be opened, and after an error that needs it to be opened anew.
    env: Option<Env>,
    /// Highest generation accepted by this process or found at start: what a store that had to be
    /// made anew must not forget.
    highest: u64,
    /// The accepted order, while its plain file is not up to date.
    unwritten: Option<StoredOrder>,
}

impl Worker {
    pub(super) fn new(
        site: Site,
        env: Option<Env>,
        highest: u64,
        current: Option<StoredOrder>,
    ) -> Self {
        let unwritten =
            current.filter(|order| env.is_some() && !order_files::holds(site.dir(), order));
        let mut worker = Self { site, env, highest, unwritten };
        worker.write_order_file();
        worker
    }

    /// Serves until the store is closed or its last handle is gone.
    pub(super) fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        while let Some(request) = requests.blocking_recv() {
            match request {
                Request::Accept(order, reply) => answer(reply, self.accept(order)),
                Request::Record(changes, reply) => answer(reply, self.record(&changes)),
                Request::Reserve { boot_id, at_least, reply } => {
                    answer(reply, self.reserve(boot_id, at_least));
                }
                Request::Close(reply) => {
                    drop(self);
                    answer(reply, Ok(()));
                    return;
                }
            }
        }
    }

    fn accept(&mut self, order: StoredOrder) -> Result<(), StoreError> {
        let highest = self.highest;
        let stored = self.write(Cause::Order, |records, txn| {
            let current = current_order(records, txn)?;
            let known = stored_generation(records, txn)?.max(highest);
            if let Some(current) = &current {
                if current.generation == order.generation && current.digest == order.digest {
                    return Ok(Outcome::unchanged(()));
                }
            }
            // After the store was lost the order of the plain file comes again, once.
            let again = current.is_none() && order.generation == known;
            if order.generation <= known && !again {
                return Err(
                    StoreError::NotNewer { generation: order.generation, highest: known }.into()
                );
            }
            if let Some(current) = current {
                put(records, txn, KEY_PREVIOUS, &encode_order(KEY_PREVIOUS, &current)?)?;
            }
            put(records, txn, KEY_CURRENT, &encode_order(KEY_CURRENT, &order)?)?;
            put(records, txn, KEY_GENERATION, &frame(KEY_GENERATION, &order.generation))?;
            Ok(Outcome::changed((), "accept.before_commit"))
        });
        stored?;
        fault_point("accept.after_commit");
        self.highest = self.highest.max(order.generation);
        if !order_files::holds(self.site.dir(), &order) {
            self.unwritten = Some(order);
            self.write_order_file();
        }
        Ok(())
    }

    fn record(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        self.write(Cause::History, |records, txn| {
            let mut changed = false;
            for (replica, record) in changes {
                let key = history_key(replica);
                changed |= match record {
                    Some(record) => {
                        let value = encode_history(&key, record)?;
                        let same = records.get(txn, key.as_bytes())? == Some(&value[..]);
                        if !same {
                            put(records, txn, &key, &value)?;
                        }
                        !same
                    }
                    None => records.delete(txn, key.as_bytes())?,
                };
            }
            let count = records.len(txn)?;
            if changed && count > MAX_HISTORIES {
                return Err(StoreError::TooMany { count, limit: MAX_HISTORIES }.into());
            }
            Ok(Outcome { value: (), changed, fault: "record.before_commit" })
        })?;
        fault_point("record.after_commit");
        self.write_order_file();
        Ok(())
    }

    fn reserve(&mut self, boot_id: String, at_least: u64) -> Result<Range<u64>, StoreError> {
        let block = self.write(Cause::Sequence, |records, txn| {
            let stored: SequenceRecord = match records.get(txn, KEY_SEQUENCE.as_bytes())? {
                Some(value) => unframe(KEY_SEQUENCE, value).map_err(damaged)?,
                None => SequenceRecord::default(),
            };
            let next = if stored.boot_id == boot_id { stored.next } else { 1 };
            let start = next.max(at_least).max(1);
            let end = start.saturating_add(SEQUENCE_BLOCK);
            let record = SequenceRecord { boot_id, next: end };
            put(records, txn, KEY_SEQUENCE, &record.encode()?)?;
            Ok(Outcome::changed(start..end, "reserve.before_commit"))
        })?;
        fault_point("reserve.after_commit");
        self.write_order_file();
        Ok(block)
    }

    /// Runs `change` in a transaction and commits it if it changed anything. Opens the environment
    /// first if it is not open.
    fn write<T>(
        &mut self,
        cause: Cause,
        change: impl FnOnce(&Records<'_>, &mut RwTxn<'_>) -> Result<Outcome<T>, Failure>,
    ) -> Result<T, StoreError> {
        if self.env.is_none() {
            let (env, contents) = self.site.open()?;
            self.highest = self.highest.max(contents.highest_generation);
            self.env = Some(env);
            // Logged already; what is reported is the trouble at start and errors of writes.
            drop(self.site.take_trouble());
        }
        let Some(env) = &self.env else { return Err(StoreError::Closed) };
        let result = self.site.counters().measure(cause, || {
            let records = lmdb::records(env)?;
            let mut txn = env.write_txn()?;
            let outcome = change(&records, &mut txn)?;
            if outcome.changed {
                fault_point(outcome.fault);
                txn.commit()?;
            } else {
                txn.abort();
            }
            Ok((outcome.value, outcome.changed))
        });
        result.map_err(|failure| {
            let error = match failure {
                Failure::Store(error) => error,
                Failure::Lmdb(error) => StoreError::lmdb("write", self.site.file(), error),
            };
            if error.ends_the_environment() {
                self.env = None;
            }
            error
        })
    }

    /// Brings the plain file up to date. LMDB has the order already, so a failure is no failure of
    /// the order: it is tried again with the next write.
    fn write_order_file(&mut self) {
        let Some(order) = &self.unwritten else { return };
        let written = self.site.counters().measure(Cause::OrderFile, || {
            order_files::write(self.site.dir(), order).map(|()| ((), true))
        });
        match written {
            Ok(()) => self.unwritten = None,
            Err(error) => {
                tracing::warn!(error = error.chain(), "the order's plain file is not up to date");
            }
        }
    }
}

fn answer<T>(reply: Reply<T>, result: Result<T, StoreError>) {
    if reply.send(result).is_err() {
        tracing::debug!("who asked the store went away before the answer");
    }
}

/// What a transaction did.
struct Outcome<T> {
    value: T,
    changed: bool,
    fault: &'static str,
}

impl<T> Outcome<T> {
    fn changed(value: T, fault: &'static str) -> Self {
        Self { value, changed: true, fault }
    }

    fn unchanged(value: T) -> Self {
        Self { value, changed: false, fault: "" }
    }
}

/// Why a transaction failed.
enum Failure {
    Store(StoreError),
    Lmdb(heed::Error),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<heed::Error> for Failure {
    fn from(error: heed::Error) -> Self {
        Self::Lmdb(error)
    }
}

fn damaged(reason: String) -> Failure {
    Failure::Store(StoreError::Damaged { reason })
}

fn put(records: &Records<'_>, txn: &mut RwTxn<'_>, key: &str, value: &[u8]) -> heed::Result<()> {
    records.put(txn, key.as_bytes(), value)
}

fn current_order(records: &Records<'_>, txn: &RwTxn<'_>) -> Result<Option<StoredOrder>, Failure> {
    match records.get(txn, KEY_CURRENT.as_bytes())? {
        Some(value) => decode_order(KEY_CURRENT, value).map(Some).map_err(damaged),
        None => Ok(None),
    }
}

fn stored_generation(records: &Records<'_>, txn: &RwTxn<'_>) -> Result<u64, Failure> {
    match records.get(txn, KEY_GENERATION.as_bytes())? {
        Some(value) => unframe(KEY_GENERATION, value).map_err(damaged),
        None => Ok(0),
    }
}
