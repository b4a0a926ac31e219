//! A download that may be interrupted at any moment: a file, and a note of what it is part of.
//!
//! `KEY.zip` and `KEY.json` in PREFIX/downloads. What is there after a crash is taken for what it
//! says; that it is right is known by its digest alone, at its end.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use coracle_core::image::Digest;
use ring::digest::{Context, SHA256};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::Shared;
use super::build::Stop;
use super::error::{ArtifactError, failed};
use super::site::{delete, hex, names, require_room, write};
use crate::clock::wall_now;
use crate::fault::fault_point;

/// Most interrupted downloads that are kept.
const MOST: usize = 8;
/// Age at which one is given up.
const MOST_AGE: Duration = Duration::from_secs(7 * 24 * 3600);
/// Bytes between looks at the room that is left, where the length is not known beforehand.
const ROOM_EVERY: u64 = 4 << 20;
const PIECE: usize = 128 << 10;

/// What a file is part of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    pub(super) url: String,
    pub(super) digest: Digest,
    /// Strong ETag or date of what is being downloaded, for `If-Range`.
    pub(super) validator: Option<String>,
    pub(super) total: Option<u64>,
}

#[derive(Debug)]
pub(super) struct Partial {
    shared: Arc<Shared>,
    /// In words.
    what: String,
    dir: PathBuf,
    key: String,
    /// What is there; `None` if that is of no use.
    pub(super) note: Option<Note>,
    file: Option<File>,
    pub(super) length: u64,
    /// Whether it was put together from more than one answer.
    pub(super) is_patchwork: bool,
}

impl Partial {
    /// What is there of it from an earlier try.
    pub(super) fn open(
        shared: Arc<Shared>,
        what: &str,
        key: &str,
        url: &str,
        digest: &Digest,
    ) -> Self {
        let dir = shared.site.downloads();
        let (what, key) = (what.to_owned(), key.to_owned());
        let mut partial =
            Self { shared, what, dir, key, note: None, file: None, length: 0, is_patchwork: false };
        let note = fs::read(partial.note_path()).ok();
        let note: Option<Note> = note.and_then(|note| serde_json::from_slice(&note).ok());
        let Some(note) = note.filter(|note| note.url == url && note.digest == *digest) else {
            return partial;
        };
        let Ok(file) = OpenOptions::new().read(true).write(true).open(partial.file_path()) else {
            return partial;
        };
        let length = file.metadata().map_or(0, |metadata| metadata.len());
        if length > 0 && note.total.is_none_or(|total| length <= total) {
            (partial.note, partial.file, partial.length) = (Some(note), Some(file), length);
            partial.is_patchwork = true;
        }
        partial
    }

