//! Commands: from the link to their end, over restarts of the agent, and what the fleet is told.

use std::io::Read;

use coracle_protocol::command::{Action, CommandResult, OutputPiece};
use coracle_protocol::envelope::COMMAND_PAYLOAD_TYPE;
use coracle_protocol::receipt::Receipt;
use coracle_protocol::topic::{Kind, ReplyWord};
use coracle_protocol::{Command, CommandState, piece};

use super::*;
use crate::config::RebootConfig;
use crate::link::{Delivery, Parcel, fake};

/// A gateway with a link whose other end is here.
struct Linked {
    gateway: Gateway,
    events: mpsc::Sender<LinkEvent>,
    end: fake::OtherEnd,
    packets: u16,
    /// What was told of commands, in turn.
    told: Vec<CommandResult>,
    output: Vec<u8>,
}

struct Start {
    policy: Policy,
    boot_id: &'static str,
    reboot: RebootConfig,
    caps: Caps,
}

impl Default for Start {
    fn default() -> Self {
        let (policy, boot_id) = (Policy::default(), "first");
        Self { policy, boot_id, reboot: RebootConfig::default(), caps: Caps::default() }
    }
}

fn action(json: Value) -> Action {
    serde_json::from_value(json).unwrap()
}

fn now() -> u64 {
    crate::clock::wall_now().as_secs()
}

/// A command that expires in an hour.
fn command(json: Value) -> Command {
    Command {
        schema: 1,
        id: CommandId::new(Timestamp::from_unix(now())),
        gateway: GATEWAY.parse().unwrap(),
        expires_at: Timestamp::from_unix(now() + 3600),
        action: action(json),
    }
}

impl Linked {
    async fn start() -> Self {
        Self::start_as(Start::default()).await
    }

    async fn start_as(start: Start) -> Self {
        let (runtime, events) = FakeRuntime::new();
        let hands = Hands { runtime, shelf: Arc::default() };
        hands.runtime.connect();
        Self::start_in(tempfile::tempdir().unwrap(), hands, events, start).await
    }

    async fn start_in(
        place: TempDir,
        hands: Hands,
        runtime: mpsc::Receiver<RuntimeEvent>,
        start: Start,
    ) -> Self {
        let (link, end) = fake::handle();
        let (events, link_events) = mpsc::channel(8);
        let talk = Talk {
            link: Some((link, link_events)),
            policy: start.policy,
            caps: start.caps,
            boot_id: start.boot_id.into(),
            means: Means { reboot: start.reboot, configuration: "state_dir".into() },
            ..Talk::default()
        };
        let gateway = Gateway::start_with(place, hands, runtime, talk).await;
        let (told, output) = (Vec::new(), Vec::new());
        let linked = Self { gateway, events, end, packets: 0, told, output };
        linked.connect().await;
        linked
    }

    /// The agent ends and another one starts with what it stored.
    async fn restart(self, start: Start) -> Self {
        let (hands, place) = self.gateway.end().await;
        // The fake's events go to the agent that ended; the new one sees what it lists.
        let (connected, events) = mpsc::channel(8);
        connected.send(RuntimeEvent::Connected { version: "fake".into() }).await.unwrap();
        Self::start_in(place, hands, events, start).await
    }

    /// What takes long takes for ever.
    fn hang_long(&self) {
        let hanging = &mut self.gateway.hands.shelf.lock().unwrap().hanging;
        hanging.insert("long".into());
    }

    async fn connect(&self) {
        let event = LinkEvent::Connected { session_present: false, packet_limit: 128 * 1024 };
        self.events.send(event).await.unwrap();
    }

    async fn send(&mut self, command: &Command) {
        self.send_bytes(&serde_json::to_vec(command).unwrap()).await;
    }

    async fn send_bytes(&mut self, document: &[u8]) {
        let mut envelope = Envelope {
            payload_type: COMMAND_PAYLOAD_TYPE.into(),
            payload: document.to_vec(),
            signatures: Vec::new(),
        };
        let sig = self.gateway.key.sign(&envelope.signed_bytes()).as_ref().to_vec();
        envelope.signatures.push(Signature { keyid: String::new(), sig });
        self.send_envelope(envelope.encode()).await;
    }

