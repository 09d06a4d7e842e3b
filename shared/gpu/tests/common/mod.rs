//! A plain reference in f64, random models in all block formats, and the GPU of the tests.
#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(clippy::print_stderr, reason = "a skipped test must say so")]

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

use half::{bf16, f16};
use lethe_gpu::{
    Format, Gpu, LayerWeights, Layers, Lora, Matrix, Pair, Projection, Rows, Run, Shape,
};

pub(crate) const PROJECTIONS: [Projection; 7] = [
    Projection::Q,
    Projection::K,
    Projection::V,
    Projection::O,
    Projection::Gate,
    Projection::Up,
    Projection::Down,
];

/// The first adapter. Without one the tests are skipped, and say so; with LETHE_GPU=required they
/// fail.
pub(crate) fn gpu() -> Option<Arc<Gpu>> {
    static GPU: OnceLock<Option<Arc<Gpu>>> = OnceLock::new();
    GPU.get_or_init(fresh_gpu).clone()
}

/// A device of its own, for tests that break it.
pub(crate) fn fresh_gpu() -> Option<Arc<Gpu>> {
    match Gpu::open(None) {
        Ok(gpu) => Some(gpu),
        Err(why) => {
            let required = std::env::var_os("LETHE_GPU").is_some_and(|v| v == "required");
            assert!(!required, "LETHE_GPU=required: {why}");
            eprintln!("SKIPPED: {why}");
            None
        }
    }
}

/// xorshift64*.
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Uniform in -1..1.
    pub(crate) fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    }

    pub(crate) fn vector(&mut self, len: usize, size: f32) -> Vec<f32> {
        (0..len).map(|_| self.unit() * size).collect()
    }
}

/// A matrix as the GPU gets it, and its values.
pub(crate) struct Dense {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) format: Format,
    pub(crate) bytes: Vec<u8>,
    pub(crate) values: Vec<f64>,
}

impl Dense {
    pub(crate) fn random(rng: &mut Rng, rows: usize, cols: usize, format: Format) -> Self {
        let size = 1.7 / (cols as f32).sqrt();
        let mut bytes = Vec::new();
        let mut values = Vec::new();
        for _ in 0..rows * cols / format.block().0 {
            block(rng, format, size, &mut bytes, &mut values);
        }
        Self {
            rows,
            cols,
            format,
            bytes,
            values,
        }
    }

    pub(crate) fn matrix(&self) -> Matrix<'_> {
        Matrix {
            rows: self.rows,
            cols: self.cols,
            format: self.format,
            bytes: Cow::Borrowed(&self.bytes),
        }
    }
}

/// One random block, encoded and decoded.
fn block(rng: &mut Rng, format: Format, size: f32, bytes: &mut Vec<u8>, values: &mut Vec<f64>) {
    match format {
        Format::F32 => {
            let v = rng.unit() * size;
            bytes.extend(v.to_le_bytes());
            values.push(v.into());
        }
        Format::F16 => {
            let v = f16::from_f32(rng.unit() * size);
            bytes.extend(v.to_le_bytes());
            values.push(v.to_f64());
        }
        Format::Bf16 => {
            let v = bf16::from_f32(rng.unit() * size);
            bytes.extend(v.to_le_bytes());
            values.push(v.to_f64());
        }
        Format::Q4_0 | Format::Q4_1 => {
            let d = f16::from_f32(size / 8.0 * (1.0 + 0.3 * rng.unit()));
            bytes.extend(d.to_le_bytes());
            let mut least = d.to_f64() * -8.0;
            if format == Format::Q4_1 {
                let m = f16::from_f32(-size * (1.0 + 0.3 * rng.unit()));
                bytes.extend(m.to_le_bytes());
                least = m.to_f64();
            }
            let nibbles: Vec<u8> = (0..16).map(|_| (rng.next() >> 32) as u8).collect();
            let value = |q: u8| f64::from(q) * d.to_f64() + least;
            values.extend(nibbles.iter().map(|b| value(b & 15)));
            values.extend(nibbles.iter().map(|b| value(b >> 4)));
            bytes.extend(nibbles);
        }
        Format::Q8_0 => {
            let d = f16::from_f32(size / 127.0 * (1.0 + 0.3 * rng.unit()));
            bytes.extend(d.to_le_bytes());
            for _ in 0..32 {
                let q = (rng.next() >> 32) as u8 as i8;
                bytes.push(q as u8);
                values.push(f64::from(q) * d.to_f64());
            }
        }
    }
}

