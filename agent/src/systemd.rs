//! What the service manager is told, by the protocol of sd_notify(3)
//! (<https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html>). Without one, nothing
//! is said and nothing fails.

use std::time::Duration;

use sd_notify::NotifyState;

/// The way to the service manager.
#[derive(Debug, Default)]
pub struct ServiceManager {
    status: String,
}

impl ServiceManager {
    /// How often it wants to hear that we are alive; `None` if it does not watch us. Half of the
    /// time after which it gives up on us, as sd_watchdog_enabled(3) advises.
    pub fn watchdog(&self) -> Option<Duration> {
        sd_notify::watchdog_enabled().map(|limit| limit / 2)
    }

    /// The orders are loaded.
    pub fn ready(&self) {
        say(NotifyState::Ready);
    }

    /// The loop turns and the store answers.
    pub fn alive(&self) {
        say(NotifyState::Watchdog);
    }

    /// The agent is going down.
    pub fn stopping(&self) {
        say(NotifyState::Stopping);
    }

    /// One line for `systemctl status`; the same again is not sent.
    pub fn status(&mut self, line: String) {
        if line != self.status {
            say(NotifyState::Status(&line));
            self.status = line;
        }
    }
}

fn say(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::debug!(%error, "the service manager was not told");
    }
}
