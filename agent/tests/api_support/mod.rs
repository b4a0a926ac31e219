//! The API in front of an event loop that is not there: it answers from what a test puts in.

#![allow(dead_code, reason = "each test program uses a part")]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, mpsc as std_mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use coracle::api::{Api, Remote};
use coracle::clock::monotonic_now;
use coracle::config::ApiConfig;
use coracle::native_status::{
    Artifacts, LongWork, LongWorkRefusal, OperationState, OperationStatus, Operations, Services,
};
use coracle::status::{
    Applied, Call, CommandsStatus, Happening, Happenings, LinkDay, Operated, Operation,
    OperationRefusal, Problem, SecretsKey, Status, VolumeRefusal, VolumeStatus, Volumes,
};
use coracle_protocol::health::LinkUse;
use coracle_protocol::reported::{
    Condition, ConditionStatus, Phase, ReplicaReport, ReplicaState, ReportedState, StoppedReport,
    WorkloadReport,
};
use coracle_protocol::{Code, Refusal, Timestamp};
use tempfile::TempDir;
use tokio::sync::{mpsc, oneshot, watch};

/// Longest wait for anything that should happen at once.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// What the event loop knows.
#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) status: Status,
    pub(crate) happenings: Happenings,
    pub(crate) order: Option<Vec<u8>>,
    /// Orders that were given, as they came.
    pub(crate) applied: Vec<Vec<u8>>,
    /// What is answered to them; `None` says yes.
    pub(crate) refusal: Option<Refusal>,
    pub(crate) volumes: Vec<VolumeStatus>,
    /// What was done to workloads by hand.
    pub(crate) operated: Vec<(String, Operation)>,
    /// The store takes nothing.
    pub(crate) store_is_full: bool,
    pub(crate) artifacts: Artifacts,
    pub(crate) commands: CommandsStatus,
    pub(crate) services: Services,
    pub(crate) operations: Vec<OperationStatus>,
    /// What was begun.
    pub(crate) begun: Vec<LongWork>,
    /// What becomes of each operation, look by look; without an end it goes on for ever.
    pub(crate) course: Vec<Step>,
    /// How many steps of it each has behind it, by id.
    stepped: BTreeMap<String, usize>,
}

/// A step of an operation.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// It is in a phase, with bytes done, of these.
    Phase(&'static str, u64, Option<u64>),
    /// It ended.
    Ended(Result<&'static str, &'static str>),
}

/// The API with its event loop, in a thread of its own until it is dropped.
#[derive(Debug)]
pub(crate) struct FakeAgent {
    pub(crate) dir: Arc<TempDir>,
    pub(crate) socket: PathBuf,
    pub(crate) facts: Arc<Mutex<Facts>>,
    happened: watch::Sender<u64>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl FakeAgent {
    pub(crate) fn start() -> Self {
        Self::with_group(None)
    }

    pub(crate) fn with_group(group: Option<&str>) -> Self {
        let group = group.map(str::to_owned);
        Self::configured(ApiConfig { group, ..ApiConfig::default() })
    }

    /// With everything as configured but the socket.
    pub(crate) fn configured(config: ApiConfig) -> Self {
        let dir = tempfile::tempdir().unwrap();
        open_to_all(dir.path(), 0o755);
        Self::at(Arc::new(dir), config)
    }

    pub(crate) fn at(dir: Arc<TempDir>, config: ApiConfig) -> Self {
        let socket = dir.path().join("run/api.sock");
        let config = ApiConfig { socket: socket.clone(), ..config };
        let logs = dir.path().join("logs");
        let facts = Arc::new(Mutex::new(Facts {
            status: status(),
            happenings: Happenings::default(),
            order: None,
            applied: Vec::new(),
            refusal: None,
            volumes: Vec::new(),
            operated: Vec::new(),
            store_is_full: false,
            artifacts: Artifacts::default(),
            commands: CommandsStatus::default(),
            services: Services::default(),
            operations: Vec::new(),
            begun: Vec::new(),
            course: Vec::new(),
            stepped: BTreeMap::new(),
        }));
        let (happened, newest) = watch::channel(0);
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn({
            let facts = Arc::clone(&facts);
            move || run(config, logs, newest, facts, stopped)
        });
        wait_for("the API to listen", || UnixStream::connect(&socket).is_ok());
        Self { dir, socket, facts, happened, stop: Some(stop), thread: Some(thread) }
    }

    /// Lets something happen.
    pub(crate) fn happen(&self, replica: Option<&str>, message: &str) {
        let mut facts = self.facts.lock().unwrap();
        let sequence = facts.happenings.events.last().map_or(1, |last| last.sequence + 1);
        facts.happenings.events.push(Happening {
            sequence,
            at: Timestamp::from_unix(1_772_366_400),
            kind: "test".into(),
            replica: replica.map(str::to_owned),
            message: message.into(),
        });
        drop(facts);
        self.happened.send_replace(sequence);
    }

    pub(crate) fn set_phase(&self, phase: Phase) {
        self.facts.lock().unwrap().status.reported.phase = phase;
    }

    /// One request on a connection of its own.
    pub(crate) fn ask(&self, method: &str, path: &str, body: &[u8]) -> Answer {
        self.ask_with(method, path, "", body)
    }

    /// The same with further lines in its head, each with its end.
    pub(crate) fn ask_with(&self, method: &str, path: &str, lines: &str, body: &[u8]) -> Answer {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\n{lines}content-length: {}\r\n\r\n",
            body.len()
        );
        let mut stream = self.connect();
        stream.write_all(head.as_bytes()).unwrap();
        // The API may have answered and closed before it read all of it.
        drop(stream.write_all(body));
        Answer::read(&mut stream)
    }

