//! Rotary position embedding in the rotate-half form (RoFormer, arXiv 2104.09864), forward and
//! inverse.

use rayon::prelude::*;

use super::math::ROWS_PER_TASK;
use crate::config::ModelConfig;

/// Cosines and sines for positions `0..n`, `[n, head_dim / 2]` each.
#[derive(Debug)]
pub struct RopeTable {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
}

impl RopeTable {
    /// A table for `positions` positions of a model.
    pub fn new(config: &ModelConfig, positions: usize) -> Self {
        let half = config.head_dim / 2;
        let angle = |p: usize, i: usize| p as f32 * config.rope_rate(i);
        let angles: Vec<f32> = (0..positions)
            .flat_map(|p| (0..half).map(move |i| angle(p, i)))
            .collect();
        Self {
            cos: angles.iter().map(|a| a.cos()).collect(),
            sin: angles.iter().map(|a| a.sin()).collect(),
            half,
        }
    }

    /// The cosines of a position, `[head_dim / 2]`.
    #[cfg(feature = "wgpu")]
    pub(crate) fn cos(&self, position: usize) -> &[f32] {
        &self.cos[position * self.half..(position + 1) * self.half]
    }

    /// The sines of a position, `[head_dim / 2]`.
    #[cfg(feature = "wgpu")]
    pub(crate) fn sin(&self, position: usize) -> &[f32] {
        &self.sin[position * self.half..(position + 1) * self.half]
    }

    /// Rotates the first `heads` heads of each row (`width` apart) by its position; `inverse`
    /// undoes it, which is also its backward.
    pub fn rotate(
        &self,
        rows: &mut [f32],
        width: usize,
        heads: usize,
        positions: &[usize],
        inverse: bool,
    ) {
        let sign = if inverse { -1.0 } else { 1.0 };
        let half = self.half;
        rows.par_chunks_mut(width * ROWS_PER_TASK)
            .zip(positions.par_chunks(ROWS_PER_TASK))
            .for_each(|(rows, pos)| {
                for (row, p) in rows.chunks_exact_mut(width).zip(pos) {
                    let cos = &self.cos[p * half..(p + 1) * half];
                    let sin = &self.sin[p * half..(p + 1) * half];
                    for head in row[..heads * 2 * half].chunks_exact_mut(2 * half) {
                        let (a, b) = head.split_at_mut(half);
                        for i in 0..half {
                            let (x, y, s) = (a[i], b[i], sign * sin[i]);
                            a[i] = x * cos[i] - y * s;
                            b[i] = y * cos[i] + x * s;
                        }
                    }
                }
            });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inverse_restores() {
        let t = RopeTable::new(&ModelConfig::tiny(), 9);
        let x: Vec<f32> = (0..28).map(|i| i as f32).collect();
        let mut y = x.clone();
        t.rotate(&mut y, 14, 2, &[3, 8], false);
        assert_ne!(x, y);
        t.rotate(&mut y, 14, 2, &[3, 8], true);
        assert!(x.iter().zip(&y).all(|(a, b)| (a - b).abs() < 1e-5));
    }
}
