//! Why there is no connection, in sentences for people.
//!
//! In: the errors of the files, of the network, of TLS and of the broker. Out: [`LinkError`], and what
//! the next attempt depends on: [`Cause`], and where the broker sends us.

use std::io;
use std::time::Duration;

use rustls::{AlertDescription, CertificateError};

use super::delay::Cause;
use super::files::FilesError;
use super::proxy::ProxyError;

/// Why a connection was not made, or was lost.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error("the link's certificates cannot be used")]
    Files(#[from] FilesError),
    #[error("cannot reach the broker {broker}")]
    NotReachable { broker: String, source: io::Error },
    #[error("cannot reach the proxy {proxy}")]
    ProxyNotReachable { proxy: String, source: io::Error },
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    #[error("the broker offers no WebSocket for MQTT at {path}: {problem}")]
    NoWebSocket { path: String, problem: String },
    #[error("the broker {broker} did not answer within {} s", limit.as_secs())]
    TimedOut { broker: String, limit: Duration },
    #[error("the broker's certificate is refused: {problem}")]
    BrokerCertificate { problem: String },
    #[error("the broker refuses this gateway's certificate: {problem}")]
    OwnCertificate { problem: String },
    #[error("no TLS connection with the broker")]
    Tls(#[source] rustls::Error),
    #[error("the broker refused the connection: {0}")]
    Refused(Reason),
    #[error("the broker refused the subscription to {topic}: {reason}")]
    NotSubscribed { topic: String, reason: String },
    #[error("nothing was heard from the broker for {:.1} s", .0.as_secs_f64())]
    Silent(Duration),
    #[error("the broker did not acknowledge a packet within {} s", .0.as_secs())]
    Unanswered(Duration),
    #[error("the broker closed the connection: {0}")]
    SentAway(Reason),
    #[error("the broker closed the connection")]
    Closed,
    #[error("the connection broke")]
    Broke(#[source] io::Error),
    #[error("the broker broke the protocol: {0}")]
    Protocol(String),
}

/// What the broker says when it refuses or ends a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reason {
    /// The name of its reason code (MQTT 5.0 section 2.4).
    pub(super) name: String,
    /// Its own words.
    pub(super) text: Option<String>,
    pub(super) verdict: Verdict,
}

/// What follows from a reason code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It has too much to do.
    Busy,
    /// It goes down, in order.
    ShuttingDown,
    /// Another server is to be used, as named in its answer.
    Elsewhere(Option<String>),
    /// Somebody else connected with this gateway's identity.
    TakenOver,
    /// It does not want this gateway, and will not soon.
    NotWelcome,
    /// Nothing in particular.
    Other,
}

/// Longest words of a broker that are handed on, in characters.
const MAX_WORDS: usize = 200;

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)?;
        if let Some(text) = &self.text {
            let plain: String = text.chars().filter(|c| !c.is_control()).take(MAX_WORDS).collect();
            write!(f, " ({plain})")?;
        }
        match &self.verdict {
            Verdict::TakenOver => f.write_str(
                ": another client connected with this gateway's identity; if that was not this \
                 gateway, its key is in use twice",
            ),
            _ => Ok(()),
        }
    }
}

impl LinkError {
    /// What the retry delay depends on.
    pub(super) fn cause(&self) -> Cause {
        match self {
            // An unreachable host may be the broker's machine; an unreachable network is ours.
            LinkError::NotReachable { source, .. }
            | LinkError::ProxyNotReachable { source, .. } => match source.kind() {
                io::ErrorKind::NetworkUnreachable | io::ErrorKind::NetworkDown => Cause::OwnNetwork,
                _ => Cause::Other,
            },
            LinkError::OwnCertificate { .. } | LinkError::Proxy(ProxyError::NotAuthenticated) => {
                Cause::NotWelcome
            }
            LinkError::Refused(reason) | LinkError::SentAway(reason) => match reason.verdict {
                Verdict::Busy => Cause::Busy,
                Verdict::ShuttingDown => Cause::ShuttingDown,
                Verdict::TakenOver => Cause::TakenOver,
                Verdict::NotWelcome => Cause::NotWelcome,
                Verdict::Elsewhere(_) | Verdict::Other => Cause::Other,
            },
            _ => Cause::Other,
        }
    }

    /// Where the broker sends us, if it does: MQTT 5.0 section 4.11, one or more servers separated
    /// by spaces.
    pub(super) fn elsewhere(&self) -> Option<&str> {
        match self {
            LinkError::Refused(reason) | LinkError::SentAway(reason) => match &reason.verdict {
                Verdict::Elsewhere(reference) => Some(reference.as_deref().unwrap_or_default()),
                _ => None,
            },
            _ => None,
        }
    }

    /// The error with all its causes, in one sentence.
    pub(super) fn sentence(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text
    }

    /// What an input or output error says; TLS hides its own in them.
    pub(super) fn from_io(error: io::Error, connected: bool, broker: &str) -> Self {
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match tls {
            Some(tls) => Self::from_tls(tls.clone()),
            // A peer that is gone without TLS's farewell, or with something of ours unread: a process
            // that is killed does both, as it happens.
            None if connected && is_end(error.kind()) => LinkError::Closed,
            None if connected => LinkError::Broke(error),
            None => LinkError::NotReachable { broker: broker.into(), source: error },
        }
    }

    /// What a TLS error says.
    pub(super) fn from_tls(error: rustls::Error) -> Self {
        match error {
            rustls::Error::InvalidCertificate(problem) => {
                LinkError::BrokerCertificate { problem: broker_certificate(&problem) }
            }
            rustls::Error::AlertReceived(alert) => match own_certificate(alert) {
                Some(problem) => LinkError::OwnCertificate { problem: problem.into() },
                None => LinkError::Tls(error),
            },
            _ => LinkError::Tls(error),
        }
    }
}

fn is_end(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(kind, UnexpectedEof | ConnectionReset | ConnectionAborted | BrokenPipe)
}

fn broker_certificate(problem: &CertificateError) -> String {
    match problem {
        CertificateError::UnknownIssuer => "it was not signed by an authority in link.ca".into(),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            format!("it has expired, or this gateway's clock is wrong ({problem})")
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            format!("it is not valid yet, or this gateway's clock is wrong ({problem})")
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            format!("it is for another name than link.host ({problem})")
        }
        other => other.to_string(),
    }
}

/// What the alerts of RFC 8446 section 6.2 say about our certificate.
fn own_certificate(alert: AlertDescription) -> Option<&'static str> {
    match alert {
        AlertDescription::CertificateExpired => Some("it has expired"),
        AlertDescription::CertificateRevoked => Some("it was revoked"),
        AlertDescription::UnknownCA => {
            Some("the broker does not know the authority that signed it")
        }
        AlertDescription::CertificateRequired => Some("the broker did not get one"),
        AlertDescription::BadCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::AccessDenied => Some("the broker does not accept it"),
        _ => None,
    }
}
