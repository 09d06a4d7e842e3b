//! The transpose of weights in panels, made for each backward product.
//!
//! A backward product needs panels of the other direction. Kept beside the forward ones they double
//! the memory of the weights; made anew they cost one pass over the weights, which a product over
//! some hundred rows does not notice: in both directions a block of 32 outputs and 32 inputs is one
//! stretch of memory that fits the first-level cache.

use rayon::prelude::*;

use super::panels::Line;
use super::tile::{Kernel, WIDTH};

/// Lines of a unit: [`WIDTH`] outputs.
const LINES: usize = WIDTH / 16;
/// Values that a thread moves at least.
const SHARE: usize = 1 << 16;

/// Writes the transpose `[k, n]` of the panels `from` of a matrix `[n, k]`.
///
/// # Panics
/// If `from` or `into` is not as long as its matrix takes: a programming error.
pub(crate) fn transpose(kernel: Kernel, n: usize, k: usize, from: &[Line], into: &mut [Line]) {
    let from_depth = kernel.depth(k);
    let into_depth = kernel.depth(n);
    assert!(
        from.len() == n.div_ceil(WIDTH) * from_depth * LINES
            && into.len() == k.div_ceil(WIDTH) * into_depth * LINES,
        "panels of {n} x {k}"
    );
    let per_panel = (into_depth * LINES).max(1);
    let at_once = (SHARE / (n * WIDTH).max(1)).max(1);
    into.par_chunks_mut(per_panel)
        .with_min_len(at_once)
        .enumerate()
        .for_each(|(q, panel)| {
            for p in 0..n.div_ceil(WIDTH) {
                let source = &from[p * from_depth * LINES..(p + 1) * from_depth * LINES];
                let first = kernel.depth(q * WIDTH);
                let units = kernel.depth(WIDTH).min(from_depth - first);
                let source = &source[first * LINES..(first + units) * LINES];
                let start = kernel.depth(p * WIDTH);
                let units = kernel.depth(WIDTH).min(into_depth - start);
                let target = &mut panel[start * LINES..(start + units) * LINES];
                match kernel.pairs() {
                    false => words(source, target),
                    true => halves(source, target),
                }
            }
        });
}

/// Value `j` of unit `u`.
fn word(lines: &[Line], u: usize, j: usize) -> u32 {
    lines[u * LINES + j / 16].0[j % 16]
}

/// A block of f32: output `j` of unit `u` becomes output `u` of unit `j`. Units that the block does
/// not have are zero.
fn words(from: &[Line], into: &mut [Line]) {
    let count = from.len() / LINES;
    if count < WIDTH {
        for (j, unit) in into.chunks_exact_mut(LINES).enumerate() {
            for (u, v) in unit.iter_mut().flat_map(|l| l.0.iter_mut()).enumerate() {
                *v = if u < count { word(from, u, j) } else { 0 };
            }
        }
        return;
    }
    for (j, unit) in into.chunks_exact_mut(LINES).enumerate() {
        let line = j / 16;
        let lane = j % 16;
        for (half, out) in unit.iter_mut().enumerate() {
            for (u, v) in out.0.iter_mut().enumerate() {
                *v = from[(half * 16 + u) * LINES + line].0[lane];
            }
        }
    }
}

/// A block of pairs of bf16: the pair of inputs `2u`, `2u + 1` of outputs `2i` and `2i + 1` become
/// the pair of inputs `2i`, `2i + 1` of outputs `2u` and `2u + 1`.
fn halves(from: &[Line], into: &mut [Line]) {
    let count = from.len() / LINES;
    for (i, unit) in into.chunks_exact_mut(LINES).enumerate() {
        for u in 0..WIDTH / 2 {
            let pair = match u < count {
                true => [word(from, u, 2 * i), word(from, u, 2 * i + 1)],
                false => [0, 0],
            };
            let line = &mut unit[u / 8].0[2 * u % 16..][..2];
            line[0] = pair[0] & 0xffff | pair[1] << 16;
            line[1] = pair[0] >> 16 | pair[1] & 0xffff_0000;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::panels::Panels;
    use super::*;

    #[test]
    fn the_transpose_is_what_packing_the_transpose_gives() {
        // Packing needs none of the processor's instructions.
        let kernels = [
            Kernel::F32,
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2,
            #[cfg(target_arch = "x86_64")]
            Kernel::Widened,
            #[cfg(target_arch = "x86_64")]
            Kernel::Dot,
            #[cfg(target_arch = "x86_64")]
            Kernel::Amx,
        ];
        for kernel in kernels {
            for (n, k) in [(1, 1), (33, 7), (32, 64), (31, 65), (100, 130), (576, 96)] {
                let value = |n: usize, k: usize| (n * 131 + k) as f32 - 60.0;
                let forward = Panels::pack(kernel, n, k, value);
                let want = Panels::pack(kernel, k, n, |k, n| value(n, k));
                let mut got = vec![Line([u32::MAX; 16]); want.lines().len()];
                transpose(kernel, n, k, forward.lines(), &mut got);
                for (at, (a, b)) in got.iter().zip(want.lines()).enumerate() {
                    assert_eq!(a.0, b.0, "{kernel:?}, {n} x {k}, line {at}");
                }
            }
        }
    }
}
