//! What may be in a ZIP: its names, and the tree that they make. Pure.
//!
//! In: names, kinds and sizes as they are told. Out: a [`Tree`] in which no name leads out of it,
//! none is there twice, and no link leaves it, whatever it leads through; or why not.

use std::collections::BTreeMap;

/// Longest name, so that with the directory above it fits into a path.
const MAX_NAME: usize = 2048;
/// Longest part of a name, as file systems have it.
const MAX_PART: usize = 255;
/// Most directories above one another.
const MAX_DEPTH: usize = 64;
/// Most bytes of all names together: they are held in memory.
const MAX_NAMES: usize = 16 << 20;
/// Most links that one link leads through, as Linux has it.
const MAX_LINKS: usize = 40;
/// Most steps from one directory to the next to find out where all links lead.
const MAX_STEPS: usize = 1_000_000;
/// Begin of the names that the agent itself uses at the top of an installed artifact.
pub(super) const RESERVED: &str = ".coracle-artifact";

/// Why a ZIP is not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum Flaw {
    /// It cannot be read as a ZIP.
    #[error("it is not a ZIP that can be read")]
    Unreadable(#[source] rawzip::Error),
    /// A name is not one that is unpacked.
    #[error("the name {name:?} in it {why}")]
    Name {
        /// As in the ZIP, shortened.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A name is there twice.
    #[error("{name:?} is in it twice")]
    Twice {
        /// Which.
        name: String,
    },
    /// Something that is no directory has something in it.
    #[error("{name:?} in it is a directory for some of its entries and something else for another")]
    NotADirectory {
        /// Which.
        name: String,
    },
    /// A symbolic link leads out, or nowhere.
    #[error("the symbolic link {name:?} in it, to {target:?}, {why}")]
    Link {
        /// Which.
        name: String,
        /// Where to, shortened.
        target: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Neither file, directory nor symbolic link; or more than that.
    #[error("{name:?} in it is {what}, which is not unpacked")]
    Kind {
        /// Which.
        name: String,
        /// What it is.
        what: &'static str,
    },
    /// An entry is encrypted.
    #[error("{name:?} in it is encrypted")]
    Encrypted {
        /// Which.
        name: String,
    },
    /// An entry is compressed in a way that is not handled.
    #[error(
        "{name:?} in it is compressed by method {method}; only stored and deflate are unpacked"
    )]
    Method {
        /// Which.
        name: String,
        /// Number and name of the method.
        method: String,
    },
    /// More files and directories than allowed, or names that are too long together.
    #[error("it has more than {limit} {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// Most allowed.
        limit: u64,
    },
    /// It says that more is in it than allowed.
    #[error("{bytes} bytes are in it, more than the {limit} allowed")]
    TooLarge {
        /// As it says.
        bytes: u64,
        /// Most allowed.
        limit: u64,
    },
    /// It grows too much.
    #[error("its {packed} bytes become {bytes}, more than {ratio} times as much")]
    Ratio {
        /// In the ZIP.
        packed: u64,
        /// Unpacked, as it says.
        bytes: u64,
        /// Most allowed.
        ratio: u64,
    },
    /// The directory of the ZIP and what it leads to do not fit.
    #[error("it contradicts itself: {why}")]
    Contradiction {
        /// Where.
        why: String,
    },
    /// An entry is not what the directory of the ZIP says.
    #[error("{name:?} in it is damaged, or not of the size that it says")]
    Damaged {
        /// Which.
        name: String,
        /// How.
        source: std::io::Error,
    },
}

/// One thing to be unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Node<T> {
    Directory {
        /// Whether the ZIP names it, beside what is in it.
        named: bool,
    },
    Other(T),
}

/// Things by their paths, which have neither an empty part nor `.` nor `..`.
#[derive(Debug)]
pub(super) struct Tree<T> {
    nodes: BTreeMap<String, Node<T>>,
    bytes: usize,
    limit: u64,
}

impl<T> Tree<T> {
    /// For at most so many files and directories.
    pub(super) fn new(limit: u64) -> Self {
        Self { nodes: BTreeMap::new(), bytes: 0, limit }
    }

