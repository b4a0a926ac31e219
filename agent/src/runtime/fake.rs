//! A runtime in memory that fails as told, for tests of what is built on [`Runtime`].
//!
//! It keeps the rules of the real one: one live task for each id, dead remains are replaced, a
//! container that does not exist is stopped and removed without complaint. Events go to the channel
//! it was made with, whose receiver must keep up.

use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use containerd_client::tonic::Status;
use coracle_core::backoff::Retry;
use coracle_core::desired::Limits;
use coracle_core::name::ContainerId;
use coracle_core::observed::{Container, Exit, Task};
use coracle_core::plan::{Start, Stop};
use tokio::sync::mpsc;

use super::{Root, Runtime, RuntimeError, RuntimeEvent, Surroundings};

const SIGTERM_EXIT: u32 = 128 + 15;

/// The runtime. Clones share one state.
#[derive(Clone, Debug)]
pub struct FakeRuntime {
    state: Arc<Mutex<State>>,
    events: mpsc::Sender<RuntimeEvent>,
}

#[derive(Debug, Default)]
struct State {
    containers: BTreeMap<ContainerId, Container>,
    failing_starts: BTreeMap<ContainerId, u32>,
    hanging_stops: BTreeSet<ContainerId>,
    exit_codes: BTreeMap<ContainerId, u32>,
    unreachable: bool,
    last_pid: u32,
    last_exit: u64,
    calls: Vec<String>,
}

impl FakeRuntime {
    /// An empty one that is reachable, and its events (room for 1024). Nothing tells `Connected`
    /// until [`connect`](Self::connect).
    pub fn new() -> (Self, mpsc::Receiver<RuntimeEvent>) {
        let (events, receiver) = mpsc::channel(1024);
        (Self { state: Arc::default(), events }, receiver)
    }

    /// The next `times` starts of this container fail.
    pub fn fail_starts(&self, id: &ContainerId, times: u32) {
        self.state().failing_starts.insert(id.clone(), times);
    }

    /// Stops of this container never finish, until told otherwise; the ones that hang already do
    /// for good.
    pub fn hang_stops(&self, id: &ContainerId, hang: bool) {
        let mut state = self.state();
        if hang {
            state.hanging_stops.insert(id.clone());
        } else {
            state.hanging_stops.remove(id);
        }
    }

    /// Commands in this container end at once with this code from now on; without it, with 0.
    pub fn set_exit_code(&self, id: &ContainerId, code: u32) {
        self.state().exit_codes.insert(id.clone(), code);
    }

    /// Every request fails until [`connect`](Self::connect); tells `Disconnected`.
    pub fn disconnect(&self) {
        self.state().unreachable = true;
        self.tell(RuntimeEvent::Disconnected { reason: "as told".into() });
    }

    /// Requests are answered; tells `Connected`.
    pub fn connect(&self) {
        self.state().unreachable = false;
        self.tell(RuntimeEvent::Connected { version: "fake".into() });
    }

    /// The main process of a running container ends; told unless disconnected. False if it does
    /// not run.
    pub fn end(&self, id: &ContainerId, code: u32) -> bool {
        let mut state = self.state();
        let Some(event) = state.end(id, code) else { return false };
        let silent = state.unreachable;
        drop(state);
        if !silent {
            self.tell(event);
        }
        true
    }

    /// Tells the end of a container, whatever is there.
    pub fn tell_exit(&self, id: &ContainerId, pid: u32, exit: Exit) {
        self.tell(RuntimeEvent::Exited { id: id.clone(), pid, exit });
    }

    /// Puts a container there, as an earlier agent would have left it.
    pub fn insert(&self, id: ContainerId, container: Container) {
        self.state().containers.insert(id, container);
    }

    /// What exists, reachable or not.
    pub fn containers(&self) -> BTreeMap<ContainerId, Container> {
        self.state().containers.clone()
    }

    /// The calls so far that change something, such as `start web.0.main`, in order; forgotten by
    /// asking.
    pub fn take_calls(&self) -> Vec<String> {
        std::mem::take(&mut self.state().calls)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Events that nobody takes are lost, as they are when the agent ends.
    fn tell(&self, event: RuntimeEvent) {
        if let Err(error) = self.events.try_send(event) {
            tracing::debug!(%error, "nobody takes an event of the fake runtime");
        }
    }
}

impl State {
    fn reach(&self) -> Result<(), RuntimeError> {
        if self.unreachable {
            return Err(RuntimeError::Unreachable(Box::new(Status::unavailable("as told"))));
        }
        Ok(())
    }

    fn running(&mut self, id: &ContainerId) -> Result<&mut Container, RuntimeError> {
        self.reach()?;
        let running = |container: &&mut Container| matches!(container.task, Task::Running { .. });
        let container = self.containers.get_mut(id).filter(running);
        container.ok_or_else(|| RuntimeError::NotRunning { id: id.clone() })
    }

    fn end(&mut self, id: &ContainerId, code: u32) -> Option<RuntimeEvent> {
        let container = self.containers.get_mut(id)?;
        let Task::Running { pid } = container.task else { return None };
        self.last_exit += 1;
        let exit = Exit { code, at_nanos: self.last_exit };
        container.task = Task::Stopped(exit);
        Some(RuntimeEvent::Exited { id: id.clone(), pid, exit })
    }

