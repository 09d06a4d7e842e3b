//! One transformer layer, forward and backward, with LoRA on any of its projections.

use crate::config::ModelConfig;
use crate::kernels::attention::{Heads, Saved, attention, attention_backward};
use crate::kernels::gemm::{Mat, Threads, matmul};
use crate::kernels::math::{swiglu, swiglu_backward};
use crate::kernels::norm::{rms_norm, rms_norm_backward};
use crate::kernels::rope::RopeTable;
use crate::layout::Layout;
use crate::lora::{Adapter, Projection};

/// Frozen weights of a layer, f32, row-major `[out, in]`; query, key and value are fused, as are gate and up.
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

impl LayerWeights {
    pub(crate) fn values(&self) -> usize {
        let bias = self.qkv_bias.as_ref().map_or(0, Vec::len);
        self.attn_norm.len()
            + self.qkv.len()
            + bias
            + self.out.len()
            + self.mlp_norm.len()
            + self.gate_up.len()
            + self.down.len()
    }
}

/// What the forward pass of a layer keeps for its backward.
#[derive(Debug)]
pub(crate) struct LayerTape {
    x: Vec<f32>,
    qkv: Vec<f32>,
    ctx: Vec<f32>,
    lse: Vec<f32>,
    mid: Vec<f32>,
    gate_up: Vec<f32>,
}

/// The parts of a pass that do not change from layer to layer.
pub(crate) struct Pass<'a> {
    pub(crate) config: &'a ModelConfig,
    pub(crate) layout: &'a Layout,
    pub(crate) positions: Vec<usize>,
    pub(crate) rope: RopeTable,
    pub(crate) adapter: Option<&'a Adapter>,
}

impl<'a> Pass<'a> {
    pub(crate) fn new(config: &'a ModelConfig, layout: &'a Layout, adapter: Option<&'a Adapter>) -> Self {
        let rope = RopeTable::new(config.rope_theta, config.head_dim, layout.max_position());
        Self { config, layout, positions: layout.positions(), rope, adapter }
    }

    fn heads(&self) -> Heads {
        Heads { q: self.config.heads, kv: self.config.kv_heads, dim: self.config.head_dim }
    }

    fn rows(&self) -> usize {
        self.positions.len()
    }

    /// `(projection, first column in the fused buffer)` of the query, key and value.
    fn qkv_columns(&self) -> [(Projection, usize); 3] {
        let (d, c) = (self.config.head_dim, self.config);
        [(Projection::Q, 0), (Projection::K, c.heads * d), (Projection::V, (c.heads + c.kv_heads) * d)]
    }

    /// `dst[:, column..] += scale * (x A^T) B^T`, with rows of `dst` `stride` apart.
    fn lora(&self, layer: usize, proj: Projection, x: &[f32], dst: &mut [f32], stride: usize, column: usize) {
        let Some((adapter, (a, b))) = self.adapter.and_then(|ad| Some((ad, ad.pair(layer, proj)?))) else { return };
        let (fan_in, fan_out) = proj.widths(self.config);
        let (r, t) = (adapter.shape().rank(), self.rows());
        let mut h = vec![0.0; t * r];
        let a = Mat::new(a, r, fan_in, fan_in);
        matmul(&mut h, r, false, 1.0, Mat::new(x, t, fan_in, fan_in), a.t(), Threads::Pool);
        let b = Mat::new(b, fan_out, r, r);
        matmul(&mut dst[column..], stride, true, adapter.shape().scale(), Mat::new(&h, t, r, r), b.t(), Threads::Pool);
    }

