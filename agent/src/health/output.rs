//! Whether what containers say is kept.

use super::Finding;
use crate::config::Config;
use crate::logs;

const NAME: &str = "logs";

pub(super) fn look(config: &Config) -> Finding {
    match logs::problem(&config.logs, &config.state_dir) {
        None => Finding::good(NAME, "kept", "what containers say is kept"),
        Some(problem) => Finding::bad(NAME, "not-kept", problem),
    }
}
