//! A model whose weights are another's plus an adapter.

use super::{Part, RawTensor, Sealed, WeightSource};
use crate::ModelError;
use crate::config::ModelConfig;
use crate::embedding::Table;
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

/// The projection whose matrix `part` is.
fn projection(part: Part) -> Option<Projection> {
    match part {
        Part::Q => Some(Projection::Q),
        Part::K => Some(Projection::K),
        Part::V => Some(Projection::V),
        Part::Out => Some(Projection::O),
        Part::Gate => Some(Projection::Gate),
        Part::Up => Some(Projection::Up),
        Part::Down => Some(Projection::Down),
        Part::AttnNorm | Part::MlpNorm | Part::QBias | Part::KBias | Part::VBias => None,
    }
}

impl Sealed for Merged {
    #[allow(private_interfaces)]
    fn raw(&self, layer: usize, part: Part) -> Result<RawTensor, ModelError> {
        let stored = self.base.raw(layer, part)?;
        let shape = self.adapter.shape();
        let entry = projection(part).and_then(|p| shape.find(layer, p));
        let Some(entry) = entry else {
            return Ok(stored);
        };
        let (a, b) = shape.ranges(entry);
        let a = &self.adapter.data[a];
        let b = &self.adapter.data[b];
        let mut values = stored.values()?;
        let rows = values.chunks_exact_mut(entry.fan_in);
        for (row, b) in rows.zip(b.chunks_exact(shape.rank())) {
            for (b, a) in b.iter().zip(a.chunks_exact(entry.fan_in)) {
                let factor = shape.scale() * b;
                row.iter_mut().zip(a).for_each(|(w, a)| *w += factor * a);
            }
        }
        Ok(RawTensor::of(&values))
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
