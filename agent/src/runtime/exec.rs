//! A command in a container that runs.
//!
//! containerd keeps a process that was added to a task until it is deleted, also when nobody knows
//! of it any more. So each is cleared away however the wait for it ends; and the first time that
//! something is run in a container, what an agent that died left running there is ended.

use std::collections::BTreeSet;
use std::fs;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use containerd_client::services::v1::{
    DeleteProcessRequest, ExecProcessRequest, GetRequest, KillRequest, ListPidsRequest,
    StartRequest, WaitRequest,
};
use containerd_client::tonic::{Code, Status};
use coracle_core::name::ContainerId;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use prost::Message;
use prost_types::Any;
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::runtime::Handle;
use tokio::time::timeout;
use tracing::debug;

use super::cgroup::Cgroups;
use super::container::{ContainerdRuntime, SIGKILL, found};
use super::error::RuntimeError;
use super::start::random;

/// For errors.
const RUN: &str = "run a command in";
const DELETE: &str = "delete a command in";

const PROCESS_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

/// Where output goes. With nothing said the shim gives a command the null device open for reading
/// only, and everything that prints fails.
const NOWHERE: &str = "file:///dev/null";

/// Every id of ours begins like this.
const OURS: &str = "coracle-";

/// Until containerd must have begun to run a command, which is not the command's fault.
const START_LIMIT: Duration = Duration::from_secs(10);

/// Until what was killed must be gone and deleted.
const CLEAR_LIMIT: Duration = Duration::from_secs(20);

/// Between two looks at a process that was killed and is still there.
const CLEAR_PAUSE: Duration = Duration::from_secs(1);

/// What this agent runs, and where it has cleared up what nobody waits for any more.
#[derive(Debug, Default)]
pub(super) struct Executions(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// Ids that are waited for.
    running: BTreeSet<String>,
    cleared: BTreeSet<ContainerId>,
}

impl Executions {
    fn begin(&self) -> String {
        let id = format!("{OURS}{}", random());
        self.known().running.insert(id.clone());
        id
    }

    fn end(&self, id: &str) {
        self.known().running.remove(id);
    }

    fn is_abandoned(&self, id: &str) -> bool {
        id.starts_with(OURS) && !self.known().running.contains(id)
    }

    /// Whether there may be abandoned ones in this container. It is taken to be cleared of them now.
    fn first_in(&self, id: &ContainerId) -> bool {
        self.known().cleared.insert(id.clone())
    }

