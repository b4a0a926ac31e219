//! Reads a file of a container's root file system without mounting it, from the mounts that the
//! snapshotter gives: the layers of an overlay, or one directory.
//!
//! Every path is walked one component at a time, below the layer's directory and through no
//! symbolic link of the layer itself, so a hostile image cannot lead outside. Links are followed
//! here, across layers. Deliberately not here: opaque directories (a file that a later layer hid by
//! replacing its whole directory is still found).

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Component, Path, PathBuf};

use containerd_client::types::Mount;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2, readlinkat};

/// Largest file that is read.
const SIZE_LIMIT: u64 = 1024 * 1024;

/// Most symbolic links on one way, as the kernel has it.
const LINKS_LIMIT: usize = 40;

/// A root file system that is not mounted.
#[derive(Debug)]
pub(super) struct Layers {
    /// Topmost first.
    dirs: Vec<OwnedFd>,
}

enum Entry {
    Directory,
    File(OwnedFd),
    Link(OsString),
    Gone,
    Other,
}

impl Layers {
    /// Opens the layers that these mounts would put together.
    ///
    /// # Errors
    /// A layer's directory cannot be opened; the mounts are of a kind that is not known here.
    pub(super) fn open(mounts: &[Mount]) -> io::Result<Self> {
        let [mount] = mounts else {
            return Err(io::Error::other("the snapshotter gave more than one mount"));
        };
        let option = |name: &str| mount.options.iter().find_map(|option| option.strip_prefix(name));
        let dirs: Vec<&str> = match mount.r#type.as_str() {
            "overlay" => {
                let upper = option("upperdir=").into_iter();
                upper.chain(option("lowerdir=").unwrap_or_default().split(':')).collect()
            }
            "bind" | "rbind" => vec![&mount.source],
            _ => return Err(io::Error::other("the snapshotter gave a mount of an unknown kind")),
        };
        let open = |dir: &&str| File::open(dir).map(OwnedFd::from);
        Ok(Self { dirs: dirs.iter().map(open).collect::<io::Result<_>>()? })
    }

    /// The content of the file at this absolute path; `None` if there is none.
    ///
    /// # Errors
    /// It is not a plain file, is larger than 1 MiB, is not UTF-8, or cannot be read.
    pub(super) fn read(&self, path: &str) -> io::Result<Option<String>> {
        let Some(file) = self.find(Path::new(path))? else { return Ok(None) };
        let mut text = String::new();
        File::from(file).take(SIZE_LIMIT + 1).read_to_string(&mut text)?;
        if text.len() as u64 > SIZE_LIMIT {
            return Err(io::Error::other("it is larger than 1 MiB"));
        }
        Ok(Some(text))
    }

    fn find(&self, path: &Path) -> io::Result<Option<OwnedFd>> {
        let mut at = PathBuf::new();
        let mut rest: VecDeque<OsString> = components(path);
        let mut links = 0;
        while let Some(name) = rest.pop_front() {
            if name == ".." {
                at.pop();
                continue;
            }
            match self.look_up(&at.join(&name))? {
                Entry::Directory => at.push(name),
                Entry::File(file) if rest.is_empty() => return Ok(Some(file)),
                Entry::Link(target) => {
                    links += 1;
                    if links > LINKS_LIMIT {
                        return Err(Errno::ELOOP.into());
                    }
                    let target = Path::new(&target);
                    if target.is_absolute() {
                        at.clear();
                    }
                    let mut way = components(target);
                    way.append(&mut rest);
                    rest = way;
                }
                Entry::Gone | Entry::File(_) => return Ok(None),
                Entry::Other => return Err(io::Error::other("it is not a plain file")),
            }
        }
        Err(Errno::EISDIR.into())
    }

    /// What the topmost layer that has the path (without links in it) has there.
    fn look_up(&self, path: &Path) -> io::Result<Entry> {
        let inside = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
        let open = |dir: &OwnedFd, flags| {
            let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            openat2(dir.as_fd(), path, OpenHow::new().flags(flags).resolve(inside))
        };
        for dir in &self.dirs {
            let found = match open(dir, OFlag::O_PATH) {
                Ok(found) => found,
                Err(Errno::ENOENT) => continue,
                // A part of the path is no directory in this layer, which hides those below.
                Err(Errno::ENOTDIR | Errno::ELOOP) => return Ok(Entry::Gone),
                Err(error) => return Err(error.into()),
            };
            // Not the C library's fstat: on 32-bit systems that fails on inode numbers over 32 bits,
            // which overlayfs and XFS have, and on times after 2038.
            let found = File::from(found);
            let metadata = found.metadata()?;
            let kind = metadata.file_type();
            return Ok(if kind.is_dir() {
                Entry::Directory
            } else if kind.is_symlink() {
                Entry::Link(readlinkat(&found, OsStr::from_bytes(b""))?)
            } else if kind.is_file() {
                Entry::File(open(dir, OFlag::O_RDONLY)?)
            } else if kind.is_char_device() && metadata.rdev() == 0 {
                Entry::Gone
            } else {
                Entry::Other
            });
        }
        Ok(Entry::Gone)
    }
}

