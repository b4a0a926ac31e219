//! Laying out text: cleaning, wrapping, tables, sizes and times in words. All pure.

use super::style::{Style, Tone};

/// Text of unknown origin made harmless for a terminal: one line, no control characters, nothing
/// that turns the writing direction, and only ASCII where no more can be shown.
pub(super) fn clean(text: &str, style: &Style) -> String {
    text.chars()
        .map(|c| match c {
            '\n' | '\r' | '\t' => ' ',
            c if c.is_ascii_graphic() || c == ' ' || c == GLUE => c,
            c if c.is_control() || is_invisible(c) => '?',
            c if style.utf8 => c,
            '\u{2018}' | '\u{2019}' => '\'',
            '\u{201c}' | '\u{201d}' => '"',
            '\u{2013}' | '\u{2014}' => '-',
            _ => '?',
        })
        .collect()
}

/// A space at which no line is broken.
const GLUE: char = '\u{a0}';

/// The text as one word for [`add_wrapped`], such as a number with its unit.
pub(super) fn glue(text: &str) -> String {
    text.replace(' ', "\u{a0}")
}

pub(super) fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Lines of at most `width` characters, broken at spaces, inside a word only if it is too long.
pub(super) fn wrap(text: &str, width: Option<usize>) -> Vec<String> {
    let Some(width) = width else { return vec![text.to_owned()] };
    let width = width.max(1);
    let mut lines = Vec::new();
    let mut line = String::new();
    let mut used = 0;
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        let mut word: Vec<char> = word.chars().collect();
        if used > 0 && used + 1 + word.len() > width {
            lines.push(std::mem::take(&mut line));
            used = 0;
        }
        if used > 0 {
            line.push(' ');
            used += 1;
        }
        while used + word.len() > width {
            let rest = word.split_off(width - used);
            line.extend(word);
            lines.push(std::mem::take(&mut line));
            (word, used) = (rest, 0);
        }
        used += word.len();
        line.extend(word);
    }
    if used > 0 || lines.is_empty() {
        lines.push(line);
    }
    lines
}

/// Adds `text` after `indent` spaces, wrapped; the first line goes on where `page` ends, which must
/// be at column `indent`.
pub(super) fn add_wrapped(page: &mut String, text: &str, indent: usize, style: &Style) {
    let room = style.width.map(|width| width.saturating_sub(indent).max(20));
    for (i, line) in wrap(&clean(text, style), room).iter().enumerate() {
        if i > 0 {
            page.extend(std::iter::repeat_n(' ', indent));
        }
        page.extend(line.chars().map(|c| if c == GLUE { ' ' } else { c }));
        page.push('\n');
    }
}

/// Adds a paragraph that starts at column `indent`.
pub(super) fn add_paragraph(page: &mut String, text: &str, indent: usize, style: &Style) {
    page.extend(std::iter::repeat_n(' ', indent));
    add_wrapped(page, text, indent, style);
}

/// A cell of a table, already clean.
#[derive(Clone, Debug)]
pub(super) struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), tone: Tone::Plain }
    }

    pub(super) fn toned(tone: Tone, text: impl Into<String>) -> Self {
        Self { text: text.into(), tone }
    }
}

/// Cells wider than this get a line of their own, for the sake of all other rows.
const WIDEST_FIRST: usize = 24;
/// What the last column of a table needs at least.
const NARROWEST_LAST: usize = 20;

/// Adds a table: all columns as wide as they need, the last one wrapped. Where too little room
/// would be left for it, the last cell follows on lines of its own.
pub(super) fn add_table(
    page: &mut String,
    heads: &[&str],
    rows: &[(Vec<Cell>, String)],
    style: &Style,
) {
    let widths = widths(heads, rows, WIDEST_FIRST);
    add_rows(page, heads, rows, &widths, style);
}

/// Adds a table as [`add_table`], with a first column as wide as the others and a little of the last
/// one allow: for long names, where there is room for them.
pub(super) fn add_table_of_long_names(
    page: &mut String,
    heads: &[&str],
    rows: &[(Vec<Cell>, String)],
    style: &Style,
) {
    let others: usize = widths(heads, rows, 0).iter().skip(1).map(|width| width + 2).sum();
    let left = style.width.map_or(usize::MAX, |w| w.saturating_sub(others + 2 + NARROWEST_LAST));
    let widths = widths(heads, rows, left.max(WIDEST_FIRST));
    add_rows(page, heads, rows, &widths, style);
}

/// Of all columns but the last.
fn widths(heads: &[&str], rows: &[(Vec<Cell>, String)], widest_first: usize) -> Vec<usize> {
    let columns = heads.split_last().map_or(&[][..], |(_, columns)| columns);
    let width = |(i, head): (usize, &&str)| {
        let cells = rows.iter().filter_map(|(cells, _)| cells.get(i));
        let widest = cells.map(|cell| cell.text.chars().count());
        let fitting = widest.filter(|width| i > 0 || *width <= widest_first).max();
        fitting.unwrap_or(0).max(head.len())
    };
    columns.iter().enumerate().map(width).collect()
}

