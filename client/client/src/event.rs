//! What an app records.

use std::fmt;

use lethe_parts::event::Kind;
use serde::{Deserialize, Serialize};

/// One event of the person on this device. What it counts as (met, liked, disliked, a rating, asked
/// not to be shown again) is for the catalogue to say ([`crate::Catalogue::meaning`]).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocalEvent {
    /// Item of the catalogue.
    pub item: String,
    /// Seconds since 1970, UTC.
    pub time: i64,
    /// What happened.
    pub kind: Kind,
    /// The rating, or the dwell time of a view in seconds; else 0.
    pub value: f32,
}

impl LocalEvent {
    fn new(item: impl Into<String>, kind: Kind, value: f32, time: i64) -> Self {
        Self {
            item: item.into(),
            time,
            kind,
            value,
        }
    }

    /// A thumb up at `time`, in seconds since 1970.
    pub fn liked(item: impl Into<String>, time: i64) -> Self {
        Self::new(item, Kind::Like, 0.0, time)
    }

    /// A thumb down at `time`, in seconds since 1970.
    pub fn disliked(item: impl Into<String>, time: i64) -> Self {
        Self::new(item, Kind::Dislike, 0.0, time)
    }

    /// A rating on the catalogue's scale at `time`, in seconds since 1970.
    pub fn rating(item: impl Into<String>, rating: f32, time: i64) -> Self {
        Self::new(item, Kind::Rating, rating, time)
    }

    /// Watched, read or listened for so many seconds at `time`, in seconds since 1970.
    pub fn viewed(item: impl Into<String>, seconds: f32, time: i64) -> Self {
        Self::new(item, Kind::View, seconds, time)
    }

    /// Passed over at `time`, in seconds since 1970.
    pub fn skipped(item: impl Into<String>, time: i64) -> Self {
        Self::new(item, Kind::Skip, 0.0, time)
    }

    /// Bought at `time`, in seconds since 1970.
    pub fn purchased(item: impl Into<String>, time: i64) -> Self {
        Self::new(item, Kind::Purchase, 0.0, time)
    }

    /// Asked not to be shown again at `time`, in seconds since 1970.
    pub fn hidden(item: impl Into<String>, time: i64) -> Self {
        Self::new(item, Kind::Hide, 0.0, time)
    }
}

/// Names an event that was recorded on this device. Numbers are never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EventId(pub(crate) u64);

impl EventId {
    /// As a number, for an app that keeps it.
    pub fn number(self) -> u64 {
        self.0
    }

    /// From [`Self::number`].
    pub fn from_number(number: u64) -> Self {
        Self(number)
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "event {}", self.0)
    }
}
