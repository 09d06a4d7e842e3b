//! Sums of integers that a linear head is solved from, and that a person is subtracted from.

use nalgebra::{Cholesky, DMatrix, DVector};

use crate::world::UnlearnError;

/// Parts of a unit that features are rounded to: 1/1024.
const STEPS: f32 = 1024.0;

/// Largest feature: products of two are below 2^38.
const LARGEST: f32 = 512.0;

/// Samples of its own variance that draw the untuned model's slope to what it says.
pub const OWN: f64 = 20.0;

/// Most samples: with [`LARGEST`] no sum leaves 64 bits.
const MOST: i64 = 1 << 24;

/// What is done with a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It joins.
    Add,
    /// It was added, and leaves.
    Subtract,
}

/// Sums over samples of the products of their features with each other and with the label: all that
/// a least-squares fit needs to know. Integers add and subtract without rounding, so that neither
/// order nor grouping matters, and what was added and subtracted again was never there, bit for
/// bit.
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
        Self {
            width,
            products: vec![0; width * (width + 1) / 2],
            labelled: vec![0; width],
        }
    }

    /// Samples in them.
    pub fn samples(&self) -> i64 {
        self.products
            .last()
            .map_or(0, |p| p / (STEPS as i64 * STEPS as i64))
    }

    /// Adds a sample, or subtracts one that was added: with the same features to the bit, which the
    /// same build on the same kind of processor gives, or a record of them.
    ///
    /// # Errors
    /// A number of features other than expected, a feature that is not finite or beyond 512, more
    /// samples than 2^24, or fewer than none; the sums are as before then.
    pub fn add(
        &mut self,
        features: &[f32],
        label: bool,
        change: Change,
    ) -> Result<(), UnlearnError> {
        let sign = if change == Change::Add { 1 } else { -1 };
        if features.len() + 1 != self.width {
            let (got, expected) = (features.len(), self.width - 1);
            return Err(UnlearnError::Data(format!(
                "{got} features, expected {expected}"
            )));
        }
        if let Some(x) = features.iter().find(|x| x.is_nan() || x.abs() > LARGEST) {
            return Err(UnlearnError::Data(format!(
                "a feature of {x}, expected at most {LARGEST}"
            )));
        }
        if !(0..=MOST).contains(&(self.samples() + sign)) {
            let n = self.samples();
            return Err(UnlearnError::Data(format!(
                "{n} samples, cannot {change:?} one: expected 0 to {MOST} in all"
            )));
        }
        let mut row: Vec<i64> = features
            .iter()
            .map(|x| (x * STEPS).round() as i64)
            .collect();
        row.push(STEPS as i64);
        let mut at = 0;
        for (i, x) in row.iter().enumerate() {
            let those = &mut self.products[at..at + row.len() - i];
            those
                .iter_mut()
                .zip(&row[i..])
                .for_each(|(p, y)| *p += sign * x * y);
            at += row.len() - i;
        }
        if label {
            self.labelled
                .iter_mut()
                .zip(&row)
                .for_each(|(p, x)| *p += sign * x * STEPS as i64);
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
        (
            products,
            DVector::from_iterator(self.width, self.labelled.iter().map(|v| *v as f64 / unit)),
        )
    }

    /// Ridge regression of the label around the untuned model, whose log-odds are the last feature:
    /// its slope is drawn to the one that takes the log-odds at their word, the others' to none,
    /// with the weight of `ridge` samples of the features' mean variance ([`OWN`] of its own for
    /// the last). Few samples leave the untuned model; nobody's is the untuned model.
    /// Deterministic.
    ///
    /// # Errors
    /// No features, or features that depend on each other too much for so small a penalty.
    pub fn solve(&self, ridge: f64) -> Result<Line, UnlearnError> {
        let d = self.width - 1;
        if d == 0 {
            return Err(UnlearnError::Data(
                "no features, expected one at least: the untuned model's log-odds".into(),
            ));
        }
        let mut line = Line {
            weights: vec![0.0; d],
            mean: vec![0.0; d],
            offset: 0.0,
        };
        line.weights[d - 1] = 1.0;
        if self.samples() == 0 {
            return Ok(line);
        }
        let (products, labelled) = self.means();
        let n = self.samples() as f64;
        // Half a sample of the other label: a rate of 0 or 1 has no log-odds.
        let rate = labelled[d].clamp(0.5 / (n + 1.0), 1.0 - 0.5 / (n + 1.0));
        let spread = rate * (1.0 - rate);
        let mean = DVector::from_fn(d, |i, _| products[(i, d)]);
        let covariance = products.view((0, 0), (d, d)) - &mean * mean.transpose();
        let slopes = labelled.rows(0, d) - &mean * labelled[d] - covariance.column(d - 1) * spread;
        let variance = (covariance.trace() - covariance[(d - 1, d - 1)]) / (d - 1).max(1) as f64;
        let mut penalised = covariance.clone();
        for i in 0..d {
            let penalty = if i + 1 < d {
                ridge * variance
            } else {
                OWN * covariance[(i, i)]
            };
            // A feature that does not vary still needs a pivot.
            penalised[(i, i)] += penalty / n + 1e-12;
        }
        let factors = Cholesky::new(penalised).ok_or_else(|| {
            UnlearnError::Data(format!(
                "a penalty of {ridge} does not make {d} features independent: raise it"
            ))
        })?;
        let change = factors.solve(&slopes);
        line.weights
            .iter_mut()
            .zip(change.iter())
            .for_each(|(w, c)| *w += c / spread);
        line.mean = mean.iter().copied().collect();
        line.offset = (rate / (1.0 - rate)).ln();
        Ok(line)
    }
}

