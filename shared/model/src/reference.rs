//! The plain composition of the model with candle's autograd, against which the kernels are checked.

use candle_core::{D, Device, Tensor, Var};
use candle_nn::ops::{sigmoid, softmax};
use lethe_learn::seed::Seed;

use crate::config::ModelConfig;
use crate::kernels::panels::Compute;
use crate::layer::LayerWeights;
use crate::layout::Layout;
use crate::lora::{Adapter, AdapterShape, LoraRecipe, Projection};
use crate::source::{RandomWeights, Sealed, WeightSource};
use crate::split::{Batch, DeviceModel, LocalMiddle, SplitSpec};

type Result<T> = candle_core::Result<T>;

struct Reference {
    c: ModelConfig,
    scale: f64,
    vars: Vec<(usize, Projection, Var, Var)>,
}

fn tensor(data: &[f32], dims: &[usize]) -> Result<Tensor> {
    Tensor::from_slice(data, dims, &Device::Cpu)
}

impl Reference {
    fn norm(&self, x: &Tensor, gain: &[f32]) -> Result<Tensor> {
        let mean = x.sqr()?.mean_keepdim(D::Minus1)?;
        let inv = (mean + f64::from(self.c.rms_eps))?.sqrt()?.recip()?;
        x.broadcast_mul(&inv)?.broadcast_mul(&tensor(gain, &[gain.len()])?)
    }

    fn linear(&self, x: &Tensor, w: &[f32], layer: usize, proj: Projection) -> Result<Tensor> {
        let (fan_in, fan_out) = proj.widths(&self.c);
        let y = x.matmul(&tensor(w, &[fan_out, fan_in])?.t()?)?;
        match self.vars.iter().find(|v| (v.0, v.1) == (layer, proj)) {
            None => Ok(y),
            Some((_, _, a, b)) => y + (x.matmul(&a.t()?)?.matmul(&b.t()?)? * self.scale)?,
        }
    }

    fn rope(&self, x: &Tensor) -> Result<Tensor> {
        let (d, t) = (self.c.head_dim, x.dim(0)?);
        let angle = |p: usize, i: usize| p as f32 / self.c.rope_theta.powf(2.0 * (i % (d / 2)) as f32 / d as f32);
        let angles: Vec<f32> = (0..t).flat_map(|p| (0..d).map(move |i| (p, i))).map(|(p, i)| angle(p, i)).collect();
        let angles = tensor(&angles, &[t, 1, d])?;
        let (lo, hi) = (x.narrow(2, 0, d / 2)?, x.narrow(2, d / 2, d / 2)?);
        let turned = Tensor::cat(&[&hi.neg()?, &lo], 2)?;
        x.broadcast_mul(&angles.cos()?)? + turned.broadcast_mul(&angles.sin()?)?
    }

    fn layer(&self, w: &LayerWeights, l: usize, x: &Tensor) -> Result<Tensor> {
        let (c, t) = (&self.c, x.dim(0)?);
        let (q, kv, d) = (c.heads * c.head_dim, c.kv_heads * c.head_dim, c.hidden);
        let n = self.norm(x, &w.attn_norm)?;
        let bias = |from: usize, n: usize| match &w.qkv_bias {
            Some(b) => tensor(&b[from..from + n], &[n]),
            None => Tensor::zeros(n, candle_core::DType::F32, &Device::Cpu),
        };
        let heads = |y: Tensor, from: usize, h: usize| {
            y.broadcast_add(&bias(from, h * c.head_dim)?)?.reshape((t, h, c.head_dim))
        };
        let queries = self.rope(&heads(self.linear(&n, &w.qkv[..q * d], l, Projection::Q)?, 0, c.heads)?)?;
        let keys =
            self.rope(&heads(self.linear(&n, &w.qkv[q * d..(q + kv) * d], l, Projection::K)?, q, c.kv_heads)?)?;
        let values = heads(self.linear(&n, &w.qkv[(q + kv) * d..], l, Projection::V)?, q + kv, c.kv_heads)?;
        let mask: Vec<f32> = (0..t * t).map(|i| if i % t > i / t { f32::NEG_INFINITY } else { 0.0 }).collect();
        let mask = tensor(&mask, &[t, t])?;
        let mut out = vec![];
        for h in 0..c.heads {
            let g = h / (c.heads / c.kv_heads);
            let of = |x: &Tensor, h: usize| x.narrow(1, h, 1)?.squeeze(1)?.contiguous();
            let s = (of(&queries, h)?.matmul(&of(&keys, g)?.t()?)? / (c.head_dim as f64).sqrt())?;
            out.push(softmax(&(s + &mask)?, D::Minus1)?.matmul(&of(&values, g)?)?);
        }
        let x = (x + self.linear(&Tensor::cat(&out, 1)?, &w.out, l, Projection::O)?)?;
        let n = self.norm(&x, &w.mlp_norm)?;
        let (gate_w, up_w) = w.gate_up.split_at(c.intermediate * d);
        let gate = self.linear(&n, gate_w, l, Projection::Gate)?;
        let act = ((&gate * sigmoid(&gate)?)? * self.linear(&n, up_w, l, Projection::Up)?)?;
        x + self.linear(&act, &w.down, l, Projection::Down)?
    }

