//! One layer. In: files, directories, links, deletions. Out: a reproducible tar (POSIX ustar;
//! entries sorted, modification time 0), compressed or not.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, ensure};
use flate2::write::GzEncoder;

use crate::Result;

/// How a layer travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// gzip.
    Gzip,
    /// A Zstandard frame, of stored blocks.
    Zstd,
    /// None.
    Plain,
}

impl Compression {
    /// The layer's media type.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
            Self::Plain => "application/vnd.oci.image.layer.v1.tar",
        }
    }

    pub(super) fn apply(self, tar: Vec<u8>) -> Result<Vec<u8>> {
        match self {
            Self::Plain => Ok(tar),
            Self::Zstd => Ok(zstd_frame(&tar)),
            Self::Gzip => {
                let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(&tar)?;
                Ok(encoder.finish()?)
            }
        }
    }
}

/// A valid frame of raw blocks (RFC 8878, 3.1.1): it is the reader that is under test.
fn zstd_frame(bytes: &[u8]) -> Vec<u8> {
    const BLOCK: usize = 128 * 1024;
    // Magic number; no content size, no checksum; a window of 2^(10+7) bytes.
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 7 << 3];
    let count = bytes.len().div_ceil(BLOCK).max(1);
    for number in 0..count {
        let block = &bytes[number * BLOCK..bytes.len().min((number + 1) * BLOCK)];
        let last = u32::from(number + 1 == count);
        let header = (block.len() as u32) << 3 | last;
        frame.extend_from_slice(&header.to_le_bytes()[..3]);
        frame.extend_from_slice(block);
    }
    frame
}

#[derive(Debug, Clone)]
enum Kind {
    Dir,
    File(Vec<u8>),
    Symlink(String),
    Hardlink(String),
}

#[derive(Debug, Clone)]
struct Entry {
    kind: Kind,
    mode: u32,
    owner: (u32, u32),
}

/// What a layer adds to those below. Paths are absolute inside the image; missing parent
/// directories are made with mode 0755.
#[derive(Debug, Clone, Default)]
pub struct Layer {
    entries: BTreeMap<String, Entry>,
}

impl Layer {
    /// An empty layer.
    pub fn new() -> Self {
        Self::default()
    }

    /// A directory.
    pub fn dir(self, path: &str, mode: u32) -> Self {
        self.add(path, Kind::Dir, mode)
    }

    /// A regular file.
    pub fn file(self, path: &str, mode: u32, content: &[u8]) -> Self {
        self.add(path, Kind::File(content.to_vec()), mode)
    }

    /// A regular file with the content and mode of one of the host's, links followed.
    pub fn host_file(self, path: &str, source: &Path) -> Result<Self> {
        use std::os::unix::fs::PermissionsExt as _;
        let read = || -> std::io::Result<(Vec<u8>, u32)> {
            Ok((std::fs::read(source)?, std::fs::metadata(source)?.permissions().mode() & 0o777))
        };
        let (content, mode) =
            read().with_context(|| format!("cannot read {}", source.display()))?;
        Ok(self.add(path, Kind::File(content), mode))
    }

    /// A symbolic link.
    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.add(path, Kind::Symlink(target.to_owned()), 0o777)
    }

    /// A hard link to a file of this layer.
    pub fn hardlink(self, path: &str, target: &str) -> Self {
        self.add(path, Kind::Hardlink(clean(target)), 0o755)
    }

    /// Deletes what lower layers have at that path (image-spec, layer.md, "Whiteouts").
    pub fn whiteout(self, path: &str) -> Self {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        self.add(&format!("{dir}/.wh.{name}"), Kind::File(Vec::new()), 0o644)
    }

    /// Hides everything that lower layers have in that directory.
    pub fn opaque(self, dir: &str) -> Self {
        let path = format!("{}/.wh..wh..opq", dir.trim_end_matches('/'));
        self.add(&path, Kind::File(Vec::new()), 0o644)
    }

    /// Gives an entry added before to a user and group.
    pub fn owned_by(mut self, path: &str, uid: u32, gid: u32) -> Self {
        if let Some(entry) = self.entries.get_mut(&clean(path)) {
            entry.owner = (uid, gid);
        }
        self
    }

    fn add(mut self, path: &str, kind: Kind, mode: u32) -> Self {
        let path = clean(path);
        let mut parent = path.as_str();
        while let Some((dir, _)) = parent.rsplit_once('/') {
            let made = Entry { kind: Kind::Dir, mode: 0o755, owner: (0, 0) };
            self.entries.entry(dir.to_owned()).or_insert(made);
            parent = dir;
        }
        self.entries.insert(path, Entry { kind, mode, owner: (0, 0) });
        self
    }

    /// The tar, uncompressed.
    pub fn tar(&self) -> Result<Vec<u8>> {
        let mut tar = Vec::new();
        // Hard links after what they point to.
        let late = |entry: &Entry| matches!(entry.kind, Kind::Hardlink(_));
        let (links, others): (Vec<_>, Vec<_>) = self.entries.iter().partition(|(_, e)| late(e));
        for (path, entry) in others.into_iter().chain(links) {
            write_entry(&mut tar, path, entry).with_context(|| format!("cannot tar {path}"))?;
        }
        tar.resize(tar.len() + 1024, 0);
        Ok(tar)
    }
}

