//! Whether what is kept is kept: the file system of the state directory.

use std::path::{Path, PathBuf};

use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, statfs};
use nix::sys::statvfs::{FsFlags, statvfs};

use super::Finding;
use crate::file_system::is_memory;

const NAME: &str = "data";
/// With less than that, in bytes, an order may find no place.
const LITTLE: u64 = 1024 * 1024;

#[allow(clippy::useless_conversion, reason = "the counts have 32 bits on 32-bit systems")]
pub(super) fn look(state_dir: &Path) -> Finding {
    let place = state_dir.display();
    // Where it is not there yet, it will be made in its nearest ancestor.
    let seen = state_dir
        .ancestors()
        .find_map(|dir| Some((statfs(dir).ok()?.filesystem_type(), statvfs(dir).ok()?)));
    let Some((kind, usage)) = seen else {
        return Finding::bad(NAME, "unknown", format!("cannot tell where {place} is"));
    };
    let is_partition_there = "is the data partition there?";
    if usage.flags().contains(FsFlags::ST_RDONLY) {
        let message = format!(
            "{place} is on a read-only file system: what is ordered now is lost at the next \
             boot; {is_partition_there}"
        );
        return Finding::bad(NAME, "read-only", message);
    }
    if is_memory(kind) || (kind == OVERLAYFS_SUPER_MAGIC && upper_is_in_memory(state_dir)) {
        let message = format!(
            "{place} is in memory: orders and images are lost at the next boot; \
             {is_partition_there}"
        );
        return Finding::bad(NAME, "volatile", message);
    }
    let free = u64::from(usage.blocks_available()) * u64::from(usage.fragment_size());
    if free < LITTLE {
        let message = format!("the file system of {place} is full: {free} bytes are left");
        return Finding::bad(NAME, "full", message);
    }
    // No figures: each change of a condition is reported.
    Finding::good(NAME, "writable", format!("{place} keeps what is written"))
}

/// The directory for what must not survive a reboot.
pub(super) fn look_runtime(runtime_dir: &Path) -> Finding {
    const NAME: &str = "runtime-dir";
    let place = runtime_dir.display();
    let kind = runtime_dir.ancestors().find_map(|dir| Some(statfs(dir).ok()?.filesystem_type()));
    match kind {
        Some(kind) if is_memory(kind) => {
            Finding::good(NAME, "in-memory", format!("{place} is in memory"))
        }
        _ => {
            let message = format!(
                "{place} is not in memory: workloads with secrets are not started, because they \
                 would reach a disk; mount a tmpfs there"
            );
            Finding::bad(NAME, "on-disk", message)
        }
    }
}

/// Whether what is written to the overlay that `dir` is on ends in memory, as it does with the
/// writable layers over a read-only root.
fn upper_is_in_memory(dir: &Path) -> bool {
    let Ok(mounts) = std::fs::read_to_string("/proc/self/mountinfo") else { return false };
    let upper = upper_directory(&mounts, dir);
    upper.and_then(|upper| statfs(&upper).ok()).is_some_and(|fs| is_memory(fs.filesystem_type()))
}

/// Directory that takes the writes of the overlay `dir` is on
/// (<https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html>). The last of the deepest
/// mounts is the one that is seen.
fn upper_directory(mounts: &str, dir: &Path) -> Option<PathBuf> {
    let over = mounts.lines().filter_map(|line| {
        let (head, tail) = line.split_once(" - ")?;
        let point = Path::new(head.split(' ').nth(4)?);
        dir.starts_with(point).then_some((point.components().count(), tail))
    });
    let (_, tail) = over.max_by_key(|(depth, _)| *depth)?;
    let (_, options) = tail.rsplit_once(' ')?;
    options.split(',').find_map(|option| option.strip_prefix("upperdir=")).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_upper_directory_of_the_deepest_overlay_counts() {
        let mounts = "20 1 8:1 / / ro - ext4 /dev/root ro\n\
            30 20 0:30 / /var/lib rw shared:7 - overlay o rw,lowerdir=/l,upperdir=/run/u,workdir=/w\n\
            31 20 0:31 / /var rw - tmpfs tmpfs rw\n";
        let upper = |dir: &str| upper_directory(mounts, Path::new(dir));
        assert_eq!(upper("/var/lib/coracle"), Some("/run/u".into()));
        assert_eq!(upper("/var/log"), None);
        assert_eq!(upper("/etc"), None);
    }

    #[test]
    fn memory_is_not_durable() {
        assert_eq!(look(Path::new("/dev/shm/coracle/state")).reason, "volatile");
    }
}
