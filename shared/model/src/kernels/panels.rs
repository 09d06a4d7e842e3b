//! Frozen weights in the order in which the tile kernels read them, and products with them.
//!
//! A matrix `[n, k]` (outputs, inputs) lies in panels of `WIDTH` outputs; within a panel the inputs
//! follow each other in units of 32 bits per output: one f32, or a pair of bf16. A product packs a
//! block of rows of the other factor, and keeps a tile of results in registers over the whole inner
//! dimension: every result is one chain of additions in the order of the inputs, whatever the
//! number of threads.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::tile::{self, Rows, TILE_ROWS, Tile, WIDTH};
use super::transpose::transpose;

/// Arithmetic of the products with frozen weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compute {
    /// f32 factors and sums.
    #[default]
    F32,
    /// bf16 factors, f32 sums: weights, activations and gradients are rounded to 8 significant bits
    /// as they enter a product with frozen weights. The residual stream, attention and adapters
    /// stay f32.
    Bf16,
    /// For scoring only: 8-bit activations times weights of 4 or 8 bits, summed in integers per
    /// block of 32 inputs. Where the CPU has no such instructions, or blocks do not divide the
    /// inputs, f32.
    Int8,
}

impl Compute {
    /// Units of a row of `k` values.
    pub(crate) fn depth(self, k: usize) -> usize {
        match self {
            Self::F32 | Self::Int8 => k,
            Self::Bf16 => k.div_ceil(2),
        }
    }
}

/// 64 bytes on their own cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [u32; 16]);

/// Lines of a unit: [`WIDTH`] outputs.
const LINES: usize = WIDTH / 16;

/// Bytes of packed rows that one task works on: they stay in a core's second-level cache beside a
/// panel.
const GROUP_BYTES: usize = 256 << 10;

/// Work (multiply-adds) below which a product stays on the calling thread.
const POOL_WORK: usize = 1 << 20;

/// The nearest bf16 (ties to even), as the upper half of an f32.
#[inline(always)]
pub(crate) fn to_bf16(x: f32) -> u32 {
    let bits = x.to_bits();
    // A NaN keeps its upper half; every other value rounds. Infinity is reached by rounding like
    // any other value.
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    (if x.is_nan() {
        bits | 0x0040_0000
    } else {
        rounded
    }) >> 16
}

fn unit(compute: Compute, k: usize, u: usize, get: impl Fn(usize) -> f32) -> u32 {
    match compute {
        Compute::F32 | Compute::Int8 => get(u).to_bits(),
        Compute::Bf16 => {
            let high = if 2 * u + 1 < k {
                to_bf16(get(2 * u + 1))
            } else {
                0
            };
            to_bf16(get(2 * u)) | high << 16
        }
    }
}

/// A matrix `[outputs, inputs]` in panels.
#[derive(Debug)]
pub(crate) struct Panels {
    compute: Compute,
    n: usize,
    k: usize,
    lines: Vec<Line>,
}

impl Panels {
    /// Packs `get(output, input)`.
    pub(crate) fn pack(
        compute: Compute,
        n: usize,
        k: usize,
        get: impl Fn(usize, usize) -> f32 + Sync,
    ) -> Self {
        let depth = compute.depth(k);
        let mut lines = vec![Line([0; 16]); n.div_ceil(WIDTH) * depth * LINES];
        lines
            .par_chunks_mut((depth * LINES).max(1))
            .enumerate()
            .for_each(|(p, panel)| {
                for (u, lines) in panel.chunks_exact_mut(LINES).enumerate() {
                    for (j, v) in lines.iter_mut().flat_map(|l| l.0.iter_mut()).enumerate() {
                        let output = p * WIDTH + j;
                        if output < n {
                            *v = unit(compute, k, u, |input| get(output, input));
                        }
                    }
                }
            });
        Self {
            compute,
            n,
            k,
            lines,
        }
    }

    /// `dst[rows, k] (+)= dy[rows, n] * self`: the product of the other direction, with panels that
    /// are made for it and thrown away.
    pub(crate) fn multiply_transposed(&self, dy: &[f32], rows: usize, dst: &mut [f32], add: bool) {
        thread_local! {
            static MADE: RefCell<Vec<Line>> = const { RefCell::new(vec![]) };
        }
        let len = self.k.div_ceil(WIDTH) * self.compute.depth(self.n) * LINES;
        // Taken, not borrowed: a thread that waits for others in here may take up another product
        // of this kind.
        let mut lines = MADE.take();
        if lines.len() < len {
            lines.resize(len, Line([0; 16]));
        }
        transpose(self.compute, self.n, self.k, &self.lines, &mut lines[..len]);
        let other = Self {
            compute: self.compute,
            n: self.k,
            k: self.n,
            lines,
        };
        other.multiply(dy, rows, dst, add);
        MADE.set(other.lines);
    }

    #[cfg(test)]
    pub(crate) fn lines(&self) -> &[Line] {
        &self.lines
    }

    pub(crate) fn bytes(&self) -> usize {
        self.lines.len() * size_of::<Line>()
    }

