//! `coracle logs` as its users meet it, without agent and containerd.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use crate::bed::SOON;
use crate::process::Logger;

const MIB: u64 = 1024 * 1024;

struct Logs {
    dir: tempfile::TempDir,
}

impl Logs {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let text = format!("state_dir = {:?}\n", dir.path());
        fs::write(dir.path().join("coracle.toml"), text).unwrap();
        Self { dir }
    }

    fn path(&self) -> std::path::PathBuf {
        self.dir.path().join("logs")
    }

    /// One run of a container.
    fn run(&self, id: &str, stdout: &[u8], stderr: &[u8]) {
        let mut logger = self.logger(id);
        logger.say(stdout);
        // So that the streams are told in this order.
        std::thread::sleep(Duration::from_millis(20));
        logger.say_error(stderr);
        logger.end();
    }

    fn logger(&self, id: &str) -> Logger {
        Logger::start(&self.path(), id, MIB, 4, 64 * MIB)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_coracle"));
        command.arg("logs").args(args).arg("--config").arg(self.dir.path().join("coracle.toml"));
        command.stdin(Stdio::null());
        command
    }

    /// Exit code, standard output, standard error.
    fn print(&self, args: &[&str]) -> (i32, String, String) {
        let Output { status, stdout, stderr } = self.command(args).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        (status.code().unwrap(), text(stdout), text(stderr))
    }
}

#[test]
fn lines_are_shown_by_run_stream_and_number_as_they_were_said() {
    let logs = Logs::new();
    logs.run("web.0.main", b"first run\n", b"why it ended\n");
    logs.run("web.0.main", b"one\x1b[31m\xff\ntwo\nno", b"");
    logs.run("web.0.proxy", b"", b"proxy\n");
    logs.run("webcam.0.main", b"other\n", b"");
    let shown = |args: &[&str]| logs.print(args).1;
    assert_eq!(logs.command(&["web.0.main"]).output().unwrap().stdout, b"one\x1b[31m\xff\ntwo\nno");
    assert_eq!(shown(&["web.0.main", "--tail", "2"]), "two\nno");
    assert_eq!(shown(&["web.0.main", "--previous"]), "first run\nwhy it ended\n");
    assert_eq!(shown(&["web", "-c", "main", "--all", "--stream", "stderr"]), "why it ended\n");
    assert_eq!(shown(&["web", "--tail", "1"]), "web.0.main | no\nweb.0.proxy | proxy\n");
    let (code, _, remark) = logs.print(&["web.0.main", "--all"]);
    assert_eq!((code, remark.as_str()), (0, "-- web.0.main: started anew --\n"));
    let stamped = shown(&["web.0.main", "--tail", "2", "-t"]);
    assert_eq!(&stamped[19..20], ".");
    assert!(stamped.contains("Z two\n") && stamped.ends_with("Z no"), "{stamped}");
    assert_eq!(shown(&["web.0.proxy", "--since", "1h"]), "proxy\n");
    assert_eq!(shown(&["web.0.proxy", "--since", "2999-01-01T00:00:00Z"]), "");
    let json = shown(&["web", "-c", "main", "--json", "-n", "2"]);
    let lines = json.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let lines = lines.collect::<Vec<_>>();
    assert_eq!(
        (lines[0]["text"].as_str(), lines[0]["partial"].as_bool()),
        (Some("two"), Some(false))
    );
    assert_eq!(
        (lines[1]["text"].as_str(), lines[1]["partial"].as_bool()),
        (Some("no"), Some(true))
    );
    assert_eq!(
        (lines[1]["container"].as_str(), lines[1]["stream"].as_str()),
        (Some("web.0.main"), Some("stdout"))
    );
    let list = shown(&[]);
    assert!(list.starts_with("CONTAINER") && list.lines().count() == 4, "{list}");
    let listed: serde_json::Value = serde_json::from_str(&shown(&["--json"])).unwrap();
    assert_eq!(listed[1]["container"], "web.0.proxy");
    assert!(listed[1]["size"].as_u64().unwrap() > 0 && listed[1]["newest"].is_string());
}

