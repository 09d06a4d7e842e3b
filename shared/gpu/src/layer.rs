//! One layer, forward: what it records into a pass.

use crate::device::{Buf, Gpu};
use crate::error::GpuError;
use crate::kernels::{self, Form, Kernel, Product, View};
use crate::lora::{Adapter, Projection, Site};
use crate::rows::{Chosen, DeviceRows};
use crate::shape::Shape;
use crate::weights::{LayerWeights, Weight, vector};
use crate::work::Work;

/// A layer's weights on the GPU.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) attn_norm: Buf,
    pub(crate) q: Weight,
    pub(crate) k: Weight,
    pub(crate) v: Weight,
    qkv_bias: Option<Buf>,
    pub(crate) out: Weight,
    pub(crate) mlp_norm: Buf,
    pub(crate) gate: Weight,
    pub(crate) up: Weight,
    pub(crate) down: Weight,
}

/// What the layers of a pass share.
#[derive(Debug)]
pub(crate) struct Inputs {
    pub(crate) shape: Shape,
    pub(crate) rows: DeviceRows,
    pub(crate) adapter: Option<Adapter>,
    /// Rows that come out of the last layer, if not all.
    pub(crate) last: Option<Chosen>,
}

/// What the forward of a layer keeps for its backward; `mid` and `gate_up` are of all rows, or of
/// the chosen ones.
#[derive(Debug)]
pub(crate) struct LayerTape {
    pub(crate) x: Buf,
    pub(crate) qkv: Buf,
    pub(crate) ctx: Buf,
    pub(crate) lse: Buf,
    pub(crate) mid: Buf,
    pub(crate) gate_up: Buf,
}

/// Keys and values to attend to: where they lie, and how far rows, keys and values are apart.
#[derive(Clone, Copy)]
pub(crate) struct Keys<'a> {
    pub(crate) buf: &'a Buf,
    pub(crate) stride: usize,
    pub(crate) k: usize,
    pub(crate) v: usize,
}

impl Weight {
    /// `y = x W^T (+ extra)` of `m` rows.
    pub(crate) fn forward(
        &self,
        work: &mut Work<'_>,
        x: &Buf,
        y: View<'_>,
        extra: Option<View<'_>>,
    ) -> Result<(), GpuError> {
        Product {
            form: Form::Nt,
            a: View::new(x, 0, self.cols),
            b: View::new(&self.buf, 0, self.cols),
            format: self.format,
            c: y,
            m: x.words / self.cols,
            n: self.rows,
            k: self.cols,
            alpha: 1.0,
            add: false,
            extra,
        }
        .run(work)
    }

    /// `dx = dy W` of `m` rows, or `dx += dy W`.
    pub(crate) fn backward(
        &self,
        work: &mut Work<'_>,
        dy: View<'_>,
        dx: &Buf,
        add: bool,
    ) -> Result<(), GpuError> {
        Product {
            form: Form::Nn,
            a: dy,
            b: View::new(&self.buf, 0, self.cols),
            format: self.format,
            c: View::new(dx, 0, self.cols),
            m: dx.words / self.cols,
            n: self.cols,
            k: self.rows,
            alpha: 1.0,
            add,
            extra: None,
        }
        .run(work)
    }
}

impl Inputs {
    /// Adds the adapter's part to a projection.
    pub(crate) fn lora(&self, work: &mut Work<'_>, site: Site<'_>) -> Result<(), GpuError> {
        match &self.adapter {
            Some(adapter) => adapter.forward(work, &self.shape, site),
            None => Ok(()),
        }
    }

    /// Turns queries and keys by their positions, or back.
    pub(crate) fn rotate(&self, work: &mut Work<'_>, qkv: &Buf, sign: f32) -> Result<(), GpuError> {
        let s = &self.shape;
        let heads = s.heads + s.kv_heads;
        let pairs = s.head_dim / 2;
        let params = [
            (self.rows.count * heads * pairs) as u32,
            s.qkv_width() as u32,
            heads as u32,
            pairs as u32,
            sign.to_bits(),
        ];
        let buffers = [&self.rows.cos, &self.rows.sin, qkv];
        work.each(Kernel::Rope, &buffers, &params)
    }

