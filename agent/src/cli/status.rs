//! `coracle status`: what was ordered, what runs, what does not and why, and when the next try is.
//!
//! Made for 80 columns and 24 lines without colour: what needs attention comes last, next to the
//! prompt, and many replicas that run well share a few lines.

use std::path::PathBuf;

use coracle_protocol::Timestamp;
use coracle_protocol::reported::{
    Condition, ConditionStatus, Phase, Refused, ReplicaReport, ReplicaState, UpdateState,
    WorkloadReport,
};

use super::client::Client;
use super::failure::Failure;
use super::style::{Style, Tone};
use super::text::{
    Cell, FACTS_AT as INDENT, add_fact, add_label, add_paragraph, add_table, add_wrapped, clean,
    count, glue, size, span,
};
use super::validate::place;
use super::{Outcome, output};
use crate::status::{LinkStatus, Status};

mod replicas;
#[cfg(test)]
pub(super) mod tests;

pub(super) use replicas::{
    is_unready, is_well, roughly_ago, stopped_words, tone, tone_of, update_words, word, words,
};

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
    add_fact(&mut page, "Gateway", &gateway_line(status, style), style);
    add_orders(&mut page, status, style);
    add_fact(
        &mut page,
        "Link",
        &link_line(status.link.as_ref(), status.link_bytes_today, now),
        style,
    );
    for condition in &reported.conditions {
        if !is_told_already(condition, status) {
            add_condition(&mut page, condition, now, style);
        }
    }
    add_replicas(&mut page, status, now, style);
    page
}

/// Conditions that are only worth a line when something is wrong.
const QUIET_WHEN_GOOD: [&str; 13] = [
    "cgroups",
    "cni",
    "data",
    "identity",
    "kernel",
    "leftovers",
    "logs",
    "pods",
    "policy",
    "registries",
    "runtime-dir",
    "templates",
    "trust",
];

/// Whether the lines about the link or the orders say it, or there is nothing to say.
fn is_told_already(condition: &Condition, status: &Status) -> bool {
    match condition.name.as_str() {
        "link" => status.link.is_some(),
        "orders" => condition.status == ConditionStatus::True || status.reported.refused.is_some(),
        name => condition.status == ConditionStatus::True && QUIET_WHEN_GOOD.contains(&name),
    }
}

/// `WORKLOAD.N STATE` of all that is not as ordered, in one line.
pub(super) fn progress(status: &Status, style: &Style) -> String {
    let workloads = &status.reported.workloads;
    let open: Vec<_> =
        workloads.iter().flat_map(|workload| open(workload, status, style)).collect();
    match (status.reported.phase, open.is_empty()) {
        (Phase::Converged, _) if workloads.iter().any(|workload| workload.stopped.is_some()) => {
            "everything is as ordered, but for what is stopped by hand".to_owned()
        }
        (Phase::Converged, _) => "everything is as ordered".to_owned(),
        (phase, true) => phase_word(phase).to_owned(),
        (_, false) => few(&open),
    }
}

/// What is not as ordered about a workload, but that it is stopped by hand.
fn open(workload: &WorkloadReport, status: &Status, style: &Style) -> Vec<String> {
    let percent = replicas::percent(workload, &status.pulls);
    let pulling = percent.map(|percent| format!("pulling {} %", percent / 10 * 10));
    let update = workload.update.as_ref().map(|update| match (update.state, &pulling) {
        (UpdateState::RolledBack, _) => "update taken back".to_owned(),
        (UpdateState::Progressing, Some(pulling)) => pulling.clone(),
        (UpdateState::Progressing, None) => {
            format!("{} of {} replaced", update.updated, update.replicas)
        }
    });
    let mut open: Vec<_> = update
        .map(|update| format!("{} {update}", clean(&workload.name, style)))
        .into_iter()
        .collect();
    let replicas = workload
        .replicas
        .iter()
        .filter(|replica| !replicas::is_well(replica) && replica.state != ReplicaState::Stopped);
    open.extend(replicas.map(|replica| {
        let name = replicas::name(workload, replica, style);
        let pulling = pulling.as_ref().filter(|_| replica.state == ReplicaState::Pulling);
        format!("{name} {}", pulling.map_or(words(replica), String::as_str))
    }));
    open
}

/// The first ones in one line; the rest is counted.
pub(super) fn few(all: &[String]) -> String {
    match all.split_at_checked(PROGRESS_SHOWN) {
        Some((shown, more)) if !more.is_empty() => {
            format!("{} and {} more", shown.join(", "), more.len())
        }
        _ => all.join(", "),
    }
}

/// The workloads whose updates were taken back, if nothing else is left to wait for.
pub(super) fn given_up(status: &Status) -> Vec<&str> {
    let taken_back = |workload: &WorkloadReport| {
        is_taken_back(workload) && workload.replicas.iter().all(replicas::is_well)
    };
    let workloads = &status.reported.workloads;
    let mut all = workloads.iter();
    if !all.all(|workload| workload.phase == Phase::Converged || taken_back(workload)) {
        return Vec::new();
    }
    let names = workloads.iter().filter(|workload| is_taken_back(workload));
    names.map(|workload| workload.name.as_str()).collect()
}

