//! The state directory: locks it, opens the LMDB file in it, makes a new one, sets a damaged one
//! aside.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::statvfs::{FsFlags, statvfs};

use super::check::CheckOutcome;
use super::contents::{self, Contents};
use super::error::StoreError;
use super::lmdb::{self, Env, Mode};
use super::order_files::{self, sync_directory};
use super::schema::{MIGRATIONS, MigrationError, SCHEMA, migrate, put_version};
use super::wear::{Cause, Counters};
use super::{Candidate, Origin};
use crate::fault::fault_point;

const FILE: &str = "store.mdb";
const NEW_FILE: &str = "store.mdb.new";
const SET_ASIDE: &str = "store.damaged-";
/// How many damaged files are kept for somebody to look at.
const KEPT: usize = 2;

type Check = Box<dyn Fn(&Path) -> CheckOutcome + Send>;

/// One state directory.
pub(super) struct Site {
    dir: PathBuf,
    check: Check,
    counters: Arc<Counters>,
    /// Held for as long as this lives. On the directory itself: needs no file, so it works on a
    /// read-only file system.
    lock: Option<Flock<File>>,
    trouble: Vec<String>,
}

impl Site {
    pub(super) fn new(dir: &Path, check: Check, counters: Arc<Counters>) -> Self {
        Self { dir: dir.into(), check, counters, lock: None, trouble: Vec::new() }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn file(&self) -> PathBuf {
        self.dir.join(FILE)
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Whether the file system takes writes. One that the kernel has made read-only since, because
    /// its disk failed, says nothing of it to who has the file open: ext4 lets the write go to
    /// memory and its fsync succeed.
    ///
    /// # Errors
    /// It does not.
    pub(super) fn ensure_writable(&self) -> Result<(), StoreError> {
        match statvfs(&self.dir) {
            Ok(fs) if fs.flags().contains(FsFlags::ST_RDONLY) => {
                Err(StoreError::io("write", self.file(), Errno::EROFS.into()))
            }
            // What cannot be asked shows when it is written.
            _ => Ok(()),
        }
    }

    /// Remembers what is to be said about the store.
    pub(super) fn note(&mut self, trouble: String) {
        tracing::warn!(trouble, "state store");
        self.trouble.push(trouble);
    }

    pub(super) fn take_trouble(&mut self) -> Option<String> {
        let trouble = std::mem::take(&mut self.trouble).join("; ");
        (!trouble.is_empty()).then_some(trouble)
    }

    /// Opens the LMDB file for reading and writing: checked, of this version, and with its contents.
    /// One that cannot be used is set aside, and a new one is made.
    pub(super) fn open(&mut self) -> Result<(Env, Contents), StoreError> {
        self.prepare()?;
        let path = self.file();
        match self.open_existing_or_new(&path) {
            Err(StoreError::Damaged { reason }) => self.set_aside(&path, &reason)?,
            other => return other,
        }
        self.open_existing_or_new(&path)
    }

    /// What an LMDB file says that can be read and not written.
    pub(super) fn read_only(&self) -> Option<Contents> {
        let path = self.file();
        if (self.check)(&path) != CheckOutcome::Intact {
            return None;
        }
        contents::load(&lmdb::open(&path, Mode::ReadOnly).ok()?).ok()
    }

    /// The orders in plain files, best first.
    pub(super) fn candidates(&mut self, factory: Option<&Path>) -> Vec<Candidate> {
        let mut places = vec![
            (Origin::OrderFile, self.dir.join(order_files::ORDER)),
            (Origin::PreviousOrderFile, self.dir.join(order_files::PREVIOUS)),
        ];
        places.extend(factory.map(|path| (Origin::Factory, path.to_owned())));
        let mut found = Vec::new();
        for (origin, path) in places {
            match order_files::read(&path) {
                Ok(Some(order)) => found.push(Candidate { origin, path, order }),
                Ok(None) => {}
                Err(reason) => self.note(reason),
            }
        }
        found
    }

    fn prepare(&mut self) -> Result<(), StoreError> {
        if self.lock.is_some() {
            return Ok(());
        }
        let failed = |action, error| StoreError::io(action, &self.dir, error);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)
            .map_err(|error| failed("create", error))?;
        let dir = File::open(&self.dir).map_err(|error| failed("open", error))?;
        let mode = dir.metadata().map_err(|error| failed("look at", error))?.permissions().mode();
        self.lock = match Flock::lock(dir, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Some(lock),
            Err((_, Errno::EWOULDBLOCK)) => {
                return Err(StoreError::InUse { dir: self.dir.clone() });
            }
            Err((_, errno)) => return Err(failed("lock", errno.into())),
        };
        if mode & 0o077 != 0 {
            fs::set_permissions(&self.dir, Permissions::from_mode(0o700))
                .map_err(|error| failed("restrict", error))?;
        }
        Ok(())
    }

    fn open_existing_or_new(&self, path: &Path) -> Result<(Env, Contents), StoreError> {
        match OpenOptions::new().read(true).write(true).open(path) {
            Ok(_) => match (self.check)(path) {
                CheckOutcome::Intact => {}
                CheckOutcome::Damaged(reason) => return Err(StoreError::Damaged { reason }),
                CheckOutcome::Unavailable(reason) => {
                    return Err(StoreError::NotChecked { reason });
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.counters.measure(Cause::Setup, || self.create(path).map(|()| ((), true)))?;
            }
            Err(error) => return Err(StoreError::io("open", path, error)),
        }
        let env = lmdb::open(path, Mode::ReadWrite)
            .map_err(|error| StoreError::lmdb("open", path, error))?;
        self.counters.measure(Cause::Setup, || {
            upgrade(&env)
                .map(|changed| ((), changed))
                .map_err(|error| describe_migration(error, path))
        })?;
        let contents = contents::load(&env).map_err(|reason| StoreError::Damaged { reason })?;
        Ok((env, contents))
    }

    /// Makes an empty file of this version under another name first: a power cut leaves none or a
    /// whole one.
    fn create(&self, path: &Path) -> Result<(), StoreError> {
        let new = self.dir.join(NEW_FILE);
        let failed = |error| StoreError::lmdb("create", &new, error);
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(StoreError::io("remove", &new, error));
            }
            _ => {}
        }
        let env = lmdb::open(&new, Mode::ReadWrite).map_err(failed)?;
        let records = lmdb::records(&env).map_err(failed)?;
        let mut txn = env.write_txn().map_err(failed)?;
        put_version(&records, &mut txn, SCHEMA).map_err(failed)?;
        txn.commit().map_err(failed)?;
        drop(env);
        fault_point("create.initialised");
        fs::rename(&new, path).map_err(|error| StoreError::io("rename", &new, error))?;
        fault_point("create.renamed");
        sync_directory(&self.dir)
    }

