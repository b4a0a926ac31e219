//! How far an operation is, in one line: a bar for terminals, words for everything else. All pure.

use super::style::Style;
use super::text::{clean, percent, size};
use crate::native_status::{OperationKind, OperationStatus};

/// What is assumed of a terminal that does not tell.
const USUAL_WIDTH: usize = 80;
/// `downloading`, the longest phase that is known.
const PHASE: usize = 11;
/// `1023.9 MiB of 1023.9 MiB`
const BYTES: usize = 24;
/// A shorter bar tells nothing.
const SHORTEST_BAR: usize = 10;

/// `downloading  [#########---------------------]   30 %  3.6 MiB of 12.1 MiB`, never so long that
/// a terminal would begin another line.
pub(super) fn bar(operation: &OperationStatus, style: &Style) -> String {
    // In the last column some terminals wrap already.
    let width = style.width.unwrap_or(USUAL_WIDTH).saturating_sub(1);
    let phase = phase(operation, style);
    let (Some(percent), Some(total)) = shares(operation) else {
        return cut(&without_total(phase, operation.bytes_done), width);
    };
    let head = format!("{phase:<PHASE$}  ");
    let bytes = format!("{} of {}", size(operation.bytes_done), size(total));
    let percent_shown = format!("  {percent:>3} %");
    let used = head.chars().count() + "[]".len() + percent_shown.len();
    let with_bytes = width.saturating_sub(used + 2 + BYTES.max(bytes.len()));
    let (room, bytes) = if with_bytes >= SHORTEST_BAR {
        (with_bytes, format!("  {bytes}"))
    } else {
        (width.saturating_sub(used), String::new())
    };
    let full = usize::try_from(percent).unwrap_or(100) * room / 100;
    let bar = format!("[{}{}]", "#".repeat(full), "-".repeat(room - full));
    cut(&format!("{head}{bar}{percent_shown}{bytes}"), width)
}

/// `downloading, 30 % of 12.1 MiB`: another text for each phase and for each ten percent of it.
pub(super) fn line(operation: &OperationStatus, style: &Style) -> String {
    let phase = phase(operation, style);
    match shares(operation) {
        (Some(percent), Some(total)) => {
            format!("{phase}, {} % of {}", percent / 10 * 10, size(total))
        }
        _ => phase,
    }
}

/// Percent, and of how many bytes.
fn shares(operation: &OperationStatus) -> (Option<u64>, Option<u64>) {
    (percent(operation.bytes_done, operation.bytes_total), operation.bytes_total)
}

/// Only what installs has phases worth telling.
fn phase(operation: &OperationStatus, style: &Style) -> String {
    match (operation.kind, &operation.phase) {
        (OperationKind::Install, Some(phase)) => clean(phase, style),
        (OperationKind::Install, None) => "installing".to_owned(),
        (OperationKind::Remove, _) => "removing".to_owned(),
        (OperationKind::Purge, _) => "purging".to_owned(),
    }
}

fn without_total(phase: String, bytes: u64) -> String {
    if bytes == 0 { phase } else { format!("{phase:<PHASE$}  {} so far", size(bytes)) }
}

fn cut(text: &str, width: usize) -> String {
    text.chars().take(width).collect()
}

#[cfg(test)]
mod tests {
    use coracle_protocol::Timestamp;

    use super::*;
    use crate::cli::status::tests::PLAIN;
    use crate::native_status::OperationState;

    fn operation(phase: &str, bytes_done: u64, bytes_total: Option<u64>) -> OperationStatus {
        OperationStatus {
            id: "operation-1".into(),
            kind: OperationKind::Install,
            target: "org.example:gauge:1.4.2".into(),
            state: OperationState::Running,
            message: None,
            phase: Some(phase.into()),
            bytes_done,
            bytes_total,
            began_at: Timestamp::from_unix(0),
            ended_at: None,
        }
    }

    #[test]
    fn a_bar_fits_its_terminal() {
        const MIB: u64 = 1 << 20;
        let all = Some(12 * MIB);
        for (width, phase, done, total, bar_wanted, line_wanted) in [
            (80, "resolving", 0, None, "resolving", "resolving"),
            (
                80,
                "downloading",
                0,
                all,
                "downloading  [-------------------------------]    0 %  0 B of 12.0 MiB",
                "downloading, 0 % of 12.0 MiB",
            ),
            (
                80,
                "downloading",
                6 * MIB - 1,
                all,
                "downloading  [###############----------------]   49 %  5.9 MiB of 12.0 MiB",
                "downloading, 40 % of 12.0 MiB",
            ),
            (
                80,
                "unpacking",
                12 * MIB,
                all,
                "unpacking    [###############################]  100 %  12.0 MiB of 12.0 MiB",
                "unpacking, 100 % of 12.0 MiB",
            ),
            // More than was said, and nothing of nothing.
            (
                80,
                "verifying",
                3,
                Some(2),
                "verifying    [###############################]  100 %  3 B of 2 B",
                "verifying, 100 % of 2 B",
            ),
            (80, "verifying", 0, Some(0), "verifying", "verifying"),
            (80, "downloading", MIB, None, "downloading  1.0 MiB so far", "downloading"),
            (
                60,
                "downloading",
                9 * MIB,
                all,
                "downloading  [########---]   75 %  9.0 MiB of 12.0 MiB",
                "downloading, 70 % of 12.0 MiB",
            ),
            (
                40,
                "downloading",
                9 * MIB,
                all,
                "downloading  [############-----]   75 %",
                "downloading, 70 % of 12.0 MiB",
            ),
            (40, "a\x1b[2J\r\n", 0, None, "a?[2J  ", "a?[2J  "),
        ] {
            let style = Style { width: Some(width), ..PLAIN };
            let operation = operation(phase, done, total);
            let drawn = bar(&operation, &style);
            assert_eq!(
                (drawn.as_str(), line(&operation, &style).as_str()),
                (bar_wanted, line_wanted)
            );
        }
    }

    #[test]
    fn no_bar_is_longer_than_its_terminal_and_all_of_a_phase_are_as_long() {
        let mut long = operation(&"phase ".repeat(40), 1, Some(u64::MAX));
        for width in 1..200 {
            let style = Style { width: Some(width), ..PLAIN };
            assert!(bar(&long, &style).chars().count() < width, "{width}");
            let ends = |done| {
                let drawn = bar(&operation("downloading", done, Some(1 << 40)), &style);
                drawn.find(']')
            };
            assert_eq!(ends(0), ends(1 << 39), "{width}");
        }
        long.phase = None;
        assert_eq!(line(&long, &PLAIN), "installing, 0 % of 16383.9 PiB");
        let gone =
            OperationStatus { kind: OperationKind::Remove, ..operation("resolving", 0, None) };
        assert_eq!(
            (bar(&gone, &PLAIN).as_str(), line(&gone, &PLAIN).as_str()),
            ("removing", "removing")
        );
    }
}
