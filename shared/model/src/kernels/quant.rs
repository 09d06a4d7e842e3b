//! Products with quantised weights, for scoring: 8-bit activations times 4- or 8-bit weights,
//! summed in integers per block of 32 inputs (as llama.cpp's Q4_1 and Q8_1 pair; AVX-512 VNNI or
//! AVX2).
//!
//! A weight is `d * q + m` with `q` unsigned and `d`, `m` per output and block, in f16. Weights
//! that a file stores in four bits this way (GGUF's Q4_1) are recovered exactly; others are rounded
//! to eight. An activation is `s * q`, `q` signed, `s` per row and block. A panel holds 32 outputs;
//! a block of a panel is its weights, four inputs side by side per output, then `d`, then `m`.

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
    cfg!(target_arch = "x86_64") && units() >= Units::Fused
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
                            x86::run(self.bits, packed, rows.len(), panel, dst);
                        } else {
                            avx2::run(self.bits, packed, rows.len(), panel, dst);
                        }
                    }
                    #[cfg(not(target_arch = "x86_64"))]
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

/// A block of rows, quantised: per block of inputs `[8 quads][rows]`, and `[rows]` scales and
/// scaled sums.
#[derive(Default)]
struct Packed {
    quads: Vec<u32>,
    scales: Vec<[f32; 2]>,
}

impl Packed {
    fn fill(&mut self, x: &[f32], rows: usize) {
        let k = x.len() / rows;
        let blocks = k / BLOCK;
        self.quads.resize(blocks * QUADS * rows, 0);
        self.scales.resize(blocks * rows, [0.0; 2]);
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
                    }
                }
            },
        );
    }
}

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod x86 {
    use std::arch::x86_64::{
        __m512i, _mm256_load_si256, _mm512_and_si512, _mm512_cvtepi32_ps, _mm512_cvtph_ps,
        _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_load_si512, _mm512_mul_ps, _mm512_set1_epi8,
        _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512,
        _mm512_srli_epi16,
    };

    use super::{Bits, Line, Packed, QUADS};
    use crate::kernels::tile::{Tile, store};

    macro_rules! kernel {
        ($name:ident, $bits:expr, $quad:expr) => {
            #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
            unsafe fn $name<const M: usize>(rows: &Packed, panel: &[Line], out: Tile) {
                const LINES: usize = $bits.lines();
                let mut sums = [[_mm512_setzero_ps(); 2]; M];
                let mut quads = rows.quads.as_ptr();
                let mut scales = rows.scales.as_ptr();
                for block in panel.chunks_exact(LINES) {
                    let lines = block.as_ptr();
                    let mut acc = [[_mm512_setzero_si512(); 2]; M];
                    // SAFETY: `rows` holds 8 quads and one pair of scales per block and row; a
                    // block holds LINES lines.
                    unsafe {
                        for quad in 0..QUADS {
                            let w: [__m512i; 2] = $quad(lines, quad);
                            for i in 0..M {
                                let x = _mm512_set1_epi32(*quads.add(quad * M + i) as i32);
                                acc[i][0] = _mm512_dpbusd_epi32(acc[i][0], w[0], x);
                                acc[i][1] = _mm512_dpbusd_epi32(acc[i][1], w[1], x);
                            }
                        }
                        quads = quads.add(QUADS * M);
                        let halves = |line: usize| {
                            let at = lines.add(line).cast::<std::arch::x86_64::__m256i>();
                            [
                                _mm512_cvtph_ps(_mm256_load_si256(at)),
                                _mm512_cvtph_ps(_mm256_load_si256(at.add(1))),
                            ]
                        };
                        let (d, m) = (halves(LINES - 2), halves(LINES - 1));
                        for i in 0..M {
                            let [scale, sum] = *scales.add(i);
                            let (scale, sum) = (_mm512_set1_ps(scale), _mm512_set1_ps(sum));
                            for h in 0..2 {
                                let products = _mm512_cvtepi32_ps(acc[i][h]);
                                sums[i][h] = _mm512_fmadd_ps(
                                    products,
                                    _mm512_mul_ps(scale, d[h]),
                                    sums[i][h],
                                );
                                sums[i][h] = _mm512_fmadd_ps(sum, m[h], sums[i][h]);
                            }
                        }
                        scales = scales.add(M);
                    }
                }
                // SAFETY: the tile is the caller's.
                unsafe { store(&sums, out) }
            }
        };
    }

    /// Both halves of a quad of 4-bit weights.
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn four(lines: *const Line, quad: usize) -> [__m512i; 2] {
        let low = _mm512_set1_epi8(15);
        let half = |h: usize| {
            // SAFETY: within the block's lines.
            let both = unsafe { _mm512_load_si512(lines.add(quad / 2 * 2 + h).cast()) };
            let shifted = if quad.is_multiple_of(2) {
                both
            } else {
                _mm512_srli_epi16::<4>(both)
            };
            _mm512_and_si512(shifted, low)
        };
        [half(0), half(1)]
    }

    /// Both halves of a quad of 8-bit weights.
    #[target_feature(enable = "avx512f")]
    unsafe fn eight(lines: *const Line, quad: usize) -> [__m512i; 2] {
        // SAFETY: within the block's lines.
        unsafe {
            [
                _mm512_load_si512(lines.add(quad * 2).cast()),
                _mm512_load_si512(lines.add(quad * 2 + 1).cast()),
            ]
        }
    }

    kernel!(tile_four, Bits::Four, |lines, quad| four(lines, quad));
    kernel!(tile_eight, Bits::Eight, |lines, quad| eight(lines, quad));

    pub(super) unsafe fn run(bits: Bits, rows: &Packed, count: usize, panel: &[Line], out: Tile) {
        debug_assert_eq!(rows.scales.len(), panel.len() / bits.lines() * count);
        macro_rules! by_rows {
            ($kernel:ident) => {
                match count {
                    1 => $kernel::<1>(rows, panel, out),
                    2 => $kernel::<2>(rows, panel, out),
                    3 => $kernel::<3>(rows, panel, out),
                    4 => $kernel::<4>(rows, panel, out),
                    5 => $kernel::<5>(rows, panel, out),
                    _ => $kernel::<6>(rows, panel, out),
                }
            };
        }
        // SAFETY: the caller's promises.
        unsafe {
            match bits {
                Bits::Four => by_rows!(tile_four),
                Bits::Eight => by_rows!(tile_eight),
            }
        }
    }
}

