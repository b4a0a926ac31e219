//! The command line for artifacts and native services as its users meet it: what it prints, its exit
//! codes, and what a terminal gets to see of what takes long.

#![allow(clippy::unwrap_used, reason = "clippy.toml allows it inside #[test] functions only")]

mod api_support;

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Output, Stdio};
use std::time::Instant;

use api_support::{FakeAgent, Running, SOON, Step};
use coracle::clock::monotonic_now;
use coracle::config::ApiConfig;
use coracle::native_status::{ArtifactStatus, OperationState, ServiceStatus};
use coracle::status::Operation;
use coracle_protocol::Timestamp;
use coracle_protocol::reported::ReplicaState;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use serde_json::{Value, json};

const GAUGE: &str = "org.example.plant:gauge:1.4.2+b7";
const A: &str = "a.gauge.alice.line-1";
const A1: &str = "a-1.gauge.alice.line-1";
const OLD: &str = "a.old.bob.line-2";
const MIB: u64 = 1 << 20;

/// Exit code, standard output, standard error.
fn run(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().expect("ended by a signal"), text(stdout), text(stderr))
}

fn json_of(command: &mut Command) -> (i32, Value) {
    let (code, output, error) = run(command);
    assert_eq!(error, "");
    (code, serde_json::from_str(&output).expect(&output))
}

fn artifact(name: &str, by_hand: bool, used_by: &[&str]) -> ArtifactStatus {
    ArtifactStatus {
        artifact: name.into(),
        digest: format!("sha256:{}", "ab".repeat(32)),
        zip_bytes: 4 * MIB,
        unpacked_bytes: 12 * MIB,
        entries: 31,
        installed_at: Timestamp::from_unix(1_772_366_400),
        by_hand,
        used_by: used_by.iter().map(|user| (*user).into()).collect(),
        directory: "/data/native/software/x".into(),
    }
}

fn service(coordinate: &str, workload: Option<&str>) -> ServiceStatus {
    ServiceStatus {
        coordinate: coordinate.into(),
        workload: workload.map(Into::into),
        replica: workload.map(|workload| format!("{workload}.0")),
        artifact: workload.map(|_| GAUGE.into()),
        state: workload.map(|_| ReplicaState::Running),
        pid: workload.map(|_| 4711),
        directory: format!("/data/native/runtime/{coordinate}"),
        bytes: Some(12 * MIB),
    }
}

/// An agent with one artifact in use and one that is not, and services of `web` and of nobody.
fn agent() -> FakeAgent {
    let agent = FakeAgent::start();
    let mut facts = agent.facts.lock().unwrap();
    facts.artifacts.artifacts =
        vec![artifact(GAUGE, false, &["web"]), artifact("tools:strace:6.1", true, &[])];
    facts.services.services =
        vec![service(A, Some("web")), service(A1, Some("web")), service(OLD, None)];
    drop(facts);
    agent
}

fn take_course(agent: &FakeAgent, course: &[Step]) {
    agent.facts.lock().unwrap().course = course.to_vec();
}

const DOWNLOAD: [Step; 7] = [
    Step::Phase("resolving", 0, None),
    Step::Phase("downloading", 0, Some(8 * MIB)),
    Step::Phase("downloading", MIB, Some(8 * MIB)),
    // Less than ten percent more, and the same again.
    Step::Phase("downloading", MIB + 1, Some(8 * MIB)),
    Step::Phase("downloading", 8 * MIB, Some(8 * MIB)),
    Step::Phase("unpacking", 6 * MIB, Some(12 * MIB)),
    Step::Ended(Ok("artifact x is installed")),
];

#[test]
fn artifacts_are_listed_and_shown() {
    let agent = agent();
    let (code, text, _) = run(&mut agent.coracle(&["artifact", "list"]));
    assert_eq!(code, 0);
    let lines: Vec<Vec<_>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["ARTIFACT", "SIZE", "INSTALLED", "BY", "USED", "BY"]);
    assert_eq!((lines[1][0], &lines[1][1..3]), (GAUGE, &["12.0", "MiB"][..]), "{text}");
    assert_eq!(lines[1][lines[1].len() - 2..], ["order", "web"], "{text}");
    assert_eq!(lines[2][lines[2].len() - 2..], ["hand", "-"], "{text}");
    let narrow = run(agent.coracle(&["artifact", "list"]).env("COLUMNS", "80")).1;
    assert!(narrow.lines().all(|line| line.chars().count() <= 80), "{narrow}");

    let (code, list) = json_of(&mut agent.coracle(&["artifact", "list", "--json"]));
    assert_eq!((code, &list["artifacts"][0]["artifact"]), (0, &json!(GAUGE)));
    let (code, text, _) = run(&mut agent.coracle(&["artifact", "show", GAUGE]));
    assert_eq!(code, 0);
    assert!(text.contains("Used by     web\n") && text.contains(&"ab".repeat(32)), "{text}");
    let (_, one) = json_of(&mut agent.coracle(&["artifact", "show", "--json", GAUGE]));
    assert_eq!(one, list["artifacts"][0]);

    let (code, text, error) = run(&mut agent.coracle(&["artifact", "show", "no:such:1"]));
    assert_eq!((code, text.as_str()), (1, ""));
    assert!(error.contains("artifact no:such:1 is not installed"), "{error}");
    let (code, _, error) = run(&mut agent.coracle(&["artifact", "show", "gauge"]));
    assert!(code == 2 && error.contains("group:name:version"), "{error}");
}

