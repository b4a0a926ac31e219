//! What several containers said, as one: by time, as far as their clocks went forward.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use coracle_core::name::ContainerId;

use super::{Item, Reader, Selection, list};

/// Which containers: `WORKLOAD`, `WORKLOAD.INDEX` or `WORKLOAD.INDEX.CONTAINER`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(Vec<String>);

impl FromStr for Pattern {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts: Vec<_> = text.split('.').map(str::to_owned).collect();
        if parts.len() > 3 || parts.iter().any(String::is_empty) {
            return Err("a name is WORKLOAD, WORKLOAD.INDEX or WORKLOAD.INDEX.CONTAINER");
        }
        Ok(Self(parts))
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("."))
    }
}

impl Pattern {
    /// How many parts are given, of three.
    pub fn parts(&self) -> usize {
        self.0.len()
    }

    fn matches(&self, id: &ContainerId, container: Option<&str>) -> bool {
        let parts: Vec<_> = id.as_str().split('.').collect();
        self.0.len() <= parts.len()
            && self.0.iter().zip(&parts).all(|(wanted, part)| wanted == part)
            && container.is_none_or(|container| parts.get(2) == Some(&container))
    }
}

/// The containers that are read.
#[derive(Debug)]
pub struct Sources {
    dir: PathBuf,
    pattern: Pattern,
    /// Only containers of this name.
    container: Option<String>,
    /// Those that there are, whether they have something to read or not.
    known: BTreeSet<ContainerId>,
    readers: Vec<(ContainerId, Source)>,
}

/// One of them, with its next line.
#[derive(Debug)]
struct Source {
    reader: Reader,
    next: Option<Item>,
    /// Whether nothing of it was given yet.
    fresh: bool,
}

impl Sources {
    /// Reads nothing yet.
    pub fn new(dir: &Path, pattern: Pattern, container: Option<String>) -> Self {
        let (known, readers) = (BTreeSet::new(), Vec::new());
        Self { dir: dir.to_owned(), pattern, container, known, readers }
    }

    /// Whether there are containers of these names, be there something to read or not.
    pub fn knows_any(&self) -> bool {
        !self.known.is_empty()
    }

    /// Those that are read.
    pub fn read(&self) -> impl ExactSizeIterator<Item = &ContainerId> {
        self.readers.iter().map(|(id, _)| id)
    }

    /// Takes up containers that are not read yet.
    ///
    /// # Errors
    /// The files cannot be read.
    pub fn look(&mut self, selection: Selection) -> io::Result<()> {
        for kept in list(&self.dir)? {
            let wanted = self.pattern.matches(&kept.id, self.container.as_deref());
            if !wanted || !self.known.insert(kept.id.clone()) {
                continue;
            }
            if let Some(reader) = Reader::open(&self.dir, &kept.id, selection)? {
                self.readers.push((kept.id, Source { reader, next: None, fresh: true }));
            }
        }
        Ok(())
    }

    /// The next line of all: the oldest of the next ones of each. Whose it is, and whether it is the
    /// first of theirs.
    ///
    /// # Errors
    /// The files cannot be read.
    pub fn next_item(&mut self) -> io::Result<Option<(ContainerId, Item, bool)>> {
        for (_, source) in &mut self.readers {
            if source.next.is_none() {
                source.next = source.reader.next_item()?;
            }
        }
        let time = |source: &Source| match source.next.as_ref()? {
            Item::Record(record) => Some(record.time.micros()),
            Item::Gap => Some(0),
        };
        let waiting = self.readers.iter_mut().filter(|(_, source)| source.next.is_some());
        let Some((id, source)) = waiting.min_by_key(|(_, source)| time(source)) else {
            return Ok(None);
        };
        let fresh = std::mem::replace(&mut source.fresh, false);
        Ok(source.next.take().map(|item| (id.clone(), item, fresh)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_choose_containers() {
        let matches = |pattern: &str, container| {
            let pattern: Pattern = pattern.parse().unwrap();
            let ids = ["web.0.main", "web.0.proxy", "web.10.main", "web-2.0.main"];
            let found = ids.map(|id| pattern.matches(&ContainerId::from_listed(id), container));
            found.map(u8::from)
        };
        assert_eq!(matches("web", None), [1, 1, 1, 0]);
        assert_eq!(matches("web", Some("main")), [1, 0, 1, 0]);
        assert_eq!(matches("web.0", None), [1, 1, 0, 0]);
        assert_eq!(matches("web.0.proxy", None), [0, 1, 0, 0]);
        for bad in ["", "web.", ".0", "a.b.c.d"] {
            assert!(bad.parse::<Pattern>().is_err(), "{bad}");
        }
    }
}