    /// Backward of [`Self::lora`]: adds to `dx` and to the adapter's gradient (`grads`, flat in its shape).
    fn lora_backward(&self, at: (usize, Projection), x: &[f32], dy: Mat<'_>, dx: &mut [f32], grads: &mut [f32]) {
        let (layer, proj) = at;
        let Some(adapter) = self.adapter else { return };
        let Some(entry) = adapter.shape().find(layer, proj) else { return };
        let (fan_in, fan_out) = (entry.fan_in, entry.fan_out);
        let (r, t, scale) = (adapter.shape().rank(), self.rows(), adapter.shape().scale());
        let (ra, rb) = adapter.shape().ranges(entry);
        let a = Mat::new(&adapter.data[ra.clone()], r, fan_in, fan_in);
        let b = Mat::new(&adapter.data[rb.clone()], fan_out, r, r);
        let x = Mat::new(x, t, fan_in, fan_in);
        let mut h = vec![0.0; t * r];
        matmul(&mut h, r, false, 1.0, x, a.t(), Threads::Pool);
        matmul(&mut grads[rb], r, true, scale, dy.t(), Mat::new(&h, t, r, r), Threads::Pool);
        matmul(&mut h, r, false, scale, dy, b, Threads::Pool);
        let dh = Mat::new(&h, t, r, r);
        matmul(&mut grads[ra], fan_in, true, 1.0, dh.t(), x, Threads::Pool);
        matmul(dx, fan_in, true, 1.0, dh, a, Threads::Pool);
    }
}

impl LayerWeights {
    /// Runs the layer in place over `x` (`[rows, hidden]`); returns the tape when `keep`.
    pub(crate) fn forward(&self, pass: &Pass<'_>, layer: usize, x: &mut Vec<f32>, keep: bool) -> Option<LayerTape> {
        let (c, t) = (pass.config, pass.rows());
        let (d, ff, qd, w) = (c.hidden, c.intermediate, c.heads * c.head_dim, c.qkv_width());
        let mut normed = vec![0.0; t * d];
        rms_norm(x, &self.attn_norm, c.rms_eps, &mut normed);
        let mut qkv = vec![0.0; t * w];
        matmul(&mut qkv, w, false, 1.0, Mat::new(&normed, t, d, d), Mat::new(&self.qkv, w, d, d).t(), Threads::Pool);
        if let Some(bias) = &self.qkv_bias {
            qkv.chunks_exact_mut(w).for_each(|row| row.iter_mut().zip(bias).for_each(|(v, b)| *v += b));
        }
        for (proj, column) in pass.qkv_columns() {
            pass.lora(layer, proj, &normed, &mut qkv, w, column);
        }
        pass.rope.rotate(&mut qkv, w, c.heads + c.kv_heads, &pass.positions, false);
        let mut ctx = vec![0.0; t * qd];
        let mut lse = vec![0.0; t * c.heads];
        attention(&qkv, pass.layout, pass.heads(), &mut ctx, &mut lse);

        let mut mid = x.clone();
        matmul(&mut mid, d, true, 1.0, Mat::new(&ctx, t, qd, qd), Mat::new(&self.out, d, qd, qd).t(), Threads::Pool);
        pass.lora(layer, Projection::O, &ctx, &mut mid, d, 0);
        rms_norm(&mid, &self.mlp_norm, c.rms_eps, &mut normed);
        let mut gate_up = vec![0.0; t * 2 * ff];
        let up = Mat::new(&self.gate_up, 2 * ff, d, d);
        matmul(&mut gate_up, 2 * ff, false, 1.0, Mat::new(&normed, t, d, d), up.t(), Threads::Pool);
        pass.lora(layer, Projection::Gate, &normed, &mut gate_up, 2 * ff, 0);
        pass.lora(layer, Projection::Up, &normed, &mut gate_up, 2 * ff, ff);
        let mut act = vec![0.0; t * ff];
        swiglu(&gate_up, ff, &mut act);
        let mut y = mid.clone();
        matmul(&mut y, d, true, 1.0, Mat::new(&act, t, ff, ff), Mat::new(&self.down, d, ff, ff).t(), Threads::Pool);
        pass.lora(layer, Projection::Down, &act, &mut y, d, 0);
        let input = std::mem::replace(x, y);
        keep.then_some(LayerTape { x: input, qkv, ctx, lse, mid, gate_up })
    }