    /// Parameters of the attention kernels.
    pub(crate) fn attention_params(&self, keys: Keys<'_>) -> [u32; 9] {
        let s = &self.shape;
        let scale = 1.0 / (s.head_dim as f32).sqrt();
        [
            s.heads as u32,
            (s.heads / s.kv_heads) as u32,
            s.head_dim as u32,
            self.rows.count as u32,
            s.qkv_width() as u32,
            keys.stride as u32,
            keys.k as u32,
            keys.v as u32,
            scale.to_bits(),
        ]
    }

    /// Keys and values of the pass itself.
    pub(crate) fn own_keys<'a>(&self, qkv: &'a Buf) -> Keys<'a> {
        let s = &self.shape;
        Keys {
            buf: qkv,
            stride: s.qkv_width(),
            k: s.q_width(),
            v: s.q_width() + s.kv_width(),
        }
    }

    /// The chosen rows of a dense buffer.
    pub(crate) fn gather(
        &self,
        work: &mut Work<'_>,
        from: &Buf,
        width: usize,
        chosen: &Chosen,
    ) -> Result<Buf, GpuError> {
        let to = work.take(chosen.count * width)?;
        let source = View::new(from, 0, width);
        let target = View::new(&to, 0, width);
        let map = Some(&chosen.gather);
        kernels::copy(work, source, target, chosen.count, width, map)?;
        Ok(to)
    }
}

impl Layer {
    pub(crate) fn load(gpu: &Gpu, s: &Shape, w: &LayerWeights<'_>) -> Result<Self, GpuError> {
        let weight = |what, matrix, projection| {
            Weight::load(
                gpu,
                what,
                matrix,
                s.fan_out(projection),
                s.fan_in(projection),
            )
        };
        let bias = w.qkv_bias;
        Ok(Self {
            attn_norm: vector(gpu, "gain before the attention", w.attn_norm, s.hidden)?,
            q: weight("query weights", &w.q, Projection::Q)?,
            k: weight("key weights", &w.k, Projection::K)?,
            v: weight("value weights", &w.v, Projection::V)?,
            qkv_bias: bias
                .map(|b| vector(gpu, "bias of query, key and value", b, s.qkv_width()))
                .transpose()?,
            out: weight("output weights", &w.out, Projection::O)?,
            mlp_norm: vector(gpu, "gain before the MLP", w.mlp_norm, s.hidden)?,
            gate: weight("gate weights", &w.gate, Projection::Gate)?,
            up: weight("up weights", &w.up, Projection::Up)?,
            down: weight("down weights", &w.down, Projection::Down)?,
        })
    }

    /// Bytes of the weights.
    pub(crate) fn bytes(&self) -> u64 {
        let weights = [
            &self.q, &self.k, &self.v, &self.out, &self.gate, &self.up, &self.down,
        ];
        let bias = self.qkv_bias.as_ref().map_or(0, Buf::bytes);
        let vectors = self.attn_norm.bytes() + self.mlp_norm.bytes() + bias;
        weights.iter().map(|w| w.buf.bytes()).sum::<u64>() + vectors
    }

    /// Runs the layer over `x` (`[rows, hidden]`); only the chosen rows come out if `chosen`.
    pub(crate) fn forward(
        &self,
        work: &mut Work<'_>,
        inputs: &Inputs,
        layer: usize,
        x: Buf,
        chosen: Option<&Chosen>,
    ) -> Result<Stage, GpuError> {
        let s = &inputs.shape;
        let qkv = self.project(work, inputs, layer, &x)?;
        let ctx = work.take(inputs.rows.count * s.q_width())?;
        let lse = work.take(inputs.rows.count * s.heads)?;
        attend(work, inputs, &qkv, inputs.own_keys(&qkv), &ctx, &lse)?;
        let (mid, gate_up, y) = match chosen {
            None => self.finish(work, inputs, layer, &x, &ctx)?,
            Some(chosen) => {
                let few = inputs.gather(work, &x, s.hidden, chosen)?;
                let few_ctx = inputs.gather(work, &ctx, s.q_width(), chosen)?;
                self.finish(work, inputs, layer, &few, &few_ctx)?
            }
        };
        let tape = LayerTape {
            x,
            qkv,
            ctx,
            lse,
            mid,
            gate_up,
        };
        Ok(Stage { y, tape })
    }