    pub(crate) fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.set_write_timeout(Some(SOON)).unwrap();
        stream
    }

    /// The command line, talking to this agent.
    pub(crate) fn coracle(&self, args: &[&str]) -> Command {
        let mut command = coracle(args);
        command.env("CORACLE_SOCKET", &self.socket);
        command
    }

    /// The same as another user, from a copy that every user can run.
    pub(crate) fn coracle_as(&self, uid: u32, gid: u32, args: &[&str]) -> Command {
        assert!(nix::unistd::geteuid().is_root(), "this test must run as root");
        let program = self.dir.path().join("coracle");
        if !program.exists() {
            // Not by ourselves: a child that another test starts meanwhile would hold the copy open
            // for writing, and it could not be run.
            let from = env!("CARGO_BIN_EXE_coracle");
            assert!(Command::new("cp").arg(from).arg(&program).status().unwrap().success());
            open_to_all(&program, 0o755);
        }
        let mut command = Command::new(program);
        command.args(args).env_clear().env("CORACLE_SOCKET", &self.socket).current_dir("/");
        command.uid(uid).gid(gid);
        command
    }
}

impl Drop for FakeAgent {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            if !std::thread::panicking() {
                ended.unwrap();
            }
        }
    }
}

/// The command line with a plain environment.
pub(crate) fn coracle(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_coracle"));
    command.args(args).env_clear();
    command
}

pub(crate) fn open_to_all(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn run(
    config: ApiConfig,
    logs: PathBuf,
    newest: watch::Receiver<u64>,
    facts: Arc<Mutex<Facts>>,
    mut stopped: oneshot::Receiver<()>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (calls, mut called) = mpsc::channel(4);
        let event_loop = async {
            loop {
                tokio::select! {
                    _ = &mut stopped => break,
                    call = called.recv() => match call {
                        Some(call) => answer(call, &mut facts.lock().unwrap()),
                        None => break,
                    },
                }
            }
            drop(called);
        };
        let remote = match &config.tls {
            Some(tls) => Some(Remote::start(tls).await.unwrap()),
            None => None,
        };
        let api = Api::listen(&config, remote, logs).await.unwrap();
        tokio::join!(api.serve(calls, newest), event_loop);
    });
}