fn components(path: &Path) -> VecDeque<OsString> {
    let parts = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    });
    parts.collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use nix::sys::stat::{Mode, SFlag, mknod};
    use tempfile::TempDir;

    use super::*;

    /// Three layers, top to bottom: `a`, `b`, `c`.
    struct Fixture(TempDir);

    impl Fixture {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            for layer in ["a", "b", "c"] {
                fs::create_dir_all(dir.path().join(layer).join("etc")).unwrap();
            }
            Self(dir)
        }

        fn path(&self, path: &str) -> PathBuf {
            self.0.path().join(path)
        }

        fn read(&self, path: &str) -> io::Result<Option<String>> {
            let dir = |layer| self.path(layer).to_str().unwrap().to_owned();
            let mount = Mount {
                r#type: "overlay".into(),
                source: "overlay".into(),
                options: vec![
                    "index=off".into(),
                    format!("upperdir={}", dir("a")),
                    format!("lowerdir={}:{}", dir("b"), dir("c")),
                ],
                ..Mount::default()
            };
            Layers::open(&[mount]).unwrap().read(path)
        }
    }

    #[test]
    fn the_topmost_layer_wins_and_a_whiteout_hides() {
        let layers = Fixture::new();
        fs::write(layers.path("c/etc/passwd"), "lower").unwrap();
        assert_eq!(layers.read("/etc/passwd").unwrap().unwrap(), "lower");
        fs::write(layers.path("b/etc/passwd"), "middle").unwrap();
        assert_eq!(layers.read("/etc/passwd").unwrap().unwrap(), "middle");
        mknod(&layers.path("a/etc/passwd"), SFlag::S_IFCHR, Mode::empty(), 0).unwrap();
        assert_eq!(layers.read("/etc/passwd").unwrap(), None);
        assert_eq!(layers.read("/etc/group").unwrap(), None);
    }

    #[test]
    fn links_are_followed_across_layers_and_never_outside() {
        let layers = Fixture::new();
        fs::create_dir_all(layers.path("c/usr/share")).unwrap();
        fs::write(layers.path("c/usr/share/users"), "far").unwrap();
        symlink("/usr/share/users", layers.path("b/etc/passwd")).unwrap();
        assert_eq!(layers.read("/etc/passwd").unwrap().unwrap(), "far");
        symlink("../../../../../../../usr/share/users", layers.path("a/etc/passwd")).unwrap();
        assert_eq!(layers.read("/etc/passwd").unwrap().unwrap(), "far");
        symlink(layers.path("outside"), layers.path("b/etc/group")).unwrap();
        fs::write(layers.path("outside"), "secret").unwrap();
        assert_eq!(layers.read("/etc/group").unwrap(), None);
        symlink("loop", layers.path("b/etc/loop")).unwrap();
        assert!(layers.read("/etc/loop").is_err());
        fs::create_dir(layers.path("outside-dir")).unwrap();
        fs::write(layers.path("outside-dir/passwd"), "secret").unwrap();
        symlink(layers.path("outside-dir"), layers.path("b/var")).unwrap();
        assert_eq!(layers.read("/var/passwd").unwrap(), None);
    }

    #[test]
    fn what_is_no_plain_file_or_too_large_is_refused() {
        let layers = Fixture::new();
        fs::write(layers.path("c/etc/big"), vec![b'x'; 1024 * 1024 + 1]).unwrap();
        assert!(layers.read("/etc/big").is_err());
        mknod(&layers.path("c/etc/fifo"), SFlag::S_IFIFO, Mode::S_IRUSR, 0).unwrap();
        assert!(layers.read("/etc/fifo").is_err());
        assert!(layers.read("/etc").is_err());
        assert_eq!(layers.read("/etc/big/passwd").unwrap(), None);
    }
}
