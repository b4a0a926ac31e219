//! Runtime directories: what is put there and what is left alone, whatever traps are in them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{chown, symlink};
use std::path::{Path, PathBuf};

use coracle::artifacts::{ArtifactError, Prefill, RuntimeDirs, Source};
use coracle_core::artifact::Coordinate;
use coracle_core::backoff::Retry;
use coracle_core::image::Digest;
use coracle_testbed::faulty::Fault;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::bed::{Bed, ID, chain, files, id, run, tree};
use crate::zips::{Entry, good, noise, zip};

const OWNER: (u32, u32) = (4321, 8765);

pub(crate) fn at(text: &str) -> Coordinate {
    Coordinate::parse(text).unwrap()
}

pub(crate) fn texts(to: &str, list: &[(&str, &str)]) -> Prefill {
    let files = list.iter().map(|(name, text)| ((*name).into(), (*text).into())).collect();
    Prefill { to: to.into(), source: Source::Files(files), overwrite: false }
}

pub(crate) fn from_artifact(to: &str, path: &str) -> Prefill {
    let source = Source::Artifact { id: id(ID), path: path.into() };
    Prefill { to: to.into(), source, overwrite: false }
}

fn over(prefill: Prefill) -> Prefill {
    Prefill { overwrite: true, ..prefill }
}

struct Gateway {
    bed: Bed,
    dirs: RuntimeDirs,
    at: Coordinate,
}

impl Gateway {
    fn new() -> Self {
        let bed = Bed::new();
        let dirs = bed.artifacts().runtime_dirs();
        Self { bed, dirs, at: at("a.gauge.alice.line-1") }
    }

    fn ensure(&self, fill: &[Prefill]) -> Result<PathBuf, ArtifactError> {
        run(self.dirs.ensure(&self.at, OWNER, fill))
    }

    fn filled(&self, fill: &[Prefill]) -> BTreeMap<String, String> {
        tree(&self.ensure(fill).unwrap())
    }

    fn served(&self, path: &str, bytes: &[u8]) -> (String, Digest) {
        let digest = self.bed.server.put_file(path, bytes);
        (format!("http://{}{path}", self.bed.server.address()), Digest::parse(&digest).unwrap())
    }
}

fn shown(tree: &BTreeMap<String, String>) -> Vec<(&str, &str)> {
    tree.iter().map(|(path, what)| (path.as_str(), what.as_str())).collect()
}

