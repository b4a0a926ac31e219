//! One replica in words, and one update.

use std::collections::BTreeSet;

use coracle_protocol::Timestamp;
use coracle_protocol::reported::{
    ExitReport, ReplicaReport, ReplicaState, StoppedReport, UpdateReport, UpdateState,
    WorkloadReport,
};
use nix::sys::signal::Signal;

use super::super::style::{Style, Tone};
use super::super::text::{self, clean, count, glue, size, span};
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
        ReplicaState::Stopped => "stopped",
    }
}

/// What is told of a replica in one word, or two.
pub(in crate::cli) fn words(replica: &ReplicaReport) -> &'static str {
    match replica.state {
        ReplicaState::Running if !replica.ready => "not ready",
        state => word(state),
    }
}

pub(in crate::cli) fn tone(state: ReplicaState) -> Tone {
    match state {
        ReplicaState::Running | ReplicaState::Completed => Tone::Good,
        ReplicaState::Failed | ReplicaState::BackOff => Tone::Bad,
        ReplicaState::Pending
        | ReplicaState::Pulling
        | ReplicaState::Starting
        | ReplicaState::Stopping
        | ReplicaState::Stopped => Tone::Busy,
    }
}

pub(in crate::cli) fn tone_of(replica: &ReplicaReport) -> Tone {
    if is_unready(replica) { Tone::Busy } else { tone(replica.state) }
}

/// Whether it runs and cannot take work.
pub(in crate::cli) fn is_unready(replica: &ReplicaReport) -> bool {
    replica.state == ReplicaState::Running && !replica.ready
}

/// Whether it does its work, or did it.
pub(in crate::cli) fn is_well(replica: &ReplicaReport) -> bool {
    tone_of(replica) == Tone::Good
}

/// Everything else there is to say, in one line.
pub(super) fn details(
    workload: &WorkloadReport,
    replica: &ReplicaReport,
    pulls: &[PullStatus],
    now: Timestamp,
) -> String {
    let mut parts = Vec::new();
    parts.extend(workload.stopped.as_ref().map(|stopped| stopped_words(stopped, now)));
    if replica.state == ReplicaState::Pulling {
        parts.extend(pull_of(workload, pulls).map(pull_words));
    }
    // Whose reason it is.
    let told = replica.containers.iter().find(|c| c.reason.is_some() && c.reason == replica.reason);
    let reason = replica.reason.as_ref().map(|reason| match told {
        Some(container) => format!("{}: {reason}", container.name),
        None => reason.clone(),
    });
    let unready = is_unready(replica);
    if unready {
        let why = reason.as_ref().map(|reason| format!("not ready: {reason}"));
        parts.push(why.unwrap_or("not ready".to_owned()));
    }
    match replica.containers.len() {
        0 => parts.extend(replica.pid.map(|pid| format!("pid {pid}"))),
        _ if replica.state == ReplicaState::Stopped => {}
        all => {
            let well = |state| tone(state) == Tone::Good;
            let well = replica.containers.iter().filter(|c| well(c.state)).count();
            parts.push(format!("{well} of {all} containers"));
        }
    }
    parts.extend(replica.address.map(|address| format!("at {address}")));
    parts.extend(reason.filter(|_| !unready));
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
    if replica.reason.is_none() || unready {
        let before = matches!(replica.state, ReplicaState::Running | ReplicaState::Stopped);
        let last = if before { "last " } else { "" };
        let exit = replica.last_exit.as_ref();
        parts.extend(exit.map(|exit| format!("{last}{}", exit_words(exit, now))));
    }
    if replica.state == ReplicaState::Failed && replica.next_try.is_none() {
        parts.push("not tried again: its restart policy is never".to_owned());
    }
    parts.join("; ")
}

/// `stopped by hand 3 min ago`
pub(in crate::cli) fn stopped_words(stopped: &StoppedReport, now: Timestamp) -> String {
    let how = if stopped.drained { "drained" } else { "stopped" };
    format!("{how} by hand {}", glue(&roughly_ago(stopped.since, now)))
}

/// How far an update is: `2 of 3 replicas replaced; waits for ...`, or
/// `update taken back: ...; runs generation 4`.
pub(in crate::cli) fn update_words(
    workload: &WorkloadReport,
    update: &UpdateReport,
    pulls: &[PullStatus],
) -> String {
    let mut parts = Vec::new();
    let reason = update.reason.clone();
    match update.state {
        UpdateState::Progressing => {
            let UpdateReport { updated, replicas, .. } = update;
            parts.push(format!("{updated} of {} replaced", count(*replicas as usize, "replica")));
            parts.extend(pull_of(workload, pulls).map(pull_words).or(reason));
        }
        UpdateState::RolledBack => {
            let why = reason.map(|reason| format!("update taken back: {reason}"));
            parts.push(why.unwrap_or("update taken back".to_owned()));
            parts.extend(generations(workload));
        }
    }
    parts.join("; ")
}

/// Which generations the replicas are of that there are: `runs generation 4`.
fn generations(workload: &WorkloadReport) -> Option<String> {
    let all: BTreeSet<u64> = workload.replicas.iter().filter_map(|r| r.generation).collect();
    let named: Vec<_> = all.iter().map(u64::to_string).collect();
    match named.as_slice() {
        [] => None,
        [one] => Some(format!("runs generation {one}")),
        several => Some(format!("runs generations {}", several.join(" and "))),
    }
}

fn exit_words(exit: &ExitReport, now: Timestamp) -> String {
    let signal = exit.code.checked_sub(128).and_then(|number| i32::try_from(number).ok());
    let signal = signal.and_then(|number| Signal::try_from(number).ok());
    let how = match signal {
        Some(signal) => format!("by {}", signal.as_str()),
        None => format!("with exit code {}", exit.code),
    };
    let why = if exit.out_of_memory { "out of memory, " } else { "" };
    format!("{why}ended {how}, {}", glue(&ago(exit.at, now)))
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
    let mut images = workload.further_images.iter().map(|further| &further.image);
    pulls.iter().find(|pull| pull.image == workload.image || images.any(|i| *i == pull.image))
}

/// How much of its image is there, while it is downloaded.
pub(super) fn percent(workload: &WorkloadReport, pulls: &[PullStatus]) -> Option<u64> {
    percent_of(pull_of(workload, pulls)?)
}

fn percent_of(pull: &PullStatus) -> Option<u64> {
    text::percent(pull.bytes_done, pull.bytes_total)
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
