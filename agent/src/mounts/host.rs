//! Host paths: what is there, without surprises on the way.
//!
//! Policy judges the text of a path. So the text must be the path: no symbolic link on the way, and
//! none at its end. Between this look and the mount, whoever may write to a directory above could
//! still put a link there; policy must name only paths whose parents belong to root.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};

use super::error::{MountError, failed};

/// The path as ordered, once it is known to be what it says.
pub(super) fn resolve(text: &str) -> Result<PathBuf, MountError> {
    let path = Path::new(text);
    let plain = text.starts_with('/')
        && !text.contains('\0')
        && path.components().skip(1).all(|part| matches!(part, Component::Normal(_)))
        && path.components().collect::<PathBuf>().as_os_str() == text;
    if !plain {
        return Err(MountError::HostText { path: text.to_owned() });
    }
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    match openat2(AT_FDCWD, path, how) {
        Ok(_) => {}
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Err(no_path(text)),
        // Kernels before 5.6, and filters that do not know the call.
        Err(Errno::ELOOP | Errno::ENOSYS | Errno::EPERM) => {
            let leads_to = match fs::canonicalize(path) {
                Ok(leads_to) => leads_to,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    return Err(no_path(text));
                }
                Err(error) => return Err(failed("look at", path)(error)),
            };
            if leads_to != path {
                return Err(MountError::HostLink { path: text.to_owned(), leads_to });
            }
        }
        Err(error) => return Err(failed("look at", path)(error.into())),
    }
    let kind = fs::symlink_metadata(path).map_err(failed("look at", path))?.file_type();
    if kind.is_dir() || kind.is_file() || kind.is_socket() {
        Ok(path.to_owned())
    } else {
        Err(MountError::HostKind { path: text.to_owned() })
    }
}

fn no_path(text: &str) -> MountError {
    MountError::NoHostPath { path: text.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_what_a_path_says_is_mounted() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("real/inner")).unwrap();
        fs::write(root.join("real/file"), "x").unwrap();
        symlink("real", root.join("link")).unwrap();
        symlink("/proc/self/root", root.join("magic")).unwrap();
        symlink("nowhere", root.join("broken")).unwrap();
        nix::unistd::mkfifo(&root.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let at = |name: &str| resolve(&format!("{}/{name}", root.display()));
        assert_eq!(at("real/inner").unwrap(), root.join("real/inner"));
        assert_eq!(at("real/file").unwrap(), root.join("real/file"));
        assert_eq!(resolve("/").unwrap(), Path::new("/"));
        assert!(matches!(at("nowhere"), Err(MountError::NoHostPath { .. })));
        assert!(matches!(at("real/file/x"), Err(MountError::NoHostPath { .. })));
        assert!(matches!(at("broken"), Err(MountError::NoHostPath { .. })));
        assert!(matches!(at("fifo"), Err(MountError::HostKind { .. })));
        let error = at("link/inner").unwrap_err();
        let real = root.join("real/inner");
        assert!(
            matches!(&error, MountError::HostLink { leads_to, .. } if *leads_to == real),
            "{error}"
        );
        assert!(matches!(at("link"), Err(MountError::HostLink { .. })));
        assert!(matches!(at("magic/etc"), Err(MountError::HostLink { .. })));
        for bad in ["", "x", "./x", "/a/../b", "/a/./b", "/a//b", "/a/", "/a\0b"] {
            assert!(matches!(resolve(bad), Err(MountError::HostText { .. })), "{bad:?}");
        }
    }
}