fn is_taken_back(workload: &WorkloadReport) -> bool {
    let update = workload.update.as_ref();
    update.is_some_and(|update| update.state == UpdateState::RolledBack)
}

fn gateway_line(status: &Status, style: &Style) -> String {
    let version = clean(&status.reported.agent_version, style);
    match status.reported.gateway {
        gateway if gateway.is_nil() => format!("not provisioned, agent {version}"),
        gateway => format!("{gateway}, agent {version}"),
    }
}

fn add_orders(page: &mut String, status: &Status, style: &Style) {
    let reported = &status.reported;
    add_label(page, "Orders", style);
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
        add_exceptions(page, &reported.workloads, style);
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

/// What must not be missed, whatever the phase is.
fn add_exceptions(page: &mut String, workloads: &[WorkloadReport], style: &Style) {
    let mut add = |what: &str, is_one: &dyn Fn(&WorkloadReport) -> bool| {
        let names = workloads.iter().filter(|workload| is_one(workload));
        let names: Vec<_> = names.map(|workload| workload.name.clone()).collect();
        if !names.is_empty() {
            add_paragraph(page, &format!("{what}: {}", few(&names)), INDENT, style);
        }
    };
    add("stopped by hand", &|workload| workload.stopped.is_some());
    add("update taken back", &is_taken_back);
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

pub(super) fn link_line(
    link: Option<&LinkStatus>,
    bytes_today: Option<u64>,
    now: Timestamp,
) -> String {
    let Some(link) = link else { return "none configured; orders are given locally".to_owned() };
    if link.connected {
        let today = bytes_today.map_or_else(String::new, |b| format!("; {} today", size(b)));
        return format!("connected to {}{today}", link.broker);
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
    add_label(page, &clean(&condition.name, style), style);
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
    let is_as_ordered = |(workload, replica): &(&WorkloadReport, &ReplicaReport)| {
        workload.stopped.is_none() && replicas::is_well(replica)
    };
    let (well, rest): (Vec<_>, Vec<_>) = all.iter().copied().partition(is_as_ordered);
    let (bad, rest): (Vec<_>, Vec<_>) =
        rest.into_iter().partition(|(_, replica)| tone_of(replica) == Tone::Bad);
    let (stopped, busy): (Vec<_>, Vec<_>) =
        rest.into_iter().partition(|(workload, _)| workload.stopped.is_some());
    page.push('\n');
    let mut rows = Vec::new();
    if all.len() > MANY {
        let names: Vec<_> = well.iter().map(|(w, r)| replicas::name(w, r, style)).collect();
        if !names.is_empty() {
            let line = format!("As ordered ({} of {}): {}", well.len(), all.len(), names.join(" "));
            add_paragraph(page, &line, 0, style);
            page.push('\n');
        }
    } else {
        rows.extend(rows_of(&well, status, now, style));
    }
    rows.extend(rows_of(&stopped, status, now, style));
    rows.extend(updates(status, UpdateState::Progressing, style));
    rows.extend(rows_of(&busy, status, now, style));
    rows.extend(rows_of(&bad, status, now, style));
    rows.extend(updates(status, UpdateState::RolledBack, style));
    if !rows.is_empty() {
        add_table(page, &["WORKLOAD", "STATE", "DETAILS"], &rows, style);
    }
}

/// A row of the table: its cells, and the last one, which is wrapped.
type Cells = (Vec<Cell>, String);

fn rows_of(
    listed: &[(&WorkloadReport, &ReplicaReport)],
    status: &Status,
    now: Timestamp,
    style: &Style,
) -> Vec<Cells> {
    let mut rows: Vec<Row<'_>> = Vec::new();
    for (workload, replica) in listed {
        let details = replicas::details(workload, replica, &status.pulls, now);
        match rows.last_mut() {
            Some(row) if row.goes_on_with(workload, replica, &details) => row.last = replica.index,
            _ => rows.push(Row { workload, first: replica, last: replica.index, details }),
        }
    }
    rows.into_iter().map(|row| row.cells(style)).collect()
}

/// A row for each update that is in this state.
fn updates(status: &Status, state: UpdateState, style: &Style) -> Vec<Cells> {
    let (tone, word) = match state {
        UpdateState::Progressing => (Tone::Busy, "updating"),
        UpdateState::RolledBack => (Tone::Bad, "rolled-back"),
    };
    let row = |workload: &WorkloadReport| {
        let update = workload.update.as_ref().filter(|update| update.state == state)?;
        let name = Cell::new(clean(&workload.name, style));
        let details = replicas::update_words(workload, update, &status.pulls);
        Some((vec![name, Cell::toned(tone, word)], details))
    };
    status.reported.workloads.iter().filter_map(row).collect()
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
    fn cells(self, style: &Style) -> Cells {
        let mut name = replicas::name(self.workload, self.first, style);
        if self.last > self.first.index {
            name.push_str(&format!("-{}", self.last));
        }
        let state = Cell::toned(tone_of(self.first), word(self.first.state));
        (vec![Cell::new(name), state], self.details)
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
