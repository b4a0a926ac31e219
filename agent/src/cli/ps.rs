//! `coracle ps`: one line for each replica.

use std::path::PathBuf;

use coracle_protocol::Timestamp;
use coracle_protocol::reported::WorkloadReport;

use super::client::Client;
use super::failure::Failure;
use super::style::Style;
use super::text::{Cell, add_table, clean};
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
        .flat_map(|workload| workload.replicas.iter().map(move |replica| (workload, replica)))
        .map(|(workload, replica)| {
            let exit = replica.last_exit.as_ref();
            let cells = vec![
                Cell::new(clean(&format!("{}.{}", workload.name, replica.index), style)),
                Cell::toned(status::tone(replica.state), status::word(replica.state)),
                Cell::new(replica.pid.map_or("-".to_owned(), |pid| pid.to_string())),
                Cell::new(replica.restarts.to_string()),
                Cell::new(exit.map_or("-".to_owned(), |exit| {
                    format!("{}, {}", exit.code, status::roughly_ago(exit.at, now))
                })),
            ];
            (cells, short(&workload.image))
        })
        .collect();
    let mut page = String::new();
    add_table(
        &mut page,
        &["REPLICA", "STATE", "PID", "RESTARTS", "LAST EXIT", "IMAGE"],
        &rows,
        style,
    );
    page
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
    use expect_test::expect;

    use super::*;
    use crate::cli::status::tests::{NOW, PLAIN, degraded};

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
}
