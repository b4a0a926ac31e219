//! Config maps: directories whose files change all at once.
//!
//! The manner is that of Kubernetes' atomic writer. Each version is a directory of its own; `..data`
//! is a link to the one in force, and each file is a link through it:
//!
//! ```text
//! broker.conf -> ..data/broker.conf
//! ..data -> ..v-5f2a...
//! ..v-5f2a.../broker.conf
//! ```
//!
//! One rename of `..data` changes everything. The version before stays until the next change, so
//! that a reader who opened its directory can finish reading.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use ring::digest::{Context, SHA256};

use super::error::{MountError, failed};
use super::site::{delete, ensure_dir, names, set_mode, under_way};
use crate::fault::fault_point;

const DATA: &str = "..data";
const DATA_NEW: &str = "..data-new";
const VERSION: &str = "..v-";
/// Longest name of a file that file systems take.
const MAX_FILE_NAME: usize = 255;

/// A version's name: tells apart all contents.
pub(super) fn version(files: &BTreeMap<String, String>) -> String {
    let mut digest = Context::new(&SHA256);
    for part in files.iter().flat_map(|(name, content)| [name, content]) {
        digest.update(&(part.len() as u64).to_le_bytes());
        digest.update(part.as_bytes());
    }
    format!("{VERSION}{}", hex(&digest.finish().as_ref()[..16]))
}

/// The version that is in force in a directory; `None` if there is none.
pub(super) fn in_force(dir: &Path) -> Option<String> {
    fs::read_link(dir.join(DATA)).ok()?.to_str().map(str::to_owned)
}

/// Makes the directory show these files, from whatever it shows now. Tells whether anything changed.
pub(super) fn write(dir: &Path, files: &BTreeMap<String, String>) -> Result<bool, MountError> {
    files.keys().try_for_each(|name| check(name))?;
    ensure_dir(dir, 0o755)?;
    set_mode(dir, 0o755).map_err(failed("open", dir))?;
    let wanted = version(files);
    let before = in_force(dir);
    let changes = before.as_ref() != Some(&wanted);
    if changes {
        make_version(dir, &wanted, files)?;
    }
    // Before the change, so that a new file is there from the first moment on.
    for name in files.keys() {
        link(&dir.join(name), &format!("{DATA}/{name}"))?;
    }
    fault_point("map.named");
    if changes {
        let new = dir.join(DATA_NEW);
        delete(&new)?;
        symlink(&wanted, &new).map_err(failed("link", &new))?;
        fault_point("map.link_made");
        fs::rename(&new, dir.join(DATA)).map_err(failed("change", dir))?;
        fault_point("map.swapped");
    }
    for name in names(dir)? {
        let stays = name == DATA
            || files.contains_key(&name)
            || name == wanted
            || changes && before.as_ref() == Some(&name)
            // Without a change the version before is still somebody's.
            || !changes && name.starts_with(VERSION);
        if !stays {
            delete(&dir.join(name))?;
        }
    }
    fault_point("map.cleaned");
    Ok(changes)
}

/// A version is there whole or not at all.
fn make_version(
    dir: &Path,
    version: &str,
    files: &BTreeMap<String, String>,
) -> Result<(), MountError> {
    let (path, new) = (dir.join(version), under_way(dir, version));
    if path.is_dir() {
        return Ok(());
    }
    delete(&new)?;
    ensure_dir(&new, 0o755)?;
    set_mode(&new, 0o755).map_err(failed("open", &new))?;
    fault_point("map.begun");
    for (name, content) in files {
        let file = new.join(name);
        fs::write(&file, content)
            .and_then(|()| set_mode(&file, 0o444))
            .map_err(failed("write", &file))?;
    }
    fault_point("map.version_written");
    fs::rename(&new, &path).map_err(failed("name", &path))?;
    fault_point("map.version_renamed");
    Ok(())
}

/// Makes `path` a link to `target`, unless it is.
fn link(path: &Path, target: &str) -> Result<(), MountError> {
    if fs::read_link(path).is_ok_and(|there| there == Path::new(target)) {
        return Ok(());
    }
    match symlink(target, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            delete(path)?;
            symlink(target, path).map_err(failed("link", path))
        }
        result => result.map_err(failed("link", path)),
    }
}

