//! Putting things into a runtime directory, which may be full of traps: the service may have put
//! links and whatever else there, and the agent is root.
//!
//! In: sources. Out: what they hold is built beside, where the service cannot reach it, and then
//! moved in by renames, below directories that are opened without following a link. So a file is
//! seen whole or not at all, and nothing is written through a name of the service.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use coracle_core::artifact::ArtifactId;
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, RenameFlags, Stat, fstat, openat, readlinkat,
    renameat, renameat_with, statat, unlinkat,
};
use rustix::io::Errno;

use super::build::{Build, DIRECTORY, Rights, Stop};
use super::entries::{Flaw, Node, RESERVED, Tree, path as checked};
use super::error::{ArtifactError, failed};
use super::partial::Partial;
use super::zip::{flawed, plan};
use crate::config::ArtifactLimits;
use crate::fault::fault_point;

/// A tree that is built beside a runtime directory.
pub(super) struct Stage<'a> {
    /// An empty directory for root alone.
    pub(super) top: &'a Path,
    pub(super) rights: Rights,
    pub(super) limits: &'a ArtifactLimits,
    pub(super) stop: &'a Stop,
}

/// What is copied from an installed artifact.
enum Copied {
    File { source: PathBuf, executable: bool },
    Link { target: String },
}

impl Stage<'_> {
    /// Files with these contents, in `to`.
    pub(super) fn texts(
        &self,
        to: &str,
        files: &BTreeMap<String, String>,
    ) -> Result<(), ArtifactError> {
        let mut tree = self.tree(to)?;
        for (name, text) in files {
            let path = file_path(name)?;
            tree.add(&joined(to, path), Node::Other(text)).map_err(misplaced(name))?;
        }
        let mut build = self.build()?;
        build.all(&tree, |build, path, text| {
            build.file(path, false, &mut text.as_bytes(), failed("read", Path::new(path)))
        })
    }

    /// What was downloaded, as the file `to`.
    pub(super) fn file(&self, to: &str, fetched: &Partial) -> Result<(), ArtifactError> {
        let mut tree = Tree::new(self.limits.entries);
        tree.add(file_path(to)?, Node::Other(())).map_err(misplaced(to))?;
        fetched.require_room(self.top, fetched.length)?;
        let mut content = fetched.reader()?;
        self.build()?.all(&tree, |build, path, ()| {
            build.file(path, false, &mut content, failed("read", Path::new(path)))
        })
    }

    /// What is in a ZIP that was downloaded, in `to`.
    pub(super) fn archive(
        &self,
        to: &str,
        what: &str,
        fetched: &Partial,
    ) -> Result<(), ArtifactError> {
        let plan = plan(fetched.file()?, self.limits, false).map_err(flawed(what))?;
        fetched.require_room(self.top, plan.on_disk)?;
        let above = self.tree::<()>(to)?;
        self.build()?.all(&above, |_, _, ()| Ok(()))?;
        let top = self.top.join(to);
        Build::new(&top, self.rights, self.stop, &|_| ())?.unpack(what, &plan)
    }

    /// A file of an installed artifact as `to`, or what is in one of its directories in `to`.
    pub(super) fn copy(
        &self,
        to: &str,
        artifact: &ArtifactId,
        dir: &Path,
        path: &str,
    ) -> Result<(), ArtifactError> {
        let missing =
            || ArtifactError::NoSource { artifact: artifact.clone(), path: path.to_owned() };
        let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
        let parts = if path.is_empty() { None } else { Some((above, name)) };
        let root = openat(CWD, dir, DIRECTORY, Mode::empty()).map_err(|_| missing())?;
        let mut tree = Tree::new(self.limits.entries);
        match parts {
            None => {
                tree = self.tree(to)?;
                self.collect(&mut tree, to, &root, dir)?;
            }
            Some((above, name)) => {
                let parent = walk(&root, above).map_err(|_| missing())?;
                let stat = statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW);
                let stat = stat.map_err(|_| missing())?;
                match kind(&stat) {
                    FileType::Directory => {
                        let opened = openat(&parent, name, DIRECTORY, Mode::empty());
                        tree = self.tree(to)?;
                        let opened = opened.map_err(|_| missing())?;
                        self.collect(&mut tree, to, &opened, &dir.join(path))?;
                    }
                    FileType::RegularFile => {
                        let file = copied(&stat, dir.join(path));
                        tree.add(file_path(to)?, Node::Other(file)).map_err(misplaced(to))?;
                    }
                    _ => return Err(missing()),
                }
            }
        }
        tree.check_links(|copied| match copied {
            Copied::Link { target } => Some(target),
            Copied::File { .. } => None,
        })
        .map_err(misplaced(&format!("{path:?} of artifact {artifact}")))?;
        self.build()?.all(&tree, |build, path, copied| match copied {
            Copied::Link { target } => build.link(path, target),
            Copied::File { source, executable } => {
                let read = failed("read", source);
                let mut content = File::open(source).map_err(&read)?;
                build.file(path, *executable, &mut content, read)
            }
        })
    }

    fn collect(
        &self,
        tree: &mut Tree<Copied>,
        to: &str,
        dir: &OwnedFd,
        source: &Path,
    ) -> Result<(), ArtifactError> {
        let read = failed("read", source);
        for name in names(dir).map_err(&read)? {
            if name.starts_with(RESERVED) {
                continue;
            }
            let (path, source) = (joined(to, &name), source.join(&name));
            let stat = statat(dir, &*name, AtFlags::SYMLINK_NOFOLLOW).map_err(&read)?;
            let node = match kind(&stat) {
                FileType::Directory => Node::Directory { named: true },
                FileType::Symlink => {
                    let target = readlinkat(dir, &*name, Vec::new()).map_err(&read)?;
                    Node::Other(Copied::Link { target: target.to_string_lossy().into_owned() })
                }
                _ => Node::Other(copied(&stat, source.clone())),
            };
            let is_directory = matches!(node, Node::Directory { .. });
            tree.add(&path, node).map_err(misplaced(&path))?;
            if is_directory {
                let below = openat(dir, &*name, DIRECTORY, Mode::empty()).map_err(&read)?;
                self.collect(tree, &path, &below, &source)?;
            }
        }
        Ok(())
    }

    /// With the directory `to` and those above it.
    fn tree<T>(&self, to: &str) -> Result<Tree<T>, ArtifactError> {
        let mut tree = Tree::new(self.limits.entries);
        if !to.is_empty() {
            let (path, _) = checked(to.as_bytes()).map_err(misplaced(to))?;
            tree.add(path, Node::Directory { named: true }).map_err(misplaced(to))?;
        }
        Ok(tree)
    }

    fn build(&self) -> Result<Build<'_>, ArtifactError> {
        Build::new(self.top, self.rights, self.stop, &|_| ())
    }
}

