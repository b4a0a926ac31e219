//! Ctrl-C and its like. In: signals. Out: a flag that every waiting looks at. All work and all
//! cleaning up is done in the main thread; further signals change nothing.

use std::io::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use coracle_testbed::Result;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;

/// The flag, set by the first SIGINT, SIGTERM, SIGHUP or SIGQUIT. Children start with the signals
/// as they were.
pub(crate) fn flag() -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let mut signals =
        Signals::new([SIGINT, SIGTERM, SIGHUP, SIGQUIT]).context("cannot listen to signals")?;
    let set = Arc::clone(&flag);
    std::thread::spawn(move || {
        for _ in &mut signals {
            let again = set.swap(true, Ordering::SeqCst);
            let words = if again { "still cleaning up" } else { "cleaning up" };
            // The terminal may be gone.
            writeln!(io::stderr(), "\r\n{words} ...").ok();
        }
    });
    Ok(flag)
}
