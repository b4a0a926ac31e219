//! `coracle events`: what happened, and what happens.

use std::path::PathBuf;
use std::time::Duration;

use coracle_protocol::Timestamp;

use super::client::Client;
use super::failure::Failure;
use super::style::{Style, Tone};
use super::text::add_wrapped;
use super::{Outcome, output};
use crate::status::{EventsPage, Happening};

/// Seconds that the agent holds back an answer while nothing happens.
const WAIT: u64 = 50;
/// Between two tries to reach an agent that went away.
const PAUSE: Duration = Duration::from_secs(1);

/// Arguments of `coracle events`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Go on until interrupted, also when the agent is started anew
    #[arg(long, short)]
    follow: bool,
    /// Leave out events up to the one with this sequence, as --json shows it
    #[arg(long, value_name = "SEQUENCE", default_value_t = 0)]
    after: u64,
    /// Print one line of JSON for each event
    #[arg(long)]
    json: bool,
}

pub(super) fn run(socket: PathBuf, args: &Args) -> Result<Outcome, Failure> {
    let client = Client::new(socket)?;
    let style = Style::of_stdout();
    let page = client.events(args.after, 0)?;
    show(&page, args.json, &style)?;
    if !args.follow {
        if page.happenings.events.is_empty() && !args.json {
            output::remark(&format!("no events since {}", since(args.after, &page)));
        }
        return Ok(Outcome::Good);
    }
    follow(&client, page, args.json, &style)
}

fn since(after: u64, page: &EventsPage) -> String {
    match after {
        0 => format!("the agent started at {}", page.agent_started),
        after => format!("number {after}"),
    }
}

/// Ends only by a failure, or by a signal.
fn follow(
    client: &Client,
    first: EventsPage,
    json: bool,
    style: &Style,
) -> Result<Outcome, Failure> {
    let mut reader = Reader { after: first.newest, agent_started: first.agent_started };
    let mut away = false;
    loop {
        let page = match client.events(reader.after, WAIT) {
            Ok(page) => page,
            Err(failure) if failure.may_pass() => {
                if !away {
                    output::remark(&format!("-- {failure}; trying again --"));
                    away = true;
                }
                client.pause(PAUSE);
                continue;
            }
            Err(failure) => return Err(failure),
        };
        away = false;
        if reader.take_up(&page) {
            show(&page, json, style)?;
        } else {
            output::remark("-- the agent was started anew --");
        }
    }
}

/// Where a reader is.
#[derive(Debug, PartialEq, Eq)]
struct Reader {
    after: u64,
    agent_started: Timestamp,
}

impl Reader {
    /// Whether the page goes on from where we are; if not, we are at the beginning of another run
    /// of the agent.
    fn take_up(&mut self, page: &EventsPage) -> bool {
        let same = page.agent_started == self.agent_started && page.newest >= self.after;
        self.agent_started = page.agent_started;
        self.after = if same { page.newest } else { 0 };
        same
    }
}

fn show(page: &EventsPage, json: bool, style: &Style) -> Result<(), Failure> {
    let dropped = page.happenings.dropped;
    if !json {
        return output::print(&render(page, style));
    }
    if dropped > 0 {
        output::remark(&dropped_note(dropped));
    }
    page.happenings.events.iter().try_for_each(output::print_json_line)
}

fn dropped_note(dropped: u64) -> String {
    match dropped {
        1 => "-- 1 older event was dropped --".to_owned(),
        n => format!("-- {n} older events were dropped --"),
    }
}

fn render(page: &EventsPage, style: &Style) -> String {
    let mut text = String::new();
    if page.happenings.dropped > 0 {
        text.push_str(&dropped_note(page.happenings.dropped));
        text.push('\n');
    }
    for event in &page.happenings.events {
        add_event(&mut text, event, style);
    }
    text
}

fn add_event(text: &mut String, event: &Happening, style: &Style) {
    let at = event.at.to_string();
    text.push_str(&style.paint(Tone::Quiet, &at));
    text.push_str("  ");
    let message = match &event.replica {
        Some(replica) => format!("{replica}: {}", event.message),
        None => event.message.clone(),
    };
    add_wrapped(text, &message, at.len() + 2, style);
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::status::Happenings;

    fn event(sequence: u64, replica: Option<&str>, message: &str) -> Happening {
        Happening {
            sequence,
            at: Timestamp::from_unix(1_772_366_400 + sequence),
            kind: "x".into(),
            replica: replica.map(str::to_owned),
            message: message.into(),
        }
    }

    fn page(events: Vec<Happening>, dropped: u64) -> EventsPage {
        let newest = events.last().map_or(0, |event| event.sequence);
        EventsPage {
            happenings: Happenings { events, dropped },
            newest,
            agent_started: Timestamp::from_unix(5),
        }
    }

    #[test]
    fn lines_are_wrapped_under_the_message() {
        let style = Style { width: Some(80), colour: false, utf8: false };
        let events = vec![
            event(3, None, "generation 7 accepted: 3 workloads"),
            event(4, Some("web.0"), "started, pid 4711"),
            event(
                5,
                Some("a-rather-long-workload.11"),
                "ended with exit code 1; next try in 12 s, because it ended 5 times in a row",
            ),
        ];
        expect![[r#"
            -- 2 older events were dropped --
            2026-03-01T12:00:03Z  generation 7 accepted: 3 workloads
            2026-03-01T12:00:04Z  web.0: started, pid 4711
            2026-03-01T12:00:05Z  a-rather-long-workload.11: ended with exit code 1; next
                                  try in 12 s, because it ended 5 times in a row
        "#]]
        .assert_eq(&render(&page(events, 2), &style));
    }

    #[test]
    fn a_restarted_agent_is_noticed() {
        let mut reader = Reader { after: 4, agent_started: Timestamp::from_unix(5) };
        assert!(reader.take_up(&page(vec![event(6, None, "x")], 0)));
        assert_eq!(reader.after, 6);
        assert!(!reader.take_up(&page(vec![event(2, None, "x")], 0)));
        assert_eq!(reader.after, 0);
        let mut other = page(vec![event(9, None, "x")], 0);
        other.agent_started = Timestamp::from_unix(50);
        assert!(!reader.take_up(&other));
    }
}
