//! What can go wrong between us and a server, in words for people.

use std::time::Duration;

use coracle_core::backoff::Retry;

/// A request got no answer that can be used.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// No connection.
    #[error("cannot connect to {host}")]
    Connect {
        /// Which host.
        host: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The other side is silent.
    #[error("{host} did not answer within {} s", .after.as_secs_f32())]
    Silent {
        /// Which host.
        host: String,
        /// How long was waited.
        after: Duration,
    },
    /// The connection broke, or what came over it is not HTTP.
    #[error("the connection to {host} broke")]
    Broken {
        /// Which host.
        host: String,
        /// How.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A redirect or a token server that is not followed.
    #[error("{host} points to {to:?}, which is not followed: {why}")]
    Redirect {
        /// Which host.
        host: String,
        /// Where to.
        to: String,
        /// Why not.
        why: &'static str,
    },
    /// An answer is longer than it may be.
    #[error("{what} from {host} is longer than {limit} bytes")]
    TooLong {
        /// Which host.
        host: String,
        /// What was being read.
        what: String,
        /// Most bytes allowed.
        limit: u64,
    },
}

impl HttpError {
    /// When it is worth trying again.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Redirect { .. } => Retry::Rarely,
            Self::Connect { .. }
            | Self::Silent { .. }
            | Self::Broken { .. }
            | Self::TooLong { .. } => Retry::Backoff,
        }
    }

    /// Whether a download may go on at once from where it broke.
    pub(crate) fn is_interruption(&self) -> bool {
        matches!(self, Self::Broken { .. } | Self::Silent { .. })
    }
}
