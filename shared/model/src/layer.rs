//! One transformer layer, forward and backward, with LoRA on any of its projections.

use crate::ModelError;
use crate::buffers::{Buffer, Pool};
use crate::config::ModelConfig;
use crate::kernels::attention::{Heads, Saved, attend_cached, attention_backward};
use crate::kernels::gemm::Mat;
use crate::kernels::linear::Linear;
use crate::kernels::math::{swiglu, swiglu_backward};
use crate::kernels::norm::{rms_norm, rms_norm_backward};
use crate::kernels::panels::Compute;
use crate::kernels::stored::Rows;
use crate::lora::Projection;
use crate::pass::Pass;
use crate::source::{Part, WeightSource};

/// Frozen weights of a layer as a source reads them, f32, row-major `[out, in]`; query, key and
/// value are fused, as are gate and up.
#[derive(Debug)]
pub(crate) struct LayerWeights {
    pub(crate) attn_norm: Vec<f32>,
    pub(crate) qkv: Vec<f32>,
    pub(crate) qkv_bias: Option<Vec<f32>>,
    pub(crate) out: Vec<f32>,
    pub(crate) mlp_norm: Vec<f32>,
    pub(crate) gate_up: Vec<f32>,
    pub(crate) down: Vec<f32>,
}

/// A layer with its weights in the forms that the kernels want.
#[derive(Debug)]
pub(crate) struct Layer {
    attn_norm: Vec<f32>,
    qkv: Linear,
    qkv_bias: Option<Vec<f32>>,
    out: Linear,
    mlp_norm: Vec<f32>,
    gate_up: Linear,
    down: Linear,
}

impl Layer {
    pub(crate) fn new(c: &ModelConfig, w: LayerWeights, compute: Compute) -> Self {
        let (d, ff, qd) = (c.hidden, c.intermediate, c.heads * c.head_dim);
        Self {
            attn_norm: w.attn_norm,
            qkv: Linear::new(w.qkv, c.qkv_width(), d, compute),
            qkv_bias: w.qkv_bias,
            out: Linear::new(w.out, d, qd, compute),
            mlp_norm: w.mlp_norm,
            gate_up: Linear::new(w.gate_up, 2 * ff, d, compute),
            down: Linear::new(w.down, d, ff, compute),
        }
    }

    /// A layer of a source, its matrices as they are stored: less memory, the same results.
    ///
    /// # Errors
    /// Of the source; [`ModelError::Shape`] if a tensor has another number of values.
    pub(crate) fn stored(
        source: &dyn WeightSource,
        layer: usize,
        compute: Compute,
    ) -> Result<Self, ModelError> {
        let c = source.config();
        let values = |part| source.raw(layer, part)?.values();
        let linear = |parts: &[Part], outputs: usize, inputs: usize| {
            let rows = |part: &Part| {
                let raw = source.raw(layer, *part)?;
                Ok(Rows {
                    dtype: raw.dtype,
                    bytes: raw.bytes,
                })
            };
            let rows = parts.iter().map(rows).collect::<Result<_, ModelError>>()?;
            Linear::stored(rows, outputs, inputs, compute)
        };
        let d = c.hidden;
        let ff = c.intermediate;
        let bias = || {
            let mut bias = values(Part::QBias)?;
            bias.extend(values(Part::KBias)?);
            bias.extend(values(Part::VBias)?);
            Ok::<_, ModelError>(bias)
        };
        Ok(Self {
            attn_norm: values(Part::AttnNorm)?,
            qkv: linear(&[Part::Q, Part::K, Part::V], c.qkv_width(), d)?,
            qkv_bias: c.qkv_bias.then(bias).transpose()?,
            out: linear(&[Part::Out], d, c.heads * c.head_dim)?,
            mlp_norm: values(Part::MlpNorm)?,
            gate_up: linear(&[Part::Gate, Part::Up], 2 * ff, d)?,
            down: linear(&[Part::Down], d, ff)?,
        })
    }

    /// Memory of the weights in all forms that exist now, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        let vectors =
            self.attn_norm.len() + self.mlp_norm.len() + self.qkv_bias.as_ref().map_or(0, Vec::len);
        let linear: usize = [&self.qkv, &self.out, &self.gate_up, &self.down]
            .iter()
            .map(|l| l.bytes())
            .sum();
        vectors * size_of::<f32>() + linear
    }
}