    /// Backward in place over `dy` (`[rows, hidden]`), which becomes the gradient of the layer's input; the
    /// adapter's gradient is added to `grads`.
    pub(crate) fn backward(&self, pass: &Pass<'_>, layer: usize, tape: &LayerTape, dy: &mut [f32], grads: &mut [f32]) {
        self.backward_mlp(pass, layer, tape, dy, grads);
        self.backward_attention(pass, layer, tape, dy, grads);
    }

    fn backward_mlp(&self, pass: &Pass<'_>, layer: usize, tape: &LayerTape, dy: &mut [f32], grads: &mut [f32]) {
        let (c, t) = (pass.config, pass.rows());
        let (d, ff) = (c.hidden, c.intermediate);
        let mut d_act = vec![0.0; t * ff];
        let dy_mat = Mat::new(dy, t, d, d);
        matmul(&mut d_act, ff, false, 1.0, dy_mat, Mat::new(&self.down, d, ff, ff), Threads::Pool);
        let adapts = |p| pass.adapter.is_some_and(|a| a.shape().find(layer, p).is_some());
        if adapts(Projection::Down) {
            let mut act = vec![0.0; t * ff];
            swiglu(&tape.gate_up, ff, &mut act);
            pass.lora_backward((layer, Projection::Down), &act, dy_mat, &mut d_act, grads);
        }
        let mut d_gate_up = vec![0.0; t * 2 * ff];
        swiglu_backward(&tape.gate_up, ff, &d_act, &mut d_gate_up);
        let mut d_normed = vec![0.0; t * d];
        let up = Mat::new(&self.gate_up, 2 * ff, d, d);
        matmul(&mut d_normed, d, false, 1.0, Mat::new(&d_gate_up, t, 2 * ff, 2 * ff), up, Threads::Pool);
        if adapts(Projection::Gate) || adapts(Projection::Up) {
            let mut normed = vec![0.0; t * d];
            rms_norm(&tape.mid, &self.mlp_norm, c.rms_eps, &mut normed);
            for (proj, column) in [(Projection::Gate, 0), (Projection::Up, ff)] {
                let part = Mat::new(&d_gate_up[column..], t, ff, 2 * ff);
                pass.lora_backward((layer, proj), &normed, part, &mut d_normed, grads);
            }
        }
        rms_norm_backward(&tape.mid, &self.mlp_norm, c.rms_eps, &d_normed, dy);
    }

    fn backward_attention(&self, pass: &Pass<'_>, layer: usize, tape: &LayerTape, dy: &mut [f32], grads: &mut [f32]) {
        let (c, t) = (pass.config, pass.rows());
        let (d, qd, w) = (c.hidden, c.heads * c.head_dim, c.qkv_width());
        let mut d_ctx = vec![0.0; t * qd];
        let dy_mat = Mat::new(dy, t, d, d);
        matmul(&mut d_ctx, qd, false, 1.0, dy_mat, Mat::new(&self.out, d, qd, qd), Threads::Pool);
        pass.lora_backward((layer, Projection::O), &tape.ctx, dy_mat, &mut d_ctx, grads);
        let mut d_qkv = vec![0.0; t * w];
        let saved = Saved { qkv: &tape.qkv, ctx: &tape.ctx, lse: &tape.lse };
        attention_backward(saved, pass.layout, pass.heads(), &d_ctx, &mut d_qkv);
        pass.rope.rotate(&mut d_qkv, w, c.heads + c.kv_heads, &pass.positions, true);
        let mut d_normed = vec![0.0; t * d];
        let weights = Mat::new(&self.qkv, w, d, d);
        matmul(&mut d_normed, d, false, 1.0, Mat::new(&d_qkv, t, w, w), weights, Threads::Pool);
        let mut normed = vec![0.0; t * d];
        rms_norm(&tape.x, &self.attn_norm, c.rms_eps, &mut normed);
        for (proj, column) in pass.qkv_columns() {
            let part = Mat::new(&d_qkv[column..], t, proj.widths(c).1, w);
            pass.lora_backward((layer, proj), &normed, part, &mut d_normed, grads);
        }
        rms_norm_backward(&tape.x, &self.attn_norm, c.rms_eps, &d_normed, dy);
    }
}
