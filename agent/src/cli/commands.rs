//! `coracle commands`: what the fleet asked of this gateway, and what became of it.

use std::path::PathBuf;

use coracle_protocol::Timestamp;

use super::client::Client;
use super::failure::Failure;
use super::style::Style;
use super::text::{Cell, add_table, clean};
use super::{Outcome, output, status};
use crate::status::{CommandStatus, CommandsStatus};

/// Arguments of `coracle commands`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print the list as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(socket: PathBuf, args: &Args) -> Result<Outcome, Failure> {
    let commands: CommandsStatus = Client::new(socket)?.get("/v1/commands")?;
    if args.json {
        output::print_json(&commands)?;
    } else {
        output::print(&render(&commands.commands, output::now(), &Style::of_stdout()))?;
    }
    Ok(Outcome::Good)
}

fn render(commands: &[CommandStatus], now: Timestamp, style: &Style) -> String {
    let rows: Vec<_> = commands
        .iter()
        .map(|command| {
            let what = match &command.target {
                Some(target) => format!("{} {target}", command.kind),
                None => command.kind.clone(),
            };
            let cells = vec![
                Cell::new(command.state.as_str()),
                Cell::new(status::roughly_ago(command.at, now)),
                Cell::new(clean(&what, style)),
            ];
            let why = command.reason.as_deref().or(command.message.as_deref());
            (cells, clean(why.unwrap_or("-"), style))
        })
        .collect();
    let mut page = String::new();
    add_table(&mut page, &["STATE", "SINCE", "COMMAND", "WHY"], &rows, style);
    page
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use coracle_protocol::CommandState;

    use super::*;
    use crate::cli::status::tests::{NOW, PLAIN};

    #[test]
    fn one_line_for_each_command() {
        let command =
            |kind: &str, target: Option<&str>, state, reason: Option<&str>| CommandStatus {
                id: "01a226b9-6d00-7566-adc7-877caa85fe83".into(),
                kind: kind.into(),
                target: target.map(Into::into),
                state,
                reason: reason.map(Into::into),
                message: Some("web stops, until it is started by hand".into()),
                made_at: Timestamp::from_unix(NOW.unix() - 70),
                at: Timestamp::from_unix(NOW.unix() - 60),
                received: false,
            };
        let commands = [
            command("stop-workload", Some("web"), CommandState::Succeeded, None),
            command("reboot", None, CommandState::Rejected, Some("not-allowed")),
        ];
        expect![[r#"
            STATE      SINCE      COMMAND            WHY
            succeeded  1 min ago  stop-workload web  web stops, until it is started by hand
            rejected   1 min ago  reboot             not-allowed
        "#]]
        .assert_eq(&render(&commands, NOW, &PLAIN));
    }
}
