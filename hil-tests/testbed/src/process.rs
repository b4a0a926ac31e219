//! One child process with its log. In: a command. Out: its id, its log, its end. Children die
//! with the process that started them, and are signalled by process id only.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{OnceLock, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{Result, installed, procfs, wait_for};

/// A running child; killed and reaped when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with its output appended to `log`. The kernel kills it when this whole
    /// process dies, whichever thread started it. It is in a process group of its own, so a
    /// Ctrl-C at the terminal reaches only us. `env_clear` on the command is not honoured.
    pub(crate) fn start(name: &str, command: &Command, log: PathBuf) -> Result<Self> {
        let output = OpenOptions::new().create(true).append(true).open(&log);
        let output = output.with_context(|| format!("cannot write {}", log.display()))?;
        let mut wrapped = dying_with_us(command)?;
        wrapped.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).process_group(0);
        let child = spawn_from_lasting_thread(wrapped)
            .with_context(|| format!("cannot start {name} ({command:?})"))?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    /// The process id.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// What it has written so far to standard output and error, at most the last 256 KiB.
    pub fn log(&self) -> String {
        tail(&self.log)
    }

    /// Where its output goes.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// Whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a signal; nothing if it has ended.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.is_running() {
            kill(Pid::from_raw(self.pid()), signal)
                .with_context(|| format!("cannot send {signal} to {}", self.name))?;
        }
        Ok(())
    }

    /// Stops it in its tracks (SIGSTOP): it answers nothing, its sockets stay open.
    pub fn freeze(&mut self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Ends [`freeze`](Self::freeze).
    pub fn thaw(&mut self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// Waits for it to end by itself; an error with its log if it does not.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let what = format!("{} to end", self.name);
        wait_for(&what, timeout, || self.child.try_wait().transpose())
            .with_context(|| self.log())?
            .with_context(|| format!("cannot wait for {}", self.name))
    }

    /// SIGTERM, at most `grace` of waiting, then SIGKILL; reaped on return.
    pub fn terminate(&mut self, grace: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        match wait_for("", grace, || self.child.try_wait().transpose()) {
            Ok(status) => status.with_context(|| format!("cannot wait for {}", self.name)),
            Err(_) => self.kill(),
        }
    }

    /// SIGKILL; reaped on return.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGKILL)?;
        self.child.wait().with_context(|| format!("cannot wait for {}", self.name))
    }

    /// Waits until `ready` gives a value; an error with the log if it takes longer than
    /// `timeout` or if the process ends first.
    pub fn wait_until<T>(
        &mut self,
        what: &str,
        timeout: Duration,
        mut ready: impl FnMut() -> Option<T>,
    ) -> Result<T> {
        let end = Instant::now() + timeout;
        loop {
            let running = self.is_running();
            if let Some(value) = ready() {
                return Ok(value);
            }
            if !running {
                bail!("{} ended before {what}; its log:\n{}", self.name, self.log());
            }
            if Instant::now() > end {
                bail!("{}: {what} not seen in {timeout:?}; its log:\n{}", self.name, self.log());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("testbed: {error:#}");
        }
    }
}

/// Whether a process of that id exists and is no zombie.
pub fn is_alive(pid: i32) -> bool {
    procfs::start_time(pid).is_some()
}

fn tail(path: &Path) -> String {
    const LIMIT: u64 = 256 * 1024;
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let skip = file.metadata()?.len().saturating_sub(LIMIT);
        std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(skip))?;
        let mut bytes = Vec::new();
        file.take(LIMIT).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}

/// The same command under `setpriv --pdeathsig` (util-linux), which needs no code of ours
/// between fork and exec.
fn dying_with_us(command: &Command) -> Result<Command> {
    let program = command.get_program();
    let path = Path::new(program);
    let program = match program.to_str() {
        Some(name) if path.components().count() == 1 => installed(name)?,
        _ => path.to_owned(),
    };
    if !program.is_file() {
        bail!("no program {}", program.display());
    }
    let mut wrapped = Command::new(installed("setpriv")?);
    wrapped.args(["--pdeathsig", "KILL", "--"]).arg(program).args(command.get_args());
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(key, value),
            None => wrapped.env_remove(key),
        };
    }
    if let Some(dir) = command.get_current_dir() {
        wrapped.current_dir(dir);
    }
    Ok(wrapped)
}

type Spawn = (Command, mpsc::SyncSender<std::io::Result<Child>>);

/// The kernel ties a parent-death signal to the *thread* that forked, and test threads are
/// short-lived: so one thread, which lasts as long as the process, forks everything.
fn spawn_from_lasting_thread(command: Command) -> Result<Child> {
    static SPAWNER: OnceLock<mpsc::SyncSender<Spawn>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, receiver) = mpsc::sync_channel::<Spawn>(16);
        std::thread::spawn(move || {
            for (mut command, reply) in receiver {
                // Nobody waiting for the answer means that nobody wants the child.
                if let Err(mpsc::SendError(Ok(mut child))) = reply.send(command.spawn()) {
                    child.kill().ok();
                    child.wait().ok();
                }
            }
        });
        sender
    });
    let (reply, answer) = mpsc::sync_channel(1);
    spawner.send((command, reply)).map_err(|_| anyhow!("the spawning thread is gone"))?;
    Ok(answer.recv().context("the spawning thread is gone")??)
}

/// Runs a command to its end, for at most `timeout`; an error with its standard error output
/// unless it succeeds.
pub fn run(command: &mut Command, timeout: Duration) -> Result<Vec<u8>> {
    let output = run_with_input(command, &[], timeout)?;
    if !output.status.success() {
        bail!(
            "{command:?} failed ({}): {}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim_end(),
            String::from_utf8_lossy(&output.stdout).trim_end(),
        );
    }
    Ok(output.stdout)
}

/// Like [`run`], with bytes for its standard input, and with the exit status left to judge.
pub fn run_with_input(command: &mut Command, input: &[u8], timeout: Duration) -> Result<Output> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    let mut stdout = child.stdout.take().context("no standard output")?;
    let mut stderr = child.stderr.take().context("no standard error")?;
    std::thread::scope(|scope| {
        // A program that does not read all its input is judged by its exit status.
        scope.spawn(move || stdin.write_all(input).ok());
        let out = scope.spawn(move || read_all(&mut stdout));
        let err = scope.spawn(move || read_all(&mut stderr));
        let waited = wait_for("", timeout, || child.try_wait().transpose());
        let status = match waited {
            Ok(status) => status?,
            Err(_) => {
                child.kill()?;
                child.wait()?;
                bail!("{command:?} was still running after {timeout:?}: killed");
            }
        };
        let stdout = out.join().map_err(|_| anyhow!("reader failed"))?;
        let stderr = err.join().map_err(|_| anyhow!("reader failed"))?;
        Ok(Output { status, stdout, stderr })
    })
}

fn read_all(stream: &mut impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).ok();
    bytes
}
