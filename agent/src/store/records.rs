//! Keys and values of the LMDB file: checksum, then postcard. Sizes are checked here.

use coracle_core::history::ReplicaRecord;
use coracle_core::name::{ReplicaId, WorkloadName};
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
const HISTORY: &str = "history/";

/// Most replicas with a history.
pub(super) const MAX_HISTORIES: u64 = 20_000;
/// Largest encoded replica record, in bytes.
const MAX_HISTORY_BYTES: usize = 512;
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

pub(super) fn encode_history(key: &str, record: &ReplicaRecord) -> Result<Vec<u8>, StoreError> {
    let value = frame(key, record);
    limit("replica record", value.len(), MAX_HISTORY_BYTES)?;
    Ok(value)
}

pub(super) fn history_key(replica: &ReplicaId) -> String {
    format!("{HISTORY}{replica}")
}

/// The replica of a history's key; `None` for keys of other records.
pub(super) fn history_of(key: &str) -> Option<Result<ReplicaId, String>> {
    let text = key.strip_prefix(HISTORY)?;
    let replica = || {
        let (workload, index) = text.rsplit_once('.')?;
        Some(ReplicaId {
            workload: WorkloadName::parse(workload).ok()?,
            index: index.parse().ok()?,
        })
    };
    Some(replica().ok_or_else(|| format!("record {key:?} names no replica")))
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
