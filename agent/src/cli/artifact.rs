//! `coracle artifact`: which artifacts are installed, and installing and removing them by hand.

use std::path::PathBuf;

use clap::Subcommand;
use coracle_core::artifact::{ArtifactId, InvalidArtifact};
use coracle_protocol::Timestamp;
use hyper::Method;

use super::client::Client;
use super::failure::Failure;
use super::style::Style;
use super::text::{Cell, add_fact, add_table_of_long_names, clean, size};
use super::watching::watch;
use super::{Outcome, output, status};
use crate::native_status::{ArtifactStatus, Artifacts, InstallRequest, OperationStatus};

/// Subcommands of `coracle artifact`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the artifacts that are installed, with size, age and users
    #[command(after_help = examples!(
        "coracle artifact list",
        "coracle artifact list --json | jq -r '.artifacts[] | select(.used_by == []).artifact'"
    ))]
    List(ListArgs),
    /// Tell everything that is known of an artifact that is installed
    #[command(after_help = examples!(
        "coracle artifact show org.example:gauge:1.4.2",
        "coracle artifact show --json org.example:gauge:1.4.2 | jq -r .digest"
    ))]
    Show(ShowArgs),
    /// Install an artifact, which then stays until it is removed by hand
    #[command(after_help = examples!(
        "coracle artifact install org.example:gauge:1.4.2",
        "coracle artifact install org.example:gauge:1.4.2 --repository https://repo.example/test",
        "coracle artifact install --no-wait org.example:gauge:1.4.2     goes on without us"
    ))]
    Install(InstallArgs),
    /// Remove an artifact that no workload uses, or may return to
    #[command(after_help = examples!("coracle artifact remove org.example:gauge:1.4.1"))]
    Remove(RemoveArgs),
}

/// Arguments of `coracle artifact list`.
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// Print the list as JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `coracle artifact show`.
#[derive(Debug, clap::Args)]
pub struct ShowArgs {
    /// Which artifact, as GROUP:NAME:VERSION
    #[arg(value_name = "NAME", value_parser = parse_artifact)]
    artifact: ArtifactId,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `coracle artifact install`.
#[derive(Debug, clap::Args)]
pub struct InstallArgs {
    /// Which artifact, as GROUP:NAME:VERSION
    #[arg(value_name = "NAME", value_parser = parse_artifact)]
    artifact: ArtifactId,
    /// SHA-256 of its ZIP; without it, what the repository says beside it
    #[arg(long, value_name = "HEX", value_parser = parse_sha256)]
    sha256: Option<String>,
    /// Repository that has it; without it, those of the configuration
    #[arg(long, value_name = "URL")]
    repository: Option<String>,
    #[command(flatten)]
    waiting: WaitingArgs,
}

/// Arguments of `coracle artifact remove`.
#[derive(Debug, clap::Args)]
pub struct RemoveArgs {
    /// Which artifact, as GROUP:NAME:VERSION
    #[arg(value_name = "NAME", value_parser = parse_artifact)]
    artifact: ArtifactId,
    #[command(flatten)]
    waiting: WaitingArgs,
}

/// What both take.
#[derive(Clone, Copy, Debug, clap::Args)]
struct WaitingArgs {
    /// Only begin it; the agent goes on by itself
    #[arg(long)]
    no_wait: bool,
    /// Print the operation as JSON, and no progress
    #[arg(long)]
    json: bool,
}

fn parse_artifact(text: &str) -> Result<ArtifactId, InvalidArtifact> {
    ArtifactId::parse(text)
}

fn parse_sha256(text: &str) -> Result<String, String> {
    if text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err("a SHA-256 is written as 64 hexadecimal digits".to_owned())
    }
}

pub(super) fn run(socket: PathBuf, command: &Command) -> Result<Outcome, Failure> {
    let client = Client::new(socket)?;
    match command {
        Command::List(args) => {
            let all: Artifacts = client.get("/v1/artifacts")?;
            if args.json {
                output::print_json(&all)?;
            } else {
                output::print(&list(&all.artifacts, output::now(), &Style::of_stdout()))?;
            }
            Ok(Outcome::Good)
        }
        Command::Show(args) => {
            let one: ArtifactStatus = client.get(&place(&args.artifact))?;
            if args.json {
                output::print_json(&one)?;
            } else {
                output::print(&page(&one, output::now(), &Style::of_stdout()))?;
            }
            Ok(Outcome::Good)
        }
        Command::Install(args) => {
            let request = InstallRequest {
                artifact: args.artifact.to_string(),
                sha256: args.sha256.clone(),
                repository: args.repository.clone(),
            };
            let body = serde_json::to_vec(&request)
                .map_err(|error| Failure::Client { action: "ask", source: error.into() })?;
            let begun = client.begin(Method::POST, "/v1/artifacts", body)?;
            go_on(&client, begun, args.waiting)
        }
        Command::Remove(args) => {
            let begun = client.begin(Method::DELETE, &place(&args.artifact), Vec::new())?;
            go_on(&client, begun, args.waiting)
        }
    }
}

/// Nothing in a name means anything in a path.
fn place(artifact: &ArtifactId) -> String {
    format!("/v1/artifacts/{artifact}")
}

fn go_on(client: &Client, begun: OperationStatus, how: WaitingArgs) -> Result<Outcome, Failure> {
    let style = Style::of_stdout();
    if !how.no_wait {
        return watch(client, begun, how.json)?.conclude(how.json, &style);
    }
    if how.json {
        output::print_json(&begun)?;
    } else {
        let (target, id) = (clean(&begun.target, &style), clean(&begun.id, &style));
        output::print(&format!("{target}: begun as {id}\n"))?;
    }
    Ok(Outcome::Good)
}

