//! `coracle service`: the native services by their coordinates, and what somebody does to them by
//! hand.

use std::path::PathBuf;

use clap::Subcommand;
use coracle_core::artifact::{Coordinate, InvalidArtifact};

use super::client::Client;
use super::failure::Failure;
use super::operate::{self, Named};
use super::style::{Style, Tone};
use super::text::{Cell, add_fact, add_table_of_long_names, clean, size};
use super::{Outcome, output, purge, status};
use crate::native_status::{ServiceStatus, Services};
use crate::status::Operation;

/// Subcommands of `coracle service`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the services that are ordered, that still run, or of which a directory is left
    #[command(after_help = examples!(
        "coracle service list",
        "coracle service list --json | jq -r '.services[] | select(.workload == null).coordinate'"
    ))]
    List(ListArgs),
    /// Tell everything that is known of a service
    #[command(after_help = examples!(
        "coracle service show a.gauge.alice.line-1",
        "cd \"$(coracle service show --json a.gauge.alice.line-1 | jq -r .directory)\""
    ))]
    Show(ShowArgs),
    /// Let services run again that were stopped or drained by hand
    #[command(after_help = examples!(
        "coracle service start a.gauge.alice.line-1",
        "coracle service start --wait 60 a.gauge.alice.line-1"
    ))]
    Start(OperateArgs),
    /// Stop services at once until they are started by hand
    #[command(after_help = examples!(
        "coracle service stop a.gauge.alice.line-1",
        "coracle service stop --wait 30 a.gauge.alice.line-1 b.gauge.alice.line-1"
    ))]
    Stop(OperateArgs),
    /// Stop services as `stop` does, but first let them go on without new work for as long as ordered
    #[command(after_help = examples!("coracle service drain --wait 120 a.gauge.alice.line-1"))]
    Drain(OperateArgs),
    /// Make services anew
    #[command(after_help = examples!("coracle service restart --wait 60 a.gauge.alice.line-1"))]
    Restart(OperateArgs),
    /// Remove the runtime directories of services that are stopped or not ordered any more
    #[command(after_help = examples!(
        "coracle service purge a.gauge.alice.line-1     asks for the name before it removes it",
        "coracle service purge --yes a.gauge.alice.line-1 b.gauge.alice.line-1"
    ))]
    Purge(purge::ServiceArgs),
}

/// Arguments of `coracle service list`.
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// Print the list as JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `coracle service show`.
#[derive(Debug, clap::Args)]
pub struct ShowArgs {
    /// Which service, as INSTANCE.SERVICE.USER.CELL
    #[arg(value_parser = parse_coordinate)]
    coordinate: Coordinate,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `coracle service start`, `stop`, `drain` and `restart`.
#[derive(Debug, clap::Args)]
pub struct OperateArgs {
    /// Which services, as INSTANCE.SERVICE.USER.CELL; with each, its whole workload
    #[arg(required = true, value_name = "COORDINATE", value_parser = parse_coordinate)]
    coordinates: Vec<Coordinate>,
    /// Wait until it is done, at most that many seconds; exit code 1 if it is not
    #[arg(long, value_name = "SECONDS")]
    wait: Option<u64>,
    /// Print what became of each as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn parse_coordinate(text: &str) -> Result<Coordinate, InvalidArtifact> {
    Coordinate::parse(text)
}

pub(super) fn run(socket: PathBuf, command: &Command) -> Result<Outcome, Failure> {
    let client = Client::new(socket)?;
    match command {
        Command::List(args) => {
            let all = services(&client)?;
            if args.json {
                output::print_json(&all)?;
            } else {
                output::print(&list(&all.services, &Style::of_stdout()))?;
            }
            Ok(Outcome::Good)
        }
        Command::Show(args) => {
            let one: ServiceStatus = client.get(&format!("/v1/services/{}", args.coordinate))?;
            if args.json {
                output::print_json(&one)?;
            } else {
                output::print(&page(&one, &Style::of_stdout()))?;
            }
            Ok(Outcome::Good)
        }
        Command::Start(args) => operate(&client, Operation::Start, args),
        Command::Stop(args) => operate(&client, Operation::Stop, args),
        Command::Drain(args) => operate(&client, Operation::Drain, args),
        Command::Restart(args) => operate(&client, Operation::Restart, args),
        Command::Purge(args) => purge::run_for_services(&client, args),
    }
}

/// All there are.
pub(super) fn services(client: &Client) -> Result<Services, Failure> {
    client.get("/v1/services")
}

fn operate(client: &Client, operation: Operation, args: &OperateArgs) -> Result<Outcome, Failure> {
    // Only who waits must know whose they are.
    let known = if args.wait.is_some() { services(client)?.services } else { Vec::new() };
    let named = |coordinate: &Coordinate| {
        let name = coordinate.to_string();
        let at = known.iter().find(|service| service.coordinate == name);
        let workload = at.and_then(|service| service.workload.clone());
        Named { resource: format!("services/{name}"), name, workload }
    };
    let all: Vec<_> = args.coordinates.iter().map(named).collect();
    operate::operate(client, operation, &all, args.wait, args.json)
}

const NOTHING: &str = "-";

fn list(services: &[ServiceStatus], style: &Style) -> String {
    let rows: Vec<_> = services
        .iter()
        .map(|service| {
            let text = |text: Option<&str>| text.map_or(NOTHING.to_owned(), |t| clean(t, style));
            let (tone, state) = state(service);
            let cells = vec![
                Cell::new(clean(&service.coordinate, style)),
                Cell::new(text(service.workload.as_deref())),
                Cell::toned(tone, state),
                Cell::new(service.bytes.map_or(NOTHING.to_owned(), size)),
            ];
            (cells, text(service.artifact.as_deref()))
        })
        .collect();
    let mut page = String::new();
    let heads = ["COORDINATE", "WORKLOAD", "STATE", "SIZE", "ARTIFACT"];
    add_table_of_long_names(&mut page, &heads, &rows, style);
    page
}

fn state(service: &ServiceStatus) -> (Tone, &'static str) {
    match service.state {
        Some(state) => (status::tone(state), status::word(state)),
        None => (Tone::Plain, NOTHING),
    }
}

fn page(service: &ServiceStatus, style: &Style) -> String {
    let mut page = String::new();
    let mut fact = |label: &str, text: &str| add_fact(&mut page, label, text, style);
    fact("Coordinate", &service.coordinate);
    let nobody = "none; no order names it any more";
    fact("Workload", service.workload.as_deref().unwrap_or(nobody));
    let mut optional = |label: &str, text: Option<&str>| {
        if let Some(text) = text {
            fact(label, text);
        }
    };
    optional("Replica", service.replica.as_deref());
    optional("Artifact", service.artifact.as_deref());
    optional("State", service.state.map(status::word));
    optional("PID", service.pid.map(|pid| pid.to_string()).as_deref());
    fact("Directory", &service.directory);
    fact("Size", &service.bytes.map_or("the directory is not there".to_owned(), size));
    page
}

#[cfg(test)]
mod tests {
    use coracle_protocol::reported::ReplicaState;
    use expect_test::expect;