    /// `dst[rows, n] (+)= x[rows, k] * self^T`.
    ///
    /// # Panics
    /// If a shape does not fit its slice: a programming error.
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
        let grid = Grid::new(
            rows,
            n.div_ceil(WIDTH),
            self.compute.depth(k),
            TILE_ROWS,
            threads,
        );
        let out = Out::new(dst);
        grid.run(threads, |blocks, panels| {
            self.task(&grid, blocks, panels, x, out, add)
        });
    }

    fn task(
        &self,
        grid: &Grid,
        blocks: Range<usize>,
        panels: Range<usize>,
        x: &[f32],
        out: Out,
        add: bool,
    ) {
        thread_local! {
            static PACKED: RefCell<Vec<u32>> = const { RefCell::new(vec![]) };
        }
        let (n, k, depth) = (self.n, self.k, self.compute.depth(self.k));
        PACKED.with_borrow_mut(|packed| {
            let first = blocks.clone().next().map_or(0, |b| grid.block(b).start);
            let last = blocks.clone().next_back().map_or(0, |b| grid.block(b).end);
            // Every unit of the part in use is written below; growing alone clears.
            if packed.len() < (last - first) * depth {
                packed.resize((last - first) * depth, 0);
            }
            for b in blocks.clone() {
                let rows = grid.block(b);
                let into = &mut packed[(rows.start - first) * depth..(rows.end - first) * depth];
                pack_rows(self.compute, &x[rows.start * k..rows.end * k], k, into);
            }
            for p in panels {
                let panel = &self.lines[p * depth * LINES..(p + 1) * depth * LINES];
                for b in blocks.clone() {
                    let rows = grid.block(b);
                    let from = &packed[(rows.start - first) * depth..(rows.end - first) * depth];
                    let cols = (n - p * WIDTH).min(WIDTH);
                    let dst = out.tile(rows.start * n + p * WIDTH, rows.len(), n, cols, add);
                    #[allow(unsafe_code)]
                    // SAFETY: panels exist only where the kernels run; `from` holds `rows.len() *
                    // depth` units and `panel` `depth`; `out.tile` checked the tile, and no other
                    // task has these rows and columns.
                    unsafe {
                        tile::run(
                            self.compute,
                            Rows {
                                units: from,
                                count: rows.len(),
                            },
                            panel,
                            dst,
                        );
                    }
                }
            }
        });
    }
}

/// Rows in the order of the tile kernels: unit by unit, the rows of the block side by side.
fn pack_rows(compute: Compute, x: &[f32], k: usize, into: &mut [u32]) {
    let m = x.len() / k;
    #[allow(unsafe_code)]
    // SAFETY: panels exist only where `compute` is supported; a block has 1 to TILE_ROWS rows of
    // `k` values, and `into` holds its units.
    let done = unsafe { tile::pack(compute, x, k, k, m, &mut *into, m) };
    for (i, row) in x.chunks_exact(k).enumerate() {
        for u in done..compute.depth(k) {
            into[u * m + i] = unit(compute, k, u, |input| row[input]);
        }
    }
}

/// Where results go; tasks write disjoint tiles of it.
#[derive(Clone, Copy)]
pub(crate) struct Out {
    at: *mut f32,
    len: usize,
}

#[allow(unsafe_code)]
// SAFETY: tasks write disjoint tiles, while the product holds the buffer exclusively.
unsafe impl Send for Out {}
#[allow(unsafe_code)]
// SAFETY: as above.
unsafe impl Sync for Out {}

impl Out {
    pub(crate) fn new(values: &mut [f32]) -> Self {
        Self {
            at: values.as_mut_ptr(),
            len: values.len(),
        }
    }

    /// A tile of `rows` rows, `stride` apart, of `cols` values.
    ///
    /// # Panics
    /// If it does not lie inside the buffer: a programming error.
    pub(crate) fn tile(
        &self,
        at: usize,
        rows: usize,
        stride: usize,
        cols: usize,
        add: bool,
    ) -> Tile {
        assert!(
            rows > 0 && at + (rows - 1) * stride + cols <= self.len,
            "a tile is outside its buffer"
        );
        Tile {
            at: self.at.wrapping_add(at),
            stride,
            cols,
            add,
        }
    }

    /// The address of one value.
    ///
    /// # Panics
    /// If it lies outside the buffer.
    pub(crate) fn value(&self, at: usize) -> *mut f32 {
        assert!(at < self.len, "a value is outside its buffer");
        self.at.wrapping_add(at)
    }
}

/// How a product is divided: blocks of a tile's rows, groups of blocks, and runs of panels.
pub(crate) struct Grid {
    rows: usize,
    blocks: usize,
    groups: usize,
    panels: usize,
    runs: usize,
}

impl Grid {
    /// For rows of `depth` units, `tile` rows to a block.
    pub(crate) fn new(
        rows: usize,
        panels: usize,
        depth: usize,
        tile: usize,
        threads: usize,
    ) -> Self {
        let blocks = rows.div_ceil(tile);
        let per_group = (GROUP_BYTES / (depth * tile * 4)).max(1);
        // As many tasks as threads, or a multiple, when there is that much to divide.
        let groups = blocks
            .div_ceil(per_group)
            .next_multiple_of(threads)
            .min(blocks);
        let runs = if groups >= threads {
            1
        } else {
            threads.div_ceil(groups).min(panels)
        };
        Self {
            rows,
            blocks,
            groups,
            panels,
            runs,
        }
    }

    /// Runs a task for every group of blocks and run of panels.
    pub(crate) fn run(&self, threads: usize, task: impl Fn(Range<usize>, Range<usize>) + Sync) {
        let one = |t: usize| {
            task(
                part(self.blocks, self.groups, t / self.runs),
                part(self.panels, self.runs, t % self.runs),
            );
        };
        let tasks = self.groups * self.runs;
        if threads == 1 {
            (0..tasks).for_each(one)
        } else {
            (0..tasks).into_par_iter().with_max_len(1).for_each(one)
        }
    }

    /// Rows of a block.
    pub(crate) fn block(&self, b: usize) -> Range<usize> {
        part(self.rows, self.blocks, b)
    }
}

/// Part `i` of `n` things divided into `parts` as evenly as possible.
fn part(n: usize, parts: usize, i: usize) -> Range<usize> {
    n * i / parts..n * (i + 1) / parts
}