    fn set_aside(&mut self, path: &Path, reason: &str) -> Result<(), StoreError> {
        self.note(format!("the state store could not be used and was set aside: {reason}"));
        let mut numbers = self.set_aside_before()?;
        let next = numbers.last().map_or(1, |last| last + 1);
        let aside = self.dir.join(format!("{SET_ASIDE}{next}"));
        fs::rename(path, &aside).map_err(|error| StoreError::io("rename", path, error))?;
        fault_point("set_aside.renamed");
        numbers.push(next);
        for number in &numbers[..numbers.len().saturating_sub(KEPT)] {
            let old = self.dir.join(format!("{SET_ASIDE}{number}"));
            fs::remove_file(&old).map_err(|error| StoreError::io("remove", &old, error))?;
        }
        sync_directory(&self.dir)
    }

    /// The numbers of the files that were set aside, ascending.
    fn set_aside_before(&self) -> Result<Vec<u64>, StoreError> {
        let failed = |error| StoreError::io("list", &self.dir, error);
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix(SET_ASIDE));
            numbers.extend(number.and_then(|number| number.parse::<u64>().ok()));
        }
        numbers.sort_unstable();
        Ok(numbers)
    }
}

/// Brings the records to this version. Says whether anything was committed.
fn upgrade(env: &Env) -> Result<bool, MigrationError> {
    let records = lmdb::records(env)?;
    let mut txn = env.write_txn()?;
    let changed = migrate(&records, &mut txn, MIGRATIONS, SCHEMA)?;
    if changed {
        fault_point("migrate.before_commit");
        txn.commit()?;
    } else {
        txn.abort();
    }
    Ok(changed)
}

fn describe_migration(error: MigrationError, path: &Path) -> StoreError {
    match error {
        MigrationError::Lmdb(error) => StoreError::lmdb("migrate", path, error),
        other => StoreError::Damaged { reason: other.to_string() },
    }
}
