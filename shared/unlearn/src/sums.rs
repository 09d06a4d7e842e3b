//! Sums of integers that a linear head is solved from, and that a person is subtracted from.

use nalgebra::{Cholesky, DMatrix, DVector};

use crate::world::UnlearnError;

/// Parts of a unit that features are rounded to: 1/1024.
const STEPS: f32 = 1024.0;

/// Largest feature: products of two are below 2^38.
const LARGEST: f32 = 512.0;

/// Most samples: with [`LARGEST`] no sum leaves 64 bits.
const MOST: i64 = 1 << 24;

/// Sums over samples of the products of their features with each other and with the label: all that a least-squares fit needs to
/// know. Integers add and subtract without rounding, so that neither order nor grouping matters, and what was added and
/// subtracted again was never there, bit for bit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sums {
    width: usize,
    /// Upper triangle, row by row, of the products of features; the last feature is 1 for all.
    products: Vec<i64>,
    /// Products with the label, 0 or 1.
    labelled: Vec<i64>,
}

impl Sums {
    /// Nobody's, for samples of `features` features.
    pub fn new(features: usize) -> Self {
        let width = features + 1;
        Self { width, products: vec![0; width * (width + 1) / 2], labelled: vec![0; width] }
    }

    /// Samples in them.
    pub fn samples(&self) -> i64 {
        self.products.last().map_or(0, |p| p / (STEPS as i64 * STEPS as i64))
    }

    /// Adds a sample; with `sign` -1 it subtracts one that was added.
    ///
    /// # Errors
    /// A number of features other than expected, a feature that is not finite or beyond 512, more samples than 2^24, or
    /// fewer than none; the sums are as before then.
    pub fn add(&mut self, features: &[f32], label: bool, sign: i64) -> Result<(), UnlearnError> {
        if features.len() + 1 != self.width {
            let (got, expected) = (features.len(), self.width - 1);
            return Err(UnlearnError::Data(format!("{got} features, expected {expected}")));
        }
        if let Some(x) = features.iter().find(|x| x.is_nan() || x.abs() > LARGEST) {
            return Err(UnlearnError::Data(format!("a feature of {x}, expected at most {LARGEST}")));
        }
        if !(0..=MOST).contains(&(self.samples() + sign)) {
            let n = self.samples();
            return Err(UnlearnError::Data(format!("{n} samples and {sign} more, expected 0 to {MOST} in all")));
        }
        let mut row: Vec<i64> = features.iter().map(|x| (x * STEPS).round() as i64).collect();
        row.push(STEPS as i64);
        let mut at = 0;
        for (i, x) in row.iter().enumerate() {
            let those = &mut self.products[at..at + row.len() - i];
            those.iter_mut().zip(&row[i..]).for_each(|(p, y)| *p += sign * x * y);
            at += row.len() - i;
        }
        if label {
            self.labelled.iter_mut().zip(&row).for_each(|(p, x)| *p += sign * x * STEPS as i64);
        }
        Ok(())
    }

    /// Means over samples: of the products of features, and of those with the label.
    fn means(&self) -> (DMatrix<f64>, DVector<f64>) {
        let unit = f64::from(STEPS * STEPS) * self.samples().max(1) as f64;
        let mut products = DMatrix::zeros(self.width, self.width);
        let mut values = self.products.iter();
        for i in 0..self.width {
            for (j, value) in (i..self.width).zip(&mut values) {
                let mean = *value as f64 / unit;
                (products[(i, j)], products[(j, i)]) = (mean, mean);
            }
        }
        (products, DVector::from_iterator(self.width, self.labelled.iter().map(|v| *v as f64 / unit)))
    }

    /// The ridge regression of the label, with a penalty of `ridge` times the features' mean variance on all weights but the
    /// last feature's (the untuned model's log-odds) and the intercept. Deterministic.
    ///
    /// # Errors
    /// No samples, no features, or features that depend on each other too much for so small a penalty.
    pub fn solve(&self, ridge: f64) -> Result<Line, UnlearnError> {
        let (products, labelled) = self.means();
        let d = self.width - 1;
        if self.samples() == 0 || d == 0 {
            let n = self.samples();
            return Err(UnlearnError::Data(format!("{n} samples of {d} features, expected one of each at least")));
        }
        let rate = labelled[d].clamp(0.5 / (self.samples() as f64 + 1.0), 1.0 - 0.5 / (self.samples() as f64 + 1.0));
        let mean = DVector::from_fn(d, |i, _| products[(i, d)]);
        let mut covariance = products.view((0, 0), (d, d)) - &mean * mean.transpose();
        let variance = covariance.diagonal().rows(0, d - 1).mean();
        for i in 0..d {
            // A free weight still needs a pivot above rounding where its feature does not vary.
            covariance[(i, i)] += if i + 1 < d { ridge * variance.max(1e-12) } else { 1e-9 };
        }
        let slopes = labelled.rows(0, d) - &mean * labelled[d];
        let factors = Cholesky::new(covariance).ok_or_else(|| {
            UnlearnError::Data(format!("a penalty of {ridge} does not make {d} features independent: raise it"))
        })?;
        let weights = factors.solve(&slopes);
        Ok(Line { weights: weights.iter().copied().collect(), mean: mean.iter().copied().collect(), rate })
    }
}

