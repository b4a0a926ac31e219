//! Asks the service manager to boot the machine anew. It ends the agent on its way, which then takes
//! leave of the broker.
//!
//! In: `[reboot]` of the configuration. Deliberately not here: whether anybody may ask for it.

use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use crate::config::RebootConfig;

/// Longest that the program may take to pass the wish on.
const LIMIT: Duration = Duration::from_secs(30);

/// The machine is not booted anew.
#[derive(Debug, thiserror::Error)]
pub enum RebootError {
    /// The program cannot be started.
    #[error("cannot start {program}")]
    NotStarted {
        /// Which.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The program says no.
    #[error("{program} failed ({status})")]
    Refused {
        /// Which.
        program: PathBuf,
        /// How it ended.
        status: std::process::ExitStatus,
    },
    /// The program does not end.
    #[error("{program} did not end within {} s", LIMIT.as_secs())]
    Slow {
        /// Which.
        program: PathBuf,
    },
}

/// Asks for a reboot.
///
/// # Errors
/// The program that is to do it cannot be started, fails, or hangs.
pub async fn ask(config: &RebootConfig) -> Result<(), RebootError> {
    let program = config.program.clone();
    let mut command = Command::new(&program);
    command.args(&config.arguments).stdin(Stdio::null()).kill_on_drop(true);
    match timeout(LIMIT, command.status()).await {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(RebootError::Refused { program, status }),
        Ok(Err(source)) => Err(RebootError::NotStarted { program, source }),
        Err(_) => Err(RebootError::Slow { program }),
    }
}
