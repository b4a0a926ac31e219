//! Walks through an LMDB file in a child process, because a damaged one ends the process that maps
//! it.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use heed::CompactionOption;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;

use super::contents;
use super::lmdb::{Mode, open};

/// Hidden subcommand of the agent whose body is [`check_command`]: `store-check PATH`.
pub const CHECK_COMMAND: &str = "store-check";

/// How long a check may take. The file has at most 128 MiB, and some hundred KiB as a rule; the slowest
/// card reads that in seconds.
const TIME_LIMIT: Duration = Duration::from_secs(60);

/// How much of what the child says is kept, in bytes.
const MESSAGE_BYTES: usize = 512;

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckOutcome {
    /// Every page and every record is as it should be.
    Intact,
    /// It must not be opened; with the reason.
    Damaged(String),
    /// The check itself could not be done; nothing is known of the file.
    Unavailable(String),
}

/// Walks through every page and decodes every record of the LMDB file at `path`.
///
/// A damaged file may end the calling process by a signal. For the child process only.
///
/// # Errors
/// What is wrong with the file.
pub fn check(path: &Path) -> Result<(), String> {
    let text = |error: heed::Error| error.to_string();
    if let Some(reason) = other_word_size(path) {
        return Err(reason);
    }
    let env = open(path, Mode::ReadOnly).map_err(text)?;
    contents::verify(&env)?;
    // A compacting copy visits every page of the tree and of the free list, and compares their
    // number with the file's: it finds pages that are lost or used twice.
    let mut nowhere = OpenOptions::new()
        .write(true)
        .open("/dev/null")
        .map_err(|error| format!("cannot open /dev/null: {error}"))?;
    env.copy_to_file(&mut nowhere, CompactionOption::Enabled).map_err(text)
}

/// What to say of a file that a program of the other word size wrote, as after an upgrade from a
/// 32-bit system to a 64-bit one. LMDB would call it no LMDB file at all.
fn other_word_size(path: &Path) -> Option<String> {
    // LMDB's mark, in the byte order of the machine, behind the head of the file's first page; that
    // head begins with a page number of one word.
    const MARK: [u8; 4] = 0xBEEF_C0DE_u32.to_ne_bytes();
    const HEAD_BEHIND_NUMBER: usize = 8;
    let mut start = [0; 20];
    File::open(path).ok()?.read_exact(&mut start).ok()?;
    let written_with =
        |bits: u32| start[bits as usize / 8 + HEAD_BEHIND_NUMBER..].starts_with(&MARK);
    let own = usize::BITS;
    let other = if own == 64 { 32 } else { 64 };
    (written_with(other) && !written_with(own)).then(|| {
        format!(
            "it was written by a {other}-bit program and this one has {own} bits; the orders in the \
             plain files beside it can be read by both"
        )
    })
}

/// The body of the hidden subcommand: [`check`], without core dumps, the reason on standard error.
pub fn check_command(path: &Path) -> ExitCode {
    if let Err(error) = setrlimit(Resource::RLIMIT_CORE, 0, 0) {
        tracing::debug!(%error, "core dumps stay enabled");
    }
    match check(path) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("{reason}");
            ExitCode::FAILURE
        }
    }
}

/// Checks the file at `path` by the agent's own program.
pub fn check_in_child(path: &Path) -> CheckOutcome {
    // Not the path it was started from: an upgrade may have replaced the file there.
    let mut command = Command::new("/proc/self/exe");
    command.arg(CHECK_COMMAND).arg(path);
    check_with(command, TIME_LIMIT)
}

/// Runs `command`, which checks a file as [`check_command`] does.
pub fn check_with(mut command: Command, time_limit: Duration) -> CheckOutcome {
    let spawned = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => return CheckOutcome::Unavailable(format!("cannot start a child: {error}")),
    };
    let said = listen(&mut child, time_limit);
    if said.is_none() {
        // It may have ended meanwhile: then there is nothing to kill.
        if let Err(error) = child.kill() {
            tracing::debug!(%error, "the check's process ended by itself");
        }
    }
    match (child.wait(), said) {
        (Err(error), _) => CheckOutcome::Unavailable(format!("cannot wait for the child: {error}")),
        (Ok(_), None) => {
            CheckOutcome::Damaged(format!("its check did not end in {} s", time_limit.as_secs()))
        }
        (Ok(status), Some(said)) => judge(status, &said),
    }
}

fn judge(status: ExitStatus, said: &str) -> CheckOutcome {
    let signal = status.signal().map(Signal::try_from);
    match (status.code(), signal) {
        (Some(0), _) => CheckOutcome::Intact,
        // The code for wrong usage: the program does not know the command.
        (Some(2), _) => CheckOutcome::Unavailable(format!("the check was not understood: {said}")),
        (Some(code), _) if said.is_empty() => {
            CheckOutcome::Damaged(format!("its check ended with code {code}"))
        }
        (Some(_), _) => CheckOutcome::Damaged(said.to_owned()),
        // Sent from outside, as by the kernel when memory is short: says nothing of the file.
        (None, Some(Ok(signal @ (Signal::SIGKILL | Signal::SIGTERM | Signal::SIGINT)))) => {
            CheckOutcome::Unavailable(format!("the check was ended by {signal}"))
        }
        (None, Some(Ok(signal))) => CheckOutcome::Damaged(format!("its check died of {signal}")),
        (None, _) => CheckOutcome::Damaged(format!("its check ended with {status}")),
    }
}

/// The beginning of what the child says until it ends; `None` after `time_limit` of silence.
fn listen(child: &mut Child, time_limit: Duration) -> Option<String> {
    let Some(mut pipe) = child.stderr.take() else { return Some(String::new()) };
    let timeout = PollTimeout::try_from(time_limit).unwrap_or(PollTimeout::MAX);
    let mut said = Vec::new();
    let mut buffer = [0; 256];
    // A child that talks without end is not one of ours; it is stopped like a silent one.
    for _ in 0..1000 {
        match poll(&mut [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) => return None,
            Err(Errno::EINTR) => continue,
            Ok(_) | Err(_) => {}
        }
        match pipe.read(&mut buffer) {
            Ok(0) | Err(_) => {
                return Some(String::from_utf8_lossy(&said).trim().replace('\n', "; "));
            }
            Ok(n) => {
                let room = MESSAGE_BYTES.saturating_sub(said.len());
                said.extend_from_slice(&buffer[..n.min(room)]);
            }
        }
    }
    None
}
