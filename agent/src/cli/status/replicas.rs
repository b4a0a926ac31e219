//! One replica in words.

use coracle_protocol::Timestamp;
use coracle_protocol::reported::{ExitReport, ReplicaReport, ReplicaState, WorkloadReport};
use nix::sys::signal::Signal;

use super::super::style::{Style, Tone};
use super::super::text::{clean, glue, size, span};
use crate::status::PullStatus;

/// `web.0`
pub(super) fn name(workload: &WorkloadReport, replica: &ReplicaReport, style: &Style) -> String {
    clean(&format!("{}.{}", workload.name, replica.index), style)
}

/// As in the reported state.
pub(in crate::cli) fn word(state: ReplicaState) -> &'static str {
    match state {
        ReplicaState::Running => "running",
        ReplicaState::Completed => "completed",
        ReplicaState::Failed => "failed",
        ReplicaState::Pending => "pending",
        ReplicaState::Pulling => "pulling",
        ReplicaState::Starting => "starting",
        ReplicaState::Stopping => "stopping",
        ReplicaState::BackOff => "back-off",
    }
}

pub(in crate::cli) fn tone(state: ReplicaState) -> Tone {
    match state {
        ReplicaState::Running | ReplicaState::Completed => Tone::Good,
        ReplicaState::Failed | ReplicaState::BackOff => Tone::Bad,
        ReplicaState::Pending
        | ReplicaState::Pulling
        | ReplicaState::Starting
        | ReplicaState::Stopping => Tone::Busy,
    }
}

pub(super) fn is_well(state: ReplicaState) -> bool {
    tone(state) == Tone::Good
}

/// Everything else there is to say, in one line.
pub(super) fn details(
    workload: &WorkloadReport,
    replica: &ReplicaReport,
    pulls: &[PullStatus],
    now: Timestamp,
) -> String {
    let mut parts = Vec::new();
    if replica.state == ReplicaState::Pulling {
        parts.extend(pull_of(workload, pulls).map(pull_words));
    }
    parts.extend(replica.pid.map(|pid| format!("pid {pid}")));
    parts.extend(replica.reason.clone());
    parts.extend(replica.next_try.map(|at| next_try(at, now)));
    if replica.restarts > 0 {
        let times = if replica.restarts == 1 {
            "once".into()
        } else {
            format!("{} times", replica.restarts)
        };
        parts.push(format!("restarted {times}"));
    }
    // A reason to wait tells how it ended.
    if replica.reason.is_none() {
        let last = if replica.state == ReplicaState::Running { "last " } else { "" };
        let exit = replica.last_exit.as_ref();
        parts.extend(exit.map(|exit| format!("{last}{}", exit_words(exit, now))));
    }
    if replica.state == ReplicaState::Failed && replica.next_try.is_none() {
        parts.push("not tried again: its restart policy is never".to_owned());
    }
    parts.join("; ")
}

fn exit_words(exit: &ExitReport, now: Timestamp) -> String {
    let signal = exit.code.checked_sub(128).and_then(|number| i32::try_from(number).ok());
    let signal = signal.and_then(|number| Signal::try_from(number).ok());
    let how = match signal {
        Some(signal) => format!("by {}", signal.as_str()),
        None => format!("with exit code {}", exit.code),
    };
    format!("ended {how}, {}", glue(&ago(exit.at, now)))
}

/// `3 min 5 s ago`
fn ago(at: Timestamp, now: Timestamp) -> String {
    match now.unix().checked_sub(at.unix()) {
        // The clock was set back.
        None => format!("at {at}"),
        Some(seconds) => format!("{} ago", span(coarse(seconds))),
    }
}

/// `3 min ago`
pub(in crate::cli) fn roughly_ago(at: Timestamp, now: Timestamp) -> String {
    let rough = |seconds| match seconds {
        0..60 => seconds,
        60..3600 => seconds / 60 * 60,
        3600..86_400 => seconds / 3600 * 3600,
        _ => seconds / 86_400 * 86_400,
    };
    match now.unix().checked_sub(at.unix()) {
        None => at.to_string(),
        Some(seconds) => format!("{} ago", span(rough(seconds))),
    }
}

/// From ten minutes on nobody asks for seconds.
fn coarse(seconds: u64) -> u64 {
    if seconds < 600 { seconds } else { seconds / 60 * 60 }
}

/// `next try in 12 s`
pub(super) fn next_try(at: Timestamp, now: Timestamp) -> String {
    match at.unix().saturating_sub(now.unix()) {
        0 => "next try now".to_owned(),
        seconds => format!("next try in {}", glue(&span(coarse(seconds)))),
    }
}

fn pull_of<'a>(workload: &WorkloadReport, pulls: &'a [PullStatus]) -> Option<&'a PullStatus> {
    pulls.iter().find(|pull| pull.image == workload.image)
}

/// How much of its image is there, while it is downloaded.
pub(super) fn percent(
    workload: &WorkloadReport,
    replica: &ReplicaReport,
    pulls: &[PullStatus],
) -> Option<u64> {
    let pull = pull_of(workload, pulls).filter(|_| replica.state == ReplicaState::Pulling)?;
    percent_of(pull)
}

fn percent_of(pull: &PullStatus) -> Option<u64> {
    let total = pull.bytes_total.filter(|total| *total > 0)?;
    u64::try_from(u128::from(pull.bytes_done) * 100 / u128::from(total)).ok().map(|p| p.min(100))
}

fn pull_words(pull: &PullStatus) -> String {
    match (percent_of(pull), pull.bytes_total) {
        (Some(percent), Some(total)) => {
            let of = glue(&format!("{percent} % of {}", size(total)));
            format!("{}, {of}", pull.phase)
        }
        _ if pull.bytes_done > 0 => {
            format!("{}, {} so far", pull.phase, glue(&size(pull.bytes_done)))
        }
        _ => pull.phase.clone(),
    }
}