/// What the forward pass of a layer keeps for its backward.
#[derive(Debug)]
pub(crate) struct LayerTape {
    x: Buffer,
    qkv: Buffer,
    ctx: Buffer,
    lse: Buffer,
    /// Of all rows, or of each sequence's last.
    mid: Buffer,
    gate_up: Buffer,
}

/// Keys and values of a sequence's tokens so far, `[rows, kv heads * dim]` each.
#[derive(Debug)]
pub(crate) struct LayerCache {
    pub(crate) keys: Vec<f32>,
    pub(crate) values: Vec<f32>,
}

impl LayerCache {
    fn push(&mut self, qkv: &[f32], heads: Heads) {
        let (q, kv) = (heads.q * heads.dim, heads.kv * heads.dim);
        for row in qkv.chunks_exact(heads.width()) {
            self.keys.extend_from_slice(&row[q..q + kv]);
            self.values.extend_from_slice(&row[q + kv..]);
        }
    }
}

impl Layer {
    /// Runs the layer in place over `x` (`[rows, hidden]`); returns the tape when `keep`.
    pub(crate) fn forward(
        &self,
        pass: &Pass<'_>,
        layer: usize,
        x: &mut Buffer,
        keep: bool,
    ) -> Option<LayerTape> {
        let (c, t) = (pass.config, pass.rows());
        let qkv = self.project(pass, layer, x);
        let mut ctx = pass.pool.take(t * c.heads * c.head_dim);
        let mut lse = pass.pool.take(t * c.heads);
        pass.attention(&qkv, &mut ctx, &mut lse);
        let (mid, gate_up, y) = self.finish(pass, layer, x, &ctx);
        let input = std::mem::replace(x, y);
        keep.then_some(LayerTape {
            x: input,
            qkv,
            ctx,
            lse,
            mid,
            gate_up,
        })
    }

    /// Like [`Self::forward`], but only each sequence's last row comes out, `[sequences, hidden]`:
    /// all that the answer reads. Keys and values are computed for all rows, everything after the
    /// attention for the last ones.
    pub(crate) fn forward_last(
        &self,
        pass: &Pass<'_>,
        layer: usize,
        x: Buffer,
        keep: bool,
    ) -> (Buffer, Option<LayerTape>) {
        let (c, t) = (pass.config, pass.rows());
        let qkv = self.project(pass, layer, &x);
        let mut ctx = pass.pool.take(t * c.heads * c.head_dim);
        let mut lse = pass.pool.take(t * c.heads);
        pass.attention(&qkv, &mut ctx, &mut lse);
        let rows = pass.layout().last_rows();
        let last = gather(pass.pool, &x, &rows, c.hidden);
        let ctx_last = gather(pass.pool, &ctx, &rows, c.heads * c.head_dim);
        let (mid, gate_up, y) = self.finish(pass, layer, &last, &ctx_last);
        (
            y,
            keep.then_some(LayerTape {
                x,
                qkv,
                ctx,
                lse,
                mid,
                gate_up,
            }),
        )
    }

    /// Backward of [`Self::forward_last`]: from the gradient of the last rows to that of all rows
    /// of the input.
    pub(crate) fn backward_last(
        &self,
        pass: &Pass<'_>,
        layer: usize,
        tape: &LayerTape,
        mut dy: Buffer,
        grads: &mut [f32],
    ) -> Buffer {
        let (d, qd) = (pass.config.hidden, pass.config.heads * pass.config.head_dim);
        self.backward_mlp(pass, layer, tape, &mut dy, grads);
        let rows = pass.layout().last_rows();
        let ctx = gather(pass.pool, &tape.ctx, &rows, qd);
        let d_ctx = self.backward_out(pass, layer, &ctx, &dy, grads);
        let d_ctx = scatter(pass.pool, &d_ctx, &rows, qd, pass.rows());
        let mut dx = scatter(pass.pool, &dy, &rows, d, pass.rows());
        self.backward_heads(pass, layer, tape, &d_ctx, &mut dx, grads);
        dx
    }

