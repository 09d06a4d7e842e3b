//! Aggregates that a minority cannot steer: the coordinate-wise median and trimmed mean (Yin et
//! al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML 2018), and
//! multi-Krum (Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient
//! Descent", NeurIPS 2017).
//!
//! Updates come in blocks of coordinates, so that a caller never holds all of them; within a block
//! every coordinate is computed by itself, in one order of operations. With ties, the update that
//! comes first counts as the smaller: a result depends on values and order alone.
//!
//! ```
//! use lethe_learn::robust::{median, trimmed_mean};
//!
//! let honest = [[1.0], [2.0], [3.0], [4.0]];
//! let mut rows: Vec<&[f32]> = honest.iter().map(|r| &r[..]).collect();
//! rows.push(&[1e9]);
//! let mut out = [0.0];
//! median(&rows, &mut out);
//! assert_eq!(out, [3.0]);
//! trimmed_mean(&rows, &[0.2; 5], 1, &mut out);
//! assert_eq!(out, [3.0]);
//! ```

use serde::{Deserialize, Serialize};

/// What keeps a minority of a round's updates from steering the shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Robust {
    /// Nothing but the bounds on an update's length: the weighted sum.
    #[default]
    None,
    /// The median of each coordinate (Yin et al. 2018, Definition 1). Every update counts alike.
    Median,
    /// So many of the largest and of the smallest values of each coordinate do not count; the rest
    /// is averaged by weight (Yin et al. 2018, Definition 2, with a number in place of a part).
    TrimmedMean(u16),
    /// So many updates do not count: those that lie farthest from their nearest others. The rest is
    /// averaged by weight (multi-Krum; Blanchard et al. 2017, section 4, with m = n - f).
    MultiKrum(u16),
}

impl Robust {
    /// The weighted sum: left out where a recipe is written.
    pub fn is_none(&self) -> bool {
        *self == Self::None
    }

    /// Fewest updates of which this is a protection: with fewer it removes less
    /// ([`trimmed`], [`outliers`]).
    pub fn fewest(self) -> usize {
        match self {
            Self::None => 1,
            Self::Median => 3,
            Self::TrimmedMean(f) => 2 * usize::from(f) + 1,
            Self::MultiKrum(f) => 2 * usize::from(f) + 3,
        }
    }
}

/// How many values go at either end of `n`, where `f` were asked for: one is always left. (After a
/// deletion a round is repeated with those who are left, who may be fewer than a quorum.)
pub fn trimmed(f: u16, n: usize) -> usize {
    usize::from(f).min(n.saturating_sub(1) / 2)
}

/// How many of `n` updates multi-Krum leaves out, where `f` were asked for: it holds for
/// `n >= 2 f + 3`.
pub fn outliers(f: u16, n: usize) -> usize {
    usize::from(f).min(n.saturating_sub(3) / 2)
}

/// A coordinate's values, each with the place of its update.
type Column = Vec<(f32, u32)>;

fn column(rows: &[&[f32]], at: usize, out: &mut Column) {
    out.clear();
    let values = (0..).zip(rows).map(|(place, row)| (row[at], place));
    out.extend(values);
}

/// By value, then by place: no two are equal.
fn order(a: &(f32, u32), b: &(f32, u32)) -> std::cmp::Ordering {
    a.0.total_cmp(&b.0).then(a.1.cmp(&b.1))
}

/// The median of each coordinate of `rows` (`[n][block]`) into `out` (`[block]`); of an even number
/// the mean of the two in the middle. Without rows: zeros.
pub fn median(rows: &[&[f32]], out: &mut [f32]) {
    let n = rows.len();
    let mut values = Column::with_capacity(n);
    for (at, out) in out.iter_mut().enumerate() {
        column(rows, at, &mut values);
        if values.is_empty() {
            *out = 0.0;
            continue;
        }
        let (below, upper, _) = values.select_nth_unstable_by(n / 2, order);
        let upper = upper.0;
        let lower = below.iter().max_by(|a, b| order(a, b));
        *out = match lower.filter(|_| n.is_multiple_of(2)) {
            Some((lower, _)) => 0.5 * lower + 0.5 * upper,
            None => upper,
        };
    }
}

