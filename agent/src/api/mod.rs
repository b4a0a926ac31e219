//! HTTP over the Unix socket and, where it is configured, over TCP with TLS ([`Remote`]).
//!
//! In: connections. Out: answers, got by [`Call`]s of the event loop, or read from
//! the files of logs. Who may do what is judged by the peer's user id, which the kernel vouches for
//! ([`access`]), or by the names in its certificate. One request a connection; every wait has an end. What there is stands in one table
//! ([`routes`]): requests are judged and sent on by it, and the OpenAPI document is made from it
//! ([`generate_openapi`]). A new resource is a file with its routes, and its line in the table.
//! Deliberately not here: facts and decisions, which are the event loop's.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use coracle_protocol::Timestamp;
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use crate::clock::wall_now;
use crate::config::ApiConfig;
use crate::status::Call;

mod access;
mod artifacts;
mod calls;
mod commands;
mod connection;
mod document;
mod event_stream;
mod events;
mod health;
mod idempotency;
mod keys;
mod link;
mod listening;
mod logs;
#[cfg(feature = "schema")]
mod openapi;
mod operations;
mod orders;
mod parameters;
mod remote;
mod reply;
mod request;
mod router;
mod routes;
mod services;
mod status;
mod unread;
mod volumes;
mod workloads;

#[cfg(feature = "schema")]
pub use openapi::generate as generate_openapi;

use access::Rules;
use calls::Calls;
use listening::Listening;
pub use remote::{Remote, RemoteError};

/// Connections served at once; further ones wait in the kernel's queue.
pub const MAX_CONNECTIONS: usize = 16;

/// How many of them may be held by those who may not do everything. More are turned away, so that
/// root always gets in.
pub const MAX_READERS: usize = 8;

/// How many answers may go on and on at once, such as those that follow events or logs: others
/// always get in.
pub const MAX_STREAMS: usize = 8;

/// For what is being answered when the agent ends.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// Pause after the kernel could not give a connection, such as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// The API cannot be offered.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// A group does not exist.
    #[error(
        "{setting} {name:?} is not a group of this machine; create it or leave the setting out"
    )]
    UnknownGroup {
        /// Which setting names it.
        setting: &'static str,
        /// Which group.
        name: String,
    },
    /// The groups of this machine cannot be read.
    #[error("cannot look up the group {name:?}")]
    Group {
        /// Which group.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// Somebody answers on the socket.
    #[error("another agent is listening on {0}; stop it first, or set api.socket")]
    InUse(PathBuf),
    /// Something that is no socket is in its place.
    #[error("{0} exists and is not a socket; remove it, or set api.socket")]
    NotASocket(PathBuf),
    /// The socket cannot be made.
    #[error("cannot {action} {path}")]
    Socket {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// All that a request is answered from.
#[derive(Debug)]
struct Context {
    calls: Calls,
    /// Sequence of the newest event.
    happened: watch::Receiver<u64>,
    agent_started: Timestamp,
    rules: Rules,
    readers: Arc<Semaphore>,
    /// Places for answers that go on and on.
    streams: Arc<Semaphore>,
    /// What was answered to requests with a key.
    answered: Arc<idempotency::Memory>,
    /// Directory of all containers' logs.
    logs: PathBuf,
}

/// The API with its socket, which is removed when this is dropped.
#[derive(Debug)]
pub struct Api {
    rules: Rules,
    listening: Listening,
    remote: Option<Remote>,
    logs: PathBuf,
}

impl Api {
    /// Makes the socket. Who connects from now on is answered once it is served.
    ///
    /// A group that cannot be found is an error in the log and no more: root still gets in. `logs` is
    /// where all containers' logs are.
    ///
    /// # Errors
    /// The socket cannot be made, or another agent has it.
    pub async fn listen(
        config: &ApiConfig,
        remote: Option<Remote>,
        logs: PathBuf,
    ) -> Result<Self, ApiError> {
        let rules = Rules::new(config).unwrap_or_else(|error| {
            tracing::error!(%error, "only root can use the local API");
            Rules::without_groups()
        });
        let listening = Listening::start(config.socket.clone(), rules.fence()).await?;
        Ok(Self { rules, listening, remote, logs })
    }

    /// Answers until the event loop drops its end of `calls`. `happened` holds the sequence of the
    /// newest event.
    pub async fn serve(self, calls: mpsc::Sender<Call>, happened: watch::Receiver<u64>) {
        let context = Arc::new(Context {
            calls: Calls::new(calls.clone()),
            happened,
            agent_started: Timestamp::from_unix(wall_now().as_secs()),
            rules: self.rules,
            readers: Arc::new(Semaphore::new(MAX_READERS)),
            streams: Arc::new(Semaphore::new(MAX_STREAMS)),
            answered: Arc::default(),
            logs: self.logs,
        });
        let mut connections = JoinSet::new();
        let mut remote_ones = JoinSet::new();
        loop {
            let has_room = connections.len() < MAX_CONNECTIONS;
            let has_room_for_others = remote_ones.len() < remote::MAX_CONNECTIONS;
            tokio::select! {
                () = calls.closed() => break,
                Some(ended) = connections.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "an API connection broke off");
                    }
                }
                Some(ended) = remote_ones.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "an API connection broke off");
                    }
                }
                accepted = remote::accept(self.remote.as_ref()), if has_room_for_others => {
                    match accepted {
                        Ok(greeting) => {
                            remote_ones.spawn(remote::serve(greeting, Arc::clone(&context)));
                        }
                        Err(error) => {
                            tracing::warn!(%error, "cannot take an API connection over TCP");
                            tokio::time::sleep(ACCEPT_PAUSE).await;
                        }
                    }
                }
                accepted = self.listening.accept(), if has_room => match accepted {
                    Ok(stream) => admit(stream, &context, &mut connections),
                    Err(error) => {
                        tracing::warn!(%error, "cannot take an API connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        // All that waits for something to happen learns of the end at once.
        let last_words = async {
            while connections.join_next().await.is_some() {}
            while remote_ones.join_next().await.is_some() {}
        };
        drop(tokio::time::timeout(LAST_WORDS, last_words).await);
    }
}

fn admit(stream: UnixStream, context: &Arc<Context>, connections: &mut JoinSet<()>) {
    let peer = match stream.peer_cred() {
        Ok(peer) => peer,
        Err(error) => {
            tracing::warn!(%error, "an API connection without credentials was dropped");
            return;
        }
    };
    let seat = if context.rules.may_do_everything(peer.uid()) {
        None
    } else {
        match Arc::clone(&context.readers).try_acquire_owned() {
            Ok(seat) => Some(seat),
            Err(_) => {
                connection::turn_away(&stream);
                return;
            }
        }
    };
    let context = Arc::clone(context);
    connections.spawn(async move {
        let rights = context.rules.judge(peer).await;
        connection::serve(stream, &format!("uid {}", peer.uid()), rights, context).await;
        drop(seat);
    });
}