fn answer(call: Call, facts: &mut Facts) {
    match call {
        Call::Status(answer) => drop(answer.send(facts.status.clone())),
        Call::Health(answer) => {
            let text = include_str!("../../../protocol/tests/golden/health-1-full.json");
            drop(answer.send(serde_json::from_str(text).unwrap()));
        }
        Call::Link(answer) => drop(answer.send(LinkDay {
            link: None,
            today: LinkUse { day: 20513, kinds: Vec::new() },
            cap: None,
            held_back: Vec::new(),
        })),
        Call::Events(after, answer) => {
            let mut happenings = facts.happenings.clone();
            happenings.events.retain(|event| event.sequence > after);
            drop(answer.send(happenings));
        }
        Call::Order(answer) => drop(answer.send(facts.order.clone())),
        Call::Apply(order, answer) => {
            facts.applied.push(order);
            let refusals: Vec<_> = facts.refusal.iter().cloned().collect();
            let accepted = refusals.is_empty();
            if accepted {
                facts.status.reported.generation_applied = 7;
            }
            let generation = Some(7);
            drop(answer.send(Applied { generation, accepted, unchanged: false, refusals }));
        }
        Call::Volumes(answer) => {
            drop(answer.send(Ok(Volumes { volumes: facts.volumes.clone() })));
        }
        Call::RemoveVolume(name, answer) => {
            let found = facts.volumes.iter().position(|volume| volume.name == name);
            drop(answer.send(match found {
                None => Err(VolumeRefusal::Unknown(format!("there is no volume {name}"))),
                Some(at) if !facts.volumes[at].used_by.is_empty() => {
                    Err(VolumeRefusal::InUse(format!("volume {name} is in use")))
                }
                Some(at) => {
                    facts.volumes.remove(at);
                    Ok(())
                }
            }));
        }
        Call::Operate(name, operation, answer) => {
            drop(answer.send(facts.operate(name, operation)));
        }
        Call::SecretsKey(answer) => {
            let gateway = facts.status.reported.gateway;
            drop(answer.send(Ok(SecretsKey { gateway, key: "coracle-x25519:AAAA".into() })));
        }
        Call::Commands(answer) => drop(answer.send(facts.commands.clone())),
        Call::Artifacts(answer) => drop(answer.send(facts.artifacts.clone())),
        Call::Services(answer) => drop(answer.send(facts.services.clone())),
        Call::WorkloadAt(coordinate, answer) => {
            let known = facts.services.services.iter().find(|it| it.coordinate == coordinate);
            let unknown = || format!("the orders name no service at {coordinate}");
            drop(answer.send(known.and_then(|it| it.workload.clone()).ok_or_else(unknown)));
        }
        Call::Begin(work, answer) => drop(answer.send(facts.begin(&work))),
        Call::Operations(answer) => {
            drop(answer.send(Operations { operations: facts.operations.clone() }));
        }
        Call::Operation(id, answer) => {
            drop(answer.send(facts.look_at_operation(&id)));
        }
        Call::IdentityKeys(answer) => drop(answer.send(Err("the key file is damaged".into()))),
    }
}

impl Facts {
    /// The first workload.
    pub(crate) fn web(&mut self) -> &mut WorkloadReport {
        &mut self.status.reported.workloads[0]
    }

    /// How far an operation is, one step further at each look.
    fn look_at_operation(&mut self, id: &str) -> Option<OperationStatus> {
        let operation = self.operations.iter_mut().find(|it| it.id == id)?;
        let stepped = self.stepped.entry(id.to_owned()).or_default();
        if let Some(step) = self.course.get(*stepped) {
            *stepped += 1;
            step.change(operation);
        }
        Some(operation.clone())
    }

    /// Begins what takes long, as the event loop would.
    fn begin(&mut self, work: &LongWork) -> Result<OperationStatus, LongWorkRefusal> {
        let target = work.target();
        let is_same = |it: &&OperationStatus| {
            (it.kind, &it.target, it.state) == (work.kind(), &target, OperationState::Running)
        };
        if let Some(same) = self.operations.iter().find(is_same) {
            return Ok(same.clone());
        }
        let known = self.artifacts.artifacts.iter().find(|it| it.artifact == target);
        match (work, known) {
            (LongWork::Remove(_), None) => {
                return Err(LongWorkRefusal::Unknown(format!(
                    "artifact {target} is not installed"
                )));
            }
            (LongWork::Remove(_), Some(known)) if !known.used_by.is_empty() => {
                return Err(LongWorkRefusal::Conflict(format!("artifact {target} is used")));
            }
            _ if self.running() >= 4 => {
                return Err(LongWorkRefusal::Busy("4 operations are under way".into()));
            }
            _ => {}
        }
        // Nothing else has phases of its own.
        let installs = matches!(work, LongWork::Install(_));
        let operation = OperationStatus {
            id: format!("operation-{}", self.operations.len() + 1),
            kind: work.kind(),
            target,
            state: OperationState::Running,
            message: None,
            phase: Some(if installs { "downloading" } else { "resolving" }.into()),
            bytes_done: if installs { 40 } else { 0 },
            bytes_total: installs.then_some(100),
            began_at: Timestamp::from_unix(1_772_366_400),
            ended_at: None,
        };
        self.begun.push(work.clone());
        self.operations.push(operation.clone());
        Ok(operation)
    }

    fn running(&self) -> usize {
        let running = self.operations.iter().filter(|it| it.state == OperationState::Running);
        running.count()
    }

