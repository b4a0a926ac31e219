//! Callers of a service: on the gateway itself and on another machine, with short connections one
//! after the other and long ones that stay. In: a place and a port. Out: who answered, and whatever
//! was refused, reset, cut or answered by somebody else in the middle.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use coracle_testbed::place::ADDRESS;
use coracle_testbed::{Place, Result, http};

/// No answer within this time is a lost one.
const PATIENCE: Duration = Duration::from_secs(20);

/// Pause between two short connections of one caller.
const SHORT_PAUSE: Duration = Duration::from_millis(2);

/// Pause between two lines on a long connection.
const LONG_PAUSE: Duration = Duration::from_millis(200);

/// How many call at once.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Long connections, half of them from the gateway itself.
    pub long: usize,
    /// Callers with short ones in each of the two places.
    pub short: usize,
}

/// A long connection that was ended, as it is to be: by a server that said so.
#[derive(Clone, Debug)]
pub struct Farewell {
    /// What it had said of itself.
    pub whose: String,
    /// When.
    pub at: Instant,
}

/// Short answers of one process.
#[derive(Clone, Copy, Debug)]
pub struct Answers {
    /// How many.
    pub count: u64,
    /// When the last one was asked for.
    pub last: Instant,
}

/// What was seen.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Short answers by what they were: for [`service`](crate::service), `VERSION REPLICA BEGUN`.
    pub answers: BTreeMap<String, Answers>,
    /// Long connections that were ended by a server that said so.
    pub farewells: Vec<Farewell>,
    /// Lines that came back on long connections.
    pub echoes: u64,
    /// What should not have been.
    pub broken: Vec<String>,
}

impl Seen {
    /// Short answers in all.
    pub fn short(&self) -> u64 {
        self.answers.values().map(|answers| answers.count).sum()
    }

    /// Short answers that begin with these words: a version, or a version and a replica.
    pub fn of(&self, words: &str) -> u64 {
        let begins = |answer: &&String| {
            answer.strip_prefix(words).is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
        };
        let counted = self.answers.iter().filter(|(answer, _)| begins(answer));
        counted.map(|(_, answers)| answers.count).sum()
    }
}

/// Calls that go on until they are ended.
#[derive(Debug)]
pub struct Callers {
    seen: Arc<Mutex<Seen>>,
    end: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Callers {
    /// Begins. The place must have a network of its own.
    pub fn begin(place: &Place, port: u16, load: Load) -> Self {
        let mut callers = Self { seen: Arc::default(), end: Arc::default(), threads: Vec::new() };
        callers.call(place, port, load, true);
        callers.call(place, port, load, false);
        callers
    }

    /// Begins: one caller on this machine, with short connections to `HOST:PORT`.
    pub fn from_here(address: &str) -> Self {
        let (seen, end) = (Arc::default(), Arc::default());
        let (address, shared, ending) = (address.to_owned(), Arc::clone(&seen), Arc::clone(&end));
        let thread = std::thread::spawn(move || short(&address, &shared, &ending));
        Self { seen, end, threads: vec![thread] }
    }

    fn call(&mut self, place: &Place, port: u16, load: Load, inside: bool) {
        let (place, seen, end) = (place.clone(), Arc::clone(&self.seen), Arc::clone(&self.end));
        self.threads.push(std::thread::spawn(move || {
            // From elsewhere only the one address leads here.
            let addresses: &[&str] = if inside { &[ADDRESS, "127.0.0.1"] } else { &[ADDRESS] };
            let address = |at: usize| format!("{}:{port}", addresses[at % addresses.len()]);
            let work = || {
                std::thread::scope(|scope| {
                    for at in 0..load.long / 2 {
                        let (address, seen, end) = (address(at), &seen, &end);
                        scope.spawn(move || long(&address, seen, end));
                    }
                    for at in 0..load.short {
                        let (address, seen, end) = (address(at), &seen, &end);
                        scope.spawn(move || short(&address, seen, end));
                    }
                });
            };
            let ran = if inside { place.in_network(work) } else { place.from_outside(work) };
            if let Err(error) = ran {
                note(&seen, |seen| seen.broken.push(format!("{error:#}")));
            }
        }));
    }

    /// What was seen so far.
    pub fn so_far(&self) -> Seen {
        note(&self.seen, |seen| seen.clone())
    }

    /// Ends; gives what was seen.
    pub fn end(mut self) -> Seen {
        self.stop();
        note(&self.seen, std::mem::take)
    }

    fn stop(&mut self) {
        self.end.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                note(&self.seen, |seen| seen.broken.push("a caller panicked".into()));
            }
        }
    }
}

impl Drop for Callers {
    fn drop(&mut self) {
        self.stop();
    }
}

fn note<T>(seen: &Mutex<Seen>, what: impl FnOnce(&mut Seen) -> T) -> T {
    what(&mut seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
}

fn short(address: &str, seen: &Mutex<Seen>, end: &AtomicBool) {
    while !end.load(Ordering::SeqCst) {
        let asked = Instant::now();
        let answer = http::get(&format!("http://{address}/"));
        note(seen, |seen| match answer {
            Ok(answer) if answer.status == 200 => {
                let whose = answer.text().trim().to_owned();
                let answers =
                    seen.answers.entry(whose).or_insert(Answers { count: 0, last: asked });
                answers.count += 1;
                answers.last = answers.last.max(asked);
            }
            Ok(answer) => seen.broken.push(format!("short: {answer:?}")),
            Err(error) => seen.broken.push(format!("short: {error:#}")),
        });
        std::thread::sleep(SHORT_PAUSE);
    }
}

fn long(address: &str, seen: &Mutex<Seen>, end: &AtomicBool) {
    while !end.load(Ordering::SeqCst) {
        match stay(address, seen, end) {
            Ok(None) => {}
            Ok(Some(farewell)) => note(seen, |seen| seen.farewells.push(farewell)),
            Err(error) => {
                note(seen, |seen| seen.broken.push(format!("long: {error:#}")));
                std::thread::sleep(LONG_PAUSE);
            }
        }
    }
}

/// One long connection, until it is not wanted any more or the server says that it ends.
fn stay(address: &str, seen: &Mutex<Seen>, end: &AtomicBool) -> Result<Option<Farewell>> {
    let mut stream = TcpStream::connect(address).context("not connected")?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /echo HTTP/1.1\r\n\r\n")?;
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let mut answer = |what: &str| -> Result<String> {
        match lines.next() {
            Some(Ok(line)) => Ok(line),
            Some(Err(error)) if error.kind() == ErrorKind::WouldBlock => bail!("{what}: silence"),
            Some(Err(error)) => Err(error).with_context(|| what.to_owned()),
            None => bail!("{what}: cut"),
        }
    };
    while !answer("head")?.is_empty() {}
    let whose = answer("greeting")?;
    let farewell = || Ok(Some(Farewell { whose: whose.clone(), at: Instant::now() }));
    if whose == "bye" {
        return farewell();
    }
    for number in 0_u64.. {
        if end.load(Ordering::SeqCst) {
            break;
        }
        stream.write_all(format!("{number}\n").as_bytes()).with_context(|| whose.clone())?;
        let line = answer(&whose)?;
        if line == format!("bye {number}") {
            return farewell();
        }
        ensure!(line == format!("{whose} {number}"), "{whose}: {line:?} came back");
        note(seen, |seen| seen.echoes += 1);
        std::thread::sleep(LONG_PAUSE);
    }
    Ok(None)
}
