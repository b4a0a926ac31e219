//! Why a command could not do its work, and with which exit code it ends.

use std::error::Error;
use std::io;
use std::path::PathBuf;

use hyper::StatusCode;

/// A command could not do its work. `main` prints it with its sources, then [`Failure::hint`].
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Nobody listens, or we may not connect.
    #[error("cannot reach the agent at {socket}")]
    Unreachable {
        /// The agent's socket.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The connection was made, but no answer came.
    #[error("the agent at {socket} does not answer")]
    NoAnswer {
        /// The agent's socket.
        socket: PathBuf,
        /// Why.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The agent cannot answer now.
    #[error("the agent cannot answer: {message}")]
    NotNow {
        /// What it said.
        message: String,
    },
    /// The agent does not do that for us.
    #[error("the agent refused the request: {message} [{status}]")]
    Denied {
        /// HTTP status.
        status: StatusCode,
        /// What it said.
        message: String,
    },
    /// A file named on the command line cannot be read.
    #[error("cannot read {path}")]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Nothing is wrong with the order, but its configurations could not be judged.
    #[error("it is not known whether the configurations satisfy their templates")]
    NotJudged,
    /// There is nothing to show.
    #[error("no logs of {}{name} in {dir}", if *.previous { "a previous run of " } else { "" })]
    NoLogs {
        /// Of what, as it was asked for.
        name: String,
        /// Where.
        dir: PathBuf,
        /// Whether it is only that there is no run before.
        previous: bool,
    },
    /// The logs cannot be read.
    #[error("cannot read the logs in {dir}")]
    Logs {
        /// Where.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The client itself cannot work.
    #[error("cannot {action}")]
    Client {
        /// What was tried.
        action: &'static str,
        /// Why.
        source: Box<dyn Error + Send + Sync>,
    },
}

impl Failure {
    /// As documented in the help.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Denied { .. } | Self::NoLogs { .. } | Self::Client { .. } => 1,
            Self::Unreadable { .. } | Self::NotJudged | Self::Logs { .. } => 2,
            Self::Unreachable { .. } | Self::NoAnswer { .. } | Self::NotNow { .. } => 3,
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unreachable { socket, source } => Some(match source.kind() {
                io::ErrorKind::PermissionDenied => super::client::who_may_connect(socket),
                _ => {
                    "is `coracle agent` running? Another place can be named by --socket".to_owned()
                }
            }),
            Self::NoAnswer { .. } => {
                Some("see its log, such as by `journalctl -u coracle`".to_owned())
            }
            Self::NotJudged => Some(
                "install coracle-config-check, or say where it is: [templates] program in the \
                 configuration, which --config names"
                    .to_owned(),
            ),
            Self::NoLogs { previous: true, .. } => {
                Some("leave out --previous for its only run that is kept".to_owned())
            }
            Self::NoLogs { .. } => Some(
                "`coracle logs` lists what is kept, `coracle status` tells what runs".to_owned(),
            ),
            Self::Logs { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("logs are for root alone: try sudo".to_owned())
            }
            Self::Logs { .. }
            | Self::NotNow { .. }
            | Self::Denied { .. }
            | Self::Unreadable { .. }
            | Self::Client { .. } => None,
        }
    }

    /// Whether the reader of our output went away, as `head` does when it has enough.
    pub fn is_closed_output(&self) -> bool {
        let source = self.source().and_then(|source| source.downcast_ref::<io::Error>());
        matches!(self, Self::Client { .. })
            && source.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    }

    /// Whether trying again after a while may help.
    pub(super) fn may_pass(&self) -> bool {
        self.exit_code() == 3
    }
}
