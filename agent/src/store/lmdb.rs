//! Opens LMDB: the only unsafe code of the project.

use std::path::Path;

use heed::types::Bytes;
use heed::{CommitOrAbort, EnvFlags, EnvOpenOptions, WithoutTls};

/// Size of the map, which the file can never outgrow. It costs address space only. The most of
/// everything (ten orders of 1 MiB, 20,000 records of containers, 2,000 of workloads, 512 of commands,
/// 1,024 events, all of the largest size under the longest names) makes a file of 60 MiB once
/// transactions have replaced all of it at once: LMDB uses freed pages again two transactions later.
/// The store's test `room` holds that this stays below two thirds.
pub const MAP_BYTES: usize = 128 << 20;

pub(super) type Env = heed::Env<WithoutTls>;
/// The one database: records of all kinds, told apart by the beginning of their keys. One tree
/// instead of one for each kind saves a page of 4 KiB with every commit.
pub(super) type Records<'env> = heed::Database<'env, Bytes, Bytes>;

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// For reading and writing. Makes the file, mode 0600, if there is none.
    ReadWrite,
    /// For reading only.
    ReadOnly,
}

/// Opens the LMDB file at `path`.
pub(super) fn open(path: &Path, mode: Mode) -> heed::Result<Env> {
    let mut flags = EnvFlags::NO_SUB_DIR | EnvFlags::NO_LOCK | EnvFlags::NO_READ_AHEAD;
    if mode == Mode::ReadOnly {
        flags |= EnvFlags::READ_ONLY;
    }
    let mut options = EnvOpenOptions::new().read_txn_without_tls();
    options.map_size(MAP_BYTES);
    // SAFETY: `flags` and `open` ask the caller to keep LMDB's rules, all of which hold here:
    // - Not opened twice in one process: heed itself refuses that, by canonical path.
    // - NO_LOCK, so that nobody else may write, and no reader may live while a writer does: the
    //   directory is locked with flock for the life of the `Site`, and one thread makes every
    //   transaction, one after the other. The checking child only reads, while nobody has it open.
    // - Nobody truncates or changes the mapped file: it is in a directory of mode 0700, is not
    //   written but through LMDB, and is renamed only after the environment was closed.
    // - The file is sound: it is walked through by a child process before it is opened here, so
    //   that a damaged one ends that process and not this one. The child opens it unchecked, holds
    //   nothing else, and may die of it. A file just made by ourselves needs no check.
    // - On a local file system, with a coherent map: a requirement on the state directory.
    // - No use across fork: children are started by exec only, and descriptors are close-on-exec.
    // - Without NO_SYNC, NO_META_SYNC, WRITE_MAP or MAP_ASYNC: a commit is durable and a stray
    //   pointer cannot write into the map.
    #[allow(unsafe_code)]
    unsafe {
        options.flags(flags);
        options.open(path)
    }
}

/// The one database of an environment.
pub(super) fn records(env: &Env) -> heed::Result<Records<'_>> {
    let txn = env.read_txn()?;
    let opened = env.open_databases_and_commit(txn, |opener, txn| {
        opener.open_database(txn, None).map(CommitOrAbort::<_, ()>::Commit)
    })?;
    opened.commit().flatten().ok_or(heed::Error::Mdb(heed::MdbError::NotFound))
}
