//! What can go wrong with containers, and when it is worth another try.

use std::time::Duration;

use containerd_client::tonic::{Code, Status};
use coracle_core::artifact::Software;
use coracle_core::backoff::Retry;
use coracle_core::image::ImageRef;
use coracle_core::name::ContainerId;

use super::devices::DeviceProblem;
use crate::containerd::{Origin, origin};
use crate::seccomp_profile::ProfileProblem;

/// Longest text of containerd's that is passed on, in bytes.
const MESSAGE_LIMIT: usize = 300;

/// An operation on a container failed.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// Nothing answers at containerd's socket, or the connection broke.
    #[error("containerd cannot be reached")]
    Unreachable(#[source] Box<Status>),
    /// containerd took the request and gave no answer in time.
    #[error("containerd did not {doing} {id} in time")]
    TimedOut {
        /// What it was to do.
        doing: &'static str,
        /// Of which container.
        id: ContainerId,
    },
    /// containerd, its shim or the OCI runtime refused.
    #[error("containerd cannot {doing} {id}: {message}")]
    Refused {
        /// What it was to do.
        doing: &'static str,
        /// Of which container.
        id: ContainerId,
        /// Its own words, shortened.
        message: String,
        /// When to try again.
        retry: Retry,
    },
    /// A second task of one replica was asked for.
    #[error("container {id} has a live task (process {pid}); stop it first")]
    Live {
        /// Which container.
        id: ContainerId,
        /// Its main process; 0 if containerd does not say.
        pid: u32,
    },
    /// The id is taken by a container that we did not make.
    #[error(
        "container {id} exists and has no labels of ours; remove it, or configure another \
         containerd.namespace"
    )]
    Foreign {
        /// Which container.
        id: ContainerId,
    },
    /// Another operation on the same container is under way.
    #[error("container {id} is being started, stopped or removed already")]
    Busy {
        /// Which container.
        id: ContainerId,
    },
    /// The image's layers are not there (any more); it must be pulled again.
    #[error("the layers of image {image} are not on this gateway; it must be pulled again")]
    ImageMissing {
        /// Which image.
        image: ImageRef,
    },
    /// The image, or the artifact, cannot be run as asked.
    #[error("container {id} cannot be made from {} {software}", .software.kind())]
    Software {
        /// Which container.
        id: ContainerId,
        /// What it was to be made from.
        software: Software,
        /// Why.
        source: Box<ImageProblem>,
    },
    /// A device that it is to have cannot be given to it.
    #[error("container {id} cannot be given its devices")]
    Device {
        /// Which container.
        id: ContainerId,
        /// Which device, and why.
        source: DeviceProblem,
    },
    /// Its seccomp profile cannot be used.
    #[error("container {id} cannot be confined")]
    Seccomp {
        /// Which container.
        id: ContainerId,
        /// Which profile, and why.
        source: ProfileProblem,
    },
    /// The signal to stop with is not known on this machine.
    #[error("container {id} cannot be stopped with {signal:?}: no such signal")]
    Signal {
        /// Which container.
        id: ContainerId,
        /// As asked for.
        signal: String,
    },
    /// Something was to be done in a container that does not run.
    #[error("container {id} does not run")]
    NotRunning {
        /// Which container.
        id: ContainerId,
    },
    /// A command in it took longer than it may.
    #[error("a command in container {id} did not end within {} s and was killed", limit.as_secs_f64())]
    TooLong {
        /// Which container.
        id: ContainerId,
        /// How long it had.
        limit: Duration,
    },
    /// It uses more memory than it may have.
    #[error(
        "container {id} uses {used_mib} MiB of memory, which is more than the {limit_mib} MiB that \
         it is to be limited to"
    )]
    MemoryInUse {
        /// Which container.
        id: ContainerId,
        /// What it uses, without what can be taken from it.
        used_mib: u64,
        /// What it was to have.
        limit_mib: u64,
    },
    /// SIGKILL was sent and the process is still there, so it hangs in the kernel.
    #[error("process {pid} of container {id} outlives SIGKILL; a device or a mount hangs")]
    Unkillable {
        /// Which container.
        id: ContainerId,
        /// Its main process.
        pid: u32,
    },
}

