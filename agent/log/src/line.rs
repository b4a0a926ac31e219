//! One line of a log file: `TIME STREAM F|P TEXT`, the format of Kubernetes' container runtimes.
//!
//! TIME is RFC 3339 in UTC with microseconds, always 27 bytes. STREAM is `stdout`, `stderr`, or
//! `coracle` for what we say ourselves. `F` ends the container's line, `P` is a part of it: the next
//! line of the same stream goes on. TEXT is what the container wrote, byte for byte.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::clock;

/// Bytes of a written time.
const TIME: usize = 27;
/// Most bytes that come before the text.
pub const LONGEST_HEADER: usize = TIME + " coracle F ".len();

/// Text of the mark that is written when a container starts.
pub const START: &[u8] = b"start";
/// How the text begins that tells of lines that could not be kept.
pub const LOST: &str = "lost";

/// Who said it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stream {
    /// The container, on standard output.
    Stdout,
    /// The container, on standard error.
    Stderr,
    /// We: a start, lines that could not be kept.
    Coracle,
}

impl Stream {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
            Self::Coracle => "coracle",
        }
    }
}

/// Wall-clock time, microseconds since the Unix epoch. The clock may be wrong, and go back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(u64);

impl Time {
    /// The last microsecond of the year 9999.
    const LAST: u64 = 253_402_300_799_999_999;

    /// Now.
    pub fn now() -> Self {
        Self::from(clock::wall_now())
    }

    /// From microseconds since the Unix epoch.
    pub fn from_micros(micros: u64) -> Self {
        Self(micros.min(Self::LAST))
    }

    /// Microseconds since the Unix epoch.
    pub fn micros(self) -> u64 {
        self.0
    }

    /// This long before.
    pub fn before(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(span.as_micros()).unwrap_or(u64::MAX)))
    }

    /// As it is written: `2026-03-01T12:00:00.000000Z`.
    pub fn text(self) -> [u8; TIME] {
        let (seconds, micros) = (self.0 / 1_000_000, self.0 % 1_000_000);
        let (year, month, day) = date(seconds / 86_400);
        let second = seconds % 86_400;
        let mut text = *b"0000-00-00T00:00:00.000000Z";
        let mut put = |at: usize, digits: usize, mut number: u64| {
            for place in text[at..at + digits].iter_mut().rev() {
                *place = b'0' + (number % 10) as u8;
                number /= 10;
            }
        };
        put(0, 4, year);
        put(5, 2, month);
        put(8, 2, day);
        put(11, 2, second / 3600);
        put(14, 2, second / 60 % 60);
        put(17, 2, second % 60);
        put(20, 6, micros);
        text
    }

    /// Reads what [`text`](Self::text) writes, and nothing else.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let text: &[u8; TIME] = text.try_into().ok()?;
        let digit = |at: usize| text[at].is_ascii_digit().then(|| u64::from(text[at] - b'0'));
        let number = |at: usize, digits: usize| {
            (at..at + digits).try_fold(0, |n, at| Some(n * 10 + digit(at)?))
        };
        let (year, month, day) = (number(0, 4)?, number(5, 2)?, number(8, 2)?);
        if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day)
        {
            return None;
        }
        let (hour, minute, second) = (number(11, 2)?, number(14, 2)?, number(17, 2)?);
        let within = hour * 3600 + minute * 60 + second;
        let time = Self((days(year, month, day) * 86_400 + within) * 1_000_000 + number(20, 6)?);
        // Separators, and days that no month has.
        (time.text() == *text).then_some(time)
    }
}

impl From<SystemTime> for Time {
    fn from(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self::from_micros(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text().iter().try_for_each(|&byte| fmt::Write::write_char(f, byte.into()))
    }
}

/// Days from 1970-01-01 to a day of the Gregorian calendar. Years are counted from March, so that
/// the leap day is the last one.
fn days(year: u64, month: u64, day: u64) -> u64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let before = year * 365 + year / 4 - year / 100 + year / 400;
    before + (month * 153 + 2) / 5 + day - 1 - 719_468
}

/// Year, month and day of a day counted from 1970-01-01.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (next, date) = (u64::from(month >= 10), day - (153 * month + 2) / 5 + 1);
    (era * 400 + year + next, if month < 10 { month + 3 } else { month - 9 }, date)
}

