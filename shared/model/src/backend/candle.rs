//! The layers as a plain composition of candle's operations, with its autograd, in f32: for CUDA
//! and Metal devices, and the reference for our kernels.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{D, DType, Device, Tensor, Var};
use candle_nn::ops::{sigmoid, softmax};

use super::{Backend, First, Kept, Part, See};
use crate::ModelError;
use crate::config::ModelConfig;
use crate::kernels::panels::Compute;
use crate::layer::LayerWeights;
use crate::layout::{Layout, Run};
use crate::lora::{Adapter, Projection};
use crate::source::WeightSource;

type Result<T> = candle_core::Result<T>;

/// Layers on a candle device.
#[derive(Clone, Debug)]
pub(crate) struct Layers {
    device: Device,
    layers: Vec<Arc<Weights>>,
}

/// `[out, in]` matrices and gains of one layer.
#[derive(Debug)]
struct Weights {
    attn_norm: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Option<[Tensor; 3]>,
    out: Tensor,
    mlp_norm: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
}

/// The graph of a training forward.
#[derive(Debug)]
pub(crate) struct Tape {
    x: Var,
    y: Tensor,
    lora: Lora,
}

/// Keys and values so far, `[rows, kv heads, dim]`.
#[derive(Debug, Default)]
pub(crate) struct LayerCache(Option<(Tensor, Tensor)>);

/// The pairs of an adapter on these layers: layer, projection, A and B.
#[derive(Debug, Default)]
struct Lora {
    pairs: Vec<(usize, Projection, Var, Var)>,
    scale: f64,
}

/// What the layers of a pass share.
struct Pass<'a> {
    config: &'a ModelConfig,
    runs: Vec<Run>,
    lora: &'a Lora,
    /// Cosines and sines `[rows, 1, dim]`.
    turns: (Tensor, Tensor),
}

impl Weights {
    fn new(c: &ModelConfig, w: &LayerWeights, device: &Device) -> Result<Self> {
        let (d, q, kv, ff) = (
            c.hidden,
            c.heads * c.head_dim,
            c.kv_heads * c.head_dim,
            c.intermediate,
        );
        let tensor = |data: &[f32], dims: &[usize]| Tensor::from_slice(data, dims, device);
        let bias = |b: &Vec<f32>| {
            Ok::<_, candle_core::Error>([
                tensor(&b[..q], &[q])?,
                tensor(&b[q..q + kv], &[kv])?,
                tensor(&b[q + kv..], &[kv])?,
            ])
        };
        Ok(Self {
            attn_norm: tensor(&w.attn_norm, &[d])?,
            q: tensor(&w.qkv[..q * d], &[q, d])?,
            k: tensor(&w.qkv[q * d..(q + kv) * d], &[kv, d])?,
            v: tensor(&w.qkv[(q + kv) * d..], &[kv, d])?,
            bias: w.qkv_bias.as_ref().map(bias).transpose()?,
            out: tensor(&w.out, &[d, q])?,
            mlp_norm: tensor(&w.mlp_norm, &[d])?,
            gate: tensor(&w.gate_up[..ff * d], &[ff, d])?,
            up: tensor(&w.gate_up[ff * d..], &[ff, d])?,
            down: tensor(&w.down, &[d, ff])?,
        })
    }

    fn bytes(&self) -> usize {
        let all = [
            &self.attn_norm,
            &self.q,
            &self.k,
            &self.v,
            &self.out,
            &self.mlp_norm,
            &self.gate,
            &self.up,
            &self.down,
        ];
        let bias = self.bias.iter().flatten();
        all.into_iter()
            .chain(bias)
            .map(|t| t.elem_count() * size_of::<f32>())
            .sum()
    }
}

impl Lora {
    fn new(adapter: Option<&Adapter>, layers: Range<usize>, device: &Device) -> Result<Self> {
        let Some(adapter) = adapter else {
            return Ok(Self::default());
        };
        let (shape, rank) = (adapter.shape(), adapter.shape().rank());
        let mut pairs = vec![];
        for e in shape.entries().iter().filter(|e| layers.contains(&e.layer)) {
            let (a, b) = shape.ranges(e);
            let var = |r: Range<usize>, dims: (usize, usize)| {
                Var::from_tensor(&Tensor::from_slice(&adapter.data[r], dims, device)?)
            };
            pairs.push((
                e.layer,
                e.proj,
                var(a, (rank, e.fan_in))?,
                var(b, (e.fan_out, rank))?,
            ));
        }
        Ok(Self {
            pairs,
            scale: f64::from(shape.scale()),
        })
    }
}

