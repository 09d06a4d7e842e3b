//! How the predictions or adapters of several shards become one prediction.

use lethe_learn::apa::{ApaParams, ErrorRow, omega};
use lethe_learn::seed::Seed;

use crate::world::{Mixing, ModelId, SampleId, UnlearnError, World};

/// A way to combine shards.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Combine {
    /// SISA: the mean of the predicted probabilities.
    Mean,
    /// GraphEraser's LBAggr (Chen et al., CCS 2022, section 4.3): one weight per shard, on the
    /// simplex, learned on validation samples by gradient descent on the loss of the weighted
    /// probabilities.
    Learned,
    /// RecEraser's attention (Chen et al., WWW 2022, section 3.3): the weight of a shard depends on
    /// the user and the item; learned on validation samples. Departure: their attention works on
    /// each shard's own user and item embeddings, which adapters of a language model do not have;
    /// here every shard has a vector that is matched with the pretrained ones.
    Attention,
    /// APA (arXiv 2404.10327): per query, the softmax of how little each adapter errs on the
    /// nearest validation samples; the adapters are mixed, and one pass predicts.
    Apa(Mixing, ApaParams),
}

/// What was learned for a combination.
#[derive(Clone, Debug)]
pub enum Fitted {
    /// Nothing.
    Mean,
    /// A weight per shard.
    Weights(Vec<f64>),
    /// A vector per shard.
    Attention(Vec<Vec<f64>>),
    /// Errors of each adapter on validation samples.
    Table(Vec<ErrorRow>, Mixing, ApaParams),
}

fn yes(l: &[f32; 2]) -> f64 {
    1.0 / (1.0 + (f64::from(l[0]) - f64::from(l[1])).exp())
}

/// Logits whose probability of yes is `p`.
fn logits(p: f64) -> [f32; 2] {
    let p = p.clamp(1e-9, 1.0 - 1e-9);
    [(1.0 - p).ln() as f32, p.ln() as f32]
}

fn softmax(x: &[f64]) -> Vec<f64> {
    let top = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let e: Vec<f64> = x.iter().map(|v| (v - top).exp()).collect();
    let sum: f64 = e.iter().sum();
    e.into_iter().map(|v| v / sum).collect()
}

fn features(w: &dyn World, s: SampleId) -> Vec<f64> {
    let mut v: Vec<f64> = [w.user_vector(w.user(s)), w.item_vector(w.item(s))]
        .concat()
        .into_iter()
        .map(f64::from)
        .collect();
    v.push(1.0);
    v
}

/// Probabilities of yes, `[samples][shards]`.
fn probabilities(
    w: &mut dyn World,
    models: &[ModelId],
    samples: &[SampleId],
) -> Result<Vec<Vec<f64>>, UnlearnError> {
    let mut out = vec![Vec::with_capacity(models.len()); samples.len()];
    for m in models {
        for (row, l) in out.iter_mut().zip(w.logits(m, samples)?) {
            row.push(yes(&l));
        }
    }
    Ok(out)
}

impl Combine {
    /// Name in tables.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::Learned => "learned",
            Self::Attention => "attention",
            Self::Apa(Mixing::D, _) => "apa-d",
            Self::Apa(Mixing::Nd, _) => "apa-nd",
        }
    }

    /// Forward passes per prediction.
    pub fn passes(&self, shards: usize) -> usize {
        if matches!(self, Self::Apa(..)) {
            1
        } else {
            shards
        }
    }

    /// Learns on validation samples. Deterministic: no random start.
    pub fn fit(
        &self,
        w: &mut dyn World,
        models: &[ModelId],
        validation: &[SampleId],
    ) -> Result<Fitted, UnlearnError> {
        let labels = |w: &dyn World| -> Vec<f64> {
            validation
                .iter()
                .map(|s| f64::from(u8::from(w.label(*s))))
                .collect()
        };
        match self {
            Self::Mean => Ok(Fitted::Mean),
            Self::Learned => {
                let rows = probabilities(w, models, validation)?;
                let ones = vec![vec![1.0]; rows.len()];
                let theta = attend(&rows, &ones, &labels(w), models.len());
                Ok(Fitted::Weights(softmax(&theta.concat())))
            }
            Self::Attention => {
                let rows = probabilities(w, models, validation)?;
                let x: Vec<Vec<f64>> = validation.iter().map(|s| features(w, *s)).collect();
                Ok(Fitted::Attention(attend(
                    &rows,
                    &x,
                    &labels(w),
                    models.len(),
                )))
            }
            Self::Apa(mixing, params) => {
                let rows = probabilities(w, models, validation)?;
                let hidden = w.hidden(validation)?;
                let row = |((s, p), embedding): ((&SampleId, Vec<f64>), Vec<f32>)| {
                    let error = |p: &f64| (if w.label(*s) { 1.0 - p } else { *p }) as f32;
                    ErrorRow {
                        embedding,
                        errors: p.iter().map(error).collect(),
                    }
                };
                let table = validation.iter().zip(rows).zip(hidden).map(row).collect();
                Ok(Fitted::Table(table, *mixing, *params))
            }
        }
    }
}

