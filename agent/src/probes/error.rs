//! Why there was no answer, or none that counts.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use rustix::io::Errno;

use super::http::MAX_HEAD;

/// A connection or a request came to nothing. The words, with those of the cause, do not change from one time to the next.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// Neither on `127.0.0.1` nor on `::1`.
    #[error("nothing listens on port {0}")]
    Refused(u16),
    /// There is no such network.
    #[error("its network {} cannot be entered", path.display())]
    Namespace {
        /// Where it was to be.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No connection could be made.
    #[error("no connection to port {port}")]
    Connect {
        /// To which port.
        port: u16,
        /// Why.
        source: Errno,
    },
    /// Time ran out.
    #[error("no answer within {} s", .0.as_secs_f64())]
    Late(Duration),
    /// An end before the end of the answer's head.
    #[error("the connection was closed before an answer came")]
    Closed,
    /// It does not begin as it must.
    #[error("the answer is not HTTP")]
    Garbage,
    /// Its head does not end.
    #[error("the answer's head is longer than {MAX_HEAD} bytes")]
    Endless,
    /// The connection broke.
    #[error("the connection broke")]
    Broken(#[source] io::Error),
    /// It could not be asked, for want of something on the gateway.
    #[error("the agent cannot ask")]
    Own(#[source] io::Error),
}

impl RequestError {
    /// Whether it says nothing of who was to be asked.
    pub fn is_own(&self) -> bool {
        matches!(self, Self::Own(_))
    }
}