    /// Loss of one sequence: cross-entropy over the two answer logits at the last token.
    fn loss(&self, source: &RandomWeights, ids: &[u32], answers: [u32; 2], label: bool) -> Result<Tensor> {
        let fine = "a seeded model has all tensors";
        let table = source.embedding().expect(fine);
        let mut x = tensor(&table.rows(ids).expect(fine), &[ids.len(), self.c.hidden])?;
        for l in 0..self.c.layers {
            x = self.layer(&source.layer(l).expect(fine), l, &x)?;
        }
        let last = self.norm(&x.narrow(0, ids.len() - 1, 1)?, &source.final_norm().expect(fine))?;
        let head = tensor(&table.rows(&answers).expect(fine), &[2, self.c.hidden])?;
        let logits = last.matmul(&head.t()?)?;
        candle_nn::loss::cross_entropy(&logits, &Tensor::new(&[u32::from(label)], &Device::Cpu)?)
    }
}

#[test]
fn kernels_agree_with_candles_autograd() {
    agree(ModelConfig::tiny());
}

#[test]
fn so_they_do_with_the_biases_of_qwen2() {
    agree(ModelConfig { qkv_bias: true, ..ModelConfig::tiny() });
}

fn agree(c: ModelConfig) {
    let source = RandomWeights::new(c.clone(), 5);
    let recipe = LoraRecipe { rank: 2, alpha: 4.0, targets: Projection::ALL.to_vec(), last_layers: None };
    let shape = AdapterShape::new(&c, &recipe, |_| true);
    let mut rng = Seed::from_u64(4).rng();
    let data = (0..shape.len()).map(|_| 0.2 * rng.normal()).collect();
    let adapter = Adapter::from_data(&shape, data).expect("same length");
    let var = |range: std::ops::Range<usize>, dims: [usize; 2]| {
        Var::from_tensor(&tensor(&adapter.data[range], &dims).expect("fits")).expect("a tensor")
    };
    let vars = shape.entries().iter().map(|e| {
        let (a, b) = shape.ranges(e);
        (e.layer, e.proj, var(a, [2, e.fan_in]), var(b, [e.fan_out, 2]))
    });
    let reference = Reference { c: c.clone(), scale: 2.0, vars: vars.collect() };
    let ids = [7, 8, 9, 1, 2, 3, 4, 20, 41];
    let loss = reference.loss(&source, &ids, [3, 4], true).expect("runs");
    let grads = loss.backward().expect("runs");

    let spec = SplitSpec { k_in: 0, k_out: 0 };
    let device = DeviceModel::load(&source, spec, Compute::F32).expect("loads");
    let segment = DeviceModel::load_middle(&source, spec, Compute::F32).expect("loads");
    let mut middle = LocalMiddle::new(segment, adapter.clone());
    let (layout, rows) = Layout::pack(&[ids.to_vec()]);
    let batch = Batch { layout: &layout, ids: &rows, labels: &[true], answers: [3, 4], scale: 1.0 };
    let ours = device.train_batch(&batch, &adapter.select(|_| false), &mut [], &mut middle).expect("runs");
    assert!((ours.sum - f64::from(loss.to_scalar::<f32>().expect("a scalar"))).abs() < 1e-5);
    for (e, (_, _, a, b)) in shape.entries().iter().zip(&reference.vars) {
        let (ra, rb) = shape.ranges(e);
        for (range, v) in [(ra, a), (rb, b)] {
            let want = grads.get(v).expect("candle gives every adapter a gradient").flatten_all().expect("flat");
            let want = want.to_vec1::<f32>().expect("f32");
            let norm = want.iter().map(|x| x * x).sum::<f32>().sqrt();
            for (g, w) in middle.grads[range].iter().zip(&want) {
                assert!((g - w).abs() < 1e-4 * norm + 1e-7, "{:?} of layer {}: {g} against {w}", e.proj, e.layer);
            }
        }
    }
}
