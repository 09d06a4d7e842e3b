//! How lists are measured: ranks over the full catalogue.

/// The mid-rank of an item among all scores: items that are better, and half of those that are as
/// good; 0 is the best. `None` if the item itself may not be shown (`-inf`, or not a number).
pub fn mid_rank(scores: &[f32], item: u32) -> Option<f64> {
    let own = scores[item as usize];
    if own == f32::NEG_INFINITY || own.is_nan() {
        return None;
    }
    let mut better = 0u32;
    let mut equal = 0u32;
    for score in scores {
        better += u32::from(*score > own);
        equal += u32::from(*score == own);
    }
    Some(f64::from(better) + f64::from(equal - 1) / 2.0)
}

/// HR@10 and NDCG@10 of ranks; a rank of `None` is a miss.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Ranking {
    /// Share of targets among the first ten.
    pub hr: f64,
    /// Mean of `1 / log2(rank + 2)` of those, 0 for the rest.
    pub ndcg: f64,
}

/// Places of a list that count.
const PLACES: f64 = 10.0;

impl Ranking {
    /// The means over all targets.
    pub fn of(ranks: &[Option<f64>]) -> Self {
        let mut out = Self::default();
        for rank in ranks.iter().flatten().filter(|r| **r < PLACES) {
            out.hr += 1.0;
            out.ndcg += gain(*rank);
        }
        let n = ranks.len().max(1) as f64;
        out.hr /= n;
        out.ndcg /= n;
        out
    }
}

/// What a target at a rank adds to NDCG@10.
pub fn gain(rank: f64) -> f64 {
    if rank < PLACES {
        1.0 / (rank + 2.0).log2()
    } else {
        0.0
    }
}

/// Mean and standard error of the difference of two figures over the same targets.
pub fn paired(a: &[f64], b: &[f64]) -> (f64, f64) {
    let n = a.len().min(b.len()).max(1) as f64;
    let differences: Vec<f64> = a.iter().zip(b).map(|(x, y)| x - y).collect();
    let mean = differences.iter().sum::<f64>() / n;
    let variance = differences.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    (mean, (variance / n).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_share_their_ranks() {
        let scores = [1.0, 3.0, 1.0, f32::NEG_INFINITY, 1.0];
        assert_eq!(mid_rank(&scores, 1), Some(0.0));
        assert_eq!(mid_rank(&scores, 0), Some(2.0));
        assert_eq!(mid_rank(&scores, 3), None);
        let r = Ranking::of(&[Some(0.0), Some(10.0), None, Some(2.0)]);
        assert_eq!((r.hr, r.ndcg), (0.5, (1.0 + 0.5) / 4.0));
    }
}