/// Moves what was built to where the service finds it. What is there is left alone, or replaced if
/// `overwrite`: files by files, never a directory.
pub(super) fn move_in(
    stage: &Path,
    runtime_dir: &Path,
    overwrite: bool,
) -> Result<(), ArtifactError> {
    let open = |dir: &Path| openat(CWD, dir, DIRECTORY, Mode::empty()).map_err(failed("open", dir));
    Moving { overwrite }.merge(&open(stage)?, &open(runtime_dir)?, runtime_dir)
}

struct Moving {
    overwrite: bool,
}

impl Moving {
    fn merge(&self, from: &OwnedFd, to: &OwnedFd, at: &Path) -> Result<(), ArtifactError> {
        for name in names(from).map_err(failed("read", at))? {
            let at = at.join(&name);
            match renameat_with(from, &*name, to, &*name, RenameFlags::NOREPLACE) {
                Ok(()) => {}
                Err(Errno::EXIST) => self.meet(from, to, &name, &at)?,
                Err(error) => return Err(failed("fill", &at)(error)),
            }
            fault_point("fill.moved");
        }
        Ok(())
    }

    /// Something has the name already.
    fn meet(
        &self,
        from: &OwnedFd,
        to: &OwnedFd,
        name: &str,
        at: &Path,
    ) -> Result<(), ArtifactError> {
        let fill = failed("fill", at);
        let is_directory = |dir: &OwnedFd| {
            let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW);
            stat.map(|stat| kind(&stat) == FileType::Directory).map_err(&fill)
        };
        match (is_directory(from)?, is_directory(to)?) {
            (true, true) => {
                let open = |dir: &OwnedFd| openat(dir, name, DIRECTORY, Mode::empty());
                let (from, to) = (open(from).map_err(&fill)?, open(to).map_err(&fill)?);
                self.merge(&from, &to, at)
            }
            _ if !self.overwrite => Ok(()),
            (false, true) => Err(ArtifactError::InTheWay {
                path: at.to_owned(),
                found: "a directory",
                wanted: "a file",
            }),
            (true, false) => unlinkat(to, name, AtFlags::empty())
                .and_then(|()| renameat_with(from, name, to, name, RenameFlags::NOREPLACE))
                .map_err(fill),
            (false, false) => renameat(from, name, to, name).map_err(fill),
        }
    }
}

/// A directory below another, without following a link.
fn walk(root: &OwnedFd, path: &str) -> io::Result<OwnedFd> {
    let mut at = root.try_clone()?;
    for part in path.split('/').filter(|part| !part.is_empty()) {
        at = openat(&at, part, DIRECTORY, Mode::empty())?;
    }
    Ok(at)
}

/// Names in a directory that are UTF-8: others are not the agent's.
fn names(dir: &OwnedFd) -> rustix::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_str().ok().filter(|name| !matches!(*name, "." | ".."));
        names.extend(name.map(str::to_owned));
    }
    names.sort_unstable();
    Ok(names)
}

fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

fn copied(stat: &Stat, source: PathBuf) -> Copied {
    Copied::File { source, executable: stat.st_mode & 0o111 != 0 }
}

fn joined(to: &str, path: &str) -> String {
    if to.is_empty() { path.to_owned() } else { format!("{to}/{path}") }
}

fn file_path(name: &str) -> Result<&str, ArtifactError> {
    let (path, is_directory) = checked(name.as_bytes()).map_err(misplaced(name))?;
    if is_directory {
        let flaw = Flaw::Kind { name: name.to_owned(), what: "a directory by its name" };
        return Err(misplaced(name)(flaw));
    }
    Ok(path)
}

fn misplaced(what: &str) -> impl FnOnce(Flaw) -> ArtifactError + use<> {
    let what = format!("{what:?}");
    move |flaw| ArtifactError::Place { what, flaw: Box::new(flaw) }
}

/// Makes a directory's owner and mode what they are to be, if it is a directory.
pub(super) fn settle(dir: &Path, owner: (u32, u32), mode: u32) -> Result<(), ArtifactError> {
    let close = failed("close", dir);
    let opened = match openat(CWD, dir, DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(opened) => opened,
        Err(Errno::NOTDIR | Errno::LOOP) => {
            return Err(ArtifactError::InTheWay {
                path: dir.to_owned(),
                found: "no directory",
                wanted: "a runtime directory",
            });
        }
        Err(error) => return Err(close(error)),
    };
    let stat = fstat(opened.as_fd()).map_err(&close)?;
    if (stat.st_uid, stat.st_gid) != owner || stat.st_mode & 0o7777 != mode {
        super::build::own(&opened, Some(owner), mode).map_err(close)?;
    }
    Ok(())
}
