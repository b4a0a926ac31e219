//! Who is asked what, by which socket or task, and what came of it.
//!
//! In: targets, [`News`], the time. Out: verdicts that are to be told. Waits for nothing: what must
//! be waited for is spawned.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use coracle_core::desired::{Check, Container, Probe};
use coracle_core::name::ContainerId;
use coracle_core::observed::Health;
use coracle_core::probe::{Answer, Probing, Question};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, timeout_at};
use tracing::warn;

use super::error::RequestError;
use super::request::exchange;
use super::socket::{self, Family, Progress, Socket, Wanted};
use super::{Commands, ProbeTarget, http};
use crate::clock;
use crate::error_chain::chain;

/// Most commands that run at once.
const MAX_COMMANDS: usize = 4;

/// Most unconnected sockets that are kept for one container.
const MAX_IDLE: usize = 2;

/// Longest path that a verdict shows, in characters.
const MAX_PATH: usize = 80;

/// Which question to which container, as long as neither is another one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    serial: u64,
    question: Question,
}

/// What was waited for.
#[derive(Debug)]
pub(super) enum News {
    /// Sockets that were wanted.
    Made(Vec<(Wanted<Key>, Result<Socket, RequestError>)>),
    /// Nothing listens at the address of this socket after all.
    Refused(Key, Socket),
    /// An answer.
    Answered(Key, Answer),
    /// The status of an HTTP answer, or 200 for a connection.
    Status(Key, u16),
    /// A socket is no longer used.
    Idle(Key, Socket),
}

/// All that is asked.
pub(super) struct Prober<C> {
    commands: C,
    news: mpsc::Sender<News>,
    /// The zero of the clock that questions are due by.
    pub(super) origin: Instant,
    watched: BTreeMap<u64, Watched>,
    last_serial: u64,
    tasks: JoinSet<()>,
    running: Arc<Semaphore>,
    /// Sockets to be made.
    wanted: Vec<Wanted<Key>>,
    /// Some are being made.
    making: bool,
    /// The agent's own trouble was told of.
    told_of_trouble: bool,
    /// To be told.
    pub(super) verdicts: Vec<(ContainerId, Health)>,
    /// What is due; empty but for a moment.
    due: Vec<Key>,
}

/// One container.
struct Watched {
    id: ContainerId,
    netns: Option<Arc<Path>>,
    probing: Probing,
    told: Option<Health>,
    /// Sockets in its network that are not connected.
    idle: Vec<Socket>,
    /// What is being asked, by question.
    asking: [Option<Asking>; 3],
    /// HTTP requests, by question.
    requests: [Option<Arc<[u8]>>; 3],
}

/// A question under way.
struct Asking {
    /// When there must be an answer, over the network.
    until: Instant,
    task: Option<AbortHandle>,
}

/// What a probe over the network connects to, and what it says there.
struct Call {
    port: u16,
    request: Option<Arc<[u8]>>,
    limit: Duration,
    until: Instant,
}

impl Watched {
    fn new(id: ContainerId, netns: Option<Arc<Path>>, probing: Probing) -> Self {
        let request = |question: Question| match &probing.probe(question)?.check {
            Check::Http { port, path, headers } => Some(http::request(*port, path, headers).into()),
            Check::Exec(_) | Check::Tcp { .. } => None,
        };
        let requests = Question::ALL.map(request);
        let (told, idle, asking) = Default::default();
        Self { id, netns, probing, told, idle, asking, requests }
    }

    fn take_idle(&mut self, family: Family) -> Option<Socket> {
        let at = self.idle.iter().position(|socket| socket.family == family)?;
        Some(self.idle.swap_remove(at))
    }

    fn put_idle(&mut self, socket: Option<Socket>) {
        // More are only used while questions take long.
        self.idle.extend(socket.filter(|_| self.idle.len() < MAX_IDLE));
    }

