//! ZIPs that are to be refused, each with its reason, and nothing of them is left.

use coracle::artifacts::ArtifactError;
use coracle::config::ArtifactLimits;
use coracle_core::backoff::Retry;

use crate::bed::{Bed, ID, chain, files, tree};
use crate::zips::{DEFLATED, Entry, STORED, nested, noise, overlapping, zip, zip_that_says};

fn file(name: &str) -> Entry {
    Entry::file(name, b"x")
}

fn named(name: &[u8]) -> Entry {
    Entry { name: name.to_vec(), ..file("x") }
}

/// Deflated zeros that say that they are fewer, or more.
fn zeros(length: usize, says: u32) -> Entry {
    Entry { size: says, ..Entry::file("zeros", &vec![0; length]) }
}

fn names() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let long = "d/".repeat(64) + "x";
    vec![
        ("zip slip", zip(&[file("../../etc/evil")]), "has `..` in it"),
        ("zip slip inside", zip(&[file("a/../../evil")]), "has `..` in it"),
        ("absolute", zip(&[file("/etc/evil")]), "is absolute"),
        ("backslashes", zip(&[file("..\\evil")]), "has a backslash"),
        ("drive", zip(&[file("C:\\evil")]), "has a backslash"),
        ("dot", zip(&[file("./x")]), "has `.` in it"),
        ("empty part", zip(&[file("a//b")]), "has an empty part"),
        ("no name", zip(&[file("")]), "has an empty part"),
        ("nul", zip(&[named(b"a\0b")]), "has a control character"),
        ("terminal", zip(&[named(b"\x1b[2J")]), "has a control character"),
        ("not UTF-8", zip(&[named(b"\xff\xfe")]), "is not UTF-8"),
        ("deep", zip(&[file(&long)]), "has more than 64 parts"),
        ("wide", zip(&[file(&"x".repeat(256))]), "has a part of over 255 bytes"),
        ("long", zip(&[file(&"x/".repeat(2000))]), "is longer than 2048 bytes"),
        ("ours", zip(&[file(".coracle-artifact.json")]), "the agent itself uses"),
        ("twice", zip(&[file("a"), file("a")]), "\"a\" is in it twice"),
        (
            "directory twice",
            zip(&[Entry::directory("a/"), Entry::directory("a/")]),
            "\"a\" is in it twice",
        ),
        ("file and directory", zip(&[file("a"), Entry::directory("a/")]), "is in it twice"),
        ("file in a file", zip(&[file("a"), file("a/b")]), "a directory for some"),
        ("file over a directory", zip(&[file("a/b"), file("a")]), "a directory for some"),
        ("file in a link", zip(&[Entry::link("a", "b"), file("a/evil")]), "a directory for some"),
    ]
}

fn kinds() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let kind = |mode| zip(&[file("x").with_mode(mode)]);
    let link = |target: &str| zip(&[Entry::link("dir/l", target)]);
    vec![
        ("setuid", kind(0o104_755), "with the rights of its owner"),
        ("setgid", kind(0o102_755), "with the rights of its owner"),
        ("device", kind(0o020_644), "is a device"),
        ("disk", kind(0o060_644), "is a device"),
        ("pipe", kind(0o010_644), "is a named pipe"),
        ("socket", kind(0o140_644), "is a socket"),
        ("directory by mode", kind(0o040_755), "a directory by its mode"),
        (
            "file by mode",
            zip(&[Entry::directory("d/").with_mode(0o100_644)]),
            "a directory by its name",
        ),
        (
            "directory with content",
            zip(&[Entry { mode: 0o040_755, ..Entry::stored("d/", b"x") }]),
            "a directory with content",
        ),
        ("absolute link", link("/etc"), "it is absolute"),
        ("link out", link("../../x"), "leads out of it"),
        ("empty link", link(""), "leads nowhere"),
        ("long link", link(&"x".repeat(2000)), "is longer than 1024 bytes"),
        (
            "links that leave together",
            zip(&[
                file("d/e/f"),
                Entry::link("a", "d/e"),
                Entry::link("d/e/up", ".."),
                Entry::link("x", "a/up/../../y"),
            ]),
            "leads out of it",
        ),
        ("circle", zip(&[Entry::link("a", "b"), Entry::link("b", "a")]), "in a circle"),
        ("encrypted", zip(&[Entry { flags: 1, ..file("x") }]), "\"x\" in it is encrypted"),
        ("AES", zip(&[Entry { method: 99, ..file("x") }]), "is encrypted"),
        ("zstd", zip(&[Entry { method: 93, ..file("x") }]), "method 93 (ZSTD)"),
        ("lzma", zip(&[Entry { method: 14, ..file("x") }]), "method 14 (LZMA)"),
        ("unknown method", zip(&[Entry { method: 77, ..file("x") }]), "method 77 (UNKNOWN)"),
    ]
}

