//! HTTP over the Unix socket.
//!
//! In: connections from this machine. Out: answers, got by [`Call`]s of the event loop. Who may do
//! what is judged by the peer's user id, which the kernel vouches for ([`access`]). One request a
//! connection; every wait has an end. Deliberately not here: facts and decisions, which are the
//! event loop's.

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
mod calls;
mod connection;
mod events;
mod keys;
mod listening;
mod orders;
mod reply;
mod router;
mod status;
mod volumes;
mod workloads;

use access::Rules;
use calls::Calls;
use listening::Listening;

/// Connections served at once; further ones wait in the kernel's queue.
pub const MAX_CONNECTIONS: usize = 16;

/// How many of them may be held by those who may not do everything. More are turned away, so that
/// root always gets in.
pub const MAX_READERS: usize = 8;

/// Pause after the kernel could not give a connection, such as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// The API cannot be offered.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The group of readers does not exist.
    #[error("api.group {0:?} is not a group of this machine; create it or leave the setting out")]
    UnknownGroup(String),
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
}

/// The API with its socket, which is removed when this is dropped.
#[derive(Debug)]
pub struct Api {
    rules: Rules,
    listening: Listening,
}

impl Api {
    /// Makes the socket. Who connects from now on is answered once it is served.
    ///
    /// A group of readers that cannot be found is an error in the log and no more: root still gets
    /// in.
    ///
    /// # Errors
    /// The socket cannot be made, or another agent has it.
    pub async fn listen(config: ApiConfig) -> Result<Self, ApiError> {
        let rules = Rules::new(config.group.as_deref()).unwrap_or_else(|error| {
            tracing::error!(%error, "only root can use the local API");
            Rules::without_readers()
        });
        let listening = Listening::start(config.socket, rules.group()).await?;
        Ok(Self { rules, listening })
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
        });
        let mut connections = JoinSet::new();
        loop {
            let has_room = connections.len() < MAX_CONNECTIONS;
            tokio::select! {
                () = calls.closed() => return,
                Some(ended) = connections.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "an API connection broke off");
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
        connection::serve(stream, peer, context).await;
        drop(seat);
    });
}
