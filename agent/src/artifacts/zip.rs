//! Reading a ZIP: its directory is judged as a whole before anything of it is unpacked.
//!
//! In: a file, and limits. Out: a [`Plan`]. The directory is read piece by piece, so that memory is
//! bounded by [`ArtifactLimits::entries`] and not by the ZIP. The format is read by `rawzip`;
//! crates that read more at once keep only the last of several entries with the same name.

use std::fs::File;
use std::io::{self, Read};

use rawzip::{
    CompressionMethod, FileReader, ZipArchive, ZipArchiveEntryWayfinder, ZipFileHeaderRecord,
};

use super::entries::{Flaw, Node, RESERVED, Tree, path, shown};
use super::error::ArtifactError;
use crate::config::ArtifactLimits;

/// Longest target of a symbolic link.
const MAX_TARGET: u64 = 1024;
/// What a file takes on a file system at least, and what sizes are rounded up to.
const BLOCK: u64 = 4096;
/// This much more than the ratio is always allowed.
const SMALL: u64 = 1 << 20;
const MIB: u64 = 1 << 20;

/// Kinds of files in the upper half of the external attributes of a Unix system (stat(2)).
const KIND: u32 = 0o170_000;
const REGULAR: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const LINK: u32 = 0o120_000;
const SET_ID: u32 = 0o6000;

/// A file in a ZIP, or a link.
#[derive(Debug)]
pub(super) enum Entry {
    File { at: ZipArchiveEntryWayfinder, deflated: bool, executable: bool },
    Link { target: String },
}

/// What a ZIP unpacks to. Nothing in it leads elsewhere.
#[derive(Debug)]
pub(super) struct Plan {
    archive: ZipArchive<FileReader>,
    pub(super) tree: Tree<Entry>,
    /// Of all files.
    pub(super) bytes: u64,
    /// That it takes on a disk, about.
    pub(super) on_disk: u64,
}

/// Reads the directory, and judges it.
///
/// `reserved`: whether the agent's own names at the top are taken.
pub(super) fn plan(file: &File, limits: &ArtifactLimits, reserved: bool) -> Result<Plan, Flaw> {
    let file = file.try_clone().map_err(|error| Flaw::Unreadable(error.into()))?;
    let mut buffer = vec![0; rawzip::RECOMMENDED_BUFFER_SIZE];
    let archive = ZipArchive::from_file(file, &mut buffer).map_err(Flaw::Unreadable)?;
    let expected = archive.entries_hint();
    if expected > limits.entries {
        return Err(Flaw::TooMany { what: "files and directories", limit: limits.entries });
    }
    let mut reading = Reading {
        archive: &archive,
        limits,
        reserved,
        tree: Tree::new(limits.entries),
        spans: Vec::new(),
        packed: 0,
        bytes: 0,
        local: vec![0; 2 * usize::from(u16::MAX)],
    };
    let mut entries = archive.entries(&mut buffer);
    let mut found = 0;
    while let Some(entry) = entries.next_entry().map_err(Flaw::Unreadable)? {
        found += 1;
        reading.add(&entry)?;
    }
    if found != expected {
        let why = format!("it says that it has {expected} entries and has {found}");
        return Err(Flaw::Contradiction { why });
    }
    let Reading { tree, spans, packed, bytes, .. } = reading;
    check_spans(spans, archive.directory_offset())?;
    check_ratio(packed, bytes, limits.ratio)?;
    tree.check_links(|entry| match entry {
        Entry::Link { target } => Some(target),
        Entry::File { .. } => None,
    })?;
    let on_disk = tree.iter().map(|(_, node)| on_disk(node)).sum();
    Ok(Plan { archive, tree, bytes, on_disk })
}

struct Reading<'a> {
    archive: &'a ZipArchive<FileReader>,
    limits: &'a ArtifactLimits,
    reserved: bool,
    tree: Tree<Entry>,
    /// Where the entries are in the file.
    spans: Vec<(u64, u64)>,
    /// Bytes of all entries, as in the ZIP.
    packed: u64,
    /// Unpacked, as the ZIP says.
    bytes: u64,
    /// For the part before an entry's data.
    local: Vec<u8>,
}