#[test]
fn an_installation_is_told_step_by_step_and_its_result_last() {
    let agent = agent();
    take_course(&agent, &DOWNLOAD);
    let (code, text, error) = run(&mut agent.coracle(&["artifact", "install", GAUGE]));
    assert_eq!((code, error.as_str()), (0, ""));
    let told: Vec<_> =
        text.lines().map(|line| line.split_once(" s  ").map_or(line, |l| l.1)).collect();
    assert_eq!(
        told,
        [
            "downloading, 40 % of 100 B",
            "resolving",
            "downloading, 0 % of 8.0 MiB",
            "downloading, 10 % of 8.0 MiB",
            "downloading, 100 % of 8.0 MiB",
            "unpacking, 50 % of 12.0 MiB",
            "artifact x is installed",
        ]
    );
    let (code, ended) = json_of(&mut agent.coracle(&["artifact", "install", "--json", GAUGE]));
    assert_eq!(
        (code, &ended["state"], &ended["kind"]),
        (0, &json!("succeeded"), &json!("install"))
    );
}

#[test]
fn an_installation_that_fails_says_why_and_ends_with_1() {
    let agent = agent();
    let failed = Step::Ended(Err("the ZIP has a name\x1b[2J with .. in it"));
    take_course(&agent, &[Step::Phase("verifying", 0, None), failed]);
    let (code, text, error) = run(&mut agent.coracle(&["artifact", "install", GAUGE]));
    assert_eq!((code, text.lines().count()), (1, 2), "{text}");
    assert_eq!(error, format!("error: {GAUGE}: the ZIP has a name?[2J with .. in it\n"));
    let (code, ended) = json_of(&mut agent.coracle(&["artifact", "install", "--json", GAUGE]));
    assert_eq!((code, &ended["state"]), (1, &json!("failed")));
    // What names it already is not said to be of it.
    take_course(&agent, &[Step::Ended(Err("artifact a:b:1 is not there"))]);
    let (_, _, error) = run(&mut agent.coracle(&["artifact", "install", "a:b:1"]));
    assert_eq!(error, "error: artifact a:b:1 is not there\n");
}

#[test]
fn what_is_asked_of_an_installation_reaches_the_agent() {
    let agent = agent();
    let digest = "AB".repeat(32);
    let args =
        ["artifact", "install", GAUGE, "--sha256", &digest, "--repository", "https://r.example/t"];
    let begun = run(agent.coracle(&args).arg("--no-wait"));
    assert_eq!(begun, (0, format!("{GAUGE}: begun as operation-1\n"), String::new()));
    {
        let facts = agent.facts.lock().unwrap();
        let asked = facts.begun[0].clone();
        let coracle::native_status::LongWork::Install(asked) = asked else { panic!("{asked:?}") };
        assert_eq!(asked.digest.unwrap().to_string(), format!("sha256:{}", digest.to_lowercase()));
        assert_eq!(asked.repository.as_deref(), Some("https://r.example/t"));
        assert_eq!(facts.operations[0].state, OperationState::Running);
    }
    let (code, begun) = json_of(agent.coracle(&args).args(["--no-wait", "--json"]));
    assert_eq!(
        (code, &begun["id"], &begun["state"]),
        (0, &json!("operation-1"), &json!("running"))
    );
    let bad = ["artifact", "install", GAUGE, "--sha256", "abc"];
    let (code, _, error) = run(&mut agent.coracle(&bad));
    assert!(code == 2 && error.contains("64 hexadecimal digits"), "{error}");
}

