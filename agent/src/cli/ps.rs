//! `coracle ps`: one line for each replica, or for each of its containers if it has several.

use std::path::PathBuf;

use coracle_protocol::Timestamp;
use coracle_protocol::reported::{
    ContainerReport, ExitReport, ReplicaReport, ReplicaState, UpdateState, WorkloadReport,
};

use super::client::Client;
use super::failure::Failure;
use super::style::{Style, Tone};
use super::text::{Cell, add_paragraph, add_table, clean};
use super::{Outcome, output, status};

/// Arguments of `coracle ps`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print the list as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(socket: PathBuf, args: &Args) -> Result<Outcome, Failure> {
    let workloads: Vec<WorkloadReport> = Client::new(socket)?.get("/v1/workloads")?;
    if args.json {
        output::print_json(&workloads)?;
    } else {
        output::print(&render(&workloads, output::now(), &Style::of_stdout()))?;
    }
    Ok(Outcome::Good)
}

fn render(workloads: &[WorkloadReport], now: Timestamp, style: &Style) -> String {
    let rows: Vec<_> = workloads
        .iter()
        .flat_map(|workload| workload.replicas.iter().flat_map(move |r| lines(workload, r)))
        .map(|line| {
            let cells = vec![
                Cell::new(clean(&line.name, style)),
                Cell::toned(line.tone, line.state),
                Cell::new(line.pid.map_or("-".to_owned(), |pid| pid.to_string())),
                Cell::new(line.restarts.to_string()),
                Cell::new(line.exit.map_or("-".to_owned(), |exit| {
                    let why = if exit.out_of_memory { " (memory)" } else { "" };
                    format!("{}{why}, {}", exit.code, status::roughly_ago(exit.at, now))
                })),
            ];
            (cells, line.image)
        })
        .collect();
    let mut page = String::new();
    add_table(
        &mut page,
        &["REPLICA", "STATE", "PID", "RESTARTS", "LAST EXIT", "IMAGE"],
        &rows,
        style,
    );
    let notes: Vec<_> = workloads.iter().filter_map(|workload| note(workload, now)).collect();
    if !notes.is_empty() {
        page.push('\n');
        notes.iter().for_each(|note| add_paragraph(&mut page, note, 0, style));
    }
    page
}

/// What holds of a workload as a whole, and must not be missed.
fn note(workload: &WorkloadReport, now: Timestamp) -> Option<String> {
    let stopped = workload.stopped.as_ref().map(|stopped| status::stopped_words(stopped, now));
    let update = workload.update.as_ref().map(|update| {
        let words = status::update_words(workload, update, &[]);
        match update.state {
            UpdateState::Progressing => format!("update: {words}"),
            UpdateState::RolledBack => words,
        }
    });
    let said: Vec<_> = [stopped, update].into_iter().flatten().collect();
    (!said.is_empty()).then(|| format!("{}: {}", workload.name, said.join("; ")))
}

/// What is said of one replica, or of one container where it has several.
struct Line<'a> {
    name: String,
    state: &'static str,
    tone: Tone,
    pid: Option<u32>,
    restarts: u32,
    exit: Option<&'a ExitReport>,
    image: String,
}

fn lines<'a>(workload: &'a WorkloadReport, replica: &'a ReplicaReport) -> Vec<Line<'a>> {
    let name = format!("{}.{}", workload.name, replica.index);
    // Of a whole replica: which of its containers is to blame, its status tells.
    let unready = status::is_unready(replica);
    let state = |state| match state {
        ReplicaState::Running if unready => ("not-ready", Tone::Busy),
        state => (status::word(state), status::tone(state)),
    };
    if replica.containers.is_empty() {
        let (state, tone) = state(replica.state);
        return vec![Line {
            name,
            state,
            tone,
            pid: replica.pid,
            restarts: replica.restarts,
            exit: replica.last_exit.as_ref(),
            image: image(workload, replica, &workload.image),
        }];
    }
    let further = workload.further_images.iter().map(|further| further.image.as_str());
    let images =
        std::iter::once(workload.image.as_str()).chain(further).chain(std::iter::repeat("-"));
    let line = |(container, ordered): (&'a ContainerReport, &'a str)| {
        let (state, tone) = state(container.state);
        Line {
            name: format!("{name}.{}", container.name),
            state,
            tone,
            pid: container.pid,
            restarts: container.restarts,
            exit: container.last_exit.as_ref(),
            image: image(workload, replica, ordered),
        }
    };
    replica.containers.iter().zip(images).map(line).collect()
}

/// The image of a replica, as far as it can be told: after an update was taken back it is not the
/// ordered one.
fn image(workload: &WorkloadReport, replica: &ReplicaReport, ordered: &str) -> String {
    let update = workload.update.as_ref();
    let taken_back = update.is_some_and(|update| update.state == UpdateState::RolledBack);
    match replica.generation.filter(|_| taken_back) {
        Some(generation) => format!("as in generation {generation}"),
        None => short(ordered),
    }
}