#[test]
fn a_directory_is_made_for_its_owner_and_filled_from_everything() {
    let gateway = Gateway::new();
    gateway.bed.serve(&good());
    gateway.bed.install(ID).unwrap();
    let (url, digest) = gateway.served("/model.bin", &noise(300_000));
    let file = Source::Url { url, digest };
    let backup = zip(&[
        Entry::file("db/rows", b"1 2 3"),
        Entry::file("run.sh", b"#!/bin/sh\n").with_mode(0o100_755),
        Entry::link("newest", "db/rows"),
    ]);
    let (url, digest) = gateway.served("/backup.zip", &backup);
    let archive = Source::Archive { url, digest };
    let found = gateway.filled(&[
        from_artifact("conf", "etc"),
        from_artifact("bin/gauge", "bin/gauge"),
        texts("", &[("gauge.json", "{}"), ("sub/deep", "x")]),
        Prefill { to: "models/one.bin".into(), source: file, overwrite: false },
        Prefill { to: "restored/".into(), source: archive, overwrite: false },
    ]);
    let own = "4321:8765";
    let expected = [
        ("bin/", format!("750 {own}")),
        ("bin/gauge", format!("750 {own} #!/bin/true\n")),
        ("conf/", format!("750 {own}")),
        ("conf/gauge.conf", format!("640 {own} rate = 5\n")),
        ("gauge.json", format!("640 {own} {{}}")),
        ("models/", format!("750 {own}")),
        ("models/one.bin", format!("640 {own} 300000 bytes")),
        ("restored/", format!("750 {own}")),
        ("restored/db/", format!("750 {own}")),
        ("restored/db/rows", format!("640 {own} 1 2 3")),
        ("restored/newest", "-> db/rows 4321".into()),
        ("restored/run.sh", format!("750 {own} #!/bin/sh\n")),
        ("sub/", format!("750 {own}")),
        ("sub/deep", format!("640 {own} x")),
    ];
    let expected: Vec<_> = expected.iter().map(|(path, what)| (*path, what.as_str())).collect();
    assert_eq!(shown(&found), expected);
    let all = gateway.bed.tree();
    for (path, rights) in [
        ("runtime/", "755 0:0"),
        ("runtime/line-1/", "755 0:0"),
        ("runtime/line-1/alice/gauge/", "755 0:0"),
        ("runtime/line-1/alice/gauge/a/", "750 4321:8765"),
        ("runtime/.filled/", "700 0:0"),
    ] {
        assert_eq!(all[path], rights, "{path}");
    }
    assert!(!all.keys().any(|path| path.contains(".new-") || path.starts_with("downloads/k")));
    assert_eq!(fs::read_dir(gateway.bed.prefix.path().join("downloads")).unwrap().count(), 0);

    let listed = run(gateway.dirs.list()).unwrap();
    assert_eq!(listed.len(), 1);
    assert!(listed[&gateway.at].bytes > 300_000 && listed[&gateway.at].complete);
    run(gateway.dirs.purge(&gateway.at)).unwrap();
    assert!(run(gateway.dirs.list()).unwrap().is_empty());
    let left: Vec<_> = gateway.bed.tree().into_keys().collect();
    let left: Vec<_> = left.iter().filter(|path| path.starts_with("runtime")).collect();
    assert_eq!(left, ["runtime/", "runtime/.filled/"]);
    let error = run(gateway.dirs.purge(&gateway.at)).unwrap_err();
    assert_eq!(error.to_string(), "a.gauge.alice.line-1 has no runtime directory");
}

#[test]
fn what_the_service_did_stays_until_a_source_changes_that_may_overwrite() {
    let gateway = Gateway::new();
    let first = [
        texts("conf", &[("kept", "1"), ("gone", "1"), ("changed", "1")]),
        over(texts("over", &[("kept", "1"), ("gone", "1"), ("changed", "1")])),
    ];
    let dir = gateway.ensure(&first).unwrap();
    for place in ["conf", "over"] {
        fs::write(dir.join(place).join("changed"), "mine").unwrap();
        fs::remove_file(dir.join(place).join("gone")).unwrap();
        fs::write(dir.join(place).join("own"), "mine").unwrap();
    }
    let before = tree(&dir);
    assert_eq!(gateway.filled(&first), before, "nothing changed, nothing is put there again");
    let read = |path: &str| fs::read_to_string(dir.join(path)).ok();

    let second = [
        texts("conf", &[("kept", "2"), ("changed", "2"), ("new", "2")]),
        over(texts("over", &[("kept", "2"), ("changed", "2"), ("new", "2")])),
    ];
    gateway.ensure(&second).unwrap();
    for (name, left_alone, replaced) in [
        ("kept", Some("1"), Some("2")),
        ("changed", Some("mine"), Some("2")),
        ("new", Some("2"), Some("2")),
        ("own", Some("mine"), Some("mine")),
        ("gone", None, None),
    ] {
        assert_eq!(read(&format!("conf/{name}")).as_deref(), left_alone, "{name}");
        assert_eq!(read(&format!("over/{name}")).as_deref(), replaced, "{name}");
    }
    // One that is taken from the list and comes back is put there again, where nothing is.
    gateway.ensure(&[]).unwrap();
    fs::remove_file(dir.join("conf/new")).unwrap();
    gateway.ensure(&second).unwrap();
    assert_eq!(read("conf/new").as_deref(), Some("2"));

    // A new directory of the same name knows nothing of the old one.
    run(gateway.dirs.purge(&gateway.at)).unwrap();
    gateway.ensure(&first).unwrap();
    assert_eq!(read("conf/gone").as_deref(), Some("1"));
    fs::remove_dir_all(&dir).unwrap();
    gateway.ensure(&first).unwrap();
    assert_eq!(read("conf/gone").as_deref(), Some("1"));
}

