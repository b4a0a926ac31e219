//! `coracle status`: what was ordered, what runs, what does not and why, and when the next try is.
//!
//! Made for 80 columns and 24 lines without colour: what needs attention comes last, next to the
//! prompt, and many replicas that run well share a few lines.

use std::path::PathBuf;

use coracle_protocol::Timestamp;
use coracle_protocol::reported::{
    Condition, ConditionStatus, Phase, Refused, ReplicaReport, WorkloadReport,
};

use super::client::Client;
use super::failure::Failure;
use super::style::{Style, Tone};
use super::text::{Cell, add_paragraph, add_table, add_wrapped, clean, count, glue, span};
use super::validate::place;
use super::{Outcome, output};
use crate::status::{LinkStatus, Status};

mod replicas;
#[cfg(test)]
pub(super) mod tests;

pub(super) use replicas::{roughly_ago, tone, word};

/// Column at which facts start.
const INDENT: usize = 12;
/// With more replicas than that, those that run well are only named.
const MANY: usize = 12;
/// Replicas that a line of progress names; the rest is counted.
const PROGRESS_SHOWN: usize = 3;
/// Ignored fields that are named; the rest is counted.
const FIELDS_SHOWN: usize = 3;

/// Arguments of `coracle status`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// End with exit code 1 unless everything is as ordered
    #[arg(long)]
    check: bool,
    /// Print nothing; implies --check
    #[arg(long, short, conflicts_with = "json")]
    quiet: bool,
    /// Print the status as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(socket: PathBuf, args: &Args) -> Result<Outcome, Failure> {
    let status: Status = Client::new(socket)?.get("/v1/status")?;
    if args.json {
        output::print_json(&status)?;
    } else if !args.quiet {
        output::print(&render(&status, output::now(), &Style::of_stdout()))?;
    }
    let converged = status.reported.phase == Phase::Converged;
    Ok((converged || !(args.check || args.quiet)).into())
}

/// The whole page.
fn render(status: &Status, now: Timestamp, style: &Style) -> String {
    let mut page = String::new();
    let reported = &status.reported;
    fact(&mut page, "Gateway", style);
    add_wrapped(&mut page, &gateway_line(status, style), INDENT, style);
    add_orders(&mut page, status, style);
    fact(&mut page, "Link", style);
    add_wrapped(&mut page, &link_line(status.link.as_ref(), now), INDENT, style);
    for condition in &reported.conditions {
        if !is_told_already(condition, status) {
            add_condition(&mut page, condition, now, style);
        }
    }
    add_replicas(&mut page, status, now, style);
    page
}

/// Whether the lines about the link or the orders say it.
fn is_told_already(condition: &Condition, status: &Status) -> bool {
    match condition.name.as_str() {
        "link" => status.link.is_some(),
        "orders" => condition.status == ConditionStatus::True || status.reported.refused.is_some(),
        _ => false,
    }
}

/// `WORKLOAD.N STATE` of all that is not as ordered, in one line.
pub(super) fn progress(status: &Status, style: &Style) -> String {
    let open = each_replica(status)
        .filter(|(_, replica)| !replicas::is_well(replica.state))
        .map(|(workload, replica)| {
            let name = replicas::name(workload, replica, style);
            match replicas::percent(workload, replica, &status.pulls) {
                Some(percent) => format!("{name} pulling {} %", percent / 10 * 10),
                None => format!("{name} {}", word(replica.state)),
            }
        })
        .collect::<Vec<_>>();
    match (status.reported.phase, open.is_empty()) {
        (Phase::Converged, _) => "everything is as ordered".to_owned(),
        (phase, true) => phase_word(phase).to_owned(),
        (_, false) if open.len() <= PROGRESS_SHOWN => open.join(", "),
        (_, false) => {
            let (shown, more) = open.split_at(PROGRESS_SHOWN);
            format!("{} and {} more", shown.join(", "), more.len())
        }
    }
}

fn fact(page: &mut String, label: &str, style: &Style) {
    page.push_str(&style.paint(Tone::Quiet, label));
    if label.len() + 2 > INDENT {
        page.push('\n');
        page.extend(std::iter::repeat_n(' ', INDENT));
    } else {
        page.extend(std::iter::repeat_n(' ', INDENT - label.len()));
    }
}

fn gateway_line(status: &Status, style: &Style) -> String {
    let version = clean(&status.reported.agent_version, style);
    format!("{}, agent {version}", status.reported.gateway)
}

fn add_orders(page: &mut String, status: &Status, style: &Style) {
    let reported = &status.reported;
    fact(page, "Orders", style);
    if reported.generation_applied == 0 {
        let how = match status.link {
            Some(_) => "none yet; they come over the link, or by `coracle apply`",
            None => "none yet; give some by `coracle apply FILE`",
        };
        add_wrapped(page, how, INDENT, style);
    } else {
        let workloads = count(reported.workloads.len(), "workload");
        let generation = reported.generation_applied;
        page.push_str(&format!("generation {generation} in force, {workloads}: "));
        page.push_str(&style.paint(phase_tone(reported.phase), phase_word(reported.phase)));
        page.push('\n');
    }
    match &reported.refused {
        Some(refused) => add_refused(page, refused, style),
        None if reported.generation_seen > reported.generation_applied => {
            let line = format!("generation {} was received", reported.generation_seen);
            add_paragraph(page, &line, INDENT, style);
        }
        None => {}
    }
    let (shown, more) =
        reported.unknown_fields.split_at(reported.unknown_fields.len().min(FIELDS_SHOWN));
    for field in shown {
        let line = format!("{field} was ignored: this agent does not know the field");
        add_paragraph(page, &line, INDENT, style);
    }
    if !more.is_empty() {
        let line = format!("{} more were ignored", more.len());
        add_paragraph(page, &line, INDENT, style);
    }
}