/// A digest is recognised by its first 12 digits.
fn short(image: &str) -> String {
    match image.split_once("@sha256:") {
        Some((name, digest)) => {
            let digits: String = digest.chars().take(12).collect();
            format!("{name}@sha256:{digits}")
        }
        None => image.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use coracle_protocol::reported::ImageReport;
    use expect_test::expect;

    use super::*;
    use crate::cli::status::tests::{NOW, PLAIN, degraded, exceptions};

    #[test]
    fn one_line_for_each_container_of_a_pod() {
        let mut workloads = degraded().reported.workloads;
        workloads.retain(|workload| workload.name == "web");
        let web = &mut workloads[0];
        web.replicas.truncate(1);
        web.further_images
            .push(ImageReport { image: "registry.example/side:2".into(), image_digest: None });
        let container = |name: &str, state, exit: Option<ExitReport>| ContainerReport {
            name: name.into(),
            state,
            pid: None,
            restarts: 1,
            last_exit: exit,
            reason: None,
            next_try: None,
        };
        let mut exit = web.replicas[0].last_exit.clone().unwrap();
        exit.out_of_memory = true;
        web.replicas[0].containers = vec![
            container("main", ReplicaState::Running, None),
            container("side", ReplicaState::BackOff, Some(exit)),
        ];
        expect![[r#"
            REPLICA     STATE     PID  RESTARTS  LAST EXIT                IMAGE
            web.0.main  running   -    1         -                        registry.example/web:1.27
            web.0.side  back-off  -    1         137 (memory), 3 min ago  registry.example/side:2
        "#]]
        .assert_eq(&render(&workloads, NOW, &Style { width: None, ..PLAIN }));
    }

    #[test]
    fn one_line_for_each_replica() {
        let workloads = degraded().reported.workloads;
        expect![[r#"
            REPLICA    STATE      PID   RESTARTS  LAST EXIT       IMAGE
            cam.0      pulling    -     0         -               registry.example/cam:1.27
            db.0       back-off   -     5         1, 4 s ago
                registry.example/team/database@sha256:0123456789ab
            migrate.0  completed  -     0         0, 1 h ago
                registry.example/migrate:1.27
            probe.0    failed     -     0         2, 1 h ago
                registry.example/probe:1.27
            web.0      running    4711  2         137, 3 min ago  registry.example/web:1.27
            web.1      starting   -     0         -               registry.example/web:1.27
        "#]]
        .assert_eq(&render(&workloads, NOW, &PLAIN));
        let endless = Style { width: None, ..PLAIN };
        expect![[r#"
            REPLICA    STATE      PID   RESTARTS  LAST EXIT       IMAGE
            cam.0      pulling    -     0         -               registry.example/cam:1.27
            db.0       back-off   -     5         1, 4 s ago      registry.example/team/database@sha256:0123456789ab
            migrate.0  completed  -     0         0, 1 h ago      registry.example/migrate:1.27
            probe.0    failed     -     0         2, 1 h ago      registry.example/probe:1.27
            web.0      running    4711  2         137, 3 min ago  registry.example/web:1.27
            web.1      starting   -     0         -               registry.example/web:1.27
        "#]].assert_eq(&render(&workloads, NOW, &endless));
        expect![[r#"
            REPLICA  STATE  PID  RESTARTS  LAST EXIT  IMAGE
        "#]]
        .assert_eq(&render(&[], NOW, &PLAIN));
    }

    #[test]
    fn what_is_otherwise_than_ordered_is_told_below() {
        let workloads = exceptions().reported.workloads;
        expect![[r#"
            REPLICA  STATE      PID   RESTARTS  LAST EXIT  IMAGE
            api.0    stopped    -     0         -          registry.example/api:1.27
            api.1    stopped    -     0         -          registry.example/api:1.27
            api.2    stopped    -     0         -          registry.example/api:1.27
            db.0     not-ready  4713  0         -          registry.example/db:1.27
            job.0    stopped    -     0         -          registry.example/job:1.27
            ui.0     running    4711  0         -          registry.example/ui:1.27
            ui.1     running    4712  0         -          registry.example/ui:1.27
            ui.2     running    4713  0         -          registry.example/ui:1.27
            web.0    running    4711  0         -          as in generation 4
            web.1    running    4712  0         -          as in generation 4
            web.2    running    4713  0         -          as in generation 4

            api: drained by hand 2 h ago
            job: stopped by hand 3 min ago
            ui: update: 2 of 3 replicas replaced; waits for db: 0 of 1 replicas are ready
            web: update taken back: web.0: ended with exit code 1, 3 times in a row; runs
            generation 4
        "#]]
        .assert_eq(&render(&workloads, NOW, &PLAIN));
    }
}
