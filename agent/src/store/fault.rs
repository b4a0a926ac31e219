//! Named places where a crash test ends the process. Nothing of it is in a release build.

/// Environment variable that names the point at which a debug build aborts: `NAME`, or `NAME:N` for
/// the Nth time it is reached.
pub const FAULT_VARIABLE: &str = "CORACLE_FAULT_POINT";

/// Every point there is.
pub const FAULT_POINTS: &[&str] = &[
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

#[cfg(debug_assertions)]
pub(super) fn fault_point(name: &str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    static WANTED: OnceLock<Option<(String, u32)>> = OnceLock::new();
    static REACHED: AtomicU32 = AtomicU32::new(0);

    debug_assert!(FAULT_POINTS.contains(&name), "fault point {name} is not listed");
    let wanted = WANTED.get_or_init(|| {
        let text = std::env::var(FAULT_VARIABLE).ok()?;
        let (name, count) = text.split_once(':').unwrap_or((&text, "1"));
        Some((name.to_owned(), count.parse().ok()?))
    });
    if let Some((point, count)) = wanted {
        if point == name && REACHED.fetch_add(1, Ordering::Relaxed) + 1 == *count {
            std::process::abort();
        }
    }
}

#[cfg(not(debug_assertions))]
pub(super) fn fault_point(_name: &str) {}
