//! Products with quantised weights, for scoring: 8-bit activations times 4- or 8-bit weights,
//! summed in integers per block of 32 inputs (as llama.cpp's Q4_1 and Q8_1 pair; AVX-512 VNNI,
//! AVX2, or NEON with SDOT).
//!
//! A weight is `d * q + m` with `q` unsigned and `d`, `m` per output and block, in f16. Weights
//! that a file stores in four bits this way (GGUF's Q4_1) are recovered exactly; others are rounded
//! to eight. An activation is `s * q`, `q` signed, `s` per row and block. A panel holds 32 outputs;
//! a block of a panel is its weights, four inputs side by side per output, then `d`, then `m`.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(test)]
mod tests;

use std::cell::RefCell;

use rayon::prelude::*;

use super::math::vectorised;
use super::panels::{Grid, Line, Out};
use super::tile::{Units, WIDTH, units};

/// Inputs of a block.
pub(crate) const BLOCK: usize = 32;
/// Most rows of a tile.
pub(crate) const TILE_ROWS: usize = 6;
/// Four inputs side by side.
const QUADS: usize = BLOCK / 4;
/// Work (multiply-adds) below which a product stays on the calling thread.
const POOL_WORK: usize = 1 << 18;

/// Weights `[outputs, inputs]` in quantised panels.
#[derive(Debug)]
pub(crate) struct Quantised {
    n: usize,
    k: usize,
    bits: Bits,
    lines: Vec<Line>,
}

/// Bits of a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bits {
    Four,
    Eight,
}

impl Bits {
    /// Lines of a block of a panel.
    pub(crate) const fn lines(self) -> usize {
        match self {
            Self::Four => QUADS + 2,
            Self::Eight => 2 * QUADS + 2,
        }
    }
}

/// Whether this CPU runs the kernels.
pub(crate) fn supported() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        units() >= Units::Fused
    }
    #[cfg(target_arch = "aarch64")]
    {
        units() >= Units::Fused && neon::supported()
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        false
    }
}

/// Whether it has dot products of bytes in vectors of 512 bits.
#[cfg(target_arch = "x86_64")]
fn has_vnni() -> bool {
    units() >= Units::Avx512
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vnni")
}

/// One output's block: values, scale and offset.
struct Block {
    q: [u8; BLOCK],
    d: u16,
    m: u16,
}

impl Block {
    /// The nearest `d * q + m` with `q` up to `top`.
    fn of(values: &[f32], top: f32) -> Self {
        let low = values.iter().copied().fold(f32::INFINITY, f32::min);
        let high = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let (d, m) = (
            half::f16::from_f32((high - low) / top),
            half::f16::from_f32(low),
        );
        let inverse = if d.to_f32() > 0.0 {
            1.0 / d.to_f32()
        } else {
            0.0
        };
        let mut q = [0; BLOCK];
        for (q, v) in q.iter_mut().zip(values) {
            *q = ((v - m.to_f32()) * inverse).round().clamp(0.0, top) as u8;
        }
        Self {
            q,
            d: d.to_bits(),
            m: m.to_bits(),
        }
    }

    fn value(&self, i: usize) -> f32 {
        half::f16::from_bits(self.d).to_f32() * f32::from(self.q[i])
            + half::f16::from_bits(self.m).to_f32()
    }

    fn is_exact(&self, values: &[f32]) -> bool {
        values
            .iter()
            .enumerate()
            .all(|(i, v)| (self.value(i) - v).abs() <= 1e-6 * v.abs())
    }
}

impl Quantised {
    /// From row-major weights; `None` where the kernels do not run or blocks do not divide the
    /// inputs.
    pub(crate) fn new(weights: &[f32], n: usize, k: usize) -> Option<Self> {
        if !supported() || !k.is_multiple_of(BLOCK) || weights.len() != n * k {
            return None;
        }
        let exact = weights
            .par_chunks(BLOCK)
            .all(|b| Block::of(b, 15.0).is_exact(b));
        let bits = if exact { Bits::Four } else { Bits::Eight };
        let (blocks, per) = (k / BLOCK, bits.lines());
        let mut lines = vec![Line([0; 16]); n.div_ceil(WIDTH) * blocks * per];
        lines
            .par_chunks_mut(blocks * per)
            .enumerate()
            .for_each(|(p, panel)| {
                for (b, lines) in panel.chunks_exact_mut(per).enumerate() {
                    for j in 0..WIDTH.min(n - p * WIDTH) {
                        let at = (p * WIDTH + j) * k + b * BLOCK;
                        let top = if exact { 15.0 } else { 255.0 };
                        put(bits, lines, j, &Block::of(&weights[at..at + BLOCK], top));
                    }
                }
            });
        Some(Self { n, k, bits, lines })
    }

    pub(crate) fn bytes(&self) -> usize {
        self.lines.len() * size_of::<Line>()
    }

    /// `dst[rows, n] (+)= x[rows, k] * self^T`.
    pub(crate) fn multiply(&self, x: &[f32], rows: usize, dst: &mut [f32], add: bool) {
        let (n, k) = (self.n, self.k);
        assert!(
            x.len() == rows * k && dst.len() == rows * n,
            "{rows} rows: {} of {k}, {} of {n}",
            x.len(),
            dst.len()
        );
        if rows == 0 || n == 0 {
            return;
        }
        let threads = if rows * n * k < POOL_WORK {
            1
        } else {
            rayon::current_num_threads()
        };
        let grid = Grid::new(rows, n.div_ceil(WIDTH), k.div_ceil(4), TILE_ROWS, threads);
        let out = Out::new(dst);
        grid.run(threads, |blocks, panels| {
            self.task(&grid, blocks, panels, x, out, add)
        });
    }