pub(crate) struct LayerData {
    attn_norm: Vec<f32>,
    /// In the order of [`PROJECTIONS`].
    matrices: Vec<Dense>,
    bias: Option<Vec<f32>>,
    mlp_norm: Vec<f32>,
}

/// One factor pair in f64.
#[derive(Clone)]
pub(crate) struct PairData {
    pub(crate) layer: usize,
    pub(crate) projection: Projection,
    pub(crate) a: Vec<f64>,
    pub(crate) b: Vec<f64>,
}

#[derive(Clone)]
pub(crate) struct AdapterData {
    pub(crate) rank: usize,
    pub(crate) scale: f64,
    pub(crate) pairs: Vec<PairData>,
}

pub(crate) struct Model {
    pub(crate) shape: Shape,
    pub(crate) layers: Vec<LayerData>,
}

/// Rows with their angles.
#[derive(Clone)]
pub(crate) struct RowData {
    pub(crate) runs: Vec<Run>,
    pub(crate) cos: Vec<f32>,
    pub(crate) sin: Vec<f32>,
}

impl RowData {
    /// A prefix, then a run of each length.
    pub(crate) fn new(shape: &Shape, prefix: usize, lens: &[usize]) -> Self {
        let mut runs = Vec::new();
        if prefix > 0 {
            runs.push(Run {
                start: 0,
                len: prefix,
                context: 0,
            });
        }
        let mut start = prefix;
        for len in lens {
            runs.push(Run {
                start,
                len: *len,
                context: prefix,
            });
            start += len;
        }
        let positions = runs.iter().flat_map(|r| (0..r.len).map(|i| r.context + i));
        let mut angles = Vec::new();
        for position in positions {
            for i in 0..shape.head_dim / 2 {
                let power = -2.0 * i as f64 / shape.head_dim as f64;
                angles.push(position as f64 * 10_000_f64.powf(power));
            }
        }
        Self {
            runs,
            cos: angles.iter().map(|a| a.cos() as f32).collect(),
            sin: angles.iter().map(|a| a.sin() as f32).collect(),
        }
    }

    pub(crate) fn rows(&self) -> Rows<'_> {
        Rows {
            runs: &self.runs,
            cos: &self.cos,
            sin: &self.sin,
        }
    }

    /// Rows that row `i` sees.
    fn seen(&self, i: usize) -> Vec<usize> {
        let run = self
            .runs
            .iter()
            .find(|r| (r.start..r.start + r.len).contains(&i))
            .expect("a run for each row");
        (0..run.context).chain(run.start..=i).collect()
    }
}

/// `x [t, cols] W^T`.
fn times(x: &[f64], w: &[f64], cols: usize) -> Vec<f64> {
    let dot = |r: &[f64], w: &[f64]| r.iter().zip(w).map(|(a, b)| a * b).sum();
    x.chunks_exact(cols)
        .flat_map(|r| w.chunks_exact(cols).map(move |w| dot(r, w)))
        .collect()
}

fn norm(x: &[f64], gain: &[f32], eps: f32) -> Vec<f64> {
    let mut y = Vec::with_capacity(x.len());
    for row in x.chunks_exact(gain.len()) {
        let mean = row.iter().map(|v| v * v).sum::<f64>() / row.len() as f64;
        let r = 1.0 / (mean + f64::from(eps)).sqrt();
        y.extend(row.iter().zip(gain).map(|(v, g)| v * r * f64::from(*g)));
    }
    y
}

impl Model {
    pub(crate) fn random(
        rng: &mut Rng,
        shape: Shape,
        layers: usize,
        bias: bool,
        format: Format,
    ) -> Self {
        let (d, q) = (shape.hidden, shape.heads * shape.head_dim);
        let (kv, ff) = (shape.kv_heads * shape.head_dim, shape.intermediate);
        let sizes = [[q, d], [kv, d], [kv, d], [d, q], [ff, d], [ff, d], [d, ff]];
        let gain = |rng: &mut Rng| rng.vector(d, 0.3).iter().map(|v| 1.0 + v).collect();
        let layer = |rng: &mut Rng| LayerData {
            attn_norm: gain(rng),
            matrices: sizes
                .iter()
                .map(|s| Dense::random(rng, s[0], s[1], format))
                .collect(),
            bias: bias.then(|| rng.vector(q + 2 * kv, 0.2)),
            mlp_norm: gain(rng),
        };
        Self {
            shape,
            layers: (0..layers).map(|_| layer(rng)).collect(),
        }
    }

