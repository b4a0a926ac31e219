//! Starts and ends of processes as the kernel tells them. In: its process connector (netlink,
//! `linux/cn_proc.h`, `linux/connector.h`; root in the first process and network namespaces).
//! Out: for each process the moment and the arguments of its last exec, and the moment of its end,
//! all stamped by the kernel itself, so that every system under test is on one clock and the
//! reader's own delay does not count.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::os::fd::AsRawFd as _;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use nix::sys::socket::{MsgFlags, NetlinkAddr, bind, recv, send, setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

use super::interrupt;
use super::moment::Moment;
use super::{LIMIT, Result};

const AF_NETLINK: i32 = 16;
const NETLINK_CONNECTOR: i32 = 11;
const CN_IDX_PROC: u32 = 1;
const CN_VAL_PROC: u32 = 1;
const PROC_CN_MCAST_LISTEN: u32 = 1;
const PROC_EVENT_EXEC: u32 = 0x2;
const PROC_EVENT_EXIT: u32 = 0x8000_0000;
const HEADERS: usize = 16 + 20;
/// Between two calls of [`Watch::forget`]; far above what a repetition makes.
const MOST_PROCESSES: usize = 100_000;

/// A process that was seen to exec.
#[derive(Clone, Debug)]
pub(super) struct Exec {
    /// When the kernel had replaced the program.
    pub(super) at: Moment,
    /// Its arguments, the program's name first; empty if it ended before they could be read.
    pub(super) argv: Vec<String>,
}

/// What was seen since the last [`Watch::forget`], by process id.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// The last exec of each process.
    pub(super) execs: BTreeMap<i32, Exec>,
    /// The end of each process.
    pub(super) exits: BTreeMap<i32, Moment>,
    failed: Option<String>,
}

impl Seen {
    /// The first process with exactly these arguments.
    pub(super) fn started(&self, argv: &[String]) -> Option<(i32, Moment)> {
        self.execs.iter().find(|(_, exec)| exec.argv == argv).map(|(pid, exec)| (*pid, exec.at))
    }

    /// When the last of so many processes with exactly these arguments ran; `None` until there are
    /// so many.
    pub(super) fn all_started(&self, argv: &[String], count: usize) -> Option<Moment> {
        let with_these = self.execs.values().filter(|exec| exec.argv == argv);
        let moments: Vec<_> = with_these.map(|exec| exec.at).collect();
        if moments.len() < count { None } else { moments.into_iter().max() }
    }
}

/// Listens until dropped.
#[derive(Debug)]
pub(super) struct Watch {
    seen: Arc<(Mutex<Seen>, Condvar)>,
    stop: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
}

impl Watch {
    /// Begins to listen.
    pub(super) fn start() -> Result<Self> {
        let socket = listen().context(
            "cannot listen to the kernel's process connector (needs root, CONFIG_PROC_EVENTS, and \
             the machine's first process namespace)",
        )?;
        let seen = Arc::<(Mutex<Seen>, Condvar)>::default();
        let stop = Arc::<AtomicBool>::default();
        let (theirs, stopped) = (seen.clone(), stop.clone());
        let reader = std::thread::spawn(move || read_events(&socket, &theirs, &stopped));
        Ok(Self { seen, stop, reader: Some(reader) })
    }

    /// Drops what was seen, so that nothing grows and ids can be used again.
    pub(super) fn forget(&self) {
        *lock(&self.seen.0) = Seen::default();
    }

    /// Waits until what was seen holds what is looked for.
    pub(super) fn wait<T>(
        &self,
        what: &str,
        limit: Duration,
        mut look: impl FnMut(&Seen) -> Option<T>,
    ) -> Result<T> {
        let end = Moment::now()?.after(limit);
        let mut seen = lock(&self.seen.0);
        loop {
            if let Some(found) = look(&seen) {
                return Ok(found);
            }
            if let Some(reason) = &seen.failed {
                bail!("the kernel's process events were lost: {reason}");
            }
            interrupt::check()?;
            if Moment::now()? > end {
                bail!("{what} not seen in {limit:?}");
            }
            let waited = self.seen.1.wait_timeout(seen, Duration::from_millis(100));
            seen = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(reader) = self.reader.take() {
            if reader.join().is_err() {
                eprintln!("bench: the reader of process events panicked");
            }
        }
    }
}

/// The life of a command.
#[derive(Clone, Copy, Debug)]
pub(super) struct Finished {
    /// Its last exec, so that wrappers such as `nsenter` do not count.
    pub(super) began: Moment,
    /// Its end.
    pub(super) ended: Moment,
}

/// Runs a command to its good end, without polling.
pub(super) fn finish(watch: &Watch, command: &mut Command) -> Result<Finished> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
    let pid = i32::try_from(child.id())?;
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} failed ({}): {}", output.status, said.trim());
    let (began, ended) = watch.wait("the end of a command", LIMIT, |seen| {
        Some((seen.execs.get(&pid)?.at, *seen.exits.get(&pid)?))
    })?;
    Ok(Finished { began, ended })
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