#[test]
fn what_is_not_there_is_said_with_what_to_do() {
    let logs = Logs::new();
    let (code, out, error) = logs.print(&[]);
    assert_eq!((code, out.as_str()), (0, ""));
    assert!(error.starts_with("no logs in "), "{error}");
    logs.run("web.0.main", b"one\n", b"");
    let (code, _, error) = logs.print(&["db"]);
    assert_eq!(code, 1);
    assert!(
        error.starts_with("error: no logs of db in ")
            && error.contains("\nhint: `coracle logs` lists"),
        "{error}"
    );
    let (code, _, error) = logs.print(&["web", "--previous"]);
    assert_eq!(code, 1);
    assert!(error.starts_with("error: no logs of a previous run of web in "), "{error}");
    for bad in [
        &["web", "--since", "tomorrow"][..],
        &["--tail", "3"],
        &["a..b"],
        &["web", "--stream", "x"],
        &["web", "--all", "--previous"],
        &["web", "-p", "-f"],
    ] {
        assert_eq!(logs.print(bad).0, 2, "{bad:?}");
    }
    let config = logs.dir.path().join("coracle.toml");
    fs::write(&config, "state_dir = 3\n").unwrap();
    assert_eq!(logs.print(&["web"]).0, 1);
    // As somebody who may not.
    fs::write(&config, format!("state_dir = {:?}\n", logs.dir.path())).unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(logs.dir.path(), open).unwrap();
    let mut nobody = Command::new("setpriv");
    nobody.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"]);
    nobody.arg(env!("CARGO_BIN_EXE_coracle")).args(["logs", "web", "--config"]).arg(&config);
    let output = nobody.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(
        error.contains("cannot read the logs in ")
            && error.contains("hint: logs are for root alone"),
        "{error}"
    );
}

#[test]
fn a_terminal_is_shown_nothing_that_could_drive_it() {
    let logs = Logs::new();
    logs.run("web.0.main", b"\x1b[2Jgone\x07\r\n\xc2\x9bx\n", b"");
    let config = logs.dir.path().join("coracle.toml");
    let command =
        format!("{} logs web.0.main --config {}", env!("CARGO_BIN_EXE_coracle"), config.display());
    // script(1) gives it a terminal.
    let mut script = Command::new("script");
    script.args(["--quiet", "--command", &command, "/dev/null"]).env("LC_ALL", "C.UTF-8");
    let shown = script.stdin(Stdio::null()).output().unwrap().stdout;
    assert_eq!(String::from_utf8_lossy(&shown), "\\x1b[2Jgone\\x07\r\n\\u{9b}x\r\n");
}

#[test]
fn following_goes_over_rotation_restarts_and_containers_that_appear() {
    let logs = Logs::new();
    let mut command = logs.command(&["web", "--follow"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let (sender, lines) = mpsc::channel();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    std::thread::spawn(move || {
        for line in stdout.lines() {
            if sender.send(line.unwrap()).is_err() {
                return;
            }
        }
    });
    let next = || lines.recv_timeout(SOON).expect("another line in time");
    let mut first = Logger::start(&logs.path(), "web.0.main", 16 * 1024, 16, 64 * MIB);
    for number in 0..2000 {
        first.say(format!("line {number} {}\n", "x".repeat(30)).as_bytes());
        if number % 50 == 0 {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    for number in 0..2000 {
        assert!(next().starts_with(&format!("web.0.main | line {number} ")));
    }
    first.end();
    logs.run("web.0.main", b"again\n", b"");
    assert_eq!(next(), "web.0.main | again");
    logs.run("web.1.main", b"another\n", b"");
    assert_eq!(next(), "web.1.main | another");
    fs::remove_dir_all(logs.path()).unwrap();
    logs.run("web.0.main", b"from the beginning\n", b"");
    assert_eq!(next(), "web.0.main | from the beginning");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn the_end_of_much_is_found_quickly() {
    let logs = Logs::new();
    let mut logger = Logger::start(&logs.path(), "web.0.main", 64 * MIB, 4, 256 * MIB);
    let piece = format!("{}\n", "x".repeat(999)).repeat(1000).into_bytes();
    (0..50).for_each(|_| logger.say(&piece));
    logger.say(b"the end\n");
    logger.end();
    assert!(size(&logs.path()) > 50 * 1000 * 1000);
    let begun = std::time::Instant::now();
    assert_eq!(logs.print(&["web", "--tail", "1"]).1, "the end\n");
    let end = begun.elapsed();
    let begun = std::time::Instant::now();
    assert_eq!(logs.command(&["web"]).output().unwrap().stdout.len(), 50_000_008);
    println!("the last line of 50 MB after {end:?}, all of it after {:?}", begun.elapsed());
    assert!(end < Duration::from_secs(1), "{end:?}");
}

fn size(dir: &Path) -> u64 {
    coracle::logs::list(dir).unwrap().iter().map(|kept| kept.size).sum()
}
