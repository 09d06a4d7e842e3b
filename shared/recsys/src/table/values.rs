//! What stands in fields: identifiers, titles, numbers, times and years. Each function gives what
//! was meant, or why that cannot be told.

use lethe_parts::event::Kind;
use lethe_proto::catalogue::{MAX_TAG, MAX_TAGS, MAX_TITLE};
use lethe_proto::limits::MAX_ID;
use time::format_description::well_known::Rfc3339;
use time::{Date, Month, OffsetDateTime};

use super::reading::{Fault, Reason};

/// Texts by which programs say that there is nothing.
const MISSING: [&str; 12] = [
    "\\N", "NULL", "null", "NaN", "nan", "NA", "N/A", "n/a", "#N/A", "<NA>", "None", "none",
];

/// Those of them that are no title either.
const NO_TITLE: [&str; 7] = ["\\N", "NULL", "NaN", "nan", "#N/A", "<NA>", "N/A"];

/// Seconds since 1970 that no interaction has: the year 5138. Beyond are other units.
const BEYOND: f64 = 1e11;

/// The last second of 2100.
const LATEST: f64 = 4_133_980_799.0;

/// Whether nothing stands in a field, in one of the ways to say so.
pub(crate) fn is_missing(text: &str) -> bool {
    text.is_empty() || MISSING.contains(&text)
}

fn control(text: &str) -> Option<char> {
    text.chars().find(|c| c.is_control())
}

/// A letter that nobody sees, and by which two identifiers that look the same differ.
fn invisible(c: char) -> bool {
    matches!(c, '\u{200B}'..='\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2060}'..='\u{2064}')
        || c == '\u{FEFF}'
}

/// An identifier, without the blanks around it.
///
/// # Errors
/// It is missing, too long, or has letters that nobody sees.
pub(crate) fn identifier(text: &str, what: &str) -> Result<String, Fault> {
    let text = text.trim();
    if is_missing(text) {
        return Err(Fault::new(
            Reason::Missing,
            format!("the {what} is missing ({text:?})"),
        ));
    }
    if text.len() > MAX_ID {
        let got = text.len();
        return Err(Fault::new(
            Reason::Long,
            format!(
                "the {what} has {got} bytes, at most {MAX_ID}: {:?}...",
                head(text)
            ),
        ));
    }
    if let Some(c) = text.chars().find(|c| c.is_control() || invisible(*c)) {
        return Err(Fault::new(
            Reason::Control,
            format!(
                "the {what} has U+{:04X} in it, which nobody sees: {text:?}",
                c as u32
            ),
        ));
    }
    Ok(text.to_owned())
}

/// The beginning of a text.
pub(crate) fn head(text: &str) -> String {
    text.chars().take(40).collect()
}

/// A title, without the blanks around it.
///
/// # Errors
/// It is missing, longer than a catalogue may hold, or has control characters.
pub(crate) fn title(text: &str) -> Result<String, Fault> {
    let text = text.trim();
    if text.is_empty() || NO_TITLE.contains(&text) {
        return Err(Fault::new(
            Reason::Missing,
            format!("the title is missing ({text:?})"),
        ));
    }
    if text.len() > MAX_TITLE {
        let got = text.len();
        return Err(Fault::new(
            Reason::Long,
            format!(
                "the title has {got} bytes, at most {MAX_TITLE}: {:?}...",
                head(text)
            ),
        ));
    }
    if let Some(c) = control(text) {
        return Err(Fault::new(
            Reason::Control,
            format!(
                "the title has the control character U+{:04X} in it: {text:?}",
                c as u32
            ),
        ));
    }
    Ok(text.to_owned())
}

/// Tags, separated by blanks or `|`.
///
/// # Errors
/// More or longer ones than a catalogue may hold.
pub(crate) fn tags(text: &str) -> Result<Vec<String>, Fault> {
    let all = text.split([' ', '|', '\t', '\n']).filter(|t| !t.is_empty());
    let tags: Vec<String> = match is_missing(text.trim()) {
        true => vec![],
        false => all.map(str::to_owned).collect(),
    };
    if tags.len() > MAX_TAGS || tags.iter().any(|t| t.len() > MAX_TAG) {
        let got = tags.len();
        return Err(Fault::new(
            Reason::Long,
            format!("{got} tags, expected at most {MAX_TAGS} of at most {MAX_TAG} bytes"),
        ));
    }
    if let Some(c) = tags.iter().find_map(|t| control(t)) {
        return Err(Fault::new(
            Reason::Control,
            format!(
                "the tags have the control character U+{:04X} in them",
                c as u32
            ),
        ));
    }
    Ok(tags)
}