/// Most values of one layer's scores, keys and values, which this engine repeats for every run of a
/// batch: 1 GiB.
const MAX_ATTENTION: usize = 1 << 28;

impl Pass<'_> {
    fn norm(&self, x: &Tensor, gain: &Tensor) -> Result<Tensor> {
        let mean = x.sqr()?.mean_keepdim(D::Minus1)?;
        let inv = (mean + f64::from(self.config.rms_eps))?.sqrt()?.recip()?;
        x.broadcast_mul(&inv)?.broadcast_mul(gain)
    }

    fn linear(&self, x: &Tensor, w: &Tensor, layer: usize, proj: Projection) -> Result<Tensor> {
        let y = x.matmul(&w.t()?)?;
        match self.lora.pairs.iter().find(|p| (p.0, p.1) == (layer, proj)) {
            None => Ok(y),
            Some((_, _, a, b)) => y + (x.matmul(&a.t()?)?.matmul(&b.t()?)? * self.lora.scale)?,
        }
    }

    fn rope(&self, x: &Tensor) -> Result<Tensor> {
        let half = self.config.head_dim / 2;
        let turned = Tensor::cat(
            &[&x.narrow(2, half, half)?.neg()?, &x.narrow(2, 0, half)?],
            2,
        )?;
        x.broadcast_mul(&self.turns.0)? + turned.broadcast_mul(&self.turns.1)?
    }

    /// `q` `[len, heads, dim]` are the last of the `k` and `v` `[all, kv heads, dim]`;
    /// `[len, heads * dim]`.
    fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let (c, (len, all)) = (self.config, (q.dim(0)?, k.dim(0)?));
        let repeat = |x: &Tensor| {
            let x = x.transpose(0, 1)?.unsqueeze(1)?;
            let x = x
                .broadcast_as((c.kv_heads, c.heads / c.kv_heads, all, c.head_dim))?
                .contiguous()?;
            x.reshape((c.heads, all, c.head_dim))
        };
        let q = q.transpose(0, 1)?.contiguous()?;
        let s =
            (q.matmul(&repeat(k)?.transpose(1, 2)?.contiguous()?)? / (c.head_dim as f64).sqrt())?;
        let hidden = |i: usize| {
            if i % all > all - len + i / all {
                f32::NEG_INFINITY
            } else {
                0.0
            }
        };
        let mask: Vec<f32> = (0..len * all).map(hidden).collect();
        let s = s.broadcast_add(&Tensor::from_vec(mask, (len, all), s.device())?)?;
        softmax(&s, D::Minus1)?
            .matmul(&repeat(v)?)?
            .transpose(0, 1)?
            .contiguous()?
            .reshape((len, c.heads * c.head_dim))
    }

    /// Queries, keys and values `[rows, heads, dim]` of the normed `n`.
    fn project(&self, w: &Weights, l: usize, n: &Tensor) -> Result<[Tensor; 3]> {
        let (c, rows) = (self.config, n.dim(0)?);
        let one = |i: usize, m: &Tensor, proj, heads: usize| {
            let y = self.linear(n, m, l, proj)?;
            let y = match &w.bias {
                Some(bias) => y.broadcast_add(&bias[i])?,
                None => y,
            };
            y.reshape((rows, heads, c.head_dim))
        };
        let q = self.rope(&one(0, &w.q, Projection::Q, c.heads)?)?;
        let k = self.rope(&one(1, &w.k, Projection::K, c.kv_heads)?)?;
        Ok([q, k, one(2, &w.v, Projection::V, c.kv_heads)?])
    }

    /// The layer, given what its queries attend to.
    fn finish(&self, w: &Weights, l: usize, x: &Tensor, ctx: &Tensor) -> Result<Tensor> {
        let x = (x + self.linear(ctx, &w.out, l, Projection::O)?)?;
        let n = self.norm(&x, &w.mlp_norm)?;
        let gate = self.linear(&n, &w.gate, l, Projection::Gate)?;
        let act = ((&gate * sigmoid(&gate)?)? * self.linear(&n, &w.up, l, Projection::Up)?)?;
        x + self.linear(&act, &w.down, l, Projection::Down)?
    }

    fn layer(&self, w: &Weights, l: usize, x: &Tensor) -> Result<Tensor> {
        let [q, k, v] = self.project(w, l, &self.norm(x, &w.attn_norm)?)?;
        let context = |t: &Tensor, r: &Run| match r.context {
            0 => t.narrow(0, r.start, r.len),
            n => Tensor::cat(&[&t.narrow(0, 0, n)?, &t.narrow(0, r.start, r.len)?], 0),
        };
        let ctx: Vec<Tensor> = self
            .runs
            .iter()
            .map(|r| {
                self.attend(
                    &q.narrow(0, r.start, r.len)?,
                    &context(&k, r)?,
                    &context(&v, r)?,
                )
            })
            .collect::<Result<_>>()?;
        self.finish(w, l, x, &Tensor::cat(&ctx, 0)?)
    }
}

