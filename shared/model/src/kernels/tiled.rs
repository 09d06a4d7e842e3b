//! Attention over the tile kernels: the same mathematics as the portable form, without scores of
//! hidden positions and without a matrix of scores in memory in the forward pass.
//!
//! A task is one run of rows and one group of query heads that share keys and values. Blocks of
//! rows see only the panels of keys up to their diagonal.

use std::cell::RefCell;

use super::attention::{Heads, Saved};
use super::math::{exp, sum_by, vectorised};
use super::panels::{Line, Out};
use super::tile::{self, Rows, TILE_ROWS, WIDTH};
use crate::buffers::{Buffer, Pool};
use crate::layout::Run;

/// Memory of a task, kept by its thread.
#[derive(Default)]
struct Scratch {
    /// Keys (then values) as outputs: `[panel][dim][32 positions]`.
    keys: Vec<Line>,
    values: Vec<Line>,
    /// Positions as inputs: `[panel of dim][position][32]`.
    key_rows: Vec<Line>,
    value_rows: Vec<Line>,
    packed: Vec<u32>,
    /// Scores or probabilities of a block, or of a head in the backward pass: `[row][ld]`.
    p: Vec<f32>,
    dp: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Whether this CPU runs the kernels.
pub(crate) fn supported() -> bool {
    tile::has_kernels()
}

/// Rows that are `stride` apart, from `first` on.
#[derive(Clone, Copy)]
struct Source<'a> {
    values: &'a [f32],
    first: usize,
    stride: usize,
}

impl<'a> Source<'a> {
    fn row(&self, i: usize, len: usize) -> &'a [f32] {
        &self.values[self.first + i * self.stride..][..len]
    }
}

/// Packs `count` rows of `k` values; returns the units.
fn pack<'a>(x: Source<'_>, count: usize, k: usize, packed: &'a mut Vec<u32>) -> &'a [u32] {
    grow(packed, count * k, 0);
    let into = &mut packed[..count * k];
    let x = &x.values[x.first..][..(count - 1) * x.stride + k];
    let stride = if count > 1 {
        (x.len() - k) / (count - 1)
    } else {
        k
    };
    #[allow(unsafe_code)]
    // SAFETY: tasks run only where the kernels are supported; `x` ends with the last of `count`
    // rows, `stride` apart; `into` holds `count * k` units.
    let done = unsafe { tile::pack(x, stride, k, count, into, count) };
    for i in 0..count {
        for u in done..k {
            into[u * count + i] = x[i * stride + u].to_bits();
        }
    }
    into
}

fn grow<T: Clone>(v: &mut Vec<T>, len: usize, zero: T) {
    if v.len() < len {
        v.resize(len, zero);
    }
}

const ZERO: Line = Line([0; 16]);

/// The positions that a run attends to: the prefix, then its own.
struct Seen<'a> {
    qkv: &'a [f32],
    width: usize,
    run: Run,
}

impl<'a> Seen<'a> {
    fn cols(&self) -> usize {
        self.run.context + self.run.len
    }

    /// `dim` values of position `c` from column `at` of the fused buffer.
    fn row(&self, c: usize, at: usize, dim: usize) -> &'a [f32] {
        let row = if c < self.run.context {
            c
        } else {
            self.run.start + c - self.run.context
        };
        &self.qkv[row * self.width + at..][..dim]
    }

    /// Positions as outputs, `[panel][dim][32]`.
    fn as_outputs(&self, at: usize, dim: usize, lines: &mut Vec<Line>) {
        let panels = self.cols().div_ceil(WIDTH);
        grow(lines, panels * dim * 2, ZERO);
        for p in 0..panels {
            let panel = &mut lines[p * dim * 2..(p + 1) * dim * 2];
            panel.fill(ZERO);
            for j in 0..WIDTH.min(self.cols() - p * WIDTH) {
                for (u, v) in self.row(p * WIDTH + j, at, dim).iter().enumerate() {
                    panel[2 * u + j / 16].0[j % 16] = v.to_bits();
                }
            }
        }
    }

    /// Positions as inputs, `[panel of dim][position][32]`.
    fn as_inputs(&self, at: usize, dim: usize, lines: &mut Vec<Line>) {
        as_inputs(self.cols(), dim, |c| self.row(c, at, dim), lines);
    }
}