/// Why an image cannot be run as asked.
#[derive(Debug, thiserror::Error)]
pub enum ImageProblem {
    /// Its configuration is not what the OCI image specification says.
    #[error("its configuration is not valid")]
    Config(#[source] serde_json::Error),
    /// Something of the gateway that it is not to see may be there.
    #[error("it cannot be told what of the gateway is to be hidden from it")]
    Hidden(#[source] std::io::Error),
    /// There is nothing to run.
    #[error("it has neither entrypoint nor command; give the container a command")]
    NoCommand,
    /// The user or group is not in its `/etc/passwd` or `/etc/group`.
    #[error("it has no {kind} {name:?} in {file}; use a number, or a name that it has")]
    Unknown {
        /// `user` or `group`.
        kind: &'static str,
        /// As asked for.
        name: String,
        /// Where it was looked for.
        file: &'static str,
    },
    /// A file in it that is needed to find the user cannot be read.
    #[error("its {file} cannot be read")]
    File {
        /// Which file.
        file: &'static str,
        /// Why.
        source: std::io::Error,
    },
}

impl RuntimeError {
    /// When the same thing is worth another try.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Refused { retry, .. } => *retry,
            Self::Foreign { .. } | Self::Software { .. } | Self::Signal { .. } => Retry::Rarely,
            _ => Retry::Backoff,
        }
    }

    /// Whether containerd itself was not there to be asked, which says nothing of the container.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable(_))
    }

    /// Classifies the answer to a request.
    pub(super) fn from_status(doing: &'static str, id: &ContainerId, status: Status) -> Self {
        match origin(&status) {
            Origin::Transport => return Self::Unreachable(Box::new(status)),
            Origin::Deadline => return Self::TimedOut { doing, id: id.clone() },
            Origin::Containerd => {}
        }
        let retry = match status.code() {
            Code::InvalidArgument | Code::Unimplemented => Retry::Rarely,
            _ => Retry::Backoff,
        };
        let message = shorten(status.message());
        Self::Refused { doing, id: id.clone(), message, retry }
    }
}

/// containerd's words without its ": unknown" at the end. Of a long text the beginning and the end
/// are kept: the end is where the cause stands.
fn shorten(message: &str) -> String {
    let message = message.trim().trim_end_matches(": unknown");
    if message.len() <= MESSAGE_LIMIT {
        return message.to_owned();
    }
    let boundary = |at| (0..=at).rev().find(|at| message.is_char_boundary(*at)).unwrap_or(0);
    let (head, tail) =
        (boundary(MESSAGE_LIMIT / 3), boundary(message.len() - MESSAGE_LIMIT * 2 / 3));
    format!("{} … {}", &message[..head], &message[tail..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_message_keeps_its_cause() {
        let short = "runc create failed: exec: \"nope\": executable file not found: unknown";
        assert_eq!(shorten(short), short.trim_end_matches(": unknown"));
        let long = format!("begin {} the cause: unknown", "ä".repeat(400));
        let said = shorten(&long);
        assert!(said.len() <= MESSAGE_LIMIT + 10, "{}", said.len());
        assert!(said.starts_with("begin ") && said.ends_with(" the cause"), "{said}");
    }

    #[test]
    fn a_status_from_containerd_is_a_refusal_and_a_broken_connection_is_not() {
        let id = ContainerId::from_listed("web.0.main");
        let sent = RuntimeError::from_status("start", &id, Status::unavailable("ttrpc: closed"));
        assert!(!sent.is_unreachable());
        assert_eq!(sent.retry(), Retry::Backoff);
        let broken = Status::from_error(Box::new(std::io::Error::other("broken pipe")));
        assert!(RuntimeError::from_status("start", &id, broken).is_unreachable());
        let invalid = RuntimeError::from_status("start", &id, Status::invalid_argument("no"));
        assert_eq!(invalid.retry(), Retry::Rarely);
        assert_eq!(invalid.to_string(), "containerd cannot start web.0.main: no");
    }
}
