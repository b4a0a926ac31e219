//! `coracle purge` and `coracle service purge`: removing the runtime directories of native services,
//! which nothing else does.

use std::path::PathBuf;

use coracle_core::artifact::Coordinate;
use coracle_core::name::WorkloadName;
use hyper::Method;

use super::client::Client;
use super::failure::Failure;
use super::style::Style;
use super::text::{clean, size};
use super::watching::{Watched, forgotten, message, watch};
use super::{Outcome, asking, output, service};
use crate::native_status::{OperationState, ServiceStatus};

/// Arguments of `coracle purge`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which services: of a workload, or one as INSTANCE.SERVICE.USER.CELL
    #[arg(required = true, value_name = "WORKLOAD|COORDINATE", value_parser = parse_either)]
    names: Vec<String>,
    #[command(flatten)]
    how: How,
}

/// Arguments of `coracle service purge`.
#[derive(Debug, clap::Args)]
pub struct ServiceArgs {
    /// Which services, as INSTANCE.SERVICE.USER.CELL
    #[arg(required = true, value_name = "COORDINATE", value_parser = service::parse_coordinate)]
    coordinates: Vec<Coordinate>,
    #[command(flatten)]
    how: How,
}

#[derive(Clone, Copy, Debug, clap::Args)]
struct How {
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Print what became of each as JSON
    #[arg(long)]
    json: bool,
}

/// Only coordinates have dots.
fn parse_either(text: &str) -> Result<String, String> {
    if text.contains('.') {
        Coordinate::parse(text).map(|at| at.to_string()).map_err(|error| error.to_string())
    } else {
        let name = WorkloadName::parse(text).map_err(|error| error.to_string())?;
        Ok(name.as_str().to_owned())
    }
}

pub(super) fn run(socket: PathBuf, args: &Args) -> Result<Outcome, Failure> {
    purge(&Client::new(socket)?, &args.names, args.how)
}

pub(super) fn run_for_services(client: &Client, args: &ServiceArgs) -> Result<Outcome, Failure> {
    let names: Vec<_> = args.coordinates.iter().map(ToString::to_string).collect();
    purge(client, &names, args.how)
}

/// Each by itself: what becomes of one does not depend on the others.
fn purge(client: &Client, names: &[String], how: How) -> Result<Outcome, Failure> {
    if !how.yes && !asking::is_possible() {
        output::remark("error: nobody can be asked here; give --yes to remove runtime directories");
        return Ok(Outcome::No);
    }
    let style = Style::of_stdout();
    let all = service::services(client)?.services;
    let mut answers = Answers { json: how.json, purged: Vec::new(), refused: Vec::new() };
    for name in names {
        let meant = meant_by(name, &all);
        if meant.is_empty() {
            answers.refuse(name, unknown(name));
        } else if !how.yes && !asking::agreed(&question(name, &meant, &style), name)? {
            answers.refuse(name, "not confirmed".to_owned());
        } else {
            for service in meant {
                if let Some(watched) = purge_one(client, &service.coordinate, &mut answers)? {
                    answers.finish()?;
                    return watched.conclude(how.json, &style);
                }
            }
        }
    }
    answers.finish()
}

/// Returns what was not watched to its end.
fn purge_one(
    client: &Client,
    coordinate: &str,
    answers: &mut Answers,
) -> Result<Option<Watched>, Failure> {
    let style = Style::of_stdout();
    let path = format!("/v1/services/{coordinate}/purge");
    let begun = match client.begin(Method::POST, &path, Vec::new()) {
        Ok(begun) => begun,
        Err(Failure::Denied { message, .. }) => {
            answers.refuse(coordinate, message);
            return Ok(None);
        }
        Err(failure) => return Err(failure),
    };
    match watch(client, begun, answers.json)? {
        Watched::Ended(operation) if operation.state == OperationState::Succeeded => {
            answers.purged(coordinate, &message(&operation, &style))?;
        }
        Watched::Ended(operation) => {
            answers.refuse(coordinate, operation.message.unwrap_or("it failed".to_owned()));
        }
        Watched::Forgotten(operation) => answers.refuse(coordinate, forgotten(&operation)),
        interrupted @ Watched::Interrupted(..) => return Ok(Some(interrupted)),
    }
    Ok(None)
}