    /// Runs the layer in place over the next tokens of a sequence, and adds them to its cache.
    pub(crate) fn extend(
        &self,
        pass: &Pass<'_>,
        layer: usize,
        x: &mut Buffer,
        cache: &mut LayerCache,
    ) {
        let (c, t) = (pass.config, pass.rows());
        let qkv = self.project(pass, layer, x);
        let mut ctx = pass.pool.take(t * c.heads * c.head_dim);
        if cache.keys.is_empty() && t > 1 {
            let mut lse = pass.pool.take(t * c.heads);
            pass.attention(&qkv, &mut ctx, &mut lse);
            cache.push(&qkv, pass.heads());
        } else {
            cache.push(&qkv, pass.heads());
            attend_cached(&qkv, &cache.keys, &cache.values, pass.heads(), &mut ctx);
        }
        *x = self.finish(pass, layer, x, &ctx).2;
    }

    /// Rotated queries, keys and values.
    fn project(&self, pass: &Pass<'_>, layer: usize, x: &[f32]) -> Buffer {
        let (c, t) = (pass.config, pass.rows());
        let (d, w) = (c.hidden, c.qkv_width());
        let mut normed = pass.pool.take(t * d);
        rms_norm(x, &self.attn_norm, c.rms_eps, &mut normed);
        let mut qkv = pass.pool.take(t * w);
        self.qkv.forward(&normed, t, &mut qkv, false);
        if let Some(bias) = &self.qkv_bias {
            qkv.chunks_exact_mut(w)
                .for_each(|row| row.iter_mut().zip(bias).for_each(|(v, b)| *v += b));
        }
        for (proj, column) in pass.qkv_columns() {
            pass.lora(layer, proj, &normed, &mut qkv, w, column);
        }
        pass.rope
            .rotate(&mut qkv, w, c.heads + c.kv_heads, &pass.positions, false);
        qkv
    }

    /// From the attention's result: the residual stream after it, the fused gate and up, and the
    /// layer's output.
    fn finish(
        &self,
        pass: &Pass<'_>,
        layer: usize,
        x: &[f32],
        ctx: &[f32],
    ) -> (Buffer, Buffer, Buffer) {
        let c = pass.config;
        let (d, ff, t) = (c.hidden, c.intermediate, x.len() / c.hidden);
        let mut mid = pass.pool.copy(x);
        self.out.forward(ctx, t, &mut mid, true);
        pass.lora(layer, Projection::O, ctx, &mut mid, d, 0);
        let mut normed = pass.pool.take(t * d);
        rms_norm(&mid, &self.mlp_norm, c.rms_eps, &mut normed);
        let mut gate_up = pass.pool.take(t * 2 * ff);
        self.gate_up.forward(&normed, t, &mut gate_up, false);
        pass.lora(layer, Projection::Gate, &normed, &mut gate_up, 2 * ff, 0);
        pass.lora(layer, Projection::Up, &normed, &mut gate_up, 2 * ff, ff);
        let mut act = pass.pool.take(t * ff);
        swiglu(&gate_up, ff, &mut act);
        let mut y = pass.pool.copy(&mid);
        self.down.forward(&act, t, &mut y, true);
        pass.lora(layer, Projection::Down, &act, &mut y, d, 0);
        (mid, gate_up, y)
    }

    /// Backward in place over `dy` (`[rows, hidden]`), which becomes the gradient of the layer's
    /// input; the adapter's gradient is added to `grads`.
    pub(crate) fn backward(
        &self,
        pass: &Pass<'_>,
        layer: usize,
        tape: &LayerTape,
        dy: &mut [f32],
        grads: &mut [f32],
    ) {
        self.backward_mlp(pass, layer, tape, dy, grads);
        self.backward_attention(pass, layer, tape, dy, grads);
    }

