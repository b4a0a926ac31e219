//! Waiting for something to be written, by inotify(7).

use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

/// Longest wait: where the kernel tells nothing, it is looked that often.
const LONGEST: Duration = Duration::from_secs(1);

/// What tells of changes in the directory of logs and those of containers.
#[derive(Debug)]
pub struct Watch {
    /// `None` where the kernel has no more to give.
    inotify: Option<Inotify>,
}

impl Watch {
    /// Watches nothing yet.
    #[expect(clippy::new_without_default, reason = "it opens a descriptor")]
    pub fn new() -> Self {
        let flags = InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC;
        Self { inotify: Inotify::init(flags).ok() }
    }

    /// Watches a directory; nothing if it is watched already.
    pub fn add(&self, dir: &Path) {
        let Some(inotify) = &self.inotify else { return };
        let changes =
            AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_DELETE;
        // A directory that is not there yet is looked for again after the longest wait.
        let _ = inotify.add_watch(dir, changes | AddWatchFlags::IN_ONLYDIR);
    }

    /// Waits until there may be something new.
    pub fn wait(&self) {
        let fds =
            self.inotify.iter().map(|inotify| PollFd::new(inotify.as_fd(), PollFlags::POLLIN));
        let mut fds = fds.collect::<Vec<_>>();
        let limit = PollTimeout::try_from(LONGEST).unwrap_or(PollTimeout::ZERO);
        // Interrupted or not, it is time to look.
        let told = poll(&mut fds, limit).is_ok_and(|ready| ready > 0);
        if let (Some(inotify), true) = (&self.inotify, told) {
            while inotify.read_events().is_ok_and(|events| !events.is_empty()) {}
        }
    }
}