/// What became of each.
#[derive(Debug)]
struct Answers {
    json: bool,
    purged: Vec<String>,
    refused: Vec<(String, String)>,
}

impl Answers {
    fn purged(&mut self, name: &str, message: &str) -> Result<(), Failure> {
        self.purged.push(name.to_owned());
        if self.json { Ok(()) } else { output::print(&format!("{message}\n")) }
    }

    fn refuse(&mut self, name: &str, reason: String) {
        if !self.json {
            let reason = clean(&reason, &Style::of_stdout());
            output::remark(&format!("error: {name}: {reason}"));
        }
        self.refused.push((name.to_owned(), reason));
    }

    fn finish(&self) -> Result<Outcome, Failure> {
        if self.json {
            let refused = self.refused.iter();
            let refused: Vec<_> = refused
                .map(|(name, reason)| serde_json::json!({ "name": name, "reason": reason }))
                .collect();
            let answer = serde_json::json!({ "purged": self.purged, "refused": refused });
            output::print_json(&answer)?;
        }
        Ok(Outcome::from(self.refused.is_empty()))
    }
}

/// The services of a workload, or the one at a coordinate.
fn meant_by<'a>(name: &str, all: &'a [ServiceStatus]) -> Vec<&'a ServiceStatus> {
    let is_meant = |service: &&ServiceStatus| {
        service.coordinate == name || service.workload.as_deref() == Some(name)
    };
    all.iter().filter(is_meant).collect()
}

fn unknown(name: &str) -> String {
    if name.contains('.') {
        "no service stands there".to_owned()
    } else {
        "no service is of that workload; what is left of one that is not ordered any more is named \
         by its coordinate, see `coracle service list`"
            .to_owned()
    }
}

fn question(name: &str, meant: &[&ServiceStatus], style: &Style) -> String {
    let mut text = match meant {
        [_] => "remove this runtime directory with all that is in it?\n".to_owned(),
        all => {
            format!("remove these {} runtime directories with all that is in them?\n", all.len())
        }
    };
    for service in meant {
        let directory = clean(&service.directory, style);
        let bytes = service.bytes.map_or("not there".to_owned(), size);
        text.push_str(&format!("  {directory} ({bytes})\n"));
    }
    text + &format!("Type {name}:")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::status::tests::PLAIN;

    fn service(coordinate: &str, workload: Option<&str>, bytes: Option<u64>) -> ServiceStatus {
        ServiceStatus {
            coordinate: coordinate.into(),
            workload: workload.map(Into::into),
            replica: None,
            artifact: None,
            state: None,
            pid: None,
            directory: format!("/r/{coordinate}"),
            bytes,
        }
    }

    #[test]
    fn a_workload_means_all_of_its_services() {
        let all = [
            service("a.gauge.alice.x", Some("gauge"), Some(4096)),
            service("a-1.gauge.alice.x", Some("gauge"), None),
            service("b.gauge.alice.x", None, Some(0)),
        ];
        let meant = |name| {
            meant_by(name, &all).iter().map(|service| &*service.coordinate).collect::<Vec<_>>()
        };
        assert_eq!(meant("gauge"), ["a.gauge.alice.x", "a-1.gauge.alice.x"]);
        assert_eq!(meant("b.gauge.alice.x"), ["b.gauge.alice.x"]);
        assert!(meant("alice").is_empty() && meant("c.gauge.alice.x").is_empty());
        assert_eq!(
            question("gauge", &meant_by("gauge", &all), &PLAIN),
            "remove these 2 runtime directories with all that is in them?\n  \
             /r/a.gauge.alice.x (4.0 KiB)\n  /r/a-1.gauge.alice.x (not there)\nType gauge:"
        );
        let one = question("b.gauge.alice.x", &meant_by("b.gauge.alice.x", &all), &PLAIN);
        assert!(one.starts_with("remove this runtime directory with all that is in it?"), "{one}");
    }

    #[test]
    fn names_are_of_workloads_or_of_services() {
        assert_eq!(parse_either("gauge"), Ok("gauge".into()));
        assert_eq!(parse_either("a.gauge.alice.x"), Ok("a.gauge.alice.x".into()));
        for bad in ["", "Gauge", "a.b", "../x", "a.b.c.d.e"] {
            assert!(parse_either(bad).is_err(), "{bad}");
        }
    }
}
