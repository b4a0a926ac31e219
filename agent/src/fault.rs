//! Named places where a crash test ends the process. Nothing of it is in a release build.
//!
//! In: [`FAULT_VARIABLE`]. A test lets a child run with it set to each name of a list in turn, or to 1,
//! 2, 3 and so on until the child lives: then every step was cut off once.

/// Environment variable that says at which point a debug build aborts: `NAME`, `NAME:N` for the Nth
/// time that it is reached, or `N` for the Nth point of any name.
pub const FAULT_VARIABLE: &str = "CORACLE_FAULT_POINT";

/// Every point of the store.
pub const STORE_POINTS: &[&str] = &[
    "create.initialised",
    "create.renamed",
    "set_aside.renamed",
    "migrate.before_commit",
    "accept.before_commit",
    "accept.after_commit",
    "record.before_commit",
    "record.after_commit",
    "reserve.before_commit",
    "reserve.after_commit",
    "order_file.written",
    "order_file.synced",
    "order_file.linked",
    "order_file.previous_renamed",
    "order_file.renamed",
];

/// Every point of the mounts.
pub const MOUNTS_POINTS: &[&str] = &[
    "container.cleaned",
    "use.marked",
    "volume.made",
    "volume.opened",
    "volume.renamed",
    "volume.synced",
    "file.created",
    "file.written",
    "file.renamed",
    "map.begun",
    "map.version_written",
    "map.version_renamed",
    "map.named",
    "map.link_made",
    "map.swapped",
    "map.cleaned",
    "remove.renamed",
    "remove.deleted",
];

/// Every point of an installation, a removal, and the filling of a runtime directory.
pub const ARTIFACTS_POINTS: &[&str] = &[
    "download.noted",
    "download.begun",
    "download.appended",
    "unpack.file_written",
    "install.unpacked",
    "install.synced",
    "install.parents_made",
    "install.named",
    "download.discarding",
    "remove.hidden",
    "remove.deleted",
    "runtime.forgotten",
    "runtime.made",
    "runtime.named",
    "fill.staged",
    "fill.moved",
    "fill.synced",
    "fill.noted",
    "purge.forgotten",
    "purge.hidden",
    "purge.deleted",
];

/// Every point in the life of a command.
pub const COMMANDS_POINTS: &[&str] = &[
    "command.read",
    "command.accepted",
    "command.acknowledged",
    "command.beginning",
    "command.begun",
    "command.doing",
    "command.rebooting",
    "command.done",
    "command.giving",
    "command.given",
    "command.ending",
    "command.ended",
    "command.telling",
    "command.told",
    "command.receipt",
    "command.received",
];

/// The folders whose points are gone through by name. What is not listed would never be tried.
#[cfg(debug_assertions)]
const LISTED: &[(&str, &[&str])] = &[
    ("/src/store/", STORE_POINTS),
    ("/src/mounts/", MOUNTS_POINTS),
    ("/src/artifacts/", ARTIFACTS_POINTS),
    ("/src/event_loop/commands", COMMANDS_POINTS),
];

/// One step. It is named on standard error when the process ends here.
#[cfg(debug_assertions)]
#[track_caller]
pub(crate) fn fault_point(name: &str) {
    use std::panic::Location;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    static WANTED: OnceLock<Option<Wanted>> = OnceLock::new();
    static REACHED: AtomicU32 = AtomicU32::new(0);

    check_listed(Location::caller().file(), name);
    let wanted = WANTED.get_or_init(|| Wanted::parse(&std::env::var(FAULT_VARIABLE).ok()?));
    if let Some(wanted) = wanted.as_ref().filter(|wanted| wanted.is_one(name)) {
        let reached = REACHED.fetch_add(1, Ordering::Relaxed) + 1;
        if reached == wanted.count {
            eprintln!("fault point {reached}: {name}");
            std::process::abort();
        }
    }
}

#[cfg(debug_assertions)]
fn check_listed(file: &str, name: &str) {
    let listed = LISTED.iter().find(|(folder, _)| file.contains(folder));
    assert!(
        listed.is_none_or(|(_, names)| names.contains(&name)),
        "fault point {name} is not listed"
    );
}

/// One step.
#[cfg(not(debug_assertions))]
pub(crate) fn fault_point(_name: &str) {}

/// Where the process is to end.
#[cfg(debug_assertions)]
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    /// `None` for any.
    name: Option<String>,
    /// From 1.
    count: u32,
}

#[cfg(debug_assertions)]
impl Wanted {
    fn parse(text: &str) -> Option<Self> {
        if let Ok(count) = text.parse() {
            return Some(Self { name: None, count });
        }
        let (name, count) = text.split_once(':').unwrap_or((text, "1"));
        Some(Self { name: Some(name.to_owned()), count: count.parse().ok()? })
    }

    fn is_one(&self, name: &str) -> bool {
        self.name.as_deref().is_none_or(|wanted| wanted == name)
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::*;

    #[test]
    fn a_point_is_wanted_by_its_name_or_by_its_number() {
        let wanted = |text| Wanted::parse(text).map(|wanted| (wanted.name, wanted.count));
        assert_eq!(wanted("use.marked"), Some((Some("use.marked".into()), 1)));
        assert_eq!(wanted("use.marked:3"), Some((Some("use.marked".into()), 3)));
        assert_eq!(wanted("17"), Some((None, 17)));
        assert_eq!(wanted("use.marked:x"), None);
        assert!(Wanted::parse("2").unwrap().is_one("whatever"));
        assert!(!Wanted::parse("a").unwrap().is_one("b"));
    }

    #[test]
    #[should_panic(expected = "fault point nobody.knows is not listed")]
    fn a_point_that_no_test_goes_through_is_refused() {
        check_listed("agent/src/store/worker.rs", "nobody.knows");
    }
}
