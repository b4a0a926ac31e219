//! The files: `DIR/CONTAINER/NNNNNNNN.log`, the highest number is written. And the cap of the
//! gateway: whoever opens a file takes, under the lock of DIR, from the container that uses most.
//!
//! A container's newest file is never taken by another.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// Smallest size at which a file is full.
pub const SMALLEST_FILE: u64 = 16 * 1024;

/// What is kept, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The directory of all containers' logs.
    pub dir: PathBuf,
    /// Bytes at which a container's file is full.
    pub file: u64,
    /// Most files of one container.
    pub files: u32,
    /// Most bytes of all containers together.
    pub total: u64,
}

/// One file of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Numbered {
    /// Files are written in the order of their numbers.
    pub number: u32,
    /// What it uses of the disk, in bytes.
    pub size: u64,
}

/// What one container uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Used {
    /// The container's id.
    pub id: String,
    /// Its files, oldest first.
    pub files: Vec<Numbered>,
}

impl Used {
    /// Bytes of all its files.
    pub fn size(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }
}

/// Whether a directory of this name can be a container's.
pub fn is_id(name: &str) -> bool {
    !name.is_empty() && name.len() <= 255 && !name.starts_with('.') && !name.contains(['/', '\0'])
}

/// The path of a container's file.
pub fn path(container: &Path, number: u32) -> PathBuf {
    container.join(format!("{number:08}.log"))
}

fn number(name: &str) -> Option<u32> {
    let digits = name.strip_suffix(".log")?;
    (digits.len() >= 8 && digits.bytes().all(|byte| byte.is_ascii_digit()))
        .then(|| digits.parse().ok())?
}

/// The numbers of a container's files, oldest first.
///
/// # Errors
/// The directory cannot be read.
pub fn numbers(container: &Path) -> io::Result<Vec<u32>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(container)? {
        numbers.extend(entry?.file_name().to_str().and_then(number));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// A container's files with their sizes, oldest first. What vanishes meanwhile is left out.
///
/// # Errors
/// The directory cannot be read.
pub fn of_container(container: &Path) -> io::Result<Vec<Numbered>> {
    let mut files = numbers(container)?
        .into_iter()
        .filter_map(|number| {
            let size = fs::metadata(path(container, number)).ok()?.len();
            Some(Numbered { number, size: size.next_multiple_of(4096) })
        })
        .collect::<Vec<_>>();
    files.sort_unstable();
    Ok(files)
}

/// All containers that have a directory.
///
/// # Errors
/// The directory cannot be read.
pub fn list(dir: &Path) -> io::Result<Vec<Used>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let Some(id) = entry.file_name().to_str().filter(|name| is_id(name)).map(str::to_owned)
        else {
            continue;
        };
        if let Ok(files) = of_container(&entry.path()) {
            found.push(Used { id, files });
        }
    }
    Ok(found)
}

/// Makes a directory that is root's alone, with those above it.
///
/// # Errors
/// It cannot be made.
pub fn make_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Opens a container's file to add to it.
pub(crate) fn open(container: &Path, number: u32) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).append(true).create(true).mode(0o600).open(path(container, number))
}

/// Whether the file has no name any more.
pub(crate) fn is_gone(file: &File) -> bool {
    file.metadata().is_ok_and(|metadata| metadata.nlink() == 0)
}

/// Removes a file; that it is gone already is no error.
pub(crate) fn remove(container: &Path, number: u32) -> io::Result<()> {
    match fs::remove_file(path(container, number)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The lock of a directory of logs.
#[derive(Debug)]
pub struct Lock {
    _lock: Flock<File>,
}

impl Lock {
    /// Takes it; `None` if somebody has it, who is about to do what we want to do.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn take(dir: &Path) -> io::Result<Option<Self>> {
        let mut options = OpenOptions::new();
        let file = options.create(true).append(true).mode(0o600).open(dir.join(".lock"))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(Self { _lock: lock })),
            Err((_, Errno::EWOULDBLOCK | Errno::EINTR)) => Ok(None),
            Err((_, error)) => Err(error.into()),
        }
    }
}

/// Bytes at which a file is full where `containers` share the gateway: all files that are being
/// written may together fill a quarter of the cap.
fn full_at(settings: &Settings, containers: usize) -> u64 {
    let share = settings.total / 4 / (containers.max(1) as u64);
    share.clamp(SMALLEST_FILE, settings.file.max(SMALLEST_FILE))
}

