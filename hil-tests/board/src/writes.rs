//! Crash points: the data disk as it was after any flush. In: a log of all writes, as QEMU's
//! `blklogwrites` driver keeps it. Out: the disk as of the Nth flush, alone or with some of the
//! writes that came after it, in any order, as a disk with a cache may leave them.
//!
//! The format is that of the kernel's dm-log-writes (Documentation/admin-guide/device-mapper/
//! log-writes.rst): a superblock, then for each write a sector with its place and flags, and the
//! data.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context as _, ensure};
use coracle_testbed::Result;

const MAGIC: u64 = 0x006a_7366_7773_6872;
const VERSION: u64 = 1;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;

#[derive(Debug, Clone, Copy)]
struct Entry {
    /// Where on the disk, and how many sectors.
    sector: u64,
    count: u64,
    flags: u64,
    /// Where its data is in the log, in bytes.
    data: u64,
}

/// All writes of one boot.
#[derive(Debug)]
pub struct WriteLog {
    file: File,
    sector_size: u64,
    entries: Vec<Entry>,
}

impl WriteLog {
    /// Reads a log, up to where a power cut ended it.
    pub fn read(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        let length = file.metadata()?.len();
        let mut head = [0; 28];
        file.read_exact_at(&mut head, 0).context("a log of writes without a superblock")?;
        let word = |bytes: &[u8], at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(word)
        };
        ensure!(word(&head, 0) == MAGIC && word(&head, 8) == VERSION, "no log of writes");
        let mut size = [0; 4];
        size.copy_from_slice(&head[24..28]);
        let sector_size = u64::from(u32::from_le_bytes(size));
        ensure!(sector_size >= 512, "a log with sectors of {sector_size} bytes");
        // The superblock's count is behind; the log itself tells where it ends.
        let mut entries = Vec::new();
        let mut at = sector_size;
        loop {
            let mut bytes = [0; 32];
            if at + sector_size > length || file.read_exact_at(&mut bytes, at).is_err() {
                break;
            }
            let (sector, count, flags) = (word(&bytes, 0), word(&bytes, 8), word(&bytes, 16));
            let data = at + sector_size;
            let stored = if flags & DISCARD == 0 { count * sector_size } else { 0 };
            let empty = count == 0 && flags == 0;
            if empty || flags > 15 || data.checked_add(stored).is_none_or(|end| end > length) {
                break;
            }
            entries.push(Entry { sector, count, flags, data });
            at = data + stored;
        }
        Ok(Self { file, sector_size, entries })
    }

    /// How many writes there were.
    pub fn writes(&self) -> usize {
        self.entries.iter().filter(|entry| entry.count > 0).count()
    }

    /// How many times the disk was told to keep what it has: the crash points.
    pub fn flushes(&self) -> usize {
        self.entries.iter().filter(|entry| entry.flags & FLUSH != 0).count()
    }

    /// Makes of `disk`, which is as it was when the log began, what it is certain to hold after
    /// `flushes` flushes; and with a seed, also each of the writes before the next flush with even
    /// odds, whole sectors of it.
    pub fn replay(&self, disk: &Path, flushes: usize, seed: Option<u64>) -> Result<()> {
        let disk = OpenOptions::new().read(true).write(true).open(disk)?;
        let mut seen = 0;
        let mut chance = seed.unwrap_or_default() | 1;
        for entry in &self.entries {
            // A flush keeps what came before it; its own data is written after that.
            if entry.flags & FLUSH != 0 {
                seen += 1;
            }
            if seen > flushes {
                break;
            }
            let certain = seen < flushes || (seen == flushes && entry.flags & FLUSH != 0);
            if certain {
                self.write(&disk, entry, |_| true)?;
            } else if seed.is_some() {
                let whole = entry.flags & FUA != 0;
                self.write(&disk, entry, |_| {
                    // xorshift64
                    chance ^= chance << 13;
                    chance ^= chance >> 7;
                    chance ^= chance << 17;
                    whole || chance & 1 == 1
                })?;
            }
        }
        ensure!(seen >= flushes, "the log has {seen} flushes only");
        Ok(disk.sync_data()?)
    }

    fn write(&self, disk: &File, entry: &Entry, mut kept: impl FnMut(u64) -> bool) -> Result<()> {
        let mut sector = vec![0; usize::try_from(self.sector_size)?];
        for number in 0..entry.count {
            if !kept(number) {
                continue;
            }
            if entry.flags & DISCARD == 0 {
                self.file.read_exact_at(&mut sector, entry.data + number * self.sector_size)?;
            }
            disk.write_all_at(&sector, (entry.sector + number) * self.sector_size)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A log with writes of one sector: (sector, byte, flags).
    fn log(writes: &[(u64, u8, u64)], cut: usize) -> (std::path::PathBuf, WriteLog) {
        let dir = std::env::temp_dir().join(format!(
            "coracle-writes-{}-{cut}-{}",
            std::process::id(),
            writes.len()
        ));
        std::fs::create_dir_all(&dir).unwrap();
        let mut bytes = Vec::new();
        for word in [MAGIC, VERSION, 0] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(&512_u32.to_le_bytes());
        bytes.resize(512, 0);
        for (sector, byte, flags) in writes {
            let start = bytes.len();
            let count = u64::from(*byte != 0);
            for word in [*sector, count, *flags, 0] {
                bytes.extend_from_slice(&word.to_le_bytes());
            }
            bytes.resize(start + 512, 0);
            bytes.resize(start + 512 + 512 * count as usize, *byte);
        }
        bytes.truncate(bytes.len() - cut);
        std::fs::write(dir.join("log"), &bytes).unwrap();
        std::fs::write(dir.join("disk"), vec![0; 4096]).unwrap();
        let log = WriteLog::read(&dir.join("log")).unwrap();
        (dir, log)
    }

    fn disk_after(writes: &[(u64, u8, u64)], flushes: usize, seed: Option<u64>) -> Vec<u8> {
        let (dir, log) = log(writes, 0);
        std::fs::write(dir.join("disk"), vec![0; 4096]).unwrap();
        log.replay(&dir.join("disk"), flushes, seed).unwrap();
        let bytes = std::fs::read(dir.join("disk")).unwrap();
        std::fs::remove_dir_all(dir).unwrap();
        bytes.iter().step_by(512).copied().collect()
    }

    #[test]
    fn a_disk_holds_what_came_before_the_flush_and_perhaps_more() {
        let writes = [(0, 1, 0), (1, 2, 0), (0, 0, FLUSH), (0, 3, 0), (2, 4, 0), (0, 0, FLUSH)];
        assert_eq!(disk_after(&writes, 0, None), [0; 8]);
        assert_eq!(disk_after(&writes, 1, None), [1, 2, 0, 0, 0, 0, 0, 0]);
        assert_eq!(disk_after(&writes, 2, None), [3, 2, 4, 0, 0, 0, 0, 0]);
        let mut seen = std::collections::BTreeSet::new();
        for seed in 1..200 {
            let disk = disk_after(&writes, 1, Some(seed * 7919));
            assert!(matches!(disk[..3], [1 | 3, 2, 0 | 4]), "{disk:?}");
            seen.insert(disk);
        }
        assert_eq!(seen.len(), 4);
    }

    #[test]
    fn a_log_ends_where_the_power_cut_ended_it() {
        let (dir, log) = log(&[(0, 1, 0), (0, 0, FLUSH), (1, 2, 0)], 100);
        assert_eq!((log.writes(), log.flushes()), (1, 1));
        std::fs::remove_dir_all(dir).unwrap();
    }
}
