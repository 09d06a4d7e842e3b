//! Times as operators write them. What can be read in two ways is refused, with the reading that
//! would have been taken: a wrong time erases too much or nothing, and neither can be undone.

use std::time::{SystemTime, UNIX_EPOCH};

use lethe_transport::utc;
use time::format_description::well_known::Rfc3339;
use time::{Date, Month, OffsetDateTime};

/// The first of January 1990, in seconds since 1970: nobody's history is older.
const EARLIEST: i64 = 631_152_000;

/// Seconds since 1970, from those, from a date (midnight, UTC), or from a date and time.
pub(crate) fn parse_time(text: &str) -> Result<i64, String> {
    parse_at(text, now() as i64)
}

fn parse_at(text: &str, now: i64) -> Result<i64, String> {
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return parse_digits(text, now);
    }
    let seconds = parse_date(text).or_else(|| {
        let t = OffsetDateTime::parse(text, &Rfc3339).ok()?;
        Some(t.unix_timestamp())
    });
    let Some(seconds) = seconds else {
        return Err(format!(
            "{text:?} is no time: expected a date like 2026-11-23, a date and time like \
             2026-11-23T10:30:00Z, or seconds since 1970{}",
            reading(text)
        ));
    };
    plausible(text, seconds, now)
}

/// How a time that is none would have been read, for who wrote it; empty where nothing like a date
/// is in it.
fn reading(text: &str) -> String {
    // Digits of other scripts and widths are digits to people.
    let plain = |c: char| match u32::from(c).checked_sub(0xFF10) {
        Some(n @ 0..=9) => char::from_digit(n, 10).unwrap_or(c),
        _ => c,
    };
    let text: String = text.chars().map(plain).collect();
    let numbers: Vec<&str> = text
        .split(|c: char| !c.is_ascii_digit())
        .filter(|n| !n.is_empty())
        .collect();
    let orders = match numbers[..] {
        [a, b, c, ..] if a.len() == 4 => vec![[a, b, c]],
        [a, b, c, ..] => vec![[c, b, a], [c, a, b]],
        [n] if n.len() > 4 => {
            return format!(". It would have been read as a number of seconds, {n}");
        }
        _ => return String::new(),
    };
    let written = |[year, month, day]: [&str; 3]| {
        let date = format!("{year:0>4}-{month:0>2}-{day:0>2}");
        parse_date(&date).map(|_| date)
    };
    let mut dates: Vec<String> = orders.into_iter().filter_map(written).collect();
    dates.dedup();
    match &dates[..] {
        [] => ". It would have been read as a day that there is not".into(),
        [date] => format!(". It would have been read as {date}"),
        several => format!(
            ". It would have been read as {}: write the one that is meant",
            several.join(" or ")
        ),
    }
}

/// `YYYY-MM-DD`, in exactly these digits.
fn parse_date(text: &str) -> Option<i64> {
    let parts: Vec<&str> = text.split('-').collect();
    let [year, month, day] = parts[..] else {
        return None;
    };
    let digits = |s: &str, n: usize| s.len() == n && s.bytes().all(|b| b.is_ascii_digit());
    if !(digits(year, 4) && digits(month, 2) && digits(day, 2)) {
        return None;
    }
    date(year, month, day)
}

fn date(year: &str, month: &str, day: &str) -> Option<i64> {
    let month = Month::try_from(month.parse::<u8>().ok()?).ok()?;
    let date = Date::from_calendar_date(year.parse().ok()?, month, day.parse().ok()?).ok()?;
    Some(date.midnight().assume_utc().unix_timestamp())
}

fn parse_digits(text: &str, now: i64) -> Result<i64, String> {
    let seconds: Option<i64> = text.parse().ok();
    if let Some(s) = seconds.filter(|s| (EARLIEST..=now + 86_400).contains(s)) {
        return Ok(s);
    }
    let read = seconds.map_or("no time at all".to_owned(), utc);
    let would = format!("{text} would have been read as seconds since 1970, {read}");
    // Seconds in other units: the one in which they are plausible is what was meant.
    let units = [
        ("milli", 1000),
        ("micro", 1_000_000),
        ("nano", 1_000_000_000),
    ];
    for (name, unit) in units {
        let meant = seconds.map(|s| s / unit);
        if let Some(s) = meant.filter(|s| (EARLIEST..=now + 86_400).contains(s)) {
            return Err(format!(
                "{would}. If it is in {name}seconds ({} UTC), write {s}",
                utc(s)
            ));
        }
    }
    let compact = |n: usize| (text.len() >= n).then(|| date(&text[..4], &text[4..6], &text[6..8]));
    if let (8 | 12 | 14, Some(Some(_))) = (text.len(), compact(8)) {
        let (year, month, day) = (&text[..4], &text[4..6], &text[6..8]);
        return Err(format!(
            "{would}. If it is a date, write {year}-{month}-{day}"
        ));
    }
    Err(format!(
        "{would}, which does not lie between 1990 and tomorrow"
    ))
}

