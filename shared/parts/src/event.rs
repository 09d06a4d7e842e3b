//! What happened between a person and an item, and what it counts as.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// What a person did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A rating; the value is the rating as given.
    Rating,
    /// A thumb up; the value is not used.
    Like,
    /// A thumb down; the value is not used.
    Dislike,
    /// Watched, read or listened; the value is the dwell time in seconds.
    View,
    /// Passed over; the value is not used.
    Skip,
    /// Bought; the value is not used.
    Purchase,
    /// Asked not to be shown again; the value is not used.
    Hide,
}

impl Kind {
    /// All kinds, in the order of their codes.
    pub const ALL: [Self; 7] = [
        Self::Rating,
        Self::Like,
        Self::Dislike,
        Self::View,
        Self::Skip,
        Self::Purchase,
        Self::Hide,
    ];

    /// The name in catalogues.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rating => "rating",
            Self::Like => "like",
            Self::Dislike => "dislike",
            Self::View => "view",
            Self::Skip => "skip",
            Self::Purchase => "purchase",
            Self::Hide => "hide",
        }
    }

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|k| k.name() == name)
    }
}

/// One event, as an app records it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Index into the catalogue.
    pub item: u32,
    /// Seconds since 1970, UTC.
    pub time: i64,
    /// What happened.
    pub kind: Kind,
    /// Rating or dwell time, see [`Kind`]; else 0.
    pub value: f32,
}

/// The table of a catalogue's TOML that says what events count as.
///
/// ```
/// use lethe_parts::event::{EventTable, Meaning};
/// let table: EventTable = toml::from_str(
///     r#"
///     seen = "view >= 30, rating, purchase, like"
///     like = "rating > 3, like, purchase"
///     dislike = "rating <= 3, dislike, hide"
///     rating_range = [1, 5]
///     stars = { like = 5, purchase = 4.5, dislike = 1, hide = 1 }
///     "#,
/// )?;
/// let meaning = Meaning::new(&table)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EventTable {
    /// Events that count as having met the item, such as `"view >= 30, rating, purchase"`.
    pub seen: String,
    /// Events that count as liking it, such as `"rating > 3, like"`; their kinds are in `seen`,
    /// too.
    pub like: String,
    /// Events that count as disliking it. Kinds other than ratings need `stars`, as those of
    /// `like` do.
    pub dislike: String,
    /// Lowest and highest rating of the scale; mapped to 1 to 5 stars.
    pub rating_range: [f32; 2],
    /// Stars, 1 to 5 in halves, that other kinds of events stand for.
    pub stars: BTreeMap<Kind, f32>,
}

impl Default for EventTable {
    /// Ratings of 1 to 5 and thumbs; above 3 is a like.
    fn default() -> Self {
        Self {
            seen: "rating, view, purchase, like, dislike".into(),
            like: "rating > 3, like".into(),
            dislike: "rating <= 3, dislike".into(),
            rating_range: [1.0, 5.0],
            stars: BTreeMap::from([(Kind::Like, 5.0), (Kind::Dislike, 1.0)]),
        }
    }
}

/// Why a table of events was refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum TableError {
    /// A condition could not be read.
    #[error(
        "{field} = {text:?}: {term:?} is not a condition; write a kind ({kinds}), or a kind, one \
         of > >= < <= =, and a number, separated by commas",
        kinds = KindNames
    )]
    Condition {
        /// `seen`, `like` or `dislike`.
        field: &'static str,
        /// The whole text.
        text: String,
        /// The part that is wrong.
        term: String,
    },
    /// The scale is empty.
    #[error("rating_range = [{low}, {high}]: expected the lowest, then a higher highest rating")]
    Range {
        /// Lowest.
        low: f32,
        /// Highest.
        high: f32,
    },
    /// A kind that counts as a like or dislike, and would say nothing to the sums.
    #[error(
        "{field} names {kind}, which stands for no rating; add it to stars = {{ ... }}, 1 to 5"
    )]
    WithoutStars {
        /// `like` or `dislike`.
        field: &'static str,
        /// The kind.
        kind: &'static str,
    },
    /// A kind that counts as a like, and not as having met the item.
    #[error("like names {kind}, seen does not; add {kind} to seen = \"...\"")]
    LikedUnseen {
        /// The kind.
        kind: &'static str,
    },
    /// Stars outside the scale.
    #[error("stars of {kind:?} = {stars}: expected 1 to 5, in halves")]
    Stars {
        /// The kind.
        kind: Kind,
        /// What was given.
        stars: f32,
    },
}

struct KindNames;

impl fmt::Display for KindNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&Kind::ALL.map(Kind::name).join(", "))
    }
}