#[test]
fn traps_of_the_service_lead_nowhere() {
    let gateway = Gateway::new();
    let victim = tempfile::tempdir().unwrap();
    fs::write(victim.path().join("precious"), "safe").unwrap();
    let dir = gateway.ensure(&[]).unwrap();
    let trap = |name: &str| symlink(victim.path(), dir.join(name)).unwrap();
    trap("conf");
    trap("over");
    symlink(victim.path().join("precious"), dir.join("file")).unwrap();
    symlink(victim.path().join("precious"), dir.join("over-file")).unwrap();
    fs::hard_link(victim.path().join("precious"), dir.join("hard")).unwrap();
    fs::create_dir(dir.join("deep")).unwrap();
    symlink(victim.path(), dir.join("deep/er")).unwrap();
    let found = gateway.filled(&[
        texts("conf", &[("evil", "1")]),
        over(texts("over", &[("evil", "1")])),
        texts("", &[("file", "1")]),
        over(texts("", &[("over-file", "1"), ("hard", "1")])),
        texts("deep/er", &[("evil", "1")]),
        over(texts("deep/er", &[("evil", "2")])),
    ]);
    assert_eq!(shown(&tree(victim.path())), [("precious", "644 0:0 safe")]);
    assert!(found["conf"].starts_with("-> "), "left alone");
    assert!(found["file"].starts_with("-> "), "left alone");
    for (path, content) in
        [("over/evil", "1"), ("over-file", "1"), ("hard", "1"), ("deep/er/evil", "2")]
    {
        assert!(found[path].ends_with(content), "{path}: {}", found[path]);
    }
    // A directory is never taken away for a file.
    fs::create_dir(dir.join("own")).unwrap();
    gateway.ensure(&[texts("", &[("own", "1")])]).unwrap();
    let error = gateway.ensure(&[over(texts("", &[("own", "2")]))]).unwrap_err();
    assert!(matches!(error, ArtifactError::InTheWay { .. }), "{error}");
    assert!(error.to_string().contains("own is a directory"), "{error}");
    assert_eq!(error.retry(), Retry::Rarely);
    assert!(!gateway.bed.tree().keys().any(|path| path.contains(".new-")));

    // Nor does purging follow anything, or enter what is mounted.
    trap("link");
    fs::create_dir(dir.join("mounted")).unwrap();
    let none = None::<&str>;
    mount(Some(victim.path()), &dir.join("mounted"), none, MsFlags::MS_BIND, none).unwrap();
    run(gateway.dirs.purge(&gateway.at)).unwrap();
    assert!(!dir.exists());
    assert_eq!(fs::read_to_string(victim.path().join("precious")).unwrap(), "safe");
    let gone = fs::read_dir(gateway.bed.prefix.path().join("runtime")).unwrap();
    let gone = gone.map(|entry| entry.unwrap().path());
    let gone = gone.into_iter().find(|path| path.to_string_lossy().contains(".gone-")).unwrap();
    umount2(&gone.join("mounted"), MntFlags::MNT_DETACH).unwrap();
    run(gateway.bed.artifacts().sweep()).unwrap();
    assert!(!gone.exists());
}

#[test]
fn the_owner_is_put_right_and_what_is_no_directory_is_refused() {
    let gateway = Gateway::new();
    let dir = gateway.ensure(&[]).unwrap();
    chown(&dir, Some(0), Some(0)).unwrap();
    gateway.ensure(&[]).unwrap();
    assert_eq!(tree(dir.parent().unwrap())["a/"], "750 4321:8765");
    fs::remove_dir(&dir).unwrap();
    symlink("/etc", &dir).unwrap();
    let error = gateway.ensure(&[]).unwrap_err();
    assert!(matches!(error, ArtifactError::InTheWay { .. }), "{}", chain(&error));
}

