//! `coracle-log` alone, on pipes of ours.

use std::fs;
use std::io::{self, PipeReader, PipeWriter, Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use coracle_log::line::Line;
use coracle_testbed::{bin, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::bed::SOON;

/// Started as a shim starts it; our ends of the pipes are the container's.
pub(crate) struct Logger {
    child: Child,
    stdout: Option<PipeWriter>,
    stderr: Option<PipeWriter>,
    ready: PipeReader,
}

impl Logger {
    pub(crate) fn start(dir: &Path, id: &str, file: u64, files: u32, total: u64) -> Self {
        let (out, stdout) = io::pipe().unwrap();
        let (err, stderr) = io::pipe().unwrap();
        let (ready, tell) = io::pipe().unwrap();
        // Descriptors above 2 by way of the shell.
        let mut command = Command::new("/bin/sh");
        command.args(["-c", r#"exec "$0" "$@" 3<&0 4<&1 5>&2 </dev/null >/dev/null 2>&1"#]);
        command.arg(bin("coracle-log").unwrap()).arg("total").arg(total.to_string());
        command.arg("dir").arg(dir).args(["file", &file.to_string(), "files", &files.to_string()]);
        command.env_clear().env("CONTAINER_ID", id).env("CONTAINER_NAMESPACE", "test");
        let child = command.stdin(out).stdout(err).stderr(tell).spawn().unwrap();
        Self { child, stdout: Some(stdout), stderr: Some(stderr), ready }
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    /// Waits until it says that it is ready, as a shim does.
    pub(crate) fn ready(&mut self) {
        let mut said = Vec::new();
        self.ready.read_to_end(&mut said).unwrap();
        assert_eq!(said, [0]);
    }

    pub(crate) fn say(&mut self, text: &[u8]) {
        self.stdout.as_mut().unwrap().write_all(text).unwrap();
    }

    pub(crate) fn say_error(&mut self, text: &[u8]) {
        self.stderr.as_mut().unwrap().write_all(text).unwrap();
    }

    /// Ends the pipes, and waits for the end of the process.
    pub(crate) fn end(mut self) {
        (self.stdout, self.stderr) = (None, None);
        let status = wait_for("coracle-log to end", SOON, || self.child.try_wait().unwrap());
        assert!(status.unwrap().success());
    }
}

impl Drop for Logger {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// All bytes that are kept of a container.
pub(crate) fn kept(dir: &Path, id: &str) -> Vec<u8> {
    let container = dir.join(id);
    let numbers = coracle_log::files::numbers(&container).unwrap_or_default();
    let paths = numbers.into_iter().map(|number| coracle_log::files::path(&container, number));
    paths.flat_map(|path| fs::read(path).unwrap_or_default()).collect()
}

/// What was said on a stream, put together again byte for byte.
fn said(kept: &[u8], stream: &str) -> Vec<u8> {
    let mut said = Vec::new();
    for line in kept.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
        let line = Line::parse(line).unwrap();
        if line.stream.name() == stream {
            said.extend_from_slice(line.text);
            said.extend_from_slice(if line.partial { b"" } else { b"\n" });
        }
    }
    said
}

const MIB: u64 = 1024 * 1024;

#[test]
fn every_byte_of_both_streams_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let mut logger = Logger::start(dir.path(), "web.0.main", 16 * MIB, 4, 64 * MIB);
    logger.ready();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let mut random = 12_345_u32;
    for round in 0..400 {
        let mut piece = Vec::new();
        for _ in 0..(round * 37) % 5000 {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // Newlines are frequent in some rounds and missing in others.
            let byte = (random >> 24) as u8;
            piece.push(if round % 3 == 0 && byte == b'\n' { b'x' } else { byte });
        }
        if round % 2 == 0 {
            logger.say(&piece);
            out.extend_from_slice(&piece);
        } else {
            logger.say_error(&piece);
            err.extend_from_slice(&piece);
        }
    }
    for (size, byte) in
        [(32 * 1024 - 1, b'a'), (32 * 1024, b'b'), (32 * 1024 + 1, b'c'), (200_000, b'd')]
    {
        let mut line = vec![byte; size];
        line.push(b'\n');
        logger.say(&line);
        out.extend_from_slice(&line);
    }
    logger.end();
    let kept = kept(dir.path(), "web.0.main");
    assert!(said(&kept, "stdout") == out && said(&kept, "stderr") == err);
    assert!(kept.split(|&b| b == b'\n').all(|line| line.len() < 33 * 1024));
}

#[test]
fn the_beginning_of_a_line_is_not_held_back_for_long() {
    let dir = tempfile::tempdir().unwrap();
    let mut logger = Logger::start(dir.path(), "web.0.main", MIB, 4, 64 * MIB);
    logger.say(b"whole\nlogin: ");
    let begun = Instant::now();
    let written = || {
        let kept = kept(dir.path(), "web.0.main");
        kept.ends_with(b" stdout P login: \n").then_some(())
    };
    wait_for("a part of a line", SOON, written).unwrap();
    assert!(begun.elapsed() > Duration::from_millis(500), "{:?}", begun.elapsed());
    logger.say(b"root\n");
    logger.end();
    assert_eq!(said(&kept(dir.path(), "web.0.main"), "stdout"), b"whole\nlogin: root\n");
}

#[test]
fn nothing_but_the_end_of_both_pipes_ends_it_and_idle_it_does_not_wake() {
    let dir = tempfile::tempdir().unwrap();
    let mut logger = Logger::start(dir.path(), "web.0.main", MIB, 4, 64 * MIB);
    logger.ready();
    logger.say(b"one\n");
    logger.stdout = None;
    for signal in
        [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGPIPE]
    {
        kill(Pid::from_raw(logger.pid()), signal).unwrap();
    }
    wait_for("the first line", SOON, || {
        kept(dir.path(), "web.0.main").ends_with(b"one\n").then_some(())
    })
    .unwrap();
    let switches = || {
        let status = fs::read_to_string(format!("/proc/{}/status", logger.pid())).unwrap();
        let lines = status.lines().filter(|line| line.contains("ctxt_switches"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    std::thread::sleep(Duration::from_millis(200));
    let before = switches();
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(switches(), before);
    logger.say_error(b"two\n");
    logger.end();
    assert_eq!(said(&kept(dir.path(), "web.0.main"), "stderr"), b"two\n");
}

#[test]
fn each_process_holds_little_memory() {
    let dir = tempfile::tempdir().unwrap();
    let mut loggers = Vec::new();
    for index in 0..8 {
        let mut logger = Logger::start(dir.path(), &format!("web.{index}.main"), MIB, 4, 64 * MIB);
        logger.ready();
        // Every buffer was used to its end.
        let line = [b'x'; 99];
        for _ in 0..3000 {
            logger.say(&[&line[..], b"\n"].concat());
            logger.say_error(&[&line[..], b"\n"].concat());
        }
        loggers.push(logger);
    }
    let private = |logger: &Logger| -> u64 {
        let smaps = fs::read_to_string(format!("/proc/{}/smaps_rollup", logger.pid())).unwrap();
        let lines = smaps.lines().filter(|line| line.starts_with("Private_"));
        lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum()
    };
    let held = loggers.iter().map(private).collect::<Vec<_>>();
    println!("private memory of 8 that were busy, kB: {held:?}");
    assert!(held.iter().all(|&kb| kb <= 300), "{held:?}");
    loggers.into_iter().for_each(Logger::end);
}

#[test]
fn wrong_arguments_end_with_2_and_help_is_good() {
    let run = |args: &[&str]| {
        let mut command = Command::new(bin("coracle-log").unwrap());
        command.args(args).env("CONTAINER_ID", "../evil").output().unwrap()
    };
    for bad in
        [vec![], vec!["dir", "/tmp"], vec!["dir", "/tmp", "file", "1", "files", "2", "total", "3"]]
    {
        assert_eq!(run(&bad).status.code(), Some(2), "{bad:?}");
    }
    let help = run(&["--help"]);
    assert!(help.status.success() && help.stdout.starts_with(b"usage: coracle-log dir DIR"));
    assert_eq!(run(&["--version"]).stdout, b"coracle-log 0.1.0\n");
}