fn contents() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let mut cut = zip(&[file("a"), file("b")]);
    cut.truncate(cut.len() - 30);
    let mut garbled = zip(&[Entry::file("a", &noise(5000))]);
    garbled[500] ^= 0xff;
    let short = Entry { size: 3, ..Entry::stored("x", b"12345") };
    let many: Vec<_> = (0..200).map(|n| file(&format!("{n}"))).collect();
    let tail = "a".repeat(40);
    let implied: Vec<_> = (0..4).map(|n| file(&format!("{n}/{}", "d/".repeat(50) + "x"))).collect();
    vec![
        ("no zip", b"<html>not found</html>".to_vec(), "not a ZIP that can be read"),
        ("empty", Vec::new(), "not a ZIP that can be read"),
        ("cut", cut, "not a ZIP that can be read"),
        ("garbled", garbled, "\"a\" in it is damaged"),
        ("wrong sum", zip(&[Entry { crc: 1, ..file("x") }]), "\"x\" in it is damaged"),
        ("more than it says", zip(&[zeros(3 << 20, 1000)]), "\"zeros\" in it is damaged"),
        ("less than it says", zip(&[zeros(1000, 1001)]), "\"zeros\" in it is damaged"),
        ("stored with two sizes", zip(&[short]), "\"x\" in it is damaged"),
        ("said large", zip(&[zeros(1000, 9 << 20)]), "bytes are in it, more than the 8388608"),
        (
            "large together",
            zip(&[
                Entry::stored("a", &noise(5 << 20)),
                Entry { name: b"b".into(), ..Entry::stored("b", &noise(5 << 20)) },
            ]),
            "bytes are in it, more than the 8388608",
        ),
        ("bomb", zip(&[zeros(4 << 20, 4 << 20)]), "more than 100 times as much"),
        ("overlap", nested("outer", &Entry::stored("inner", &noise(1000))), "its entries overlap"),
        ("many", zip(&many), "more than 100 files and directories"),
        ("many implied", zip(&implied), "more than 100 files and directories"),
        ("says fewer", zip_that_says(&[file("a"), file("b")], 1), "it has 1 entries and has 2"),
        ("says more", zip_that_says(&[file("a")], 2), "contradicts itself"),
        (
            "two names",
            zip(&[Entry { local_name: Some(b"harmless".to_vec()), ..file(&tail) }]),
            "contradicts itself",
        ),
        (
            "one content for two names",
            overlapping(&Entry::stored("a", &noise(1000)), &["a", "b"]),
            "says something else of \"b\"",
        ),
    ]
}

#[test]
fn each_is_refused_with_its_reason_and_nothing_is_left() {
    let limits = ArtifactLimits { zip_mib: 64, unpacked_mib: 8, entries: 100, ratio: 100 };
    let mut count = 0;
    for (what, zip, expected) in names().into_iter().chain(kinds()).chain(contents()) {
        let bed = Bed::new().with_limits(limits);
        bed.serve(&zip);
        // Something else is installed beside it, and stays.
        bed.serve_at("/other/one/1/one-1.zip", &crate::zips::good());
        bed.install("other:one:1").unwrap();
        let (before, outside) = (bed.tree(), tree_above(&bed));
        let error = bed.install(ID).unwrap_err();
        assert!(matches!(error, ArtifactError::Zip { .. }), "{what}: {}", chain(&error));
        let text = error.to_string();
        assert!(text.contains(expected), "{what}: {text}");
        assert!(text.starts_with(&format!("the ZIP of artifact {ID} is not unpacked: ")), "{text}");
        assert!(!text.chars().any(char::is_control) && text.len() < 500, "{what}: {text}");
        assert_eq!(error.retry(), Retry::Rarely, "{what}");
        assert_eq!(bed.tree(), before, "{what}");
        assert_eq!(tree_above(&bed), outside, "{what}");
        count += 1;
    }
    assert!(count > 50, "{count}");
}

/// What a way out of PREFIX would be seen in.
fn tree_above(bed: &Bed) -> Vec<String> {
    let above = bed.prefix.path().parent().unwrap();
    let own = bed.prefix.path().file_name().unwrap().to_str().unwrap();
    let evil = files(tree(bed.prefix.path()));
    let names = std::fs::read_dir(above).unwrap().map(|entry| entry.unwrap().file_name());
    let names = names.filter_map(|name| name.into_string().ok());
    names.filter(|name| name.contains("evil") || name == own).chain(evil).collect()
}

#[test]
fn what_is_unusual_but_harmless_is_installed() {
    let bed = Bed::new();
    let mut with_front = b"#!/bin/sh\nexit\n".to_vec();
    with_front.extend(crate::zips::good());
    let sticky = Entry::directory("tmp/").with_mode(0o041_777);
    let bytes = zip(&[
        Entry::file("b/c", b"1"),
        Entry { method: STORED, ..Entry::directory("b/") },
        Entry { method: DEFLATED, ..Entry::file("empty", b"") },
        Entry::file("gr\u{fc}n \u{1f41f}", b"2"),
        Entry::link("missing", "not/there"),
        Entry::file("zeros", &vec![0; 1 << 20]),
        sticky,
    ]);
    bed.serve(&bytes);
    let installed = bed.install(ID).unwrap();
    assert_eq!(installed.entries, 7);
    assert_eq!(tree(&bed.artifacts().directory(&crate::bed::id(ID)))["tmp/"], "555 0:0");
}