impl Reading<'_> {
    fn add(&mut self, entry: &ZipFileHeaderRecord<'_>) -> Result<(), Flaw> {
        let raw = entry.file_path();
        let (path, is_directory) = path(raw.as_bytes())?;
        if self.reserved && path.starts_with(RESERVED) {
            let why = "is one that the agent itself uses";
            return Err(Flaw::Name { name: shown(path), why });
        }
        let mode = unix_mode(entry);
        check_kind(path, is_directory, mode)?;
        let deflated = self.check_content(path, entry)?;
        let at = entry.wayfinder();
        if is_directory {
            if entry.uncompressed_size_hint() > 0 {
                let what = "a directory with content";
                return Err(Flaw::Kind { name: shown(path), what });
            }
            return self.tree.add(path, Node::Directory { named: true });
        }
        let node = if mode & KIND == LINK {
            Entry::Link { target: self.link(path, at, deflated)? }
        } else {
            Entry::File { at, deflated, executable: mode & 0o111 != 0 }
        };
        self.tree.add(path, Node::Other(node))
    }

    /// Adds up, and compares what the directory of the ZIP says with what is before the data. Tells
    /// whether it is deflated.
    fn check_content(&mut self, path: &str, entry: &ZipFileHeaderRecord<'_>) -> Result<bool, Flaw> {
        let name = || shown(path);
        let method = entry.compression_method();
        if entry.flags().is_encrypted() || method == CompressionMethod::AES {
            return Err(Flaw::Encrypted { name: name() });
        }
        if ![CompressionMethod::STORE, CompressionMethod::DEFLATE].contains(&method) {
            return Err(Flaw::Method { name: name(), method: method.to_string() });
        }
        self.bytes = self.bytes.saturating_add(entry.uncompressed_size_hint());
        self.packed = self.packed.saturating_add(entry.compressed_size_hint());
        let limit = self.limits.unpacked_mib.saturating_mul(MIB);
        if self.bytes > limit {
            return Err(Flaw::TooLarge { bytes: self.bytes, limit });
        }
        let found = self.archive.get_entry(entry.wayfinder()).map_err(Flaw::Unreadable)?;
        self.spans.push((entry.local_header_offset(), found.compressed_data_range().1));
        let local = found.local_header(&mut self.local).map_err(Flaw::Unreadable)?;
        if local.file_path().as_bytes() != entry.file_path().as_bytes()
            || local.compression_method() != method
            || local.flags().is_encrypted()
        {
            let why = format!("its directory says something else of {:?} than the entry", name());
            return Err(Flaw::Contradiction { why });
        }
        Ok(method == CompressionMethod::DEFLATE)
    }

    fn link(
        &self,
        path: &str,
        at: ZipArchiveEntryWayfinder,
        deflated: bool,
    ) -> Result<String, Flaw> {
        let bad = |why| Flaw::Link { name: shown(path), target: String::new(), why };
        if at.uncompressed_size_hint() > MAX_TARGET {
            return Err(bad("is longer than 1024 bytes"));
        }
        let mut target = Vec::new();
        content(self.archive, at, deflated)
            .and_then(|mut content| content.read_to_end(&mut target))
            .map_err(|source| Flaw::Damaged { name: shown(path), source })?;
        String::from_utf8(target).map_err(|_| bad("is not UTF-8"))
    }
}

impl Plan {
    /// What is in a file. Ends with an error if it is not what the directory of the ZIP says, before
    /// it has given more than that.
    pub(super) fn content(
        &self,
        at: ZipArchiveEntryWayfinder,
        deflated: bool,
    ) -> io::Result<Box<dyn Read + '_>> {
        content(&self.archive, at, deflated)
    }
}

fn content<'a>(
    archive: &'a ZipArchive<FileReader>,
    at: ZipArchiveEntryWayfinder,
    deflated: bool,
) -> io::Result<Box<dyn Read + 'a>> {
    let entry = archive.get_entry(at).map_err(io::Error::other)?;
    let reader = entry.reader();
    Ok(match deflated {
        true => Box::new(entry.verifying_reader(flate2::read::DeflateDecoder::new(reader))),
        false => Box::new(entry.verifying_reader(reader)),
    })
}