/// A year: a number, or a date that begins with one. `Ok(None)`: there is none.
///
/// # Errors
/// The text, which is no year.
pub(crate) fn year(text: &str) -> Result<Option<u16>, String> {
    let text = text.trim();
    if is_missing(text) {
        return Ok(None);
    }
    let of_date = date(text).map(|d| f64::from(d.year()));
    let number = text.parse::<f64>().ok().or(of_date);
    match number {
        Some(0.0) => Ok(None),
        Some(y) if y.fract() == 0.0 && (1.0..=9999.0).contains(&y) => Ok(Some(y as u16)),
        _ => Err(format!("{text:?} is no year")),
    }
}

/// A number.
///
/// # Errors
/// Why it is none, and how to write it.
pub(crate) fn number(text: &str, what: &str) -> Result<f32, Fault> {
    let text = text.trim();
    let bad = |why: String| Err(Fault::new(Reason::Number, why));
    if is_missing(text) {
        return Err(Fault::new(
            Reason::Missing,
            format!("the {what} is missing ({text:?})"),
        ));
    }
    if let Ok(n) = text.parse::<f32>() {
        return match n.is_finite() {
            true => Ok(n),
            false => bad(format!("{what} {text:?} is not finite")),
        };
    }
    if text.matches(',').count() == 1 && text.replace(',', ".").parse::<f32>().is_ok() {
        return bad(format!(
            "{what} {text:?} is not a number: write a point for the decimal comma, {}",
            text.replace(',', ".")
        ));
    }
    const WORDS: [&str; 8] = ["true", "false", "yes", "no", "t", "f", "y", "n"];
    if WORDS.contains(&text.to_lowercase().as_str()) {
        return bad(format!(
            "{what} {text:?} is not a number: write 1 and 0, with like_above = 0.5, or like and \
             dislike in a column that `kind` names"
        ));
    }
    bad(format!("{what} {text:?} is not a number"))
}

/// A kind of event.
///
/// # Errors
/// It is none, with those that there are.
pub(crate) fn kind(name: &str) -> Result<Kind, Fault> {
    let name = name.trim().to_lowercase();
    let found = Kind::ALL.into_iter().find(|k| k.name() == name);
    found.ok_or_else(|| {
        let known = Kind::ALL.map(Kind::name).join(", ");
        Fault::new(
            Reason::Kind,
            format!("kind {name:?}, expected one of {known}"),
        )
    })
}

/// A time as it was found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Time {
    /// Seconds since 1970.
    pub(crate) seconds: i64,
    /// It stood there in milliseconds, or a smaller unit.
    pub(crate) scaled: bool,
    /// It has eight digits that make a date.
    pub(crate) compact: bool,
}

/// A time: seconds since 1970 (or thousandths, millionths, billionths of them, which their size
/// tells), a date, or a date and time with its zone (RFC 3339).
///
/// # Errors
/// Why it is none, and how to write it.
pub(crate) fn time(text: &str) -> Result<Time, Fault> {
    let text = text.trim();
    let bad = |why: String| Err(Fault::new(Reason::Time, why));
    if is_missing(text) {
        return Err(Fault::new(
            Reason::Missing,
            format!("the time is missing ({text:?})"),
        ));
    }
    if let Ok(n) = text.parse::<f64>() {
        return match in_seconds(n) {
            Some(s) => Ok(Time {
                seconds: s as i64,
                scaled: s != n,
                compact: is_compact(text),
            }),
            None => bad(format!("time {text:?} is no number of seconds since 1970")),
        };
    }
    let at = |seconds| Time {
        seconds,
        scaled: false,
        compact: false,
    };
    if let Some(day) = date(text) {
        return Ok(at(day.midnight().assume_utc().unix_timestamp()));
    }
    if let Ok(t) = OffsetDateTime::parse(text, &Rfc3339) {
        return Ok(at(t.unix_timestamp()));
    }
    let zoned = format!("{}Z", text.replacen(' ', "T", 1));
    if OffsetDateTime::parse(&zoned, &Rfc3339).is_ok() {
        return bad(format!(
            "time {text:?} has no zone: write {zoned} for UTC, or an offset like +02:00"
        ));
    }
    bad(format!(
        "time {text:?}: expected seconds since 1970, a date like 2026-11-23, or a date and time \
         like 2026-11-23T10:30:00Z"
    ))
}

fn in_seconds(n: f64) -> Option<f64> {
    if n.is_finite() && n.abs() < BEYOND {
        return Some(n);
    }
    let units = [1e3, 1e6, 1e9];
    let scaled = units.map(|u| n / u);
    scaled.into_iter().find(|s| (0.0..=LATEST).contains(s))
}

