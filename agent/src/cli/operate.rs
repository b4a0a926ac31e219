//! `coracle start`, `stop`, `drain`, `restart`: what somebody does to workloads by hand, and waiting
//! until it is done if asked to.

use std::collections::BTreeSet;
use std::path::PathBuf;

use coracle_core::name::{InvalidName, WorkloadName};
use coracle_protocol::reported::{Phase, ReplicaReport, ReplicaState, WorkloadReport};

use super::client::Client;
use super::failure::Failure;
use super::style::Style;
use super::text::clean;
use super::waiting::Waiting;
use super::{Outcome, output, status};
use crate::status::{Operated, Operation, Status};

/// Arguments of `coracle start`, `stop`, `drain` and `restart`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which workloads
    #[arg(required = true, value_name = "WORKLOAD", value_parser = parse_name)]
    workloads: Vec<String>,
    /// Wait until it is done, at most that many seconds; exit code 1 if it is not
    #[arg(long, value_name = "SECONDS")]
    wait: Option<u64>,
    /// Print what became of each as JSON
    #[arg(long)]
    json: bool,
}

fn parse_name(text: &str) -> Result<String, InvalidName> {
    WorkloadName::parse(text).map(|name| name.as_str().to_owned())
}

pub(super) fn run(socket: PathBuf, operation: Operation, args: &Args) -> Result<Outcome, Failure> {
    let named = |name: &String| Named {
        name: name.clone(),
        resource: format!("workloads/{name}"),
        workload: Some(name.clone()),
    };
    let all: Vec<_> = args.workloads.iter().map(named).collect();
    operate(&Client::new(socket)?, operation, &all, args.wait, args.json)
}

/// One that is operated.
#[derive(Debug)]
pub(super) struct Named {
    /// As it was asked for.
    pub(super) name: String,
    /// Its place in the API.
    pub(super) resource: String,
    /// The workload that is waited for.
    pub(super) workload: Option<String>,
}

/// Each by itself: what becomes of one does not depend on the others.
pub(super) fn operate(
    client: &Client,
    operation: Operation,
    all: &[Named],
    wait: Option<u64>,
    json: bool,
) -> Result<Outcome, Failure> {
    let style = Style::of_stdout();
    let before = match operation {
        Operation::Restart if wait.is_some() => processes(client, all)?,
        _ => BTreeSet::new(),
    };
    let asked = Asked { operation, before };
    let mut done = Vec::new();
    let mut refused = Vec::new();
    let mut names = BTreeSet::new();
    for Named { name, resource, workload } in all {
        match client.operate(resource, operation) {
            Ok(operated) => {
                done.push((name.as_str(), operated));
                names.extend(workload.as_deref());
            }
            Err(Failure::Denied { message, .. }) => refused.push((name.as_str(), message)),
            Err(failure) => return Err(failure),
        }
    }
    if json {
        output::print_json(&answers(&done, &refused))?;
    } else {
        for (_, operated) in &done {
            output::print(&format!("{}\n", clean(&operated.message, &style)))?;
        }
        for (name, reason) in &refused {
            output::remark(&format!("error: {name}: {}", clean(reason, &style)));
        }
    }
    let outcome = Outcome::from(refused.is_empty());
    let Some(seconds) = wait.filter(|_| !names.is_empty()) else { return Ok(outcome) };
    let waited = Waiting::new(client, seconds, json).until(
        |status| asked.progress(&names, status, &style),
        |status| asked.judge(&names, status),
    )?;
    if waited.is_none() {
        output::remark("error: it is not done yet; see `coracle status`");
    }
    let good = outcome == Outcome::Good && waited == Some(Outcome::Good);
    Ok(Outcome::from(good))
}

fn answers(done: &[(&str, Operated)], refused: &[(&str, String)]) -> serde_json::Value {
    let done: Vec<_> = done
        .iter()
        .map(|(name, operated)| {
            let Operated { message, unchanged } = operated;
            serde_json::json!({ "name": name, "message": message, "unchanged": unchanged })
        })
        .collect();
    let refused: Vec<_> = refused
        .iter()
        .map(|(name, reason)| serde_json::json!({ "name": name, "reason": reason }))
        .collect();
    serde_json::json!({ "done": done, "refused": refused })
}

/// The processes of the workloads that are to be restarted, which must be others afterwards.
fn processes(client: &Client, all: &[Named]) -> Result<BTreeSet<u32>, Failure> {
    let workloads: Vec<WorkloadReport> = client.get("/v1/workloads")?;
    let is_named = |workload: &&WorkloadReport| {
        all.iter().any(|named| named.workload.as_ref() == Some(&workload.name))
    };
    let named = workloads.iter().filter(is_named);
    Ok(named.flat_map(|workload| &workload.replicas).flat_map(pids).collect())
}

fn pids(replica: &ReplicaReport) -> impl Iterator<Item = u32> {
    replica.pid.into_iter().chain(replica.containers.iter().filter_map(|container| container.pid))
}

/// What is waited for.
#[derive(Debug)]
struct Asked {
    operation: Operation,
    /// Processes of the time before.
    before: BTreeSet<u32>,
}

impl Asked {
    /// Whether there is nothing left to wait for.
    fn judge(&self, names: &BTreeSet<&str>, status: &Status) -> Option<Outcome> {
        let workloads = &status.reported.workloads;
        for name in names {
            let Some(workload) = workloads.iter().find(|workload| workload.name == *name) else {
                output::remark(&format!("error: {name} is not ordered any more"));
                return Some(Outcome::No);
            };
            let stops = matches!(self.operation, Operation::Stop | Operation::Drain);
            if stops != workload.stopped.is_some() {
                let what = if stops { "started again" } else { "stopped" };
                output::remark(&format!("error: {name} was {what} by hand meanwhile"));
                return Some(Outcome::No);
            }
            if !self.is_done(workload) {
                return None;
            }
        }
        Some(Outcome::Good)
    }

