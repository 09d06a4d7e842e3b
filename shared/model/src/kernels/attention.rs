//! Grouped-query causal attention over packed sequences with a shared prefix, forward and backward.
//!
//! Keys and values are never repeated for the query heads of a group, and the backward recomputes
//! the probabilities from the saved log-sum-exp (as FlashAttention does, arXiv 2205.14135).

use rayon::prelude::*;

use super::gemm::{Mat, Threads, matmul};
use super::math::{exp, softmax_row, sum_by, vectorised};
use super::panels::Out;
use super::tiled;
use crate::buffers::{Buffer, Pool};
use crate::layout::{Layout, Run};

/// Head counts and width. Rows of the fused buffer are `[q heads | k heads | v heads]`.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// Query heads.
    pub q: usize,
    /// Key and value heads.
    pub kv: usize,
    /// Width of a head.
    pub dim: usize,
}

impl Heads {
    pub(crate) fn width(&self) -> usize {
        (self.q + 2 * self.kv) * self.dim
    }

    pub(crate) fn group(&self) -> usize {
        self.q / self.kv
    }

    pub(crate) fn scale(&self) -> f32 {
        1.0 / (self.dim as f32).sqrt()
    }
}

/// The columns of one head over one span of rows of the fused buffer.
struct Span<'a> {
    qkv: &'a [f32],
    width: usize,
    dim: usize,
}

impl<'a> Span<'a> {
    fn mat(&self, start: usize, len: usize, head: usize) -> Mat<'a> {
        Mat::new(
            &self.qkv[start * self.width + head * self.dim..],
            len,
            self.dim,
            self.width,
        )
    }
}

fn tasks(layout: &Layout, heads: Heads) -> Vec<(Run, usize)> {
    layout
        .runs()
        .into_iter()
        .flat_map(|r| (0..heads.kv).map(move |g| (r, g)))
        .collect()
}

/// Scores `[len, context + len]` of query head `h` against its key head, unscaled entries beyond
/// the diagonal kept.
fn scores(span: &Span<'_>, heads: Heads, run: Run, h: usize, out: &mut [f32]) {
    let key = heads.q + h / heads.group();
    let cols = run.context + run.len;
    let q = span.mat(run.start, run.len, h);
    if run.context > 0 {
        let k = span.mat(0, run.context, key);
        matmul(out, cols, false, heads.scale(), q, k.t(), Threads::One);
    }
    let own = span.mat(run.start, run.len, key);
    matmul(
        &mut out[run.context..],
        cols,
        false,
        heads.scale(),
        q,
        own.t(),
        Threads::One,
    );
}

/// `ctx[rows, q * dim]` and `lse[rows, q]` from rotated `qkv[rows, (q + 2 kv) * dim]`.
pub fn attention(qkv: &[f32], layout: &Layout, heads: Heads, ctx: &mut [f32], lse: &mut [f32]) {
    if !tiled::supported() {
        return portable(qkv, layout, heads, ctx, lse);
    }
    check(layout, heads, qkv, ctx, lse);
    let (ctx, lse) = (Out::new(ctx), Out::new(lse));
    tasks(layout, heads)
        .into_par_iter()
        .for_each(|(run, g)| tiled::forward_task(qkv, heads, run, g, ctx, lse));
}

fn check(layout: &Layout, heads: Heads, qkv: &[f32], ctx: &[f32], lse: &[f32]) {
    let t = layout.rows();
    let fits = qkv.len() == t * heads.width()
        && ctx.len() == t * heads.q * heads.dim
        && lse.len() == t * heads.q;
    assert!(
        heads.kv > 0 && heads.q.is_multiple_of(heads.kv),
        "{} query heads over {}",
        heads.q,
        heads.kv
    );
    assert!(
        fits,
        "{t} rows do not fit buffers of {}, {} and {}",
        qkv.len(),
        ctx.len(),
        lse.len()
    );
}

