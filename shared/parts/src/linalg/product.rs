//! `C += A B` in tiles.

use std::ops::Range;

use rayon::prelude::*;

use super::vectorised;

/// Rows of a tile: with [`WIDE`] columns, twelve vectors of AVX2 hold the accumulators.
pub(super) const TALL: usize = 6;
/// Columns of a tile.
pub(super) const WIDE: usize = 8;
/// Terms that are added to a tile before the next tile's turn: panels then stay in the cache.
const DEPTH: usize = 256;
/// Panels of rows that one task handles: a panel of columns is read once for all of them.
const BAND: usize = 8;

/// One factor, cut into panels of `N` lines; the panel holds its lines' elements of one inner index
/// side by side. Lines that are missing are zeros.
pub(super) struct Panels<const N: usize> {
    depth: usize,
    data: Vec<[f64; N]>,
}

impl<const N: usize> Panels<N> {
    /// Packs `lines` lines of `depth` elements. `element(line, k)`.
    pub(super) fn pack(
        lines: usize,
        depth: usize,
        element: impl Fn(usize, usize) -> f64 + Sync,
    ) -> Self {
        let panels = lines.div_ceil(N);
        let mut data = vec![[0.0; N]; panels * depth];
        data.par_chunks_mut(depth.max(1))
            .enumerate()
            .for_each(|(panel, out)| {
                let first = panel * N;
                let here = N.min(lines - first);
                for (k, block) in out.iter_mut().enumerate() {
                    for (line, place) in block[..here].iter_mut().enumerate() {
                        *place = element(first + line, k);
                    }
                }
            });
        Self { depth, data }
    }

    #[inline(always)]
    fn panel(&self, panel: usize, range: Range<usize>) -> &[[f64; N]] {
        let start = panel * self.depth;
        &self.data[start + range.start..start + range.end]
    }
}

/// What a product is added to: a band of columns of all rows of a row-major buffer.
pub(super) struct Target<'a> {
    /// The rows, `stride` apart.
    pub(super) data: &'a mut [f64],
    /// Elements from one row to the next.
    pub(super) stride: usize,
    /// First column of the band.
    pub(super) first: usize,
    /// Columns of the band.
    pub(super) columns: usize,
}

/// Adds `A B` to `target`, tile by tile. `terms(row, column)` gives the inner indices of the tile
/// that begins there; an empty range leaves the tile as it is. A tile may have more rows or columns
/// than are asked for only at the target's edge.
pub(super) fn add(
    target: Target<'_>,
    a: &Panels<TALL>,
    b: &Panels<WIDE>,
    terms: impl Fn(usize, usize) -> Range<usize> + Sync,
) {
    let Target {
        data,
        stride,
        first,
        columns,
    } = target;
    data.par_chunks_mut((BAND * TALL * stride).max(1))
        .enumerate()
        .for_each(|(number, lines)| {
            vectorised(Band {
                number,
                lines,
                stride,
                first,
                columns,
                a,
                b,
                terms: &terms,
            });
        });
}

/// A band of rows of the target.
struct Band<'a, F> {
    number: usize,
    lines: &'a mut [f64],
    stride: usize,
    first: usize,
    columns: usize,
    a: &'a Panels<TALL>,
    b: &'a Panels<WIDE>,
    terms: &'a F,
}

impl<F: Fn(usize, usize) -> Range<usize>> pulp::NullaryFnOnce for Band<'_, F> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let stride = self.stride;
        let mut start = 0;
        while start < self.a.depth {
            let end = (start + DEPTH).min(self.a.depth);
            for tile in 0..self.columns.div_ceil(WIDE) {
                let at = self.first + tile * WIDE;
                let width = WIDE.min(self.columns - tile * WIDE);
                let panels = self.lines.len().div_ceil(TALL * stride);
                for within in 0..panels {
                    let panel = self.number * BAND + within;
                    let wanted = (self.terms)(panel * TALL, tile * WIDE);
                    let from = wanted.start.max(start);
                    let to = wanted.end.min(end);
                    if from >= to {
                        continue;
                    }
                    let begin = within * TALL * stride;
                    let stop = (begin + TALL * stride).min(self.lines.len());
                    let lines = &mut self.lines[begin..stop];
                    let rows = lines.len().div_ceil(stride);
                    let mut sums = load(lines, stride, at, rows, width);
                    let left = self.a.panel(panel, from..to);
                    multiply(&mut sums, left, self.b.panel(tile, from..to));
                    store(&sums, lines, stride, at, rows, width);
                }
            }
            start = end;
        }
    }
}

#[inline(always)]
fn multiply(sums: &mut [[f64; WIDE]; TALL], a: &[[f64; TALL]], b: &[[f64; WIDE]]) {
    let mut own = *sums;
    for (left, right) in a.iter().zip(b) {
        for (row, x) in own.iter_mut().zip(left) {
            for (sum, y) in row.iter_mut().zip(right) {
                *sum = f64::mul_add(*x, *y, *sum);
            }
        }
    }
    *sums = own;
}

#[inline(always)]
fn load(band: &[f64], stride: usize, at: usize, rows: usize, width: usize) -> [[f64; WIDE]; TALL] {
    let mut out = [[0.0; WIDE]; TALL];
    for (row, line) in out.iter_mut().take(rows).enumerate() {
        let start = row * stride + at;
        line[..width].copy_from_slice(&band[start..start + width]);
    }
    out
}

#[inline(always)]
fn store(
    sums: &[[f64; WIDE]; TALL],
    band: &mut [f64],
    stride: usize,
    at: usize,
    rows: usize,
    width: usize,
) {
    for (row, line) in sums.iter().take(rows).enumerate() {
        let start = row * stride + at;
        band[start..start + width].copy_from_slice(&line[..width]);
    }
}