    fn backward_mlp(
        &self,
        pass: &Pass<'_>,
        layer: usize,
        tape: &LayerTape,
        dy: &mut [f32],
        grads: &mut [f32],
    ) {
        let c = pass.config;
        let (d, ff, t) = (c.hidden, c.intermediate, dy.len() / c.hidden);
        let mut d_act = pass.pool.take(t * ff);
        let dy_mat = Mat::new(dy, t, d, d);
        self.down.backward(dy, t, &mut d_act, false);
        let adapts = |p| {
            pass.adapter()
                .is_some_and(|a| a.shape().find(layer, p).is_some())
        };
        if adapts(Projection::Down) {
            let mut act = pass.pool.take(t * ff);
            swiglu(&tape.gate_up, ff, &mut act);
            pass.lora_backward(layer, Projection::Down, &act, dy_mat, &mut d_act, grads);
        }
        let mut d_gate_up = pass.pool.take(t * 2 * ff);
        swiglu_backward(&tape.gate_up, ff, &d_act, &mut d_gate_up);
        let mut d_normed = pass.pool.take(t * d);
        self.gate_up.backward(&d_gate_up, t, &mut d_normed, false);
        if adapts(Projection::Gate) || adapts(Projection::Up) {
            let mut normed = pass.pool.take(t * d);
            rms_norm(&tape.mid, &self.mlp_norm, c.rms_eps, &mut normed);
            for (proj, column) in [(Projection::Gate, 0), (Projection::Up, ff)] {
                let part = Mat::new(&d_gate_up[column..], t, ff, 2 * ff);
                pass.lora_backward(layer, proj, &normed, part, &mut d_normed, grads);
            }
        }
        rms_norm_backward(&tape.mid, &self.mlp_norm, c.rms_eps, &d_normed, dy);
    }

    fn backward_attention(
        &self,
        pass: &Pass<'_>,
        layer: usize,
        tape: &LayerTape,
        dy: &mut [f32],
        grads: &mut [f32],
    ) {
        let d_ctx = self.backward_out(pass, layer, &tape.ctx, dy, grads);
        self.backward_heads(pass, layer, tape, &d_ctx, dy, grads);
    }

    /// Gradient of the attention's result.
    fn backward_out(
        &self,
        pass: &Pass<'_>,
        layer: usize,
        ctx: &[f32],
        dy: &[f32],
        grads: &mut [f32],
    ) -> Buffer {
        let c = pass.config;
        let (d, qd, t) = (c.hidden, c.heads * c.head_dim, dy.len() / c.hidden);
        let mut d_ctx = pass.pool.take(t * qd);
        self.out.backward(dy, t, &mut d_ctx, false);
        pass.lora_backward(
            layer,
            Projection::O,
            ctx,
            Mat::new(dy, t, d, d),
            &mut d_ctx,
            grads,
        );
        d_ctx
    }

    /// Through attention and its projections; adds to `dx`.
    fn backward_heads(
        &self,
        pass: &Pass<'_>,
        layer: usize,
        tape: &LayerTape,
        d_ctx: &[f32],
        dx: &mut [f32],
        grads: &mut [f32],
    ) {
        let (c, t) = (pass.config, pass.rows());
        let (d, w) = (c.hidden, c.qkv_width());
        let mut d_qkv = pass.pool.take(t * w);
        let saved = Saved {
            qkv: &tape.qkv,
            ctx: &tape.ctx,
            lse: &tape.lse,
        };
        attention_backward(
            saved,
            pass.layout(),
            pass.heads(),
            d_ctx,
            &mut d_qkv,
            pass.pool,
        );
        pass.rope
            .rotate(&mut d_qkv, w, c.heads + c.kv_heads, &pass.positions, true);
        let mut d_normed = pass.pool.take(t * d);
        self.qkv.backward(&d_qkv, t, &mut d_normed, false);
        let mut normed = pass.pool.take(t * d);
        rms_norm(&tape.x, &self.attn_norm, c.rms_eps, &mut normed);
        for (proj, column) in pass.qkv_columns() {
            let part = Mat::new(&d_qkv[column..], t, proj.widths(c).1, w);
            pass.lora_backward(layer, proj, &normed, part, &mut d_normed, grads);
        }
        rms_norm_backward(&tape.x, &self.attn_norm, c.rms_eps, &d_normed, dx);
    }
}

/// Some rows of `x`, `width` wide.
pub(crate) fn gather(pool: &Pool, x: &[f32], rows: &[usize], width: usize) -> Buffer {
    let mut out = pool.take(rows.len() * width);
    for (row, o) in rows.iter().zip(out.chunks_exact_mut(width)) {
        o.copy_from_slice(&x[row * width..(row + 1) * width]);
    }
    out
}

/// `all` rows that are zero but for those given.
pub(crate) fn scatter(pool: &Pool, x: &[f32], rows: &[usize], width: usize, all: usize) -> Buffer {
    let mut out = pool.take(all * width);
    out.fill(0.0);
    for (row, x) in rows.iter().zip(x.chunks_exact(width)) {
        out[row * width..(row + 1) * width].copy_from_slice(x);
    }
    out
}