fn as_inputs<'a>(
    count: usize,
    dim: usize,
    row: impl Fn(usize) -> &'a [f32],
    lines: &mut Vec<Line>,
) {
    grow(lines, dim.div_ceil(WIDTH) * count * 2, ZERO);
    for p in 0..dim.div_ceil(WIDTH) {
        for c in 0..count {
            let values = &row(c)[p * WIDTH..];
            for half in 0..2 {
                let line = &mut lines[(p * count + c) * 2 + half];
                *line = ZERO;
                line.0
                    .iter_mut()
                    .zip(values.iter().skip(half * 16))
                    .for_each(|(l, v)| *l = v.to_bits());
            }
        }
    }
}

/// A tile of products; checks that it lies inside its buffer.
fn product(
    rows: Rows<'_>,
    panel: &[Line],
    out: Out,
    at: usize,
    stride: usize,
    cols: usize,
    add: bool,
) {
    assert!(
        rows.units.len() == rows.count * panel.len() / 2 && rows.count <= TILE_ROWS,
        "a block does not fit its panel"
    );
    let dst = out.tile(at, rows.count, stride, cols, add);
    #[allow(unsafe_code)]
    // SAFETY: checked above; the kernels are supported where tasks run; tiles of different tasks
    // are disjoint.
    unsafe {
        tile::run(rows, panel, dst);
    }
}

/// `dst[count, dim]` from packed rows over `depth` positions of `lines` (`[panel of dim][all][32]`,
/// from `first` on).
struct Gather<'a> {
    lines: &'a [Line],
    all: usize,
    first: usize,
    depth: usize,
    dim: usize,
}

impl Gather<'_> {
    fn run(&self, units: &[u32], count: usize, out: Out, at: usize, stride: usize, add: bool) {
        let rows = Rows { units, count };
        for p in 0..self.dim.div_ceil(WIDTH) {
            let from = (p * self.all + self.first) * 2;
            let panel = &self.lines[from..from + self.depth * 2];
            let cols = (self.dim - p * WIDTH).min(WIDTH);
            product(rows, panel, out, at + p * WIDTH, stride, cols, add);
        }
    }
}

fn blocks(n: usize) -> impl Iterator<Item = (usize, usize)> {
    let parts = n.div_ceil(tile::most_rows());
    (0..parts).map(move |b| (n * b / parts, n * (b + 1) / parts))
}