/// What a Unix system noted of an entry; nothing if no such system made it.
fn unix_mode(entry: &ZipFileHeaderRecord<'_>) -> u32 {
    let system = entry.version_made_by().creator_system();
    match [rawzip::CreatorSystem::UNIX, rawzip::CreatorSystem::MACOS].contains(&system) {
        true => entry.external_attributes() >> 16,
        false => 0,
    }
}

fn check_kind(path: &str, is_directory: bool, mode: u32) -> Result<(), Flaw> {
    let bad = |what| Err(Flaw::Kind { name: shown(path), what });
    if mode & SET_ID != 0 && mode & KIND != LINK {
        return bad("to run with the rights of its owner or group");
    }
    match (is_directory, mode & KIND) {
        (_, 0) | (true, DIRECTORY) | (false, REGULAR | LINK) => Ok(()),
        (true, _) => bad("a directory by its name, and something else by its mode"),
        (false, DIRECTORY) => bad("a directory by its mode, and something else by its name"),
        (false, 0o020_000 | 0o060_000) => bad("a device"),
        (false, 0o010_000) => bad("a named pipe"),
        (false, 0o140_000) => bad("a socket"),
        (false, _) => bad("of an unknown kind"),
    }
}

/// No two entries may share bytes: that is how a small ZIP becomes a large one
/// (<https://www.bamsoftware.com/hacks/zipbomb/>).
fn check_spans(mut spans: Vec<(u64, u64)>, directory: u64) -> Result<(), Flaw> {
    let overlap = || Flaw::Contradiction { why: "its entries overlap".into() };
    spans.sort_unstable();
    let shared = spans.windows(2).any(|pair| pair[0].1 > pair[1].0);
    let beyond = spans.last().is_some_and(|(_, end)| *end > directory);
    if shared || beyond { Err(overlap()) } else { Ok(()) }
}

fn check_ratio(packed: u64, bytes: u64, ratio: u64) -> Result<(), Flaw> {
    if bytes.saturating_sub(SMALL) > packed.saturating_mul(ratio) {
        return Err(Flaw::Ratio { packed, bytes, ratio });
    }
    Ok(())
}

fn on_disk(node: &Node<Entry>) -> u64 {
    match node {
        Node::Other(Entry::File { at, .. }) => {
            at.uncompressed_size_hint().next_multiple_of(BLOCK).saturating_add(BLOCK / 8)
        }
        _ => BLOCK,
    }
}

/// For errors of a ZIP: whose it is.
pub(super) fn flawed(what: &str) -> impl FnOnce(Flaw) -> ArtifactError {
    let what = what.to_owned();
    move |flaw| ArtifactError::Zip { what, flaw: Box::new(flaw) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_beyond_the_ratio_is_refused_but_small_ones_may_grow() {
        assert!(check_ratio(10, SMALL, 200).is_ok());
        assert!(check_ratio(10, SMALL + 2000, 200).is_ok());
        let error = check_ratio(10, SMALL + 2001, 200).unwrap_err();
        assert_eq!(error.to_string(), "its 10 bytes become 1050577, more than 200 times as much");
    }

    #[test]
    fn entries_share_no_bytes() {
        assert!(check_spans(vec![(10, 20), (0, 10)], 20).is_ok());
        assert!(check_spans(vec![(10, 20), (0, 11)], 20).is_err());
        assert!(check_spans(vec![(0, 21)], 20).is_err());
        assert!(check_spans(Vec::new(), 0).is_ok());
    }

    #[test]
    fn only_files_directories_and_links_are_unpacked() {
        for (is_directory, mode, good) in [
            (false, 0, true),
            (true, 0, true),
            (false, 0o100_755, true),
            (true, 0o041_777, true),
            (false, 0o120_777, true),
            (false, 0o104_755, false),
            (true, 0o042_755, false),
            (true, 0o100_644, false),
            (false, 0o040_755, false),
            (false, 0o020_600, false),
            (false, 0o060_600, false),
            (false, 0o010_600, false),
            (false, 0o140_600, false),
        ] {
            assert_eq!(check_kind("x", is_directory, mode).is_ok(), good, "{mode:o}");
        }
    }
}
