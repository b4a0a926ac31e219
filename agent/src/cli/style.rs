//! How text is shown where it goes to. In: the terminal and the environment. Out: [`Style`].

use std::env;
use std::io::IsTerminal;

/// What a serial line has, and what is assumed of a terminal that does not tell.
const USUAL_WIDTH: usize = 80;
const NARROWEST: usize = 40;

/// How text is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Style {
    /// Columns; `None` for no end, so that programs get one line for each fact.
    pub(super) width: Option<usize>,
    pub(super) colour: bool,
    /// Whether characters beyond ASCII can be shown.
    pub(super) utf8: bool,
}

/// What a word means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    Plain,
    Good,
    Busy,
    Bad,
    /// A heading or what matters less.
    Quiet,
}

impl Style {
    /// Of standard output.
    pub(super) fn of_stdout() -> Self {
        let terminal = std::io::stdout().is_terminal();
        let width = match columns_wanted() {
            Some(columns) => Some(columns),
            None if terminal => Some(
                terminal_size::terminal_size_of(std::io::stdout())
                    .map_or(USUAL_WIDTH, |(width, _)| width.0.into()),
            ),
            None => None,
        };
        Self {
            width: width.map(|width| width.max(NARROWEST)),
            colour: terminal && colour_allowed(),
            utf8: utf8_locale(),
        }
    }

    /// The text in its tone, where there is colour.
    pub(super) fn paint(&self, tone: Tone, text: &str) -> String {
        let code = match tone {
            Tone::Plain => return text.to_owned(),
            Tone::Good => "32",
            Tone::Busy => "33",
            Tone::Bad => "31",
            Tone::Quiet => "2",
        };
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Whether the environment allows colour (<https://no-color.org>).
pub(super) fn colour_allowed() -> bool {
    env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && env::var_os("TERM").is_some_and(|term| !term.is_empty() && term != "dumb")
}

fn columns_wanted() -> Option<usize> {
    env::var("COLUMNS").ok()?.parse().ok().filter(|columns| *columns > 0)
}

fn utf8_locale() -> bool {
    let set = ["LC_ALL", "LC_CTYPE", "LANG"]
        .into_iter()
        .find_map(|name| env::var(name).ok().filter(|value| !value.is_empty()));
    set.is_some_and(|locale| {
        let locale = locale.to_ascii_lowercase();
        locale.contains("utf-8") || locale.contains("utf8")
    })
}
