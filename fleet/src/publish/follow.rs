//! What a gateway's reports say about one published order. Time is an argument.

use std::time::Duration;

use coracle_protocol::reported::{Phase, Refused, ReplicaReport, ReplicaState, UpdateState};
use coracle_protocol::topic::{Kind, Topic};
use coracle_protocol::{Refusal, ReportedState};
use tokio::time::Instant;

use super::order::Order;
use crate::broker::Message;

/// What became of an order, as far as is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Everything is as ordered.
    Converged,
    /// The gateway refused it, and keeps its earlier order.
    Refused { refusals: Vec<Refusal>, omitted: u32 },
    /// The gateway has accepted a newer order meanwhile.
    Superseded { applied: u64 },
    /// Not there yet; the last report in a few words, if there was one.
    Waiting { last: Option<String> },
}

impl Verdict {
    /// For programs.
    pub(super) fn word(&self) -> &'static str {
        match self {
            Verdict::Converged => "converged",
            Verdict::Refused { .. } => "refused",
            Verdict::Superseded { .. } => "superseded",
            Verdict::Waiting { .. } => "timeout",
        }
    }

    /// For people; several lines where there are several refusals.
    pub(super) fn sentence(&self, after: Duration) -> String {
        let seconds = after.as_secs_f64();
        match self {
            Verdict::Converged => format!("converged in {seconds:.1} s"),
            Verdict::Refused { refusals, omitted } => {
                let mut text = "refused by the gateway, which keeps its earlier order".to_owned();
                for refusal in refusals {
                    text += &format!("\n  {refusal}");
                }
                if *omitted > 0 {
                    text += &format!("\n  and {omitted} more");
                }
                text
            }
            Verdict::Superseded { applied } => {
                format!("superseded: the gateway keeps generation {applied}")
            }
            Verdict::Waiting { last: Some(last) } => {
                format!("not converged after {seconds:.1} s; last seen: {last}")
            }
            Verdict::Waiting { last: None } => format!(
                "no report within {seconds:.1} s; the gateway gets the order when it connects"
            ),
        }
    }
}

/// Follows one order through the reports of its gateway.
pub(super) struct Follower {
    /// Where the reports come from.
    pub(super) topic: String,
    gateway: String,
    generation: u64,
    digests: Vec<String>,
    published: Instant,
    /// The report that the broker kept from before: the answer only if no other comes.
    earlier: Option<Verdict>,
    verdict: Verdict,
    answered: Option<Instant>,
}

impl Follower {
    pub(super) fn new(order: &Order, published: Instant) -> Self {
        Self {
            topic: Topic::new(order.gateway, Kind::Reported).to_string(),
            gateway: order.gateway.to_string(),
            generation: order.generation,
            digests: order.digests(),
            published,
            earlier: None,
            verdict: Verdict::Waiting { last: None },
            answered: None,
        }
    }

    /// Takes a report in; gives a line of progress if it says something new.
    pub(super) fn hear(&mut self, message: &Message, now: Instant) -> Option<String> {
        if self.is_done() {
            return None;
        }
        let verdict = match serde_json::from_slice::<ReportedState>(&message.payload) {
            Ok(report) => judge(self.generation, &self.digests, &report),
            Err(error) => Verdict::Waiting { last: Some(format!("unreadable report: {error}")) },
        };
        if message.retained && !matches!(verdict, Verdict::Waiting { .. }) {
            self.earlier = Some(verdict);
            return None;
        }
        self.earlier = None;
        let news = verdict != self.verdict;
        self.decide(verdict, now);
        match &self.verdict {
            Verdict::Waiting { last: Some(last) } if news => {
                Some(format!("{}: {last}", self.gateway))
            }
            _ => None,
        }
    }

    /// Nothing newer came, so the report from before stands.
    pub(super) fn settle(&mut self, now: Instant) {
        if let Some(verdict) = self.earlier.take() {
            self.decide(verdict, now);
        }
    }

    fn decide(&mut self, verdict: Verdict, now: Instant) {
        self.verdict = verdict;
        if !matches!(self.verdict, Verdict::Waiting { .. }) {
            self.answered = Some(now);
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.answered.is_some()
    }

    pub(super) fn verdict(&self) -> Verdict {
        self.verdict.clone()
    }

    /// From the publish to the answer, or until now.
    pub(super) fn after(&self) -> Duration {
        self.answered.unwrap_or_else(Instant::now).duration_since(self.published)
    }
}

fn judge(generation: u64, digests: &[String], report: &ReportedState) -> Verdict {
    match &report.refused {
        Some(Refused { digest: refused, refusals, omitted, .. }) if digests.contains(refused) => {
            return Verdict::Refused { refusals: refusals.clone(), omitted: *omitted };
        }
        _ => {}
    }
    if report.generation_applied > generation {
        return Verdict::Superseded { applied: report.generation_applied };
    }
    if report.generation_applied == generation && report.phase == Phase::Converged {
        return Verdict::Converged;
    }
    Verdict::Waiting { last: Some(describe(report)) }
}

/// The phase, and which update was taken back or what the first replica is doing that is not well.
fn describe(report: &ReportedState) -> String {
    let phase = match report.phase {
        Phase::Idle => "idle",
        Phase::Converged => "converged",
        Phase::Progressing => "progressing",
        Phase::Degraded => "degraded",
    };
    let mut text = format!("generation {} {phase}", report.generation_applied);
    let taken_back = report.workloads.iter().find_map(|workload| {
        let update = workload.update.as_ref()?;
        (update.state == UpdateState::RolledBack).then_some((workload, update))
    });
    let replicas = report.workloads.iter().flat_map(|w| w.replicas.iter().map(move |r| (w, r)));
    let mut ill = replicas.filter(|(_, replica)| !is_well(replica));
    let reason = if let Some((workload, update)) = taken_back {
        text += &format!(", {}: update taken back", workload.name);
        update.reason.as_ref()
    } else if let Some((workload, replica)) = ill.next() {
        let state = serde_json::to_value(replica.state).unwrap_or_default();
        let state = match replica.state {
            ReplicaState::Running => "not ready",
            _ => state.as_str().unwrap_or("unknown"),
        };
        text += &format!(", {}/{} {state}", workload.name, replica.index);
        replica.reason.as_ref()
    } else {
        None
    };
    text + &reason.map(|reason| format!(" ({reason})")).unwrap_or_default()
}

fn is_well(replica: &ReplicaReport) -> bool {
    match replica.state {
        ReplicaState::Running => replica.ready,
        state => matches!(state, ReplicaState::Completed | ReplicaState::Stopped),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_keeps_a_gateway_from_converging_is_told() {
        let golden = include_str!("../../../protocol/tests/golden/reported-1-life.json");
        let mut report: ReportedState = serde_json::from_str(golden).unwrap();
        let taken_back = "generation 12 degraded, web: update taken back (web.0: ended with exit \
                          code 1, 3 times in a row)";
        assert_eq!(describe(&report), taken_back);
        report.workloads.retain(|workload| workload.name != "web");
        let unready = "generation 12 degraded, db/0 not ready (readiness probe: GET /ready answered \
                       503)";
        assert_eq!(describe(&report), unready);
        report.workloads.retain(|workload| workload.name != "db");
        assert_eq!(describe(&report), "generation 12 degraded");
    }
}
