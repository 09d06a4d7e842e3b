//! RMSNorm (Zhang and Sennrich, 2019), forward and backward.

use rayon::prelude::*;

use super::math::{ROWS_PER_TASK, sum_by, vectorised};

/// `out = x / rms(x) * gain` per row of width `gain.len()`.
pub fn rms_norm(x: &[f32], gain: &[f32], eps: f32, out: &mut [f32]) {
    let d = gain.len();
    x.par_chunks(d * ROWS_PER_TASK)
        .zip(out.par_chunks_mut(d * ROWS_PER_TASK))
        .for_each(|(x, out)| {
            vectorised(
                #[inline(always)]
                || {
                    for (x, o) in x.chunks_exact(d).zip(out.chunks_exact_mut(d)) {
                        let inv = inverse_rms(x, eps);
                        for i in 0..d {
                            o[i] = x[i] * inv * gain[i];
                        }
                    }
                },
            );
        });
}

#[inline(always)]
fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    1.0 / (sum_by(x.len(), |i| x[i] * x[i]) / x.len() as f32 + eps).sqrt()
}

/// Adds the gradient with respect to `x`, given that of the output, to `d_x`. The gain is frozen.
pub fn rms_norm_backward(x: &[f32], gain: &[f32], eps: f32, d_out: &[f32], d_x: &mut [f32]) {
    let d = gain.len();
    let block = d * ROWS_PER_TASK;
    x.par_chunks(block)
        .zip(d_out.par_chunks(block))
        .zip(d_x.par_chunks_mut(block))
        .for_each(|((x, dy), dx)| {
            vectorised(
                #[inline(always)]
                || {
                    for ((x, dy), dx) in x
                        .chunks_exact(d)
                        .zip(dy.chunks_exact(d))
                        .zip(dx.chunks_exact_mut(d))
                    {
                        let inv = inverse_rms(x, eps);
                        let dot = sum_by(d, |i| dy[i] * gain[i] * x[i]);
                        let c = dot * inv * inv * inv / d as f32;
                        for i in 0..d {
                            dx[i] += inv * dy[i] * gain[i] - c * x[i];
                        }
                    }
                },
            );
        });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradient_matches_differences() {
        let x: Vec<f32> = (0..19).map(|i| (i as f32).sin()).collect();
        let gain: Vec<f32> = (0..19).map(|i| 1.0 + 0.1 * (i as f32).cos()).collect();
        let w: Vec<f32> = (0..19).map(|i| (i as f32 * 1.3).cos()).collect();
        let f = |x: &[f32]| {
            let mut o = vec![0.0; 19];
            rms_norm(x, &gain, 1e-5, &mut o);
            o.iter().zip(&w).map(|(a, b)| a * b).sum::<f32>()
        };
        let mut d = vec![0.0; 19];
        rms_norm_backward(&x, &gain, 1e-5, &w, &mut d);
        for i in 0..19 {
            let (mut hi, mut lo) = (x.clone(), x.clone());
            hi[i] += 1e-2;
            lo[i] -= 1e-2;
            assert!(
                ((f(&hi) - f(&lo)) / 2e-2 - d[i]).abs() < 2e-3,
                "component {i}"
            );
        }
    }
}