fn listen() -> Result<Socket> {
    let protocol = Protocol::from(NETLINK_CONNECTOR);
    let socket = Socket::new(Domain::from(AF_NETLINK), Type::DGRAM, Some(protocol))?;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    setsockopt(&socket, sockopt::RcvBufForce, &(8 << 20))?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, CN_IDX_PROC))?;
    send(socket.as_raw_fd(), &subscription(), MsgFlags::empty())?;
    Ok(socket)
}

/// `nlmsghdr`, `cn_msg`, `enum proc_cn_mcast_op`.
fn subscription() -> Vec<u8> {
    const NLMSG_DONE: u16 = 3;
    const OPERATION: u16 = 4;
    let length = (HEADERS + usize::from(OPERATION)) as u32;
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(NLMSG_DONE.to_ne_bytes());
    message.extend([0; 10]);
    for field in [CN_IDX_PROC, CN_VAL_PROC, 0, 0] {
        message.extend(field.to_ne_bytes());
    }
    message.extend(OPERATION.to_ne_bytes());
    message.extend([0; 2]);
    message.extend(PROC_CN_MCAST_LISTEN.to_ne_bytes());
    message
}

fn read_events(socket: &Socket, seen: &(Mutex<Seen>, Condvar), stop: &AtomicBool) {
    let mut buffer = [0; 4096];
    while !stop.load(Ordering::Relaxed) {
        let received = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty());
        let failed = match received.map_err(std::io::Error::from) {
            Ok(length) => match parse(buffer.get(HEADERS..length).unwrap_or_default()) {
                Some(event) => note(seen, event),
                None => None,
            },
            Err(error) if is_passing(error.kind()) => None,
            Err(error) => Some(error.to_string()),
        };
        if let Some(reason) = failed {
            lock(&seen.0).failed.get_or_insert(reason);
            seen.1.notify_all();
        }
    }
}

fn is_passing(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Exec(i32, Moment),
    Exit(i32, Moment),
}

/// `struct proc_event`: what (4), cpu (4), nanoseconds (8), process (4), thread group (4).
fn parse(event: &[u8]) -> Option<Event> {
    let word = |at: usize| Some(u32::from_ne_bytes(event.get(at..at + 4)?.try_into().ok()?));
    let at = Moment::from_nanos(u64::from_ne_bytes(event.get(8..16)?.try_into().ok()?));
    let (thread, process) = (word(16)?, i32::try_from(word(20)?).ok()?);
    match word(0)? {
        PROC_EVENT_EXEC => Some(Event::Exec(process, at)),
        PROC_EVENT_EXIT if i32::try_from(thread).ok()? == process => Some(Event::Exit(process, at)),
        _ => None,
    }
}

fn note(seen: &(Mutex<Seen>, Condvar), event: Event) -> Option<String> {
    let exec = match event {
        Event::Exec(pid, at) => Some((pid, Exec { at, argv: argv(pid) })),
        Event::Exit(..) => None,
    };
    let mut held = lock(&seen.0);
    if held.execs.len() >= MOST_PROCESSES || held.exits.len() >= MOST_PROCESSES {
        return Some(format!("more than {MOST_PROCESSES} processes"));
    }
    if let Some((pid, exec)) = exec {
        held.execs.insert(pid, exec);
    } else if let Event::Exit(pid, at) = event {
        held.exits.insert(pid, at);
    }
    drop(held);
    seen.1.notify_all();
    None
}

fn argv(pid: i32) -> Vec<String> {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    text.split_terminator('\0').map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(what: u32, thread: u32, process: u32) -> Vec<u8> {
        let mut bytes = what.to_ne_bytes().to_vec();
        bytes.extend([0; 4]);
        bytes.extend(1_500_000_u64.to_ne_bytes());
        bytes.extend(thread.to_ne_bytes());
        bytes.extend(process.to_ne_bytes());
        bytes
    }

    #[test]
    fn ends_of_threads_are_not_ends_of_processes() {
        let at = Moment::from_nanos(1_500_000);
        assert_eq!(parse(&event(PROC_EVENT_EXEC, 7, 7)), Some(Event::Exec(7, at)));
        assert_eq!(parse(&event(PROC_EVENT_EXIT, 7, 7)), Some(Event::Exit(7, at)));
        assert_eq!(parse(&event(PROC_EVENT_EXIT, 8, 7)), None);
        assert_eq!(parse(&event(1, 7, 7)), None);
        assert_eq!(parse(&[0; 8]), None);
    }

    #[test]
    fn a_subscription_is_as_long_as_it_says() {
        let message = subscription();
        assert_eq!(message.len(), 40);
        assert_eq!(message[..4], 40_u32.to_ne_bytes());
    }
}