    /// The call that a question is, if it is being asked over the network.
    fn call(&self, question: Question) -> Option<Call> {
        let Probe { check, timeout, .. } = self.probing.probe(question)?;
        let port = match check {
            Check::Exec(_) => return None,
            Check::Http { port, .. } | Check::Tcp { port } => *port,
        };
        let until = self.asking[question as usize].as_ref()?.until;
        let request = self.requests[question as usize].clone();
        Some(Call { port, request, limit: *timeout, until })
    }

    fn break_off(&mut self) {
        for asking in self.asking.iter_mut().filter_map(Option::take) {
            if let Some(task) = asking.task {
                task.abort();
            }
        }
    }
}

impl<C: Commands> Prober<C> {
    pub(super) fn new(commands: C, news: mpsc::Sender<News>) -> Self {
        let (watched, tasks, wanted, verdicts, due) = Default::default();
        Self {
            commands,
            news,
            origin: clock::runtime_now(),
            watched,
            last_serial: 0,
            tasks,
            running: Arc::new(Semaphore::new(MAX_COMMANDS)),
            wanted,
            making: false,
            told_of_trouble: false,
            verdicts,
            due,
        }
    }

    fn now(&self) -> Duration {
        clock::runtime_now().duration_since(self.origin)
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        let due = self.watched.values().filter_map(|watched| watched.probing.next_due()).min()?;
        // A moment that the clock does not have never comes.
        self.origin.checked_add(due)
    }

    /// Watches these and no others. What is the same goes on.
    pub(super) fn update(&mut self, targets: &[ProbeTarget]) {
        let now = self.now();
        let before = std::mem::take(&mut self.watched);
        let mut before: BTreeMap<ContainerId, (u64, Watched)> = before
            .into_iter()
            .map(|(serial, watched)| (watched.id.clone(), (serial, watched)))
            .collect();
        for target in targets {
            let ProbeTarget { id, pid, container, netns, before: at_first } = target;
            let (serial, watched) = match before.remove(id) {
                Some((serial, watched)) if watched.probing.pid() == *pid => {
                    if watched.probing.container().probes == container.probes {
                        (serial, watched)
                    } else {
                        (self.serial(), changed(watched, container, now))
                    }
                }
                other => {
                    if let Some((_, mut ended)) = other {
                        ended.break_off();
                    }
                    let netns = netns.as_deref().map(Arc::from);
                    let probing = Probing::new(*pid, Arc::clone(container), *at_first, now);
                    (self.serial(), Watched::new(id.clone(), netns, probing))
                }
            };
            self.watched.insert(serial, watched);
            self.judge(serial);
        }
        before.into_values().for_each(|(_, mut ended)| ended.break_off());
    }

    fn serial(&mut self) -> u64 {
        self.last_serial += 1;
        self.last_serial
    }

    /// Has it told if what is known of a container is no longer what was told.
    fn judge(&mut self, serial: u64) {
        let Some(watched) = self.watched.get_mut(&serial) else { return };
        let health = watched.probing.health();
        if watched.told.as_ref() != Some(&health) {
            watched.told = Some(health.clone());
            // Of several, the newest alone matters.
            self.verdicts.retain(|(id, _)| *id != watched.id);
            self.verdicts.push((watched.id.clone(), health));
        }
    }

    /// Asks all that is due.
    pub(super) fn pass(&mut self) {
        while self.tasks.try_join_next().is_some() {}
        let now = self.now();
        let mut due = std::mem::take(&mut self.due);
        for (&serial, watched) in &self.watched {
            due.extend(watched.probing.due(now).map(|question| Key { serial, question }));
        }
        for key in due.drain(..) {
            self.ask(key, now);
        }
        self.due = due;
        self.make_wanted();
    }

