//! Ctrl-C and SIGTERM: noted by a flag, so that everything that was started is ended by the way
//! out of `main`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::Result;

static NOTED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// A signal asked for the end.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// Notes signals from now on instead of dying of them.
pub(super) fn install() -> Result<()> {
    let flag = NOTED.get_or_init(Arc::default);
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, flag.clone())?;
    }
    Ok(())
}

/// An error once a signal came.
pub(super) fn check() -> Result<()> {
    match NOTED.get() {
        Some(flag) if flag.load(Ordering::Relaxed) => Err(Interrupted.into()),
        _ => Ok(()),
    }
}
