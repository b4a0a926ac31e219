//! Signal names as orders and images write them, to this machine's numbers.

use nix::sys::signal::Signal;

/// First and last real-time signal that programs may use (glibc keeps two below for itself).
const REAL_TIME: std::ops::RangeInclusive<u32> = 34..=64;

/// The number of a signal written as `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3` or `SIGRTMAX-1`; `None`
/// if there is no such signal.
pub(super) fn number(text: &str) -> Option<u32> {
    if let Ok(number) = text.parse::<u32>() {
        return (1..=*REAL_TIME.end()).contains(&number).then_some(number);
    }
    let name = text.strip_prefix("SIG").unwrap_or(text);
    let (min, max) = (*REAL_TIME.start(), *REAL_TIME.end());
    let real_time = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(""), _) => Some(min),
        (_, Some("")) => Some(max),
        (Some(up), _) => Some(min.saturating_add(up.strip_prefix('+')?.parse().ok()?)),
        (_, Some(down)) => Some(max.saturating_sub(down.strip_prefix('-')?.parse().ok()?)),
        (None, None) => None,
    };
    match real_time {
        Some(number) => REAL_TIME.contains(&number).then_some(number),
        None => {
            format!("SIG{name}").parse::<Signal>().ok().and_then(|s| u32::try_from(s as i32).ok())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn every_way_to_write_a_signal() {
        for (text, wanted) in [
            ("SIGTERM", Some(15)),
            ("TERM", Some(15)),
            ("SIGKILL", Some(9)),
            ("9", Some(9)),
            ("SIGRTMIN", Some(34)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX-1", Some(63)),
            ("SIGRTMIN+99", None),
            ("SIGRTMAX-99", None),
            ("SIGRTMIN3", None),
            ("SIGNONE", None),
            ("", None),
            ("0", None),
            ("65", None),
            ("-1", None),
        ] {
            assert_eq!(number(text), wanted, "{text}");
        }
    }
}