#[test]
fn an_artifact_is_removed_if_nobody_uses_it() {
    let agent = agent();
    take_course(&agent, &[Step::Ended(Ok("artifact tools:strace:6.1 removed"))]);
    let removed = run(&mut agent.coracle(&["artifact", "remove", "tools:strace:6.1"]));
    let told = "   0 s  removing\nartifact tools:strace:6.1 removed\n";
    assert_eq!(removed, (0, told.into(), String::new()));
    let (code, text, error) = run(&mut agent.coracle(&["artifact", "remove", GAUGE]));
    assert_eq!((code, text.as_str()), (1, ""));
    let told = format!("error: the agent refused the request: artifact {GAUGE} is used");
    assert!(error.starts_with(&told), "{error}");
    let (code, _, error) = run(&mut agent.coracle(&["artifact", "remove", "no:such:1"]));
    assert!(code == 1 && error.contains("is not installed"), "{error}");
}

#[test]
fn too_much_at_once_is_no_answer_for_now() {
    let agent = agent();
    for version in 1..=4 {
        let name = format!("a:b:{version}");
        let (code, ..) = run(&mut agent.coracle(&["artifact", "install", "--no-wait", &name]));
        assert_eq!(code, 0);
    }
    let (code, _, error) = run(&mut agent.coracle(&["artifact", "install", "a:b:5"]));
    assert_eq!((code, error.contains("4 operations are under way")), (3, true), "{error}");
}

#[test]
fn an_agent_that_starts_anew_knows_nothing_of_what_was_begun() {
    let agent = agent();
    let mut install = agent.coracle(&["artifact", "install", GAUGE]);
    let install = install.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut install = Running(install.spawn().unwrap());
    let mut lines = BufReader::new(install.0.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().ends_with("downloading, 40 % of 100 B"));
    let dir = agent.dir.clone();
    drop(agent);
    let _anew = FakeAgent::at(dir, ApiConfig::default());
    assert_eq!(install.0.wait().unwrap().code(), Some(1));
    let mut error = String::new();
    install.0.stderr.take().unwrap().read_to_string(&mut error).unwrap();
    assert!(error.contains("does not know operation-1 any more"), "{error}");
}

#[test]
fn an_interrupt_leaves_the_work_to_the_agent() {
    let agent = agent();
    let mut install = agent.coracle(&["artifact", "install", GAUGE]);
    let install = install.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut install = Running(install.spawn().unwrap());
    let mut lines = BufReader::new(install.0.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().ends_with("downloading, 40 % of 100 B"));
    interrupt(&install);
    assert_eq!(install.0.wait().unwrap().signal(), Some(Signal::SIGINT as i32));
    let mut error = String::new();
    install.0.stderr.take().unwrap().read_to_string(&mut error).unwrap();
    let told = "the agent goes on with it, as operation-1; the same command watches it again\n";
    assert_eq!(error, told);
    let state = agent.facts.lock().unwrap().operations[0].state;
    assert_eq!(state, OperationState::Running);
    take_course(&agent, &[Step::Ended(Ok("artifact x is installed"))]);
    let (code, text, _) = run(&mut agent.coracle(&["artifact", "install", GAUGE]));
    assert!(code == 0 && text.ends_with("artifact x is installed\n"), "{text}");
    assert_eq!(agent.facts.lock().unwrap().operations.len(), 1);
}

fn interrupt(child: &Running) {
    kill(Pid::from_raw(child.0.id().try_into().unwrap()), Signal::SIGINT).unwrap();
}

/// A command at a terminal of that many columns.
struct Terminal {
    child: Running,
    screen: File,
    /// All that was written, and when.
    written: Vec<(Instant, String)>,
}

impl Terminal {
    fn start(mut command: Command, columns: u16) -> Self {
        // Neither end may get into a child of another test.
        let screen =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&screen).unwrap();
        unlockpt(&screen).unwrap();
        let size = Winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&screen, size).unwrap();
        let path = ptsname(&screen, Vec::new()).unwrap();
        let slave = rustix::fs::open(
            path.as_c_str(),
            OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .unwrap();
        let end = || Stdio::from(slave.try_clone().unwrap());
        let child = Running(command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap());
        // The command holds the other end as well.
        drop((command, slave));
        Self { child, screen: File::from(screen), written: Vec::new() }
    }

    /// Reads until that was written.
    fn until(&mut self, wanted: &str) {
        let started = monotonic_now();
        while !self.text().contains(wanted) {
            assert!(started.elapsed() < SOON, "{:?}", self.text());
            assert!(self.read(), "{:?}", self.text());
        }
    }

    fn type_in(&mut self, text: &str) {
        self.screen.write_all(text.as_bytes()).unwrap();
    }

    /// Until it ends: how it did, and all that was written.
    fn end(mut self) -> (ExitStatus, Vec<(Instant, String)>) {
        while self.read() {}
        (self.child.0.wait().unwrap(), self.written)
    }

    /// Whether there was anything; the last one who has a terminal closes it.
    fn read(&mut self) -> bool {
        let soon = PollTimeout::try_from(SOON).unwrap();
        let there = poll(&mut [PollFd::new(self.screen.as_fd(), PollFlags::POLLIN)], soon);
        assert_eq!(there, Ok(1), "{:?}", self.text());
        let mut bytes = [0; 4096];
        let read = self.screen.read(&mut bytes).unwrap_or(0);
        let text = String::from_utf8(bytes[..read].to_vec()).unwrap();
        self.written.push((monotonic_now(), text));
        read > 0
    }

    fn text(&self) -> String {
        self.written.iter().map(|(_, text)| text.as_str()).collect()
    }
}