/// What one event counts as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// The person met the item.
    pub seen: bool,
    /// Rating in half stars, 2 to 10, if the event stands for one.
    pub half_stars: Option<u8>,
    /// Liked, disliked, or neither.
    pub liked: Option<bool>,
    /// The person asked not to be shown the item again.
    pub hidden: bool,
}

/// An [`EventTable`] that was checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Meaning {
    seen: Vec<Condition>,
    like: Vec<Condition>,
    dislike: Vec<Condition>,
    low: f32,
    high: f32,
    stars: BTreeMap<Kind, u8>,
}

impl Default for Meaning {
    fn default() -> Self {
        Self::new(&EventTable::default()).unwrap_or_else(|e| unreachable!("the default table: {e}"))
    }
}

/// Where likes begin in the data that the public constants were chosen on, in quarter stars: at
/// 3.25 stars, between 3.0 and 3.5.
pub const LIKE_BOUNDARY: u8 = 13;

impl Meaning {
    /// Where likes begin, in quarter stars: between the highest half star that is no like and the
    /// lowest that is one. [`LIKE_BOUNDARY`] where ratings do not decide about likes.
    pub fn like_boundary(&self) -> u8 {
        let is_like = |half_stars: u8| {
            let share = (f32::from(half_stars) - 2.0) / 8.0;
            let rating = Event {
                item: 0,
                time: 0,
                kind: Kind::Rating,
                value: self.low + share * (self.high - self.low),
            };
            self.read(&rating).liked == Some(true)
        };
        match (2..=10).find(|h| is_like(*h)) {
            Some(lowest) if lowest > 2 => 2 * lowest - 1,
            _ => LIKE_BOUNDARY,
        }
    }

    /// Checks a table.
    ///
    /// # Errors
    /// [`TableError`] names the field and the part of it that cannot be read.
    pub fn new(table: &EventTable) -> Result<Self, TableError> {
        let [low, high] = table.rating_range;
        if !(low.is_finite() && high.is_finite() && low < high) {
            return Err(TableError::Range { low, high });
        }
        let mut stars = BTreeMap::new();
        for (kind, given) in &table.stars {
            let halves = given * 2.0;
            if !(2.0..=10.0).contains(&halves) || halves.fract() != 0.0 {
                return Err(TableError::Stars {
                    kind: *kind,
                    stars: *given,
                });
            }
            stars.insert(*kind, halves as u8);
        }
        let seen = conditions("seen", &table.seen)?;
        let like = conditions("like", &table.like)?;
        let dislike = conditions("dislike", &table.dislike)?;
        for (field, conditions) in [("like", &like), ("dislike", &dislike)] {
            let silent = |c: &&Condition| c.kind != Kind::Rating && !stars.contains_key(&c.kind);
            if let Some(condition) = conditions.iter().find(silent) {
                let kind = condition.kind.name();
                return Err(TableError::WithoutStars { field, kind });
            }
        }
        let is_unseen = |c: &&Condition| seen.iter().all(|s| s.kind != c.kind);
        if let Some(condition) = like.iter().find(is_unseen) {
            let kind = condition.kind.name();
            return Err(TableError::LikedUnseen { kind });
        }
        Ok(Self {
            seen,
            like,
            dislike,
            low,
            high,
            stars,
        })
    }

    /// What `event` counts as. A rating outside the range counts as the nearest end; one that is
    /// not a number counts as nothing.
    pub fn read(&self, event: &Event) -> Reading {
        let any = |conditions: &[Condition]| conditions.iter().any(|c| c.holds(event));
        if event.value.is_nan() {
            return Reading::default();
        }
        let half_stars = match event.kind {
            Kind::Rating => Some(self.half_stars(event.value)),
            other => self.stars.get(&other).copied(),
        };
        let liked = if any(&self.like) {
            Some(true)
        } else if any(&self.dislike) {
            Some(false)
        } else {
            None
        };
        Reading {
            seen: any(&self.seen),
            half_stars,
            liked,
            hidden: event.kind == Kind::Hide,
        }
    }

