//! Keys and values of the LMDB file: checksum, then postcard. Sizes are checked here.

use coracle_core::backlog::EventRecord;
use coracle_core::command::CommandRecord;
use coracle_core::history::{ContainerRecord, WorkloadRecord};
use coracle_core::name::{ContainerId, WorkloadName};
use coracle_core::record::{Record, RecordId};
use coracle_protocol::CommandId;
use coracle_protocol::limits::MAX_ENVELOPE_BYTES;
use ring::digest::{Context, SHA256};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::StoredOrder;
use super::error::StoreError;

pub(super) const KEY_SCHEMA: &str = "meta/schema";
pub(super) const KEY_GENERATION: &str = "meta/generation";
pub(super) const KEY_SEQUENCE: &str = "meta/sequence";
pub(super) const KEY_CURRENT: &str = "order/current";
pub(super) const KEY_PREVIOUS: &str = "order/previous";
pub(super) const KEPT: &str = "order/kept/";
pub(super) const HISTORY: &str = "history/";
pub(super) const WORKLOAD: &str = "workload/";
pub(super) const COMMAND: &str = "command/";
pub(super) const EVENT: &str = "event/";
pub(super) const KEY_COMMANDS: &str = "meta/commands";
pub(super) const KEY_BACKLOG: &str = "meta/backlog";
pub(super) const KEY_USAGE: &str = "meta/usage";

/// Most orders that are kept beside the current and the previous one.
pub(super) const MAX_KEPT: usize = 8;
/// Most containers with a history.
pub(super) const MAX_HISTORIES: u64 = 20_000;
/// Most workloads with a record.
pub(super) const MAX_WORKLOADS: u64 = 2_000;
/// Largest encoded container record, in bytes.
const MAX_HISTORY_BYTES: usize = 512;
/// Largest encoded workload record, in bytes: the reason of a failure has up to 300 characters, of up
/// to 4 bytes each. A page of LMDB holds two such records.
const MAX_WORKLOAD_BYTES: usize = 1536;
/// Most commands with a record.
pub(super) const MAX_COMMANDS: u64 = 512;
/// Most events that wait for a receipt.
pub(super) const MAX_EVENTS: u64 = 1024;
/// Largest encoded command record, in bytes: the command itself has up to 4 KiB.
const MAX_COMMAND_BYTES: usize = 8 * 1024;
/// Largest encoded event, in bytes.
const MAX_EVENT_BYTES: usize = 2 * 1024;
/// Largest encoded record of which there is one.
const MAX_SINGLE_BYTES: usize = 512;
/// Longest boot id, in bytes; the kernel's has 36.
const MAX_BOOT_ID_BYTES: usize = 64;
/// Bytes of checksum before each value: the beginning of SHA-256 over key, a zero byte and value.
const CHECKSUM_BYTES: usize = 8;

#[derive(Serialize, Deserialize)]
struct OrderRecord {
    generation: u64,
    envelope: Vec<u8>,
}

/// Report sequences handed out in one boot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SequenceRecord {
    pub(super) boot_id: String,
    /// First sequence not handed out yet.
    pub(super) next: u64,
}

impl SequenceRecord {
    pub(super) fn encode(&self) -> Result<Vec<u8>, StoreError> {
        limit("boot id", self.boot_id.len(), MAX_BOOT_ID_BYTES)?;
        Ok(frame(KEY_SEQUENCE, self))
    }
}

pub(super) fn encode_order(key: &str, order: &StoredOrder) -> Result<Vec<u8>, StoreError> {
    limit("signed order", order.envelope.len(), MAX_ENVELOPE_BYTES)?;
    let record = OrderRecord { generation: order.generation, envelope: order.envelope.clone() };
    Ok(frame(key, &record))
}

pub(super) fn decode_order(key: &str, value: &[u8]) -> Result<StoredOrder, String> {
    let record: OrderRecord = unframe(key, value)?;
    Ok(StoredOrder::new(record.generation, record.envelope))
}

/// A record of a container or a workload. One that is of another kind than its name would be taken for
/// damage when it is read.
pub(super) fn encode_record(
    key: &str,
    id: &RecordId,
    record: &Record,
) -> Result<Vec<u8>, StoreError> {
    let (what, value, most) = match (id, record) {
        (RecordId::Container(_), Record::Container(record)) => {
            ("container record", frame(key, record), MAX_HISTORY_BYTES)
        }
        (RecordId::Workload(_), Record::Workload(record)) => {
            ("workload record", frame(key, record), MAX_WORKLOAD_BYTES)
        }
        (RecordId::Command(_), Record::Command(record)) => {
            ("command record", frame(key, record), MAX_COMMAND_BYTES)
        }
        (RecordId::Commands, Record::Commands(record)) => {
            ("record of commands", frame(key, record), MAX_SINGLE_BYTES)
        }
        (RecordId::Event(_), Record::Event(record)) => {
            ("event record", frame(key, record), MAX_EVENT_BYTES)
        }
        (RecordId::Backlog, Record::Backlog(record)) => {
            ("record of events", frame(key, record), MAX_SINGLE_BYTES)
        }
        (RecordId::Usage, Record::Usage(record)) => {
            ("record of the link's use", frame(key, record), MAX_SINGLE_BYTES)
        }
        _ => return Err(StoreError::OtherKind { key: key.to_owned() }),
    };
    limit(what, value.len(), most)?;
    Ok(value)
}