/// Brings all containers together below the cap, with room for the files that are being written.
/// Gives the bytes at which a new file is full.
pub(crate) fn enforce_cap(settings: &Settings) -> io::Result<u64> {
    let mut all = list(&settings.dir)?;
    let full = full_at(settings, all.len());
    // `None`: somebody does it right now.
    let Some(_lock) = Lock::take(&settings.dir)? else { return Ok(full) };
    let reserved = |used: &Used| full.saturating_sub(used.files.last().map_or(0, |file| file.size));
    let mut claimed: u64 = all.iter().map(|used| used.size() + reserved(used)).sum();
    while claimed > settings.total {
        let Some(freed) = take_from_largest(&settings.dir, &mut all)? else { break };
        claimed -= freed;
    }
    Ok(full)
}

/// Removes the oldest file of the container that uses most; never its newest. Gives the bytes that
/// it used, `None` if nobody has a file to spare.
fn take_from_largest(dir: &Path, all: &mut [Used]) -> io::Result<Option<u64>> {
    let spare = all.iter_mut().filter(|used| used.files.len() > 1);
    let Some(largest) = spare.max_by_key(|used| used.size()) else { return Ok(None) };
    let oldest = largest.files.remove(0);
    remove(&dir.join(&largest.id), oldest.number)?;
    Ok(Some(oldest.size))
}

/// Makes room on a full disk at the cost of the container that uses most. Whether anything was freed.
pub(crate) fn make_room(dir: &Path) -> io::Result<bool> {
    let Some(_lock) = Lock::take(dir)? else { return Ok(false) };
    Ok(take_from_largest(dir, &mut list(dir)?)?.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(dir: &Path, total: u64) -> Settings {
        Settings { dir: dir.into(), file: 64 * 1024, files: 4, total }
    }

    fn fill(dir: &Path, id: &str, sizes: &[u64]) {
        let container = dir.join(id);
        make_dir(&container).unwrap();
        for (number, size) in (1..).zip(sizes) {
            open(&container, number).unwrap().set_len(*size).unwrap();
        }
    }

    fn kept(dir: &Path) -> Vec<(String, Vec<u32>)> {
        let mut all = list(dir).unwrap();
        all.sort_by(|a, b| a.id.cmp(&b.id));
        all.into_iter()
            .map(|used| (used.id, used.files.iter().map(|f| f.number).collect()))
            .collect()
    }

    #[test]
    fn the_cap_takes_the_oldest_of_whoever_uses_most_and_nobodys_newest() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        fill(dir, "loud.0.main", &[65_536; 4]);
        fill(dir, "quiet.0.main", &[65_536, 4096]);
        fill(dir, "tiny.0.main", &[100]);
        fs::write(dir.join("stranger"), "x").unwrap();
        fs::write(dir.join("loud.0.main/notes.txt"), "x").unwrap();
        // Used: 256, 68 and 4 KiB; a file is full at 20 KiB, so 16 each are kept free for two.
        assert_eq!(enforce_cap(&settings(dir, 240 * 1024)).unwrap(), 20 * 1024);
        let expected =
            [("loud.0.main", vec![3, 4]), ("quiet.0.main", vec![1, 2]), ("tiny.0.main", vec![1])];
        assert_eq!(kept(dir), expected.map(|(id, numbers)| (id.to_owned(), numbers)));
        enforce_cap(&settings(dir, 0)).unwrap();
        let expected =
            [("loud.0.main", vec![4]), ("quiet.0.main", vec![2]), ("tiny.0.main", vec![1])];
        assert_eq!(kept(dir), expected.map(|(id, numbers)| (id.to_owned(), numbers)));
    }

    #[test]
    fn a_lock_that_is_held_stops_nobody() {
        let dir = tempfile::tempdir().unwrap();
        fill(dir.path(), "loud.0.main", &[65_536; 4]);
        let lock = Lock::take(dir.path()).unwrap();
        assert!(lock.is_some() && Lock::take(dir.path()).unwrap().is_none());
        assert_eq!(enforce_cap(&settings(dir.path(), 0)).unwrap(), SMALLEST_FILE);
        assert_eq!(kept(dir.path())[0].1.len(), 4);
        drop(lock);
        enforce_cap(&settings(dir.path(), 0)).unwrap();
        assert_eq!(kept(dir.path())[0].1, [4]);
    }

    #[test]
    fn files_are_smaller_where_many_share_the_cap() {
        let settings = settings(Path::new("/x"), 4 * 1024 * 1024);
        assert_eq!(
            [0, 1, 16, 32, 1000].map(|n| full_at(&settings, n)),
            [65_536, 65_536, 65_536, 32_768, 16_384]
        );
    }

    #[test]
    fn names_that_are_none_are_told() {
        assert!(is_id("web.0.main"));
        for bad in ["", ".", "..", ".lock", "a/b"] {
            assert!(!is_id(bad), "{bad}");
        }
        assert_eq!(number("00000012.log"), Some(12));
        assert_eq!(
            ["12.log", "0000001x.log", "00000012", "99999999999.log"].map(number),
            [None; 4]
        );
    }
}
