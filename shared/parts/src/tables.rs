//! What devices hold: columns and tables that were computed from the sums.

use crate::field::Field;
use crate::rows::Rows;

/// Prior strength of an item's mean rating, in people.
const MEAN_PRIOR: f64 = 5.0;

/// Sums per item that are published, after the threshold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Columns {
    /// People who met the item.
    pub seen: Vec<u64>,
    /// People who rated it.
    pub rated: Vec<u64>,
    /// Sum of their ratings, in half stars.
    pub half_stars: Vec<u64>,
    /// How many of those are likes.
    pub likes: Vec<u64>,
    /// What people met first, see [`crate::sums::Counts::starts`].
    pub starts: Vec<u64>,
}

/// What was met lately, as of one day, after the threshold: [`crate::solve::recent`].
#[derive(Clone, Debug, PartialEq)]
pub struct Recent {
    pub(crate) day: i32,
    pub(crate) values: Vec<f32>,
}

/// Everything that scoring reads. On a server the rows are plain and whole; on a device they come
/// from a snapshot, cut and packed.
#[derive(Clone, Debug, PartialEq)]
pub struct Tables {
    pub(crate) day: i32,
    /// Where likes begin, in quarter stars.
    pub(crate) like_boundary: u8,
    pub(crate) columns: Columns,
    pub(crate) recent: Vec<f32>,
    /// Mean ratings of unrated items as content predicts them, less the overall mean, in stars; 0
    /// for rated ones.
    pub(crate) guess: Vec<f32>,
    pub(crate) ease: Rows,
    pub(crate) next: Rows,
    pub(crate) near: Rows,
    /// For each item of a history, weights of items that nobody has met.
    pub(crate) unseen: Rows,
    pub(crate) field: Field,
    pub(crate) derived: Derived,
}

/// What follows from the columns; the same function computes it on servers and devices.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Derived {
    /// `p_i = (seen_i + 1) / sum (seen + 1)`.
    pub(crate) share: Vec<f64>,
    /// Chance of being met first: `(starts_i / 64 + 60 p_i) / (sum starts / 64 + 60)`.
    pub(crate) start: Vec<f64>,
    /// `mu_i`, in stars.
    pub(crate) mean: Vec<f64>,
    /// `mu`, in stars.
    pub(crate) overall: f64,
    /// Share of ratings that are likes.
    pub(crate) like_rate: f64,
    /// Sum of `recent`.
    pub(crate) recent_total: f64,
}

/// Prior strength of what is met first, in encounters, and the unit of its sums.
const START_PRIOR: f64 = 60.0;
const START_UNIT: f64 = 64.0;

/// Middle of the scale, where nobody has rated anything.
const MIDDLE: f64 = 3.0;

impl Derived {
    pub(crate) fn of(columns: &Columns, recent: &[f32], guess: &[f32]) -> Self {
        let total: u64 = columns.seen.iter().sum();
        let total = total as f64 + columns.seen.len() as f64;
        let share: Vec<f64> = columns
            .seen
            .iter()
            .map(|n| (*n as f64 + 1.0) / total)
            .collect();
        let all_starts: u64 = columns.starts.iter().sum();
        let all_starts = all_starts as f64 / START_UNIT + START_PRIOR;
        let start = columns
            .starts
            .iter()
            .zip(&share)
            .map(|(n, p)| (*n as f64 / START_UNIT + START_PRIOR * p) / all_starts);
        let rated: u64 = columns.rated.iter().sum();
        let half_stars: u64 = columns.half_stars.iter().sum();
        let likes: u64 = columns.likes.iter().sum();
        let overall = if rated > 0 {
            half_stars as f64 / 2.0 / rated as f64
        } else {
            MIDDLE
        };
        let like_rate = if rated > 0 {
            likes as f64 / rated as f64
        } else {
            0.5
        };
        let mean = (0..columns.rated.len()).map(|i| {
            let n = columns.rated[i] as f64;
            if columns.rated[i] == 0 {
                return overall + f64::from(guess[i]);
            }
            (columns.half_stars[i] as f64 / 2.0 + MEAN_PRIOR * overall) / (n + MEAN_PRIOR)
        });
        Self {
            mean: mean.collect(),
            start: start.collect(),
            share,
            overall,
            like_rate,
            recent_total: recent.iter().map(|r| f64::from(*r)).sum(),
        }
    }
}

impl Tables {
    /// Number of items.
    pub fn items(&self) -> usize {
        self.columns.seen.len()
    }

    /// The day (since 1970) at whose beginning the tables were published.
    pub fn day(&self) -> i32 {
        self.day
    }

    /// Sums per item.
    pub fn columns(&self) -> &Columns {
        &self.columns
    }

    /// What was met lately, one number per item; 0: hidden by the threshold, or next to nothing.
    pub fn recent(&self) -> &[f32] {
        &self.recent
    }

    /// Share of all encounters that are with the item, `p_i`.
    pub fn share(&self, item: u32) -> f64 {
        self.derived.share[item as usize]
    }

    /// Chance that the item is among the first that a person meets.
    pub fn start(&self, item: u32) -> f64 {
        self.derived.start[item as usize]
    }

    /// The item's shrunk mean rating, in stars; the overall mean of an item that is newer than the
    /// tables.
    pub fn mean(&self, item: u32) -> f64 {
        let known = self.derived.mean.get(item as usize);
        known.copied().unwrap_or(self.derived.overall)
    }

    /// Whether enough people have met the item for it to count.
    pub fn is_seen(&self, item: u32) -> bool {
        self.columns.seen[item as usize] > 0
    }

    /// EASE's rows, `B`; the background is the mean of a row.
    pub fn ease(&self) -> &Rows {
        &self.ease
    }

    /// Rows of `P40`; the background is in units of `p_i`.
    pub fn next(&self) -> &Rows {
        &self.next
    }

    /// Rows of `L10`, in nats.
    pub fn near(&self) -> &Rows {
        &self.near
    }

    /// Rows of weights of items that nobody has met.
    pub fn unseen(&self) -> &Rows {
        &self.unseen
    }

    /// The item field.
    pub fn field(&self) -> &Field {
        &self.field
    }

    /// Replaces what was met lately by that of another day; for evaluation over past days.
    pub fn set_day(&mut self, recent: Recent) {
        self.day = recent.day;
        self.recent = recent.values;
        self.derived.recent_total = self.recent.iter().map(|r| f64::from(*r)).sum();
    }
}
