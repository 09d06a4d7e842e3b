//! A model whose weights are another's plus an adapter.

use super::{Sealed, WeightSource};
use crate::ModelError;
use crate::config::ModelConfig;
use crate::embedding::Table;
use crate::layer::LayerWeights;
use crate::lora::{Adapter, Projection};
use crate::tokenizer::Tokenizer;

/// Weights `W + scale B A` (Hu et al., arXiv 2106.09685, section 4.1): an adapter that stays, so
/// that others can be trained on top of it and layers below theirs stay frozen. Merged in f32 when
/// a layer is read.
pub struct Merged {
    base: Box<dyn WeightSource>,
    adapter: Adapter,
}

impl Merged {
    /// `base` with `adapter` in it; the adapter must be of a model of this shape.
    pub fn new(base: Box<dyn WeightSource>, adapter: Adapter) -> Result<Self, ModelError> {
        let c = base.config();
        match adapter
            .shape()
            .entries()
            .iter()
            .find(|e| e.layer >= c.layers || e.proj.widths(c) != (e.fan_in, e.fan_out))
        {
            Some(e) => Err(ModelError::Shape(format!(
                "the adapter maps {} values to {} with {:?} of layer {}; the model has {} layers \
                 and {:?} there",
                e.fan_in,
                e.fan_out,
                e.proj,
                e.layer,
                c.layers,
                e.proj.widths(c)
            ))),
            None => Ok(Self { base, adapter }),
        }
    }
}

/// Where a projection's rows begin in the fused weights that hold it.
fn place<'a>(w: &'a mut LayerWeights, c: &ModelConfig, proj: Projection) -> &'a mut [f32] {
    let (q, kv, up) = (
        c.heads * c.head_dim * c.hidden,
        c.kv_heads * c.head_dim * c.hidden,
        c.intermediate * c.hidden,
    );
    match proj {
        Projection::Q => &mut w.qkv[..q],
        Projection::K => &mut w.qkv[q..q + kv],
        Projection::V => &mut w.qkv[q + kv..],
        Projection::O => &mut w.out,
        Projection::Gate => &mut w.gate_up[..up],
        Projection::Up => &mut w.gate_up[up..],
        Projection::Down => &mut w.down,
    }
}

impl Sealed for Merged {
    #[allow(private_interfaces)]
    fn layer(&self, layer: usize) -> Result<LayerWeights, ModelError> {
        let mut weights = self.base.layer(layer)?;
        let (shape, c) = (self.adapter.shape(), self.base.config());
        for e in shape.entries().iter().filter(|e| e.layer == layer) {
            let Some((a, b)) = self.adapter.pair(layer, e.proj) else {
                continue;
            };
            let rows = place(&mut weights, c, e.proj).chunks_exact_mut(e.fan_in);
            for (row, b) in rows.zip(b.chunks_exact(shape.rank())) {
                for (b, a) in b.iter().zip(a.chunks_exact(e.fan_in)) {
                    let factor = shape.scale() * b;
                    row.iter_mut().zip(a).for_each(|(w, a)| *w += factor * a);
                }
            }
        }
        Ok(weights)
    }
}

impl WeightSource for Merged {
    fn config(&self) -> &ModelConfig {
        self.base.config()
    }

    fn embedding(&self) -> Result<Table, ModelError> {
        self.base.embedding()
    }

    fn head(&self) -> Result<Table, ModelError> {
        self.base.head()
    }

    fn final_norm(&self) -> Result<Vec<f32>, ModelError> {
        self.base.final_norm()
    }

    fn tokenizer(&self) -> Result<Tokenizer, ModelError> {
        self.base.tokenizer()
    }
}

#[cfg(test)]
mod tests {
    use lethe_learn::seed::Seed;

    use super::*;
    use crate::kernels::panels::Compute;
    use crate::layout::Layout;
    use crate::lora::{AdapterShape, LoraRecipe};
    use crate::source::RandomWeights;
    use crate::split::{DeviceModel, SplitSpec};

    fn random(config: &ModelConfig) -> Adapter {
        let recipe = LoraRecipe {
            rank: 2,
            alpha: 4.0,
            targets: Projection::ALL.to_vec(),
            last_layers: None,
        };
        let shape = AdapterShape::new(config, &recipe, |_| true);
        let mut rng = Seed::from_u64(3).rng();
        let data = (0..shape.len()).map(|_| 0.1 * rng.normal()).collect();
        Adapter::from_data(&shape, data).expect("same length")
    }

    fn logits(source: &dyn WeightSource, adapter: Option<&Adapter>) -> [f32; 2] {
        let spec = SplitSpec {
            k_in: 0,
            k_out: source.config().layers,
        };
        let device = DeviceModel::load(source, spec, Compute::F32).expect("loads");
        let mut middle = DeviceModel::load_middle(source, spec, Compute::F32).expect("loads");
        let (layout, ids) = Layout::pack(&[vec![1, 2, 3, 4]]);
        device
            .score(&layout, &ids, [3, 4], adapter, &mut (&mut middle, None))
            .expect("scores")[0]
    }

    #[test]
    fn merged_or_beside_is_the_same() {
        let base = RandomWeights::new(ModelConfig::tiny(), 7);
        let adapter = random(base.config());
        let plain = logits(&base, None);
        let beside = logits(&base, Some(&adapter));
        let merged = logits(&Merged::new(Box::new(base), adapter).expect("fits"), None);
        for (m, b) in merged.iter().zip(&beside) {
            assert!(
                (m - b).abs() < 1e-3 * b.abs().max(1.0),
                "merged {m}, beside {b}"
            );
        }
        assert!(
            (plain[0] - beside[0]).abs() > 0.01,
            "the adapter changed nothing: {} and {}",
            plain[0],
            beside[0]
        );
    }

    #[test]
    fn an_adapter_of_another_model_is_refused() {
        let wide = ModelConfig {
            layers: 9,
            ..ModelConfig::tiny()
        };
        let refused = Merged::new(
            Box::new(RandomWeights::new(ModelConfig::tiny(), 7)),
            random(&wide),
        );
        assert!(refused.is_err_and(|e| e.to_string().contains("layers")));
    }
}
