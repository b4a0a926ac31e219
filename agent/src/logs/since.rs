//! From when on lines are wanted, as people write it.

use std::time::Duration;

use coracle_log::line::Time;

/// A time such as `2026-03-01T12:00:00Z`, or how long ago it was such as `10m`.
///
/// # Errors
/// It is neither, in a sentence.
pub fn parse_since(text: &str) -> Result<Time, &'static str> {
    parse_time(text)
        .or_else(|| Some(Time::now().before(parse_span(text)?)))
        .ok_or("it is a time such as 2026-03-01T12:00:00Z, or a while such as 90s, 10m, 1h30m, 2d")
}

/// RFC 3339; seconds, their fraction and, for UTC, the `Z` may be left out.
fn parse_time(text: &str) -> Option<Time> {
    let (date, rest) = text.split_at_checked(10)?;
    let rest = rest.strip_prefix(['T', 't', ' '])?;
    let (clock, offset) = match rest.find(['Z', 'z', '+', '-']) {
        Some(at) => rest.split_at(at),
        None => (rest, "Z"),
    };
    let (whole, fraction) = clock.split_once('.').unwrap_or((clock, ""));
    let seconds = if whole.len() == 5 { ":00" } else { "" };
    let fraction: String = fraction.chars().chain("000000".chars()).take(6).collect();
    let time = Time::parse(format!("{date}T{whole}{seconds}.{fraction}Z").as_bytes())?;
    let Some(sign) = offset.strip_prefix(['+', '-']) else {
        return offset.eq_ignore_ascii_case("z").then_some(time);
    };
    let (hours, minutes) = sign.split_once(':')?;
    let number = |digits: &str| (digits.len() == 2).then(|| digits.parse::<u64>().ok())?;
    let micros = (number(hours)? * 60 + number(minutes)?) * 60_000_000;
    Some(if offset.starts_with('+') {
        Time::from_micros(time.micros().saturating_sub(micros))
    } else {
        Time::from_micros(time.micros().saturating_add(micros))
    })
}

/// `90s`, `10m`, `1h30m`, `2d`
fn parse_span(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = 0_u64;
    while !rest.is_empty() {
        let unit = rest.find(|c: char| !c.is_ascii_digit())?;
        let (number, after) = rest.split_at(unit);
        let seconds = match after.chars().next()? {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            _ => return None,
        };
        total = total.checked_add(number.parse::<u64>().ok()?.checked_mul(seconds)?)?;
        rest = &after[1..];
    }
    (!text.is_empty()).then(|| Duration::from_secs(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_whiles_are_read() {
        let time = |text: &str| parse_time(text).map(|time| time.to_string());
        for good in [
            "2026-03-01T12:00:00Z",
            "2026-03-01T12:00",
            "2026-03-01 12:00:00.000000",
            "2026-03-01T14:30:00+02:30",
            "2026-03-01t07:00:00.0-05:00",
        ] {
            assert_eq!(time(good).as_deref(), Some("2026-03-01T12:00:00.000000Z"), "{good}");
        }
        for bad in [
            "",
            "x",
            "2026-03-01",
            "2026-03-01T12",
            "2026-02-30T12:00",
            "2026-03-01T12:00+2",
            "2026-03-01T12:00Zx",
        ] {
            assert_eq!(time(bad), None, "{bad}");
            assert!(parse_since(bad).is_err(), "{bad}");
        }
        let spans = ["90s", "10m", "1h30m", "2d"].map(|text| parse_span(text).unwrap().as_secs());
        assert_eq!(spans, [90, 600, 5400, 172_800]);
        for bad in ["", "10", "m", "10x", "99999999999999999999s", "18446744073709551615d"] {
            assert_eq!(parse_span(bad), None, "{bad}");
        }
    }
}