    /// Begins it, as the event loop would.
    fn operate(
        &mut self,
        name: String,
        operation: Operation,
    ) -> Result<Operated, OperationRefusal> {
        if name != "web" {
            let message = format!("the orders name no workload {name:?}");
            return Err(OperationRefusal::Unknown(message));
        }
        if self.store_is_full {
            return Err(OperationRefusal::Failed("it could not be stored: no space".into()));
        }
        self.operated.push((name, operation));
        let web = self.web();
        let since = Timestamp::from_unix(1_772_366_400);
        let answer = |message: &str, unchanged| Ok(Operated { message: message.into(), unchanged });
        match (operation, web.stopped.is_some()) {
            (Operation::Restart, true) => {
                Err(OperationRefusal::Conflict("web is stopped; start it".into()))
            }
            (Operation::Restart, false) => answer("the replicas of web are made anew", false),
            (Operation::Start, false) => answer("web is not stopped", true),
            (Operation::Start, true) => {
                web.stopped = None;
                web.phase = Phase::Progressing;
                web.replicas[0].state = ReplicaState::Starting;
                answer("web runs again", false)
            }
            (Operation::Stop | Operation::Drain, true) => answer("web is stopped already", true),
            (Operation::Stop | Operation::Drain, false) => {
                let drained = operation == Operation::Drain;
                web.stopped = Some(StoppedReport { drained, since });
                web.replicas[0].state = ReplicaState::Stopping;
                answer("web stops, until it is started by hand", false)
            }
        }
    }
}

impl Step {
    fn change(&self, operation: &mut OperationStatus) {
        match self {
            Self::Phase(phase, done, total) => {
                operation.phase = Some((*phase).to_owned());
                (operation.bytes_done, operation.bytes_total) = (*done, *total);
            }
            Self::Ended(result) => {
                let (state, message) = match result {
                    Ok(message) => (OperationState::Succeeded, message),
                    Err(message) => (OperationState::Failed, message),
                };
                (operation.state, operation.message) = (state, Some((*message).to_owned()));
                operation.phase = None;
                operation.ended_at = Some(Timestamp::from_unix(1_772_366_460));
            }
        }
    }
}

/// A program that ends with the test.
#[derive(Debug)]
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// An answer of the API.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn read(stream: &mut UnixStream) -> Self {
        let mut text = Vec::new();
        stream.read_to_end(&mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").expect(&text);
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Self { status, head: head.to_lowercase(), body: body.to_owned() }
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).expect(&self.body)
    }

    /// The kind, without what all have in common, and the detail of a problem.
    pub(crate) fn problem(&self) -> (u16, String, String) {
        assert!(self.head.contains("content-type: application/problem+json"), "{}", self.head);
        let problem: Problem = serde_json::from_str(&self.body).expect(&self.body);
        assert_eq!(problem.status, self.status);
        assert!(!problem.title.is_empty());
        let kind = problem.kind.strip_prefix("/problems/").expect(&self.body);
        (self.status, kind.to_owned(), problem.detail)
    }
}

/// A refusal for tests.
pub(crate) fn refusal() -> Refusal {
    Refusal::new("/generation", Code::OLD_GENERATION, "generation 8 is in force already")
}

fn status() -> Status {
    let replica = ReplicaReport {
        index: 0,
        state: ReplicaState::Running,
        ready: true,
        pid: Some(4711),
        generation: Some(7),
        restarts: 0,
        last_exit: None,
        reason: None,
        next_try: None,
        address: None,
        containers: Vec::new(),
    };
    Status {
        reported: ReportedState {
            omitted_workloads: 0,
            schema: 1,
            gateway: "3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11".parse().unwrap(),
            boot_id: "b".into(),
            sequence: 1,
            agent_version: "0.1.0".into(),
            generation_seen: 7,
            generation_applied: 6,
            phase: Phase::Converged,
            refused: None,
            unknown_fields: Vec::new(),
            conditions: vec![Condition {
                name: "containerd".into(),
                status: ConditionStatus::True,
                reason: "reachable".into(),
                message: "containerd 1.6.20".into(),
                since: Timestamp::from_unix(1_772_366_400),
            }],
            workloads: vec![WorkloadReport {
                name: "web".into(),
                phase: Phase::Converged,
                image: "registry.example/web:1.27".into(),
                image_digest: None,
                further_images: Vec::new(),
                update: None,
                stopped: None,
                replicas: vec![replica],
            }],
        },
        link: None,
        link_bytes_today: None,
        pulls: Vec::new(),
    }
}

/// Waits for a state, and fails if it does not come.
pub(crate) fn wait_for(what: &str, mut reached: impl FnMut() -> bool) {
    let (_pause, never) = std_mpsc::channel::<()>();
    let started = monotonic_now();
    while !reached() {
        assert!(started.elapsed() < SOON, "{what} did not come about");
        assert!(never.recv_timeout(Duration::from_millis(10)).is_err());
    }
}