    fn start(&mut self, start: &Start) -> Result<u32, RuntimeError> {
        self.reach()?;
        self.calls.push(format!("start {}", start.id));
        let id = start.id.clone();
        if let Some(Task::Running { pid }) = self.containers.get(&id).map(|c| c.task) {
            return Err(RuntimeError::Live { id, pid });
        }
        if let Some(times) = self.failing_starts.get_mut(&id).filter(|times| **times > 0) {
            *times -= 1;
            let message = "as told".into();
            return Err(RuntimeError::Refused {
                doing: "start",
                id,
                message,
                retry: Retry::Backoff,
            });
        }
        self.last_pid += 1;
        let pid = self.last_pid;
        let container = Container {
            replica: start.replica.clone(),
            name: start.container.name.clone(),
            generation: start.generation,
            definition: start.definition.clone(),
            limits: start.container.limits.label().into(),
            task: Task::Running { pid },
        };
        self.containers.insert(id, container);
        Ok(pid)
    }
}

impl Runtime for FakeRuntime {
    async fn list(&self) -> Result<BTreeMap<ContainerId, Container>, RuntimeError> {
        let state = self.state();
        state.reach()?;
        Ok(state.containers.clone())
    }

    async fn start(
        &self,
        start: &Start,
        _root: &Root,
        _surroundings: &Surroundings,
    ) -> Result<u32, RuntimeError> {
        tokio::task::yield_now().await;
        self.state().start(start)
    }

    async fn clear_dead(&self, _id: &ContainerId) -> Result<(), RuntimeError> {
        // Dead remains are replaced by the next start.
        Ok(())
    }

    async fn stop(&self, stop: &Stop) -> Result<(), RuntimeError> {
        tokio::task::yield_now().await;
        let hangs = {
            let mut state = self.state();
            state.reach()?;
            state.calls.push(format!("stop {}", stop.id));
            state.hanging_stops.contains(&stop.id)
        };
        if hangs {
            pending::<()>().await;
        }
        self.end(&stop.id, SIGTERM_EXIT);
        self.state().containers.remove(&stop.id);
        Ok(())
    }

    async fn remove(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        tokio::task::yield_now().await;
        let mut state = self.state();
        state.reach()?;
        state.calls.push(format!("remove {id}"));
        if let Some(Task::Running { pid }) = state.containers.get(id).map(|c| c.task) {
            return Err(RuntimeError::Live { id: id.clone(), pid });
        }
        state.containers.remove(id);
        Ok(())
    }

    async fn set_limits(&self, id: &ContainerId, limits: &Limits) -> Result<(), RuntimeError> {
        tokio::task::yield_now().await;
        let mut state = self.state();
        state.running(id)?.limits = limits.label().into();
        state.calls.push(format!("limit {id}"));
        Ok(())
    }

    async fn exec(
        &self,
        id: &ContainerId,
        command: &[String],
        _limit: Duration,
    ) -> Result<u32, RuntimeError> {
        tokio::task::yield_now().await;
        let mut state = self.state();
        state.running(id)?;
        state.calls.push(format!("exec {id}: {}", command.join(" ")));
        Ok(state.exit_codes.get(id).copied().unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use coracle_core::image::{Digest, ImageRef};

    use coracle_core::plan::Why;

    use super::*;
    use crate::containerd::LocalImage;
    use crate::runtime::oci::tests::start;

    fn root() -> Root {
        Root::Image(LocalImage {
            reference: ImageRef::parse("registry.example/web:1").unwrap(),
            digest: Digest::parse(&format!("sha256:{}", "0".repeat(64))).unwrap(),
            config: Vec::new(),
            chain_id: None,
        })
    }

    #[tokio::test(start_paused = true)]
    async fn it_keeps_the_rules_and_fails_as_told() {
        let (runtime, mut events) = FakeRuntime::new();
        let (start, root, around) = (start(), root(), Surroundings::default());
        runtime.fail_starts(&start.id, 1);
        assert!(matches!(
            runtime.start(&start, &root, &around).await,
            Err(RuntimeError::Refused { .. })
        ));
        let pid = runtime.start(&start, &root, &around).await.unwrap();
        let second = runtime.start(&start, &root, &around).await;
        assert!(matches!(second, Err(RuntimeError::Live { pid: live, .. }) if live == pid));
        assert!(matches!(runtime.remove(&start.id).await, Err(RuntimeError::Live { .. })));
        assert!(runtime.end(&start.id, 3));
        assert!(!runtime.end(&start.id, 3));
        let told = events.recv().await;
        assert!(matches!(told, Some(RuntimeEvent::Exited { exit, .. }) if exit.code == 3));

        runtime.start(&start, &root, &around).await.unwrap();
        let stop = Stop {
            replica: start.replica.clone(),
            id: start.id.clone(),
            why: Why::Unwanted,
            drain: Duration::ZERO,
            pre_stop: None,
            signal: None,
            grace: Duration::ZERO,
        };
        runtime.hang_stops(&start.id, true);
        let hangs = tokio::time::timeout(Duration::from_secs(3600), runtime.stop(&stop)).await;
        assert!(hangs.is_err());
        runtime.hang_stops(&start.id, false);
        runtime.disconnect();
        assert!(runtime.list().await.unwrap_err().is_unreachable());
        runtime.connect();
        runtime.stop(&stop).await.unwrap();
        assert!(runtime.list().await.unwrap().is_empty());
        let calls = ["start", "start", "start", "remove", "start", "stop", "stop"];
        let calls = calls.map(|call| format!("{call} {}", start.id));
        assert_eq!(runtime.take_calls(), calls);
    }
}