    fn is_done(&self, workload: &WorkloadReport) -> bool {
        let all = workload.replicas.iter().all(|replica| self.is_done_to(replica));
        match self.operation {
            Operation::Stop | Operation::Drain => all,
            Operation::Start | Operation::Restart => all && workload.phase == Phase::Converged,
        }
    }

    fn is_done_to(&self, replica: &ReplicaReport) -> bool {
        match self.operation {
            Operation::Stop | Operation::Drain => !runs(replica),
            Operation::Start => status::is_well(replica),
            Operation::Restart => status::is_well(replica) && !self.is_as_before(replica),
        }
    }

    fn is_as_before(&self, replica: &ReplicaReport) -> bool {
        pids(replica).any(|pid| self.before.contains(&pid))
    }

    /// `WORKLOAD.N STATE` of all to which it is not done yet, in one line.
    fn progress(&self, names: &BTreeSet<&str>, status: &Status, style: &Style) -> String {
        let workloads = status.reported.workloads.iter();
        let open: Vec<_> = workloads
            .filter(|workload| names.contains(workload.name.as_str()))
            .flat_map(|workload| workload.replicas.iter().map(move |replica| (workload, replica)))
            .filter(|(_, replica)| !self.is_done_to(replica))
            .map(|(workload, replica)| {
                let name = format!("{}.{}", workload.name, replica.index);
                let as_before = self.operation == Operation::Restart && self.is_as_before(replica);
                let what = match replica.state {
                    ReplicaState::Running if as_before => "not restarted yet",
                    _ => status::words(replica),
                };
                clean(&format!("{name} {what}"), style)
            })
            .collect();
        if open.is_empty() { "done".to_owned() } else { status::few(&open) }
    }
}

/// Whether there is a process of it, or will be.
fn runs(replica: &ReplicaReport) -> bool {
    let busy = |state| {
        matches!(state, ReplicaState::Running | ReplicaState::Starting | ReplicaState::Stopping)
    };
    busy(replica.state)
        || replica.containers.iter().any(|container| busy(container.state))
        || pids(replica).next().is_some()
}

#[cfg(test)]
mod tests {
    use coracle_protocol::reported::StoppedReport;

    use super::*;
    use crate::cli::status::tests::{NOW, PLAIN, ordered, replica, running, workload};

    const STOPPED: Option<StoppedReport> = Some(StoppedReport { drained: false, since: NOW });

    fn check(operation: Operation, workload: WorkloadReport, expected: (Option<Outcome>, &str)) {
        let asked = Asked { operation, before: BTreeSet::from([4711, 4712]) };
        let status = ordered(workload.phase, vec![workload]);
        let names = BTreeSet::from(["web"]);
        let progress = asked.progress(&names, &status, &PLAIN);
        assert_eq!((asked.judge(&names, &status), progress.as_str()), expected);
    }

    #[test]
    fn it_is_stopped_when_nothing_of_it_runs() {
        let stops = |replicas| WorkloadReport { stopped: STOPPED, ..workload("web", replicas) };
        let second = |state| ReplicaReport { index: 1, ..replica(state) };
        let check = |state, expected| {
            let workload = stops(vec![replica(ReplicaState::Stopped), second(state)]);
            check(Operation::Stop, workload, expected);
        };
        check(ReplicaState::Stopping, (None, "web.1 stopping"));
        check(ReplicaState::Starting, (None, "web.1 starting"));
        check(ReplicaState::Stopped, (Some(Outcome::Good), "done"));
        check(ReplicaState::Completed, (Some(Outcome::Good), "done"));
        check(ReplicaState::Pulling, (Some(Outcome::Good), "done"));
    }

    #[test]
    fn it_is_started_when_it_is_converged() {
        let starts = |phase, replica| WorkloadReport { phase, ..workload("web", vec![replica]) };
        let unready = ReplicaReport { ready: false, ..running(4711) };
        let start = |phase, replica, expected| {
            check(Operation::Start, starts(phase, replica), expected);
        };
        start(Phase::Progressing, unready, (None, "web.0 not ready"));
        start(Phase::Degraded, replica(ReplicaState::BackOff), (None, "web.0 back-off"));
        start(Phase::Converged, running(4711), (Some(Outcome::Good), "done"));
    }

    #[test]
    fn it_is_restarted_when_all_its_processes_are_others() {
        let second = ReplicaReport { index: 1, ..running(4712) };
        let web = workload("web", vec![running(5000), second.clone()]);
        check(Operation::Restart, web, (None, "web.1 not restarted yet"));
        let web = workload("web", vec![running(5000), ReplicaReport { pid: Some(5001), ..second }]);
        check(Operation::Restart, web, (Some(Outcome::Good), "done"));
    }

    #[test]
    fn nobody_waits_for_what_will_not_come() {
        let stops = WorkloadReport { stopped: STOPPED, ..workload("web", vec![running(1)]) };
        check(Operation::Restart, stops, (Some(Outcome::No), "done"));
        check(
            Operation::Stop,
            workload("web", vec![running(1)]),
            (Some(Outcome::No), "web.0 running"),
        );
        check(Operation::Stop, workload("other", vec![]), (Some(Outcome::No), "done"));
    }
}
