//! Times as operators write them.

use std::time::{SystemTime, UNIX_EPOCH};

use time::{Date, Month, OffsetDateTime};

/// Seconds since 1970, from those or from a date (midnight, UTC).
pub(crate) fn parse_time(text: &str) -> Result<i64, String> {
    if let Ok(seconds) = text.parse() {
        return Ok(seconds);
    }
    let wrong = || format!("{text:?} is neither a date like 2026-11-23 nor seconds since 1970");
    let parts: Vec<&str> = text.split('-').collect();
    let [year, month, day] = parts[..] else {
        return Err(wrong());
    };
    let month: u8 = month.parse().map_err(|_| wrong())?;
    let month = Month::try_from(month).map_err(|_| wrong())?;
    let (year, day) = (
        year.parse().map_err(|_| wrong())?,
        day.parse().map_err(|_| wrong())?,
    );
    let date = Date::from_calendar_date(year, month, day).map_err(|_| wrong())?;
    Ok(date.midnight().assume_utc().unix_timestamp())
}

/// A time for people, UTC.
pub(crate) fn show_time(seconds: u64) -> String {
    let t = i64::try_from(seconds)
        .ok()
        .and_then(|s| OffsetDateTime::from_unix_timestamp(s).ok());
    t.map_or("?".into(), |t| {
        format!(
            "{:04}-{:02}-{:02} {:02}:{:02}",
            t.year(),
            u8::from(t.month()),
            t.day(),
            t.hour(),
            t.minute()
        )
    })
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_and_seconds() {
        assert_eq!(parse_time("1970-01-02"), Ok(86_400));
        assert_eq!(parse_time("1763856000"), Ok(1_763_856_000));
        assert_eq!(show_time(1_763_856_000), "2025-11-23 00:00");
        for bad in ["2026-13-01", "2026-02-30", "yesterday", ""] {
            assert!(parse_time(bad).is_err(), "{bad}");
        }
    }
}