/// [`attention`] over the `gemm` crate: what a CPU without the tile kernels does.
pub fn portable(qkv: &[f32], layout: &Layout, heads: Heads, ctx: &mut [f32], lse: &mut [f32]) {
    let group = heads.group();
    let done: Vec<(Vec<f32>, Vec<f32>)> = tasks(layout, heads)
        .into_par_iter()
        .map(|(run, g)| forward_task(qkv, heads, run, g))
        .collect();
    for ((run, g), (c, l)) in tasks(layout, heads).into_iter().zip(done) {
        let span = group * heads.dim;
        for i in 0..run.len {
            let row = run.start + i;
            let at = row * heads.q * heads.dim + g * span;
            ctx[at..at + span].copy_from_slice(&c[i * span..(i + 1) * span]);
            let at = row * heads.q + g * group;
            lse[at..at + group].copy_from_slice(&l[i * group..(i + 1) * group]);
        }
    }
}

fn forward_task(qkv: &[f32], heads: Heads, run: Run, g: usize) -> (Vec<f32>, Vec<f32>) {
    let span = Span {
        qkv,
        width: heads.width(),
        dim: heads.dim,
    };
    let (group, cols) = (heads.group(), run.context + run.len);
    let wide = group * heads.dim;
    let mut p = vec![0.0; run.len * cols];
    let mut ctx = vec![0.0; run.len * wide];
    let mut lse = vec![0.0; run.len * group];
    for j in 0..group {
        scores(&span, heads, run, g * group + j, &mut p);
        for (i, row) in p.chunks_exact_mut(cols).enumerate() {
            let (seen, hidden) = row.split_at_mut(run.context + i + 1);
            lse[i * group + j] = softmax_row(seen);
            hidden.fill(0.0);
        }
        let value = heads.q + heads.kv + g;
        let out = &mut ctx[j * heads.dim..];
        let own = Mat::new(&p[run.context..], run.len, run.len, cols);
        matmul(
            out,
            wide,
            false,
            1.0,
            own,
            span.mat(run.start, run.len, value),
            Threads::One,
        );
        if run.context > 0 {
            let before = Mat::new(&p, run.len, run.context, cols);
            matmul(
                out,
                wide,
                true,
                1.0,
                before,
                span.mat(0, run.context, value),
                Threads::One,
            );
        }
    }
    (ctx, lse)
}

/// What one (sequence, group) task adds to the gradient.
struct Partial {
    dq: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
}

/// What [`attention`] saved and got, for its backward.
#[derive(Clone, Copy, Debug)]
pub struct Saved<'a> {
    /// Rotated queries, keys and values.
    pub qkv: &'a [f32],
    /// Its output.
    pub ctx: &'a [f32],
    /// Log-sum-exp per row and head.
    pub lse: &'a [f32],
}

/// Gradient of the fused buffer (`d_qkv`, overwritten) from `d_ctx[rows, q * dim]`.
pub(crate) fn attention_backward(
    saved: Saved<'_>,
    layout: &Layout,
    heads: Heads,
    d_ctx: &[f32],
    d_qkv: &mut [f32],
    pool: &Pool,
) {
    if !tiled::supported() {
        return portable_backward(saved, layout, heads, d_ctx, d_qkv);
    }
    check(layout, heads, saved.qkv, saved.ctx, saved.lse);
    check(layout, heads, d_qkv, d_ctx, saved.lse);
    let out = Out::new(d_qkv);
    let task =
        |(run, g): (Run, usize)| tiled::backward_task(saved, heads, run, g, d_ctx, out, pool);
    let done: Vec<(Buffer, Buffer)> = tasks(layout, heads).into_par_iter().map(task).collect();
    let (dim, width) = (heads.dim, heads.width());
    d_qkv
        .chunks_exact_mut(width)
        .for_each(|row| row[heads.q * dim..].fill(0.0));
    for ((run, g), (dk, dv)) in tasks(layout, heads).into_iter().zip(done) {
        add_positions(
            run,
            dim,
            width,
            d_qkv,
            [(heads.q + g, &dk[..]), (heads.q + heads.kv + g, &dv[..])],
        );
    }
}