fn clean(path: &str) -> String {
    path.trim_matches('/').to_owned()
}

fn write_entry(tar: &mut Vec<u8>, path: &str, entry: &Entry) -> Result<()> {
    let none: &[u8] = &[];
    let (kind, content, link, ending) = match &entry.kind {
        Kind::Dir => (b'5', none, "", "/"),
        Kind::File(content) => (b'0', content.as_slice(), "", ""),
        Kind::Symlink(target) => (b'2', none, target.as_str(), ""),
        Kind::Hardlink(target) => (b'1', none, target.as_str(), ""),
    };
    let path = format!("{path}{ending}");
    let (prefix, name) = split_path(&path).context("path too long for ustar")?;
    ensure!(link.len() <= 100, "link target over 100 bytes");
    let mut header = [0; 512];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, name.as_bytes());
    put(100, format!("{:07o}\0", entry.mode).as_bytes());
    put(108, format!("{:07o}\0{:07o}\0", entry.owner.0, entry.owner.1).as_bytes());
    put(124, format!("{:011o}\0{:011o}\0", content.len(), 0).as_bytes());
    put(148, b"        ");
    put(156, &[kind]);
    put(157, link.as_bytes());
    put(257, b"ustar\x0000");
    put(345, prefix.as_bytes());
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    tar.extend_from_slice(&header);
    tar.extend_from_slice(content);
    tar.resize(tar.len().next_multiple_of(512), 0);
    Ok(())
}

/// ustar's prefix (155 bytes) and name (100 bytes), cut at a slash.
fn split_path(path: &str) -> Option<(&str, &str)> {
    if path.len() <= 100 {
        return Some(("", path));
    }
    path.match_indices('/')
        .map(|(at, _)| (&path[..at], &path[at + 1..]))
        .find(|(prefix, name)| prefix.len() <= 155 && name.len() <= 100 && !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::run_with_input;
    use std::process::Command;
    use std::time::Duration;

    #[test]
    fn tar_reads_what_was_written() {
        let long = format!("/{}/{}", "d".repeat(90), "f".repeat(90));
        let layer = Layer::new()
            .file("/etc/hello", 0o640, b"hi")
            .owned_by("/etc/hello", 33, 7)
            .hardlink("/a", "/etc/hello")
            .symlink("/s", "etc/hello")
            .whiteout("/etc/gone")
            .file(&long, 0o600, &[7; 600]);
        let tar = layer.tar().unwrap();
        let mut list = Command::new("tar");
        list.args(["--numeric-owner", "-tvf", "-"]);
        let out = run_with_input(&mut list, &tar, Duration::from_secs(10)).unwrap();
        let text = String::from_utf8(out.stdout).unwrap();
        assert!(out.status.success());
        for expected in
            ["-rw-r----- 33/7", "etc/.wh.gone", "s -> etc/hello", "a link to etc/hello", &long[1..]]
        {
            assert!(text.contains(expected), "{expected} in {text}");
        }
    }

    #[test]
    fn an_empty_zstd_frame_has_one_last_block() {
        assert_eq!(zstd_frame(&[]), [0x28, 0xb5, 0x2f, 0xfd, 0, 56, 1, 0, 0]);
    }
}
