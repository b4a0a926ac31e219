//! What the demo shows. In: steps, as closures. Out: one line for each with the time it took; on a
//! terminal also what is being done, and a progress bar. Writing never fails: whoever closed the
//! output does not want it, and the demo has to clean up all the same.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use coracle_testbed::Result;

const BAR: u64 = 30;
/// Between two lines about a download where there is no terminal.
const PLAIN_PERIOD: Duration = Duration::from_secs(2);

/// Standard output.
pub(crate) struct Screen {
    terminal: bool,
    colour: bool,
    last_plain: Option<Instant>,
}

impl Screen {
    pub(crate) fn of_stdout() -> Self {
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let terminal = io::stdout().is_terminal() && !dumb;
        let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { terminal, colour, last_plain: None }
    }

    fn write(&self, text: &str) {
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).ok();
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// A line as it is.
    pub(crate) fn line(&self, text: &str) {
        self.write(&format!("{text}\n"));
    }

    /// The title of a group of steps.
    pub(crate) fn heading(&self, text: &str) {
        self.line(&format!("\n{}", self.paint("1", text)));
    }

    /// Does a step and tells what it did, in the words that it gives, and how long it took.
    pub(crate) fn step<T>(
        &mut self,
        doing: &str,
        work: impl FnOnce(&mut Self) -> Result<(T, String)>,
    ) -> Result<T> {
        let begun = Instant::now();
        if self.terminal {
            self.write(&self.paint("2", &format!("          {doing} ...")));
        }
        let outcome = work(self);
        self.erase();
        let (value, done) = outcome?;
        let time = format!("{:>6.2} s", begun.elapsed().as_secs_f64());
        let mut lines = done.lines();
        let first = lines.next().unwrap_or_default();
        self.line(&format!("{}  {first}", self.paint("32", &time)));
        lines.for_each(|line| self.line(&format!("          {line}")));
        Ok(value)
    }

    /// What went wrong, and what may help to understand it.
    pub(crate) fn failure(&self, reason: &str, details: &[(&str, String)]) {
        self.line(&format!("{}  {reason}", self.paint("31;1", "  FAILED")));
        for (title, text) in details.iter().filter(|(_, text)| !text.trim().is_empty()) {
            self.heading(title);
            text.lines().for_each(|line| self.line(&format!("  {line}")));
        }
    }

    /// A download: a bar on a terminal, a line now and then elsewhere.
    pub(crate) fn progress(&mut self, phase: &str, done: u64, total: Option<u64>) {
        let total = total.unwrap_or(0);
        let amount = match (done, total) {
            (0, 0) => String::new(),
            (done, 0) => format!(", {}", size(done)),
            (done, total) => format!(", {} of {}", size(done), size(total)),
        };
        if self.terminal {
            let filled = (done.min(total) * BAR).checked_div(total).unwrap_or(0);
            let bar = "#".repeat(filled as usize) + &".".repeat((BAR - filled) as usize);
            self.write(&format!("\r\x1b[K          [{bar}] {phase}{amount}"));
        } else if self.last_plain.get_or_insert_with(Instant::now).elapsed() > PLAIN_PERIOD {
            self.last_plain = Some(Instant::now());
            self.line(&format!("          {phase}{amount}"));
        }
    }

    /// Leaves the full bar standing above what comes next.
    pub(crate) fn progress_done(&mut self, total: u64) {
        if self.terminal {
            self.progress("pulled", total, Some(total));
            self.write("\n");
        }
        self.last_plain = None;
    }

    fn erase(&self) {
        if self.terminal {
            self.write("\r\x1b[K");
        }
    }
}

/// Bytes in decimal units, as registries and disks count them.
pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.0} kB", bytes as f64 / 1e3),
        _ => format!("{:.1} MB", bytes as f64 / 1e6),
    }
}