fn add_refused(page: &mut String, refused: &Refused, style: &Style) {
    let order = refused.generation.map_or("an order".to_owned(), |n| format!("generation {n}"));
    let line = style.paint(Tone::Bad, &format!("{order} was refused:"));
    page.extend(std::iter::repeat_n(' ', INDENT));
    page.push_str(&line);
    page.push('\n');
    for refusal in &refused.refusals {
        add_paragraph(page, &place(refusal, style), INDENT + 2, style);
    }
    if refused.omitted > 0 {
        let line = format!("and {} more", refused.omitted);
        add_paragraph(page, &line, INDENT + 2, style);
    }
}

fn link_line(link: Option<&LinkStatus>, now: Timestamp) -> String {
    let Some(link) = link else { return "none configured; orders are given locally".to_owned() };
    if link.connected {
        return format!("connected to {}", link.broker);
    }
    let mut line = format!("not connected to {}", link.broker);
    if let Some(reason) = &link.reason {
        line.push_str(&format!(": {reason}"));
    }
    if let Some(next_try) = link.next_try {
        line.push_str(&format!("; {}", replicas::next_try(next_try, now)));
    }
    line
}

fn add_condition(page: &mut String, condition: &Condition, now: Timestamp, style: &Style) {
    fact(page, &clean(&condition.name, style), style);
    let Condition { message, reason, .. } = condition;
    let message = if message.is_empty() { reason } else { message };
    let line = match condition.status {
        ConditionStatus::True => {
            // `containerd 1.6.20` needs no second name.
            let own_name = format!("{} ", condition.name);
            format!("{reason} ({})", message.strip_prefix(&own_name).unwrap_or(message))
        }
        ConditionStatus::False => match now.unix().saturating_sub(condition.since.unix()) {
            0 => format!("NOT GOOD: {message}"),
            seconds => format!("NOT GOOD for {}: {message}", glue(&span(seconds))),
        },
        ConditionStatus::Unknown => format!("unknown: {message}"),
    };
    add_wrapped(page, &line, INDENT, style);
}

fn each_replica(status: &Status) -> impl Iterator<Item = (&WorkloadReport, &ReplicaReport)> {
    let workloads = status.reported.workloads.iter();
    workloads.flat_map(|workload| workload.replicas.iter().map(move |replica| (workload, replica)))
}

fn add_replicas(page: &mut String, status: &Status, now: Timestamp, style: &Style) {
    let all: Vec<_> = each_replica(status).collect();
    if all.is_empty() {
        return;
    }
    let (well, mut ill): (Vec<_>, Vec<_>) =
        all.iter().copied().partition(|(_, replica)| replicas::is_well(replica.state));
    ill.sort_by_key(|(_, replica)| tone(replica.state) == Tone::Bad);
    page.push('\n');
    let listed = if all.len() > MANY {
        let names: Vec<_> = well.iter().map(|(w, r)| replicas::name(w, r, style)).collect();
        if !names.is_empty() {
            let line = format!("As ordered ({} of {}): {}", well.len(), all.len(), names.join(" "));
            add_paragraph(page, &line, 0, style);
            page.push('\n');
        }
        ill
    } else {
        [well, ill].concat()
    };
    let mut rows: Vec<Row<'_>> = Vec::new();
    for (workload, replica) in listed {
        let details = replicas::details(workload, replica, &status.pulls, now);
        match rows.last_mut() {
            Some(row) if row.goes_on_with(workload, replica, &details) => row.last = replica.index,
            _ => rows.push(Row { workload, first: replica, last: replica.index, details }),
        }
    }
    let rows: Vec<_> = rows.into_iter().map(|row| row.cells(style)).collect();
    if !rows.is_empty() {
        add_table(page, &["WORKLOAD", "STATE", "DETAILS"], &rows, style);
    }
}

/// Replicas of one workload of which the same can be said.
struct Row<'a> {
    workload: &'a WorkloadReport,
    first: &'a ReplicaReport,
    /// Index of the last one.
    last: u32,
    details: String,
}

impl Row<'_> {
    fn goes_on_with(&self, of: &WorkloadReport, next: &ReplicaReport, details: &str) -> bool {
        self.workload.name == of.name
            && self.first.state == next.state
            && self.last.checked_add(1) == Some(next.index)
            && self.details == details
    }

    /// `web.0-3`, the state, and the details.
    fn cells(self, style: &Style) -> (Vec<Cell>, String) {
        let mut name = replicas::name(self.workload, self.first, style);
        if self.last > self.first.index {
            name.push_str(&format!("-{}", self.last));
        }
        let state = self.first.state;
        (vec![Cell::new(name), Cell::toned(tone(state), word(state))], self.details)
    }
}

fn phase_word(phase: Phase) -> &'static str {
    match phase {
        Phase::Idle => "idle",
        Phase::Converged => "converged",
        Phase::Progressing => "progressing",
        Phase::Degraded => "degraded",
    }
}

fn phase_tone(phase: Phase) -> Tone {
    match phase {
        Phase::Idle => Tone::Plain,
        Phase::Converged => Tone::Good,
        Phase::Progressing => Tone::Busy,
        Phase::Degraded => Tone::Bad,
    }
}