    /// Adds a directory, or something else, and the directories above it.
    pub(super) fn add(&mut self, path: &str, node: Node<T>) -> Result<(), Flaw> {
        for (at, _) in path.match_indices('/') {
            let above = &path[..at];
            match self.nodes.get(above) {
                Some(Node::Directory { .. }) => {}
                Some(Node::Other(_)) => return Err(Flaw::NotADirectory { name: shown(above) }),
                None => self.put(above, Node::Directory { named: false })?,
            }
        }
        match (self.nodes.get_mut(path), &node) {
            (None, _) => self.put(path, node),
            (Some(Node::Directory { named: named @ false }), Node::Directory { .. }) => {
                *named = true;
                Ok(())
            }
            (Some(Node::Directory { named: false }), Node::Other(_)) => {
                Err(Flaw::NotADirectory { name: shown(path) })
            }
            (Some(_), _) => Err(Flaw::Twice { name: shown(path) }),
        }
    }

    fn put(&mut self, path: &str, node: Node<T>) -> Result<(), Flaw> {
        self.bytes += path.len();
        if self.nodes.len() as u64 >= self.limit {
            return Err(Flaw::TooMany { what: "files and directories", limit: self.limit });
        }
        if self.bytes > MAX_NAMES {
            return Err(Flaw::TooMany { what: "bytes of names", limit: MAX_NAMES as u64 });
        }
        self.nodes.insert(path.to_owned(), node);
        Ok(())
    }

    /// All, each directory before what is in it.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = (&str, &Node<T>)> {
        self.nodes.iter().map(|(path, node)| (path.as_str(), node))
    }

    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether all symbolic links stay in the tree, through whatever other links they lead. `target`
    /// tells where something is a link to.
    pub(super) fn check_links<'a>(
        &'a self,
        target: impl Fn(&'a T) -> Option<&'a str>,
    ) -> Result<(), Flaw> {
        let mut steps = 0;
        for (path, node) in self.iter() {
            if let Node::Other(other) = node {
                if let Some(first) = target(other) {
                    self.follow(path, first, &target, &mut steps).map_err(|why| Flaw::Link {
                        name: shown(path),
                        target: shown(first),
                        why,
                    })?;
                }
            }
        }
        Ok(())
    }

    fn follow<'a>(
        &'a self,
        path: &'a str,
        first: &'a str,
        target: &impl Fn(&'a T) -> Option<&'a str>,
        steps: &mut usize,
    ) -> Result<(), &'static str> {
        let mut at: Vec<&str> = path.split('/').collect();
        at.pop();
        let mut ahead = Vec::new();
        enter(first, &mut ahead)?;
        let mut links = 1;
        while let Some(part) = ahead.pop() {
            *steps += 1;
            if *steps > MAX_STEPS || at.len() > MAX_DEPTH {
                return Err("leads too far to be followed");
            }
            match part {
                "" | "." => continue,
                ".." if at.pop().is_none() => return Err("leads out of it"),
                ".." => continue,
                _ => at.push(part),
            }
            let Some(Node::Other(other)) = self.nodes.get(&at.join("/")) else { continue };
            if let Some(next) = target(other) {
                links += 1;
                if links > MAX_LINKS {
                    return Err("leads through too many others, or in a circle");
                }
                at.pop();
                enter(next, &mut ahead)?;
            }
        }
        Ok(())
    }
}

/// Puts the parts of a link's target before what is ahead, or tells why it cannot be followed.
fn enter<'a>(target: &'a str, ahead: &mut Vec<&'a str>) -> Result<(), &'static str> {
    if target.is_empty() || target.chars().any(char::is_control) {
        return Err("leads nowhere");
    }
    if target.starts_with('/') {
        return Err("leads out of it: it is absolute");
    }
    ahead.extend(target.split('/').rev());
    Ok(())
}

/// A name as it is in a ZIP, or in an order: the path, and whether it ends as directories do.
pub(super) fn path(name: &[u8]) -> Result<(&str, bool), Flaw> {
    let bad = |why| Flaw::Name { name: shown(&String::from_utf8_lossy(name)), why };
    let text = str::from_utf8(name).map_err(|_| bad("is not UTF-8"))?;
    if text.len() > MAX_NAME {
        return Err(bad("is longer than 2048 bytes"));
    }
    if text.starts_with('/') {
        return Err(bad("is absolute"));
    }
    if text.contains('\\') {
        return Err(bad("has a backslash in it: the parts of names are separated by slashes"));
    }
    if text.chars().any(char::is_control) {
        return Err(bad("has a control character in it"));
    }
    let (path, is_directory) = match text.strip_suffix('/') {
        Some(path) => (path, true),
        None => (text, false),
    };
    let mut depth = 0;
    for part in path.split('/') {
        depth += 1;
        match part {
            "" => return Err(bad("has an empty part")),
            "." => return Err(bad("has `.` in it")),
            ".." => return Err(bad("has `..` in it")),
            part if part.len() > MAX_PART => return Err(bad("has a part of over 255 bytes")),
            _ => {}
        }
    }
    if depth > MAX_DEPTH {
        return Err(bad("has more than 64 parts"));
    }
    Ok((path, is_directory))
}

