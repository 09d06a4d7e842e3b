//! Ranking metrics and the spread of them over clients.

use std::collections::BTreeMap;

/// Area under the ROC curve with ties counted half; `None` unless both labels occur or if a score
/// is not a number.
pub fn auc(scores: &[f32], labels: &[bool]) -> Option<f64> {
    let mut rows: Vec<(f32, bool)> = scores.iter().copied().zip(labels.iter().copied()).collect();
    let pos = rows.iter().filter(|r| r.1).count();
    let neg = rows.len() - pos;
    if pos == 0 || neg == 0 || scores.len() != labels.len() || rows.iter().any(|r| r.0.is_nan()) {
        return None;
    }
    rows.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut rank_sum = 0.0;
    let mut i = 0;
    while i < rows.len() {
        let mut j = i;
        while j < rows.len() && rows[j].0 == rows[i].0 {
            j += 1;
        }
        let mean_rank = (i + 1 + j) as f64 / 2.0;
        rank_sum += mean_rank * rows[i..j].iter().filter(|r| r.1).count() as f64;
        i = j;
    }
    Some((rank_sum - (pos * (pos + 1)) as f64 / 2.0) / (pos as f64 * neg as f64))
}

/// AUC of each user who has both labels, keyed by user.
pub fn user_aucs<U: Ord + Clone>(users: &[U], scores: &[f32], labels: &[bool]) -> BTreeMap<U, f64> {
    let mut groups: BTreeMap<U, (Vec<f32>, Vec<bool>)> = BTreeMap::new();
    for ((u, s), l) in users.iter().zip(scores).zip(labels) {
        let g = groups.entry(u.clone()).or_default();
        g.0.push(*s);
        g.1.push(*l);
    }
    groups
        .into_iter()
        .filter_map(|(u, (s, l))| auc(&s, &l).map(|a| (u, a)))
        .collect()
}

/// UAUC: the mean of [`user_aucs`]; `None` when no user has both labels.
pub fn uauc<U: Ord + Clone>(users: &[U], scores: &[f32], labels: &[bool]) -> Option<f64> {
    let per_user = user_aucs(users, scores, labels);
    let values: Vec<f64> = per_user.into_values().collect();
    Spread::of(&values).map(|s| s.mean)
}

/// Mean, standard deviation and mean of the worst tenth of a set of client figures.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// Arithmetic mean.
    pub mean: f64,
    /// Population standard deviation.
    pub std: f64,
    /// Mean of the lowest tenth (at least one value).
    pub worst_decile: f64,
}

impl Spread {
    /// `None` for an empty set.
    pub fn of(values: &[f64]) -> Option<Self> {
        if values.is_empty() {
            return None;
        }
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let std = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt();
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let tenth = values.len().div_ceil(10);
        let worst_decile = sorted[..tenth].iter().sum::<f64>() / tenth as f64;
        Some(Self {
            mean,
            std,
            worst_decile,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auc_counts_ties_half() {
        assert_eq!(auc(&[1.0, 1.0], &[true, false]), Some(0.5));
        assert_eq!(
            auc(&[1.0, 2.0, 3.0, 4.0], &[false, true, false, true]),
            Some(0.75)
        );
        assert_eq!(auc(&[1.0], &[true]), None);
        assert_eq!(auc(&[f32::NAN, 1.0], &[true, false]), None);
    }

    #[test]
    fn uauc_skips_one_sided_users() {
        let users = [1, 1, 2, 2, 3];
        let labels = [true, false, false, true, true];
        assert_eq!(uauc(&users, &[0.9, 0.1, 0.8, 0.2, 0.5], &labels), Some(0.5));
    }

    #[test]
    fn spread_of_ten() {
        let v: Vec<f64> = (0..10).map(f64::from).collect();
        let s = Spread::of(&v).expect("ten values");
        assert_eq!((s.mean, s.worst_decile), (4.5, 0.0));
    }
}