#[test]
fn a_terminal_gets_one_line_that_is_drawn_again_and_not_too_often() {
    let agent = agent();
    take_course(&agent, &DOWNLOAD);
    let terminal = Terminal::start(agent.coracle(&["artifact", "install", GAUGE]), 80);
    let (status, written) = terminal.end();
    let text: String = written.iter().map(|(_, text)| text.as_str()).collect();
    assert!(status.success(), "{text:?}");
    let bar = "\rdownloading  [###----------------------------]   12 %  1.0 MiB of 8.0 MiB";
    assert!(text.contains(bar), "{text:?}");
    assert!(!text.contains('\x1b'), "{text:?}");
    // All of it is one line, until it is cleared for the result.
    let (drawn, result) = text.rsplit_once('\r').unwrap().0.rsplit_once('\r').unwrap();
    assert_eq!(result, "artifact x is installed");
    assert!(!drawn.contains('\n'), "{drawn:?}");
    let lines: Vec<_> = drawn.split('\r').collect();
    assert!(lines.iter().all(|line| line.len() < 80), "{lines:?}");
    assert_eq!(lines.last().unwrap().trim(), "", "{lines:?}");
    let (first, last) = (written[0].0, written[written.len() - 1].0);
    let redraws = drawn.matches('\r').count() - 1;
    let most = last.duration_since(first).as_secs_f64() * 4.0 + 1.0;
    assert!((redraws as f64) <= most, "{redraws} redraws, at most {most}");
}

#[test]
fn a_narrow_terminal_gets_a_short_line_and_an_interrupt_clears_it() {
    let agent = agent();
    let mut terminal = Terminal::start(agent.coracle(&["artifact", "install", GAUGE]), 40);
    terminal.until("\rdownloading  [######-----------]   40 %");
    interrupt(&terminal.child);
    let (status, written) = terminal.end();
    let text: String = written.iter().map(|(_, text)| text.as_str()).collect();
    assert_eq!(status.signal(), Some(Signal::SIGINT as i32), "{text:?}");
    let cleared = format!("\r{}\rthe agent goes on with it", " ".repeat(39));
    assert!(text.contains(&cleared), "{text:?}");
}

#[test]
fn services_are_listed_and_shown() {
    let agent = agent();
    let (code, text, _) = run(&mut agent.coracle(&["service", "list"]));
    assert_eq!((code, text.lines().count()), (0, 4), "{text}");
    let words =
        |line: usize| text.lines().nth(line).unwrap().split_whitespace().collect::<Vec<_>>();
    assert_eq!(words(0), ["COORDINATE", "WORKLOAD", "STATE", "SIZE", "ARTIFACT"]);
    assert_eq!(words(1), [A, "web", "running", "12.0", "MiB", GAUGE]);
    assert_eq!(words(3), [OLD, "-", "-", "12.0", "MiB", "-"]);
    let (_, list) = json_of(&mut agent.coracle(&["service", "list", "--json"]));
    assert_eq!(list["services"][2]["coordinate"], OLD);
    let (code, text, _) = run(&mut agent.coracle(&["service", "show", A]));
    assert!(code == 0 && text.contains("State       running\nPID         4711\n"), "{text}");
    let (_, one) = json_of(&mut agent.coracle(&["service", "show", "--json", A]));
    assert_eq!(one, list["services"][0]);
    let (code, _, error) = run(&mut agent.coracle(&["service", "show", "b.b.b.b"]));
    assert!(code == 1 && error.contains("no service stands at b.b.b.b"), "{error}");
    let (code, _, error) = run(&mut agent.coracle(&["service", "show", "gauge"]));
    assert!(code == 2 && error.contains("instance.service.user.cell"), "{error}");
}