/// Vectors `theta_k` such that the mixture of the shards' probabilities with weights
/// `softmax_k(theta_k . x)` has the least cross-entropy, with a small ridge; 300 steps of gradient
/// descent from zero.
fn attend(rows: &[Vec<f64>], x: &[Vec<f64>], labels: &[f64], shards: usize) -> Vec<Vec<f64>> {
    let dim = x.first().map_or(0, Vec::len);
    let mut theta = vec![vec![0.0; dim]; shards];
    let n = rows.len().max(1) as f64;
    for _ in 0..300 {
        let mut grad: Vec<Vec<f64>> = theta
            .iter()
            .map(|t| t.iter().map(|v| 1e-3 * v).collect())
            .collect();
        for ((p, x), y) in rows.iter().zip(x).zip(labels) {
            let weights = weights(&theta, x);
            let mix: f64 = weights
                .iter()
                .zip(p)
                .map(|(w, p)| w * p)
                .sum::<f64>()
                .clamp(1e-6, 1.0 - 1e-6);
            let slope = (mix - y) / (mix * (1.0 - mix)) / n;
            for (k, g) in grad.iter_mut().enumerate() {
                let d = slope * weights[k] * (p[k] - mix);
                g.iter_mut().zip(x).for_each(|(g, v)| *g += d * v);
            }
        }
        for (t, g) in theta.iter_mut().zip(&grad) {
            t.iter_mut().zip(g).for_each(|(t, g)| *t -= 2.0 * g);
        }
    }
    theta
}

fn weights(theta: &[Vec<f64>], x: &[f64]) -> Vec<f64> {
    let dot = |t: &Vec<f64>| t.iter().zip(x).map(|(a, b)| a * b).sum();
    softmax(&theta.iter().map(dot).collect::<Vec<f64>>())
}

impl Fitted {
    /// Logits of the combination.
    pub fn predict(
        &self,
        w: &mut dyn World,
        models: &[ModelId],
        samples: &[SampleId],
    ) -> Result<Vec<[f32; 2]>, UnlearnError> {
        if let Self::Table(table, mixing, params) = self {
            let hidden = w.hidden(samples)?;
            let factors = if *mixing == Mixing::D { 2 } else { 1 };
            let of =
                |h: &Vec<f32>| params.amplified(omega(params, table, h, models.len()), factors);
            let omega: Vec<Vec<f32>> = hidden.iter().map(of).collect();
            return w.mixed(models, &omega, *mixing, samples);
        }
        let rows = probabilities(w, models, samples)?;
        let even = vec![1.0 / models.len() as f64; models.len()];
        let mix = |(s, p): (&SampleId, Vec<f64>)| {
            let weights = match self {
                Self::Weights(w) => w.clone(),
                Self::Attention(theta) => weights(theta, &features(w, *s)),
                _ => even.clone(),
            };
            logits(weights.iter().zip(&p).map(|(w, p)| w * p).sum())
        };
        Ok(samples.iter().zip(rows).map(mix).collect())
    }
}

/// Seed of the choices of a method whose partition has this name.
pub fn method_seed(seed: &Seed, name: &str) -> Seed {
    seed.derive("method", &[name.as_bytes()])
}
