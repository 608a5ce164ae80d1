//! Timestamps on the wire: RFC 3339 in UTC, to the microsecond (what PostgreSQL keeps).

use serde::{Deserialize, Deserializer, Serializer, de};
use time::{OffsetDateTime, UtcOffset, format_description::well_known::Rfc3339};

/// The rule of a timestamp that comes from a program.
pub(crate) const YEARS: &str = "must lie in the years 0000 to 9999 in UTC";

const RULE: &str = "must be an RFC 3339 timestamp, like 2026-11-23T08:15:00Z";

/// Whether it can be written with a four-digit year in UTC.
pub(crate) fn is_writable(at: OffsetDateTime) -> bool {
    at.checked_to_offset(UtcOffset::UTC).is_some_and(|utc| (0..=9999).contains(&utc.year()))
}

/// `2026-11-23T08:15:00.000000Z`. Validation refuses other dates before anything is published.
pub(crate) fn format(at: OffsetDateTime) -> String {
    let utc = at.checked_to_offset(UtcOffset::UTC).unwrap_or(at);
    let (hour, minute, second, micros) = utc.to_hms_micro();
    let (year, month, day) = (utc.year(), u8::from(utc.month()), utc.day());
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

/// For `#[serde(with)]`.
///
/// # Errors
/// The serializer's.
pub fn serialize<S: Serializer>(at: &OffsetDateTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format(*at))
}

/// For `#[serde(with)]`.
///
/// # Errors
/// When it is no RFC 3339 timestamp.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<OffsetDateTime, D::Error> {
    let text = String::deserialize(deserializer)?;
    let parsed = OffsetDateTime::parse(&text, &Rfc3339).ok().filter(|at| is_writable(*at));
    parsed.map(|at| at.to_offset(UtcOffset::UTC)).ok_or_else(|| de::Error::custom(RULE))
}

/// The same, for a field that may be absent.
pub(crate) fn optional<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<OffsetDateTime>, D::Error> {
    deserialize(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn every_moment_is_written_in_utc_with_six_decimals() {
        assert_eq!(format(datetime!(2026-11-23 10:15:00 +02:00)), "2026-11-23T08:15:00.000000Z");
        assert_eq!(format(datetime!(2026-01-02 03:04:05.000_000_999 UTC)), "2026-01-02T03:04:05.000000Z");
    }

    #[test]
    fn the_ends_of_the_calendar_do_not_panic() {
        let before_the_calendar = datetime!(0000-01-01 00:00 +23:59);
        assert!(!is_writable(before_the_calendar));
        let _ = format(before_the_calendar);
        let _ = format(datetime!(9999-12-31 23:59 -23:59));
    }
}
