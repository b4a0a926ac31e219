//! What a gateway's reports say about one published order. Time is an argument.

use std::time::Duration;

use coracle_protocol::reported::{Phase, Refused, ReplicaState};
use coracle_protocol::topic::{Kind, Topic};
use coracle_protocol::{Refusal, ReportedState};
use tokio::time::Instant;

use super::order::Order;

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
    digest: String,
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
            digest: order.digest.clone(),
            published,
            earlier: None,
            verdict: Verdict::Waiting { last: None },
            answered: None,
        }
    }

    /// Takes a report in; gives a line of progress if it says something new.
    pub(super) fn hear(
        &mut self,
        (payload, retained): &(Vec<u8>, bool),
        now: Instant,
    ) -> Option<String> {
        if self.is_done() {
            return None;
        }
        let verdict = match serde_json::from_slice::<ReportedState>(payload) {
            Ok(report) => judge(self.generation, &self.digest, &report),
            Err(error) => Verdict::Waiting { last: Some(format!("unreadable report: {error}")) },
        };
        if *retained && !matches!(verdict, Verdict::Waiting { .. }) {
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

fn judge(generation: u64, digest: &str, report: &ReportedState) -> Verdict {
    match &report.refused {
        Some(Refused { digest: refused, refusals, omitted, .. }) if refused == digest => {
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

/// The phase, and what the first replica that does not run is doing.
fn describe(report: &ReportedState) -> String {
    let phase = match report.phase {
        Phase::Idle => "idle",
        Phase::Converged => "converged",
        Phase::Progressing => "progressing",
        Phase::Degraded => "degraded",
    };
    let mut text = format!("generation {} {phase}", report.generation_applied);
    let replicas = report.workloads.iter().flat_map(|w| w.replicas.iter().map(move |r| (w, r)));
    let mut busy = replicas.filter(|(_, replica)| {
        !matches!(replica.state, ReplicaState::Running | ReplicaState::Completed)
    });
    if let Some((workload, replica)) = busy.next() {
        let state = serde_json::to_value(replica.state).unwrap_or_default();
        let state = state.as_str().unwrap_or("unknown");
        text += &format!(", {}/{} {state}", workload.name, replica.index);
        if let Some(reason) = &replica.reason {
            text += &format!(" ({reason})");
        }
    }
    text
}