/// AVX2: VPMADDUBSW multiplies unsigned weights by signed activations and adds pairs in 16 bits.
/// Weights of 8 bits would overflow there, so their upper and lower four bits are multiplied apart:
/// eight quads of at most `2 * 15 * 127` stay below `2^15`. Integers are exact, and the scaling is
/// in the order of the AVX-512 form: both give the same bits.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod avx2 {
    use std::arch::x86_64::{
        __m256, __m256i, _mm_load_si128, _mm256_add_epi16, _mm256_add_epi32, _mm256_and_si256,
        _mm256_cvtepi32_ps, _mm256_cvtph_ps, _mm256_fmadd_ps, _mm256_load_si256, _mm256_madd_epi16,
        _mm256_maddubs_epi16, _mm256_mul_ps, _mm256_set1_epi8, _mm256_set1_epi16,
        _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_ps, _mm256_setzero_si256,
        _mm256_slli_epi32, _mm256_srli_epi16, _mm256_storeu_ps,
    };

    use super::{Bits, Line, Packed, QUADS};
    use crate::kernels::tile::{Tile, WIDTH};

    /// Outputs of a vector.
    const LANES: usize = 8;

    /// Sums of products of one block: `M` rows by the 8 outputs from `8 * part` on.
    ///
    /// # Safety
    /// The CPU has AVX2; `lines` is a block of `bits` bits, `quads` 8 quads of `M` rows.
    #[target_feature(enable = "avx2")]
    unsafe fn products<const M: usize>(
        bits: Bits,
        lines: *const Line,
        quads: *const u32,
        part: usize,
    ) -> [__m256i; M] {
        let low = _mm256_set1_epi8(15);
        let mut sums = [[_mm256_setzero_si256(); 2]; M];
        for quad in 0..QUADS {
            let line = if bits == Bits::Four { quad / 2 } else { quad };
            // SAFETY: a part is half a line; quads are within the rows' block.
            unsafe {
                let at = lines.add(2 * line + part / 2).cast::<__m256i>();
                let both = _mm256_load_si256(at.add(part % 2));
                let lower = _mm256_and_si256(both, low);
                let upper = _mm256_and_si256(_mm256_srli_epi16::<4>(both), low);
                for (i, sums) in sums.iter_mut().enumerate() {
                    let x = _mm256_set1_epi32(*quads.add(quad * M + i) as i32);
                    match bits {
                        Bits::Four => {
                            let w = if quad % 2 == 0 { lower } else { upper };
                            sums[0] = _mm256_add_epi16(sums[0], _mm256_maddubs_epi16(w, x));
                        }
                        Bits::Eight => {
                            sums[0] = _mm256_add_epi16(sums[0], _mm256_maddubs_epi16(lower, x));
                            sums[1] = _mm256_add_epi16(sums[1], _mm256_maddubs_epi16(upper, x));
                        }
                    }
                }
            }
        }
        let ones = _mm256_set1_epi16(1);
        sums.map(|[lower, upper]| {
            let lower = _mm256_madd_epi16(lower, ones);
            let upper = _mm256_madd_epi16(upper, ones);
            _mm256_add_epi32(lower, _mm256_slli_epi32::<4>(upper))
        })
    }

    /// `M` rows by 32 outputs.
    ///
    /// # Safety
    /// The CPU has the features; `rows` holds 8 quads and one pair of scales per block and row;
    /// the tile is the caller's.
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn tile<const M: usize>(bits: Bits, rows: &Packed, panel: &[Line], out: Tile) {
        let per = bits.lines();
        for part in 0..out.cols.div_ceil(LANES) {
            let mut sums = [_mm256_setzero_ps(); M];
            for (b, block) in panel.chunks_exact(per).enumerate() {
                let lines = block.as_ptr();
                // SAFETY: the caller's promises.
                unsafe {
                    let quads = rows.quads.as_ptr().add(b * QUADS * M);
                    let acc = match bits {
                        Bits::Four => products::<M>(Bits::Four, lines, quads, part),
                        Bits::Eight => products::<M>(Bits::Eight, lines, quads, part),
                    };
                    let halves = |line: usize| -> __m256 {
                        let at = lines.add(line).cast::<std::arch::x86_64::__m128i>();
                        _mm256_cvtph_ps(_mm_load_si128(at.add(part)))
                    };
                    let d = halves(per - 2);
                    let m = halves(per - 1);
                    for (i, (total, acc)) in sums.iter_mut().zip(acc).enumerate() {
                        let [scale, sum] = *rows.scales.get_unchecked(b * M + i);
                        let scaled = _mm256_mul_ps(_mm256_set1_ps(scale), d);
                        *total = _mm256_fmadd_ps(_mm256_cvtepi32_ps(acc), scaled, *total);
                        *total = _mm256_fmadd_ps(_mm256_set1_ps(sum), m, *total);
                    }
                }
            }
            let cols = (out.cols - part * LANES).min(LANES);
            for (i, total) in sums.into_iter().enumerate() {
                let mut values = [0.0f32; WIDTH / 4];
                // SAFETY: `values` takes a vector; the tile's rows and columns are the caller's.
                let to = unsafe {
                    _mm256_storeu_ps(values.as_mut_ptr(), total);
                    let at = out.at.add(i * out.stride + part * LANES);
                    std::slice::from_raw_parts_mut(at, cols)
                };
                for (to, v) in to.iter_mut().zip(values) {
                    *to = if out.add { v + *to } else { v };
                }
            }
        }
    }

    pub(super) unsafe fn run(bits: Bits, rows: &Packed, count: usize, panel: &[Line], out: Tile) {
        debug_assert_eq!(rows.scales.len(), panel.len() / bits.lines() * count);
        // SAFETY: the caller's promises.
        unsafe {
            match count {
                1 => tile::<1>(bits, rows, panel, out),
                2 => tile::<2>(bits, rows, panel, out),
                3 => tile::<3>(bits, rows, panel, out),
                4 => tile::<4>(bits, rows, panel, out),
                5 => tile::<5>(bits, rows, panel, out),
                _ => tile::<6>(bits, rows, panel, out),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use lethe_learn::seed::Seed;

    use super::*;

    fn random(name: &str, n: usize) -> Vec<f32> {
        let mut rng = Seed::from_u64(6).derive(name, &[&n.to_le_bytes()]).rng();
        (0..n).map(|_| rng.normal()).collect()
    }

    fn rounded(block: &[f32]) -> Vec<f64> {
        let top = block.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let scale = f64::from(top) / 127.0;
        block
            .iter()
            .map(|v| (f64::from(*v) / scale).round_ties_even() * scale)
            .collect()
    }

    #[test]
    fn products_are_those_of_the_rounded_factors() {
        for (rows, n, k) in [
            (1, 1, 32),
            (3, 33, 64),
            (6, 64, 32),
            (7, 40, 96),
            (41, 100, 160),
        ] {
            let x = random("x", rows * k);
            for four in [true, false] {
                let mut w = random("w", n * k);
                if four {
                    w.chunks_exact_mut(BLOCK).for_each(|b| {
                        let block = Block::of(b, 15.0);
                        b.iter_mut()
                            .enumerate()
                            .for_each(|(i, v)| *v = block.value(i));
                    });
                }
                let Some(quantised) = Quantised::new(&w, n, k) else {
                    return;
                };
                assert_eq!(quantised.bits == Bits::Four, four);
                let mut y = vec![f32::NAN; rows * n];
                quantised.multiply(&x, rows, &mut y, false);
                let mut twice = y.clone();
                quantised.multiply(&x, rows, &mut twice, true);
                // The factors as the kernel rounds them; their product in f64.
                let rounded_x: Vec<f64> = x.chunks_exact(BLOCK).flat_map(rounded).collect();
                let top = if four { 15.0 } else { 255.0 };
                let blocks = w.chunks_exact(BLOCK).map(|b| Block::of(b, top));
                let rounded_w: Vec<f64> = blocks
                    .flat_map(|b| {
                        (0..BLOCK)
                            .map(move |i| f64::from(b.value(i)))
                            .collect::<Vec<_>>()
                    })
                    .collect();
                for (i, j) in (0..rows).flat_map(|i| (0..n).map(move |j| (i, j))) {
                    let exact: f64 = (0..k)
                        .map(|l| rounded_x[i * k + l] * rounded_w[j * k + l])
                        .sum();
                    let got = f64::from(y[i * n + j]);
                    assert!(
                        (got - exact).abs() < 1e-4 * (1.0 + exact.abs()),
                        "{got} {exact}, {rows} x {n} x {k}"
                    );
                    assert!((twice[i * n + j] - 2.0 * y[i * n + j]).abs() < 1e-3);
                }
                // A row alone gives the same bits as among others.
                let mut alone = vec![0.0; n];
                quantised.multiply(&x[..k], 1, &mut alone, false);
                assert_eq!(alone, y[..n]);
            }
        }
    }

    /// AVX2 and AVX-512 give the same bits: those of one order of integer sums and scalings.
    #[test]
    fn all_vector_units_give_the_bits_of_one_order() {
        for (rows, n, k) in [(1, 1, 32), (5, 33, 96), (13, 40, 160)] {
            let x = random("x", rows * k);
            for top in [15.0, 255.0] {
                let blocks: Vec<Block> = random("w", n * k)
                    .chunks_exact(BLOCK)
                    .map(|b| Block::of(b, top))
                    .collect();
                let weights: Vec<f32> = blocks
                    .iter()
                    .flat_map(|b| (0..BLOCK).map(|i| b.value(i)).collect::<Vec<_>>())
                    .collect();
                let Some(quantised) = Quantised::new(&weights, n, k) else {
                    return;
                };
                // As the panels hold them: eight bits are rounded once more.
                let held = |b: &[f32]| Block::of(b, top);
                let blocks: Vec<Block> = weights.chunks_exact(BLOCK).map(held).collect();
                let mut y = vec![0.0; rows * n];
                quantised.multiply(&x, rows, &mut y, false);
                for (at, got) in y.iter().enumerate() {
                    let x = &x[at / n * k..][..k];
                    let w = &blocks[at % n * (k / BLOCK)..][..k / BLOCK];
                    let want = in_order(x, w);
                    assert_eq!(got.to_bits(), want.to_bits(), "{rows} x {n} x {k} at {at}");
                }
            }
        }
    }

    /// One result, block by block, as the kernels compute it.
    fn in_order(x: &[f32], w: &[Block]) -> f32 {
        let mut sum = 0.0f32;
        for (x, w) in x.chunks_exact(BLOCK).zip(w) {
            let top = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            let scale = top / 127.0;
            let inverse = if top > 0.0 { 127.0 / top } else { 0.0 };
            let q: Vec<i32> = x
                .iter()
                .map(|v| (v * inverse).round_ties_even() as i32)
                .collect();
            let products: i32 = q.iter().zip(w.q).map(|(x, w)| x * i32::from(w)).sum();
            let d = half::f16::from_bits(w.d).to_f32();
            let m = half::f16::from_bits(w.m).to_f32();
            sum = (products as f32).mul_add(scale * d, sum);
            sum = (scale * q.iter().sum::<i32>() as f32).mul_add(m, sum);
        }
        sum
    }
}
