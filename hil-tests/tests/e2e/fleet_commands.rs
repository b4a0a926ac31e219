//! Commands of the fleet on a real gateway, over a real broker: the agent is killed at every step of
//! every kind, and each command ends in exactly one state and has its effect at most once.
//!
//! The steps are the agent's fault points `command.…`, which a debug build has.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::SystemTime;

use coracle_hil::native::Repository;
use coracle_hil::{Gateway, Options, orders};
use coracle_protocol::command::{Action, CommandResult, OutputPiece};
use coracle_protocol::receipt::{Hints, Receipt};
use coracle_protocol::topic::Kind;
use coracle_protocol::{Command, CommandId, CommandState, Timestamp, piece};
use coracle_testbed::broker::Subscription;
use coracle_testbed::wait_for;
use serde_json::{Value, json};

use super::{LONG, SOON, busybox, converged, order};

const FAULT: &str = "CORACLE_FAULT_POINT";
const WEB: &str = "web";

/// A gateway with the fleet's side of commands.
struct Desk {
    gateway: Gateway,
    results: Subscription,
    output: Subscription,
    repository: Repository,
    reboots: PathBuf,
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

impl Desk {
    fn new() -> Self {
        let mut gateway = Gateway::prepare(Options::default()).unwrap();
        let repository = Repository::start(gateway.place()).unwrap();
        for version in ["1.0.0", "2.0.0", "3.0.0"] {
            repository.publish_counter(version, "x", 0).unwrap();
        }
        let reboots = gateway.place().run().join("reboots");
        let script = gateway.place().run().join("reboot");
        fs::write(&reboots, "").unwrap();
        fs::write(&script, format!("#!/bin/sh\necho once >> {}\n", reboots.display())).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(gateway.policy(), "[commands]\nreboot = \"allow\"\n").unwrap();
        gateway.lines = format!(
            "{}\n[reboot]\nprogram = {:?}\narguments = []\n",
            repository.lines(),
            script.display().to_string()
        );
        gateway.start_agent().unwrap();
        gateway.wait("the link", SOON, |status| status.connected().then_some(())).unwrap();
        let results = format!("{}/#", gateway.topic(Kind::Results));
        let results = gateway.broker.listen(&results).unwrap();
        let output = gateway.broker.listen(&gateway.topic(Kind::Output)).unwrap();
        let image = busybox(&gateway);
        let said = orders::script(WEB, &image, "echo begun; while :; do sleep 1; done");
        order(&gateway, 1, vec![said]);
        converged(&mut gateway, 1);
        Self { gateway, results, output, repository, reboots }
    }

    fn command(&self, action: &Value) -> Command {
        Command {
            schema: 1,
            id: CommandId::new(Timestamp::from_unix(now())),
            gateway: self.gateway.id(),
            expires_at: Timestamp::from_unix(now() + 3600),
            action: serde_json::from_value::<Action>(action.clone()).unwrap(),
        }
    }

    fn publish(&self, command: &Command) {
        let signed = self.gateway.signer().unwrap().sign_command(command);
        let topic = self.gateway.topic(Kind::Commands);
        self.gateway.broker.publish(&topic, &signed, false).unwrap();
    }

    fn told(&self, id: CommandId) -> Vec<CommandResult> {
        let messages = self.results.messages();
        let results = messages.iter().map(|it| serde_json::from_slice(&it.payload).unwrap());
        results.filter(|result: &CommandResult| result.command == id).collect()
    }

    fn ended(&self, id: CommandId) -> CommandResult {
        let ended = || self.told(id).into_iter().find(|result| result.state.is_final());
        wait_for(&format!("{id} to end"), LONG, ended).unwrap_or_else(|error| {
            panic!("{error:#}\ntold: {:?}\n{}", self.told(id), self.gateway.tail())
        })
    }

    fn done(&self, action: &Value) -> CommandResult {
        let command = self.command(action);
        self.publish(&command);
        self.ended(command.id)
    }