/// Candle's operations on one of its devices.
#[derive(Clone, Debug)]
pub(crate) struct Candle(Device);

impl Candle {
    /// The device of that kind and number: `candle-cpu`, `cuda` or `metal`.
    pub(crate) fn open(kind: &str, number: usize) -> Result<Self> {
        match kind {
            "cuda" => Device::new_cuda(number).map(Self),
            "metal" => Device::new_metal(number).map(Self),
            _ => Ok(Self(Device::Cpu)),
        }
    }
}

impl Backend for Candle {
    fn kind(&self) -> String {
        format!("candle {:?}", self.0.location())
    }

    fn load(
        &self,
        source: &dyn WeightSource,
        range: Range<usize>,
        compute: Compute,
    ) -> std::result::Result<Arc<dyn super::Layers>, ModelError> {
        if compute != Compute::F32 {
            return Err(ModelError::Device(format!(
                "layers on {:?} compute in f32, not in {compute:?}: set compute = \"f32\"",
                self.0.location()
            )));
        }
        let layer = |l| {
            let weights =
                Weights::new(source.config(), &crate::source::layer(source, l)?, &self.0)?;
            Ok(Arc::new(weights))
        };
        Ok(Arc::new(Layers {
            device: self.0.clone(),
            layers: range
                .map(layer)
                .collect::<std::result::Result<_, ModelError>>()?,
        }))
    }
}

impl Layers {
    fn numbered(&self, first: First<'_>) -> impl Iterator<Item = (usize, &Weights)> {
        self.layers
            .iter()
            .enumerate()
            .map(move |(i, w)| (first.layer + i, &**w))
    }

    fn lora(&self, first: First<'_>, adapter: Option<&Adapter>) -> Result<Lora> {
        Lora::new(
            adapter,
            first.layer..first.layer + self.layers.len(),
            &self.device,
        )
    }

    fn pass<'a>(
        &self,
        first: First<'a>,
        layout: &Layout,
        before: usize,
        lora: &'a Lora,
    ) -> Result<Pass<'a>> {
        let (c, half) = (first.config, first.config.head_dim / 2);
        let seen = |r: &Run| (r.context + r.len) * c.heads * (r.len + c.head_dim);
        let values: usize = layout.runs().iter().map(seen).sum();
        if values > MAX_ATTENTION {
            candle_core::bail!(
                "{values} values of attention in one pass on this device, at most \
                 {MAX_ATTENTION}: send smaller batches"
            );
        }
        let rate = |i: usize| c.rope_rate(i % half);
        let angles: Vec<f32> = layout
            .positions()
            .into_iter()
            .flat_map(|p| (0..c.head_dim).map(move |i| (before + p) as f32 * rate(i)))
            .collect();
        let angles = Tensor::from_vec(angles, (layout.rows(), 1, c.head_dim), &self.device)?;
        Ok(Pass {
            config: c,
            runs: layout.runs(),
            lora,
            turns: (angles.cos()?, angles.sin()?),
        })
    }

    fn rows(&self, x: &[f32], c: &ModelConfig) -> Result<Tensor> {
        Tensor::from_slice(x, (x.len() / c.hidden, c.hidden), &self.device)
    }
}

impl super::Layers for Layers {
    fn part(&self, layers: Range<usize>) -> Arc<dyn super::Layers> {
        Arc::new(Self {
            device: self.device.clone(),
            layers: self.layers[layers].to_vec(),
        })
    }

    fn bytes(&self) -> usize {
        self.layers.iter().map(|l| l.bytes()).sum()
    }