    fn ask(&mut self, key: Key, now: Duration) {
        let Some(watched) = self.watched.get_mut(&key.serial) else { return };
        let Some(probe) = watched.probing.probe(key.question) else { return };
        let is_command = matches!(probe.check, Check::Exec(_));
        let until = self.origin + now + probe.timeout;
        watched.probing.asked(key.question, now);
        watched.asking[key.question as usize] = Some(Asking { until, task: None });
        if is_command {
            self.command(key);
        } else {
            self.call(key, Family::V4, None);
        }
    }

    fn command(&mut self, key: Key) {
        let Some(watched) = self.watched.get(&key.serial) else { return };
        let (id, container) = (watched.id.clone(), Arc::clone(watched.probing.container()));
        let (commands, running) = (self.commands.clone(), Arc::clone(&self.running));
        let news = self.news.clone();
        let task = self.tasks.spawn(async move {
            let Some(probe) = key.question.probe(&container.probes) else { return };
            let Check::Exec(command) = &probe.check else { return };
            // The semaphore is never closed. The time that it costs is not the container's.
            let Ok(_permit) = running.acquire().await else { return };
            let answer = commands.run(&id, command, probe.timeout).await;
            tell(&news, News::Answered(key, answer)).await;
        });
        self.asked_by(key, task);
    }

    /// What this task finds out is wanted as long as the question is.
    fn asked_by(&mut self, key: Key, task: AbortHandle) {
        let watched = self.watched.get_mut(&key.serial);
        if let Some(asking) = watched.and_then(|w| w.asking[key.question as usize].as_mut()) {
            asking.task = Some(task);
        }
    }

    /// Connects to where a probe says, by this socket, or by one of those that are there, or has one
    /// made.
    fn call(&mut self, key: Key, mut family: Family, mut given: Option<Socket>) {
        loop {
            let Some(watched) = self.watched.get_mut(&key.serial) else { return };
            let Some(call) = watched.call(key.question) else { return };
            let there = given.take().or_else(|| watched.take_idle(family));
            let socket = match (there, &watched.netns) {
                (Some(socket), _) => Ok(socket),
                (None, None) => Socket::new(family, call.port),
                (None, Some(netns)) => {
                    self.wanted.push(Wanted { key, netns: Arc::clone(netns), family });
                    return;
                }
            };
            let connected = socket.and_then(|socket| match socket.connect(call.port) {
                Ok(progress) => Ok((socket, progress)),
                Err(error) => {
                    watched.put_idle(socket.disconnect());
                    Err(error)
                }
            });
            match connected {
                Ok((socket, Progress::Connected)) if call.request.is_none() => {
                    if family == Family::V4 {
                        // Those for where nothing listened on it yet.
                        watched.idle.clear();
                    }
                    watched.put_idle(socket.disconnect());
                    return self.answered(key, Answer::Good);
                }
                Ok((socket, progress)) => return self.wait(key, call, socket, progress),
                Err(RequestError::Refused(_)) if family == Family::V4 => family = Family::V6,
                Err(error) => return self.failed(key, error),
            }
        }
    }

    /// Waits for a connection, or an answer, in a task.
    fn wait(&mut self, key: Key, call: Call, socket: Socket, progress: Progress) {
        let news = self.news.clone();
        let task = self.tasks.spawn(async move {
            let family = socket.family;
            let (port, limit, until) = (call.port, call.limit, call.until);
            let exchanged = exchange(socket, progress, port, call.request.as_deref());
            let late = (None, RequestError::Late(limit));
            match timeout_at(until, exchanged).await.unwrap_or(Err(late)) {
                Ok((stream, status)) => {
                    tell(&news, News::Status(key, status)).await;
                    if call.request.is_some() {
                        http::drain(&stream).await;
                    }
                    if let Some(socket) = Socket::from_stream(stream, family) {
                        tell(&news, News::Idle(key, socket)).await;
                    }
                }
                Err((Some(socket), RequestError::Refused(_))) => {
                    tell(&news, News::Refused(key, socket)).await;
                }
                Err((_, error)) => tell(&news, News::Answered(key, bad(&error))).await,
            }
        });
        self.asked_by(key, task);
    }

