//! Interrupts (Ctrl-C) that are held back for as long as there is something to say before the end.
//! In: SIGINT. Out: whether it came; and at last what it does to every program.

use std::os::fd::AsFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::failure::Failure;
use crate::clock::monotonic_now;

/// Holds interrupts back until it is dropped.
#[derive(Debug)]
pub(super) struct Interrupts {
    came: SignalFd,
    before: SigSet,
}

impl Interrupts {
    pub(super) fn hold() -> Result<Self, Failure> {
        let mut held = SigSet::empty();
        held.add(Signal::SIGINT);
        let before = SigSet::thread_get_mask().map_err(failure)?;
        let came = SignalFd::with_flags(&held, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .map_err(failure)?;
        held.thread_block().map_err(failure)?;
        Ok(Self { came, before })
    }

    /// Waits that long, or until an interrupt comes: whether one did.
    pub(super) fn came_within(&self, time: Duration) -> Result<bool, Failure> {
        let started = monotonic_now();
        loop {
            let left = time.saturating_sub(started.elapsed());
            if self.came.read_signal().map_err(failure)?.is_some() {
                return Ok(true);
            }
            if left.is_zero() {
                return Ok(false);
            }
            self.wait(left)?;
        }
    }

    fn wait(&self, time: Duration) -> Result<(), Failure> {
        // A part of a millisecond is waited for, too, instead of turning round in it.
        let time =
            PollTimeout::try_from(time + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(self.came.as_fd(), PollFlags::POLLIN)], time) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(failure(error)),
        }
    }

    /// Ends as the interrupt asked for, so that a script that called us ends as well; returns only
    /// where interrupts are ignored.
    pub(super) fn obey(self) -> Result<(), Failure> {
        drop(self);
        raise(Signal::SIGINT).map_err(failure)
    }
}

impl Drop for Interrupts {
    fn drop(&mut self) {
        // It was set to this before, so it can be again.
        let _ = self.before.thread_set_mask();
    }
}

fn failure(error: Errno) -> Failure {
    Failure::Client { action: "wait for interrupts", source: error.into() }
}
