//! What kind of file system something is on.

use nix::sys::statfs::{FsType, TMPFS_MAGIC};

/// ramfs (<https://man7.org/linux/man-pages/man2/statfs.2.html>); nix does not name it.
const RAMFS_MAGIC: u32 = 0x8584_58f6;

/// Whether what is written there is in memory, and gone with the next boot.
pub fn is_memory(kind: FsType) -> bool {
    // The kernel's type for it has 32 bits with a sign on 32-bit systems.
    kind == TMPFS_MAGIC || kind.0 as u32 == RAMFS_MAGIC
}
