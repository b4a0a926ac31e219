//! The agent's log, on standard error.

use std::env;
use std::io::{self, IsTerminal};

use nix::sys::stat::fstat;
use tracing::Level;

use super::style::colour_allowed;

/// How the agent logs.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// How much is logged: error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", env = "CORACLE_LOG", default_value = "info")]
    pub log_level: Level,
    /// Log lines of JSON instead of text
    #[arg(long)]
    pub log_json: bool,
}

/// Starts logging to standard error. The journal notes the time by itself, so it is left out there.
pub fn start(args: &Args) {
    let journal = stderr_is_the_journal();
    let log = tracing_subscriber::fmt()
        .with_max_level(args.log_level)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal() && colour_allowed());
    match (args.log_json, journal) {
        (false, false) => log.init(),
        (false, true) => log.without_time().init(),
        (true, false) => log.json().init(),
        (true, true) => log.json().without_time().init(),
    }
}

/// Whether systemd connected standard error with the journal
/// (<https://www.freedesktop.org/software/systemd/man/latest/systemd.exec.html#%24JOURNAL_STREAM>).
fn stderr_is_the_journal() -> bool {
    let (Ok(named), Ok(stderr)) = (env::var("JOURNAL_STREAM"), fstat(io::stderr())) else {
        return false;
    };
    named == format!("{}:{}", stderr.st_dev, stderr.st_ino)
}