fn add_rows(
    page: &mut String,
    heads: &[&str],
    rows: &[(Vec<Cell>, String)],
    widths: &[usize],
    style: &Style,
) {
    let (last, columns) = heads.split_last().unwrap_or((&"", &[]));
    let indent = widths.iter().map(|width| width + 2).sum();
    let heads = columns.iter().map(|head| Cell::toned(Tone::Quiet, *head)).collect::<Vec<_>>();
    add_cells(page, &heads, widths, style);
    page.push_str(&style.paint(Tone::Quiet, last));
    page.push('\n');
    for (cells, last) in rows {
        add_cells(page, cells, widths, style);
        let left = style.width.map_or(usize::MAX, |width| width.saturating_sub(indent));
        if last.is_empty() {
            page.truncate(page.trim_end().len());
            page.push('\n');
        } else if left < NARROWEST_LAST || (!last.contains(' ') && last.chars().count() > left) {
            page.truncate(page.trim_end().len());
            page.push('\n');
            add_paragraph(page, last, 4, style);
        } else {
            add_wrapped(page, last, indent, style);
        }
    }
}

fn add_cells(page: &mut String, cells: &[Cell], widths: &[usize], style: &Style) {
    for (i, (cell, width)) in cells.iter().zip(widths).enumerate() {
        let used = cell.text.chars().count();
        page.push_str(&style.paint(cell.tone, &cell.text));
        if i == 0 && used > *width {
            page.push('\n');
            page.extend(std::iter::repeat_n(' ', *width));
        }
        page.extend(std::iter::repeat_n(' ', width.saturating_sub(used) + 2));
    }
}

/// Column at which facts start.
pub(super) const FACTS_AT: usize = 12;

/// Adds what a fact is called; the fact itself goes on at [`FACTS_AT`].
pub(super) fn add_label(page: &mut String, label: &str, style: &Style) {
    page.push_str(&style.paint(Tone::Quiet, label));
    if label.len() + 2 > FACTS_AT {
        page.push('\n');
        page.extend(std::iter::repeat_n(' ', FACTS_AT));
    } else {
        page.extend(std::iter::repeat_n(' ', FACTS_AT - label.len()));
    }
}

/// Adds a fact with what it is called.
pub(super) fn add_fact(page: &mut String, label: &str, fact: &str, style: &Style) {
    add_label(page, label, style);
    add_wrapped(page, fact, FACTS_AT, style);
}

/// How much of it is done, if that can be told.
pub(super) fn percent(done: u64, total: Option<u64>) -> Option<u64> {
    let total = total.filter(|total| *total > 0)?;
    u64::try_from(u128::from(done) * 100 / u128::from(total)).ok().map(|percent| percent.min(100))
}

/// `12.1 MiB`
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let unit = (bytes.ilog2() as usize / 10).clamp(1, UNITS.len());
    let tenths = (u128::from(bytes) * 10) >> (10 * unit);
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit - 1])
}

/// `12 s`, `4 min 5 s`, `2 h 10 min`, `3 d 4 h`
pub(super) fn span(seconds: u64) -> String {
    let two = |large: u64, large_unit: &str, small: u64, small_unit: &str| {
        if small == 0 {
            format!("{large} {large_unit}")
        } else {
            format!("{large} {large_unit} {small} {small_unit}")
        }
    };
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => two(seconds / 60, "min", seconds % 60, "s"),
        3600..86_400 => two(seconds / 3600, "h", seconds % 3600 / 60, "min"),
        _ => two(seconds / 86_400, "d", seconds % 86_400 / 3600, "h"),
    }
}

/// `1 replica`, `2 replicas`
pub(super) fn count(number: usize, one: &str) -> String {
    if number == 1 { format!("1 {one}") } else { format!("{number} {one}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Style = Style { width: Some(40), colour: false, utf8: false };

    #[test]
    fn remote_text_cannot_drive_the_terminal() {
        let evil = "a\x1b[2Jb\nc\u{202e}d\u{9b}31m\u{e9}";
        assert_eq!(clean(evil, &PLAIN), "a?[2Jb c?d?31m?");
        assert_eq!(clean(evil, &Style { utf8: true, ..PLAIN }), "a?[2Jb c?d?31m\u{e9}");
    }

    #[test]
    fn lines_break_at_spaces_and_only_if_they_must_in_words() {
        assert_eq!(wrap("one two three", Some(7)), ["one two", "three"]);
        assert_eq!(wrap("abcdefghij kl", Some(4)), ["abcd", "efgh", "ij", "kl"]);
        assert_eq!(wrap("one two three", None), ["one two three"]);
        assert_eq!(wrap("", Some(4)), [""]);
        assert_eq!(wrap("ab abcdefgh", Some(4)), ["ab", "abcd", "efgh"]);
    }

    #[test]
    fn sizes_and_times_in_words() {
        let sizes = [0, 1023, 1024, 12_690_000, u64::MAX].map(size);
        assert_eq!(sizes, ["0 B", "1023 B", "1.0 KiB", "12.1 MiB", "16383.9 PiB"]);
        let spans = [0, 59, 60, 245, 3600, 7800, 273_600].map(span);
        assert_eq!(spans, ["0 s", "59 s", "1 min", "4 min 5 s", "1 h", "2 h 10 min", "3 d 4 h"]);
    }
}
