//! The serial line. In: the two directions of a line, and commands. Out: all that came over it,
//! and what each command printed with its exit code.
//!
//! A thread of its own reads all the time: output that nobody takes stops an emulated machine. The
//! text is kept in memory up to a bound; the oldest goes first.
//!
//! A command's output comes back as base64 with a checksum, because the kernel and systemd write to
//! the same line whenever they like; what they tore is asked for again. No marker can match its own
//! echo: the line typed does not hold the text that is waited for.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use coracle_testbed::Result;
use nix::sys::termios::{self, BaudRate, SetArg};

const KEPT: usize = 4 * 1024 * 1024;
/// A terminal line that the kernel takes in one piece is at most 4,096 bytes long.
const LONGEST_LINE: usize = 4_000;
const REPEATS: usize = 6;

/// Typed once after login: `_r N COMMAND` runs a command and prints its output between marks,
/// `_s N` prints the last one's again. Then a loop that reads lines, so that neither prompts nor a
/// line editor get in the way.
const PRELUDE: &str = concat!(
    "stty -echo cols 200 2>/dev/null; _o=$(mktemp /run/serial.XXXXXX 2>/dev/null || mktemp); ",
    "_s() { set -- \"$1\" $(cksum <$_o); printf '\\n@@b%s %s %s %s\\n' \"$1\" $_c $2 $3; ",
    "base64 <$_o; printf '@@e%s\\n' \"$1\"; }; ",
    "_r() { (eval \"$2\") </dev/null >$_o 2>&1; _c=$?; _s \"$1\"; }; ",
    "while IFS= read -r _l; do eval \"$_l\"; done\n"
);

/// What a command did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Its exit code.
    pub code: i32,
    /// Standard output and standard error, as they came.
    pub text: String,
}

/// How to log in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// The user, who must be root or be able to do what root does.
    pub user: String,
    /// The password, where one is asked for.
    pub password: String,
}

impl Default for Login {
    fn default() -> Self {
        Self { user: "root".to_owned(), password: String::new() }
    }
}

/// One serial line.
pub struct Console {
    log: Arc<Log>,
    writer: Option<Box<dyn Write + Send>>,
    next: u64,
}

impl std::fmt::Debug for Console {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Console").field("position", &self.position()).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Log {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    bytes: Vec<u8>,
    /// How many bytes came before those that are kept.
    dropped: usize,
    /// The line that is being read now; a reader of an earlier one writes nothing more.
    line: u64,
    ended: bool,
}

impl Log {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, line: u64, bytes: &[u8]) -> bool {
        let mut state = self.lock();
        if state.line != line {
            return false;
        }
        state.bytes.extend_from_slice(bytes);
        if state.bytes.len() > 2 * KEPT {
            let surplus = state.bytes.len() - KEPT;
            state.bytes.drain(..surplus);
            state.dropped += surplus;
        }
        self.changed.notify_all();
        true
    }
}

impl Default for Console {
    fn default() -> Self {
        Self::new()
    }
}

impl Console {
    /// One that is attached to nothing yet.
    pub fn new() -> Self {
        Self { log: Arc::default(), writer: None, next: 0 }
    }

