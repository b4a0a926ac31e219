//! What all tests of the store use.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use coracle::store::{CheckOutcome, Loaded, Store, StoreError, StoredOrder, Talk, check_with};
use coracle_core::backlog::{BacklogRecord, EventRecord};
use coracle_core::budget::{Bytes, TrafficKind, UsageRecord};
use coracle_core::command::{CommandRecord, CommandsRecord};
use coracle_core::desired::DefinitionHash;
use coracle_core::history::{ContainerRecord, FailedUpdate, Stopped, WorkloadRecord};
use coracle_core::name::{ContainerId, WorkloadName};
use coracle_core::record::{Record, RecordId};
use coracle_protocol::envelope::{DESIRED_PAYLOAD_TYPE, Signature};
use coracle_protocol::topic::ReplyWord;
use coracle_protocol::{CommandState, Envelope, GatewayId};

/// No older order is to be kept.
pub(crate) const NONE: BTreeSet<u64> = BTreeSet::new();

/// Names the file that a child of this test program checks.
pub(crate) const CHECK_VARIABLE: &str = "CORACLE_TEST_STORE_CHECK";

/// The hidden subcommand, played by this test program.
#[test]
fn child_that_checks() {
    if let Ok(path) = std::env::var(CHECK_VARIABLE) {
        nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0).unwrap();
        coracle::store::check(Path::new(&path)).unwrap();
    }
}

/// This test program, to run one test of it.
pub(crate) fn this_program(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]);
    command
}

pub(crate) fn check(path: &Path) -> CheckOutcome {
    let mut command = this_program("support::child_that_checks");
    command.env(CHECK_VARIABLE, path);
    check_with(command, Duration::from_secs(60))
}

pub(crate) fn open(dir: &Path) -> (Store, Loaded) {
    open_with(dir, None)
}

/// Opens a store that nobody else has. A child that another test has just forked holds our lock for
/// a moment, until it executes.
pub(crate) fn open_with(dir: &Path, factory: Option<&Path>) -> (Store, Loaded) {
    let mut opened = None;
    until("the lock is free", || {
        opened = match Store::open(dir, factory, check) {
            Err(StoreError::InUse { .. }) => None,
            result => Some(result.unwrap()),
        };
        opened.is_some()
    });
    opened.unwrap()
}

/// Waits until `state` is reached, for at most 10 seconds.
#[allow(clippy::disallowed_methods, reason = "polls a state that nothing announces")]
pub(crate) fn until(what: &str, mut state: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if state() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("waited in vain until {what}");
}

/// A signed order (the signature is none) whose size depends on its generation.
pub(crate) fn order(generation: u64) -> StoredOrder {
    let filler = "x".repeat((generation as usize * 977) % 20_000);
    let payload = format!(r#"{{"schema":1,"generation":{generation},"filler":"{filler}"}}"#);
    let envelope = Envelope {
        payload_type: DESIRED_PAYLOAD_TYPE.into(),
        payload: payload.into_bytes(),
        signatures: vec![Signature { keyid: "0".repeat(16), sig: vec![7; 64] }],
    };
    StoredOrder::new(generation, envelope.encode())
}

pub(crate) fn container(index: u32) -> ContainerId {
    ContainerId::from_listed(&format!("web-1.{index}.main"))
}

pub(crate) fn record(failures: u32) -> ContainerRecord {
    ContainerRecord {
        definition: Some(DefinitionHash::from_label("0123456789abcdef0123456789abcdef")),
        failures,
        restarts: failures * 2,
        last_exit: Some((137, 1_700_000_000_000_000_000)),
        ended: false,
    }
}

/// What is to be stored of a container.
pub(crate) fn container_change(index: u32, failures: Option<u32>) -> (RecordId, Option<Record>) {
    let record = failures.map(|failures| Record::Container(record(failures)));
    (RecordId::Container(container(index)), record)
}

pub(crate) fn workload(index: u32) -> WorkloadName {
    WorkloadName::parse(&format!("web-{index}")).unwrap()
}

pub(crate) fn workload_record(generation: u32) -> WorkloadRecord {
    let definition = DefinitionHash::from_label("0123456789abcdef0123456789abcdef");
    let failed = FailedUpdate {
        definition: definition.clone(),
        generation: generation.into(),
        reason: "x".repeat(generation as usize * 31 % 301),
    };
    let stopped = Stopped { drained: generation.is_multiple_of(2), since: 1_700_000_000 };
    WorkloadRecord {
        good: (!generation.is_multiple_of(3)).then_some(definition),
        failed: Some(failed),
        stopped: (generation % 4 > 1).then_some(stopped),
    }
}

/// What is to be stored of a workload.
pub(crate) fn workload_change(index: u32, generation: Option<u32>) -> (RecordId, Option<Record>) {
    let record = generation.map(|generation| Record::Workload(workload_record(generation)));
    (RecordId::Workload(workload(index)), record)
}

/// What is under way between gateway and fleet, of each kind one thing.
pub(crate) fn talk() -> Talk {
    let id = "019a2b3c-4d5e-7f60-8123-456789abcdef".parse().unwrap();
    let command = CommandRecord {
        state: CommandState::Running,
        at: 1_700_000_000,
        command: br#"{"kind":"report"}"#.to_vec(),
        reply: ReplyWord::of_response_topic(
            &format!("coracle/1/{GATEWAY}/results/desk"),
            gateway(),
        ),
        correlation: vec![0, 1, 255],
        boot_id: "boot".into(),
        reason: "interrupted".into(),
        message: "the agent ended".into(),
        result: br#"{"result":1}"#.to_vec(),
        received: true,
    };
    let event = EventRecord {
        at: 1_700_000_001,
        kind: "ended".into(),
        replica: Some("web.0".into()),
        message: "ended with exit code 1".into(),
    };
    let kinds = vec![(TrafficKind::Health, Bytes { sent: 1 << 40, received: 7 })];
    Talk {
        commands: [(id, command)].into(),
        all_commands: CommandsRecord { forgotten: Some(id) },
        events: [(70, event)].into(),
        backlog: Some(BacklogRecord { stream: [7; 16], next: 128, dropped: 3 }),
        usage: Some(UsageRecord { day: 20_000, elapsed: 70_000, kinds }),
    }
}

const GATEWAY: &str = "3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11";

fn gateway() -> GatewayId {
    GATEWAY.parse().unwrap()
}

/// What is to be stored of it.
pub(crate) fn talk_changes() -> Vec<(RecordId, Option<Record>)> {
    let Talk { commands, all_commands, events, backlog, usage } = talk();
    let commands =
        commands.into_iter().map(|(id, it)| (RecordId::Command(id), Some(Record::Command(it))));
    let events = events.into_iter().map(|(at, it)| (RecordId::Event(at), Some(Record::Event(it))));
    let single = [
        (RecordId::Commands, Some(Record::Commands(all_commands))),
        (RecordId::Backlog, backlog.map(Record::Backlog)),
        (RecordId::Usage, usage.map(Record::Usage)),
    ];
    commands.chain(events).chain(single).collect()
}

/// Runs a future of the store, which needs no more than somebody who polls.
pub(crate) fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

/// Copies the plain files of a directory.
pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}