/// The weighted mean of each coordinate of `rows` (`[n][block]`) without its `trim` smallest and
/// its `trim` largest values, times the sum of all weights, into `out` (`[block]`). Weights below
/// zero count as zero, so that the result lies between the smallest and the largest value that is
/// left; where all that is left has no weight it counts alike.
pub fn trimmed_mean(rows: &[&[f32]], weights: &[f32], trim: usize, out: &mut [f32]) {
    let n = rows.len();
    let weight = |place: u32| f64::from(weights[place as usize].max(0.0));
    let all: f64 = (0..n as u32).map(weight).sum();
    let mut values = Column::with_capacity(n);
    for (at, out) in out.iter_mut().enumerate() {
        column(rows, at, &mut values);
        if n <= 2 * trim {
            *out = 0.0;
            continue;
        }
        if trim > 0 {
            values.select_nth_unstable_by(trim - 1, order);
            let rest = &mut values[trim..];
            rest.select_nth_unstable_by(n - 2 * trim - 1, order);
        }
        let kept = &mut values[trim..n - trim];
        // In the order of updates, whatever the selection left.
        kept.sort_unstable_by_key(|(_, place)| *place);
        let total: f64 = kept.iter().map(|(_, place)| weight(*place)).sum();
        let sum: f64 = if total > 0.0 {
            let parts = kept.iter().map(|(v, place)| weight(*place) * f64::from(*v));
            parts.sum::<f64>() / total
        } else {
            kept.iter().map(|(v, _)| f64::from(*v)).sum::<f64>() / kept.len() as f64
        };
        *out = (all * sum) as f32;
    }
}

/// Squared distances between updates, added up block by block; `n (n - 1) / 2` values.
#[derive(Clone, Debug)]
pub struct Distances {
    n: usize,
    /// Of update `i` and each before it: row after row.
    squares: Vec<f64>,
}

/// Sums that are kept apart and added at the end of a block, so that the compiler may use vector
/// instructions without another order of operations.
const LANES: usize = 8;

fn square(a: &[f32], b: &[f32]) -> f64 {
    let mut lanes = [0.0f64; LANES];
    let whole = a.chunks_exact(LANES).zip(b.chunks_exact(LANES));
    for (a, b) in whole {
        let pairs = a.iter().zip(b);
        for (lane, (a, b)) in lanes.iter_mut().zip(pairs) {
            let d = f64::from(*a) - f64::from(*b);
            *lane += d * d;
        }
    }
    let left = a.len() - a.len() % LANES;
    let rest = a[left..].iter().zip(&b[left..]);
    let rest = rest.map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2));
    lanes.iter().sum::<f64>() + rest.sum::<f64>()
}

impl Distances {
    /// Of `n` updates.
    pub fn new(n: usize) -> Self {
        Self {
            n,
            squares: vec![0.0; n * n.saturating_sub(1) / 2],
        }
    }

    /// Adds a block of coordinates, `[n][block]`.
    pub fn add(&mut self, rows: &[&[f32]]) {
        let pairs = (1..self.n).flat_map(|i| (0..i).map(move |j| (i, j)));
        for (sum, (i, j)) in self.squares.iter_mut().zip(pairs) {
            *sum += square(rows[i], rows[j]);
        }
    }

    fn between(&self, i: usize, j: usize) -> f64 {
        let high = i.max(j);
        self.squares[high * (high - 1) / 2 + i.min(j)]
    }

