//! `coracle apply`: gives the agent a signed order, and waits for it to be carried out if asked to.

use std::path::PathBuf;

use coracle_core::text;
use coracle_protocol::limits::MAX_ENVELOPE_BYTES;
use coracle_protocol::reported::Phase;
use coracle_protocol::{Code, Envelope, Refusal};

use super::client::Client;
use super::failure::Failure;
use super::style::Style;
use super::validate::place;
use super::waiting::Waiting;
use super::{Outcome, input, output, status};
use crate::status::{Applied, Status};

/// Arguments of `coracle apply`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Signed order, as `coracle-fleet order sign` makes it; - for standard input
    file: PathBuf,
    /// Wait until everything is as ordered, at most that many seconds; exit code 1 if it is not
    #[arg(long, value_name = "SECONDS")]
    wait: Option<u64>,
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(socket: PathBuf, args: &Args) -> Result<Outcome, Failure> {
    let bytes = input::read(&args.file, MAX_ENVELOPE_BYTES)?;
    let client = Client::new(socket)?;
    let applied = match readable(&bytes) {
        Ok(()) => client.apply(bytes)?,
        Err(refusal) => {
            Applied { generation: None, accepted: false, unchanged: false, refusals: vec![refusal] }
        }
    };
    let style = Style::of_stdout();
    if args.json {
        output::print_json(&applied)?;
    } else {
        output::print(&render(&applied, &style))?;
    }
    if !(applied.accepted || applied.unchanged) {
        return Ok(Outcome::No);
    }
    let Some(seconds) = args.wait else { return Ok(Outcome::Good) };
    let waited = Waiting::new(&client, seconds, args.json)
        .until(|status| status::progress(status, &style), |status| judge(status, &applied))?;
    Ok(waited.unwrap_or_else(|| {
        output::remark("error: not everything is as ordered yet; see `coracle status`");
        Outcome::No
    }))
}

/// What can be told without the agent, for a better answer.
fn readable(bytes: &[u8]) -> Result<(), Refusal> {
    let unsigned = text::parse(bytes)
        .is_ok_and(|value| value.get("workloads").is_some() && value.get("payload").is_none());
    if unsigned {
        return Err(Refusal::whole(
            Code::UNSIGNED,
            "this order is not signed; sign it by `coracle-fleet order sign`",
        ));
    }
    Envelope::decode(bytes).map(drop)
}

fn render(applied: &Applied, style: &Style) -> String {
    let order = applied.generation.map_or("order".to_owned(), |n| format!("generation {n}"));
    if applied.unchanged {
        return format!("{order}: unchanged, it was in force already\n");
    }
    if applied.accepted {
        return format!("{order}: accepted\n");
    }
    let mut text = format!("{order}: refused, nothing was changed\n");
    for refusal in &applied.refusals {
        text.push_str(&format!("  {}\n", place(refusal, style)));
    }
    text
}

/// Whether there is nothing left to wait for.
fn judge(status: &Status, applied: &Applied) -> Option<Outcome> {
    let reported = &status.reported;
    match applied.generation {
        Some(wanted) if reported.generation_applied > wanted => {
            output::remark("error: a newer order has taken its place; see `coracle status`");
            Some(Outcome::No)
        }
        Some(wanted) if reported.generation_applied < wanted => None,
        _ if reported.phase == Phase::Converged => Some(Outcome::Good),
        _ => {
            let given_up = status::given_up(status);
            let first = given_up.first()?;
            output::remark(&format!(
                "error: the update of {first} was taken back; see `coracle status`"
            ));
            Some(Outcome::No)
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(applied: Applied, expect: Expect) {
        let style = Style { width: Some(80), colour: false, utf8: false };
        expect.assert_eq(&render(&applied, &style));
    }

    #[test]
    fn answers_in_words() {
        let base =
            Applied { generation: Some(7), accepted: true, unchanged: false, refusals: vec![] };
        check(
            base.clone(),
            expect![[r#"
            generation 7: accepted
        "#]],
        );
        check(
            Applied { unchanged: true, ..base.clone() },
            expect![[r#"
            generation 7: unchanged, it was in force already
        "#]],
        );
        let refusals = vec![
            Refusal::new("/generation", Code::OLD_GENERATION, "generation 7 is in force already"),
            Refusal::whole(Code::UNSIGNED, "the order carries no signature"),
        ];
        check(
            Applied { accepted: false, generation: None, refusals, ..base },
            expect![[r#"
            order: refused, nothing was changed
              /generation: generation 7 is in force already [old-generation]
              the order carries no signature [unsigned]
        "#]],
        );
    }
}
