//! Means, their errors, and the area under the curve with an error over people.

use lethe_learn::metrics::auc;
use lethe_learn::seed::Seed;

/// A mean and its standard error; no error of fewer than two values.
pub(super) fn mean(values: &[f64]) -> [f64; 2] {
    let n = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    [mean, (squares / (n - 1.0).max(1.0) / n).sqrt()]
}

/// Scores of one person's samples.
pub(super) type Scores = Vec<f32>;

/// AUC of telling samples of `members` (should score higher) from those of `others`, and its
/// standard error: people are drawn anew, with their samples, 200 times.
pub(super) fn apart(members: &[Scores], others: &[Scores], seed: &Seed) -> [f64; 2] {
    let whole = area(
        &members.iter().collect::<Vec<_>>(),
        &others.iter().collect::<Vec<_>>(),
    );
    let mut rng = seed.derive("bootstrap", &[]).rng();
    let mut draw =
        |of: &[Scores]| -> Vec<usize> { (0..of.len()).map(|_| rng.below(of.len())).collect() };
    let again: Vec<f64> = (0..200)
        .map(|_| {
            let ins: Vec<&Scores> = draw(members).iter().map(|i| &members[*i]).collect();
            let outs: Vec<&Scores> = draw(others).iter().map(|i| &others[*i]).collect();
            area(&ins, &outs)
        })
        .collect();
    let centre = again.iter().sum::<f64>() / again.len() as f64;
    let spread = again.iter().map(|v| (v - centre).powi(2)).sum::<f64>() / again.len() as f64;
    [whole, spread.sqrt()]
}

fn area(members: &[&Scores], others: &[&Scores]) -> f64 {
    let mut scores = vec![];
    let mut labels = vec![];
    for (group, label) in [(members, true), (others, false)] {
        for own in group {
            scores.extend(own.iter().copied());
            labels.extend(own.iter().map(|_| label));
        }
    }
    auc(&scores, &labels).unwrap_or(0.5)
}

/// One score a person: the mean of their samples'.
pub(super) fn whole_people(of: &[Scores]) -> Vec<Scores> {
    of.iter()
        .map(|own| vec![own.iter().sum::<f32>() / own.len().max(1) as f32])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_have_errors_over_people() {
        let seed = Seed::from_u64(1);
        let high = vec![vec![1.0, 2.0], vec![3.0, 4.0]];
        let low = vec![vec![-1.0], vec![0.0]];
        assert_eq!(apart(&high, &low, &seed), [1.0, 0.0]);
        let mixed = vec![vec![0.0, 2.0], vec![-3.0, 4.0]];
        let [area, error] = apart(&mixed, &low, &seed);
        assert!(
            (area - 0.6875).abs() < 1e-9 && error > 0.05,
            "{area} {error}"
        );
        assert_eq!(whole_people(&high), [[1.5], [3.5]]);
    }

    #[test]
    fn a_mean_has_its_error() {
        assert_eq!(mean(&[1.0, 3.0]), [2.0, 1.0]);
        assert_eq!(mean(&[1.0]), [1.0, 0.0]);
    }
}