/// Enough of a name to find it by.
pub(super) fn shown(name: &str) -> String {
    match name.char_indices().nth(100) {
        Some((end, _)) => format!("{}...", &name[..end]),
        None => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn why<T: std::fmt::Debug>(result: Result<T, Flaw>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        assert_eq!(path(b"bin/gauge").unwrap(), ("bin/gauge", false));
        assert_eq!(path("gr\u{fc}n/".as_bytes()).unwrap(), ("gr\u{fc}n", true));
        for (name, expected) in [
            (&b""[..], "empty part"),
            (b"/", "absolute"),
            (b"/etc/passwd", "absolute"),
            (b"../x", "`..`"),
            (b"a/../../x", "`..`"),
            (b"a/..", "`..`"),
            (b"./a", "`.`"),
            (b"a//b", "empty part"),
            (b"a//", "empty part"),
            (b"..\\x", "backslash"),
            (b"C:\\x", "backslash"),
            (b"a\0b", "control character"),
            (b"a\nb", "control character"),
            (b"a\xffb", "UTF-8"),
        ] {
            let text = why(path(name));
            assert!(text.contains(expected), "{name:?}: {text}");
        }
        let part = "p".repeat(255);
        assert!(path(part.as_bytes()).is_ok());
        assert!(why(path(format!("{part}p").as_bytes())).contains("255"));
        assert!(why(path(format!("{}x", "a/".repeat(64)).as_bytes())).contains("64 parts"));
        assert!(why(path(vec![b'x'; 3000].as_slice())).len() < 250);
    }

    #[test]
    fn nothing_is_there_twice_and_nothing_is_in_a_file() {
        let mut tree = Tree::new(100);
        let directory = Node::Directory { named: true };
        tree.add("a/b", Node::Other(1)).unwrap();
        tree.add("a", directory).unwrap();
        tree.add("c", directory).unwrap();
        tree.add("c/d", Node::Other(2)).unwrap();
        let paths: Vec<_> = tree.iter().map(|(path, _)| path.to_owned()).collect();
        assert_eq!(paths, ["a", "a/b", "c", "c/d"]);
        assert!(matches!(tree.add("a/b", Node::Other(3)), Err(Flaw::Twice { .. })));
        assert!(matches!(tree.add("a", directory), Err(Flaw::Twice { .. })));
        assert!(matches!(tree.add("a/b/c", Node::Other(3)), Err(Flaw::NotADirectory { .. })));
        let mut tree = Tree::new(3);
        tree.add("x/y", Node::Other(1)).unwrap();
        assert!(matches!(tree.add("x", Node::Other(3)), Err(Flaw::NotADirectory { .. })));
        assert!(why(tree.add("p/q", Node::Other(1))).contains("more than 3 files"));
    }

    fn links(list: &[(&str, &str)]) -> Result<(), Flaw> {
        let mut tree = Tree::new(100);
        tree.add("dir/sub/file", Node::Other(None)).unwrap();
        for (path, target) in list {
            tree.add(path, Node::Other(Some((*target).to_owned()))).unwrap();
        }
        tree.check_links(|node| node.as_deref())
    }

    #[test]
    fn links_stay_in_the_tree_whatever_they_lead_through() {
        links(&[
            ("a", "dir/sub/file"),
            ("dir/b", "../a"),
            ("dir/sub/c", "../../dir/./sub//file"),
            ("up", "dir/sub"),
            ("missing", "nowhere/yet"),
        ])
        .unwrap();
        // Two that stay alone, and leave together: `up/..` is `dir`, not the top.
        links(&[("up", "dir/sub"), ("x", "up/../..")]).unwrap();
        for (list, expected) in [
            (&[("a", "/etc")][..], "absolute"),
            (&[("a", "..")], "leads out"),
            (&[("dir/a", "../../x")], "leads out"),
            (&[("up", "dir/sub"), ("x", "up/../../../y")], "leads out"),
            (&[("d", "dir/sub"), ("dir/sub/e", ".."), ("x", "d/e/../../y")], "leads out"),
            (&[("a", "a")], "circle"),
            (&[("a", "b"), ("b", "a")], "circle"),
            (&[("a", "")], "nowhere"),
        ] {
            let text = why(links(list));
            assert!(text.contains(expected), "{list:?}: {text}");
        }
    }
}