    async fn send_envelope(&mut self, envelope: Vec<u8>) {
        self.packets += 1;
        let own = format!("coracle/1/{GATEWAY}/results/desk");
        let event = LinkEvent::Command {
            envelope,
            reply: ReplyWord::of_response_topic(&own, GATEWAY.parse().unwrap()),
            correlation: b"mark".to_vec(),
            token: fake::token(self.packets),
        };
        self.events.send(event).await.unwrap();
    }

    /// The next parcel, which arrives.
    async fn parcel(&mut self) -> Parcel {
        let parcel = self.undelivered().await;
        self.deliver(&parcel, Delivery::Done).await;
        parcel
    }

    async fn undelivered(&mut self) -> Parcel {
        for _ in 0..20_000 {
            if let Some(parcel) = self.waiting().await {
                return parcel;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("nothing was sent");
    }

    /// The next parcel, if there is one. Paused time passes while the store is waited for; a loop that
    /// answers waits for nothing.
    /// Events and health are none of this test's: they arrive and are forgotten.
    async fn waiting(&mut self) -> Option<Parcel> {
        loop {
            self.gateway.status().await;
            let parcel = self.end.parcels.try_recv().ok()?;
            match parcel.kind {
                Kind::Events | Kind::Health => self.deliver(&parcel, Delivery::Done).await,
                _ => return Some(parcel),
            }
        }
    }

    async fn deliver(&mut self, parcel: &Parcel, delivery: Delivery) {
        let event = LinkEvent::Parcel { ticket: parcel.ticket, delivery };
        self.events.send(event).await.unwrap();
    }

    /// Takes in parcels until a command is told to be in a state.
    async fn told(&mut self, id: CommandId, state: CommandState) -> CommandResult {
        for _ in 0..2000 {
            let parcel = self.parcel().await;
            match parcel.kind {
                Kind::Results => {
                    assert_eq!(parcel.correlation, b"mark");
                    assert!(parcel.reply.is_some());
                    let result: CommandResult = serde_json::from_slice(&parcel.payload).unwrap();
                    self.told.push(result.clone());
                    if result.command == id && result.state == state {
                        return result;
                    }
                    assert!(
                        result.command != id || !result.state.is_final(),
                        "not {state:?}: {result:?}"
                    );
                }
                Kind::Output => {
                    let (head, bytes) = piece::decode::<OutputPiece>(&parcel.payload).unwrap();
                    assert_eq!(head.offset, self.output.len() as u64);
                    self.output.extend(bytes);
                }
                _ => {}
            }
        }
        panic!("never {state:?}");
    }

    async fn done(&mut self, json: Value) -> CommandResult {
        self.ends(json, CommandState::Succeeded).await
    }

    async fn ends(&mut self, json: Value, state: CommandState) -> CommandResult {
        let command = command(json);
        self.send(&command).await;
        self.told(command.id, state).await
    }

    async fn receive(&self, ids: &[CommandId]) {
        let receipt = Receipt {
            schema: 1,
            gateway: GATEWAY.parse().unwrap(),
            events: None,
            results: ids.to_vec(),
            hints: Default::default(),
        };
        let event = LinkEvent::Receipt(serde_json::to_vec(&receipt).unwrap());
        self.events.send(event).await.unwrap();
    }

    async fn listed(&self) -> Vec<(String, CommandState, String, bool)> {
        let all = self.gateway.ask(Call::Commands).await.commands;
        let parts = |it: crate::status::CommandStatus| {
            (it.kind, it.state, it.reason.unwrap_or_default(), it.received)
        };
        all.into_iter().map(parts).collect()
    }

    fn unpacked(&self) -> Vec<u8> {
        let mut text = Vec::new();
        flate2::read::GzDecoder::new(&self.output[..]).read_to_end(&mut text).unwrap();
        text
    }
}

#[tokio::test(start_paused = true)]
async fn a_workload_is_stopped_started_drained_and_restarted_from_afar() {
    let mut linked = Linked::start().await;
    assert!(linked.gateway.order(1, &[("web", "web")]).await.accepted);
    linked.gateway.converged(1).await;
    let stop = linked.done(json!({ "kind": "stop-workload", "workload": "web" })).await;
    assert!(stop.message.unwrap().contains("web stops"));
    linked.gateway.until("stopped", |s| s.reported.workloads[0].stopped.is_some()).await;
    let again = linked.done(json!({ "kind": "stop-workload", "workload": "web" })).await;
    assert_eq!(again.message.as_deref(), Some("web is stopped already"));
    let refused = json!({ "kind": "restart-workload", "workload": "web" });
    assert_eq!(
        linked.ends(refused, CommandState::Rejected).await.reason.as_deref(),
        Some("conflict")
    );
    linked.done(json!({ "kind": "start-workload", "workload": "web" })).await;
    linked.gateway.converged(1).await;
    let before = linked.gateway.hands.shelf.lock().unwrap().start_attempts;
    linked.done(json!({ "kind": "restart-workload", "workload": "web" })).await;
    linked
        .gateway
        .until("made anew", |s| {
            s.reported.phase == Phase::Converged
                && linked.gateway.hands.shelf.lock().unwrap().start_attempts == before + 1
        })
        .await;
    linked.done(json!({ "kind": "drain-workload", "workload": "web" })).await;
    let unknown = json!({ "kind": "stop-workload", "workload": "nobody" });
    let unknown = linked.ends(unknown, CommandState::Rejected).await;
    assert_eq!(unknown.reason.as_deref(), Some("unknown"));
    // Each was acknowledged once.
    let mut acknowledged = 0;
    while linked.end.acknowledgements.try_recv().is_ok() {
        acknowledged += 1;
    }
    assert_eq!(acknowledged, linked.packets);
    // The stop is still there for another agent, and so is what became of the commands.
    let all = linked.listed().await;
    let mut linked = linked.restart(Start::default()).await;
    assert_eq!(linked.listed().await, all);
    assert!(linked.gateway.status().await.reported.workloads[0].stopped.is_some());
    // What the fleet does not say that it holds is told again.
    for _ in 0..all.len() {
        let parcel = linked.parcel().await;
        assert!(matches!(parcel.kind, Kind::Results | Kind::Requests), "{parcel:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_result_is_told_until_the_fleet_says_that_it_holds_it() {
    let mut linked = Linked::start().await;
    let report = command(json!({ "kind": "report" }));
    linked.send(&report).await;
    linked.told(report.id, CommandState::Succeeded).await;
    // Again after a minute, then after two, and at once after a reconnect.
    for pause in [60, 120, 240] {
        let begun = crate::clock::runtime_now();
        linked.told(report.id, CommandState::Succeeded).await;
        let waited = begun.elapsed().as_secs();
        assert!((pause..pause + 3).contains(&waited), "{waited} s, not {pause}");
    }
    linked.connect().await;
    let begun = crate::clock::runtime_now();
    linked.told(report.id, CommandState::Succeeded).await;
    assert!(begun.elapsed().as_secs() < 2);
    // The same command again is answered, and not done again.
    linked.send(&report).await;
    linked.told(report.id, CommandState::Succeeded).await;
    // But not as often as somebody sends it.
    for _ in 0..20 {
        linked.send(&report).await;
        assert_eq!(linked.waiting().await, None);
    }
    linked.receive(&[report.id]).await;
    while linked.listed().await[0] != ("report".into(), CommandState::Succeeded, "".into(), true) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    linked.connect().await;
    let request = linked.parcel().await;
    assert_eq!(request.kind, Kind::Requests);
    for _ in 0..5000 {
        assert_eq!(linked.waiting().await, None);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_lost_on_the_way_is_sent_again() {
    let mut linked = Linked::start().await;
    assert_eq!(linked.parcel().await.kind, Kind::Requests);
    let report = command(json!({ "kind": "report" }));
    linked.send(&report).await;
    let first = linked.undelivered().await;
    linked.deliver(&first, Delivery::Lost).await;
    let again = linked.undelivered().await;
    let state =
        |parcel: &Parcel| serde_json::from_slice::<CommandResult>(&parcel.payload).unwrap().state;
    assert_eq!((state(&first), state(&again)), (CommandState::Succeeded, CommandState::Succeeded));
    assert_ne!(first.ticket, again.ticket);
    linked.deliver(&again, Delivery::Done).await;
    // Also what there is no record of. (Those that are open leave no room.)
    linked.hang_long();
    for n in 0..coracle_core::command::MOST - 1 {
        let action = json!({ "kind": "install-artifact", "artifact": format!("a:b:{n}") });
        linked.send(&command(action)).await;
    }
    let late = command(json!({ "kind": "report" }));
    linked.send(&late).await;
    let mut lost = false;
    loop {
        let parcel = linked.undelivered().await;
        let told: Option<CommandResult> = serde_json::from_slice(&parcel.payload).ok();
        let is_late = told.is_some_and(|told| told.command == late.id);
        let delivery = if is_late && !lost { Delivery::Lost } else { Delivery::Done };
        linked.deliver(&parcel, delivery).await;
        match (is_late, lost) {
            (true, true) => break,
            (true, false) => lost = true,
            (false, _) => assert!(!lost, "it comes first: {parcel:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_not_signed_or_not_for_us_is_acknowledged_and_told_once_a_minute() {
    let mut linked = Linked::start().await;
    for _ in 0..50 {
        linked.send_envelope(b"nonsense".to_vec()).await;
    }
    let mut other = command(json!({ "kind": "report" }));
    other.gateway = GatewayId::random();
    linked.send(&other).await;
    let order = linked.gateway.sign(&document(1, &[]));
    linked.send_envelope(order).await;
    linked.gateway.status().await;
    for _ in 0..52 {
        linked.end.acknowledgements.recv().await.unwrap();
    }
    assert_eq!(linked.listed().await, []);
    let happened: Happenings = linked.gateway.ask(|reply| Call::Events(0, reply)).await;
    let told = happened.events.iter().filter(|event| event.kind == "command-refused").count();
    assert_eq!(told, 1);
    // What nobody understands is answered if it was signed.
    let id = CommandId::new(Timestamp::from_unix(now()));
    let at = Timestamp::from_unix(now() + 60);
    let newer = json!({ "schema": 1, "id": id, "gateway": GATEWAY, "expires_at": at,
                        "action": { "kind": "fly", "how": "high" } });
    linked.send_bytes(newer.to_string().as_bytes()).await;
    let told = linked.told(id, CommandState::Rejected).await;
    assert_eq!(told.reason.as_deref(), Some("unknown-kind"));
}

#[tokio::test(start_paused = true)]
async fn artifacts_are_installed_listed_and_removed_and_progress_is_told() {
    let mut linked = Linked::start().await;
    let tool = |version: u32| format!("org.example:tool:{version}");
    // More than may be done at once: the rest waits.
    let all: Vec<_> = (0..6)
        .map(|n| command(json!({ "kind": "install-artifact", "artifact": tool(n) })))
        .collect();
    for command in &all {
        linked.send(command).await;
    }
    let mut open: BTreeSet<_> = all.iter().map(|command| command.id).collect();
    let mut progress = 0;
    while !open.is_empty() {
        let parcel = linked.parcel().await;
        if parcel.kind != Kind::Results {
            continue;
        }
        let result: CommandResult = serde_json::from_slice(&parcel.payload).unwrap();
        if let Some(far) = &result.progress {
            let known = (far.bytes_done, far.bytes_total);
            assert!([(0, None), (40, Some(100))].contains(&known), "{known:?}");
            assert!(!parcel.acknowledged && result.state == CommandState::Running);
            progress += 1;
        }
        if result.state.is_final() {
            assert_eq!(result.state, CommandState::Succeeded, "{result:?}");
            open.remove(&result.command);
        }
        let listed = linked.listed().await;
        let running = listed.iter().filter(|it| it.1 == CommandState::Running).count();
        assert!(running <= 4, "{listed:?}");
    }
    // It is told when it has changed.
    assert!(progress <= 6, "{progress}");
    let list = linked.done(json!({ "kind": "list-artifacts" })).await;
    let text = match list.result {
        Some(result) => result.to_string(),
        None => String::from_utf8(linked.unpacked()).unwrap(),
    };
    assert!((0..6).all(|n| text.contains(&tool(n))), "{text}");
    let remove = json!({ "kind": "remove-artifact", "artifact": tool(1) });
    linked.done(remove.clone()).await;
    let gone = linked.ends(remove, CommandState::Rejected).await;
    assert_eq!(gone.reason.as_deref(), Some("unknown"));
    let absent = json!({ "kind": "install-artifact", "artifact": "org.example:absent:1" });
    let absent = linked.ends(absent, CommandState::Failed).await;
    assert_eq!(absent.message.as_deref(), Some("no repository has it"));
    let bad = json!({ "kind": "install-artifact", "artifact": "what" });
    let bad = linked.ends(bad, CommandState::Rejected).await;
    assert_eq!(bad.reason.as_deref(), Some("malformed"));
}

#[tokio::test(start_paused = true)]
async fn what_an_agent_was_doing_when_it_ended_is_settled_by_what_is_there() {
    let mut linked = Linked::start().await;
    linked.hang_long();
    let install =
        |name: &str| json!({ "kind": "install-artifact", "artifact": format!("a:{name}:1") });
    let [done, lost] = [command(install("done")), command(install("lost"))];
    for command in [&done, &lost] {
        linked.send(command).await;
        linked.told(command.id, CommandState::Running).await;
    }
    let id: ArtifactId = "a:done:1".parse().unwrap();
    linked.gateway.hands.shelf.lock().unwrap().artifacts.insert(id, installed(true));
    let mut linked = linked.restart(Start::default()).await;
    linked.told(done.id, CommandState::Succeeded).await;
    let mut linked =
        match linked.told.iter().find(|it| it.command == lost.id && it.state.is_final()) {
            Some(_) => linked,
            None => {
                linked.told(lost.id, CommandState::Failed).await;
                linked
            }
        };
    let listed = linked.listed().await;
    let reasons: BTreeSet<_> = listed.iter().map(|it| (it.1, it.2.as_str())).collect();
    let wanted = [(CommandState::Succeeded, ""), (CommandState::Failed, "interrupted")];
    assert_eq!(reasons, wanted.into());
    // They come again, as from a broker that lost what was acknowledged: nothing is done again.
    linked.send(&lost).await;
    let again = linked.told(lost.id, CommandState::Failed).await;
    assert_eq!(again.reason.as_deref(), Some("interrupted"));
}

fn rebooting(program: &str, boot_id: &'static str) -> Start {
    let mut policy = Policy::default();
    policy.commands.insert("reboot");
    let reboot = RebootConfig { program: program.into(), arguments: Vec::new() };
    Start { policy, boot_id, reboot, ..Start::default() }
}

async fn start_rebooting(program: &str) -> Linked {
    Linked::start_as(rebooting(program, "first")).await
}

#[tokio::test(start_paused = true)]
async fn a_reboot_says_goodbye_and_has_succeeded_in_another_boot_only() {
    let mut linked = start_rebooting("/bin/true").await;
    let reboot = command(json!({ "kind": "reboot" }));
    linked.send(&reboot).await;
    linked.told(reboot.id, CommandState::Running).await;
    let presence = &mut linked.end.presence;
    let offline = |value: &Option<Arc<[u8]>>| {
        value.as_ref().is_some_and(|it| String::from_utf8_lossy(it).contains("\"offline\""))
    };
    tokio::time::timeout(Duration::from_secs(60), presence.wait_for(offline))
        .await
        .unwrap()
        .unwrap();
    let mut linked = linked.restart(rebooting("/bin/true", "second")).await;
    let told = linked.told(reboot.id, CommandState::Succeeded).await;
    assert_eq!(told.message.as_deref(), Some("the gateway was booted anew"));

    let reboot = command(json!({ "kind": "reboot" }));
    linked.send(&reboot).await;
    linked.told(reboot.id, CommandState::Running).await;
    let mut linked = linked.restart(rebooting("/bin/true", "second")).await;
    let told = linked.told(reboot.id, CommandState::Failed).await;
    assert_eq!(told.reason.as_deref(), Some("interrupted"));
}

#[tokio::test]
async fn a_reboot_that_cannot_be_had_is_told_and_one_that_is_not_allowed_is_not_tried() {
    let mut linked = start_rebooting("/bin/false").await;
    let told = linked.ends(json!({ "kind": "reboot" }), CommandState::Failed).await;
    assert_eq!(told.reason.as_deref(), Some("reboot-failed"), "{told:?}");
    assert!(told.message.unwrap().contains("/bin/false failed"));
    // Should the agent end later, it does so for another reason.
    let farewell = linked.end.farewell.borrow().clone().unwrap();
    let farewell = String::from_utf8_lossy(&farewell).into_owned();
    assert!(farewell.contains("\"shutdown\"") && !farewell.contains("\"reboot\""), "{farewell}");
    let mut linked = linked.restart(Start::default()).await;
    let told = linked.ends(json!({ "kind": "reboot" }), CommandState::Rejected).await;
    assert_eq!(told.reason.as_deref(), Some("not-allowed"));
}

#[tokio::test]
async fn diagnostics_tell_what_is_and_no_secret() {
    let mut linked = Linked::start().await;
    assert!(linked.gateway.order(1, &[("web", "web")]).await.accepted);
    let told = linked.done(json!({ "kind": "collect-diagnostics" })).await;
    let summary = told.output.unwrap();
    assert_eq!(summary.bytes, linked.output.len() as u64);
    assert_eq!(summary.digest, coracle_core::digest::sha256_hex(&linked.output));
    let document: Value = serde_json::from_slice(&linked.unpacked()).unwrap();
    for part in ["machine", "status", "events", "commands", "store", "configuration", "kernel"] {
        assert!(!document[part].is_null(), "{part}");
    }
}

#[tokio::test]
async fn a_piece_that_is_lost_is_sent_again_from_the_same_place() {
    let mut linked = Linked::start().await;
    let diagnostics = command(json!({ "kind": "collect-diagnostics" }));
    linked.send(&diagnostics).await;
    let mut lost = None;
    let first = loop {
        let parcel = linked.undelivered().await;
        if parcel.kind == Kind::Output && lost.is_none() {
            linked.deliver(&parcel, Delivery::Lost).await;
            lost = Some(parcel.payload);
        } else if parcel.kind == Kind::Output {
            linked.deliver(&parcel, Delivery::Done).await;
            break parcel.payload;
        } else {
            linked.deliver(&parcel, Delivery::Done).await;
        }
    };
    let (head, bytes) = piece::decode::<OutputPiece>(&first).unwrap();
    assert_eq!(head.offset, 0);
    assert_eq!(first, lost.unwrap());
    linked.output.extend(bytes);
    linked.told(diagnostics.id, CommandState::Succeeded).await;
    assert!(!linked.unpacked().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_waits_expires_is_cancelled_or_makes_room_for_what_is_newer() {
    let mut linked = Linked::start().await;
    linked.hang_long();
    let install = |n: u32| json!({ "kind": "install-artifact", "artifact": format!("a:b:{n}") });
    for n in 0..4 {
        linked.send(&command(install(n))).await;
    }
    let waits = command(install(9));
    linked.send(&waits).await;
    let takes_its_place = command(json!({ "kind": "remove-artifact", "artifact": "a:b:9" }));
    linked.send(&takes_its_place).await;
    linked.told(waits.id, CommandState::Superseded).await;
    let told = linked
        .ends(json!({ "kind": "cancel", "command": takes_its_place.id }), CommandState::Succeeded)
        .await;
    assert!(told.message.unwrap().contains("was called off"));
    let listed = linked.listed().await;
    assert!(listed.contains(&(
        "remove-artifact".into(),
        CommandState::Superseded,
        "cancelled".into(),
        false
    )));
    let cancelled = json!({ "kind": "cancel", "command": waits.id });
    let told = linked.ends(cancelled, CommandState::Rejected).await;
    assert_eq!(told.reason.as_deref(), Some("conflict"));
    let mut late = command(install(10));
    late.expires_at = Timestamp::from_unix(now() - 1);
    linked.send(&late).await;
    linked.told(late.id, CommandState::Expired).await;
}

#[tokio::test(start_paused = true)]
async fn output_that_no_budget_is_left_for_ends_and_holds_up_nothing() {
    let caps = Caps { total: None, kinds: BTreeMap::from([(TrafficKind::Logs, 20)]) };
    let mut linked = Linked::start_as(Start { caps, ..Start::default() }).await;
    for _ in 0..5 {
        let told = json!({ "kind": "collect-diagnostics" });
        let told = linked.ends(told, CommandState::Failed).await;
        assert_eq!(told.reason.as_deref(), Some("over-budget"));
    }
    assert!(linked.output.is_empty());
    linked.done(json!({ "kind": "install-artifact", "artifact": "a:b:1" })).await;
}

#[tokio::test(start_paused = true)]
async fn a_restart_that_does_not_come_about_ends_and_can_be_cancelled() {
    let mut linked = Linked::start().await;
    assert!(linked.gateway.order(1, &[("web", "web")]).await.accepted);
    linked.gateway.converged(1).await;
    linked.gateway.hands.runtime.hang_stops(&id("web"), true);
    let restart = json!({ "kind": "restart-workload", "workload": "web" });
    let first = command(restart.clone());
    linked.send(&first).await;
    linked.told(first.id, CommandState::Running).await;
    linked.done(json!({ "kind": "cancel", "command": first.id })).await;
    let all = linked.gateway.ask(Call::Commands).await.commands;
    let cancelled = all.iter().find(|it| it.id == first.id.to_string()).unwrap();
    assert_eq!(cancelled.reason.as_deref(), Some("cancelled"));
    let begun = crate::clock::runtime_now();
    let told = linked.ends(restart, CommandState::Failed).await;
    assert_eq!(told.reason.as_deref(), Some("not-restarted"));
    assert!((600..605).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn without_a_budget_results_are_told_once_and_progress_is_not() {
    let caps = Caps { total: None, kinds: BTreeMap::from([(TrafficKind::Reports, 0)]) };
    let mut linked = Linked::start_as(Start { caps, ..Start::default() }).await;
    let install = command(json!({ "kind": "install-artifact", "artifact": "a:b:1" }));
    linked.send(&install).await;
    linked.told(install.id, CommandState::Succeeded).await;
    assert!(linked.told.iter().all(|told| told.progress.is_none()), "{:?}", linked.told);
    linked.send(&install).await;
    linked.connect().await;
    assert_eq!(linked.parcel().await.kind, Kind::Requests);
    for _ in 0..5000 {
        assert_eq!(linked.waiting().await, None);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_cannot_be_written_holds_up_neither_what_comes_twice_nor_what_is_too_late() {
    let mut linked = Linked::start().await;
    linked.gateway.status().await;
    linked.gateway.store.clone().close().await;
    let (twice, mut late) =
        (command(json!({ "kind": "report" })), command(json!({ "kind": "report" })));
    late.expires_at = Timestamp::from_unix(now() - 1);
    linked.send(&twice).await;
    linked.send(&twice).await;
    let first = linked.end.acknowledgements.recv().await.unwrap();
    let is = |token: AckToken, packet| format!("{token:?}") == format!("{:?}", fake::token(packet));
    assert!(is(first, 1));
    linked.gateway.status().await;
    assert!(linked.end.acknowledgements.try_recv().is_err(), "it is not on the disk");
    linked.send(&late).await;
    linked.told(late.id, CommandState::Expired).await;
    assert!(is(linked.end.acknowledgements.recv().await.unwrap(), 3));
}