    /// The fleet says that it holds the results of these, and the gateway knows.
    fn receive(&self, ids: &[CommandId]) {
        self.send_receipt(ids);
        let known = || {
            let commands = self.commands();
            let of =
                |id: &CommandId| commands.iter().find(|it| it["id"] == id.to_string()).cloned();
            ids.iter().all(|id| of(id).is_none_or(|it| it["received"] == true)).then_some(())
        };
        wait_for("receipts to be known", SOON, known).unwrap();
    }

    fn send_receipt(&self, ids: &[CommandId]) {
        let receipt = Receipt {
            schema: 1,
            gateway: self.gateway.id(),
            events: None,
            results: ids.to_vec(),
            hints: Hints::default(),
        };
        let receipt = serde_json::to_vec(&receipt).unwrap();
        self.gateway.broker.publish(&self.gateway.topic(Kind::Receipts), &receipt, false).unwrap();
    }

    /// What the gateway's own people see.
    fn commands(&self) -> Vec<Value> {
        let output = self.gateway.coracle(&["commands", "--json"]).unwrap();
        let all: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        all["commands"].as_array().cloned().unwrap_or_default()
    }

    /// How often the workload's process was begun.
    fn begun(&self) -> usize {
        self.gateway.logs(&[WEB, "--all"]).unwrap_or_default().matches("begun").count()
    }

    fn rebooted(&self) -> usize {
        fs::read_to_string(&self.reboots).unwrap().lines().count()
    }

    fn link(&mut self) {
        self.gateway.wait("the link", SOON, |status| status.connected().then_some(())).unwrap();
    }

    /// The agent is killed at a point while it is about this command, and started again. Gives how
    /// the command ended.
    fn killed_at(&mut self, point: &str, command: &Command) -> CommandResult {
        let about = format!("{} killed at {point}", command.action.kind());
        self.gateway.stop_agent().unwrap();
        self.gateway.environment = vec![(FAULT.into(), point.into())];
        self.gateway.start_agent().unwrap();
        self.link();
        self.publish(command);
        let receipt = point == "command.receipt" || point == "command.received";
        if receipt {
            self.ended(command.id);
            self.send_receipt(&[command.id]);
        }
        let gateway = &mut self.gateway;
        let died = wait_for(&about, LONG, || (!gateway.agent_is_running()).then_some(()));
        died.unwrap_or_else(|error| {
            panic!("{about}: {error:#}: {:?}\n{}", self.told(command.id), self.gateway.tail())
        });
        self.gateway.environment.clear();
        self.gateway.start_agent().unwrap();
        self.link();
        let ended = self.ended(command.id);
        // The fleet did not hear of it, and sends it again.
        self.publish(command);
        self.receive(&[command.id]);
        let finals: BTreeSet<_> = self.told(command.id).into_iter().map(|it| it.state).collect();
        let finals: Vec<_> = finals.into_iter().filter(|state| state.is_final()).collect();
        assert_eq!(finals, [ended.state], "{about}");
        let listed = self.commands();
        let known = listed.iter().find(|it| it["id"] == command.id.to_string()).unwrap();
        let state = serde_json::from_value::<CommandState>(known["state"].clone()).unwrap();
        assert_eq!(state, ended.state, "{about}");
        ended
    }

    fn bytes_of(&self, id: CommandId) -> Vec<u8> {
        let mut bytes = Vec::new();
        for message in self.output.messages() {
            let (head, piece) = piece::decode::<OutputPiece>(&message.payload).unwrap();
            let offset = usize::try_from(head.offset).unwrap();
            if head.command == id && offset <= bytes.len() {
                bytes.truncate(offset);
                bytes.extend_from_slice(piece);
            }
        }
        bytes
    }