/// One line as it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// When we read it from the container.
    pub time: Time,
    /// Who said it.
    pub stream: Stream,
    /// Whether the next line of the same stream goes on.
    pub partial: bool,
    /// What was said.
    pub text: &'a [u8],
}

impl<'a> Line<'a> {
    /// Reads a line without its newline. `None` for what is not one of ours, such as the rest of one
    /// after a power cut.
    pub fn parse(line: &'a [u8]) -> Option<Self> {
        let (time, rest) = line.split_at_checked(TIME)?;
        let time = Time::parse(time)?;
        let streams = [Stream::Stdout, Stream::Stderr, Stream::Coracle];
        let (stream, rest) = streams.into_iter().find_map(|stream| {
            let rest = rest.strip_prefix(b" ")?.strip_prefix(stream.name().as_bytes())?;
            Some((stream, rest))
        })?;
        let (partial, text) = match rest {
            [b' ', b'F', b' ', text @ ..] => (false, text),
            [b' ', b'P', b' ', text @ ..] => (true, text),
            _ => return None,
        };
        Some(Self { time, stream, partial, text })
    }

    /// Whether a run of the container begins here.
    pub fn is_start(&self) -> bool {
        self.stream == Stream::Coracle && self.text == START
    }
}

/// Adds what comes before the text.
pub fn add_header(to: &mut Vec<u8>, time: &[u8; TIME], stream: Stream) {
    to.extend_from_slice(time);
    to.push(b' ');
    to.extend_from_slice(stream.name().as_bytes());
    to.extend_from_slice(b" F ");
}

/// Makes a part of a line whose header, beginning at `at`, says that it ends one.
pub fn make_partial(line: &mut [u8], at: usize, stream: Stream) {
    line[at + TIME + 1 + stream.name().len() + 1] = b'P';
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_written_and_nothing_else_is() {
        for day in (0..2_932_896_u64).step_by(7) {
            let time = Time((day * 86_400 + day % 86_400) * 1_000_000 + day % 1_000_000);
            assert_eq!(Time::parse(&time.text()), Some(time), "{time}");
        }
        let known = Time(1_772_366_400_000_001);
        assert_eq!(known.to_string(), "2026-03-01T12:00:00.000001Z");
        assert_eq!(Time(951_782_399_999_999).to_string(), "2000-02-28T23:59:59.999999Z");
        assert_eq!(Time(951_782_400_000_000).to_string(), "2000-02-29T00:00:00.000000Z");
        assert_eq!(Time::from_micros(u64::MAX).to_string(), "9999-12-31T23:59:59.999999Z");
        for bad in [
            "",
            "2026-03-01T12:00:00.000001",
            "2026-02-30T12:00:00.000001Z",
            "2026-03-01 12:00:00.000001Z",
            "2026-13-01T12:00:00.000001Z",
            "2026-03-01T25:00:00.000001Z",
            "1969-03-01T12:00:00.000001Z",
        ] {
            assert_eq!(Time::parse(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn lines_are_read_as_written() {
        for (stream, partial) in
            [(Stream::Stdout, false), (Stream::Stderr, true), (Stream::Coracle, false)]
        {
            let mut line = b"before\n".to_vec();
            let time = Time(1_772_366_400_000_001);
            add_header(&mut line, &time.text(), stream);
            assert!(line.len() - 7 <= LONGEST_HEADER);
            line.extend_from_slice(b" a\0\xff F \r");
            if partial {
                make_partial(&mut line, 7, stream);
            }
            let read = Line::parse(&line[7..]);
            assert_eq!(read, Some(Line { time, stream, partial, text: b" a\0\xff F \r" }));
        }
        for bad in [
            "",
            "x",
            "2026-03-01T12:00:00.000001Z",
            "2026-03-01T12:00:00.000001Z stdin F x",
            "2026-03-01T12:00:00.000001Z stdout X x",
            "2026-03-01T12:00:00.000001Z stdout F",
            "2026-03-01T12:00:00.000001Z coracleF x",
        ] {
            assert_eq!(Line::parse(bad.as_bytes()), None, "{bad}");
        }
    }
}
