//! Products of f32 and of bf16 on AVX2. Rows lie one after the other: transposing them, as the
//! other kernels do, made products of f32 some 6 % slower.
//!
//! There is no instruction for bf16: pairs of weights are widened in registers, rows are rounded to
//! bf16 but lie as f32, and the sums are fused multiply-adds of f32. A shift or a mask for 8
//! outputs is little beside the multiply-adds of all rows, and memory holds half of what f32 takes.
//! The compiler's own vectors of that loop reached half the speed, hence the intrinsics.
#![allow(unsafe_code)]

use std::arch::x86_64::{
    __m256, _mm256_and_si256, _mm256_broadcast_ss, _mm256_castsi256_ps, _mm256_fmadd_ps,
    _mm256_load_si256, _mm256_set1_epi32, _mm256_setzero_ps, _mm256_slli_epi32, _mm256_storeu_ps,
};

use super::{Line, Rows, Tile};
use crate::kernels::panels::to_bf16;

/// Rows whose sums for half a panel are in registers at once, beside two weights and a value of a
/// row. The mask of bf16 takes one register more: with 6 all 16 are taken, and that was slower.
const fn block_rows(pairs: bool) -> usize {
    if pairs { 5 } else { 6 }
}

/// Most rows of a packed block.
pub(super) const fn rows(pairs: bool) -> usize {
    2 * block_rows(pairs)
}

/// One half of a panel is 16 outputs.
const HALF: usize = 16;

/// Values of a packed row of `k`: an odd number of cache lines, so that rows of the same length do
/// not compete for the same places in the cache.
pub(super) fn row_units(k: usize) -> usize {
    16 * (k.div_ceil(16) | 1)
}

/// Packs rows of `k` values, rounded to bf16 for `pairs`, and followed by zeros, `[row][value]`.
pub(super) fn pack(pairs: bool, x: &[f32], k: usize, into: &mut [u32]) {
    for (row, into) in x.chunks_exact(k).zip(into.chunks_exact_mut(row_units(k))) {
        let (values, rest) = into.split_at_mut(k);
        for (to, v) in values.iter_mut().zip(row) {
            *to = if pairs {
                to_bf16(*v) << 16
            } else {
                v.to_bits()
            };
        }
        rest.fill(0);
    }
}

/// Products of a block of rows that [`pack`] wrote with panels of pairs of bf16, or of f32.
///
/// # Safety
/// The CPU has AVX2 and FMA; otherwise as [`super::run_with`].
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn run<const PAIRS: bool>(rows: Rows<'_>, panel: &[Line], out: Tile) {
    // As even as possible: fewer than 4 rows are too few sums to keep the units busy.
    let parts = rows.count.div_ceil(block_rows(PAIRS));
    for p in 0..parts {
        let start = rows.count * p / parts;
        let end = rows.count * (p + 1) / parts;
        for half in 0..out.cols.div_ceil(HALF) {
            // SAFETY: rows `start..end` are among `rows.count`; the caller's promises.
            unsafe {
                match end - start {
                    1 => block::<1, PAIRS>(rows, start, panel, half, out),
                    2 => block::<2, PAIRS>(rows, start, panel, half, out),
                    3 => block::<3, PAIRS>(rows, start, panel, half, out),
                    4 => block::<4, PAIRS>(rows, start, panel, half, out),
                    5 => block::<5, PAIRS>(rows, start, panel, half, out),
                    _ => block::<6, PAIRS>(rows, start, panel, half, out),
                }
            }
        }
    }
}

/// Adds the products of one input: `M` rows, `apart` values from each other, by half a panel.
///
/// # Safety
/// There are `M` rows from `x` on.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn step<const M: usize>(
    acc: &mut [[__m256; 2]; M],
    x: *const f32,
    apart: usize,
    weights: [__m256; 2],
) {
    for (i, acc) in acc.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        let x = unsafe { _mm256_broadcast_ss(&*x.add(i * apart)) };
        acc[0] = _mm256_fmadd_ps(x, weights[0], acc[0]);
        acc[1] = _mm256_fmadd_ps(x, weights[1], acc[1]);
    }
}

/// Rows `start..start + M` by half a panel.
///
/// # Safety
/// As [`run`]; the block has these rows.
#[target_feature(enable = "avx2,fma")]
unsafe fn block<const M: usize, const PAIRS: bool>(
    rows: Rows<'_>,
    start: usize,
    panel: &[Line],
    half: usize,
    out: Tile,
) {
    let apart = rows.units.len() / rows.count;
    let depth = panel.len() / 2;
    let inputs = if PAIRS { 2 } else { 1 };
    debug_assert!(inputs * depth <= apart && start + M <= rows.count);
    let upper = _mm256_set1_epi32(-0x1_0000);
    let mut acc = [[_mm256_setzero_ps(); 2]; M];
    for u in 0..depth {
        // SAFETY: the panel holds `2 * depth` lines, a packed row at least `inputs * depth` values;
        // a line has the alignment of a vector.
        unsafe {
            let line = panel.as_ptr().add(2 * u + half).cast();
            let x = rows
                .units
                .as_ptr()
                .add(start * apart + inputs * u)
                .cast::<f32>();
            let both = [_mm256_load_si256(line), _mm256_load_si256(line.add(1))];
            if !PAIRS {
                step(&mut acc, x, apart, both.map(|p| _mm256_castsi256_ps(p)));
                continue;
            }
            let first = both.map(|p| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(p)));
            step(&mut acc, x, apart, first);
            let second = both.map(|p| _mm256_castsi256_ps(_mm256_and_si256(p, upper)));
            step(&mut acc, x.add(1), apart, second);
        }
    }
    let cols = (out.cols - half * HALF).min(HALF);
    for (i, sums) in acc.into_iter().enumerate() {
        let mut values = [0.0f32; HALF];
        // SAFETY: `values` takes two vectors; the tile's rows and columns are valid, and nobody
        // else uses them.
        let to = unsafe {
            _mm256_storeu_ps(values.as_mut_ptr(), sums[0]);
            _mm256_storeu_ps(values.as_mut_ptr().add(8), sums[1]);
            std::slice::from_raw_parts_mut(out.at.add((start + i) * out.stride + half * HALF), cols)
        };
        for (to, v) in to.iter_mut().zip(values) {
            *to = if out.add { v + *to } else { v };
        }
    }
}