/// Context and log-sum-exp of one task.
pub(crate) fn forward_task(qkv: &[f32], heads: Heads, run: Run, g: usize, ctx: Out, lse: Out) {
    SCRATCH.with_borrow_mut(|s| {
        let (dim, width) = (heads.dim, heads.width());
        let seen = Seen { qkv, width, run };
        let (cols, ld) = (seen.cols(), seen.cols().next_multiple_of(WIDTH));
        seen.as_outputs((heads.q + g) * dim, dim, &mut s.keys);
        seen.as_inputs((heads.q + heads.kv + g) * dim, dim, &mut s.value_rows);
        grow(&mut s.p, TILE_ROWS * ld, 0.0);
        for h in g * heads.group()..(g + 1) * heads.group() {
            for (i0, i1) in blocks(run.len) {
                let (m, reach) = (i1 - i0, run.context + i1);
                let q = Source {
                    values: qkv,
                    first: (run.start + i0) * width + h * dim,
                    stride: width,
                };
                let rows = Rows {
                    units: pack(q, m, dim, &mut s.packed),
                    count: m,
                };
                let p = Out::new(&mut s.p);
                for panel in 0..reach.div_ceil(WIDTH) {
                    let keys = &s.keys[panel * dim * 2..(panel + 1) * dim * 2];
                    product(rows, keys, p, panel * WIDTH, ld, WIDTH, false);
                }
                for r in 0..m {
                    let row = &mut s.p[r * ld..][..reach];
                    let (own, hidden) = row.split_at_mut(run.context + i0 + r + 1);
                    let l = softmax_scaled(own, heads.scale());
                    hidden.fill(0.0);
                    #[allow(unsafe_code)]
                    // SAFETY: inside the buffer (one value per row and query head), and this task's
                    // alone.
                    unsafe {
                        *lse.value((run.start + i0 + r) * heads.q + h) = l;
                    }
                }
                let p = Source {
                    values: &s.p,
                    first: 0,
                    stride: ld,
                };
                let rows = pack(p, m, reach, &mut s.packed);
                let values = Gather {
                    lines: &s.value_rows,
                    all: cols,
                    first: 0,
                    depth: reach,
                    dim,
                };
                values.run(
                    rows,
                    m,
                    ctx,
                    (run.start + i0) * heads.q * dim + h * dim,
                    heads.q * dim,
                    false,
                );
            }
        }
    });
}

/// Gradient of one task's queries, written in place, and of the keys and values it saw, `[context +
/// len, dim]` each.
pub(crate) fn backward_task(
    saved: Saved<'_>,
    heads: Heads,
    run: Run,
    g: usize,
    d_ctx: &[f32],
    d_qkv: Out,
    pool: &Pool,
) -> (Buffer, Buffer) {
    SCRATCH.with_borrow_mut(|s| {
        let (dim, width, row_width) = (heads.dim, heads.width(), heads.q * heads.dim);
        let seen = Seen {
            qkv: saved.qkv,
            width,
            run,
        };
        let (cols, ld) = (seen.cols(), seen.cols().next_multiple_of(WIDTH));
        let (key, value) = ((heads.q + g) * dim, (heads.q + heads.kv + g) * dim);
        seen.as_outputs(key, dim, &mut s.keys);
        seen.as_outputs(value, dim, &mut s.values);
        seen.as_inputs(key, dim, &mut s.key_rows);
        grow(&mut s.p, run.len * ld, 0.0);
        grow(&mut s.dp, run.len * ld, 0.0);
        let (mut dk, mut dv) = (pool.take(cols * dim), pool.take(cols * dim));
        for j in 0..heads.group() {
            let h = g * heads.group() + j;
            let at = |i: usize| (run.start + i) * row_width + h * dim;
            for (i0, i1) in blocks(run.len) {
                let (m, reach) = (i1 - i0, run.context + i1);
                let panels = reach.div_ceil(WIDTH);
                let q = Source {
                    values: saved.qkv,
                    first: (run.start + i0) * width + h * dim,
                    stride: width,
                };
                let d_out = Source {
                    values: d_ctx,
                    first: at(i0),
                    stride: row_width,
                };
                for (from, lines, to) in [(q, &s.keys, &mut s.p), (d_out, &s.values, &mut s.dp)] {
                    let rows = Rows {
                        units: pack(from, m, dim, &mut s.packed),
                        count: m,
                    };
                    let to = Out::new(to);
                    for panel in 0..panels {
                        let lines = &lines[panel * dim * 2..(panel + 1) * dim * 2];
                        product(rows, lines, to, i0 * ld + panel * WIDTH, ld, WIDTH, false);
                    }
                }
                for i in i0..i1 {
                    let lse = saved.lse[(run.start + i) * heads.q + h];
                    let (p, dp) = (&mut s.p[i * ld..][..reach], &mut s.dp[i * ld..][..reach]);
                    let (d_row, c_row) = (d_out.row(i - i0, dim), &saved.ctx[at(i)..][..dim]);
                    let seen = run.context + i + 1;
                    softmax_backward(p, dp, seen, lse, d_row, c_row, heads.scale());
                }
                let ds = Source {
                    values: &s.dp,
                    first: i0 * ld,
                    stride: ld,
                };
                let rows = pack(ds, m, reach, &mut s.packed);
                let keys = Gather {
                    lines: &s.key_rows,
                    all: cols,
                    first: 0,
                    depth: reach,
                    dim,
                };
                keys.run(
                    rows,
                    m,
                    d_qkv,
                    (run.start + i0) * width + h * dim,
                    width,
                    false,
                );
            }
            as_inputs(run.len, dim, |i| &d_ctx[at(i)..][..dim], &mut s.value_rows);
            scatter(
                &s.p,
                ld,
                run,
                dim,
                &s.value_rows,
                &mut s.packed,
                &mut dv,
                j > 0,
            );
            let query = |i: usize| &saved.qkv[(run.start + i) * width + h * dim..][..dim];
            as_inputs(run.len, dim, query, &mut s.value_rows);
            scatter(
                &s.dp,
                ld,
                run,
                dim,
                &s.value_rows,
                &mut s.packed,
                &mut dk,
                j > 0,
            );
        }
        (dk, dv)
    })
}

