//! ZIPs byte by byte, right and wrong (APPNOTE.TXT, 4.3).

use std::io::Write as _;

pub(crate) const STORED: u16 = 0;
pub(crate) const DEFLATED: u16 = 8;
const UNIX: u16 = 3;

/// One entry, with what its two headers say of it.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) name: Vec<u8>,
    /// Before the data; as in the directory without.
    pub(crate) local_name: Option<Vec<u8>>,
    pub(crate) method: u16,
    pub(crate) flags: u16,
    pub(crate) mode: u32,
    /// As in the ZIP.
    pub(crate) data: Vec<u8>,
    pub(crate) size: u32,
    pub(crate) crc: u32,
}

impl Entry {
    /// A file as a packer makes it.
    pub(crate) fn file(name: &str, content: &[u8]) -> Self {
        let mut encoder =
            flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(content).unwrap();
        let data = encoder.finish().unwrap();
        Self { method: DEFLATED, data, ..Self::stored(name, content) }
    }

    pub(crate) fn stored(name: &str, content: &[u8]) -> Self {
        Self {
            name: name.into(),
            local_name: None,
            method: STORED,
            flags: 1 << 11,
            mode: 0o100_644,
            data: content.to_vec(),
            size: u32::try_from(content.len()).unwrap(),
            crc: rawzip::crc32(content),
        }
    }

    pub(crate) fn directory(name: &str) -> Self {
        Self { mode: 0o040_755, ..Self::stored(name, b"") }
    }

    pub(crate) fn link(name: &str, target: &str) -> Self {
        Self { mode: 0o120_777, ..Self::stored(name, target.as_bytes()) }
    }

    pub(crate) fn with_mode(self, mode: u32) -> Self {
        Self { mode, ..self }
    }

    fn local(&self) -> Vec<u8> {
        let name = self.local_name.as_ref().unwrap_or(&self.name);
        let mut bytes = Vec::new();
        four(&mut bytes, 0x0403_4b50);
        for value in [20, self.flags, self.method, 0, 0x21] {
            two(&mut bytes, value);
        }
        self.sizes(&mut bytes);
        two(&mut bytes, u16::try_from(name.len()).unwrap());
        two(&mut bytes, 0);
        bytes.extend_from_slice(name);
        bytes.extend_from_slice(&self.data);
        bytes
    }

    fn central(&self, offset: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        four(&mut bytes, 0x0201_4b50);
        for value in [UNIX << 8 | 20, 20, self.flags, self.method, 0, 0x21] {
            two(&mut bytes, value);
        }
        self.sizes(&mut bytes);
        two(&mut bytes, u16::try_from(self.name.len()).unwrap());
        for value in [0, 0, 0, 0] {
            two(&mut bytes, value);
        }
        four(&mut bytes, self.mode << 16);
        four(&mut bytes, u32::try_from(offset).unwrap());
        bytes.extend_from_slice(&self.name);
        bytes
    }

    fn sizes(&self, bytes: &mut Vec<u8>) {
        four(bytes, self.crc);
        four(bytes, u32::try_from(self.data.len()).unwrap());
        four(bytes, self.size);
    }
}

fn two(bytes: &mut Vec<u8>, value: u16) {
    bytes.extend_from_slice(&value.to_le_bytes());
}

fn four(bytes: &mut Vec<u8>, value: u32) {
    bytes.extend_from_slice(&value.to_le_bytes());
}

pub(crate) fn zip(entries: &[Entry]) -> Vec<u8> {
    zip_that_says(entries, entries.len())
}

/// With another number of entries than there are.
pub(crate) fn zip_that_says(entries: &[Entry], count: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut central = Vec::new();
    for entry in entries {
        central.extend(entry.central(bytes.len()));
        bytes.extend(entry.local());
    }
    end(bytes, &central, count)
}

/// All entries of the directory lead to the same data.
pub(crate) fn overlapping(entry: &Entry, names: &[&str]) -> Vec<u8> {
    let central =
        names.iter().flat_map(|name| Entry { name: (*name).into(), ..entry.clone() }.central(0));
    end(entry.local(), &central.collect::<Vec<u8>>(), names.len())
}

/// An entry that is in the data of another as well.
pub(crate) fn nested(name: &str, inner: &Entry) -> Vec<u8> {
    let outer = Entry::stored(name, &inner.local());
    let mut central = outer.central(0);
    central.extend(inner.central(30 + name.len()));
    end(outer.local(), &central, 2)
}

fn end(mut bytes: Vec<u8>, central: &[u8], count: usize) -> Vec<u8> {
    let offset = bytes.len();
    bytes.extend_from_slice(central);
    four(&mut bytes, 0x0605_4b50);
    let count = u16::try_from(count).unwrap();
    for value in [0, 0, count, count] {
        two(&mut bytes, value);
    }
    four(&mut bytes, u32::try_from(central.len()).unwrap());
    four(&mut bytes, u32::try_from(offset).unwrap());
    two(&mut bytes, 0);
    bytes
}

/// What cannot be compressed, always the same.
pub(crate) fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[0]
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// A small program with its files.
pub(crate) fn good() -> Vec<u8> {
    zip(&[
        Entry::directory("bin/"),
        Entry::file("bin/gauge", b"#!/bin/true\n").with_mode(0o100_755),
        Entry::stored("etc/gauge.conf", b"rate = 5\n"),
        Entry::link("gauge", "bin/gauge"),
    ])
}
