//! What the layers of a pass share: rows, positions, adapters, buffers.

use crate::backend::Part;
use crate::buffers::Pool;
use crate::config::ModelConfig;
use crate::kernels::attention::{Heads, attention};
use crate::kernels::gemm::{Mat, Threads, matmul};
use crate::kernels::rope::RopeTable;
use crate::layout::Layout;
use crate::lora::{Adapter, Projection};

/// The parts of a pass that do not change from layer to layer.
pub(crate) struct Pass<'a> {
    pub(crate) config: &'a ModelConfig,
    pub(crate) positions: Vec<usize>,
    pub(crate) rope: RopeTable,
    parts: Vec<Part<'a>>,
    pub(crate) pool: &'a Pool,
}

impl<'a> Pass<'a> {
    /// A pass over the rows of several parts, one after the other, that come after `before` other
    /// tokens: the frozen weights meet all rows at once.
    pub(crate) fn many(
        config: &'a ModelConfig,
        parts: Vec<Part<'a>>,
        before: usize,
        pool: &'a Pool,
    ) -> Self {
        let longest = parts
            .iter()
            .map(|p| p.layout.max_position())
            .max()
            .unwrap_or(0);
        let rope = RopeTable::new(config, before + longest);
        let positions = parts
            .iter()
            .flat_map(|p| p.layout.positions())
            .map(|p| before + p)
            .collect();
        Self {
            config,
            positions,
            rope,
            parts,
            pool,
        }
    }

    /// The layout of a pass of one part.
    pub(crate) fn layout(&self) -> &'a Layout {
        self.parts[0].layout
    }

    /// The adapter of a pass of one part.
    pub(crate) fn adapter(&self) -> Option<&'a Adapter> {
        self.parts[0].adapter
    }

    /// Attention within each part.
    pub(crate) fn attention(&self, qkv: &[f32], ctx: &mut [f32], lse: &mut [f32]) {
        let heads = self.heads();
        let (width, wide) = (heads.width(), heads.q * heads.dim);
        let mut row = 0;
        for part in &self.parts {
            let rows = row..row + part.layout.rows();
            let span = |n: usize| rows.start * n..rows.end * n;
            attention(
                &qkv[span(width)],
                part.layout,
                heads,
                &mut ctx[span(wide)],
                &mut lse[span(heads.q)],
            );
            row = rows.end;
        }
    }

    pub(crate) fn heads(&self) -> Heads {
        Heads {
            q: self.config.heads,
            kv: self.config.kv_heads,
            dim: self.config.head_dim,
        }
    }

    pub(crate) fn rows(&self) -> usize {
        self.positions.len()
    }

    /// `(projection, first column in the fused buffer)` of the query, key and value.
    pub(crate) fn qkv_columns(&self) -> [(Projection, usize); 3] {
        let (d, c) = (self.config.head_dim, self.config);
        [
            (Projection::Q, 0),
            (Projection::K, c.heads * d),
            (Projection::V, (c.heads + c.kv_heads) * d),
        ]
    }

    /// `dst[:, column..] += scale * (x A^T) B^T`, with rows of `dst` `stride` apart, each part with
    /// its own adapter. A pass of one part may give some of its rows only.
    pub(crate) fn lora(
        &self,
        layer: usize,
        proj: Projection,
        x: &[f32],
        dst: &mut [f32],
        stride: usize,
        column: usize,
    ) {
        if let [part] = &self.parts[..] {
            return self.lora_part(part.adapter, layer, proj, x, &mut dst[column..], stride);
        }
        let (fan_in, mut row) = (proj.widths(self.config).0, 0);
        for part in &self.parts {
            let rows = row..row + part.layout.rows();
            let x = &x[rows.start * fan_in..rows.end * fan_in];
            let dst = &mut dst[rows.start * stride + column..rows.end * stride];
            self.lora_part(part.adapter, layer, proj, x, dst, stride);
            row = rows.end;
        }
    }

    /// [`Self::lora`] of one part; `dst` begins at the first column.
    fn lora_part(
        &self,
        adapter: Option<&Adapter>,
        layer: usize,
        proj: Projection,
        x: &[f32],
        dst: &mut [f32],
        stride: usize,
    ) {
        let Some((adapter, (a, b))) = adapter.and_then(|ad| Some((ad, ad.pair(layer, proj)?)))
        else {
            return;
        };
        let (fan_in, fan_out) = proj.widths(self.config);
        let (r, t) = (adapter.shape().rank(), x.len() / fan_in);
        let mut h = self.pool.take(t * r);
        let a = Mat::new(a, r, fan_in, fan_in);
        matmul(
            &mut h,
            r,
            false,
            1.0,
            Mat::new(x, t, fan_in, fan_in),
            a.t(),
            Threads::Pool,
        );
        let b = Mat::new(b, fan_out, r, r);
        matmul(
            dst,
            stride,
            true,
            adapter.shape().scale(),
            Mat::new(&h, t, r, r),
            b.t(),
            Threads::Pool,
        );
    }

    /// Backward of [`Self::lora`]: adds to `dx` and to the adapter's gradient (`grads`, flat in its
    /// shape).
    pub(crate) fn lora_backward(
        &self,
        layer: usize,
        proj: Projection,
        x: &[f32],
        dy: Mat<'_>,
        dx: &mut [f32],
        grads: &mut [f32],
    ) {
        let Some(adapter) = self.adapter() else {
            return;
        };
        let Some(entry) = adapter.shape().find(layer, proj) else {
            return;
        };
        let (fan_in, fan_out) = (entry.fan_in, entry.fan_out);
        let (r, t, scale) = (
            adapter.shape().rank(),
            x.len() / fan_in,
            adapter.shape().scale(),
        );
        let (ra, rb) = adapter.shape().ranges(entry);
        let a = Mat::new(&adapter.data[ra.clone()], r, fan_in, fan_in);
        let b = Mat::new(&adapter.data[rb.clone()], fan_out, r, r);
        let x = Mat::new(x, t, fan_in, fan_in);
        let mut h = self.pool.take(t * r);
        matmul(&mut h, r, false, 1.0, x, a.t(), Threads::Pool);
        matmul(
            &mut grads[rb],
            r,
            true,
            scale,
            dy.t(),
            Mat::new(&h, t, r, r),
            Threads::Pool,
        );
        matmul(&mut h, r, false, scale, dy, b, Threads::Pool);
        let dh = Mat::new(&h, t, r, r);
        matmul(&mut grads[ra], fan_in, true, 1.0, dh.t(), x, Threads::Pool);
        matmul(dx, fan_in, true, 1.0, dh, a, Threads::Pool);
    }
}