    /// Rotated queries, keys and values.
    pub(crate) fn project(
        &self,
        work: &mut Work<'_>,
        inputs: &Inputs,
        layer: usize,
        x: &Buf,
    ) -> Result<Buf, GpuError> {
        let s = &inputs.shape;
        let normed = work.take(x.words)?;
        kernels::norm(work, x, &self.attn_norm, s.rms_eps, &normed)?;
        let qkv = work.take(inputs.rows.count * s.qkv_width())?;
        for (projection, weight, column) in self.heads(s) {
            let y = View::new(&qkv, column, s.qkv_width());
            let bias = self.qkv_bias.as_ref().map(|b| View::new(b, column, 0));
            weight.forward(work, &normed, y, bias)?;
            let site = Site {
                layer,
                projection,
                x: &normed,
                y,
            };
            inputs.lora(work, site)?;
        }
        inputs.rotate(work, &qkv, 1.0)?;
        Ok(qkv)
    }

    /// Query, key and value, and their first columns in the fused buffer.
    pub(crate) fn heads(&self, s: &Shape) -> [(Projection, &Weight, usize); 3] {
        [
            (Projection::Q, &self.q, 0),
            (Projection::K, &self.k, s.q_width()),
            (Projection::V, &self.v, s.q_width() + s.kv_width()),
        ]
    }

    /// Gate and up, and their first columns in the fused buffer.
    pub(crate) fn mlp(&self, s: &Shape) -> [(Projection, &Weight, usize); 2] {
        [
            (Projection::Gate, &self.gate, 0),
            (Projection::Up, &self.up, s.intermediate),
        ]
    }

    /// From the attention's result: the residual stream after it, the fused gate and up, and the
    /// layer's output.
    pub(crate) fn finish(
        &self,
        work: &mut Work<'_>,
        inputs: &Inputs,
        layer: usize,
        x: &Buf,
        ctx: &Buf,
    ) -> Result<(Buf, Buf, Buf), GpuError> {
        let s = &inputs.shape;
        let rows = x.words / s.hidden;
        let mid = work.take(x.words)?;
        let y = View::new(&mid, 0, s.hidden);
        let residual = Some(View::new(x, 0, s.hidden));
        self.out.forward(work, ctx, y, residual)?;
        let site = Site {
            layer,
            projection: Projection::O,
            x: ctx,
            y,
        };
        inputs.lora(work, site)?;
        let normed = work.take(x.words)?;
        kernels::norm(work, &mid, &self.mlp_norm, s.rms_eps, &normed)?;
        let gate_up = work.take(rows * 2 * s.intermediate)?;
        for (projection, weight, column) in self.mlp(s) {
            let y = View::new(&gate_up, column, 2 * s.intermediate);
            weight.forward(work, &normed, y, None)?;
            let site = Site {
                layer,
                projection,
                x: &normed,
                y,
            };
            inputs.lora(work, site)?;
        }
        let act = work.take(rows * s.intermediate)?;
        kernels::swiglu(work, &gate_up, s.intermediate, &act)?;
        let out = work.take(x.words)?;
        let y = View::new(&out, 0, s.hidden);
        let residual = Some(View::new(&mid, 0, s.hidden));
        self.down.forward(work, &act, y, residual)?;
        let site = Site {
            layer,
            projection: Projection::Down,
            x: &act,
            y,
        };
        inputs.lora(work, site)?;
        Ok((mid, gate_up, out))
    }
}

/// Output of a layer, and what its backward needs.
pub(crate) struct Stage {
    pub(crate) y: Buf,
    pub(crate) tape: LayerTape,
}

/// Attention of the pass's queries to `keys`.
pub(crate) fn attend(
    work: &mut Work<'_>,
    inputs: &Inputs,
    qkv: &Buf,
    keys: Keys<'_>,
    ctx: &Buf,
    lse: &Buf,
) -> Result<(), GpuError> {
    let params = inputs.attention_params(keys);
    let buffers = [qkv, keys.buf, &inputs.rows.info, ctx, lse];
    let groups = [inputs.rows.count, inputs.shape.heads];
    work.run(Kernel::AttentionForward, &buffers, &params, groups)
}
