//! `coracle link`: the connection to the broker, and what it has carried today.

use std::path::PathBuf;

use super::client::Client;
use super::failure::Failure;
use super::style::Style;
use super::text::{Cell, add_fact, add_table, size};
use super::{Outcome, output, status};
use crate::status::LinkDay;

/// Arguments of `coracle link`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(socket: PathBuf, args: &Args) -> Result<Outcome, Failure> {
    let day: LinkDay = Client::new(socket)?.get("/v1/link")?;
    if args.json {
        output::print_json(&day)?;
    } else {
        let line = status::link_line(day.link.as_ref(), None, output::now());
        output::print(&render(&day, &line, &Style::of_stdout()))?;
    }
    Ok(Outcome::Good)
}

fn render(day: &LinkDay, line: &str, style: &Style) -> String {
    let mut page = String::new();
    add_fact(&mut page, "Link", line, style);
    let sums = day.today.kinds.iter().fold((0u64, 0u64), |sum, kind| {
        (sum.0.saturating_add(kind.sent), sum.1.saturating_add(kind.received))
    });
    let limit = |cap: Option<u64>| cap.map_or("-".to_owned(), size);
    let row = |name: &str, (sent, received): (u64, u64), cap: Option<u64>| {
        let held_back = day.held_back.iter().any(|kind| kind == name);
        let state = match held_back {
            _ if name == "total" => "",
            true => "held back until the next day",
            false => "may be sent",
        };
        let cells = vec![
            Cell::new(name),
            Cell::new(size(sent)),
            Cell::new(size(received)),
            Cell::new(limit(cap)),
        ];
        (cells, state.to_owned())
    };
    let mut rows: Vec<_> = day
        .today
        .kinds
        .iter()
        .map(|kind| row(&kind.kind, (kind.sent, kind.received), kind.cap))
        .collect();
    rows.push(row("total", sums, day.cap));
    page.push('\n');
    add_table(&mut page, &["TODAY", "SENT", "RECEIVED", "AT MOST", "STATE"], &rows, style);
    page
}

#[cfg(test)]
mod tests {
    use coracle_protocol::health::{KindUse, LinkUse};

    use super::*;

    #[test]
    fn each_kind_has_a_line_and_what_is_held_back_says_so() {
        let kind = |kind: &str, sent, cap| KindUse { kind: kind.into(), sent, received: 7, cap };
        let day = LinkDay {
            link: None,
            today: LinkUse {
                day: 1,
                kinds: vec![kind("reports", 2048, None), kind("logs", 1_000_000, Some(1_000_000))],
            },
            cap: Some(2_000_000),
            held_back: vec!["logs".into()],
        };
        let page = render(&day, "none", &Style { width: None, colour: false, utf8: false });
        let line = |word: &str| page.lines().find(|line| line.starts_with(word)).unwrap();
        assert!(line("reports").contains("may be sent"), "{page}");
        assert!(line("logs").contains("held back until the next day"), "{page}");
        assert!(line("total").contains(&size(1_002_048)), "{page}");
    }
}