    fn text_of(&self, id: CommandId) -> String {
        let mut text = String::new();
        let bytes = self.bytes_of(id);
        let mut reader = flate2::read::GzDecoder::new(&bytes[..]);
        // What was sent so far can be read, even where more is to come.
        reader.read_to_string(&mut text).ok();
        text
    }
}

/// Every kind that ends when its effect is stored.
const STORED: &[&str] = &[
    "command.read",
    "command.accepted",
    "command.acknowledged",
    "command.ending",
    "command.ended",
    "command.telling",
    "command.told",
    "command.receipt",
    "command.received",
];

/// Every kind that is noted as begun before.
const BEGUN: &[&str] = &["command.beginning", "command.begun"];

fn points(of: &[&[&'static str]]) -> Vec<&'static str> {
    of.concat()
}

const STOP: &str = "stop-workload";
const START: &str = "start-workload";
const DRAIN: &str = "drain-workload";

#[test]
fn killed_at_every_step_a_stop_a_drain_and_a_start_are_done_once() {
    let mut desk = Desk::new();
    for point in points(&[STORED]) {
        for kind in [STOP, START, DRAIN, START] {
            let command = desk.command(&json!({ "kind": kind, "workload": WEB }));
            let ended = desk.killed_at(point, &command);
            assert_eq!(ended.state, CommandState::Succeeded, "{kind} at {point}: {ended:?}");
            let stopped = kind != START;
            desk.gateway
                .wait("it to be so", SOON, |status| {
                    let web = status.workload(WEB)?;
                    (web.stopped.is_some() == stopped).then_some(())
                })
                .unwrap();
        }
    }
}

#[test]
fn killed_at_every_step_a_restart_is_done_at_most_once() {
    let mut desk = Desk::new();
    for point in points(&[STORED, BEGUN, &["command.doing", "command.done"]]) {
        let before = desk.begun();
        let command = desk.command(&json!({ "kind": "restart-workload", "workload": WEB }));
        let ended = desk.killed_at(point, &command);
        if ended.state == CommandState::Succeeded {
            wait_for("another one", LONG, || (desk.begun() > before).then_some(())).unwrap();
        }
        converged(&mut desk.gateway, 1);
        let times = desk.begun() - before;
        match ended.state {
            CommandState::Succeeded => assert_eq!(times, 1, "{point}"),
            CommandState::Failed => {
                assert!(times <= 1, "{point}: {times}");
                assert_eq!(ended.reason.as_deref(), Some("interrupted"), "{point}");
                // That it is running is told as well, before it has ended.
                let late = [
                    "command.begun",
                    "command.doing",
                    "command.done",
                    "command.ending",
                    "command.telling",
                    "command.told",
                ];
                assert!(late.contains(&point), "{point}");
            }
            other => panic!("{point}: {other:?}"),
        }
    }
}

#[test]
fn killed_at_every_step_artifacts_are_installed_and_removed_at_most_once() {
    let mut desk = Desk::new();
    let artifact = "org.example:counter:1.0.0";
    let path = "/org/example/counter/1.0.0/counter-1.0.0.zip";
    let place = desk.gateway.state_dir.join("native/software/org.example/counter/1.0.0");
    let remove = json!({ "kind": "remove-artifact", "artifact": artifact });
    let install = json!({ "kind": "install-artifact", "artifact": artifact });
    // That it is running is told as well, before it has ended.
    let open = ["command.begun", "command.doing", "command.telling", "command.told"];
    for point in points(&[STORED, BEGUN, &["command.doing"]]) {
        let fetched = |desk: &Desk| {
            let seen = desk.repository.server().requests();
            seen.iter().filter(|seen| seen.method == "GET" && seen.path == path).count()
        };
        let before = fetched(&desk);
        let command = desk.command(&install);
        let ended = desk.killed_at(point, &command);
        assert!(fetched(&desk) - before <= 1, "{point}");
        if ended.state == CommandState::Failed {
            assert_eq!(ended.reason.as_deref(), Some("interrupted"), "{point}");
            assert!(open.contains(&point), "{point}");
            let again = desk.done(&install);
            assert_eq!(again.state, CommandState::Succeeded, "{again:?}");
            desk.receive(&[again.command]);
        }
        assert!(place.is_dir(), "{point}");

        let command = desk.command(&remove);
        let ended = desk.killed_at(point, &command);
        match ended.state {
            CommandState::Succeeded => {}
            CommandState::Failed => {
                assert_eq!(ended.reason.as_deref(), Some("interrupted"), "{point}");
                assert!(open.contains(&point), "{point}");
                let again = desk.done(&remove);
                assert_eq!(again.state, CommandState::Succeeded, "{again:?}");
                desk.receive(&[again.command]);
            }
            other => panic!("{point}: {other:?}"),
        }
        assert!(!place.exists(), "{point}");
    }
}

#[test]
fn killed_at_every_step_what_only_tells_ends_once() {
    let mut desk = Desk::new();
    for point in points(&[STORED]) {
        for kind in ["report", "list-artifacts"] {
            let command = desk.command(&json!({ "kind": kind }));
            let ended = desk.killed_at(point, &command);
            assert_eq!(ended.state, CommandState::Succeeded, "{kind} at {point}: {ended:?}");
        }
        for kind in ["cancel", "extend-lease"] {
            let other = CommandId::new(Timestamp::from_unix(now()));
            let action = json!({ "kind": kind, "command": other, "lease_seconds": 5 });
            let command = desk.command(&action);
            let ended = desk.killed_at(point, &command);
            assert_eq!(ended.state, CommandState::Rejected, "{kind} at {point}: {ended:?}");
        }
    }
}

#[test]
fn killed_at_every_step_what_gives_output_ends_once() {
    let mut desk = Desk::new();
    let giving = &["command.doing", "command.giving", "command.given"];
    for point in points(&[STORED, BEGUN, giving]) {
        for action in [
            json!({ "kind": "read-logs", "workload": WEB }),
            json!({ "kind": "follow-logs", "workload": WEB, "lease_seconds": 1 }),
            json!({ "kind": "collect-diagnostics" }),
        ] {
            let command = desk.command(&action);
            let ended = desk.killed_at(point, &command);
            match ended.state {
                CommandState::Succeeded => {
                    let summary = ended.output.unwrap();
                    assert_eq!(summary.bytes, desk.bytes_of(command.id).len() as u64, "{point}");
                }
                CommandState::Failed => {
                    assert_eq!(ended.reason.as_deref(), Some("interrupted"), "{point}");
                    // That it is running is told as well.
                    let open =
                        ["command.begun", "command.ending", "command.telling", "command.told"];
                    assert!(giving.contains(&point) || open.contains(&point), "{point}");
                }
                other => panic!("{action} at {point}: {other:?}"),
            }
        }
    }
}

#[test]
fn killed_at_every_step_a_reboot_is_asked_for_at_most_once() {
    let mut desk = Desk::new();
    let begun: &[&str] = &["command.rebooting", "command.done"];
    let before_its_end =
        ["command.read", "command.accepted", "command.acknowledged", "command.beginning"];
    for point in points(&[STORED, BEGUN, begun]) {
        if ["command.ending", "command.ended", "command.receipt", "command.received"]
            .contains(&point)
        {
            // Its end is seen by the agent of the next boot.
            continue;
        }
        let before = desk.rebooted();
        let command = desk.command(&json!({ "kind": "reboot" }));
        if before_its_end.contains(&point) {
            // Not begun yet: the next agent does so, and is ended as by a boot, but there is none.
            desk.gateway.stop_agent().unwrap();
            desk.gateway.environment = vec![(FAULT.into(), point.into())];
            desk.gateway.start_agent().unwrap();
            desk.link();
            desk.publish(&command);
            let agent = &mut desk.gateway;
            wait_for(point, LONG, || (!agent.agent_is_running()).then_some(())).unwrap();
            desk.gateway.environment.clear();
            desk.gateway.start_agent().unwrap();
            let reboots = desk.reboots.clone();
            let lines = || fs::read_to_string(&reboots).unwrap().lines().count();
            wait_for("the reboot", LONG, || (lines() > before).then_some(())).unwrap();
            desk.gateway.kill_agent().unwrap();
            desk.gateway.start_agent().unwrap();
            desk.link();
            let ended = desk.ended(command.id);
            assert_eq!(ended.reason.as_deref(), Some("interrupted"), "{point}");
            desk.publish(&command);
            desk.receive(&[command.id]);
            assert_eq!(desk.rebooted(), before + 1, "{point}");
            continue;
        }
        let ended = desk.killed_at(point, &command);
        // The machine's boot is the same all the time.
        assert_eq!(ended.state, CommandState::Failed, "{point}");
        assert_eq!(ended.reason.as_deref(), Some("interrupted"), "{point}");
        let wanted = usize::from(point == "command.done");
        assert_eq!(desk.rebooted() - before, wanted, "{point}");
    }
}

#[test]
fn logs_are_read_and_followed_until_the_lease_ends() {
    let mut desk = Desk::new();
    let image = busybox(&desk.gateway);
    let talk = "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.2; done";
    order(&desk.gateway, 2, vec![orders::script(WEB, &image, talk)]);
    converged(&mut desk.gateway, 2);
    let talks = || desk.gateway.logs(&[WEB]).ok().filter(|text| text.contains("line 5"));
    wait_for("some lines", SOON, talks).unwrap();
    let read = desk.done(&json!({ "kind": "read-logs", "workload": WEB, "tail": 3 }));
    let text = desk.text_of(read.command);
    assert!(text.lines().count() == 3 && text.contains("\"container\":\"web.0.main\""), "{text}");

    let follow =
        desk.command(&json!({ "kind": "follow-logs", "workload": WEB, "lease_seconds": 600 }));
    desk.publish(&follow);
    // What was sent can be read while it goes on.
    let lines = |desk: &Desk| desk.text_of(follow.id).lines().count();
    wait_for("lines", LONG, || (lines(&desk) >= 15).then_some(())).unwrap();
    assert!(desk.told(follow.id).iter().all(|result| !result.state.is_final()));
    // It goes on after the broker was away.
    desk.gateway.broker.stop().unwrap();
    desk.gateway.wait("no link", LONG, |status| (!status.connected()).then_some(())).unwrap();
    desk.gateway.broker.start_again().unwrap();
    desk.link();
    let before = lines(&desk);
    let topic = desk.gateway.topic(Kind::Output);
    desk.output = desk.gateway.broker.listen(&topic).unwrap();
    let results = format!("{}/#", desk.gateway.topic(Kind::Results));
    desk.results = desk.gateway.broker.listen(&results).unwrap();
    let more = || desk.output.messages().len() >= 2;
    wait_for("more pieces", LONG, || more().then_some(())).unwrap();
    assert!(before >= 15);
    let shorter = json!({ "kind": "extend-lease", "command": follow.id, "lease_seconds": 1 });
    assert_eq!(desk.done(&shorter).state, CommandState::Succeeded);
    let ended = desk.ended(follow.id);
    assert_eq!(
        (ended.state, ended.reason.as_deref()),
        (CommandState::Succeeded, Some("lease-ended"))
    );

    let follow =
        desk.command(&json!({ "kind": "follow-logs", "workload": WEB, "lease_seconds": 600 }));
    desk.publish(&follow);
    wait_for("lines", LONG, || (desk.text_of(follow.id).lines().count() >= 3).then_some(()))
        .unwrap();
    let cancelled = desk.done(&json!({ "kind": "cancel", "command": follow.id }));
    assert_eq!(cancelled.state, CommandState::Succeeded);
    let ended = desk.ended(follow.id);
    assert_eq!(ended.state, CommandState::Succeeded);
    let text = desk.text_of(follow.id);
    let digest = ring::digest::digest(&ring::digest::SHA256, &desk.bytes_of(follow.id));
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(ended.output.unwrap().digest, hex);
    assert!(text.ends_with('\n'));
}

/// The broker forgets what it had for the gateway, as after a session that expired: the fleet sends
/// commands again when the gateway says that it is connected.
#[test]
fn a_command_that_the_broker_lost_runs_when_the_fleet_sends_it_again() {
    let mut desk = Desk::new();
    let stop = desk.command(&json!({ "kind": STOP, "workload": WEB }));
    desk.publish(&stop);
    assert_eq!(desk.ended(stop.id).state, CommandState::Succeeded);
    desk.gateway.stop_agent().unwrap();
    let start = desk.command(&json!({ "kind": START, "workload": WEB }));
    let mut late = desk.command(&json!({ "kind": STOP, "workload": WEB }));
    late.expires_at = Timestamp::from_unix(now() + 1);
    desk.publish(&start);
    desk.publish(&late);
    // Killed with all that it had queued and not saved.
    desk.gateway.broker.kill().unwrap();
    desk.gateway.broker.start_again().unwrap();
    let results = format!("{}/#", desk.gateway.topic(Kind::Results));
    desk.results = desk.gateway.broker.listen(&results).unwrap();
    let requests = desk.gateway.broker.listen(&desk.gateway.topic(Kind::Requests)).unwrap();
    wait_for("its end", SOON, || (now() > late.expires_at.unix()).then_some(())).unwrap();
    desk.gateway.start_agent().unwrap();
    desk.link();
    let connected = |message: &coracle_testbed::broker::Message| {
        let request: Value = serde_json::from_slice(&message.payload).unwrap_or_default();
        request["kind"] == "connected"
    };
    requests.wait("the gateway's request", LONG, connected).unwrap();
    // All that the fleet has no final result of; the stop that was done is among them.
    for command in [&stop, &late, &start] {
        desk.publish(command);
    }
    assert_eq!(desk.ended(late.id).state, CommandState::Expired);
    assert_eq!(desk.ended(start.id).state, CommandState::Succeeded);
    assert_eq!(desk.ended(stop.id).state, CommandState::Succeeded);
    let status = desk.gateway.status().unwrap();
    assert!(status.workload(WEB).unwrap().stopped.is_none(), "the old stop was done again");
}

#[test]
fn commands_of_strangers_change_nothing_and_are_told() {
    let desk = Desk::new();
    let command = desk.command(&json!({ "kind": STOP, "workload": WEB }));
    let signed = coracle_hil::Signer::stranger().unwrap().sign_command(&command);
    let topic = desk.gateway.topic(Kind::Commands);
    desk.gateway.broker.publish(&topic, &signed, false).unwrap();
    let refused = || {
        let events = desk.gateway.events().ok()?;
        events.iter().any(|event| event.kind == "command-refused").then_some(())
    };
    wait_for("the refusal", SOON, refused).unwrap();
    assert_eq!(desk.told(command.id), []);
    assert!(desk.commands().is_empty());
    let told = desk.done(&json!({ "kind": STOP, "workload": "nobody" }));
    assert_eq!((told.state, told.reason.as_deref()), (CommandState::Rejected, Some("unknown")));
}

#[test]
fn diagnostics_hold_no_secret_and_no_key() {
    let desk = Desk::new();
    let value = "a value that nobody is to see";
    let sealed = desk.gateway.seal("password", value).unwrap();
    let image = busybox(&desk.gateway);
    let mut wanted = serde_json::to_value(orders::order(
        desk.gateway.id(),
        2,
        vec![orders::workload("one", &image)],
    ))
    .unwrap();
    wanted["secrets"] = json!({ "password": { "sealed": sealed } });
    desk.gateway.order(&serde_json::from_value(wanted).unwrap()).unwrap();
    let mut desk = desk;
    converged(&mut desk.gateway, 2);
    let told = desk.done(&json!({ "kind": "collect-diagnostics" }));
    let text = desk.text_of(told.command);
    let document: Value = serde_json::from_str(&text).unwrap();
    assert!(document["kernel"]["memory"].is_array() && document["status"].is_object());
    assert!(text.contains("coracle.toml") || text.contains("state_dir"), "no configuration");
    assert!(!text.contains(value) && !text.contains(&sealed));
    let key = fs::read_to_string(&desk.gateway.identity.key).unwrap();
    for line in key.lines().filter(|line| !line.starts_with("-----")) {
        assert!(!text.contains(line));
    }
    for entry in fs::read_dir(&desk.gateway.state_dir).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if let (true, Ok(bytes)) = (name.contains("key"), fs::read_to_string(entry.path())) {
            let secret = bytes.lines().filter(|line| line.len() > 20 && !line.starts_with('-'));
            for line in secret {
                assert!(!text.contains(line), "{name}");
            }
        }
    }
}