/// Context of the last rows of a sequence (`qkv` holds theirs) over the cached keys and values of
/// all its rows.
pub(crate) fn attend_cached(
    qkv: &[f32],
    keys: &[f32],
    values: &[f32],
    heads: Heads,
    ctx: &mut [f32],
) {
    let (dim, wide) = (heads.dim, heads.kv * heads.dim);
    let (all, new) = (keys.len() / wide, qkv.len() / heads.width());
    let mut p = vec![0.0; all];
    for i in 0..new {
        let seen = all - new + i + 1;
        for h in 0..heads.q {
            let column = h / heads.group() * dim;
            let q = &qkv[i * heads.width() + h * dim..][..dim];
            let out = &mut ctx[(i * heads.q + h) * dim..][..dim];
            vectorised(
                #[inline(always)]
                || {
                    for (c, p) in p[..seen].iter_mut().enumerate() {
                        let k = &keys[c * wide + column..][..dim];
                        *p = sum_by(dim, |u| q[u] * k[u]) * heads.scale();
                    }
                },
            );
            softmax_row(&mut p[..seen]);
            vectorised(
                #[inline(always)]
                || {
                    out.fill(0.0);
                    for (c, p) in p[..seen].iter().enumerate() {
                        let v = &values[c * wide + column..][..dim];
                        for u in 0..dim {
                            out[u] += p * v[u];
                        }
                    }
                },
            );
        }
    }
}

/// Adds the gradients `[context + len, dim]` of the positions that a run saw to columns of heads.
fn add_positions(
    run: Run,
    dim: usize,
    width: usize,
    d_qkv: &mut [f32],
    parts: [(usize, &[f32]); 2],
) {
    for i in 0..run.context + run.len {
        let row = if i < run.context {
            i
        } else {
            run.start + i - run.context
        };
        for (head, grad) in parts {
            let at = row * width + head * dim;
            d_qkv[at..at + dim]
                .iter_mut()
                .zip(&grad[i * dim..(i + 1) * dim])
                .for_each(|(d, s)| *d += s);
        }
    }
}

/// The backward of [`portable`].
pub fn portable_backward(
    saved: Saved<'_>,
    layout: &Layout,
    heads: Heads,
    d_ctx: &[f32],
    d_qkv: &mut [f32],
) {
    let done: Vec<Partial> = tasks(layout, heads)
        .into_par_iter()
        .map(|(run, g)| backward_task(saved, heads, run, g, d_ctx))
        .collect();
    d_qkv.fill(0.0);
    let (dim, width) = (heads.dim, heads.width());
    for ((run, g), part) in tasks(layout, heads).into_iter().zip(done) {
        let wide = heads.group() * dim;
        for i in 0..run.len {
            let at = (run.start + i) * width + g * wide;
            d_qkv[at..at + wide].copy_from_slice(&part.dq[i * wide..(i + 1) * wide]);
        }
        add_positions(
            run,
            dim,
            width,
            d_qkv,
            [(heads.q + g, &part.dk), (heads.q + heads.kv + g, &part.dv)],
        );
    }
}