pub(super) fn record_key(id: &RecordId) -> String {
    match id {
        RecordId::Container(id) => history_key(id),
        RecordId::Workload(name) => format!("{WORKLOAD}{name}"),
        RecordId::Command(id) => format!("{COMMAND}{id}"),
        RecordId::Commands => KEY_COMMANDS.into(),
        // Their order in the file is that of the numbers.
        RecordId::Event(sequence) => format!("{EVENT}{sequence:020}"),
        RecordId::Backlog => KEY_BACKLOG.into(),
        RecordId::Usage => KEY_USAGE.into(),
    }
}

pub(super) fn history_key(container: &ContainerId) -> String {
    format!("{HISTORY}{container}")
}

pub(super) fn kept_key(generation: u64) -> String {
    format!("{KEPT}{generation}")
}

/// The generation of a kept order's key; `None` for keys of other records.
pub(super) fn kept_of(key: &str) -> Option<u64> {
    let generation = key.strip_prefix(KEPT)?.parse().ok()?;
    (kept_key(generation) == key).then_some(generation)
}

/// What a key names of which there are many.
pub(super) enum Named {
    Kept(StoredOrder),
    History(ContainerId, ContainerRecord),
    Workload(WorkloadName, WorkloadRecord),
    Command(CommandId, CommandRecord),
    Event(u64, EventRecord),
}

/// Reads a record of which there are many; the error says what is wrong with it.
pub(super) fn decode_named(key: &str, value: &[u8]) -> Result<Named, String> {
    if key.starts_with(KEPT) {
        let order = decode_order(key, value)?;
        return match kept_of(key) {
            Some(generation) if generation == order.generation => Ok(Named::Kept(order)),
            _ => Err(format!("record {key:?} holds an order of another generation")),
        };
    }
    if let Some(id) = key.strip_prefix(HISTORY) {
        let id = ContainerId::from_listed(id);
        return match id.parts() {
            Some(_) => Ok(Named::History(id, unframe(key, value)?)),
            None => Err(format!("record {key:?} names no container")),
        };
    }
    if let Some(name) = key.strip_prefix(WORKLOAD) {
        return match WorkloadName::parse(name) {
            Ok(name) => Ok(Named::Workload(name, unframe(key, value)?)),
            Err(_) => Err(format!("record {key:?} names no workload")),
        };
    }
    if let Some(id) = key.strip_prefix(COMMAND) {
        return match id.parse() {
            Ok(id) => Ok(Named::Command(id, unframe(key, value)?)),
            Err(_) => Err(format!("record {key:?} names no command")),
        };
    }
    if let Some(sequence) = key.strip_prefix(EVENT) {
        return match sequence.parse() {
            Ok(sequence) if record_key(&RecordId::Event(sequence)) == key => {
                Ok(Named::Event(sequence, unframe(key, value)?))
            }
            _ => Err(format!("record {key:?} names no event")),
        };
    }
    Err(format!("record {key:?} is not known"))
}

/// Puts the checksum before the postcard form of `value`.
pub(super) fn frame(key: &str, value: &impl Serialize) -> Vec<u8> {
    let start = vec![0; CHECKSUM_BYTES];
    let mut bytes =
        postcard::to_extend(value, start).expect("records are plain structs of known length");
    let checksum = checksum(key, &bytes[CHECKSUM_BYTES..]);
    bytes[..CHECKSUM_BYTES].copy_from_slice(&checksum);
    bytes
}

/// The bytes after the checksum, if it fits.
pub(super) fn verified<'a>(key: &str, bytes: &'a [u8]) -> Result<&'a [u8], String> {
    match bytes.split_at_checked(CHECKSUM_BYTES) {
        Some((expected, value)) if expected == checksum(key, value) => Ok(value),
        _ => Err(format!("record {key:?} does not fit its checksum")),
    }
}

/// The value of a record, if its checksum fits and nothing is left over.
pub(super) fn unframe<T: DeserializeOwned>(key: &str, bytes: &[u8]) -> Result<T, String> {
    match postcard::take_from_bytes(verified(key, bytes)?) {
        Ok((value, [])) => Ok(value),
        Ok(_) => Err(format!("record {key:?} is longer than it should be")),
        Err(error) => Err(format!("record {key:?} cannot be read: {error}")),
    }
}

fn checksum(key: &str, value: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut context = Context::new(&SHA256);
    context.update(key.as_bytes());
    context.update(&[0]);
    context.update(value);
    let mut short = [0; CHECKSUM_BYTES];
    short.copy_from_slice(&context.finish().as_ref()[..CHECKSUM_BYTES]);
    short
}

fn limit(what: &'static str, size: usize, limit: usize) -> Result<(), StoreError> {
    if size > limit { Err(StoreError::TooLarge { what, size, limit }) } else { Ok(()) }
}
