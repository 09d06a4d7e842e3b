//! What crosses the split, as its host sees it.

use lethe_learn::seed::{Seed, Stream};
use lethe_model::ModelError;
use lethe_model::layout::Layout;
use lethe_model::split::{Middle, Stage};
use lethe_proto::payload::{Payload, WireFormat};

/// Gaussian noise on states, after each row was scaled down to a length.
#[derive(Clone, Copy, Debug)]
pub(super) struct Noise {
    /// Longest row, as an L2 norm.
    pub(super) clip: f32,
    /// Standard deviation of each coordinate.
    pub(super) sigma: f32,
}

impl Noise {
    /// The epsilon, at `delta`, of one prompt of `rows` rows against any other.
    ///
    /// Exchanging the prompt moves each row by at most `2 clip`: rho = (2 clip)^2 / (2 sigma^2) a
    /// row, which add up; epsilon = rho + 2 sqrt(rho ln(1 / delta)) (zero-concentrated differential
    /// privacy; Bun and Steinke, TCC 2016, propositions 1.3 and 1.6).
    pub(super) fn epsilon(&self, rows: usize, delta: f64) -> f64 {
        let ratio = 2.0 * f64::from(self.clip) / f64::from(self.sigma);
        let rho = rows as f64 * ratio * ratio / 2.0;
        rho + 2.0 * (rho * (1.0 / delta).ln()).sqrt()
    }

    /// The noise that gives a prompt of `rows` rows this epsilon.
    pub(super) fn of_epsilon(clip: f32, epsilon: f64, rows: usize, delta: f64) -> Self {
        let l = (1.0 / delta).ln();
        let root = (l + epsilon).sqrt() - l.sqrt();
        let sigma = 2.0 * f64::from(clip) * (rows as f64 / (2.0 * root * root)).sqrt();
        Self {
            clip,
            sigma: sigma as f32,
        }
    }
}

/// How states and gradients cross.
#[derive(Clone, Copy, Debug)]
pub(super) struct Crossing {
    pub(super) format: WireFormat,
    /// On what the device sends up in forward passes.
    pub(super) noise: Option<Noise>,
}

impl Crossing {
    pub(super) fn plain(format: WireFormat) -> Self {
        Self {
            format,
            noise: None,
        }
    }

    /// Rows as the defence makes them before it adds noise. The attacker does the same to what it
    /// tries.
    pub(super) fn clipped(&self, mut rows: Vec<f32>, width: usize) -> Vec<f32> {
        let Some(noise) = self.noise else {
            return rows;
        };
        for row in rows.chunks_exact_mut(width) {
            let norm = squared(row).sqrt();
            if norm > noise.clip {
                row.iter_mut().for_each(|v| *v *= noise.clip / norm);
            }
        }
        rows
    }

    /// What arrives of states.
    pub(super) fn states(
        &self,
        rows: Vec<f32>,
        width: usize,
        rng: &mut Stream,
    ) -> Result<Vec<f32>, ModelError> {
        let mut rows = self.clipped(rows, width);
        if let Some(noise) = self.noise {
            rows.iter_mut()
                .for_each(|v| *v += noise.sigma * rng.normal());
        }
        Ok(self.wire(&rows, width)?.0)
    }

    /// What arrives of values without noise, and their bytes.
    pub(super) fn wire(&self, rows: &[f32], width: usize) -> Result<(Vec<f32>, usize), ModelError> {
        let payload = Payload::encode(rows, width, self.format);
        let arrived = payload
            .decode(rows.len() / width, width)
            .map_err(|e| ModelError::Middle(Box::new(e)))?;
        Ok((arrived, payload.bytes.len()))
    }
}

/// The squared length of a row.
pub(super) fn squared(row: &[f32]) -> f32 {
    row.iter().map(|v| v * v).sum()
}

/// Something that the device sent or was sent.
pub(super) struct Seen {
    pub(super) layout: Layout,
    /// `[rows, hidden]`.
    pub(super) values: Vec<f32>,
}