    fn task(
        &self,
        grid: &Grid,
        blocks: std::ops::Range<usize>,
        panels: std::ops::Range<usize>,
        x: &[f32],
        out: Out,
        add: bool,
    ) {
        thread_local! {
            static ROWS: RefCell<Vec<Packed>> = const { RefCell::new(vec![]) };
        }
        let per_panel = self.k / BLOCK * self.bits.lines();
        ROWS.with_borrow_mut(|packed| {
            packed.resize_with(packed.len().max(blocks.len()), Packed::default);
            for (b, packed) in blocks.clone().zip(packed.iter_mut()) {
                let rows = grid.block(b);
                packed.fill(&x[rows.start * self.k..rows.end * self.k], rows.len());
            }
            for p in panels {
                let panel = &self.lines[p * per_panel..(p + 1) * per_panel];
                for (b, packed) in blocks.clone().zip(packed.iter()) {
                    let rows = grid.block(b);
                    let cols = (self.n - p * WIDTH).min(WIDTH);
                    let dst = out.tile(
                        rows.start * self.n + p * WIDTH,
                        rows.len(),
                        self.n,
                        cols,
                        add,
                    );
                    #[cfg(target_arch = "x86_64")]
                    #[allow(unsafe_code)]
                    // SAFETY: `new` made panels only where the kernels run; `fill` packed
                    // `rows.len()` rows of `k` inputs and the panel has `k / BLOCK` blocks;
                    // `out.tile` checked the tile, which is this task's.
                    unsafe {
                        if has_vnni() {
                            avx512::run(self.bits, packed, rows.len(), panel, dst);
                        } else {
                            avx2::run(self.bits, packed, rows.len(), panel, dst);
                        }
                    }
                    #[cfg(target_arch = "aarch64")]
                    #[allow(unsafe_code)]
                    // SAFETY: as above.
                    unsafe {
                        neon::run(self.bits, packed, rows.len(), panel, dst);
                    }
                    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
                    let _ = (panel, packed, dst);
                }
            }
        });
    }
}

/// Writes a block of one output into a panel.
fn put(bits: Bits, lines: &mut [Line], j: usize, block: &Block) {
    for quad in 0..QUADS {
        for i in 0..4 {
            let (q, shift) = (u32::from(block.q[quad * 4 + i]), 8 * i);
            match bits {
                // Two quads share a byte: the even one in the lower half.
                Bits::Four => {
                    lines[quad / 2 * 2 + j / 16].0[j % 16] |= q << (shift + 4 * (quad % 2))
                }
                Bits::Eight => lines[quad * 2 + j / 16].0[j % 16] |= q << shift,
            }
        }
    }
    let scales = bits.lines() - 2;
    for (line, v) in [(scales, block.d), (scales + 1, block.m)] {
        lines[line].0[j / 2] |= u32::from(v) << (16 * (j % 2));
    }
}

/// A block of rows, quantised: per block of inputs `[8 quads][rows]`, and `[rows]` scales, scaled
/// sums and sums.
#[derive(Default)]
struct Packed {
    quads: Vec<u32>,
    scales: Vec<[f32; 2]>,
    #[cfg(target_arch = "aarch64")]
    sums: Vec<i32>,
}

impl Packed {
    fn fill(&mut self, x: &[f32], rows: usize) {
        let k = x.len() / rows;
        let blocks = k / BLOCK;
        self.quads.resize(blocks * QUADS * rows, 0);
        self.scales.resize(blocks * rows, [0.0; 2]);
        #[cfg(target_arch = "aarch64")]
        self.sums.resize(blocks * rows, 0);
        vectorised(
            #[inline(always)]
            || {
                for (i, row) in x.chunks_exact(k).enumerate() {
                    for (b, values) in row.chunks_exact(BLOCK).enumerate() {
                        let mut top = 0.0f32;
                        for v in values {
                            top = top.max(v.abs());
                        }
                        let (scale, inverse) =
                            (top / 127.0, if top > 0.0 { 127.0 / top } else { 0.0 });
                        let mut q = [0i8; BLOCK];
                        let mut sum = 0i32;
                        for (q, v) in q.iter_mut().zip(values) {
                            // Adding this rounds to the nearest integer, ties to even.
                            let r = (v * inverse + 12_582_912.0) - 12_582_912.0;
                            *q = r as i8;
                            sum += i32::from(*q);
                        }
                        for (quad, q) in q.chunks_exact(4).enumerate() {
                            let bytes = [q[0] as u8, q[1] as u8, q[2] as u8, q[3] as u8];
                            self.quads[(b * QUADS + quad) * rows + i] = u32::from_le_bytes(bytes);
                        }
                        self.scales[b * rows + i] = [scale, scale * sum as f32];
                        #[cfg(target_arch = "aarch64")]
                        {
                            self.sums[b * rows + i] = sum;
                        }
                    }
                }
            },
        );
    }
}
