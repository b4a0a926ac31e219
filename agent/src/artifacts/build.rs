//! Building a tree where nobody else can reach it, below a directory that is held open.
//!
//! In: paths of a judged tree, and contents. Out: files that are made, never opened; no link is
//! followed. So nothing is written outside even if a rule that judged the names is wrong.

use std::fs::File;
use std::io::{self, Read, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{
    AtFlags, CWD, Gid, Mode, OFlags, Uid, chownat, fchmod, fchown, mkdirat, openat, symlinkat,
};

use super::entries::{Flaw, Node, Tree, shown};
use super::error::{ArtifactError, failed};
use super::zip::{Entry, Plan, flawed};
use crate::fault::fault_point;

/// Bytes that are written at once.
const PIECE: usize = 128 << 10;
pub(super) const DIRECTORY: OFlags =
    OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC).union(OFlags::RDONLY);
const NEW_FILE: OFlags = OFlags::WRONLY
    .union(OFlags::CREATE)
    .union(OFlags::EXCL)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Whose the files are, and what may be done with them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rights {
    /// User and group; those of the agent without.
    pub(super) owner: Option<(u32, u32)>,
    pub(super) directory: u32,
    pub(super) file: u32,
    pub(super) executable: u32,
}

/// Installed software is changed by nobody.
pub(super) const INSTALLED: Rights =
    Rights { owner: None, directory: 0o555, file: 0o444, executable: 0o555 };

impl Rights {
    /// What a service finds in its own directory is its own.
    pub(super) fn of_service(owner: (u32, u32)) -> Self {
        Self { owner: Some(owner), directory: 0o750, file: 0o640, executable: 0o750 }
    }
}

/// Says that nobody waits for work on another thread any more, when it is dropped.
#[derive(Debug, Default)]
pub(super) struct Waiting(Arc<AtomicBool>);

/// What the other thread looks at.
#[derive(Clone, Debug)]
pub(super) struct Stop(Arc<AtomicBool>);

impl Waiting {
    pub(super) fn stop(&self) -> Stop {
        Stop(self.0.clone())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Stop {
    pub(super) fn check(&self) -> Result<(), ArtifactError> {
        match self.0.load(Ordering::Relaxed) {
            true => Err(ArtifactError::GivenUp),
            false => Ok(()),
        }
    }
}

/// A tree that is being built.
pub(super) struct Build<'a> {
    top: PathBuf,
    root: OwnedFd,
    /// The directories down to the one that was written to last.
    open: Vec<(String, OwnedFd)>,
    rights: Rights,
    stop: &'a Stop,
    report: &'a dyn Fn(u64),
    written: u64,
    reported: u64,
}

impl<'a> Build<'a> {
    /// Below an empty directory. `report` is told how many bytes are written.
    pub(super) fn new(
        top: &Path,
        rights: Rights,
        stop: &'a Stop,
        report: &'a dyn Fn(u64),
    ) -> Result<Self, ArtifactError> {
        let root = openat(CWD, top, DIRECTORY, Mode::empty()).map_err(failed("open", top))?;
        let top = top.to_owned();
        Ok(Self { top, root, open: Vec::new(), rights, stop, report, written: 0, reported: 0 })
    }

    /// All of a tree: each directory, and what `make` makes of the rest.
    pub(super) fn all<T>(
        &mut self,
        tree: &Tree<T>,
        mut make: impl FnMut(&mut Self, &str, &T) -> Result<(), ArtifactError>,
    ) -> Result<(), ArtifactError> {
        for (path, node) in tree.iter() {
            self.stop.check()?;
            match node {
                Node::Directory { .. } => self.directory(path)?,
                Node::Other(other) => make(self, path, other)?,
            }
        }
        self.finish(tree.iter().filter_map(|(path, node)| match node {
            Node::Directory { .. } => Some(path),
            Node::Other(_) => None,
        }))
    }

    /// All of a ZIP.
    pub(super) fn unpack(&mut self, what: &str, plan: &Plan) -> Result<(), ArtifactError> {
        self.all(&plan.tree, |build, path, entry| match entry {
            Entry::Link { target } => build.link(path, target),
            Entry::File { at, deflated, executable } => {
                let damaged = |source| flawed(what)(Flaw::Damaged { name: shown(path), source });
                let mut content = plan.content(*at, *deflated).map_err(damaged)?;
                build.file(path, *executable, &mut content, damaged)?;
                fault_point("unpack.file_written");
                Ok(())
            }
        })
    }

