//! What exists: lists, exits, containerd coming and going.

use std::collections::BTreeMap;
use std::time::Duration;

use coracle_core::name::ContainerId;
use coracle_core::observed::{Container, Exit, Task};
use coracle_protocol::reported::ConditionStatus;

use tokio::task::AbortHandle;

use super::{Done, EventLoop};
use crate::execute::{Execute, Failure, Seen};
use crate::runtime::RuntimeEvent;

/// Pause before another look after one failed though containerd is said to be there.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// A look that is under way.
#[derive(Debug)]
pub(super) struct Looking {
    task: AbortHandle,
    /// It begins with a pause, and may be called off for one that does not.
    later: bool,
}

impl<E: Execute> EventLoop<E> {
    pub(super) fn on_runtime(&mut self, event: RuntimeEvent) {
        let now = self.clock.now();
        match event {
            RuntimeEvent::Connected { version } => {
                let message = format!("containerd {version}");
                self.conditions.set(
                    "containerd",
                    ConditionStatus::True,
                    "reachable",
                    &message,
                    now,
                );
                self.happened(now, "containerd-up", None, format!("{message} answers"));
                self.containerd_version = version;
                self.reachable = true;
                self.look_anew();
            }
            RuntimeEvent::Disconnected { reason } => {
                self.happened(now, "containerd-down", None, format!("no containerd: {reason}"));
                self.on_unreachable(&reason);
                self.reachable = false;
            }
            RuntimeEvent::Exited { id, pid, exit } => self.on_exit(id, pid, exit),
        }
    }

    /// containerd does not answer. What it ran keeps running; what exists is unknown.
    pub(super) fn on_unreachable(&mut self, reason: &str) {
        let now = self.clock.now();
        self.conditions.set("containerd", ConditionStatus::False, "not-reachable", reason, now);
        self.observed.containers = None;
        self.changed();
        // `follow` says when it answers again; if it never noticed, a look tells.
        self.look_anew();
    }

    fn on_exit(&mut self, id: ContainerId, pid: u32, exit: Exit) {
        self.changed();
        let now = self.clock.now();
        let container = self.observed.containers.as_mut().and_then(|all| all.get_mut(&id));
        match container {
            Some(container) if container.task == (Task::Running { pid }) => {
                container.task = Task::Stopped(exit);
                let replica = container.replica.clone();
                let message = format!("process {pid} ended with exit code {}", exit.code);
                self.happened(now, "ended", Some(&replica), message);
            }
            // Of a start that has not been told yet; of another's container at worst, for a while.
            _ if !self.busy.is_empty() => {
                self.early_exits.insert(id, (pid, exit));
            }
            _ => {}
        }
    }

    /// Looks at everything, unless that is being done already; then once more after that.
    pub(super) fn look_anew(&mut self) {
        self.changed();
        self.look();
    }

    fn look(&mut self) {
        match self.looking.take() {
            Some(Looking { task, later: true }) => task.abort(),
            Some(under_way) => {
                self.looking = Some(under_way);
                return;
            }
            None => {}
        }
        self.spawn_look(false);
    }

    fn spawn_look(&mut self, later: bool) {
        let (hands, epoch) = (self.hands.clone(), self.epoch);
        let task = self.work.spawn(async move {
            if later {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            Done::Looked { epoch, seen: hands.look().await }
        });
        self.looking = Some(Looking { task, later });
    }

    pub(super) fn on_looked(&mut self, epoch: u64, seen: Result<Seen, Failure>) {
        self.looking = None;
        match seen {
            Ok(_) if epoch != self.epoch => self.look(),
            Ok(seen) => {
                let now = self.clock.now();
                let version = format!("version {}", self.containerd_version);
                self.conditions.set(
                    "containerd",
                    ConditionStatus::True,
                    "reachable",
                    &version,
                    now,
                );
                self.observed.containers = Some(seen.containers);
                self.observed.images = seen.images;
            }
            Err(failure) => {
                let now = self.clock.now();
                let reason = &failure.message;
                self.conditions.set(
                    "containerd",
                    ConditionStatus::False,
                    "not-reachable",
                    reason,
                    now,
                );
                self.observed.containers = None;
                if self.reachable {
                    self.spawn_look(true);
                }
            }
        }
    }

    /// What exists is about to differ from what a look that is under way will say.
    pub(super) fn changed(&mut self) {
        self.epoch += 1;
    }

    pub(super) fn containers_mut<T>(
        &mut self,
        change: impl FnOnce(&mut BTreeMap<ContainerId, Container>) -> T,
    ) {
        if let Some(containers) = &mut self.observed.containers {
            change(containers);
        }
    }

    /// Brings what is under way into what is observed.
    pub(super) fn refresh_observed(&mut self) {
        self.observed.busy = self.busy.clone();
        self.observed.pulling = self.pulls.keys().cloned().collect();
        if self.busy.is_empty() {
            self.early_exits.clear();
        }
    }
}
