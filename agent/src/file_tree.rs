//! Directory trees that others may have filled: deleted and measured without following a link or
//! entering another file system.

use std::collections::HashSet;
use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2, renameat};
use nix::sys::stat::{Mode, SFlag, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::clock::monotonic_now;

/// Begin of the names that what is deleted has meanwhile.
const GONE: &str = ".gone-";
/// Most that is looked at to measure trees: files, levels, time.
const MOST_FILES: usize = 200_000;
const MOST_LEVELS: usize = 64;
const MOST_TIME: Duration = Duration::from_secs(5);

/// Whether a rename failed because of what has the new name.
pub(crate) fn is_taken(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{AlreadyExists, DirectoryNotEmpty, IsADirectory, NotADirectory};
    matches!(kind, AlreadyExists | DirectoryNotEmpty | IsADirectory | NotADirectory)
}

/// Deletes a directory with all that is in it, however deep: what is below its subdirectories is
/// moved up into it, so that never more than two directories are open. Links are not followed,
/// other file systems not entered. What cannot be deleted does not keep the rest.
pub(crate) fn delete_tree(path: &Path) -> io::Result<()> {
    let top = nix::fcntl::open(path, DIRECTORY, Mode::empty())?;
    let mut tree = Tree { device: fstat(&top)?.st_dev, top, moved: 0, progress: true, error: None };
    while tree.progress {
        (tree.progress, tree.error) = (false, None);
        tree.empty(None)?;
        match fs::remove_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
            result => return result,
        }
    }
    Err(tree.error.unwrap_or_else(|| io::ErrorKind::DirectoryNotEmpty.into()))
}

/// Opens a directory, unless something is mounted there. Kernels before 5.6, and filters that do not
/// know the call, leave it to the look at the device.
fn open_below(top: &OwnedFd, name: &CStr) -> io::Result<OwnedFd> {
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_XDEV;
    let how = OpenHow::new().flags(DIRECTORY).resolve(resolve);
    match openat2(top, name, how) {
        Err(Errno::ENOSYS | Errno::EPERM) => Ok(openat(top, name, DIRECTORY, Mode::empty())?),
        opened => Ok(opened?),
    }
}

const DIRECTORY: OFlag = OFlag::O_DIRECTORY.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

struct Tree {
    top: OwnedFd,
    device: nix::libc::dev_t,
    /// For names that nothing else has.
    moved: u64,
    /// Whether something was deleted or moved.
    progress: bool,
    error: Option<io::Error>,
}

impl Tree {
    /// Deletes what is in the top, or in one of its directories.
    fn empty(&mut self, below: Option<&CStr>) -> io::Result<()> {
        let name = below.unwrap_or(c".");
        let fd = open_below(&self.top, name)?;
        if fstat(&fd)?.st_dev != self.device {
            return Err(io::ErrorKind::CrossesDevices.into());
        }
        let mut dir = Dir::from_fd(fd.try_clone()?)?;
        for entry in dir.iter() {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let result = match unlinkat(&fd, name, UnlinkatFlags::NoRemoveDir) {
                Err(Errno::EISDIR) => match unlinkat(&fd, name, UnlinkatFlags::RemoveDir) {
                    Err(Errno::ENOTEMPTY | Errno::EEXIST) if below.is_some() => {
                        self.move_up(&fd, name)
                    }
                    Err(Errno::ENOTEMPTY | Errno::EEXIST) => {
                        let emptied = self.empty(Some(name));
                        match unlinkat(&fd, name, UnlinkatFlags::RemoveDir) {
                            // What is left in it has told why.
                            Err(Errno::ENOTEMPTY | Errno::EEXIST) if emptied.is_ok() => continue,
                            result => emptied.and(result.map_err(io::Error::from)),
                        }
                    }
                    result => result.map_err(io::Error::from),
                },
                result => result.map_err(io::Error::from),
            };
            match result {
                Ok(()) => self.progress = true,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => self.error = Some(error),
            }
        }
        Ok(())
    }

    fn move_up(&mut self, from: &OwnedFd, name: &CStr) -> io::Result<()> {
        loop {
            self.moved += 1;
            let to = format!("{GONE}{}", self.moved);
            match renameat(from, name, &self.top, to.as_str()).map_err(io::Error::from) {
                Err(error) if is_taken(error.kind()) => {}
                result => return result,
            }
        }
    }
}

/// Adds up what trees take on the disk, within limits for all of them together.
#[derive(Debug)]
pub(crate) struct Meter {
    files: usize,
    until: Instant,
}

impl Meter {
    pub(crate) fn new() -> Self {
        Self { files: 0, until: monotonic_now() + MOST_TIME }
    }

    /// Bytes on the disk, and whether all was looked at. Links are not followed, other file systems
    /// not entered; a file with several names counts once.
    pub(crate) fn measure(&mut self, path: &Path) -> (u64, bool) {
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let Ok(dir) = Dir::open(path, flags, Mode::empty()) else { return (0, false) };
        let Ok(stat) = fstat(dir.as_fd()) else { return (0, false) };
        let mut bytes = on_disk(&stat);
        let mut linked = HashSet::new();
        let complete = self.enter(dir, stat.st_dev, 1, &mut linked, &mut bytes);
        (bytes, complete)
    }

    fn enter(
        &mut self,
        mut dir: Dir,
        device: nix::libc::dev_t,
        level: usize,
        linked: &mut HashSet<nix::libc::ino_t>,
        bytes: &mut u64,
    ) -> bool {
        let mut complete = true;
        let mut below = Vec::new();
        for entry in dir.iter() {
            let Ok(entry) = entry else { return false };
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            self.files += 1;
            if self.files > MOST_FILES
                || (self.files.is_multiple_of(256) && monotonic_now() > self.until)
            {
                return false;
            }
            below.push(name.to_owned());
        }
        for name in below {
            // What is gone meanwhile takes no room.
            let Ok(stat) = fstatat(dir.as_fd(), name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW)
            else {
                continue;
            };
            let kind = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
            if stat.st_dev != device {
                continue;
            }
            if kind == SFlag::S_IFDIR {
                *bytes += on_disk(&stat);
                let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                if level >= MOST_LEVELS {
                    complete = false;
                } else if let Ok(dir) = Dir::openat(&dir, name.as_c_str(), flags, Mode::empty()) {
                    complete &= self.enter(dir, device, level + 1, linked, bytes);
                }
            } else if stat.st_nlink < 2 || linked.insert(stat.st_ino) {
                *bytes += on_disk(&stat);
            }
            if self.files > MOST_FILES || monotonic_now() > self.until {
                return false;
            }
        }
        complete
    }
}

fn on_disk(stat: &nix::sys::stat::FileStat) -> u64 {
    // In units of 512 bytes, whatever the file system's block size is (stat(2)).
    u64::try_from(stat.st_blocks).unwrap_or(0) * 512
}