/// A fitted line, in probability around the mean.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    weights: Vec<f64>,
    mean: Vec<f64>,
    rate: f64,
}

impl Line {
    /// Logits `[no, yes]`: log-odds that have the line's value and slope at the mean, since a line leaves \[0, 1\].
    pub fn logits(&self, features: &[f32]) -> [f32; 2] {
        let above: f64 =
            self.weights.iter().zip(&self.mean).zip(features).map(|((w, m), x)| w * (f64::from(*x) - m)).sum();
        let spread = self.rate * (1.0 - self.rate);
        [0.0, ((self.rate / (1.0 - self.rate)).ln() + above / spread) as f32]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lethe_learn::seed::Seed;

    fn rows(n: usize) -> Vec<([f32; 3], bool)> {
        let mut rng = Seed::from_u64(3).rng();
        let one = |_| {
            let x = [rng.normal(), rng.normal(), rng.normal()];
            (x, x[0] - 0.5 * x[1] + 0.3 * rng.normal() > 0.0)
        };
        (0..n).map(one).collect()
    }

    #[test]
    fn what_was_subtracted_was_never_there_whatever_the_order() {
        let all = rows(200);
        let (mut forgot, mut never) = (Sums::new(3), Sums::new(3));
        all.iter().for_each(|(x, y)| forgot.add(x, *y, 1).expect("adds"));
        all[50..].iter().rev().for_each(|(x, y)| never.add(x, *y, 1).expect("adds"));
        assert_ne!(forgot, never, "fifty more");
        all[..50].iter().for_each(|(x, y)| forgot.add(x, *y, -1).expect("subtracts"));
        assert_eq!(forgot, never);
        assert_eq!(forgot.samples(), 150);
        assert_eq!(forgot.solve(1.0).expect("solves"), never.solve(1.0).expect("solves"));
    }

    #[test]
    fn fits_the_line_that_least_squares_has() {
        let mut sums = Sums::new(3);
        let all = rows(4000);
        all.iter().for_each(|(x, y)| sums.add(x, *y, 1).expect("adds"));
        let line = sums.solve(0.0).expect("solves");
        // Of independent features each weight is the covariance with the label over the variance.
        let (n, rate) = (all.len() as f64, line.rate);
        for k in 0..3 {
            let mean: f64 = all.iter().map(|(x, _)| f64::from(x[k])).sum::<f64>() / n;
            let var: f64 = all.iter().map(|(x, _)| (f64::from(x[k]) - mean).powi(2)).sum::<f64>() / n;
            let cov: f64 =
                all.iter().map(|(x, y)| (f64::from(x[k]) - mean) * (f64::from(u8::from(*y)) - rate)).sum::<f64>() / n;
            assert!((line.weights[k] - cov / var).abs() < 0.02, "{k}: {} and {}", line.weights[k], cov / var);
        }
        let heavy = sums.solve(10.0).expect("solves");
        assert!(heavy.weights[0] < 0.2 * line.weights[0], "the penalty holds the first");
        assert!((heavy.weights[2] - line.weights[2]).abs() < 0.05, "the last is free");
    }

    #[test]
    fn refuses_what_does_not_fit_and_keeps_what_there_was() {
        let mut sums = Sums::new(3);
        sums.add(&[1.0, 2.0, 3.0], true, 1).expect("adds");
        let before = sums.clone();
        for (x, sign) in [(vec![1.0; 2], 1), (vec![1.0, f32::NAN, 0.0], 1), (vec![1.0, 600.0, 0.0], 1)] {
            assert!(sums.add(&x, true, sign).is_err(), "{x:?}");
        }
        sums.add(&[1.0, 2.0, 3.0], true, -1).expect("subtracts");
        assert!(sums.add(&[1.0, 2.0, 3.0], true, -1).is_err(), "nobody is left");
        assert!(sums.solve(1.0).is_err(), "of nobody");
        sums.add(&[1.0, 2.0, 3.0], true, 1).expect("adds");
        assert_eq!(sums, before);
    }

    #[test]
    fn twins_need_a_penalty() {
        let mut twins = Sums::new(3);
        rows(100).iter().for_each(|(x, y)| twins.add(&[x[0], x[0], x[1]], *y, 1).expect("adds"));
        let line = twins.solve(1e-3).expect("solves");
        assert!((line.weights[0] - line.weights[1]).abs() < 1e-9, "they share the weight: {:?}", line.weights);
        assert!(twins.solve(-1e-3).is_err(), "less than none");
    }
}