    /// The container is gone, or something may be left in it.
    pub(super) fn forget(&self, id: &ContainerId) {
        self.known().cleared.remove(id);
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `containerd.runc.v1.ProcessDetails` (`api/types/runc/options/oci.proto`).
#[derive(Clone, PartialEq, Message)]
struct ProcessDetails {
    #[prost(string, tag = "1")]
    exec_id: String,
}

/// The part of a specification that says how a container's main process is run.
#[derive(Deserialize)]
struct Specification {
    process: Map<String, Value>,
}

impl ContainerdRuntime {
    pub(super) async fn run_inside(
        &self,
        id: &ContainerId,
        command: &[String],
        limit: Duration,
    ) -> Result<u32, RuntimeError> {
        let Some((record, _)) = self.ours(id).await? else {
            return Err(RuntimeError::NotRunning { id: id.clone() });
        };
        let specification = record.spec.unwrap_or_default().value;
        let process = process(&specification, command).ok_or_else(|| {
            let status = Status::internal("its specification cannot be read");
            RuntimeError::from_status(RUN, id, status)
        })?;
        if self.executions.first_in(id) {
            if let Err(error) = self.clear_abandoned(id).await {
                self.executions.forget(id);
                return Err(error);
            }
        }
        let mut execution = Execution::new(self.clone(), id);
        let result = execution.run(process, limit).await;
        execution.end(&result).await;
        result
    }

    /// Ends what an agent that died left running in a container.
    async fn clear_abandoned(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let request = ListPidsRequest { container_id: id.to_string() };
        let answer = found(self.tasks().list_pids(self.containerd.request(request)).await);
        let answer = answer.map_err(|status| RuntimeError::from_status(RUN, id, status))?;
        let Some(answer) = answer else {
            return Err(RuntimeError::NotRunning { id: id.clone() });
        };
        for process in answer.into_inner().processes {
            let Some(info) = process.info else { continue };
            let Ok(details) = ProcessDetails::decode(info.value.as_slice()) else { continue };
            if self.executions.is_abandoned(&details.exec_id) {
                debug!(container = %id, "a command of an earlier agent is ended");
                Place { runtime: self.clone(), id: id.clone(), exec_id: details.exec_id }
                    .clear()
                    .await?;
            }
        }
        Ok(())
    }
}

/// The container's own process with another command. containerd says what it is to the OCI runtime,
/// which confines it as the container is.
fn process(specification: &[u8], command: &[String]) -> Option<Vec<u8>> {
    let Specification { mut process } = serde_json::from_slice(specification).ok()?;
    process.insert("args".into(), command.into());
    process.insert("terminal".into(), false.into());
    serde_json::to_vec(&process).ok()
}

/// One process that was added to a task, or may have been.
#[derive(Debug)]
struct Place {
    runtime: ContainerdRuntime,
    id: ContainerId,
    exec_id: String,
}

/// One command under way; dropped, it is cleared away in the background.
#[derive(Debug)]
struct Execution(Option<Place>);

impl Execution {
    fn new(runtime: ContainerdRuntime, id: &ContainerId) -> Self {
        let exec_id = runtime.executions.begin();
        Self(Some(Place { runtime, id: id.clone(), exec_id }))
    }

    async fn run(&mut self, process: Vec<u8>, limit: Duration) -> Result<u32, RuntimeError> {
        let Some(place) = &self.0 else { unreachable!("it is taken at its end only") };
        let id = place.id.clone();
        let Ok(started) = timeout(START_LIMIT, place.start(process)).await else {
            return Err(RuntimeError::TimedOut { doing: RUN, id });
        };
        started?;
        match timeout(limit, place.wait()).await {
            Ok(code) => code,
            Err(_) => Err(RuntimeError::TooLong { id, limit }),
        }
    }

    /// Leaves nothing behind.
    async fn end(mut self, result: &Result<u32, RuntimeError>) {
        let Some(place) = &self.0 else { return };
        let cleared = match result {
            Ok(_) => place.delete().await.map_err(|status| place.error(DELETE, status)),
            Err(_) => place.clear().await,
        };
        place.over(cleared);
        self.0 = None;
    }
}

impl Drop for Execution {
    fn drop(&mut self) {
        let (Some(place), Ok(tokio)) = (self.0.take(), Handle::try_current()) else { return };
        tokio.spawn(async move { place.over(place.clear().await) });
    }
}

impl Place {
    /// What could not be cleared away is, when something is run in the container the next time.
    fn over(&self, cleared: Result<(), RuntimeError>) {
        self.runtime.executions.end(&self.exec_id);
        if let Err(error) = cleared {
            self.runtime.executions.forget(&self.id);
            debug!(container = %self.id, %error, "something is left of a command");
        }
    }

    async fn start(&self, process: Vec<u8>) -> Result<(), RuntimeError> {
        let request = ExecProcessRequest {
            container_id: self.id.to_string(),
            exec_id: self.exec_id.clone(),
            spec: Some(Any { type_url: PROCESS_TYPE.into(), value: process }),
            stdout: NOWHERE.into(),
            stderr: NOWHERE.into(),
            ..ExecProcessRequest::default()
        };
        let (runtime, mut tasks) = (&self.runtime, self.runtime.tasks());
        match tasks.exec(runtime.containerd.request(request)).await {
            // There is no task, or none that runs.
            Err(status) if status.code() == Code::NotFound => {
                return Err(RuntimeError::NotRunning { id: self.id.clone() });
            }
            answer => answer.map_err(|status| self.error(RUN, status))?,
        };
        let (container_id, exec_id) = (self.id.to_string(), self.exec_id.clone());
        let request = StartRequest { container_id, exec_id };
        let answer = tasks.start(runtime.containerd.request(request)).await;
        answer.map(drop).map_err(|status| self.error(RUN, status))
    }

    async fn wait(&self) -> Result<u32, RuntimeError> {
        let (container_id, exec_id) = (self.id.to_string(), self.exec_id.clone());
        let request = self.runtime.containerd.endless(WaitRequest { container_id, exec_id });
        let answer = self.runtime.tasks().wait(request).await;
        let answer = answer.map_err(|status| self.error("wait for a command in", status))?;
        Ok(answer.into_inner().exit_status)
    }

    /// Ends and deletes it, in whatever state it is; none is no error.
    async fn clear(&self) -> Result<(), RuntimeError> {
        let cleared = async {
            loop {
                match self.kill_and_delete().await {
                    Err(error) if !error.is_unreachable() => {
                        // It is being started, or killed and still there.
                        debug!(container = %self.id, %error, "a command is not cleared away yet");
                    }
                    ended => return ended,
                }
                if let Ok(Err(error)) = timeout(CLEAR_PAUSE, self.wait()).await {
                    debug!(container = %self.id, %error, "a killed command is not waited for");
                    tokio::time::sleep(CLEAR_PAUSE / 10).await;
                }
            }
        };
        match timeout(CLEAR_LIMIT, cleared).await {
            Ok(cleared) => cleared,
            Err(_) => {
                let doing = "end a command in";
                Err(RuntimeError::TimedOut { doing, id: self.id.clone() })
            }
        }
    }

    async fn kill_and_delete(&self) -> Result<(), RuntimeError> {
        self.kill().await?;
        self.delete().await.map_err(|status| self.error(DELETE, status))
    }

    /// SIGKILL to the command and its children, of which containerd knows nothing.
    async fn kill(&self) -> Result<(), RuntimeError> {
        let (container_id, exec_id) = (self.id.to_string(), self.exec_id.clone());
        let (runtime, mut tasks) = (&self.runtime, self.runtime.tasks());
        let request = GetRequest { container_id, exec_id };
        let there = found(tasks.get(runtime.containerd.request(request)).await);
        let there = there.map_err(|status| self.error("look up a command in", status))?;
        let Some(process) = there.and_then(|answer| answer.into_inner().process) else {
            return Ok(());
        };
        self.kill_group(process.pid);
        let (container_id, exec_id) = (self.id.to_string(), self.exec_id.clone());
        let request = KillRequest { container_id, exec_id, signal: SIGKILL, all: false };
        match tasks.kill(runtime.containerd.request(request)).await {
            // It has ended, or was never started.
            Err(status) if matches!(status.code(), Code::NotFound | Code::FailedPrecondition) => {
                Ok(())
            }
            answer => answer.map(drop).map_err(|status| self.error("kill a command in", status)),
        }
    }

    /// runc gives each command a session of its own.
    fn kill_group(&self, pid: u32) {
        let Some(pid) = i32::try_from(pid).ok().filter(|pid| *pid > 1) else { return };
        // It may have ended, and the number be somebody else's by now.
        let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        if cgroups.contains(&Cgroups::path(&self.runtime.containerd, &self.id)) {
            if let Err(error) = killpg(Pid::from_raw(pid), Signal::SIGKILL) {
                debug!(container = %self.id, %error, "the children of a command are not killed");
            }
        }
    }

    /// Deletes it if it does not run; none is no error.
    async fn delete(&self) -> Result<(), Status> {
        let (container_id, exec_id) = (self.id.to_string(), self.exec_id.clone());
        let request = DeleteProcessRequest { container_id, exec_id };
        let request = self.runtime.containerd.request(request);
        found(self.runtime.tasks().delete_process(request).await).map(drop)
    }

    fn error(&self, doing: &'static str, status: Status) -> RuntimeError {
        RuntimeError::from_status(doing, &self.id, status)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn it_is_the_containers_own_process_with_another_command() {
        let own = json!({
            "args": ["/bin/web", "--port", "80"],
            "env": ["A=b"],
            "cwd": "/srv",
            "user": { "uid": 7, "gid": 8 },
            "noNewPrivileges": true,
        });
        let specification = json!({ "ociVersion": "1.0.2", "process": own, "linux": {} });
        let command = ["/bin/check".to_owned()];
        let made = process(specification.to_string().as_bytes(), &command).unwrap();
        let made: Value = serde_json::from_slice(&made).unwrap();
        let mut expected = own;
        expected["args"] = json!(["/bin/check"]);
        expected["terminal"] = false.into();
        assert_eq!(made, expected);
        assert_eq!(process(b"{}", &command), None);
    }

    #[test]
    fn what_nobody_waits_for_is_abandoned() {
        let executions = Executions::default();
        let (one, other) = (executions.begin(), executions.begin());
        assert_ne!(one, other);
        executions.end(&other);
        assert!(!executions.is_abandoned(&one) && executions.is_abandoned(&other));
        assert!(!executions.is_abandoned("somebody-elses"));
        let id = ContainerId::from_listed("web.0.main");
        assert!(executions.first_in(&id) && !executions.first_in(&id));
        executions.forget(&id);
        assert!(executions.first_in(&id));
    }
}