#[test]
fn sources_that_cannot_be_are_refused_and_nothing_of_them_is_left() {
    let gateway = Gateway::new();
    gateway.bed.serve(&zip(&[
        Entry::file("conf/a", b"1"),
        Entry::link("conf/out", "../data"),
        Entry::file("data", b"2"),
    ]));
    gateway.bed.install(ID).unwrap();
    gateway.ensure(&[]).unwrap();
    let archive = |path: &str, bytes: &[u8]| {
        let (url, digest) = gateway.served(path, bytes);
        Prefill { to: "x".into(), source: Source::Archive { url, digest }, overwrite: false }
    };
    let url = |url: &str, digest: &Digest| Source::Url { url: url.into(), digest: digest.clone() };
    let (there, right) = gateway.served("/there", b"1");
    let (_, other) = gateway.served("/other", b"2");
    let file = |source| Prefill { to: "x".into(), source, overwrite: false };
    let foreign = Source::Artifact { id: id("a:b:1"), path: String::new() };
    let before = gateway.bed.tree();
    for (fill, expected) in [
        (texts("../x", &[("a", "1")]), "has `..` in it"),
        (texts("/x", &[("a", "1")]), "is absolute"),
        (texts("", &[("../a", "1")]), "has `..` in it"),
        (texts("", &[("a/", "1")]), "a directory by its name"),
        (texts("", &[("a", "1"), ("a/b", "1")]), "a directory for some"),
        (from_artifact("", "conf"), "leads out of it"),
        (from_artifact("x", "conf/out"), "has no file or directory \"conf/out\""),
        (from_artifact("x", "nowhere"), "has no file or directory \"nowhere\""),
        (from_artifact("x", "../../../etc/passwd"), "has no file or directory"),
        (from_artifact("", "data"), "has an empty part"),
        (file(foreign), "a:b:1 is not installed"),
        (file(url("http://127.0.0.1:1/x", &right)), "plain HTTP"),
        (file(url(&there, &other)), "another content"),
        (file(url(&format!("{there}-not"), &right)), "is not there"),
        (archive("/evil.zip", &zip(&[Entry::file("../evil", b"x")])), "has `..` in it"),
        (archive("/none.zip", b"no zip"), "not a ZIP that can be read"),
    ] {
        let error = gateway.ensure(std::slice::from_ref(&fill)).unwrap_err();
        assert!(chain(&error).contains(expected), "{fill:?}: {}", chain(&error));
        let mut now = gateway.bed.tree();
        now.remove("downloads/");
        let mut before = before.clone();
        before.remove("downloads/");
        assert_eq!(now, before, "{fill:?}");
    }
    // An artifact as a whole brings along what stays in it, and not the agent's own note.
    let found = gateway.filled(&[from_artifact("all", "")]);
    assert!(found["all/conf/out"].starts_with("-> ../data"));
    assert!(!found.keys().any(|path| path.contains(".coracle-artifact")));
}

#[test]
fn what_came_before_a_failure_is_not_put_there_again() {
    let gateway = Gateway::new();
    let (url, digest) = gateway.served("/late", &noise(200_000));
    let late = Prefill { to: "late".into(), source: Source::Url { url, digest }, overwrite: false };
    let fill = [texts("", &[("first", "1")]), late];
    gateway.bed.server.fail("/late", 1, Fault::CutAfter(50_000));
    gateway.bed.server.fail("/late", 1, Fault::Status(500));
    let error = gateway.ensure(&fill).unwrap_err();
    assert_eq!(error.retry(), Retry::Backoff);
    let dir = gateway.dirs.directory(&gateway.at);
    fs::remove_file(dir.join("first")).unwrap();
    gateway.ensure(&fill).unwrap();
    assert_eq!(files(tree(&dir)), ["late"]);
    let asked = gateway.bed.server.requests();
    assert_eq!(asked.last().unwrap().range.as_deref(), Some("bytes=50000-"));
    assert_eq!(names(gateway.bed.prefix.path()), ["downloads", "runtime"]);
}

fn names(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    names
}