/// `dst[position, dim] (+)= weights[row, position]^T * rows[row, dim]`, over the rows that see a
/// position.
#[allow(clippy::too_many_arguments)]
fn scatter(
    weights: &[f32],
    ld: usize,
    run: Run,
    dim: usize,
    lines: &[Line],
    packed: &mut Vec<u32>,
    dst: &mut [f32],
    add: bool,
) {
    let out = Out::new(dst);
    for (c0, c1) in blocks(run.context + run.len) {
        let (m, first) = (c1 - c0, c0.saturating_sub(run.context));
        let depth = run.len - first;
        grow(packed, depth * m, 0);
        for (i, units) in (first..run.len).zip(packed.chunks_exact_mut(m)) {
            // Blocks of the forward order are filled up to their own reach only; what lies beyond
            // is not seen.
            let visible = (run.context + i + 1).clamp(c0, c1) - c0;
            let row = &weights[i * ld + c0..][..m];
            units
                .iter_mut()
                .zip(row)
                .enumerate()
                .for_each(|(c, (u, w))| *u = if c < visible { w.to_bits() } else { 0 });
        }
        let rows = Gather {
            lines,
            all: run.len,
            first,
            depth,
            dim,
        };
        rows.run(&packed[..depth * m], m, out, c0 * dim, dim, add);
    }
}

/// Softmax of `scale * row` in place; returns the logarithm of the sum of exponentials.
fn softmax_scaled(row: &mut [f32], scale: f32) -> f32 {
    vectorised(
        #[inline(always)]
        || {
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max) * scale;
            for v in row.iter_mut() {
                *v = exp(*v * scale - max);
            }
            let sum = sum_by(row.len(), |i| row[i]);
            let inv = 1.0 / sum;
            for v in row.iter_mut() {
                *v *= inv;
            }
            max + sum.ln()
        },
    )
}

/// From unscaled scores to probabilities (`p`) and from their incoming gradient to that of the
/// scores (`dp`).
fn softmax_backward(
    p: &mut [f32],
    dp: &mut [f32],
    seen: usize,
    lse: f32,
    d_row: &[f32],
    c_row: &[f32],
    scale: f32,
) {
    vectorised(
        #[inline(always)]
        || {
            let dot = sum_by(d_row.len(), |i| d_row[i] * c_row[i]);
            for c in 0..seen {
                p[c] = exp(p[c] * scale - lse);
                dp[c] = p[c] * (dp[c] - dot) * scale;
            }
            p[seen..].fill(0.0);
            dp[seen..].fill(0.0);
        },
    );
}