    /// Multi-Krum's choice: all but the `f` updates whose `n - f - 2` nearest others lie farthest,
    /// in order. Of equal ones the first is kept.
    pub fn chosen(&self, f: usize) -> Vec<usize> {
        let near = self.n.saturating_sub(f + 2);
        let score = |i: usize| {
            let others = (0..self.n).filter(|j| *j != i);
            let mut all: Vec<f64> = others.map(|j| self.between(i, j)).collect();
            all.sort_by(f64::total_cmp);
            all[..near.min(all.len())].iter().sum::<f64>()
        };
        let mut scored: Vec<(f64, usize)> = (0..self.n).map(|i| (score(i), i)).collect();
        scored.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        scored.truncate(self.n.saturating_sub(f));
        let mut chosen: Vec<usize> = scored.into_iter().map(|(_, i)| i).collect();
        chosen.sort_unstable();
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::Seed;

    fn updates(n: usize, len: usize) -> Vec<Vec<f32>> {
        let mut rng = Seed::from_u64(3).rng();
        (0..n)
            .map(|_| (0..len).map(|_| rng.normal()).collect())
            .collect()
    }

    fn refs(rows: &[Vec<f32>]) -> Vec<&[f32]> {
        rows.iter().map(Vec::as_slice).collect()
    }

    /// What a coordinate's definition says, by sorting.
    fn by_sorting(rows: &[Vec<f32>], at: usize) -> Vec<f32> {
        let mut column: Vec<f32> = rows.iter().map(|r| r[at]).collect();
        column.sort_by(f32::total_cmp);
        column
    }

    #[test]
    fn median_and_trimmed_mean_are_those_of_the_sorted_column() {
        for n in [1, 2, 3, 4, 7, 16] {
            let rows = updates(n, 33);
            let mut out = vec![0.0; 33];
            median(&refs(&rows), &mut out);
            for (at, got) in out.iter().enumerate() {
                let sorted = by_sorting(&rows, at);
                let low = sorted[(n - 1) / 2];
                let want = 0.5 * low + 0.5 * sorted[n / 2];
                assert!((got - want).abs() < 1e-6, "{n} {at}: {got} {want}");
            }
            for f in 0..4 {
                let trim = trimmed(f, n);
                let weights = vec![1.0 / n as f32; n];
                trimmed_mean(&refs(&rows), &weights, trim, &mut out);
                for (at, got) in out.iter().enumerate() {
                    let kept = &by_sorting(&rows, at)[trim..n - trim];
                    let want = kept.iter().sum::<f32>() / kept.len() as f32;
                    assert!((got - want).abs() < 1e-5, "{n} {f} {at}: {got} {want}");
                }
            }
        }
    }

    #[test]
    fn without_trimming_it_is_the_weighted_sum() {
        let rows = updates(5, 9);
        let weights = [0.1, 0.3, 0.2, 0.15, 0.25];
        let mut out = vec![0.0; 9];
        trimmed_mean(&refs(&rows), &weights, 0, &mut out);
        for (at, got) in out.iter().enumerate() {
            let want: f32 = rows.iter().zip(weights).map(|(r, w)| w * r[at]).sum();
            assert!((got - want).abs() < 1e-5, "{got} {want}");
        }
    }

    #[test]
    fn no_weight_takes_the_mean_out_of_the_values_that_are_left() {
        let mut rows = updates(9, 40);
        rows[0].fill(1e20);
        rows[4].fill(-1e20);
        // Who lies most claims most.
        let mut weights = vec![0.01; 9];
        weights[0] = 0.93;
        let mut out = vec![0.0; 40];
        trimmed_mean(&refs(&rows), &weights, 1, &mut out);
        for (at, got) in out.iter().enumerate() {
            let sorted = by_sorting(&rows, at);
            let all = 1.01 * got.abs();
            assert!(all < 1.1 * sorted[7].abs().max(sorted[1].abs()), "{got}");
        }
        trimmed_mean(&refs(&rows), &[0.0; 9], 1, &mut out);
        assert!(out.iter().all(|v| *v == 0.0), "no weight at all");
    }

    #[test]
    fn multi_krum_leaves_out_who_lies_far_away() {
        let mut rows = updates(11, 64);
        rows[2].iter_mut().for_each(|v| *v = 40.0 - *v);
        rows[7].iter_mut().for_each(|v| *v = -40.0 - *v);
        let mut whole = Distances::new(11);
        whole.add(&refs(&rows));
        assert_eq!(whole.chosen(2), [0, 1, 3, 4, 5, 6, 8, 9, 10]);
        assert_eq!(whole.chosen(0).len(), 11);
        // In blocks: the same choice, and distances that differ by rounding alone.
        let mut parts = Distances::new(11);
        for from in [0, 24, 48] {
            let to = (from + 24).min(64);
            let block: Vec<&[f32]> = rows.iter().map(|r| &r[from..to]).collect();
            parts.add(&block);
        }
        assert_eq!(parts.chosen(2), whole.chosen(2));
        let direct: f64 = rows[0]
            .iter()
            .zip(&rows[5])
            .map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2))
            .sum();
        assert!((whole.between(5, 0) - direct).abs() < 1e-9);
    }

    #[test]
    fn equal_updates_are_kept_in_their_order() {
        let rows = vec![vec![1.0, 1.0]; 6];
        let mut d = Distances::new(6);
        d.add(&refs(&rows));
        assert_eq!(d.chosen(1), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn few_updates_lose_less_and_never_all() {
        for n in 0..12 {
            for f in 0..8 {
                assert!(n == 0 || trimmed(f, n) * 2 < n);
                assert!(n < 3 || n >= 2 * outliers(f, n) + 3);
                let rule = Robust::TrimmedMean(f);
                assert_eq!(n >= rule.fewest(), n > 2 * usize::from(f));
            }
        }
        let d = Distances::new(1);
        assert_eq!(d.chosen(outliers(3, 1)), [0]);
        assert!(Distances::new(0).chosen(0).is_empty());
        let mut out = [7.0];
        median(&[], &mut out);
        assert_eq!(out, [0.0]);
    }
}
