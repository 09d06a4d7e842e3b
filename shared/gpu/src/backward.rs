//! One layer, backward.

use crate::device::Buf;
use crate::error::GpuError;
use crate::kernels::{self, Kernel, View};
use crate::layer::{Inputs, Layer, LayerTape};
use crate::lora::{Projection, Site};
use crate::rows::Chosen;
use crate::work::Work;

impl Inputs {
    fn adapts(&self, layer: usize, projection: Projection) -> bool {
        let adapter = self.adapter.as_ref();
        adapter.is_some_and(|a| a.has(layer, projection))
    }

    fn lora_backward(
        &self,
        work: &mut Work<'_>,
        site: Site<'_>,
        dx: &Buf,
        grads: &Buf,
    ) -> Result<(), GpuError> {
        match &self.adapter {
            Some(adapter) => adapter.backward(work, &self.shape, site, dx, grads),
            None => Ok(()),
        }
    }

    fn scatter(
        &self,
        work: &mut Work<'_>,
        from: &Buf,
        width: usize,
        chosen: &Chosen,
    ) -> Result<Buf, GpuError> {
        let rows = self.rows.count;
        let to = work.take(rows * width)?;
        let source = View::new(from, 0, width);
        let target = View::new(&to, 0, width);
        kernels::copy(work, source, target, rows, width, Some(&chosen.scatter))?;
        Ok(to)
    }
}

impl Layer {
    /// From the gradient of the layer's output (of the chosen rows, if `chosen`) to that of its
    /// input; sets the layer's part of `grads`.
    #[allow(
        clippy::too_many_arguments,
        reason = "one call; a struct would only rename them"
    )]
    pub(crate) fn backward(
        &self,
        work: &mut Work<'_>,
        inputs: &Inputs,
        layer: usize,
        tape: &LayerTape,
        dy: Buf,
        chosen: Option<&Chosen>,
        grads: &Buf,
    ) -> Result<Buf, GpuError> {
        let s = &inputs.shape;
        self.backward_mlp(work, inputs, layer, tape, &dy, grads)?;
        let (d_ctx, dx) = match chosen {
            None => {
                let d_ctx = self.backward_out(work, inputs, layer, &tape.ctx, &dy, grads)?;
                (d_ctx, dy)
            }
            Some(chosen) => {
                let ctx = inputs.gather(work, &tape.ctx, s.q_width(), chosen)?;
                let few = self.backward_out(work, inputs, layer, &ctx, &dy, grads)?;
                let d_ctx = inputs.scatter(work, &few, s.q_width(), chosen)?;
                let dx = inputs.scatter(work, &dy, s.hidden, chosen)?;
                (d_ctx, dx)
            }
        };
        self.backward_heads(work, inputs, layer, tape, &d_ctx, &dx, grads)?;
        Ok(dx)
    }

    /// Through the MLP; adds to `dy`, which becomes the gradient of the stream before it.
    fn backward_mlp(
        &self,
        work: &mut Work<'_>,
        inputs: &Inputs,
        layer: usize,
        tape: &LayerTape,
        dy: &Buf,
        grads: &Buf,
    ) -> Result<(), GpuError> {
        let s = &inputs.shape;
        let rows = dy.words / s.hidden;
        let d_act = work.take(rows * s.intermediate)?;
        let d_out = View::new(dy, 0, s.hidden);
        self.down.backward(work, d_out, &d_act, false)?;
        if inputs.adapts(layer, Projection::Down) {
            let act = work.take(rows * s.intermediate)?;
            kernels::swiglu(work, &tape.gate_up, s.intermediate, &act)?;
            let site = Site {
                layer,
                projection: Projection::Down,
                x: &act,
                y: d_out,
            };
            inputs.lora_backward(work, site, &d_act, grads)?;
        }
        let d_gate_up = work.take(rows * 2 * s.intermediate)?;
        let width = s.intermediate;
        kernels::swiglu_backward(work, &tape.gate_up, width, &d_act, &d_gate_up)?;
        let normed = work.take(dy.words)?;
        kernels::norm(work, &tape.mid, &self.mlp_norm, s.rms_eps, &normed)?;
        let d_normed = work.take(dy.words)?;
        for (projection, weight, column) in self.mlp(s) {
            let y = View::new(&d_gate_up, column, 2 * s.intermediate);
            weight.backward(work, y, &d_normed, column > 0)?;
            let site = Site {
                layer,
                projection,
                x: &normed,
                y,
            };
            inputs.lora_backward(work, site, &d_normed, grads)?;
        }
        kernels::norm_backward(work, &tape.mid, &self.mlp_norm, s.rms_eps, &d_normed, dy)
    }

    /// Gradient of the attention's result.
    fn backward_out(
        &self,
        work: &mut Work<'_>,
        inputs: &Inputs,
        layer: usize,
        ctx: &Buf,
        dy: &Buf,
        grads: &Buf,
    ) -> Result<Buf, GpuError> {
        let d_ctx = work.take(ctx.words)?;
        let y = View::new(dy, 0, inputs.shape.hidden);
        self.out.backward(work, y, &d_ctx, false)?;
        let site = Site {
            layer,
            projection: Projection::O,
            x: ctx,
            y,
        };
        inputs.lora_backward(work, site, &d_ctx, grads)?;
        Ok(d_ctx)
    }

    /// Through attention and its projections; adds to `dx`.
    #[allow(
        clippy::too_many_arguments,
        reason = "one call; a struct would only rename them"
    )]
    fn backward_heads(
        &self,
        work: &mut Work<'_>,
        inputs: &Inputs,
        layer: usize,
        tape: &LayerTape,
        d_ctx: &Buf,
        dx: &Buf,
        grads: &Buf,
    ) -> Result<(), GpuError> {
        let s = &inputs.shape;
        let rows = inputs.rows.count;
        let info = &inputs.rows.info;
        let params = inputs.attention_params(inputs.own_keys(&tape.qkv));
        let delta = work.take(rows * s.heads)?;
        let d_qkv = work.take(rows * s.qkv_width())?;
        let qkv = &tape.qkv;
        let buffers = [qkv, qkv, info, &tape.ctx, &tape.lse, d_ctx, &delta, &d_qkv];
        work.run(Kernel::AttentionQuery, &buffers, &params, [rows, s.heads])?;
        let buffers = [qkv, qkv, info, &tape.lse, d_ctx, &delta, &d_qkv];
        work.run(Kernel::AttentionKey, &buffers, &params, [rows, s.kv_heads])?;
        inputs.rotate(work, &d_qkv, -1.0)?;
        let normed = work.take(rows * s.hidden)?;
        kernels::norm(work, &tape.x, &self.attn_norm, s.rms_eps, &normed)?;
        let d_normed = work.take(rows * s.hidden)?;
        for (projection, weight, column) in self.heads(s) {
            let y = View::new(&d_qkv, column, s.qkv_width());
            weight.backward(work, y, &d_normed, column > 0)?;
            let site = Site {
                layer,
                projection,
                x: &normed,
                y,
            };
            inputs.lora_backward(work, site, &d_normed, grads)?;
        }
        kernels::norm_backward(work, &tape.x, &self.attn_norm, s.rms_eps, &d_normed, dx)
    }
}
