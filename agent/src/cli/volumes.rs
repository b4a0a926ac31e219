//! `coracle volumes`: what named volumes there are, and removing them.

use std::path::PathBuf;

use clap::Subcommand;
use coracle_core::name::ResourceName;
use coracle_protocol::Timestamp;

use super::client::Client;
use super::failure::Failure;
use super::style::Style;
use super::text::{Cell, add_table, clean, size};
use super::{Outcome, asking, output, status};
use crate::status::{VolumeStatus, Volumes};

/// Arguments of `coracle volumes`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    /// Print the list as JSON
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Remove volumes that nobody uses, with all that is in them
    #[command(after_help = examples!(
        "coracle volumes rm old-data          asks for the name before it removes it",
        "coracle volumes rm --yes a b         for scripts"
    ))]
    Rm(RmArgs),
}

#[derive(Debug, clap::Args)]
struct RmArgs {
    /// Which volumes
    #[arg(required = true, value_name = "NAME", value_parser = parse_name)]
    names: Vec<String>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Print what became of each as JSON
    #[arg(long)]
    json: bool,
}

fn parse_name(text: &str) -> Result<String, coracle_core::name::InvalidName> {
    ResourceName::parse(text).map(|name| name.to_string())
}

pub(super) fn run(socket: PathBuf, args: &Args) -> Result<Outcome, Failure> {
    let client = Client::new(socket)?;
    if let Some(Command::Rm(args)) = &args.command {
        return remove(&client, args);
    }
    let volumes: Volumes = client.get("/v1/volumes")?;
    if args.json {
        output::print_json(&volumes)?;
    } else {
        output::print(&render(&volumes.volumes, output::now(), &Style::of_stdout()))?;
    }
    Ok(Outcome::Good)
}

/// Each by itself: what became of one does not depend on the others.
fn remove(client: &Client, args: &RmArgs) -> Result<Outcome, Failure> {
    if !args.yes && !asking::is_possible() {
        output::remark("error: nobody can be asked here; give --yes to remove volumes");
        return Ok(Outcome::No);
    }
    let mut removed = Vec::new();
    let mut refused = Vec::new();
    for name in &args.names {
        let question = format!("remove volume {name} with all that is in it? Type its name:");
        if !args.yes && !asking::agreed(&question, name)? {
            refused.push((name, "not confirmed".to_owned()));
            continue;
        }
        match client.delete(&format!("/v1/volumes/{name}")) {
            Ok(()) => removed.push(name),
            Err(Failure::Denied { message, .. }) => refused.push((name, message)),
            Err(failure) => return Err(failure),
        }
    }
    if args.json {
        let refused: Vec<_> = refused
            .iter()
            .map(|(name, reason)| serde_json::json!({ "name": name, "reason": reason }))
            .collect();
        output::print_json(&serde_json::json!({ "removed": removed, "refused": refused }))?;
    } else {
        for name in removed {
            output::print(&format!("{name}: removed\n"))?;
        }
        let style = Style::of_stdout();
        for (name, reason) in &refused {
            output::remark(&format!("error: {name}: {}", clean(reason, &style)));
        }
    }
    Ok(Outcome::from(refused.is_empty()))
}

fn render(volumes: &[VolumeStatus], now: Timestamp, style: &Style) -> String {
    let rows: Vec<_> = volumes
        .iter()
        .map(|volume| {
            let bytes = size(volume.bytes);
            let bytes = if volume.complete { bytes } else { format!("over {bytes}") };
            let used = match volume.last_used {
                _ if !volume.mounted_by.is_empty() => "now".to_owned(),
                Some(at) => status::roughly_ago(at, now),
                None => "-".to_owned(),
            };
            let cells =
                vec![Cell::new(clean(&volume.name, style)), Cell::new(bytes), Cell::new(used)];
            (cells, users(volume))
        })
        .collect();
    let mut page = String::new();
    add_table(&mut page, &["VOLUME", "SIZE", "LAST USED", "USED BY"], &rows, style);
    page
}

/// The workloads that are ordered with it, then replicas that have it and are not theirs.
fn users(volume: &VolumeStatus) -> String {
    let of_ordered = |replica: &&String| {
        let workload = replica.rsplit_once('.').map_or("", |(workload, _)| workload);
        !volume.used_by.iter().any(|user| user == workload)
    };
    let others = volume.mounted_by.iter().filter(of_ordered);
    let all: Vec<_> = volume.used_by.iter().chain(others).map(String::as_str).collect();
    if all.is_empty() { "-".to_owned() } else { all.join(", ") }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::cli::status::tests::{NOW, PLAIN};

    #[test]
    fn one_line_for_each_volume() {
        let volume = |name: &str, bytes, used_by: &[&str], mounted_by: &[&str]| VolumeStatus {
            name: name.into(),
            bytes,
            complete: name != "huge",
            used_by: used_by.iter().map(|user| (*user).into()).collect(),
            mounted_by: mounted_by.iter().map(|user| (*user).into()).collect(),
            last_used: (name != "new").then(|| Timestamp::from_unix(NOW.unix() - 7200)),
        };
        let volumes = [
            volume("data", 12_690_000, &["web"], &["web.0", "old.1"]),
            volume("huge", 1 << 33, &[], &["batch.0"]),
            volume("left", 4096, &[], &[]),
            volume("new", 4096, &["cam"], &[]),
        ];
        expect![[r#"
            VOLUME  SIZE          LAST USED  USED BY
            data    12.1 MiB      now        web, old.1
            huge    over 8.0 GiB  now        batch.0
            left    4.0 KiB       2 h ago    -
            new     4.0 KiB       -          cam
        "#]]
        .assert_eq(&render(&volumes, NOW, &PLAIN));
    }
}