    /// The scale is mapped linearly to 1 to 5 stars and rounded to halves.
    fn half_stars(&self, rating: f32) -> u8 {
        let share = (rating.clamp(self.low, self.high) - self.low) / (self.high - self.low);
        (2.0 + 8.0 * share).round() as u8
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Condition {
    kind: Kind,
    test: Test,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Test {
    Always,
    Above(f32),
    AtLeast(f32),
    Below(f32),
    AtMost(f32),
    Equal(f32),
}

impl Condition {
    fn holds(self, event: &Event) -> bool {
        self.kind == event.kind
            && match self.test {
                Test::Always => true,
                Test::Above(x) => event.value > x,
                Test::AtLeast(x) => event.value >= x,
                Test::Below(x) => event.value < x,
                Test::AtMost(x) => event.value <= x,
                Test::Equal(x) => event.value == x,
            }
    }

    fn parse(term: &str) -> Option<Self> {
        let term = term.trim();
        let end = term
            .find(|c: char| !c.is_ascii_alphabetic())
            .unwrap_or(term.len());
        let kind = Kind::named(&term[..end])?;
        let rest = term[end..].trim();
        if rest.is_empty() {
            return Some(Self {
                kind,
                test: Test::Always,
            });
        }
        // The longer operators first: ">" is the beginning of ">=".
        let sign = [">=", "<=", ">", "<", "="]
            .into_iter()
            .find(|sign| rest.starts_with(sign))?;
        let number: f32 = rest[sign.len()..].trim().parse().ok()?;
        let test = match sign {
            ">=" => Test::AtLeast(number),
            "<=" => Test::AtMost(number),
            ">" => Test::Above(number),
            "<" => Test::Below(number),
            _ => Test::Equal(number),
        };
        number.is_finite().then_some(Self { kind, test })
    }
}

fn conditions(field: &'static str, text: &str) -> Result<Vec<Condition>, TableError> {
    if text.trim().is_empty() {
        return Ok(vec![]);
    }
    text.split(',')
        .map(|term| {
            Condition::parse(term).ok_or_else(|| TableError::Condition {
                field,
                text: text.to_owned(),
                term: term.trim().to_owned(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: Kind, value: f32) -> Event {
        Event {
            item: 0,
            time: 0,
            kind,
            value,
        }
    }

    #[test]
    fn a_table_says_what_events_count_as() {
        let table = EventTable {
            seen: "view >= 30, rating, purchase".into(),
            like: "rating > 5, purchase".into(),
            dislike: "rating<=5,hide".into(),
            rating_range: [1.0, 10.0],
            stars: BTreeMap::from([(Kind::Purchase, 4.5), (Kind::Hide, 1.0)]),
        };
        let m = Meaning::new(&table).expect("valid");
        assert!(!m.read(&event(Kind::View, 29.0)).seen);
        assert!(m.read(&event(Kind::View, 30.0)).seen);
        let bought = m.read(&event(Kind::Purchase, 0.0));
        assert_eq!(bought.half_stars, Some(9));
        assert_eq!(bought.liked, Some(true));
        assert_eq!(m.read(&event(Kind::Rating, 10.0)).half_stars, Some(10));
        assert_eq!(m.read(&event(Kind::Rating, 1.0)).half_stars, Some(2));
        assert_eq!(m.read(&event(Kind::Rating, 5.0)).liked, Some(false));
        assert_eq!(m.read(&event(Kind::Skip, 0.0)), Reading::default());
        assert_eq!(m.like_boundary(), 11, "between 2.5 and 3 stars");
        assert_eq!(Meaning::default().like_boundary(), LIKE_BOUNDARY);
        assert!(m.read(&event(Kind::Hide, 0.0)).hidden);
        let nothing = m.read(&event(Kind::Rating, f32::NAN));
        assert_eq!(nothing, Reading::default());
    }

    #[test]
    fn what_is_wrong_with_a_table_is_said() {
        for bad in ["rating >", "loved", "rating > x", "rating ! 3", "rating, ,"] {
            let table = EventTable {
                like: bad.into(),
                ..EventTable::default()
            };
            let e = Meaning::new(&table).expect_err(bad);
            assert!(e.to_string().contains("like = "), "{e}");
        }
        let range = EventTable {
            rating_range: [5.0, 1.0],
            ..EventTable::default()
        };
        assert!(matches!(
            Meaning::new(&range),
            Err(TableError::Range { .. })
        ));
        let stars = EventTable {
            stars: BTreeMap::from([(Kind::Like, 5.5)]),
            ..EventTable::default()
        };
        assert!(matches!(
            Meaning::new(&stars),
            Err(TableError::Stars { .. })
        ));
        let silent = EventTable {
            dislike: "skip".into(),
            ..EventTable::default()
        };
        let e = Meaning::new(&silent).expect_err("a skip has no stars");
        assert!(e.to_string().contains("add it to stars"), "{e}");
        let unseen = EventTable {
            seen: "view".into(),
            ..EventTable::default()
        };
        let e = Meaning::new(&unseen).expect_err("ratings count as likes, not as seen");
        assert!(e.to_string().contains("add rating to seen"), "{e}");
        assert!(toml::from_str::<EventTable>("liked = \"rating\"").is_err());
    }
}