fn list(artifacts: &[ArtifactStatus], now: Timestamp, style: &Style) -> String {
    let rows: Vec<_> = artifacts
        .iter()
        .map(|artifact| {
            let cells = vec![
                Cell::new(clean(&artifact.artifact, style)),
                Cell::new(size(artifact.unpacked_bytes)),
                Cell::new(status::roughly_ago(artifact.installed_at, now)),
                Cell::new(if artifact.by_hand { "hand" } else { "order" }),
            ];
            (cells, users(artifact))
        })
        .collect();
    let mut page = String::new();
    let heads = ["ARTIFACT", "SIZE", "INSTALLED", "BY", "USED BY"];
    add_table_of_long_names(&mut page, &heads, &rows, style);
    page
}

fn users(artifact: &ArtifactStatus) -> String {
    if artifact.used_by.is_empty() { "-".to_owned() } else { artifact.used_by.join(", ") }
}

fn page(artifact: &ArtifactStatus, now: Timestamp, style: &Style) -> String {
    let mut page = String::new();
    let mut fact = |label: &str, text: &str| add_fact(&mut page, label, text, style);
    fact("Artifact", &artifact.artifact);
    match artifact.digest.strip_prefix("sha256:") {
        Some(digits) => fact("SHA-256", digits),
        None => fact("Digest", &artifact.digest),
    }
    let entries = artifact.entries;
    let entries = if entries == 1 { "1 entry".to_owned() } else { format!("{entries} entries") };
    fact("Size", &format!("{}, {entries}", size(artifact.unpacked_bytes)));
    fact("ZIP", &size(artifact.zip_bytes));
    let at = artifact.installed_at;
    let ago = status::roughly_ago(at, now);
    // With a clock that was set back it is the time itself.
    let ago = if ago.ends_with(" ago") { format!(", {ago}") } else { String::new() };
    fact("Installed", &format!("{at}{ago}"));
    let kept = if artifact.by_hand { "by hand: it stays until it is removed" } else { "by order" };
    fact("Wanted", kept);
    fact("Used by", &users(artifact));
    fact("Directory", &artifact.directory);
    page
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::cli::status::tests::{NOW, PLAIN};

    fn artifact(name: &str, by_hand: bool, used_by: &[&str]) -> ArtifactStatus {
        ArtifactStatus {
            artifact: name.into(),
            digest: format!("sha256:{}", "0123456789abcdef".repeat(4)),
            zip_bytes: 4_100_000,
            unpacked_bytes: 12_690_000,
            entries: 31,
            installed_at: Timestamp::from_unix(NOW.unix() - 7200),
            by_hand,
            used_by: used_by.iter().map(|user| (*user).into()).collect(),
            directory: "/data/native/software/org.example/gauge/1.4.2".into(),
        }
    }

    #[test]
    fn one_line_for_each_artifact() {
        let all = [
            artifact("org.example.plant:gauge:1.4.2", false, &["gauge", "gauge-of-hall-3"]),
            artifact("org.example.plant:gauge:1.5.0-SNAPSHOT+20260301", true, &[]),
            artifact("tools:strace:6.1", true, &["a\x1b[2J"]),
        ];
        expect![[r#"
            ARTIFACT                       SIZE      INSTALLED  BY     USED BY
            org.example.plant:gauge:1.4.2  12.1 MiB  2 h ago    order  gauge,
                                                                       gauge-of-hall-3
            org.example.plant:gauge:1.5.0-SNAPSHOT+20260301
                                           12.1 MiB  2 h ago    hand   -
            tools:strace:6.1               12.1 MiB  2 h ago    hand   a?[2J
        "#]]
        .assert_eq(&list(&all, NOW, &PLAIN));
        expect![[r#"
            ARTIFACT                                         SIZE      INSTALLED  BY     USED BY
            org.example.plant:gauge:1.4.2                    12.1 MiB  2 h ago    order  gauge, gauge-of-hall-3
            org.example.plant:gauge:1.5.0-SNAPSHOT+20260301  12.1 MiB  2 h ago    hand   -
            tools:strace:6.1                                 12.1 MiB  2 h ago    hand   a?[2J
        "#]]
        .assert_eq(&list(&all, NOW, &Style { width: None, ..PLAIN }));
        expect![[r#"
            ARTIFACT  SIZE  INSTALLED  BY  USED BY
        "#]]
        .assert_eq(&list(&[], NOW, &PLAIN));
    }

    #[test]
    fn everything_of_one_artifact() {
        let one = artifact("org.example.plant:gauge:1.4.2", true, &["gauge"]);
        expect![[r#"
            Artifact    org.example.plant:gauge:1.4.2
            SHA-256     0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
            Size        12.1 MiB, 31 entries
            ZIP         3.9 MiB
            Installed   2026-03-01T10:00:00Z, 2 h ago
            Wanted      by hand: it stays until it is removed
            Used by     gauge
            Directory   /data/native/software/org.example/gauge/1.4.2
        "#]]
        .assert_eq(&page(&one, NOW, &PLAIN));
        let later = ArtifactStatus {
            installed_at: Timestamp::from_unix(NOW.unix() + 60),
            ..artifact("a:b:1", false, &[])
        };
        assert!(page(&later, NOW, &PLAIN).contains("Installed   2026-03-01T12:01:00Z\n"));
    }
}
