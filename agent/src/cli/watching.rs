//! Watching what takes long until it ends, which it does without us as well.
//!
//! In: an operation that was begun. Out: how it ended; and on the way its progress, as a line that is
//! drawn again on a terminal, as a line for each step elsewhere.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use hyper::StatusCode;

use super::client::Client;
use super::failure::Failure;
use super::interrupts::Interrupts;
use super::style::Style;
use super::text::clean;
use super::{Outcome, output, progress};
use crate::clock::monotonic_now;
use crate::native_status::{OperationState, OperationStatus};

/// Between two looks, and so between two lines that are drawn: a slow serial line has time for both.
const PERIOD: Duration = Duration::from_millis(250);
/// So long an agent may be away that starts anew.
const AWAY: Duration = Duration::from_secs(60);

/// What became of watching.
#[derive(Debug)]
pub(super) enum Watched {
    /// It ended.
    Ended(OperationStatus),
    /// The agent does not know it any more.
    Forgotten(OperationStatus),
    /// Somebody does not want to watch any more.
    Interrupted(OperationStatus, Interrupts),
}

/// Watches an operation to its end.
pub(super) fn watch(
    client: &Client,
    begun: OperationStatus,
    quiet: bool,
) -> Result<Watched, Failure> {
    let interrupts = Interrupts::hold()?;
    let mut teller = Teller::new(quiet);
    let mut newest = begun.clone();
    let mut answered = monotonic_now();
    let watched = loop {
        if newest.state != OperationState::Running {
            break Watched::Ended(newest);
        }
        teller.tell(&newest)?;
        if interrupts.came_within(PERIOD)? {
            break Watched::Interrupted(begun, interrupts);
        }
        match client.operation(&begun.id) {
            Ok(now) if is_the_same(&begun, &now) => (newest, answered) = (now, monotonic_now()),
            Ok(_) | Err(Failure::Denied { status: StatusCode::NOT_FOUND, .. }) => {
                break Watched::Forgotten(begun);
            }
            Err(failure) if failure.may_pass() && answered.elapsed() < AWAY => {}
            Err(failure) => {
                teller.finish()?;
                return Err(failure);
            }
        }
    };
    teller.finish()?;
    Ok(watched)
}

/// An agent that started anew counts from one again.
fn is_the_same(begun: &OperationStatus, now: &OperationStatus) -> bool {
    let which = |operation: &OperationStatus| {
        (operation.kind, operation.target.clone(), operation.began_at)
    };
    which(begun) == which(now)
}

impl Watched {
    /// Tells what came of it, and ends as we were asked to.
    pub(super) fn conclude(self, json: bool, style: &Style) -> Result<Outcome, Failure> {
        match self {
            Self::Ended(operation) => {
                if json {
                    output::print_json(&operation)?;
                }
                let good = operation.state == OperationState::Succeeded;
                match message(&operation, style) {
                    _ if json => {}
                    message if good => output::print(&format!("{message}\n"))?,
                    message => output::remark(&format!("error: {message}")),
                }
                Ok(Outcome::from(good))
            }
            Self::Forgotten(operation) => {
                output::remark(&format!("error: {}", forgotten(&operation)));
                Ok(Outcome::No)
            }
            Self::Interrupted(operation, interrupts) => {
                let id = clean(&operation.id, style);
                output::remark(&format!(
                    "the agent goes on with it, as {id}; the same command watches it again"
                ));
                interrupts.obey()?;
                Ok(Outcome::No)
            }
        }
    }
}

/// What came of an operation that ended.
pub(super) fn message(operation: &OperationStatus, style: &Style) -> String {
    let target = clean(&operation.target, style);
    match (&operation.message, operation.state) {
        (Some(message), OperationState::Failed) if !message.contains(&operation.target) => {
            format!("{target}: {}", clean(message, style))
        }
        (Some(message), _) => clean(message, style),
        (None, OperationState::Failed) => format!("{target}: it failed"),
        (None, _) => format!("{target}: done"),
    }
}

/// Why it is not known what became of it.
pub(super) fn forgotten(operation: &OperationStatus) -> String {
    format!(
        "{}: the agent does not know {} any more, as after a start of the agent; whether it was \
         done is not known",
        operation.target, operation.id
    )
}

/// Tells progress.
#[derive(Debug)]
struct Teller {
    how: How,
    started: Instant,
    /// What stands on the screen, or was printed last.
    told: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// One line, drawn again.
    Bar,
    /// A line for each step.
    Lines,
    Nothing,
}

impl Teller {
    fn new(quiet: bool) -> Self {
        let how = match quiet {
            true => How::Nothing,
            false if io::stdout().is_terminal() => How::Bar,
            false => How::Lines,
        };
        Self { how, started: monotonic_now(), told: String::new() }
    }

    fn tell(&mut self, operation: &OperationStatus) -> Result<(), Failure> {
        // Each time anew: windows change their size.
        let style = Style::of_stdout();
        let text = match self.how {
            How::Bar => progress::bar(operation, &style),
            How::Lines => progress::line(operation, &style),
            How::Nothing => return Ok(()),
        };
        if text == self.told {
            return Ok(());
        }
        match self.how {
            How::Bar => output::print(&redrawn(&self.told, &text))?,
            How::Lines | How::Nothing => {
                let elapsed = self.started.elapsed().as_secs();
                output::print(&format!("{elapsed:>4} s  {text}\n"))?;
            }
        }
        self.told = text;
        Ok(())
    }

    /// Leaves an empty line to whatever is said next.
    fn finish(&mut self) -> Result<(), Failure> {
        if self.how == How::Bar && !self.told.is_empty() {
            output::print(&(redrawn(&self.told, "") + "\r"))?;
            self.told.clear();
        }
        Ok(())
    }
}

/// Draws a line over another one, with what every terminal understands.
fn redrawn(over: &str, text: &str) -> String {
    format!("\r{text:<width$}", width = over.chars().count())
}
