//! Fused multiply-adds that the compiler turns into vectors: AVX2 and NEON. Blocks of at most
//! [`ROWS`] rows of half a panel keep to 16 registers of 256 bits, or to 32 of 128.
#![allow(unsafe_code)]

use super::{Line, Rows, Tile};

/// Rows of a block.
pub(super) const ROWS: usize = 6;

/// One half of a panel is 16 outputs.
const HALF: usize = 16;

/// Products of f32.
///
/// # Safety
/// As [`super::run`].
pub(super) unsafe fn run(rows: Rows<'_>, panel: &[Line], out: Tile) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: `units()` is at least `Fused`: the CPU has both; the caller's promises.
    unsafe {
        x86(rows, panel, out);
    }
    #[cfg(not(target_arch = "x86_64"))]
    // SAFETY: the caller's promises.
    unsafe {
        blocks(rows, panel, out);
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn x86(rows: Rows<'_>, panel: &[Line], out: Tile) {
    // SAFETY: the caller's promises.
    unsafe { blocks(rows, panel, out) }
}

#[inline(always)]
unsafe fn blocks(rows: Rows<'_>, panel: &[Line], out: Tile) {
    // As even as possible: fewer than 4 rows are too few sums to keep the units busy.
    let parts = rows.count.div_ceil(ROWS);
    for p in 0..parts {
        let start = rows.count * p / parts;
        let end = rows.count * (p + 1) / parts;
        for half in 0..out.cols.div_ceil(HALF) {
            // SAFETY: rows `start..end` are among `rows.count`; the caller's promises.
            unsafe {
                match end - start {
                    1 => block::<1>(rows, start, panel, half, out),
                    2 => block::<2>(rows, start, panel, half, out),
                    3 => block::<3>(rows, start, panel, half, out),
                    4 => block::<4>(rows, start, panel, half, out),
                    5 => block::<5>(rows, start, panel, half, out),
                    _ => block::<ROWS>(rows, start, panel, half, out),
                }
            }
        }
    }
}

/// Adds the products of one input: `M` rows by half a panel.
#[inline(always)]
fn step<const M: usize>(acc: &mut [[f32; HALF]; M], units: &[u32], weights: &[f32; HALF]) {
    for (acc, x) in acc.iter_mut().zip(units) {
        let x = f32::from_bits(*x);
        for (a, w) in acc.iter_mut().zip(weights) {
            *a = x.mul_add(*w, *a);
        }
    }
}

#[inline(always)]
unsafe fn block<const M: usize>(
    rows: Rows<'_>,
    start: usize,
    panel: &[Line],
    half: usize,
    out: Tile,
) {
    let mut acc = [[0.0f32; HALF]; M];
    let depth = panel.len() / 2;
    for u in 0..depth {
        // SAFETY: the panel holds `2 * depth` lines, the block `rows.count * depth` units.
        let (line, units) = unsafe {
            (
                &panel.get_unchecked(2 * u + half).0,
                rows.units
                    .get_unchecked(u * rows.count + start..)
                    .get_unchecked(..M),
            )
        };
        let weights = line.map(f32::from_bits);
        step(&mut acc, units, &weights);
    }
    // A copy: the accumulators themselves are never indexed by a variable, so that they stay in
    // registers.
    let sums = acc;
    let cols = (out.cols - half * HALF).min(HALF);
    for (i, row) in sums.iter().enumerate() {
        // SAFETY: the tile's rows and columns are valid, and nobody else uses them.
        let to = unsafe {
            std::slice::from_raw_parts_mut(out.at.add((start + i) * out.stride + half * HALF), cols)
        };
        for (to, v) in to.iter_mut().zip(row) {
            *to = if out.add { *v + *to } else { *v };
        }
    }
}
