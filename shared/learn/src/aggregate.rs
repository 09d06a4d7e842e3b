//! Weighted aggregation of client updates, streamed: one accumulator, whatever the number of
//! clients.

use thiserror::Error;

/// Why an update cannot enter an aggregate.
#[derive(Debug, Error, PartialEq)]
pub enum AggregateError {
    /// The vector has another length than the aggregate.
    #[error(
        "an update has {got} values, expected {expected}: the client trained another adapter shape"
    )]
    Length {
        /// Values of the aggregate.
        expected: usize,
        /// Values of the update.
        got: usize,
    },
    /// A weight or a value is infinite or not a number.
    #[error(
        "an update holds a value that is not finite at index {index}: the client's training \
         diverged"
    )]
    NotFinite {
        /// Index of the first such value.
        index: usize,
    },
}

/// `sum_i a_i * delta_i`, added in the order of the calls (the caller sorts by subject for replay).
#[derive(Debug, Clone)]
pub struct Accumulator {
    sum: Vec<f32>,
}

impl Accumulator {
    /// An accumulator for updates of `len` values.
    pub fn new(len: usize) -> Self {
        Self {
            sum: vec![0.0; len],
        }
    }

    /// Adds `weight * delta`.
    pub fn add(&mut self, weight: f32, delta: &[f32]) -> Result<(), AggregateError> {
        check_finite(delta, self.sum.len())?;
        if !weight.is_finite() {
            return Err(AggregateError::NotFinite { index: 0 });
        }
        for (s, d) in self.sum.iter_mut().zip(delta) {
            *s += weight * d;
        }
        Ok(())
    }

    /// The sum.
    pub fn finish(self) -> Vec<f32> {
        self.sum
    }
}

/// Refuses an update of another length or with values that are not finite.
pub fn check_finite(delta: &[f32], expected: usize) -> Result<(), AggregateError> {
    if delta.len() != expected {
        return Err(AggregateError::Length {
            expected,
            got: delta.len(),
        });
    }
    match first_not_finite(delta) {
        Some(index) => Err(AggregateError::NotFinite { index }),
        None => Ok(()),
    }
}

/// Where the first value is infinite or not a number.
fn first_not_finite(values: &[f32]) -> Option<usize> {
    // Blocks without a way out inside become vector instructions; a search does not.
    const BLOCK: usize = 256;
    let bad = |block: &[f32]| block.iter().fold(false, |bad, v| bad | !v.is_finite());
    let start = values.chunks(BLOCK).position(bad)? * BLOCK;
    let within = values[start..].iter().position(|v| !v.is_finite())?;
    Some(start + within)
}

/// L2 norm, summed in f64.
pub fn norm(delta: &[f32]) -> f32 {
    let squares = delta.iter().map(|v| f64::from(*v) * f64::from(*v));
    squares.sum::<f64>().sqrt() as f32
}

/// Scales `delta` down to L2 norm `max_norm` when it is longer; returns the norm it had.
pub fn clip(delta: &mut [f32], max_norm: f32) -> f32 {
    let norm = norm(delta);
    if norm > max_norm {
        let scale = max_norm / norm;
        delta.iter_mut().for_each(|v| *v *= scale);
    }
    norm
}

/// FedAvg (McMahan et al., AISTATS 2017): weights proportional to sample counts. All zero counts
/// give zero weights.
pub fn fedavg_weights(samples: &[u32]) -> Vec<f32> {
    let total: u64 = samples.iter().map(|n| u64::from(*n)).sum();
    samples
        .iter()
        .map(|n| {
            if total == 0 {
                0.0
            } else {
                *n as f32 / total as f32
            }
        })
        .collect()
}

/// Server-side Adam on the aggregate update (FedAdam; Reddi et al., ICLR 2021, Algorithm 2 with
/// bias correction).
///
/// `first` and `second` are the moments (same length as `theta`), `step` counts from 1.
pub struct ServerAdam<'a> {
    /// First moment.
    pub first: &'a mut [f32],
    /// Second moment.
    pub second: &'a mut [f32],
    /// 1-based step number.
    pub step: u32,
    /// Learning rate.
    pub lr: f32,
}

impl ServerAdam<'_> {
    const BETA1: f32 = 0.9;
    const BETA2: f32 = 0.99;
    const EPS: f32 = 1e-6;

    /// Moves `theta` along `delta` (an aggregate of `theta_i - theta_start`, so already a descent
    /// direction).
    pub fn apply(self, theta: &mut [f32], delta: &[f32]) {
        let c1 = 1.0 - Self::BETA1.powi(self.step as i32);
        let c2 = 1.0 - Self::BETA2.powi(self.step as i32);
        let moments = self.first.iter_mut().zip(self.second.iter_mut());
        for ((t, d), (m, v)) in theta.iter_mut().zip(delta).zip(moments) {
            *m = Self::BETA1 * *m + (1.0 - Self::BETA1) * d;
            *v = Self::BETA2 * *v + (1.0 - Self::BETA2) * d * d;
            *t += self.lr * (*m / c1) / ((*v / c2).sqrt() + Self::EPS);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accumulates_and_refuses() {
        let mut acc = Accumulator::new(2);
        acc.add(0.5, &[2.0, 4.0]).expect("fits");
        assert_eq!(
            acc.add(1.0, &[1.0]),
            Err(AggregateError::Length {
                expected: 2,
                got: 1
            })
        );
        assert_eq!(
            acc.add(1.0, &[1.0, f32::NAN]),
            Err(AggregateError::NotFinite { index: 1 })
        );
        assert_eq!(acc.finish(), vec![1.0, 2.0]);
    }

    #[test]
    fn clipping_keeps_direction() {
        let mut v = [3.0, 4.0];
        assert_eq!(clip(&mut v, 1.0), 5.0);
        assert!((v[0] - 0.6).abs() < 1e-6 && (v[1] - 0.8).abs() < 1e-6);
    }

    #[test]
    fn fedavg_is_proportional() {
        assert_eq!(fedavg_weights(&[1, 3]), vec![0.25, 0.75]);
        assert_eq!(fedavg_weights(&[0, 0]), vec![0.0, 0.0]);
    }
}
