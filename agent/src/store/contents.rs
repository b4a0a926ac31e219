//! Reads everything out of an LMDB file.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use coracle_core::history::{ContainerRecord, WorkloadRecord};
use coracle_core::name::{ContainerId, WorkloadName};

use super::lmdb::{Env, records};
use super::records::{
    KEY_BACKLOG, KEY_COMMANDS, KEY_CURRENT, KEY_GENERATION, KEY_PREVIOUS, KEY_SCHEMA, KEY_SEQUENCE,
    KEY_USAGE, Named, SequenceRecord, decode_named, decode_order, unframe, verified,
};
use super::schema::{SCHEMA, version};
use super::{StoredOrder, Talk};

/// Everything that the records say.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub(super) current: Option<StoredOrder>,
    pub(super) previous: Option<StoredOrder>,
    /// Newest first.
    pub(super) kept: Vec<StoredOrder>,
    pub(super) highest_generation: u64,
    pub(super) histories: BTreeMap<ContainerId, ContainerRecord>,
    pub(super) workloads: BTreeMap<WorkloadName, WorkloadRecord>,
    pub(super) talk: Talk,
}

/// Reads every record of the version [`SCHEMA`]; the error says what is wrong with which.
pub(super) fn load(env: &Env) -> Result<Contents, String> {
    let mut contents = Contents::default();
    each_record(env, |key, value| {
        match key {
            KEY_SCHEMA => {
                version(Some(value), SCHEMA).map_err(|error| error.to_string())?;
            }
            KEY_GENERATION => contents.highest_generation = unframe(key, value)?,
            KEY_SEQUENCE => {
                unframe::<SequenceRecord>(key, value)?;
            }
            KEY_COMMANDS => contents.talk.all_commands = unframe(key, value)?,
            KEY_BACKLOG => contents.talk.backlog = Some(unframe(key, value)?),
            KEY_USAGE => contents.talk.usage = Some(unframe(key, value)?),
            KEY_CURRENT => contents.current = Some(decode_order(key, value)?),
            KEY_PREVIOUS => contents.previous = Some(decode_order(key, value)?),
            _ => match decode_named(key, value)? {
                Named::Kept(order) => contents.kept.push(order),
                Named::History(id, record) => drop(contents.histories.insert(id, record)),
                Named::Workload(name, record) => drop(contents.workloads.insert(name, record)),
                Named::Command(id, record) => drop(contents.talk.commands.insert(id, record)),
                Named::Event(at, record) => drop(contents.talk.events.insert(at, record)),
            },
        }
        Ok(())
    })?;
    contents.kept.sort_unstable_by_key(|order| Reverse(order.generation));
    match &contents.current {
        Some(order) if order.generation > contents.highest_generation => {
            Err("its current order is newer than its highest generation".into())
        }
        _ => Ok(contents),
    }
}

/// Verifies the checksum of every record, whatever its version, and reads those of version
/// [`SCHEMA`].
pub(super) fn verify(env: &Env) -> Result<(), String> {
    let mut schema = None;
    each_record(env, |key, value| {
        verified(key, value)?;
        if key == KEY_SCHEMA {
            schema = Some(unframe::<u32>(key, value)?);
        }
        Ok(())
    })?;
    match schema {
        None => Err("it holds no version of its records".into()),
        Some(SCHEMA) => load(env).map(drop),
        // An older one is read by its migration, a newer one is refused with its own words.
        Some(_) => Ok(()),
    }
}

fn each_record(
    env: &Env,
    mut visit: impl FnMut(&str, &[u8]) -> Result<(), String>,
) -> Result<(), String> {
    let text = |error: heed::Error| error.to_string();
    let records = records(env).map_err(text)?;
    let txn = env.read_txn().map_err(text)?;
    for entry in records.iter(&txn).map_err(text)? {
        let (key, value) = entry.map_err(text)?;
        let key = std::str::from_utf8(key).map_err(|_| "a record's key is not text".to_string())?;
        visit(key, value)?;
    }
    Ok(())
}
