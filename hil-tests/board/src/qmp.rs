//! QEMU's control channel (QMP: JSON lines over a Unix socket; qemu-qmp-ref(7)). In: commands.
//! Out: their results, and the events that came meanwhile.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use coracle_testbed::{Result, wait_for};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(30);

/// A connection to one QEMU.
#[derive(Debug)]
pub struct Qmp {
    stream: UnixStream,
    inbox: Arc<Inbox>,
    next: u64,
}

#[derive(Debug, Default)]
struct Inbox {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    answers: Vec<Value>,
    /// The newest 1,000.
    events: Vec<Value>,
    ended: bool,
}

impl Qmp {
    /// Connects, and leaves the negotiation mode.
    pub fn connect(socket: &Path) -> Result<Self> {
        let what = format!("QEMU to listen on {}", socket.display());
        let stream = wait_for(&what, LIMIT, || UnixStream::connect(socket).ok())?;
        let inbox = Arc::<Inbox>::default();
        let mut qmp = Self { stream: stream.try_clone()?, inbox: inbox.clone(), next: 0 };
        std::thread::spawn(move || {
            for line in BufReader::new(stream).lines() {
                let Some(value) = line.ok().and_then(|line| serde_json::from_str(&line).ok())
                else {
                    break;
                };
                inbox.add(value);
            }
            inbox.lock().ended = true;
            inbox.changed.notify_all();
        });
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Executes a command; gives its result.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        self.next += 1;
        let id = self.next;
        let request = json!({ "execute": command, "arguments": arguments, "id": id });
        writeln!(self.stream, "{request}").with_context(|| format!("QEMU is gone: {command}"))?;
        let answer = self.inbox.wait(LIMIT, |state| {
            let at = state.answers.iter().position(|answer| answer["id"] == id)?;
            Some(state.answers.remove(at))
        });
        let mut answer = answer.with_context(|| format!("no answer of QEMU to {command}"))?;
        if answer["return"].is_null() {
            bail!("QEMU refused {command}: {}", answer["error"]["desc"]);
        }
        Ok(answer["return"].take())
    }

    /// The events of that name that came so far.
    pub fn events(&self, name: &str) -> Vec<Value> {
        let state = self.inbox.lock();
        state.events.iter().filter(|event| event["event"] == name).cloned().collect()
    }

    /// Waits until there are more than `before` events of that name; the newest.
    pub fn wait_event(&self, name: &str, before: usize, timeout: Duration) -> Result<Value> {
        self.inbox
            .wait(timeout, |state| {
                let mut events = state.events.iter().filter(|event| event["event"] == name);
                events.nth(before).cloned()
            })
            .with_context(|| format!("no event {name} of QEMU in {timeout:?}"))
    }
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, value: Value) {
        let mut state = self.lock();
        if value.get("event").is_some() {
            state.events.push(value);
            if state.events.len() > 1_000 {
                state.events.remove(0);
            }
        } else if value.get("id").is_some() {
            state.answers.push(value);
        }
        drop(state);
        self.changed.notify_all();
    }

    fn wait<T>(
        &self,
        timeout: Duration,
        mut ready: impl FnMut(&mut State) -> Option<T>,
    ) -> Result<T> {
        let end = Instant::now() + timeout;
        let mut state = self.lock();
        loop {
            if let Some(value) = ready(&mut state) {
                return Ok(value);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || state.ended {
                bail!("{}", if state.ended { "the connection ended" } else { "time is up" });
            }
            state =
                self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
