//! The thread that commits. One request after the other, each in one transaction.

use std::collections::BTreeSet;
use std::ops::Range;

use coracle_core::record::{Record, RecordId};
use heed::RwTxn;
use tokio::sync::{mpsc, oneshot};

use super::StoredOrder;
use super::error::{Failure, StoreError, damaged};
use super::lmdb::{self, Env, Records};
use super::records::{
    COMMAND, EVENT, HISTORY, KEY_SEQUENCE, MAX_COMMANDS, MAX_EVENTS, MAX_HISTORIES, MAX_WORKLOADS,
    SequenceRecord, WORKLOAD, encode_record, record_key, unframe,
};
use super::site::Site;
use super::wear::Cause;
use super::{order_files, orders};
use crate::fault::fault_point;

/// What is handed out at once: with a report every second, one write in 17 minutes.
const SEQUENCE_BLOCK: u64 = 1024;

pub(super) type Change = (RecordId, Option<Record>);
pub(super) type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

pub(super) enum Request {
    Accept { order: StoredOrder, keep: BTreeSet<u64>, reply: Reply<()> },
    Record(Vec<Change>, Reply<()>),
    Reserve { boot_id: String, at_least: u64, reply: Reply<Range<u64>> },
    Answer(Reply<()>),
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
                Request::Accept { order, keep, reply } => {
                    answer(reply, self.accept(order, &keep));
                }
                Request::Record(changes, reply) => answer(reply, self.record(&changes)),
                Request::Reserve { boot_id, at_least, reply } => {
                    answer(reply, self.reserve(boot_id, at_least));
                }
                Request::Answer(reply) => answer(reply, Ok(())),
                Request::Close(reply) => {
                    drop(self);
                    answer(reply, Ok(()));
                    return;
                }
            }
        }
    }

    fn accept(&mut self, order: StoredOrder, keep: &BTreeSet<u64>) -> Result<(), StoreError> {
        let highest = self.highest;
        self.write(Cause::Order, |records, txn| {
            let changed = orders::accept(records, txn, &order, highest, keep)?;
            Ok(Outcome { value: (), changed, fault: "accept.before_commit" })
        })?;
        fault_point("accept.after_commit");
        self.highest = self.highest.max(order.generation);
        if !order_files::holds(self.site.dir(), &order) {
            self.unwritten = Some(order);
            self.write_order_file();
        }
        Ok(())
    }

    fn record(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        let cause = changes.iter().map(|(id, _)| cause_of(id)).max().unwrap_or(Cause::History);
        self.write(cause, |records, txn| {
            let mut changed = false;
            for (id, record) in changes {
                changed |= record_one(records, txn, id, record.as_ref())?;
            }
            if changed {
                ensure_at_most(MAX_HISTORIES, "histories", HISTORY, records, txn)?;
                ensure_at_most(MAX_WORKLOADS, "workload records", WORKLOAD, records, txn)?;
                ensure_at_most(MAX_COMMANDS, "commands", COMMAND, records, txn)?;
                ensure_at_most(MAX_EVENTS, "events", EVENT, records, txn)?;
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
            records.put(txn, KEY_SEQUENCE.as_bytes(), &record.encode()?)?;
            Ok(Outcome { value: start..end, changed: true, fault: "reserve.before_commit" })
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
        self.site.ensure_writable()?;
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
        let written = result.and_then(|value| {
            self.site.ensure_writable()?;
            Ok(value)
        });
        written.map_err(|failure| {
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

/// What a record is written for; the greatest of several counts.
fn cause_of(id: &RecordId) -> Cause {
    match id {
        RecordId::Event(_) | RecordId::Backlog => Cause::Event,
        RecordId::Usage => Cause::Usage,
        RecordId::Container(_) => Cause::History,
        RecordId::Workload(_) => Cause::Workload,
        RecordId::Command(_) | RecordId::Commands => Cause::Command,
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

/// Puts or removes a record. Says whether that changes anything.
fn record_one(
    records: &Records<'_>,
    txn: &mut RwTxn<'_>,
    id: &RecordId,
    record: Option<&Record>,
) -> Result<bool, Failure> {
    let key = record_key(id);
    let Some(record) = record else { return Ok(records.delete(txn, key.as_bytes())?) };
    let value = encode_record(&key, id, record)?;
    if records.get(txn, key.as_bytes())? == Some(&value[..]) {
        return Ok(false);
    }
    records.put(txn, key.as_bytes(), &value)?;
    Ok(true)
}

/// Counts the records of one kind, but only if there are more than `limit` of all kinds: that is known
/// without counting.
fn ensure_at_most(
    limit: u64,
    what: &'static str,
    prefix: &str,
    records: &Records<'_>,
    txn: &RwTxn<'_>,
) -> Result<(), Failure> {
    if records.len(txn)? <= limit {
        return Ok(());
    }
    let mut count = 0;
    for entry in records.prefix_iter(txn, prefix.as_bytes())? {
        entry?;
        count += 1;
    }
    if count > limit { Err(StoreError::TooMany { what, count, limit }.into()) } else { Ok(()) }
}