    use super::*;
    use crate::cli::status::tests::PLAIN;

    fn service(coordinate: &str) -> ServiceStatus {
        ServiceStatus {
            coordinate: coordinate.into(),
            workload: Some("gauge".into()),
            replica: Some("gauge.0".into()),
            artifact: Some("org.example.plant:gauge:1.4.2".into()),
            state: Some(ReplicaState::Running),
            pid: Some(4711),
            directory: "/data/native/runtime/line-1/alice/gauge/a".into(),
            bytes: Some(12_690_000),
        }
    }

    /// One of which only the directory is left.
    fn left(coordinate: &str) -> ServiceStatus {
        ServiceStatus {
            workload: None,
            replica: None,
            artifact: None,
            state: None,
            pid: None,
            ..service(coordinate)
        }
    }

    #[test]
    fn one_line_for_each_service() {
        let new = ServiceStatus {
            artifact: Some("tools:gauge:2".into()),
            bytes: None,
            state: Some(ReplicaState::Pulling),
            ..service("a-1.gauge.alice.line-1")
        };
        let all = [service("a.gauge.alice.line-1"), new, left("b.old.bob.line-2")];
        expect![[r#"
            COORDINATE              WORKLOAD  STATE    SIZE      ARTIFACT
            a.gauge.alice.line-1    gauge     running  12.1 MiB
                org.example.plant:gauge:1.4.2
            a-1.gauge.alice.line-1  gauge     pulling  -         tools:gauge:2
            b.old.bob.line-2        -         -        12.1 MiB  -
        "#]]
        .assert_eq(&list(&all, &PLAIN));
    }

    #[test]
    fn everything_of_one_service() {
        expect![[r#"
            Coordinate  a.gauge.alice.line-1
            Workload    gauge
            Replica     gauge.0
            Artifact    org.example.plant:gauge:1.4.2
            State       running
            PID         4711
            Directory   /data/native/runtime/line-1/alice/gauge/a
            Size        12.1 MiB
        "#]]
        .assert_eq(&page(&service("a.gauge.alice.line-1"), &PLAIN));
        let nothing = ServiceStatus { bytes: None, ..left("b.old.bob.line-2") };
        expect![[r#"
            Coordinate  b.old.bob.line-2
            Workload    none; no order names it any more
            Directory   /data/native/runtime/line-1/alice/gauge/a
            Size        the directory is not there
        "#]]
        .assert_eq(&page(&nothing, &PLAIN));
    }
}
