//! What exists: lists, exits, containerd coming and going.

use std::collections::BTreeMap;
use std::time::Duration;

use coracle_core::artifact::ArtifactId;
use coracle_core::name::{ContainerId, ReplicaId};
use coracle_core::observed::{self, Container, Exit, Pod, Task};
use coracle_protocol::reported::ConditionStatus;

use super::{Done, EventLoop};
use crate::execute::{Execute, Failure, Installed, Seen};
use crate::runtime::RuntimeEvent;

/// Pause before another look after one failed.
const AFTER_FAILURE: Duration = Duration::from_secs(5);

/// Pause before another look at a task in a state that containerd does not know.
const AFTER_UNKNOWN: Duration = Duration::from_secs(30);

/// Pause before a look for no reason but that an event may have been lost, or containerd may hang.
const ROUTINE: Duration = Duration::from_secs(120);

impl<E: Execute> EventLoop<E> {
    pub(super) fn on_runtime(&mut self, event: RuntimeEvent) {
        let now = self.clock.now();
        match event {
            RuntimeEvent::Connected { version } => {
                let message = format!("containerd {version}");
                self.condition("containerd", ConditionStatus::True, "reachable", &message);
                self.happened(now, "containerd-up", None, format!("{message} answers"));
                self.containerd_version = version;
                self.reachable = true;
                self.look_anew();
            }
            RuntimeEvent::Disconnected { reason } => {
                self.happened(now, "containerd-down", None, format!("no containerd: {reason}"));
                self.on_unreachable(&reason);
                self.reachable = false;
                self.look_at = None;
            }
            RuntimeEvent::Exited { id, pid, exit } => self.on_exit(id, pid, exit),
            RuntimeEvent::OutOfMemory { id } => {
                self.history.out_of_memory(&id, now);
                let replica = id.parts().map(|(replica, _)| replica);
                let name = id.parts().map(|(_, name)| name.to_string());
                let whose = name.filter(|name| name != "main").map(|name| format!("{name}: "));
                let message = format!(
                    "{}the kernel killed a process for want of memory",
                    whose.unwrap_or_default()
                );
                self.happened(now, "out-of-memory", replica.as_ref(), message);
            }
        }
    }

    /// containerd does not answer. What it ran keeps running; what exists is unknown.
    pub(super) fn on_unreachable(&mut self, reason: &str) {
        let now = self.clock.now();
        self.condition("containerd", ConditionStatus::False, "not-reachable", reason);
        self.observed.containers = None;
        self.changed();
        // `follow` says when it answers again; if it never noticed, a look tells. Not at once: the
        // same might fail again at once.
        self.look_at = Some(now.monotonic + AFTER_FAILURE);
    }

    fn on_exit(&mut self, id: ContainerId, pid: u32, exit: Exit) {
        self.changed();
        let now = self.clock.now();
        let starting = |c: &Container| {
            let busy = self.busy.get(&c.replica);
            busy.is_some_and(|busy| busy.starting.as_ref() == Some(&c.name))
        };
        let container = self.observed.containers.as_mut().and_then(|all| all.get_mut(&id));
        match container {
            // What is known is the one before, and the start has yet to tell of this one.
            Some(container) if starting(container) => {
                self.early_exits.insert(id, (pid, exit));
            }
            Some(Container { task: Task::Running { pid: other }, .. }) if *other != pid => {}
            // Told again, as after containerd was slow.
            Some(Container { task: Task::Stopped(known), .. }) if *known == exit => {}
            Some(container) => {
                container.task = Task::Stopped(exit);
                let replica = container.replica.clone();
                let whose = match container.name.as_str() {
                    "main" => String::new(),
                    name => format!("{name}: "),
                };
                let message = format!("{whose}process {pid} ended with exit code {}", exit.code);
                self.happened(now, "ended", Some(&replica), message);
            }
            // Of a start that has not been told yet; of another's container at worst, for a while.
            None if !self.busy.is_empty() => {
                self.early_exits.insert(id, (pid, exit));
            }
            None => {}
        }
    }

    /// Looks at everything now; after a look that is under way, once more.
    pub(super) fn look_anew(&mut self) {
        self.changed();
        self.look();
    }

    /// Looks if it is time to.
    pub(super) fn look_if_due(&mut self) {
        let now = self.clock.now().monotonic;
        if self.look_around_at <= now {
            self.look_around();
        }
        if self.look_at.is_some_and(|at| at <= now) {
            self.look();
        }
    }

    pub(super) fn look(&mut self) {
        if self.looking {
            return;
        }
        self.looking = true;
        self.look_at = None;
        self.look_around();
        let (hands, epoch) = (self.hands.clone(), self.epoch);
        self.work.spawn(async move { Done::Looked { epoch, seen: hands.look().await } });
    }

    /// What the gateway itself offers.
    pub(super) fn look_around(&mut self) {
        // Each look comes before that is due: without containerd there are none.
        self.look_around_at = self.clock.now().monotonic + ROUTINE + AFTER_FAILURE;
        self.measure();
        self.take_in_usage();
        for finding in self.health.findings() {
            let status = match finding.good {
                true => ConditionStatus::True,
                false => ConditionStatus::False,
            };
            self.condition(finding.name, status, finding.reason, &finding.message);
        }
    }

    pub(super) fn on_looked(&mut self, epoch: u64, seen: Result<Seen, Failure>) {
        let now = self.clock.now();
        self.looking = false;
        match seen {
            Ok(_) if epoch != self.epoch => self.look(),
            Ok(seen) => {
                let version = format!("version {}", self.containerd_version);
                self.condition("containerd", ConditionStatus::True, "reachable", &version);
                let unknown = seen.containers.values().any(|c| c.task == Task::Unknown);
                let pause = if unknown { AFTER_UNKNOWN } else { ROUTINE };
                self.look_at = Some(now.monotonic + pause);
                self.observed.containers = Some(seen.containers);
                self.observed.images = seen.images;
                let observed = |(id, there): (&ArtifactId, &Installed)| {
                    let (digest, by_hand) = (there.digest.clone(), there.by_hand);
                    (id.clone(), observed::Artifact { digest, by_hand })
                };
                self.observed.artifacts = seen.artifacts.iter().map(observed).collect();
                self.installed = seen.artifacts;
                self.on_pods(seen.pods);
                self.trust_what_ran();
            }
            Err(failure) => {
                let reason = &failure.message;
                self.condition("containerd", ConditionStatus::False, "not-reachable", reason);
                self.observed.containers = None;
                // While containerd is known to be away, `follow` says when it is back.
                self.look_at = self.reachable.then(|| now.monotonic + AFTER_FAILURE);
            }
        }
    }

    fn on_pods(&mut self, pods: Result<BTreeMap<ReplicaId, Pod>, Failure>) {
        const NAME: &str = "pods";
        match pods {
            Ok(pods) => {
                self.observed.pods = pods;
                let message = "what is around containers is known";
                self.condition(NAME, ConditionStatus::True, "listed", message);
            }
            // What was known last is nearer to the truth than nothing.
            Err(failure) => {
                self.condition(NAME, ConditionStatus::False, "not-listed", &failure.message);
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