/// A middle whose host writes down what comes.
pub(super) struct Tap<M> {
    pub(super) inner: M,
    crossing: Crossing,
    width: usize,
    rng: Stream,
    keeps: bool,
    /// States that arrived.
    pub(super) states: Vec<Seen>,
    /// States that training passes were answered with.
    pub(super) answered: Vec<Vec<f32>>,
    /// Gradients that arrived.
    pub(super) grads: Vec<Vec<f32>>,
    /// Bytes, both ways.
    pub(super) bytes: usize,
}

impl<M: Middle> Tap<M> {
    pub(super) fn new(inner: M, crossing: Crossing, width: usize, seed: &Seed) -> Self {
        Self {
            inner,
            crossing,
            width,
            rng: seed.derive("noise", &[]).rng(),
            keeps: true,
            states: vec![],
            answered: vec![],
            grads: vec![],
            bytes: 0,
        }
    }

    /// The same, but nothing is written down.
    pub(super) fn blind(inner: M, crossing: Crossing, width: usize, seed: &Seed) -> Self {
        Self {
            keeps: false,
            ..Self::new(inner, crossing, width, seed)
        }
    }
}

impl<M: Middle> Middle for Tap<M> {
    fn forward(
        &mut self,
        layout: &Layout,
        hidden: Vec<f32>,
        stage: Stage,
    ) -> Result<Vec<f32>, ModelError> {
        let arrived = self.crossing.states(hidden, self.width, &mut self.rng)?;
        if self.keeps {
            self.states.push(Seen {
                layout: layout.clone(),
                values: arrived.clone(),
            });
        }
        self.bytes += self.crossing.wire(&arrived, self.width)?.1;
        let out = self.inner.forward(layout, arrived, stage)?;
        let (out, bytes) = self.crossing.wire(&out, self.width)?;
        self.bytes += bytes;
        if self.keeps && stage == Stage::Train {
            self.answered.push(out.clone());
        }
        Ok(out)
    }

    fn backward(&mut self, grad: Vec<f32>) -> Result<Vec<f32>, ModelError> {
        let (arrived, bytes) = self.crossing.wire(&grad, self.width)?;
        self.bytes += bytes;
        if self.keeps {
            self.grads.push(arrived.clone());
        }
        let back = self.inner.backward(arrived)?;
        Ok(self.crossing.wire(&back, self.width)?.0)
    }
}

/// A host that computes nothing: all it wants is what arrives.
pub(super) struct Echo;

impl Middle for Echo {
    fn forward(&mut self, _: &Layout, hidden: Vec<f32>, _: Stage) -> Result<Vec<f32>, ModelError> {
        Ok(hidden)
    }

    fn backward(&mut self, grad: Vec<f32>) -> Result<Vec<f32>, ModelError> {
        Ok(grad)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accountant_and_its_inverse_agree() {
        let noise = Noise {
            clip: 24.0,
            sigma: 3.0,
        };
        // rho = 16^2 / 2 = 128 a row; by hand: 1280 + 2 sqrt(1280 * 11.5129).
        let epsilon = noise.epsilon(10, 1e-5);
        assert!((epsilon - 1522.79).abs() < 0.01, "{epsilon}");
        for epsilon in [1.0, 8.0, 1e4] {
            let noise = Noise::of_epsilon(24.0, epsilon, 285, 1e-5);
            let back = noise.epsilon(285, 1e-5);
            assert!((back / epsilon - 1.0).abs() < 1e-4, "{back} for {epsilon}");
        }
    }

    #[test]
    fn clipping_shortens_long_rows_only() {
        let crossing = Crossing {
            format: WireFormat::F32,
            noise: Some(Noise {
                clip: 5.0,
                sigma: 1.0,
            }),
        };
        let rows = crossing.clipped(vec![3.0, 4.0, 6.0, 8.0], 2);
        let want = [3.0, 4.0, 3.0, 4.0];
        assert!(
            rows.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-5),
            "{rows:?}"
        );
    }
}