    pub(crate) fn load(&self, gpu: &Arc<Gpu>) -> Layers {
        let weights: Vec<_> = self.layers.iter().map(LayerData::weights).collect();
        Layers::load(gpu.clone(), self.shape, &weights).expect("layers that fit")
    }

    pub(crate) fn adapter(
        &self,
        rng: &mut Rng,
        rank: usize,
        projections: &[Projection],
    ) -> AdapterData {
        let mut pairs = Vec::new();
        for layer in 0..self.layers.len() {
            for projection in projections {
                let place = PROJECTIONS.iter().position(|p| p == projection);
                let w = &self.layers[layer].matrices[place.expect("a projection")];
                let size = 1.0 / (w.cols as f32).sqrt();
                let a = rng.vector(rank * w.cols, size);
                let b = rng.vector(w.rows * rank, 0.5);
                pairs.push(PairData {
                    layer,
                    projection: *projection,
                    a: a.into_iter().map(f64::from).collect(),
                    b: b.into_iter().map(f64::from).collect(),
                });
            }
        }
        AdapterData {
            rank,
            scale: 0.75,
            pairs,
        }
    }

    /// Outputs of all layers, `[rows, hidden]` each.
    pub(crate) fn outputs(
        &self,
        rows: &RowData,
        adapter: Option<&AdapterData>,
        x: &[f64],
    ) -> Vec<Vec<f64>> {
        let mut all: Vec<Vec<f64>> = Vec::new();
        for layer in 0..self.layers.len() {
            let x = all.last().map_or(x, |y| y);
            all.push(self.layer(layer, rows, adapter, x));
        }
        all
    }

    pub(crate) fn forward(
        &self,
        rows: &RowData,
        adapter: Option<&AdapterData>,
        x: &[f64],
    ) -> Vec<f64> {
        self.outputs(rows, adapter, x).pop().expect("a layer")
    }

    fn layer(
        &self,
        layer: usize,
        rows: &RowData,
        adapter: Option<&AdapterData>,
        x: &[f64],
    ) -> Vec<f64> {
        let (s, w) = (&self.shape, &self.layers[layer]);
        let apply = |place: usize, x: &[f64]| {
            let m = &w.matrices[place];
            let mut y = times(x, &m.values, m.cols);
            let projection = PROJECTIONS[place];
            let pair = adapter.and_then(|a| {
                a.pairs
                    .iter()
                    .find(|p| p.layer == layer && p.projection == projection)
            });
            if let (Some(adapter), Some(p)) = (adapter, pair) {
                let h = times(x, &p.a, m.cols);
                let add = times(&h, &p.b, adapter.rank);
                y.iter_mut()
                    .zip(add)
                    .for_each(|(y, v)| *y += adapter.scale * v);
            }
            y
        };
        let normed = norm(x, &w.attn_norm, s.rms_eps);
        let mut parts: Vec<Vec<f64>> = (0..3).map(|i| apply(i, &normed)).collect();
        let mut from = 0;
        for part in &mut parts {
            let width = part.len() / (x.len() / s.hidden);
            if let Some(bias) = &w.bias {
                for row in part.chunks_exact_mut(width) {
                    let bias = bias[from..].iter();
                    row.iter_mut()
                        .zip(bias)
                        .for_each(|(v, b)| *v += f64::from(*b));
                }
            }
            from += width;
        }
        self.rotate(rows, &mut parts[0], s.heads);
        self.rotate(rows, &mut parts[1], s.kv_heads);
        let ctx = self.attend(rows, &parts[0], &parts[1], &parts[2]);
        let mut mid = apply(3, &ctx);
        mid.iter_mut().zip(x).for_each(|(m, x)| *m += x);
        let normed = norm(&mid, &w.mlp_norm, s.rms_eps);
        let gate = apply(4, &normed);
        let up = apply(5, &normed);
        let silu = |g: &f64| g / (1.0 + (-g).exp());
        let act: Vec<f64> = gate.iter().zip(&up).map(|(g, u)| silu(g) * u).collect();
        let mut y = apply(6, &act);
        y.iter_mut().zip(&mid).for_each(|(y, m)| *y += m);
        y
    }

