//! Vectorised elementwise functions with fixed rounding: the same bits on every vector width.
//!
//! Rust never fuses a multiply and an add by itself, so plain arithmetic compiled for SSE2, AVX2
//! and AVX-512 gives equal results; `pulp` picks the widest at run time.

use rayon::prelude::*;

/// Rows that one task handles in row-parallel loops.
pub(crate) const ROWS_PER_TASK: usize = 32;

/// Runs `f` with the widest vector instructions of this CPU.
#[inline(always)]
pub(crate) fn vectorised<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}

/// `e^x` within 2 ulp on `[-87, 88]`, clamped outside; branch-free so that it vectorises.
#[inline(always)]
#[allow(clippy::excessive_precision)] // Published coefficients (Cephes expf), as they stand.
pub(crate) fn exp(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to the nearest integer.
    let x = x.clamp(-87.0, 88.0);
    let n = (x * std::f32::consts::LOG2_E + MAGIC) - MAGIC;
    let r = (x - n * 0.693_359_375) - n * -2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let e = p * r * r + r + 1.0;
    // `n` is an integer in [-126, 127], so the biased exponent fits.
    e * f32::from_bits(((n as i32 + 127) as u32) << 23)
}

/// Sum in 16 fixed lanes, so that the order of additions never depends on the vector width.
#[inline(always)]
pub(crate) fn sum_by(n: usize, f: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0f32; 16];
    let whole = n / 16 * 16;
    let mut i = 0;
    while i < whole {
        for (l, lane) in lanes.iter_mut().enumerate() {
            *lane += f(i + l);
        }
        i += 16;
    }
    let mut tail = 0.0;
    for j in whole..n {
        tail += f(j);
    }
    let mut width = 8;
    while width > 0 {
        for l in 0..width {
            lanes[l] += lanes[l + width];
        }
        width /= 2;
    }
    lanes[0] + tail
}

/// Softmax of one row in place; returns the logarithm of the sum of exponentials.
pub(crate) fn softmax_row(row: &mut [f32]) -> f32 {
    vectorised(
        #[inline(always)]
        || {
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            for v in row.iter_mut() {
                *v = exp(*v - max);
            }
            let n = row.len();
            let sum = sum_by(n, |i| row[i]);
            let inv = 1.0 / sum;
            for v in row.iter_mut() {
                *v *= inv;
            }
            max + sum.ln()
        },
    )
}

/// SwiGLU: `out = silu(gate) * up` where each row of `gate_up` is `[gate | up]`, each `width` wide.
pub fn swiglu(gate_up: &[f32], width: usize, out: &mut [f32]) {
    let task = |(gu, out): (&[f32], &mut [f32])| {
        vectorised(
            #[inline(always)]
            || {
                for (gu, o) in gu.chunks_exact(2 * width).zip(out.chunks_exact_mut(width)) {
                    let (g, u) = gu.split_at(width);
                    for i in 0..width {
                        o[i] = g[i] / (1.0 + exp(-g[i])) * u[i];
                    }
                }
            },
        );
    };
    let rows = ROWS_PER_TASK;
    gate_up
        .par_chunks(2 * width * rows)
        .zip(out.par_chunks_mut(width * rows))
        .for_each(task);
}

/// Backward of [`swiglu`]: from `d_out` (`[rows, width]`) to the gradient of `gate_up`, written
/// over `d_gate_up`.
pub fn swiglu_backward(gate_up: &[f32], width: usize, d_out: &[f32], d_gate_up: &mut [f32]) {
    let task = |((gu, d), dgu): ((&[f32], &[f32]), &mut [f32])| {
        vectorised(
            #[inline(always)]
            || {
                let rows = gu
                    .chunks_exact(2 * width)
                    .zip(d.chunks_exact(width))
                    .zip(dgu.chunks_exact_mut(2 * width));
                for ((gu, d), dgu) in rows {
                    let (g, u) = gu.split_at(width);
                    let (dg, du) = dgu.split_at_mut(width);
                    for i in 0..width {
                        let s = 1.0 / (1.0 + exp(-g[i]));
                        du[i] = d[i] * g[i] * s;
                        dg[i] = d[i] * u[i] * s * (1.0 + g[i] * (1.0 - s));
                    }
                }
            },
        );
    };
    let rows = ROWS_PER_TASK;
    gate_up
        .par_chunks(2 * width * rows)
        .zip(d_out.par_chunks(width * rows))
        .zip(d_gate_up.par_chunks_mut(2 * width * rows))
        .for_each(task);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_accurate() {
        for i in -8700..8800 {
            let x = i as f32 / 100.0;
            let want = f64::from(x).exp();
            assert!((f64::from(exp(x)) / want - 1.0).abs() < 3e-7, "exp({x})");
        }
        assert!(exp(-1e9) < 1e-37);
    }

    #[test]
    fn softmax_sums_to_one() {
        let mut row: Vec<f32> = (0..37).map(|i| (i as f32 * 0.7).sin() * 9.0).collect();
        let lse = softmax_row(&mut row);
        assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        assert!(lse > 9.0);
    }

    #[test]
    fn swiglu_gradient() {
        let gu = [0.3f32, -1.2, 0.5, 2.0];
        let f = |gu: &[f32]| {
            let mut o = [0.0; 2];
            swiglu(gu, 2, &mut o);
            o[0] + 2.0 * o[1]
        };
        let mut d = [0.0; 4];
        swiglu_backward(&gu, 2, &[1.0, 2.0], &mut d);
        for i in 0..4 {
            let (mut hi, mut lo) = (gu, gu);
            hi[i] += 1e-2;
            lo[i] -= 1e-2;
            assert!(
                ((f(&hi) - f(&lo)) / 2e-2 - d[i]).abs() < 1e-3,
                "component {i}"
            );
        }
    }
}