    fn forward(
        &self,
        first: First<'_>,
        parts: &[Part<'_>],
        x: Vec<f32>,
        mut see: See<'_>,
    ) -> std::result::Result<Vec<f32>, ModelError> {
        let (mut out, mut start) = (Vec::with_capacity(x.len()), 0);
        for part in parts {
            let lora = self.lora(first, part.adapter)?;
            let pass = self.pass(first, part.layout, 0, &lora)?;
            let end = start + part.layout.rows() * first.config.hidden;
            let mut h = self.rows(&x[start..end], first.config)?;
            for (l, w) in self.numbered(first) {
                h = pass.layer(w, l, &h)?.detach();
                if let Some(see) = &mut see {
                    see(l, &flat(&h)?);
                }
            }
            out.extend(flat(&h)?);
            start = end;
        }
        Ok(out)
    }

    fn forward_last(
        &self,
        first: First<'_>,
        part: Part<'_>,
        x: Vec<f32>,
    ) -> std::result::Result<Vec<f32>, ModelError> {
        let y = self.forward(first, &[part], x, None)?;
        let d = first.config.hidden;
        Ok(part
            .layout
            .last_rows()
            .iter()
            .flat_map(|r| y[r * d..(r + 1) * d].iter().copied())
            .collect())
    }

    fn forward_train(
        &self,
        first: First<'_>,
        part: Part<'_>,
        x: Vec<f32>,
        last: bool,
    ) -> std::result::Result<(Vec<f32>, Kept), ModelError> {
        let x = Var::from_tensor(&self.rows(&x, first.config)?)?;
        let lora = self.lora(first, part.adapter)?;
        let pass = self.pass(first, part.layout, 0, &lora)?;
        let mut y = x.as_tensor().clone();
        for (l, w) in self.numbered(first) {
            y = pass.layer(w, l, &y)?;
        }
        if last {
            let rows: Vec<u32> = part.layout.last_rows().iter().map(|r| *r as u32).collect();
            y = y.index_select(&Tensor::new(rows, &self.device)?, 0)?;
        }
        Ok((flat(&y)?, Kept::new(Tape { x, y, lora })))
    }

    fn backward(
        &self,
        _first: First<'_>,
        part: Part<'_>,
        _last: bool,
        tape: &Kept,
        dy: Vec<f32>,
        grads: &mut [f32],
    ) -> std::result::Result<Vec<f32>, ModelError> {
        let tape: &Tape = tape.get()?;
        let dy = Tensor::from_vec(dy, tape.y.shape(), &self.device)?;
        let all = (&tape.y * dy)?.sum_all()?.backward()?;
        let of = |v: &Var| all.get(v).map(flat).transpose();
        if let Some(shape) = part.adapter.map(Adapter::shape) {
            for (layer, proj, a, b) in &tape.lora.pairs {
                let Some(entry) = shape.find(*layer, *proj) else {
                    continue;
                };
                let (ra, rb) = shape.ranges(entry);
                for (range, v) in [(ra, a), (rb, b)] {
                    let found = of(v)?.unwrap_or_default();
                    grads[range]
                        .iter_mut()
                        .zip(found)
                        .for_each(|(g, d)| *g += d);
                }
            }
        }
        Ok(of(&tape.x)?.unwrap_or_else(|| vec![0.0; tape.x.elem_count()]))
    }

    fn cache(&self, _config: &ModelConfig, _positions: usize) -> Kept {
        let caches: Vec<LayerCache> = self.layers.iter().map(|_| LayerCache::default()).collect();
        Kept::new(caches)
    }

    fn extend(
        &self,
        first: First<'_>,
        part: Part<'_>,
        cache: &mut Kept,
        before: usize,
        x: Vec<f32>,
    ) -> std::result::Result<Vec<f32>, ModelError> {
        let lora = self.lora(first, part.adapter)?;
        let pass = self.pass(first, part.layout, before, &lora)?;
        let caches: &mut Vec<LayerCache> = cache.get_mut()?;
        let mut h = self.rows(&x, first.config)?;
        for ((l, w), cache) in self.numbered(first).zip(caches) {
            let [q, k, v] = pass.project(w, l, &pass.norm(&h, &w.attn_norm)?)?;
            let (k, v) = match &cache.0 {
                Some((keys, values)) => {
                    (Tensor::cat(&[keys, &k], 0)?, Tensor::cat(&[values, &v], 0)?)
                }
                None => (k, v),
            };
            h = pass.finish(w, l, &h, &pass.attend(&q, &k, &v)?)?.detach();
            cache.0 = Some((k.detach(), v.detach()));
        }
        Ok(flat(&h)?)
    }
}

fn flat(x: &Tensor) -> Result<Vec<f32>> {
    x.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}
