//! Wall-clock time in documents. For people to read; nothing is ordered or decided by it.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Whole seconds since 1970-01-01T00:00:00Z, written as RFC 3339 in UTC.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Timestamp(
    #[cfg_attr(feature = "schema", schemars(with = "String", extend("format" = "date-time")))] u64,
);

impl Timestamp {
    /// From seconds since the Unix epoch.
    pub const fn from_unix(seconds: u64) -> Self {
        // The last second that RFC 3339 can write: 9999-12-31T23:59:59Z.
        const LAST: u64 = 253_402_300_799;
        Self(if seconds > LAST { LAST } else { seconds })
    }

    /// Seconds since the Unix epoch.
    pub const fn unix(self) -> u64 {
        self.0
    }

    /// This moment and a duration more.
    pub fn after(self, duration: Duration) -> Self {
        Self::from_unix(self.0.saturating_add(duration.as_secs()))
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        Self::from_unix(time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(self.0)).fmt(f)
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            serializer.serialize_u64(self.0)
        }
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if !deserializer.is_human_readable() {
            return u64::deserialize(deserializer).map(Self::from_unix);
        }
        let text = String::deserialize(deserializer)?;
        parse(&text)
            .ok_or_else(|| de::Error::custom(format_args!("{text:?} is not an RFC 3339 time")))
    }
}

/// Reads RFC 3339 in UTC. The library refuses every time after January 2038 on 32-bit systems, so it
/// reads the time as one of a year of the same length that it knows everywhere.
fn parse(text: &str) -> Option<Timestamp> {
    const DAY: u64 = 24 * 60 * 60;
    let (year, rest) = text.split_at_checked(4)?;
    let year: u64 =
        year.bytes().all(|digit| digit.is_ascii_digit()).then(|| year.parse().ok())??;
    let days_before =
        |year: u64| (year - 1) * 365 + (year - 1) / 4 - (year - 1) / 100 + (year - 1) / 400;
    if year < 1970 {
        return None;
    }
    let days = days_before(year + 1) - days_before(year);
    let stand_in = if days == 366 { 1972 } else { 1970 };
    let time = humantime::parse_rfc3339(&format!("{stand_in}{rest}")).ok()?;
    let within = time.duration_since(UNIX_EPOCH).ok()?.as_secs();
    let whole_years = (days_before(year) - days_before(1970)) * DAY;
    Some(Timestamp::from_unix(
        within + whole_years - (days_before(stand_in) - days_before(1970)) * DAY,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes_and_stays_within_four_digit_years() {
        for seconds in [0, 1, 1_700_000_000, u64::MAX] {
            let time = Timestamp::from_unix(seconds);
            let text = serde_json::to_string(&time).unwrap();
            assert_eq!(serde_json::from_str::<Timestamp>(&text).unwrap(), time, "{text}");
        }
        assert_eq!(Timestamp::from_unix(0).to_string(), "1970-01-01T00:00:00Z");
    }

    #[test]
    fn reads_days_of_every_year_to_9999_and_nothing_else() {
        for day in (0..=2_932_896).step_by(13) {
            let time = Timestamp::from_unix(day * 86_400 + day % 86_400);
            assert_eq!(parse(&time.to_string()), Some(time), "{time}");
        }
        for good in ["2100-02-28T00:00:00.25Z", "2400-02-29T23:59:60Z", "2039-01-01T00:00:00+00:00"]
        {
            assert!(parse(good).is_some(), "{good}");
        }
        for bad in
            ["", "197", "1969-12-31T23:59:59Z", "2100-02-29T00:00:00Z", "+970-01-01T00:00:00Z"]
        {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
