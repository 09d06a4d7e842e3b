//! What is noised: whole numbers, each a sum over people.

use crate::noise::{Group, RECENT_UNIT};
use crate::sums::Sums;

/// Days after which what was met lately weighs half.
const HALF_LIFE: f64 = 30.0;
/// What is taken off a rating, in half stars a rating: the middle of the scale.
pub(super) const MIDDLE: i64 = 6;

/// The sums, as they are noised, as of one day.
pub(super) struct Queries<'a> {
    sums: &'a Sums,
    recent: Vec<u64>,
}

impl<'a> Queries<'a> {
    pub(super) fn of(sums: &'a Sums, day: i32) -> Self {
        Self {
            sums,
            recent: recent(sums, day),
        }
    }

    /// Numbers of a group in a row; those of an item are one number a row.
    pub(super) fn row(&self, group: Group, row: u32) -> Vec<i64> {
        let counts = &self.sums.counts;
        let at = row as usize;
        let one = |value: u64| vec![value as i64];
        let items = self.sums.items();
        match group {
            Group::Seen => one(counts.seen[at]),
            Group::Rated => one(counts.rated[at]),
            Group::Likes => one(counts.likes[at]),
            Group::Starts => one(counts.starts[at]),
            Group::Recent => one(self.recent[at]),
            Group::Stars => {
                vec![counts.half_stars[at] as i64 - MIDDLE * counts.rated[at] as i64]
            }
            // Pairs of two items, once: what is after the diagonal.
            Group::Met => whole(&self.sums.pairs.met, row, items).split_off(at + 1),
            Group::Near => whole(&self.sums.transitions.near, row, items),
            Group::Far => whole(&self.sums.transitions.far, row, items),
        }
    }
}

fn whole(matrix: &crate::SumMatrix, row: u32, items: usize) -> Vec<i64> {
    let mut out = vec![0; items];
    matrix.for_row(row, |column, value| out[column as usize] = value as i64);
    out
}

/// What was met before the beginning of `today`: a day d weighs
/// `floor(64 .5^((today - 1 - d) / 30))`.
/// With weights that are whole numbers what one person adds does not depend on the others.
fn recent(sums: &Sums, today: i32) -> Vec<u64> {
    let mut out = vec![0; sums.items()];
    for (day, items) in sums.counts.days.range(..today) {
        let age = f64::from(today) - 1.0 - f64::from(*day);
        let weight = (RECENT_UNIT as f64 * libm::exp2(-age / HALF_LIFE)).floor() as u64;
        for (item, count) in items {
            out[*item as usize] += weight * count;
        }
    }
    out
}