    /// The directory above must be there.
    pub(super) fn directory(&mut self, path: &str) -> Result<(), ArtifactError> {
        let made = self.failed("make", path);
        let (parent, name) = self.parent(path)?;
        mkdirat(parent, name, Mode::from_raw_mode(0o700)).map_err(made)
    }

    pub(super) fn link(&mut self, path: &str, target: &str) -> Result<(), ArtifactError> {
        let made = self.failed("make", path);
        let owner = self.rights.owner;
        let (parent, name) = self.parent(path)?;
        symlinkat(target, parent, name).map_err(&made)?;
        if let Some((user, group)) = owner {
            let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            chownat(parent, name, Some(user), Some(group), flags).map_err(made)?;
        }
        Ok(())
    }

    /// `damaged`: what it means that the content cannot be read.
    pub(super) fn file(
        &mut self,
        path: &str,
        executable: bool,
        content: &mut dyn Read,
        damaged: impl Fn(io::Error) -> ArtifactError,
    ) -> Result<(), ArtifactError> {
        let failed = self.failed("write", path);
        let full = self.top.join(path);
        let rights = self.rights;
        let (parent, name) = self.parent(path)?;
        let file = openat(parent, name, NEW_FILE, Mode::from_raw_mode(0o600));
        let mut file = File::from(file.map_err(&failed)?);
        let mut piece = vec![0; PIECE];
        loop {
            self.stop.check()?;
            match content.read(&mut piece) {
                Ok(0) => break,
                Ok(length) => {
                    file.write_all(&piece[..length])
                        .map_err(super::error::failed("write", &full))?;
                    self.wrote(length);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(damaged(error)),
            }
        }
        let mode = if executable { rights.executable } else { rights.file };
        own(&file, rights.owner, mode).map_err(failed)
    }

    /// Gives directories their rights, once nothing more is made in them; the top one as well.
    pub(super) fn finish<'p>(
        &mut self,
        directories: impl DoubleEndedIterator<Item = &'p str>,
    ) -> Result<(), ArtifactError> {
        let Rights { owner, directory, .. } = self.rights;
        for path in directories.rev() {
            let failed = self.failed("close", path);
            let (parent, name) = self.parent(path)?;
            let opened = openat(parent, name, DIRECTORY, Mode::empty());
            opened.and_then(|opened| own(&opened, owner, directory)).map_err(failed)?;
        }
        own(&self.root, owner, directory).map_err(failed("close", &self.top))
    }

    fn wrote(&mut self, length: usize) {
        self.written += length as u64;
        if self.written - self.reported >= 1 << 20 {
            self.reported = self.written;
            (self.report)(self.written);
        }
    }

    /// The open directory that a path is in, and its name there.
    fn parent<'p>(&mut self, path: &'p str) -> Result<(&OwnedFd, &'p str), ArtifactError> {
        let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
        let parts: Vec<&str> = above.split('/').filter(|part| !part.is_empty()).collect();
        let same = self.open.iter().zip(&parts).take_while(|((open, _), part)| open == *part);
        let same = same.count();
        self.open.truncate(same);
        for part in &parts[same..] {
            let failed = self.failed("open", above);
            let within = self.open.last().map_or(&self.root, |(_, directory)| directory);
            let opened = openat(within, *part, DIRECTORY, Mode::empty()).map_err(failed)?;
            self.open.push(((*part).to_owned(), opened));
        }
        Ok((self.open.last().map_or(&self.root, |(_, directory)| directory), name))
    }

    fn failed(
        &self,
        action: &'static str,
        path: &str,
    ) -> impl Fn(rustix::io::Errno) -> ArtifactError + use<> {
        failed(action, &self.top.join(path))
    }
}

/// The owner first: a change of it takes rights away.
pub(super) fn own(
    file: impl std::os::fd::AsFd,
    owner: Option<(u32, u32)>,
    mode: u32,
) -> rustix::io::Result<()> {
    if let Some((user, group)) = owner {
        fchown(&file, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)))?;
    }
    fchmod(&file, Mode::from_raw_mode(mode))
}