    /// Begins anew.
    pub(super) fn begin(&mut self, note: Note) -> Result<(), ArtifactError> {
        (self.note, self.file, self.length, self.is_patchwork) = (None, None, 0, false);
        self.shared.site.ensure_downloads()?;
        self.discard_all_but(MOST - 1)?;
        delete(&self.file_path())?;
        let needed = note.total.unwrap_or(0);
        self.require_room(&self.dir, needed)?;
        let text = serde_json::to_vec(&note).map_err(|_| ArtifactError::BrokeOff)?;
        write(&self.dir, &format!("{}.json", self.key), &text, 0o600)?;
        fault_point("download.noted");
        let path = self.file_path();
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true).mode(0o600);
        let file = options.open(&path).map_err(failed("make", &path))?;
        if needed > 0 {
            match fallocate(&file, FallocateFlags::KEEP_SIZE, 0, needed) {
                // File systems that cannot reserve find out while they are written to.
                Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
                Err(error) => return Err(failed("reserve room for", &path)(error)),
            }
        }
        fault_point("download.begun");
        (self.note, self.file) = (Some(note), Some(file));
        Ok(())
    }

    /// Sees to it that so many bytes may be written to a directory. Downloads that nobody is at make
    /// room.
    pub(super) fn require_room(&self, dir: &Path, bytes: u64) -> Result<(), ArtifactError> {
        if require_room(dir, &self.what, bytes).is_ok() {
            return Ok(());
        }
        self.discard_all_but(0)?;
        require_room(dir, &self.what, bytes)
    }

    /// Adds what came next.
    pub(super) fn append(&mut self, piece: &[u8]) -> Result<(), ArtifactError> {
        let Self { file: Some(file), note: Some(note), .. } = &*self else {
            return Err(ArtifactError::BrokeOff);
        };
        let end = self.length + piece.len() as u64;
        if note.total.is_none() && self.length / ROOM_EVERY != end / ROOM_EVERY {
            self.require_room(&self.dir, ROOM_EVERY)?;
        }
        let written = file.write_all_at(piece, self.length);
        written.map_err(failed("write", &self.file_path()))?;
        self.length = end;
        fault_point("download.appended");
        Ok(())
    }

    /// All of it has come, as far as the server says.
    pub(super) fn complete(&mut self) -> Result<(), ArtifactError> {
        let Some(note) = &mut self.note else { return Err(ArtifactError::BrokeOff) };
        if note.total.replace(self.length) != Some(self.length) {
            let text = serde_json::to_vec(note).map_err(|_| ArtifactError::BrokeOff)?;
            write(&self.dir, &format!("{}.json", self.key), &text, 0o600)?;
        }
        Ok(())
    }

    pub(super) fn is_complete(&self) -> bool {
        self.note.as_ref().is_some_and(|note| note.total == Some(self.length))
    }

    /// Of what is there.
    pub(super) fn digest(&self, stop: &Stop) -> Result<Digest, ArtifactError> {
        let path = self.file_path();
        let mut file = self.reader()?;
        let (mut sum, mut piece) = (Context::new(&SHA256), vec![0; PIECE]);
        loop {
            stop.check()?;
            match file.read(&mut piece).map_err(failed("read", &path))? {
                0 => break,
                length => sum.update(&piece[..length]),
            }
        }
        let text = format!("sha256:{}", hex(sum.finish().as_ref()));
        Digest::parse(&text).map_err(|_| ArtifactError::BrokeOff)
    }

    /// From the beginning.
    pub(super) fn reader(&self) -> Result<File, ArtifactError> {
        let path = self.file_path();
        File::open(&path).map_err(failed("read", &path))
    }

    pub(super) fn file(&self) -> Result<&File, ArtifactError> {
        self.file.as_ref().ok_or(ArtifactError::BrokeOff)
    }

    /// Removes it: it is installed, or of no use.
    pub(super) fn discard(&mut self) -> Result<(), ArtifactError> {
        (self.note, self.file, self.length) = (None, None, 0);
        delete(&self.note_path())?;
        fault_point("download.discarding");
        delete(&self.file_path())
    }

    fn file_path(&self) -> PathBuf {
        self.dir.join(format!("{}.zip", self.key))
    }

    fn note_path(&self) -> PathBuf {
        self.dir.join(format!("{}.json", self.key))
    }

    /// Removes the oldest downloads that nobody is at, until so many are left.
    fn discard_all_but(&self, most: usize) -> Result<(), ArtifactError> {
        let mut others = Vec::new();
        for name in names(&self.dir)? {
            let Some(key) = name.strip_suffix(".zip") else { continue };
            if key != self.key && !self.shared.locks.is_wanted(key) {
                let path = self.dir.join(&name);
                let modified = fs::metadata(&path).and_then(|metadata| metadata.modified()).ok();
                others.push((modified, key.to_owned()));
            }
        }
        others.sort();
        let surplus = others.len().saturating_sub(most);
        for (_, key) in others.iter().take(surplus) {
            discard(&self.dir, key)?;
        }
        Ok(())
    }
}

fn discard(dir: &Path, key: &str) -> Result<(), ArtifactError> {
    delete(&dir.join(format!("{key}.json")))?;
    delete(&dir.join(format!("{key}.zip")))
}

/// Removes what is too old, or of no use. `done`: what is installed.
pub(super) fn sweep(shared: &Shared, done: &BTreeSet<String>) -> Result<(), ArtifactError> {
    let dir = shared.site.downloads();
    let names = names(&dir)?;
    for name in &names {
        let key = name.split('.').next().unwrap_or_default();
        let paired = ["zip", "json"].iter().all(|end| names.contains(&format!("{key}.{end}")));
        let whole = name.strip_prefix(key).is_some_and(|end| end == ".zip" || end == ".json");
        let modified = fs::metadata(dir.join(name)).and_then(|metadata| metadata.modified());
        let modified = modified.ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        let age = modified.and_then(|at| wall_now().checked_sub(at)).unwrap_or_default();
        let old = name.ends_with(".zip") && age > MOST_AGE;
        if shared.locks.is_wanted(key) {
            continue;
        }
        if old || done.contains(key) {
            discard(&dir, key)?;
        } else if !paired || !whole {
            delete(&dir.join(name))?;
        }
    }
    Ok(())
}