fn backward_task(saved: Saved<'_>, heads: Heads, run: Run, g: usize, d_ctx: &[f32]) -> Partial {
    let span = Span {
        qkv: saved.qkv,
        width: heads.width(),
        dim: heads.dim,
    };
    let (group, dim, cols) = (heads.group(), heads.dim, run.context + run.len);
    let (wide, row_width) = (group * dim, heads.q * dim);
    let mut p = vec![0.0; run.len * cols];
    let mut dp = vec![0.0; run.len * cols];
    let mut out = Partial {
        dq: vec![0.0; run.len * wide],
        dk: vec![0.0; cols * dim],
        dv: vec![0.0; cols * dim],
    };
    let (key, value) = (heads.q + g, heads.q + heads.kv + g);
    for j in 0..group {
        let h = g * group + j;
        scores(&span, heads, run, h, &mut p);
        let d_out = Mat::new(
            &d_ctx[run.start * row_width + h * dim..],
            run.len,
            dim,
            row_width,
        );
        for (start, len, at) in parts(run) {
            matmul(
                &mut dp[at..],
                cols,
                false,
                1.0,
                d_out,
                span.mat(start, len, value).t(),
                Threads::One,
            );
        }
        for i in 0..run.len {
            let row = run.start + i;
            let at = row * row_width + h * dim;
            let (d_row, c_row) = (&d_ctx[at..at + dim], &saved.ctx[at..at + dim]);
            let seen = run.context + i + 1;
            let lse = saved.lse[row * heads.q + h];
            let span = i * cols..(i + 1) * cols;
            softmax_backward(
                &mut p[span.clone()],
                &mut dp[span],
                seen,
                lse,
                d_row,
                c_row,
                heads.scale(),
            );
        }
        let q = span.mat(run.start, run.len, h);
        for (start, len, at) in parts(run) {
            let ds = Mat::new(&dp[at..], run.len, len, cols);
            let k = span.mat(start, len, key);
            matmul(
                &mut out.dq[j * dim..],
                wide,
                at != first_column(run),
                1.0,
                ds,
                k,
                Threads::One,
            );
            matmul(
                &mut out.dk[at * dim..],
                dim,
                true,
                1.0,
                ds.t(),
                q,
                Threads::One,
            );
            let probs = Mat::new(&p[at..], run.len, len, cols);
            matmul(
                &mut out.dv[at * dim..],
                dim,
                true,
                1.0,
                probs.t(),
                d_out,
                Threads::One,
            );
        }
    }
    out
}

/// The spans of rows that a run attends to: `(first row, rows, first column of the scores)`; its
/// own rows first.
fn parts(run: Run) -> impl Iterator<Item = (usize, usize, usize)> {
    let own = (run.start, run.len, run.context);
    std::iter::once(own).chain((run.context > 0).then_some((0, run.context, 0)))
}

fn first_column(run: Run) -> usize {
    run.context
}

/// Turns scores into probabilities (`p`) and their incoming gradient into that of the unscaled
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
                p[c] = exp(p[c] - lse);
                dp[c] = p[c] * (dp[c] - dot) * scale;
            }
            p[seen..].fill(0.0);
            dp[seen..].fill(0.0);
        },
    );
}

#[cfg(test)]
mod tests {
    use lethe_learn::seed::Seed;

    use super::*;

    fn random(name: &str, n: usize) -> Vec<f32> {
        let mut rng = Seed::from_u64(4).derive(name, &[&n.to_le_bytes()]).rng();
        (0..n).map(|_| rng.normal()).collect()
    }

    #[test]
    fn tiled_and_portable_agree_on_odd_shapes() {
        let layouts = [
            (0, vec![1]),
            (0, vec![1, 2, 33]),
            (5, vec![1, 17, 2]),
            (40, vec![31, 64]),
            (1, vec![15, 14]),
        ];
        for (q, kv, dim) in [(1, 1, 4), (3, 1, 64), (4, 2, 6), (2, 2, 33)] {
            let heads = Heads { q, kv, dim };
            for (prefix, lens) in &layouts {
                let layout = Layout {
                    prefix: *prefix,
                    lens: lens.clone(),
                };
                let t = layout.rows();
                let (qkv, d_ctx) = (random("qkv", t * heads.width()), random("d", t * q * dim));
                let run = |tiled: bool| {
                    let (mut ctx, mut lse) = (vec![f32::NAN; t * q * dim], vec![f32::NAN; t * q]);
                    let mut d = vec![f32::NAN; t * heads.width()];
                    let f = if tiled { attention } else { portable };
                    f(&qkv, &layout, heads, &mut ctx, &mut lse);
                    let saved = Saved {
                        qkv: &qkv,
                        ctx: &ctx,
                        lse: &lse,
                    };
                    if tiled {
                        attention_backward(saved, &layout, heads, &d_ctx, &mut d, &Pool::default());
                    } else {
                        portable_backward(saved, &layout, heads, &d_ctx, &mut d);
                    }
                    [ctx, lse, d].concat()
                };
                for (a, b) in run(true).iter().zip(run(false)) {
                    assert!(
                        (a - b).abs() < 1e-4 * (1.0 + b.abs()),
                        "{a} {b} with {heads:?}, {layout:?}"
                    );
                }
            }
        }
    }
}
