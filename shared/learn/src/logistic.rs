//! Logistic regression on a handful of features: what makes one score of several.

use crate::metrics::Spread;

/// A fitted model; features are put on one scale by what they were fitted on.
#[derive(Clone, Debug, PartialEq)]
pub struct Logistic {
    /// Mean and standard deviation of each feature.
    scales: Vec<(f64, f64)>,
    /// One weight per feature, then the intercept.
    weights: Vec<f64>,
}

impl Logistic {
    /// Fits `labels` to `rows` (`[samples][features]`, all of one length) by damped Newton steps on
    /// the mean log-loss plus `ridge / 2` times the squared weights of the standardised features;
    /// the intercept is free. Deterministic. Without rows, or without both labels, every weight is
    /// zero.
    pub fn fit(rows: &[Vec<f64>], labels: &[bool], ridge: f64) -> Self {
        let width = rows.first().map_or(0, Vec::len);
        let column = |k: usize| rows.iter().map(|r| r[k]).collect::<Vec<f64>>();
        let scale = |k| {
            Spread::of(&column(k)).map_or((0.0, 1.0), |s| {
                (s.mean, if s.std > 0.0 { s.std } else { 1.0 })
            })
        };
        let mut out = Self {
            scales: (0..width).map(scale).collect(),
            weights: vec![0.0; width + 1],
        };
        if labels.iter().all(|l| *l) || !labels.iter().any(|l| *l) {
            return out;
        }
        let x: Vec<Vec<f64>> = rows.iter().map(|r| out.scaled(r)).collect();
        for _ in 0..50 {
            let step = out.newton(&x, labels, ridge);
            let size = step.iter().map(|s| s.abs()).fold(0.0, f64::max);
            // A step of more than one unit of log-odds leaves the region in which the curvature
            // holds.
            let damping = if size > 1.0 { 1.0 / size } else { 1.0 };
            out.weights
                .iter_mut()
                .zip(&step)
                .for_each(|(w, s)| *w -= damping * s);
            if size < 1e-9 {
                break;
            }
        }
        out
    }

    /// Log-odds of one row.
    pub fn score(&self, row: &[f64]) -> f64 {
        dot(&self.weights, &self.scaled(row))
    }

    /// The row on the scale of the fit, and 1 for the intercept.
    fn scaled(&self, row: &[f64]) -> Vec<f64> {
        let each = row
            .iter()
            .zip(&self.scales)
            .map(|(v, (mean, std))| (v - mean) / std);
        each.chain(std::iter::once(1.0)).collect()
    }

    fn newton(&self, x: &[Vec<f64>], labels: &[bool], ridge: f64) -> Vec<f64> {
        let (n, width) = (x.len() as f64, self.weights.len());
        let (mut gradient, mut curvature) = (vec![0.0; width], vec![vec![0.0; width]; width]);
        for (row, label) in x.iter().zip(labels) {
            let p = 1.0 / (1.0 + (-dot(&self.weights, row)).exp());
            for i in 0..width {
                gradient[i] += (p - f64::from(u8::from(*label))) * row[i] / n;
                for j in 0..width {
                    curvature[i][j] += p * (1.0 - p) * row[i] * row[j] / n;
                }
            }
        }
        for i in 0..width {
            let decay = if i + 1 < width { ridge } else { 0.0 };
            gradient[i] += decay * self.weights[i];
            curvature[i][i] += decay + 1e-9;
        }
        solve(curvature, gradient)
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Gaussian elimination with partial pivoting; the matrix is positive definite here.
fn solve(mut m: Vec<Vec<f64>>, mut y: Vec<f64>) -> Vec<f64> {
    let n = y.len();
    for k in 0..n {
        let pivot = (k..n)
            .max_by(|a, b| m[*a][k].abs().total_cmp(&m[*b][k].abs()))
            .unwrap_or(k);
        m.swap(k, pivot);
        y.swap(k, pivot);
        let (top, below) = m.split_at_mut(k + 1);
        for (i, row) in below.iter_mut().enumerate() {
            let f = row[k] / top[k][k];
            row.iter_mut().zip(&top[k]).for_each(|(v, t)| *v -= f * t);
            y[k + 1 + i] -= f * y[k];
        }
    }
    for k in (0..n).rev() {
        let known: f64 = (k + 1..n).map(|j| m[k][j] * y[j]).sum();
        y[k] = (y[k] - known) / m[k][k];
    }
    y
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::Seed;

    #[test]
    fn finds_the_weights_that_made_the_labels() {
        let mut rng = Seed::from_u64(1).rng();
        let rows: Vec<Vec<f64>> = (0..20_000)
            .map(|_| {
                vec![
                    f64::from(rng.normal()),
                    10.0 + 5.0 * f64::from(rng.normal()),
                ]
            })
            .collect();
        let truth = |r: &[f64]| 1.5 * r[0] - 0.2 * (r[1] - 10.0) + 0.5;
        let labels: Vec<bool> = rows
            .iter()
            .map(|r| f64::from(rng.unit()) < 1.0 / (1.0 + (-truth(r)).exp()))
            .collect();
        let fitted = Logistic::fit(&rows, &labels, 0.0);
        for row in [[0.0, 10.0], [1.0, 10.0], [0.0, 15.0], [-2.0, 5.0]] {
            let (got, want) = (fitted.score(&row), truth(&row));
            assert!((got - want).abs() < 0.15, "{row:?}: {got}, expected {want}");
        }
    }

    #[test]
    fn separable_data_and_a_constant_feature_have_an_answer() {
        let rows: Vec<Vec<f64>> = (0..10).map(|i| vec![f64::from(i), 7.0]).collect();
        let labels: Vec<bool> = (0..10).map(|i| i >= 5).collect();
        let fitted = Logistic::fit(&rows, &labels, 0.01);
        assert!(fitted.score(&[9.0, 7.0]) > 1.0 && fitted.score(&[0.0, 7.0]) < -1.0);
    }

    #[test]
    fn without_both_labels_it_says_nothing() {
        assert_eq!(
            Logistic::fit(&[vec![1.0], vec![2.0]], &[true, true], 0.1).score(&[5.0]),
            0.0
        );
        assert_eq!(Logistic::fit(&[], &[], 0.1).score(&[]), 0.0);
    }
}