    /// Opens a terminal device, such as `/dev/ttyUSB0`, with 115,200 baud, raw.
    pub fn open(&mut self, device: &Path) -> Result<()> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(nix::libc::O_NOCTTY)
            .open(device)
            .with_context(|| format!("cannot open the serial line {}", device.display()))?;
        let mut settings = termios::tcgetattr(&file)
            .with_context(|| format!("{} is no terminal", device.display()))?;
        termios::cfmakeraw(&mut settings);
        termios::cfsetspeed(&mut settings, BaudRate::B115200)?;
        settings.control_flags |= termios::ControlFlags::CLOCAL | termios::ControlFlags::CREAD;
        termios::tcsetattr(&file, SetArg::TCSANOW, &settings)?;
        self.attach(file.try_clone()?, file);
        Ok(())
    }

    /// Reads from and writes to another line from now on; what came so far is kept.
    pub fn attach(
        &mut self,
        mut reader: impl Read + Send + 'static,
        writer: impl Write + Send + 'static,
    ) {
        let log = self.log.clone();
        let line = {
            let mut state = log.lock();
            state.line += 1;
            state.ended = false;
            state.line
        };
        self.writer = Some(Box::new(writer));
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                match reader.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(count) => {
                        if !log.add(line, &buffer[..count]) {
                            return;
                        }
                    }
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(_) => break,
                }
            }
            let mut state = log.lock();
            if state.line == line {
                state.ended = true;
                log.changed.notify_all();
            }
        });
    }

    /// How many bytes came so far, over all lines.
    pub fn position(&self) -> usize {
        let state = self.log.lock();
        state.dropped + state.bytes.len()
    }

    /// What came since a [`position`](Self::position), without carriage returns.
    pub fn since(&self, position: usize) -> String {
        let state = self.log.lock();
        let from = position.saturating_sub(state.dropped).min(state.bytes.len());
        String::from_utf8_lossy(&state.bytes[from..]).replace('\r', "")
    }

    /// The last lines, for messages.
    pub fn tail(&self) -> String {
        let text = self.since(self.position().saturating_sub(8_000));
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// Everything that is kept.
    pub fn text(&self) -> String {
        self.since(0)
    }

    /// Adds a note of ours to what is kept.
    pub fn note(&self, text: &str) {
        let line = self.log.lock().line;
        self.log.add(line, format!("\n--- noted by the test:\n{text}\n---\n").as_bytes());
    }

    /// Types text.
    pub fn send(&mut self, text: &str) -> Result<()> {
        let writer = self.writer.as_mut().context("the serial line is not attached")?;
        writer.write_all(text.as_bytes()).context("cannot write to the serial line")?;
        Ok(writer.flush()?)
    }

    /// Waits until what came since `position` holds `wanted`; the position after it.
    pub fn wait_for(&self, position: usize, wanted: &str, timeout: Duration) -> Result<usize> {
        self.wait_any(position, &[wanted], timeout).map(|(_, end)| end)
    }

    /// Waits for the first of several texts: its number, and the position after it.
    pub fn wait_any(
        &self,
        position: usize,
        wanted: &[&str],
        timeout: Duration,
    ) -> Result<(usize, usize)> {
        let end = Instant::now() + timeout;
        let mut state = self.log.lock();
        loop {
            let from = position.saturating_sub(state.dropped).min(state.bytes.len());
            let found = wanted.iter().enumerate().filter_map(|(number, text)| {
                let at = find(&state.bytes[from..], text.as_bytes())?;
                Some((state.dropped + from + at + text.len(), number))
            });
            if let Some((end, number)) = found.min() {
                return Ok((number, end));
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || state.ended {
                let why = if state.ended { "the line ended" } else { "it did not come" };
                drop(state);
                bail!(
                    "waited for {wanted:?} on the serial line, {timeout:?} at most: {why}; the \
                     end of it:\n{}",
                    self.tail()
                );
            }
            state = self
                .log
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Waits for the login prompt since `position`, logs in, and makes ready for
    /// [`run`](Self::run).
    pub fn log_in(&mut self, login: &Login, position: usize, timeout: Duration) -> Result<()> {
        let end = Instant::now() + timeout;
        let left = || end.saturating_duration_since(Instant::now()).max(Duration::from_secs(1));
        let mut seen = self.wait_for(position, "login: ", left())?;
        loop {
            self.send(&format!("{}\n", login.user))?;
            let answers = ["assword: ", "# ", "login: "];
            let (which, at) = self.wait_any(seen, &answers, left())?;
            seen = at;
            match which {
                0 => {
                    self.send(&format!("{}\n", login.password))?;
                    let (which, at) =
                        self.wait_any(seen, &["# ", "incorrect", "login: "], left())?;
                    seen = at;
                    if which == 0 {
                        break;
                    }
                    ensure!(which != 1, "user {} or its password is wrong", login.user);
                }
                1 => break,
                _ => ensure!(Instant::now() < end, "no shell after the login"),
            }
        }
        self.send(PRELUDE)?;
        let answer = self.run("echo shell-is-ready", left())?;
        ensure!(answer.text.trim() == "shell-is-ready", "odd answer of the shell: {answer:?}");
        Ok(())
    }

    /// Runs a command line in a subshell of the login shell, to its end. Its directory and
    /// variables are its own; what it leaves running in the background must not hold its output.
    pub fn run(&mut self, command: &str, timeout: Duration) -> Result<Answer> {
        self.next += 1;
        let number = self.next;
        let line = format!("_r {number} {}\n", quoted(command));
        ensure!(line.len() <= LONGEST_LINE, "a command of {} bytes is too long", line.len());
        ensure!(!command.contains('\n'), "a command is one line");
        let mut position = self.position();
        self.send(&line)?;
        let end = Instant::now() + timeout;
        for repeat in 0..REPEATS {
            let left = end.saturating_duration_since(Instant::now()).max(Duration::from_secs(10));
            let left = if repeat == 0 { timeout } else { left };
            let told = self
                .wait_for(position, &format!("@@e{number}"), left)
                .map(|_| parse(&self.since(position), number));
            match told {
                Ok(Some(answer)) => return Ok(answer),
                Ok(None) => {}
                Err(error) if repeat == 0 => {
                    return Err(error).with_context(|| format!("the command was: {command}"));
                }
                Err(_) => {}
            }
            position = self.position();
            self.send(&format!("_s {number}\n"))?;
        }
        bail!("the answer to {command} came torn {REPEATS} times; the end:\n{}", self.tail())
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

/// In single quotes, as a POSIX shell reads it.
pub fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// The answer with that number, if it came whole.
fn parse(text: &str, number: u64) -> Option<Answer> {
    let (_, rest) = text.split_once(&format!("@@b{number} "))?;
    let (head, rest) = rest.split_once('\n')?;
    let (body, _) = rest.split_once(&format!("@@e{number}"))?;
    let mut fields = head.split_whitespace();
    let code = fields.next()?.parse().ok()?;
    let sum: u32 = fields.next()?.parse().ok()?;
    let size: usize = fields.next()?.parse().ok()?;
    let body: String = body.chars().filter(|c| !c.is_whitespace()).collect();
    let bytes = STANDARD.decode(body).ok()?;
    (bytes.len() == size && cksum(&bytes) == sum)
        .then(|| Answer { code, text: String::from_utf8_lossy(&bytes).into_owned() })
}

/// POSIX `cksum`: CRC-32 with the polynomial 0x04c11db7 over the bytes and their number.
fn cksum(bytes: &[u8]) -> u32 {
    let mut length = bytes.len();
    let mut tail = Vec::new();
    while length > 0 {
        tail.push((length & 0xff) as u8);
        length >>= 8;
    }
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ (u32::from(*byte) << 24), |crc, _| {
            if crc & 0x8000_0000 == 0 { crc << 1 } else { (crc << 1) ^ 0x04c1_1db7 }
        })
    };
    !bytes.iter().chain(&tail).fold(0, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A shell behind a pseudo-terminal, as a board's.
    fn shell() -> Console {
        let pty = nix::pty::openpty(None, None).unwrap();
        let slave = std::fs::File::from(pty.slave);
        let mut command = std::process::Command::new("setsid");
        command.args(["sh", "-c", "printf 'here login: '; read u; printf '# '; exec sh"]);
        command.stdin(slave.try_clone().unwrap()).stdout(slave.try_clone().unwrap()).stderr(slave);
        let mut child = command.spawn().unwrap();
        std::thread::spawn(move || child.wait());
        let master = std::fs::File::from(pty.master);
        let mut console = Console::new();
        console.attach(master.try_clone().unwrap(), master);
        console
    }

    const LIMIT: Duration = Duration::from_secs(20);

    #[test]
    fn runs_commands_behind_a_terminal() {
        let mut console = shell();
        console.log_in(&Login::default(), 0, LIMIT).unwrap();
        let answer = console.run("printf 'a\\tb\\r\\n'; echo \"it's\" >&2; exit 7", LIMIT).unwrap();
        assert_eq!(answer, Answer { code: 7, text: "a\tb\r\nit's\n".to_owned() });
        let long = console.run("seq 20000", LIMIT).unwrap();
        assert_eq!(long.text.lines().count(), 20000);
        assert_eq!(console.run("echo @@e4; false", LIMIT).unwrap().code, 1);
        assert!(console.run("sleep 5", Duration::from_millis(200)).is_err());
    }

    #[test]
    fn a_torn_answer_is_not_taken() {
        let sum = cksum(b"hello\n");
        let whole = format!("noise\n@@b3 0 {sum} 6\naGVsbG8K\n@@e3\n");
        assert_eq!(parse(&whole, 3).unwrap().text, "hello\n");
        for torn in ["[ 12.3] kernel\n@@e3", "@@b3 0 1 6\naGVsbG8K\n@@e3"] {
            assert_eq!(parse(torn, 3), None);
        }
        assert_eq!(parse(&whole.replace("aGVs", "aG[ 1.0] oops\nVs"), 3), None);
    }

    #[test]
    fn sums_like_cksum() {
        // echo 123456789 | cksum
        assert_eq!(cksum(b"123456789\n"), 1_552_147_931);
        assert_eq!(cksum(b""), 4_294_967_295);
    }

    #[test]
    fn the_text_is_bounded() {
        let console = Console::new();
        for _ in 0..40 {
            assert!(console.log.add(0, &[b'x'; 1024 * 1024]));
        }
        assert!(console.log.lock().bytes.len() <= 2 * KEPT);
        assert_eq!(console.position(), 40 * 1024 * 1024);
    }
}