    fn rotate(&self, rows: &RowData, x: &mut [f64], heads: usize) {
        let (dim, half) = (self.shape.head_dim, self.shape.head_dim / 2);
        for (i, head) in x.chunks_exact_mut(dim).enumerate() {
            for pair in 0..half {
                let at = i / heads * half + pair;
                let (c, s) = (f64::from(rows.cos[at]), f64::from(rows.sin[at]));
                let (u, v) = (head[pair], head[pair + half]);
                head[pair] = u * c - v * s;
                head[pair + half] = v * c + u * s;
            }
        }
    }

    fn attend(&self, rows: &RowData, q: &[f64], k: &[f64], v: &[f64]) -> Vec<f64> {
        let s = &self.shape;
        let (dim, group) = (s.head_dim, s.heads / s.kv_heads);
        let mut ctx = vec![0.0; q.len()];
        for (i, out) in ctx.chunks_exact_mut(dim).enumerate() {
            let (row, head) = (i / s.heads, i % s.heads);
            let q = &q[i * dim..(i + 1) * dim];
            let seen = rows.seen(row);
            let at = |j: usize| (j * s.kv_heads + head / group) * dim;
            let score = |j: &usize| {
                let k = &k[at(*j)..at(*j) + dim];
                q.iter().zip(k).map(|(a, b)| a * b).sum::<f64>() / (dim as f64).sqrt()
            };
            let scores: Vec<f64> = seen.iter().map(score).collect();
            let top = scores.iter().copied().fold(f64::MIN, f64::max);
            let sum: f64 = scores.iter().map(|s| (s - top).exp()).sum();
            for (j, score) in seen.iter().zip(scores) {
                let p = (score - top).exp() / sum;
                let v = &v[at(*j)..at(*j) + dim];
                out.iter_mut().zip(v).for_each(|(o, v)| *o += p * v);
            }
        }
        ctx
    }
}

impl LayerData {
    fn weights(&self) -> LayerWeights<'_> {
        let m = |i: usize| self.matrices[i].matrix();
        LayerWeights {
            attn_norm: &self.attn_norm,
            q: m(0),
            k: m(1),
            v: m(2),
            qkv_bias: self.bias.as_deref(),
            out: m(3),
            mlp_norm: &self.mlp_norm,
            gate: m(4),
            up: m(5),
            down: m(6),
        }
    }
}

/// Pairs in f32, to borrow from.
pub(crate) struct Pairs(Vec<[Vec<f32>; 2]>);

impl Pairs {
    pub(crate) fn new(adapter: &AdapterData) -> Self {
        let single = |v: &[f64]| v.iter().map(|v| *v as f32).collect();
        let pair = |p: &PairData| [single(&p.a), single(&p.b)];
        Self(adapter.pairs.iter().map(pair).collect())
    }

    pub(crate) fn list<'a>(&'a self, adapter: &AdapterData) -> Vec<Pair<'a>> {
        let pair = |(p, d): (&PairData, &'a [Vec<f32>; 2])| Pair {
            layer: p.layer,
            projection: p.projection,
            a: &d[0],
            b: &d[1],
        };
        adapter.pairs.iter().zip(&self.0).map(pair).collect()
    }
}

pub(crate) fn lora<'a>(adapter: &AdapterData, pairs: &'a [Pair<'a>]) -> Lora<'a> {
    Lora {
        rank: adapter.rank,
        scale: adapter.scale as f32,
        pairs,
    }
}

pub(crate) fn double(x: &[f32]) -> Vec<f64> {
    x.iter().map(|v| f64::from(*v)).collect()
}

/// Largest difference, relative to the largest value.
pub(crate) fn error(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let top = want.iter().fold(1e-30_f64, |m, v| m.max(v.abs()));
    let far = |(g, w): (&f32, &f64)| {
        assert!(g.is_finite(), "a result is {g}");
        (f64::from(*g) - w).abs() / top
    };
    got.iter().zip(want).map(far).fold(0.0, f64::max)
}

pub(crate) const FORMATS: [Format; 6] = [
    Format::F32,
    Format::F16,
    Format::Bf16,
    Format::Q4_0,
    Format::Q4_1,
    Format::Q8_0,
];

pub(crate) fn shape(
    hidden: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    ff: usize,
) -> Shape {
    Shape {
        hidden,
        heads,
        kv_heads,
        head_dim,
        intermediate: ff,
        rms_eps: 1e-5,
    }
}