fn is_compact(text: &str) -> bool {
    let digits = text.len() == 8 && text.bytes().all(|b| b.is_ascii_digit());
    let part = |from: usize, to: usize| text.get(from..to).unwrap_or_default();
    let dashed = || format!("{}-{}-{}", part(0, 4), part(4, 6), part(6, 8));
    digits && date(&dashed()).is_some_and(|d| (1990..=2100).contains(&d.year()))
}

/// `YYYY-MM-DD`, in exactly these digits.
fn date(text: &str) -> Option<Date> {
    let mut parts = text.split('-');
    let mut digits = |n: usize| {
        let part = parts.next()?;
        let fits = part.len() == n && part.bytes().all(|b| b.is_ascii_digit());
        part.parse::<u16>().ok().filter(|_| fits)
    };
    let year = digits(4)?;
    let month = digits(2)?;
    let day = digits(2)?;
    let month = Month::try_from(u8::try_from(month).ok()?).ok()?;
    let date = Date::from_calendar_date(i32::from(year), month, u8::try_from(day).ok()?);
    date.ok().filter(|_| parts.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_documented_or_refused_with_what_to_write() {
        let seconds = |text: &str| time(text).map(|t| t.seconds).map_err(|e| e.why);
        assert_eq!(seconds("881250949"), Ok(881_250_949));
        assert_eq!(seconds(" 881250949.0 "), Ok(881_250_949));
        assert_eq!(seconds("7"), Ok(7), "an order is a time, too");
        assert_eq!(seconds("2026-11-01"), Ok(1_793_491_200));
        assert_eq!(seconds("2026-11-01T10:30:00Z"), Ok(1_793_529_000));
        assert_eq!(seconds("2026-11-01T10:30:00.250+02:00"), Ok(1_793_521_800));
        for text in ["1793529000000", "1793529000000000", "1793529000000000000"] {
            let read = time(text).expect(text);
            assert!(read.scaled && read.seconds == 1_793_529_000, "{read:?}");
        }
        assert!(time("20261101").expect("seconds").compact);
        assert!(!time("20261301").expect("seconds").compact);
        for (text, says) in [
            ("2026-11-01T10:30:00", "write 2026-11-01T10:30:00Z"),
            ("2026-11-01 10:30:00", "write 2026-11-01T10:30:00Z"),
            ("2026-11-01T10:30:00+0000", "expected seconds"),
            ("01.11.2026", "expected seconds"),
            ("11/01/2026", "expected seconds"),
            ("2026-02-30", "expected seconds"),
            ("2026-1-1", "expected seconds"),
            ("yesterday", "expected seconds"),
            ("1e300", "no number of seconds"),
            ("inf", "no number of seconds"),
            ("", "missing"),
            ("\\N", "missing"),
        ] {
            let why = seconds(text).expect_err(text);
            assert!(why.contains(says), "{text}: {why}");
        }
    }

    #[test]
    fn numbers_that_are_none_say_what_to_write() {
        assert_eq!(number(" 3.5 ", "rating").map_err(|e| e.why), Ok(3.5));
        for (text, says) in [
            ("3,5", "decimal comma, 3.5"),
            ("True", "like_above = 0.5"),
            ("no", "like_above = 0.5"),
            ("NaN", "missing"),
            ("NULL", "missing"),
            ("", "missing"),
            ("inf", "not finite"),
            ("1e40", "not finite"),
            ("five", "is not a number"),
        ] {
            let why = number(text, "rating").expect_err(text).why;
            assert!(why.contains(says), "{text}: {why}");
        }
    }

    #[test]
    fn identifiers_and_titles_have_no_letters_that_nobody_sees() {
        assert_eq!(identifier(" 7 ", "item").map_err(|e| e.why), Ok("7".into()));
        for text in ["", " ", "\\N", "NULL", "a\0b", "a\u{200B}", "\u{FEFF}a"] {
            assert!(identifier(text, "item").is_err(), "{text:?}");
        }
        assert!(identifier(&"x".repeat(MAX_ID + 1), "item").is_err());
        assert_eq!(title(" Heat ").map_err(|e| e.why), Ok("Heat".into()));
        for text in ["", "\\N", "Caf\u{92}", "a\0b"] {
            assert!(title(text).is_err(), "{text:?}");
        }
        assert!(title("None").is_ok(), "it may be called so");
    }

    #[test]
    fn years_are_numbers_or_begin_dates() {
        assert_eq!(year("1995"), Ok(Some(1995)));
        assert_eq!(year("1995.0"), Ok(Some(1995)));
        assert_eq!(year("1995-07-01"), Ok(Some(1995)));
        for none in ["", "0", "\\N", "nan"] {
            assert_eq!(year(none), Ok(None));
        }
        for bad in ["V", "unknown", "1995.5", "-3", "19955", "inf"] {
            assert!(year(bad).is_err(), "{bad}");
        }
    }
}