    fn make_wanted(&mut self) {
        if self.making || self.wanted.is_empty() {
            return;
        }
        let wanted = std::mem::take(&mut self.wanted);
        let keys: Vec<_> = wanted.iter().map(|wanted| wanted.key).collect();
        let news = self.news.clone();
        // Nobody takes them any more when the agent ends.
        let done = move |made| drop(news.blocking_send(News::Made(made)));
        match socket::make_all(wanted, done) {
            Ok(()) => self.making = true,
            Err(error) => {
                let error = RequestError::Own(error);
                self.tell_of_trouble(&error);
                keys.into_iter().for_each(|key| self.answered(key, bad(&error)));
            }
        }
    }

    pub(super) fn learn(&mut self, news: News) {
        match news {
            News::Made(made) => {
                self.making = false;
                for (wanted, socket) in made {
                    match socket {
                        Ok(socket) => self.call(wanted.key, wanted.family, Some(socket)),
                        Err(error) => self.failed(wanted.key, error),
                    }
                }
            }
            News::Refused(key, socket) => match socket.family {
                Family::V4 => {
                    self.put_idle(key, socket);
                    self.call(key, Family::V6, None);
                }
                Family::V6 => {
                    let port = self.port(key);
                    self.put_idle(key, socket);
                    self.failed(key, RequestError::Refused(port));
                }
            },
            News::Answered(key, answer) => self.answered(key, answer),
            News::Status(key, 200..=399) => self.answered(key, Answer::Good),
            News::Status(key, status) => {
                let path: String = self.path(key).chars().take(MAX_PATH).collect();
                self.answered(key, Answer::Bad(format!("GET {path} answered {status}")));
            }
            News::Idle(key, socket) => self.put_idle(key, socket),
        }
    }

    fn port(&self, key: Key) -> u16 {
        let watched = self.watched.get(&key.serial);
        watched.and_then(|watched| watched.call(key.question)).map_or(0, |call| call.port)
    }

    fn path(&self, key: Key) -> &str {
        let watched = self.watched.get(&key.serial);
        match watched.and_then(|watched| watched.probing.probe(key.question)).map(|p| &p.check) {
            Some(Check::Http { path, .. }) => path,
            _ => "",
        }
    }

    fn put_idle(&mut self, key: Key, socket: Socket) {
        if let Some(watched) = self.watched.get_mut(&key.serial) {
            watched.put_idle(Some(socket));
        }
    }

    fn failed(&mut self, key: Key, error: RequestError) {
        // A socket is made before its port is known.
        let error = match error {
            RequestError::Refused(_) => RequestError::Refused(self.port(key)),
            error => error,
        };
        if error.is_own() {
            self.tell_of_trouble(&error);
        }
        self.answered(key, bad(&error));
    }

    fn answered(&mut self, key: Key, answer: Answer) {
        let now = self.now();
        let Some(watched) = self.watched.get_mut(&key.serial) else { return };
        watched.asking[key.question as usize] = None;
        watched.probing.answered(key.question, answer, now);
        self.judge(key.serial);
    }

    fn tell_of_trouble(&mut self, error: &RequestError) {
        if !self.told_of_trouble {
            self.told_of_trouble = true;
            let error = chain(error);
            warn!(error, "probes are left out");
        }
    }
}

/// The same process under other probes.
fn changed(mut watched: Watched, container: &Arc<Container>, now: Duration) -> Watched {
    watched.break_off();
    let Watched { id, netns, mut probing, told, idle, .. } = watched;
    probing.change(Arc::clone(container), now);
    Watched { told, idle, ..Watched::new(id, netns, probing) }
}

async fn tell(news: &mpsc::Sender<News>, what: News) {
    // Nobody wants it any more when the agent ends.
    news.send(what).await.ok();
}

fn bad(error: &RequestError) -> Answer {
    match error.is_own() {
        true => Answer::Unknown,
        false => Answer::Bad(chain(error)),
    }
}
