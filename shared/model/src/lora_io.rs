//! Adapters as files: safetensors with PEFT's tensor names and the recipe in the metadata, and the
//! `adapter_config.json` that PEFT wants beside it.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize};

use crate::ModelError;
use crate::lora::{Adapter, AdapterShape, Entry, LoraRecipe};

/// Metadata key of the recipe.
const RECIPE: &str = "lethe.lora_recipe";

fn names(e: &Entry) -> [String; 2] {
    let base = format!(
        "base_model.model.model.layers.{}.{}",
        e.layer,
        e.proj.module()
    );
    [
        format!("{base}.lora_A.weight"),
        format!("{base}.lora_B.weight"),
    ]
}

/// The adapter as safetensors bytes; the same adapter always gives the same bytes.
pub fn to_bytes(adapter: &Adapter, recipe: &LoraRecipe) -> Result<Vec<u8>, ModelError> {
    let shape = adapter.shape();
    let raw: Vec<u8> = adapter.data.iter().flat_map(|v| v.to_le_bytes()).collect();
    let mut views = Vec::new();
    for e in shape.entries() {
        let (a, b) = shape.ranges(e);
        let [name_a, name_b] = names(e);
        let view = |range: std::ops::Range<usize>, dims: Vec<usize>| {
            TensorView::new(Dtype::F32, dims, &raw[range.start * 4..range.end * 4]).map_err(failed)
        };
        views.push((name_a, view(a, vec![shape.rank(), e.fan_in])?));
        views.push((name_b, view(b, vec![e.fan_out, shape.rank()])?));
    }
    let recipe = serde_json::to_string(recipe).map_err(failed)?;
    let meta = HashMap::from([(RECIPE.to_owned(), recipe)]);
    serialize(views, Some(meta)).map_err(failed)
}

/// Reads an adapter written by [`to_bytes`] or by PEFT, for a model whose shape `shape` was made
/// from.
pub fn from_bytes(bytes: &[u8], shape: &Arc<AdapterShape>) -> Result<Adapter, ModelError> {
    let file = SafeTensors::deserialize(bytes).map_err(failed)?;
    let mut data = vec![0.0; shape.len()];
    for e in shape.entries() {
        let (a, b) = shape.ranges(e);
        let dims = [[shape.rank(), e.fan_in], [e.fan_out, shape.rank()]];
        for ((name, range), dims) in names(e).into_iter().zip([a, b]).zip(dims) {
            let t = file
                .tensor(&name)
                .map_err(|_| ModelError::tensor(&name, "the adapter file lacks it"))?;
            if t.dtype() != Dtype::F32 || t.shape() != dims {
                return Err(ModelError::tensor(
                    &name,
                    format!("{:?} {:?}, expected F32 {dims:?}", t.dtype(), t.shape()),
                ));
            }
            let values = t
                .data()
                .chunks_exact(4)
                .map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]]));
            data[range].iter_mut().zip(values).for_each(|(d, v)| *d = v);
        }
    }
    Adapter::from_data(shape, data)
}

/// The recipe in an adapter file's metadata, if it was written by Lethe.
pub fn recipe(bytes: &[u8]) -> Result<Option<LoraRecipe>, ModelError> {
    let (_, meta) = SafeTensors::read_metadata(bytes).map_err(failed)?;
    let text = meta
        .metadata()
        .as_ref()
        .and_then(|m| m.get(RECIPE))
        .cloned();
    text.map(|t| serde_json::from_str(&t).map_err(failed))
        .transpose()
}

/// Writes `adapter_model.safetensors` and `adapter_config.json` into `folder`, as PEFT expects
/// them.
pub fn save_peft(
    folder: &Path,
    adapter: &Adapter,
    recipe: &LoraRecipe,
    base: &str,
) -> Result<(), ModelError> {
    std::fs::create_dir_all(folder).map_err(ModelError::io(folder))?;
    let targets: Vec<&str> = recipe
        .targets
        .iter()
        .filter_map(|p| p.module().rsplit('.').next())
        .collect();
    let alpha = adapter.shape().scale() * adapter.shape().rank() as f32;
    let config = serde_json::json!({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base,
        "r": adapter.shape().rank(), "lora_alpha": alpha,
        "lora_dropout": 0.0, "bias": "none", "target_modules": targets, "inference_mode": true,
    });
    let files = [
        ("adapter_model.safetensors", to_bytes(adapter, recipe)?),
        (
            "adapter_config.json",
            serde_json::to_vec_pretty(&config).map_err(failed)?,
        ),
    ];
    for (name, bytes) in files {
        let path = folder.join(name);
        std::fs::write(&path, bytes).map_err(ModelError::io(&path))?;
    }
    Ok(())
}

fn failed(e: impl std::fmt::Display) -> ModelError {
    ModelError::Shape(format!("adapter file: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ModelConfig;
    use lethe_learn::seed::Seed;

    #[test]
    fn round_trip_keeps_every_bit_and_the_recipe() {
        let r = LoraRecipe::default();
        let shape = AdapterShape::new(&ModelConfig::tiny(), &r, |_| true);
        let mut x = Adapter::init(&shape, &Seed::from_u64(3));
        x.data
            .iter_mut()
            .enumerate()
            .for_each(|(i, v)| *v += i as f32);
        let bytes = to_bytes(&x, &r).expect("writes");
        assert_eq!(bytes, to_bytes(&x, &r).expect("writes"));
        assert_eq!(from_bytes(&bytes, &shape).expect("reads"), x);
        assert_eq!(recipe(&bytes).expect("reads"), Some(r));
        assert!(from_bytes(&bytes[..100], &shape).is_err());
    }
}
