//! The version of what is in the LMDB file, and the way from older ones.

use heed::RwTxn;

use super::lmdb::Records;
use super::migrations;
use super::records::{KEY_SCHEMA, frame, unframe};

/// Version of the records that this agent writes. It rises with every change to a record's fields and
/// with every new kind of record, and the change comes with a [`Migration`].
pub const SCHEMA: u32 = 4;

/// One step from a version to the next, inside the one transaction of all steps.
pub(super) struct Migration {
    pub(super) from: u32,
    pub(super) to: u32,
    pub(super) run: fn(&Records<'_>, &mut RwTxn<'_>) -> Result<(), MigrationError>,
}

/// Every step there ever was, oldest first. None is ever removed: a gateway may have been off for
/// years.
pub(super) const MIGRATIONS: &[Migration] = &[
    Migration { from: 1, to: 2, run: migrations::histories_of_containers },
    Migration { from: 2, to: 3, run: migrations::only_new_kinds_of_records },
    Migration { from: 3, to: 4, run: migrations::only_new_kinds_of_records },
];

/// A file of another version could not be brought to this one.
#[derive(Debug, thiserror::Error)]
pub(super) enum MigrationError {
    #[error("it holds no version of its records")]
    NoVersion,
    #[error("{0}")]
    Record(String),
    #[error("its records are of version {found}; this agent knows versions up to {known}")]
    Newer { found: u32, known: u32 },
    #[error("its records are of version {found}, from which no migration to {known} is known")]
    NoPath { found: u32, known: u32 },
    #[error(transparent)]
    Lmdb(#[from] heed::Error),
}

/// The version of the records; an error if there is none or it is newer than `known`.
pub(super) fn version(value: Option<&[u8]>, known: u32) -> Result<u32, MigrationError> {
    let value = value.ok_or(MigrationError::NoVersion)?;
    let found = unframe(KEY_SCHEMA, value).map_err(MigrationError::Record)?;
    if found > known { Err(MigrationError::Newer { found, known }) } else { Ok(found) }
}

/// Brings the records to version `target` by the steps of `table`. Says whether anything changed;
/// the caller commits.
pub(super) fn migrate(
    records: &Records<'_>,
    txn: &mut RwTxn<'_>,
    table: &[Migration],
    target: u32,
) -> Result<bool, MigrationError> {
    let found = version(records.get(txn, KEY_SCHEMA.as_bytes())?, target)?;
    let mut at = found;
    while at < target {
        let step = table
            .iter()
            .find(|step| step.from == at && step.to > at && step.to <= target)
            .ok_or(MigrationError::NoPath { found, known: target })?;
        (step.run)(records, txn)?;
        at = step.to;
    }
    if at != found {
        put_version(records, txn, at)?;
    }
    Ok(at != found)
}

pub(super) fn put_version(
    records: &Records<'_>,
    txn: &mut RwTxn<'_>,
    version: u32,
) -> heed::Result<()> {
    records.put(txn, KEY_SCHEMA.as_bytes(), &frame(KEY_SCHEMA, &version))
}

#[cfg(test)]
mod tests {
    use super::super::lmdb::{Mode, open, records};
    use super::*;

    const STEPS: &[Migration] = &[
        Migration { from: 1, to: 2, run: |records, txn| append(records, txn, b'b') },
        Migration { from: 2, to: 3, run: |records, txn| append(records, txn, b'c') },
    ];

    fn append(
        records: &Records<'_>,
        txn: &mut RwTxn<'_>,
        letter: u8,
    ) -> Result<(), MigrationError> {
        let mut value = records.get(txn, b"x")?.unwrap_or_default().to_vec();
        value.push(letter);
        Ok(records.put(txn, b"x", &value)?)
    }

    #[test]
    fn steps_run_in_order_and_once_and_newer_versions_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let env = open(&dir.path().join("x.mdb"), Mode::ReadWrite).unwrap();
        let records = records(&env).unwrap();
        let mut txn = env.write_txn().unwrap();
        assert!(matches!(migrate(&records, &mut txn, STEPS, 3), Err(MigrationError::NoVersion)));
        put_version(&records, &mut txn, 1).unwrap();
        records.put(&mut txn, b"x", b"a").unwrap();
        assert!(migrate(&records, &mut txn, STEPS, 3).unwrap());
        assert_eq!(records.get(&txn, b"x").unwrap(), Some(&b"abc"[..]));
        assert!(!migrate(&records, &mut txn, STEPS, 3).unwrap());
        assert!(matches!(
            migrate(&records, &mut txn, STEPS, 2),
            Err(MigrationError::Newer { found: 3, known: 2 })
        ));
        assert!(matches!(
            migrate(&records, &mut txn, STEPS, 4),
            Err(MigrationError::NoPath { found: 3, known: 4 })
        ));
    }

    #[test]
    fn the_table_leads_from_every_released_version_to_this_one() {
        let mut at = 1;
        while at < SCHEMA {
            at = MIGRATIONS.iter().find(|step| step.from == at).unwrap().to;
        }
        assert_eq!(at, SCHEMA);
    }
}