#[test]
fn services_are_operated_by_their_coordinates() {
    let agent = agent();
    let stop = run(&mut agent.coracle(&["service", "stop", A, OLD]));
    let refused = format!("error: {OLD}: the orders name no service at {OLD}\n");
    assert_eq!(stop, (1, "web stops, until it is started by hand\n".into(), refused));
    let (code, _, error) = run(&mut agent.coracle(&["service", "restart", A]));
    assert_eq!((code, error), (1, format!("error: {A}: web is stopped; start it\n")));
    let mut start = agent.coracle(&["service", "start", "--wait", "60", A]);
    let mut start = Running(start.stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(start.0.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert_eq!(lines.next().unwrap(), "web runs again");
    assert_eq!(lines.next().unwrap(), "   0 s  web.0 starting");
    {
        let mut facts = agent.facts.lock().unwrap();
        facts.web().replicas[0].state = ReplicaState::Running;
        facts.web().phase = coracle_protocol::reported::Phase::Converged;
    }
    agent.happen(None, "something");
    assert!(lines.next().unwrap().ends_with(" s  done"));
    assert!(start.0.wait().unwrap().success());
    let (code, answer) = json_of(&mut agent.coracle(&["service", "drain", "--json", A]));
    assert_eq!((code, &answer["done"][0]["name"], &answer["refused"]), (0, &json!(A), &json!([])));
    let asked: Vec<_> =
        agent.facts.lock().unwrap().operated.iter().map(|(_, what)| *what).collect();
    let wanted = [Operation::Stop, Operation::Restart, Operation::Start, Operation::Drain];
    assert_eq!(asked, wanted);
}

fn purged(agent: &FakeAgent) -> Vec<String> {
    agent.facts.lock().unwrap().operations.iter().map(|it| it.target.clone()).collect()
}

#[test]
fn nothing_is_purged_where_nobody_can_be_asked() {
    let agent = agent();
    for args in [["service", "purge", OLD].as_slice(), &["purge", "web"]] {
        let (code, text, error) = run(&mut agent.coracle(args));
        assert_eq!((code, text.as_str()), (1, ""));
        assert!(error.contains("--yes"), "{error}");
    }
    assert!(purged(&agent).is_empty());
}

#[test]
fn a_workloads_name_means_all_of_its_services() {
    let agent = agent();
    take_course(&agent, &[Step::Ended(Ok("the directory is gone"))]);
    let args = ["purge", "--yes", "web", "db", OLD, "b.b.b.b"];
    let (code, text, error) = run(&mut agent.coracle(&args));
    assert_eq!(
        (code, text.as_str()),
        (1, "   0 s  purging\nthe directory is gone\n".repeat(3).as_str())
    );
    assert!(error.starts_with("error: db: no service is of that workload"), "{error}");
    assert!(error.ends_with("error: b.b.b.b: no service stands there\n"), "{error}");
    assert_eq!(purged(&agent), [A, A1, OLD]);

    take_course(&agent, &[Step::Ended(Err("a mount is in it"))]);
    let (code, answer) = json_of(&mut agent.coracle(&["service", "purge", "--yes", "--json", OLD]));
    let refused = json!([{"name": OLD, "reason": "a mount is in it"}]);
    assert_eq!((code, answer), (1, json!({"purged": [], "refused": refused})));
    assert_eq!(run(&mut agent.coracle(&["purge", "--yes", "../x"])).0, 2);
    assert_eq!(run(&mut agent.coracle(&["service", "purge", "--yes", "web"])).0, 2);
}

#[test]
fn somebody_at_a_terminal_is_asked_for_the_name() {
    let agent = agent();
    take_course(&agent, &[Step::Ended(Ok("the directory is gone"))]);
    let mut terminal = Terminal::start(agent.coracle(&["purge", "web", OLD]), 80);
    terminal.until("Type web:");
    terminal.type_in("yes\n");
    terminal.until(&format!("Type {OLD}:"));
    terminal.type_in(&format!("{OLD}\n"));
    let (status, written) = terminal.end();
    let text: String = written.iter().map(|(_, text)| text.as_str()).collect();
    assert_eq!(status.code(), Some(1), "{text:?}");
    assert!(text.contains("remove these 2 runtime directories"), "{text:?}");
    assert!(text.contains("error: web: not confirmed\r\n"), "{text:?}");
    assert!(text.contains("\rthe directory is gone\r\n"), "{text:?}");
    assert_eq!(purged(&agent), [OLD]);
}
