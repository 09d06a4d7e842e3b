//! Frozen weights in the order in which the tile kernels read them, and products with them.
//!
//! A matrix `[n, k]` (outputs, inputs) lies in panels of `WIDTH` outputs; within a panel the inputs
//! follow each other in units of 32 bits per output: one f32, or a pair of bf16. A product packs a
//! block of rows of the other factor, and keeps a tile of results in registers over the whole inner
//! dimension: every result is one chain of additions in the order of the inputs, whatever the
//! number of threads.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rayon::prelude::*;

use super::caches;
use super::tile::{self, Kernel, Rows, Session, Tile, WIDTH};
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

/// 64 bytes on their own cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [u32; 16]);

/// Lines of a unit: [`WIDTH`] outputs.
const LINES: usize = WIDTH / 16;

/// Panels of one product that wait for the next, for the whole process: memory follows how many
/// products run at once, not how many threads there are.
const KEPT_PANELS: usize = 2;

/// Panels that no product uses now.
fn free_panels() -> MutexGuard<'static, Vec<Vec<Line>>> {
    static FREE: Mutex<Vec<Vec<Line>>> = Mutex::new(vec![]);
    FREE.lock().unwrap_or_else(PoisonError::into_inner)
}

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

/// Unit `u` of `k` values: one f32, or a pair of bf16, zero past the end.
fn unit(kernel: Kernel, k: usize, u: usize, get: impl Fn(usize) -> f32) -> u32 {
    if !kernel.pairs() {
        return get(u).to_bits();
    }
    let half = |at: usize| if at < k { to_bf16(get(at)) } else { 0 };
    half(2 * u) | half(2 * u + 1) << 16
}

/// A matrix `[outputs, inputs]` in panels.
#[derive(Debug)]
pub(crate) struct Panels {
    kernel: Kernel,
    n: usize,
    k: usize,
    lines: Vec<Line>,
}

impl Panels {
    /// Packs `get(output, input)` for `kernel`, which this CPU has to have.
    pub(crate) fn pack(
        kernel: Kernel,
        n: usize,
        k: usize,
        get: impl Fn(usize, usize) -> f32 + Sync,
    ) -> Self {
        let depth = kernel.depth(k);
        let mut lines = vec![Line([0; 16]); n.div_ceil(WIDTH) * depth * LINES];
        lines
            .par_chunks_mut((depth * LINES).max(1))
            .enumerate()
            .for_each(|(p, panel)| {
                for (u, lines) in panel.chunks_exact_mut(LINES).enumerate() {
                    for (j, v) in lines.iter_mut().flat_map(|l| l.0.iter_mut()).enumerate() {
                        let output = p * WIDTH + j;
                        if output < n {
                            *v = unit(kernel, k, u, |input| get(output, input));
                        }
                    }
                }
            });
        Self {
            kernel,
            n,
            k,
            lines,
        }
    }

    /// Panels of a matrix `[n, k]` that `fill` writes for one product. Their memory serves the next
    /// product of this kind after `run`.
    pub(crate) fn made(
        kernel: Kernel,
        n: usize,
        k: usize,
        fill: impl FnOnce(&mut [Line]),
        run: impl FnOnce(&Self),
    ) {
        let len = n.div_ceil(WIDTH) * kernel.depth(k) * LINES;
        // Taken, not borrowed: a thread that waits for others in here may take up another product
        // of this kind.
        let mut lines = free_panels().pop().unwrap_or_default();
        if lines.len() < len {
            // First given back: growing would copy what nobody reads.
            drop(lines);
            lines = vec![Line([0; 16]); len];
        }
        fill(&mut lines[..len]);
        let made = Self {
            kernel,
            n,
            k,
            lines,
        };
        run(&made);
        let mut free = free_panels();
        if free.len() < KEPT_PANELS {
            free.push(made.lines);
        }
    }

    /// `dst[rows, k] (+)= dy[rows, n] * self`: the product of the other direction, with panels that
    /// are made for it.
    pub(crate) fn multiply_transposed(&self, dy: &[f32], rows: usize, dst: &mut [f32], add: bool) {
        let fill = |lines: &mut [Line]| transpose(self.kernel, self.n, self.k, &self.lines, lines);
        Self::made(self.kernel, self.k, self.n, fill, |other| {
            other.multiply(dy, rows, dst, add);
        });
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
            self.kernel.row_units(k),
            self.kernel.rows(),
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
        let (n, k, kernel) = (self.n, self.k, self.kernel);
        let depth = kernel.depth(k);
        let units = kernel.row_units(k) * kernel.rows();
        PACKED.with_borrow_mut(|packed| {
            // Blocks are `units` apart; growing alone clears.
            if packed.len() < blocks.len() * units {
                packed.resize(blocks.len() * units, 0);
            }
            let mut parts = Vec::with_capacity(blocks.len());
            for (b, into) in blocks.zip(packed.chunks_exact_mut(units.max(1))) {
                let rows = grid.block(b);
                let x = &x[rows.start * k..rows.end * k];
                #[allow(unsafe_code)]
                // SAFETY: panels exist only where the kernel runs; a block has 1 to
                // `kernel.rows()` rows.
                let units = unsafe { tile::pack_block(kernel, x, k, into) };
                parts.push(Part { rows, units });
            }
            #[allow(unsafe_code)]
            // SAFETY: panels exist only where the kernel runs; a task opens one session, and waits
            // for no other task meanwhile.
            let _session = unsafe { Session::open(kernel) };
            for p in panels {
                let panel = &self.lines[p * depth * LINES..(p + 1) * depth * LINES];
                let cols = (n - p * WIDTH).min(WIDTH);
                for part in &parts {
                    let (start, count) = (part.rows.start, part.rows.len());
                    let dst = out.tile(start * n + p * WIDTH, count, n, cols, add);
                    let rows = Rows {
                        units: part.units,
                        count,
                    };
                    #[allow(unsafe_code)]
                    // SAFETY: the kernel runs here; the rows were packed for it, the panel has as
                    // many inputs; `out.tile` checked the tile, and no other task has these rows
                    // and columns.
                    unsafe {
                        tile::run_with(kernel, rows, panel, dst);
                    }
                }
            }
        });
    }
}

/// A packed block of rows.
struct Part<'a> {
    rows: Range<usize>,
    units: &'a [u32],
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
        // The packed rows that one task works on stay in its core's second-level cache, beside a
        // panel.
        let per_group = (caches::second_level() / 2 / (depth * tile * 4)).max(1);
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
