//! Which orders the LMDB file holds: what accepting one changes.

use std::collections::BTreeSet;

use heed::RwTxn;

use super::StoredOrder;
use super::error::{Failure, StoreError, damaged};
use super::lmdb::Records;
use super::records::{
    KEPT, KEY_CURRENT, KEY_GENERATION, KEY_PREVIOUS, MAX_KEPT, decode_order, encode_order, frame,
    kept_key, kept_of, unframe,
};

/// Makes `order` the current one, if its generation is above `highest` and every stored one. The
/// caller commits, if this says that anything changed.
pub(super) fn accept(
    records: &Records<'_>,
    txn: &mut RwTxn<'_>,
    order: &StoredOrder,
    highest: u64,
    keep: &BTreeSet<u64>,
) -> Result<bool, Failure> {
    let current = get(records, txn, KEY_CURRENT)?;
    let known = stored_generation(records, txn)?.max(highest);
    if let Some(current) = &current {
        if current.generation == order.generation && current.digest == order.digest {
            return Ok(false);
        }
    }
    // After the store was lost the order of the plain file comes again, once.
    let again = current.is_none() && order.generation == known;
    if order.generation <= known && !again {
        return Err(StoreError::NotNewer { generation: order.generation, highest: known }.into());
    }
    let pushed_out = match current {
        Some(current) => {
            let previous = get(records, txn, KEY_PREVIOUS)?;
            put(records, txn, KEY_PREVIOUS, &current)?;
            previous
        }
        None => None,
    };
    keep_orders(records, txn, pushed_out, keep)?;
    put(records, txn, KEY_CURRENT, order)?;
    records.put(txn, KEY_GENERATION.as_bytes(), &frame(KEY_GENERATION, &order.generation))?;
    Ok(true)
}

/// Keeps the order that is no longer the previous one if it is among those to `keep`, and removes kept
/// ones that are not, or are too many.
fn keep_orders(
    records: &Records<'_>,
    txn: &mut RwTxn<'_>,
    pushed_out: Option<StoredOrder>,
    keep: &BTreeSet<u64>,
) -> Result<(), Failure> {
    let pushed_out = pushed_out.filter(|order| keep.contains(&order.generation));
    let kept = kept_generations(records, txn)?;
    let candidates = kept.iter().copied().chain(pushed_out.iter().map(|order| order.generation));
    let wanted: BTreeSet<u64> = candidates.filter(|generation| keep.contains(generation)).collect();
    let stay: BTreeSet<u64> = wanted.into_iter().rev().take(MAX_KEPT).collect();
    for generation in kept.iter().filter(|generation| !stay.contains(generation)) {
        records.delete(txn, kept_key(*generation).as_bytes())?;
    }
    match pushed_out {
        Some(order) if stay.contains(&order.generation) => {
            put(records, txn, &kept_key(order.generation), &order)
        }
        _ => Ok(()),
    }
}

fn kept_generations(records: &Records<'_>, txn: &RwTxn<'_>) -> Result<Vec<u64>, Failure> {
    let mut generations = Vec::new();
    for entry in records.prefix_iter(txn, KEPT.as_bytes())? {
        let (key, _) = entry?;
        let generation = std::str::from_utf8(key).ok().and_then(kept_of);
        generations.push(generation.ok_or_else(|| damaged("a kept order has no name".into()))?);
    }
    Ok(generations)
}

fn get(records: &Records<'_>, txn: &RwTxn<'_>, key: &str) -> Result<Option<StoredOrder>, Failure> {
    match records.get(txn, key.as_bytes())? {
        Some(value) => decode_order(key, value).map(Some).map_err(damaged),
        None => Ok(None),
    }
}

fn put(
    records: &Records<'_>,
    txn: &mut RwTxn<'_>,
    key: &str,
    order: &StoredOrder,
) -> Result<(), Failure> {
    Ok(records.put(txn, key.as_bytes(), &encode_order(key, order)?)?)
}

fn stored_generation(records: &Records<'_>, txn: &RwTxn<'_>) -> Result<u64, Failure> {
    match records.get(txn, KEY_GENERATION.as_bytes())? {
        Some(value) => unframe(KEY_GENERATION, value).map_err(damaged),
        None => Ok(0),
    }
}
