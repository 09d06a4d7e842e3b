//! Adapters as files: safetensors with PEFT's tensor names and the recipe in the metadata.
//! [`crate::peft`] has the folders that PEFT reads and writes.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

use safetensors::serialize;
use safetensors::tensor::{Dtype, TensorView};

use crate::ModelError;
use crate::dtype::dequantise;
use crate::files::quoted;
use crate::files::tensors::{Header, header};
use crate::lora::{Adapter, AdapterShape, Entry, LoraRecipe};

/// Metadata key of the recipe.
const RECIPE: &str = "lethe.lora_recipe";

/// Names of A and B of a pair.
pub(crate) fn names(e: &Entry) -> [String; 2] {
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

/// Reads an adapter written by [`to_bytes`], for a model whose shape `shape` was made from. The
/// tensors of an adapter do not say how they are scaled, nor what else belongs to them: in our
/// files the metadata does, in PEFT's folders `adapter_config.json`, which [`crate::peft::open`]
/// reads.
///
/// # Errors
/// [`ModelError`] if there is no recipe in the metadata, or one with another scale than `shape`,
/// and if a tensor is missing, has another shape or type, or is none of the adapter's.
pub fn from_bytes(bytes: &[u8], shape: &Arc<AdapterShape>) -> Result<Adapter, ModelError> {
    let path = Path::new("the adapter file");
    let header = read_header(bytes)?;
    let own = recipe_of(&header)?.ok_or_else(|| {
        ModelError::refused(
            path,
            "no recipe of Lethe is in it, and its tensors do not say how they are scaled",
            "read PEFT's folder, with its adapter_config.json (lethe_model::peft::open)",
        )
    })?;
    let scale = own.alpha / own.rank.max(1) as f32;
    if scale != shape.scale() {
        return Err(ModelError::Shape(format!(
            "the adapter was trained with scale {scale}, and is read for one of {}: give the \
             recipe that it was trained with",
            shape.scale()
        )));
    }
    check(path, &header, shape)?;
    let mut data = vec![0.0; shape.len()];
    for e in shape.entries() {
        let (a, b) = shape.ranges(e);
        for (name, range) in names(e).into_iter().zip([a, b]) {
            let Some(stored) = header.tensors.get(&name) else {
                continue;
            };
            let start = usize::try_from(stored.start).unwrap_or(usize::MAX);
            let raw = bytes.get(start..).unwrap_or_default();
            let raw = raw.get(..stored.bytes as usize).unwrap_or_default();
            let values = dequantise(stored.dtype(path, &name)?, raw, range.len())?;
            data[range].copy_from_slice(&values);
        }
    }
    Adapter::from_data(shape, data)
}

/// Checks that the tensors of a file are those of `shape`, each with its shape and a type that is
/// read.
pub(crate) fn check(path: &Path, header: &Header, shape: &AdapterShape) -> Result<(), ModelError> {
    let mut known = BTreeSet::new();
    for e in shape.entries() {
        let dims = [[shape.rank(), e.fan_in], [e.fan_out, shape.rank()]];
        for (name, dims) in names(e).into_iter().zip(dims) {
            let stored = header
                .tensors
                .get(&name)
                .ok_or_else(|| ModelError::tensor(&name, "the adapter file lacks it"))?;
            if stored.shape != dims.map(|d| d as u64) {
                let why = format!("shape {:?}, expected {dims:?}", stored.shape);
                return Err(ModelError::tensor(&name, why));
            }
            stored.dtype(path, &name)?;
            known.insert(name);
        }
    }
    match header
        .tensors
        .iter()
        .find(|(name, _)| !known.contains(*name))
    {
        None => Ok(()),
        Some((name, stored)) => Err(ModelError::refused(
            path,
            format!("tensor {} of shape {:?}", quoted(name), stored.shape),
            "not a part of the adapter that is expected: it would be left out, and the adapter \
             would be another one",
        )),
    }
}

fn read_header(bytes: &[u8]) -> Result<Header, ModelError> {
    let path = Path::new("the adapter file");
    header(path, &mut &bytes[..], bytes.len() as u64)
}

/// The recipe that Lethe wrote into the metadata, if it did.
pub(crate) fn recipe_of(header: &Header) -> Result<Option<LoraRecipe>, ModelError> {
    let text = header.metadata.get(RECIPE);
    text.map(|t| serde_json::from_str(t).map_err(failed))
        .transpose()
}

/// The recipe in an adapter file's metadata, if it was written by Lethe.
///
/// # Errors
/// [`ModelError`] if the bytes are no such file.
pub fn recipe(bytes: &[u8]) -> Result<Option<LoraRecipe>, ModelError> {
    recipe_of(&read_header(bytes)?)
}

/// Writes a folder as PEFT reads it: [`crate::peft::save`].
///
/// # Errors
/// [`ModelError`] if it cannot be written.
pub fn save_peft(
    folder: &Path,
    adapter: &Adapter,
    recipe: &LoraRecipe,
    base: &str,
) -> Result<(), ModelError> {
    crate::peft::save(folder, adapter, recipe, base)
}

pub(crate) fn failed(e: impl std::fmt::Display) -> ModelError {
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