/// One part of a path, and none that this module uses.
fn check(name: &str) -> Result<(), MountError> {
    let bad = name.is_empty()
        || name.len() > MAX_FILE_NAME - 8
        || name == "."
        || name.starts_with("..")
        || name.starts_with(".new-")
        || name.chars().any(|c| c == '/' || c.is_control());
    if bad {
        return Err(MountError::Name {
            what: "file of a config map",
            name: name.chars().take(100).collect(),
        });
    }
    Ok(())
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(list: &[(&str, &str)]) -> BTreeMap<String, String> {
        list.iter().map(|(name, content)| ((*name).into(), (*content).into())).collect()
    }

    fn shown(dir: &Path) -> Vec<(String, String)> {
        let names = names(dir).unwrap();
        let names = names.into_iter().filter(|name| !name.starts_with(".."));
        names.map(|name| (name.clone(), fs::read_to_string(dir.join(name)).unwrap())).collect()
    }

    fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(name, content)| ((*name).into(), (*content).into())).collect()
    }

    #[test]
    fn files_come_change_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("map");
        let first = [("a.conf", "1"), ("b", "2")];
        assert!(write(&dir, &files(&first)).unwrap());
        assert_eq!(shown(&dir), pairs(&first));
        assert!(!write(&dir, &files(&first)).unwrap());
        let second = [(".hidden", "4"), ("a.conf", "3")];
        assert!(write(&dir, &files(&second)).unwrap());
        assert_eq!(shown(&dir), pairs(&second));
        assert!(write(&dir, &files(&[])).unwrap());
        assert_eq!(shown(&dir), []);
        assert!(write(&dir, &files(&first)).unwrap());
        assert_eq!(shown(&dir), pairs(&first));
        // `..data`, two versions, two files.
        assert_eq!(names(&dir).unwrap().len(), 5, "{:?}", names(&dir));
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("map");
        let long = "x".repeat(300);
        for bad in ["", ".", "..", "..data", "..v-1", ".new-x", "a/b", "/a", "a\nb", "a\0", &long] {
            let error = write(&dir, &files(&[(bad, "x")])).unwrap_err();
            assert!(matches!(error, MountError::Name { .. }), "{bad:?}: {error}");
        }
        assert!(!dir.exists());
        write(&dir, &files(&[(".profile", "x"), ("a..b", "x"), ("ä b", "x")])).unwrap();
    }

    #[test]
    fn contents_have_versions_of_their_own() {
        let all = [
            files(&[]),
            files(&[("", "")]),
            files(&[("a", "b")]),
            files(&[("ab", "")]),
            files(&[("a", ""), ("b", "")]),
            files(&[("a", "b"), ("b", "")]),
        ];
        let versions: std::collections::BTreeSet<_> = all.iter().map(version).collect();
        assert_eq!(versions.len(), all.len());
    }

    #[test]
    fn a_reader_never_sees_a_mix() {
        use std::sync::atomic::{AtomicBool, Ordering};
        const FILES: usize = 8;
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("map");
        let content = |round: usize| -> BTreeMap<String, String> {
            (0..FILES).map(|n| (format!("f{n}"), round.to_string())).collect()
        };
        write(&dir, &content(0)).unwrap();
        let done = AtomicBool::new(false);
        let (rounds, broken) = std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut seen = std::collections::BTreeSet::new();
                let mut again = 0;
                while !done.load(Ordering::Relaxed) {
                    // Which version is asked once; all files are then of that one.
                    let version = dir.join(fs::read_link(dir.join(DATA)).unwrap());
                    let texts: Result<Vec<_>, _> = (0..FILES)
                        .map(|n| fs::read_to_string(version.join(format!("f{n}"))))
                        .collect();
                    match texts {
                        Ok(texts) => {
                            assert!(texts.iter().all(|text| *text == texts[0]), "{texts:?}");
                            seen.insert(texts[0].clone());
                        }
                        // Two changes came while it read.
                        Err(_) => again += 1,
                    }
                    // Through the links each file is always there and whole.
                    let text = fs::read_to_string(dir.join("f0")).unwrap_or_else(|_| "0".into());
                    assert!(text.parse::<usize>().is_ok(), "{text:?}");
                }
                (seen.len(), again)
            });
            for round in 1..400 {
                write(&dir, &content(round)).unwrap();
            }
            done.store(true, Ordering::Relaxed);
            reader.join().unwrap()
        });
        assert!(rounds > 5, "the reader saw {rounds} versions, {broken} times it was too slow");
    }
}
