//! The daemon: joins the adapters to the event loop.

use crate::config::Config;

/// Runs the daemon until it is told to end.
///
/// # Errors
/// It cannot start, or cannot go on.
pub fn run(config: Config) -> anyhow::Result<()> {
    anyhow::bail!("gateway {}: this build has no daemon yet", config.gateway)
}
