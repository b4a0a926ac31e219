//! Signs of life for the service manager's watchdog. Each is given only after the store's thread
//! answered, so that a loop that hangs and a store that hangs are both noticed.

use std::time::Duration;

use coracle_core::history::Now;
use coracle_protocol::ReportedState;
use coracle_protocol::reported::ReplicaState;

use super::{Done, EventLoop};
use crate::execute::Execute;
use crate::systemd::ServiceManager;

/// The service manager, and when to give it the next sign of life.
#[derive(Debug)]
pub(super) struct Life {
    manager: ServiceManager,
    every: Option<Duration>,
    /// `None` while an answer of the store is awaited, and without a watchdog.
    next: Option<Duration>,
}

impl Life {
    pub(super) fn new(manager: ServiceManager) -> Self {
        let every = manager.watchdog();
        Self { manager, every, next: every.map(|_| Duration::ZERO) }
    }

    pub(super) fn due(&self) -> Option<Duration> {
        self.next
    }
}

impl<E: Execute> EventLoop<E> {
    /// The orders are loaded and the loop begins to turn.
    pub(super) fn say_ready(&self) {
        self.life.manager.ready();
    }

    pub(super) fn say_stopping(&self) {
        self.life.manager.stopping();
    }

    /// Asks the store for its sign of life when it is time.
    pub(super) fn ask_store(&mut self, now: Now) {
        if self.life.next.take_if(|next| *next <= now.monotonic).is_some() {
            let store = self.store.clone();
            self.work.spawn(async move { Done::StoreAnswered(store.answers().await) });
        }
    }

    /// The store answered, and the loop turns.
    pub(super) fn on_store_answered(&mut self, answered: bool) {
        if answered {
            self.life.manager.alive();
        }
        let now = self.clock.now().monotonic;
        self.life.next = self.life.every.map(|every| now + every);
    }

    /// Tells the service manager how things are.
    pub(super) fn say_status(&mut self, report: &ReportedState) {
        let connected = self.link_status.as_ref().map(|link| link.connected);
        self.life.manager.status(line(report, connected));
    }
}

/// `generation 7: 3 of 4 replicas as ordered; connected`.
fn line(report: &ReportedState, connected: Option<bool>) -> String {
    let states: Vec<_> = report.workloads.iter().flat_map(|w| &w.replicas).collect();
    let well = |state| matches!(state, ReplicaState::Running | ReplicaState::Completed);
    let as_ordered = states.iter().filter(|replica| well(replica.state)).count();
    let orders = match report.generation_applied {
        0 => "no orders yet".to_owned(),
        generation => {
            format!("generation {generation}: {as_ordered} of {} replicas as ordered", states.len())
        }
    };
    let link = match connected {
        Some(true) => "; connected",
        Some(false) => "; not connected",
        None => "",
    };
    orders + link
}
