//! Sample-adaptive weights over shard adapters (APA, arXiv 2404.10327, section 4.3).

use serde::{Deserialize, Serialize};

use crate::sketch::cosine;

/// One validation sample as its owner reported it: where it lies, and how wrong each shard's
/// adapter is on it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ErrorRow {
    /// Embedding of the sample by the untuned model's device layers, `[hidden]`.
    pub embedding: Vec<f32>,
    /// `1 - P_k(label | sample)` per shard k.
    pub errors: Vec<f32>,
}

/// Parameters of the weighting; the paper uses tau = 1000 and n = 20 (movies) or 100 (books).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApaParams {
    /// Inverse temperature of the softmax over shards.
    pub tau: f64,
    /// Nearest validation samples asked.
    pub neighbours: usize,
    /// What the weights sum to when adapters are mixed. The paper's is 1: the mean of changes that
    /// were each learned on one shard alone, about a K-th as long as what one model learns from all
    /// of them. Up to K makes up for that (task arithmetic; Ilharco et al., arXiv 2212.04089);
    /// choose it on validation samples.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub gain: f64,
}

fn one() -> f64 {
    1.0
}

#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_one(gain: &f64) -> bool {
    *gain == 1.0
}

impl ApaParams {
    /// Weights times the gain, where `factors` of an adapter's two matrices are weighted: 1 for the
    /// sum of products (ND), 2 for factors mixed apart (D).
    pub fn amplified(&self, mut omega: Vec<f32>, factors: u32) -> Vec<f32> {
        let gain = self.gain.powf(1.0 / f64::from(factors.max(1))) as f32;
        omega.iter_mut().for_each(|w| *w *= gain);
        omega
    }
}

impl Default for ApaParams {
    fn default() -> Self {
        Self {
            tau: 1000.0,
            neighbours: 20,
            gain: 1.0,
        }
    }
}

/// `omega_k = softmax_k(-tau * mean error of adapter k over the nearest rows)`; uniform when the
/// table is empty. Rows whose length does not match `shards` are ignored. Ties in similarity keep
/// the table's order.
pub fn omega(params: &ApaParams, table: &[ErrorRow], query: &[f32], shards: usize) -> Vec<f32> {
    let mut near: Vec<(f64, &ErrorRow)> = table
        .iter()
        .filter(|r| r.errors.len() == shards && r.embedding.len() == query.len())
        .map(|r| (cosine(&r.embedding, query), r))
        .collect();
    if near.is_empty() || shards == 0 {
        return vec![1.0 / shards.max(1) as f32; shards];
    }
    near.sort_by(|a, b| b.0.total_cmp(&a.0));
    near.truncate(params.neighbours.max(1));
    let n = near.len() as f64;
    let mean: Vec<f64> = (0..shards)
        .map(|k| {
            near.iter()
                .map(|(_, r)| f64::from(r.errors[k]))
                .sum::<f64>()
                / n
        })
        .collect();
    let best = mean.iter().copied().fold(f64::INFINITY, f64::min);
    let exps: Vec<f64> = mean
        .iter()
        .map(|e| (-params.tau * (e - best)).exp())
        .collect();
    let total: f64 = exps.iter().sum();
    exps.into_iter().map(|e| (e / total) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(x: f32, errors: [f32; 2]) -> ErrorRow {
        ErrorRow {
            embedding: vec![x, 1.0],
            errors: errors.to_vec(),
        }
    }

    #[test]
    fn asks_the_neighbours() {
        let table = [row(1.0, [0.1, 0.5]), row(-1.0, [0.5, 0.1])];
        let p = ApaParams {
            tau: 100.0,
            neighbours: 1,
            gain: 1.0,
        };
        assert!(omega(&p, &table, &[0.9, 1.0], 2)[0] > 0.99);
        assert!(omega(&p, &table, &[-0.9, 1.0], 2)[1] > 0.99);
    }

    #[test]
    fn the_gain_is_that_of_the_product() {
        let p = ApaParams {
            gain: 4.0,
            ..ApaParams::default()
        };
        assert_eq!(p.amplified(vec![0.25, 0.75], 1), vec![1.0, 3.0]);
        assert_eq!(p.amplified(vec![0.25, 0.75], 2), vec![0.5, 1.5]);
    }

    #[test]
    fn empty_table_is_uniform() {
        assert_eq!(omega(&ApaParams::default(), &[], &[1.0], 4), vec![0.25; 4]);
    }
}
