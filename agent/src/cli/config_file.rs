//! The agent's configuration file, for commands that do without one where there is none.

use std::io;
use std::path::Path;

use super::failure::Failure;
use crate::config::{Config, ConfigError, DEFAULT_PATH};

/// What it says, and why it is only the defaults. Only a file that was asked for by name must be
/// good: these commands are for days when nothing else works.
pub(super) fn read(
    named: Option<&Path>,
    action: &'static str,
) -> Result<(Config, Option<ConfigError>), Failure> {
    match Config::load(named.unwrap_or(Path::new(DEFAULT_PATH))) {
        Ok(config) => Ok((config, None)),
        Err(error) if named.is_some() => Err(Failure::Client { action, source: error.into() }),
        Err(ConfigError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Ok((Config::default(), None))
        }
        Err(error) => Ok((Config::default(), Some(error))),
    }
}