/// A fitted line, as log-odds that have its value and slope at the mean (a line in probability
/// leaves \[0, 1\]).
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    weights: Vec<f64>,
    mean: Vec<f64>,
    offset: f64,
}

impl Line {
    /// Logits `[no, yes]`.
    pub fn logits(&self, features: &[f32]) -> [f32; 2] {
        let above: f64 = self
            .weights
            .iter()
            .zip(&self.mean)
            .zip(features)
            .map(|((w, m), x)| w * (f64::from(*x) - m))
            .sum();
        [0.0, (self.offset + above) as f32]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lethe_learn::seed::Seed;

    type Row = ([f32; 3], bool);

    /// Features that depend on each other and are not centred; the last says something of its own.
    fn rows(n: usize) -> Vec<Row> {
        let mut rng = Seed::from_u64(3).rng();
        let one = |_| {
            let a = rng.normal();
            let x = [
                5.0 + a,
                -3.0 + 0.5 * a + rng.normal(),
                2.0 + 0.7 * a + rng.normal(),
            ];
            (
                x,
                a - 0.5 * (x[1] + 3.0) + 0.8 * (x[2] - 2.0) + 0.3 * rng.normal() > 0.2,
            )
        };
        (0..n).map(one).collect()
    }

    fn sums(rows: &[Row]) -> Sums {
        let mut sums = Sums::new(3);
        rows.iter()
            .for_each(|(x, y)| sums.add(x, *y, Change::Add).expect("adds"));
        sums
    }

    #[test]
    fn what_was_subtracted_was_never_there_whatever_the_order() {
        let all = rows(200);
        let mut forgot = sums(&all);
        let reversed: Vec<_> = all[50..].iter().rev().copied().collect();
        let never = sums(&reversed);
        assert_ne!(forgot, never, "fifty more");
        all[..50]
            .iter()
            .for_each(|(x, y)| forgot.add(x, *y, Change::Subtract).expect("subtracts"));
        assert_eq!(forgot, never);
        assert_eq!(forgot.samples(), 150);
        assert_eq!(
            forgot.solve(1.0).expect("solves"),
            never.solve(1.0).expect("solves")
        );
    }

    /// Gradient of what the docstring says is least: the squared error of the line in probability,
    /// and the penalties.
    fn gradient(rows: &[Row], line: &Line, ridge: f64) -> [f64; 3] {
        let n = rows.len() as f64;
        let mean = |f: &dyn Fn(&Row) -> f64| rows.iter().map(f).sum::<f64>() / n;
        let rate = mean(&|(_, y)| f64::from(u8::from(*y)));
        let spread = rate * (1.0 - rate);
        let centre: Vec<f64> = (0..3).map(|k| mean(&|(x, _)| f64::from(x[k]))).collect();
        let x = |(x, _): &Row, k: usize| f64::from(x[k]) - centre[k];
        let variance: Vec<f64> = (0..3).map(|k| mean(&|r| x(r, k).powi(2))).collect();
        let error = |r: &Row| {
            rate + spread * (0..3).map(|k| line.weights[k] * x(r, k)).sum::<f64>()
                - f64::from(u8::from(r.1))
        };
        std::array::from_fn(|k| {
            let own = match k {
                2 => OWN * variance[2] * spread * (line.weights[2] - 1.0),
                _ => ridge * (variance[0] + variance[1]) / 2.0 * spread * line.weights[k],
            };
            mean(&|r| error(r) * x(r, k)) + own / n
        })
    }

    #[test]
    fn finds_the_minimum() {
        let all = rows(300);
        for ridge in [0.0, 30.0, 3000.0] {
            let line = sums(&all).solve(ridge).expect("solves");
            let slopes = gradient(&all, &line, ridge);
            // Features are rounded to 1/1024.
            assert!(slopes.iter().all(|g| g.abs() < 2e-3), "{ridge}: {slopes:?}");
            let mut off = line.clone();
            off.weights[1] += 0.3;
            assert!(
                gradient(&all, &off, ridge)[1].abs() > 2e-2,
                "{ridge}: another line has another slope"
            );
            let at_mean: Vec<f32> = line.mean.iter().map(|m| *m as f32).collect();
            let rate = all.iter().filter(|(_, y)| *y).count() as f32 / all.len() as f32;
            assert!(
                (line.logits(&at_mean)[1] - (rate / (1.0 - rate)).ln()).abs() < 1e-3,
                "its value at the mean"
            );
        }
    }

    #[test]
    fn few_samples_leave_the_untuned_model_and_nobody_is_it() {
        let nobody = Sums::new(3).solve(100.0).expect("solves");
        assert_eq!(nobody.logits(&[7.0, -2.0, 0.75]), [0.0, 0.75]);
        let few = sums(&rows(2)).solve(100.0).expect("solves");
        let all = sums(&rows(2000)).solve(100.0).expect("solves");
        let far = |l: &Line| l.weights[0].abs() + l.weights[1].abs() + (l.weights[2] - 1.0).abs();
        assert!(
            far(&few) < 0.4 && far(&all) > 1.0,
            "{} and {}",
            far(&few),
            far(&all)
        );
    }

    #[test]
    fn refuses_what_does_not_fit_and_keeps_what_there_was() {
        let mut sums = Sums::new(3);
        sums.add(&[1.0, 2.0, 3.0], true, Change::Add).expect("adds");
        let before = sums.clone();
        for x in [
            vec![1.0; 2],
            vec![1.0, f32::NAN, 0.0],
            vec![1.0, 600.0, 0.0],
        ] {
            assert!(sums.add(&x, true, Change::Add).is_err(), "{x:?}");
        }
        assert_eq!(sums, before);
        sums.add(&[1.0, 2.0, 3.0], true, Change::Subtract)
            .expect("subtracts");
        assert!(
            sums.add(&[1.0, 2.0, 3.0], true, Change::Subtract).is_err(),
            "nobody is left"
        );
        assert_eq!(sums, Sums::new(3));
        assert!(Sums::new(0).solve(1.0).is_err(), "no features");
    }

    #[test]
    fn twins_share_a_weight_and_less_than_no_penalty_is_refused() {
        let twins: Vec<_> = rows(100)
            .iter()
            .map(|(x, y)| ([x[0], x[0], x[2]], *y))
            .collect();
        let line = sums(&twins).solve(1.0).expect("solves");
        assert!(
            (line.weights[0] - line.weights[1]).abs() < 1e-6,
            "{:?}",
            line.weights
        );
        assert!(sums(&twins).solve(-1.0).is_err());
    }
}