fn plausible(text: &str, seconds: i64, now: i64) -> Result<i64, String> {
    if seconds < EARLIEST {
        return Err(format!(
            "{text} lies before 1990: it would have been read as everything that the person ever \
             did. To forget everything, ask for that"
        ));
    }
    if seconds > now + 86_400 {
        return Err(format!(
            "{text} lies beyond tomorrow: it would have been read as nothing so far"
        ));
    }
    Ok(seconds)
}

/// A time for people, UTC.
pub(crate) fn show_time(seconds: u64) -> String {
    i64::try_from(seconds).map_or("?".into(), utc)
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

    /// 2026-11-27 00:00 UTC.
    const NOW: i64 = 1_795_737_600;

    #[test]
    fn dates_and_seconds() {
        assert_eq!(parse_at("1990-01-02", NOW), Ok(EARLIEST + 86_400));
        assert_eq!(parse_at("1763856000", NOW), Ok(1_763_856_000));
        assert_eq!(parse_at(" 2026-11-01 ", NOW), Ok(1_793_491_200));
        assert_eq!(parse_at("2026-11-01T10:30:00Z", NOW), Ok(1_793_529_000));
        assert_eq!(
            parse_at("2026-11-01T10:30:00.5+02:00", NOW),
            Ok(1_793_521_800)
        );
        assert_eq!(parse_at("2026-11-28", NOW), Ok(NOW + 86_400), "tomorrow");
        assert_eq!(show_time(1_763_856_000), "2025-11-23 00:00");
        for bad in [
            "2026-13-01",
            "2026-02-30",
            "yesterday",
            "",
            "2026-1-1",
            "26-11-01",
            "01/11/2026",
            "2026/11/01",
            "01.11.2026",
            "2026-11-01T10:30:00",
            "2026-11-01 10:30",
            "-5",
            "+1793520000",
            "1793520000.5",
            "1.79e9",
        ] {
            assert!(parse_at(bad, NOW).is_err(), "{bad}");
        }
    }

    #[test]
    fn dates_in_other_spellings_are_refused_with_the_reading() {
        for (text, says) in [
            ("2026-11-1", "read as 2026-11-01"),
            ("2026/11/01", "read as 2026-11-01"),
            ("01.11.2026", "read as 2026-11-01 or 2026-01-11"),
            ("11/01/2026", "read as 2026-01-11 or 2026-11-01"),
            ("13.11.2026", "read as 2026-11-13"),
            ("2026-02-30", "a day that there is not"),
            ("2026-11-01 10:30", "read as 2026-11-01"),
            (
                "\u{FF12}\u{FF10}\u{FF12}\u{FF16}-11-01",
                "read as 2026-11-01",
            ),
            ("+1793520000", "number of seconds, 1793520000"),
            ("-1793520000", "number of seconds, 1793520000"),
            ("1e9", "is no time"),
            ("", "is no time"),
            ("   ", "is no time"),
        ] {
            let why = parse_at(text, NOW).expect_err(text);
            assert!(why.contains(says), "{text}: {why}");
        }
        assert!(
            parse_at("\u{FF11}\u{FF17}93520000", NOW).is_err(),
            "full-width digits"
        );
    }

    #[test]
    fn times_in_other_units_and_implausible_ones_are_refused_with_the_reading() {
        for (text, says) in [
            (
                "1793520000000",
                "milliseconds (2026-11-01 08:00 UTC), write 1793520000",
            ),
            ("1793520000000000", "microseconds"),
            ("1793520000000000000", "nanoseconds"),
            ("17935200000000000000000", "no time at all"),
            (
                "20261101",
                "1970-08-23 12:05. If it is a date, write 2026-11-01",
            ),
            ("20261101103000", "write 2026-11-01"),
            ("202611011030", "write 2026-11-01"),
            ("0", "between 1990 and tomorrow"),
            ("600000000", "between 1990 and tomorrow"),
            ("1989-12-31", "before 1990"),
            ("2026-11-30", "beyond tomorrow"),
            ("1796000000", "between 1990 and tomorrow"),
        ] {
            let why = parse_at(text, NOW).expect_err(text);
            assert!(why.contains(says), "{text}: {why}");
        }
    }
}
