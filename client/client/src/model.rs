//! What clients of one process share: device layers, tokenizer, public catalogue.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use lethe_model::source::open;
use lethe_model::split::{DeviceModel, SplitSpec};
use lethe_proto::ids::Digest;
use lethe_recipe::{Recipe, model_digest};
use lethe_recsys::data::{DataSpec, Item, load_items};
use lethe_recsys::features::item_features;
use lethe_recsys::prompt::{Prompt, Template};

use crate::ClientError;
use crate::encode::Encoder;
use crate::history::LocalEvent;

/// Frozen weights of the device's layers, the tokenizer and the catalogue.
#[derive(Debug)]
pub struct ClientModel {
    pub(crate) device: DeviceModel,
    pub(crate) encoder: Encoder,
    pub(crate) digest: Digest,
    pub(crate) items: Vec<Item>,
    pub(crate) features: Vec<Vec<f32>>,
    index: HashMap<String, usize>,
}

impl ClientModel {
    /// Loads the device's part of `model` (GGUF file or Hugging Face folder) and the item catalogue of a data folder.
    pub fn load(model: &Path, catalogue: &Path, split: Option<SplitSpec>) -> Result<Arc<Self>, ClientError> {
        let source = open(model)?;
        let split = split.unwrap_or(Recipe::default().split);
        let device = DeviceModel::load(source.as_ref(), split)?;
        let items = load_items(catalogue, &DataSpec::of_folder(catalogue)?)?;
        let mut features = item_features(&items);
        lethe_learn::partition::centre(&mut features);
        let digest = model_digest(model).map_err(|source| ClientError::Io { path: model.to_owned(), source })?;
        let encoder = Encoder::new(source.tokenizer()?, Template::movie())?;
        let index = items.iter().enumerate().map(|(i, x)| (x.id.clone(), i)).collect();
        Ok(Arc::new(Self { device, encoder, digest, items, features, index }))
    }

    /// Memory of the weights, in bytes.
    pub fn weight_bytes(&self) -> usize {
        self.device.weight_bytes()
    }

    /// The catalogue's item.
    pub fn item(&self, id: &str) -> Option<&Item> {
        self.index.get(id).map(|i| &self.items[*i])
    }

    pub(crate) fn position(&self, id: &str) -> Result<usize, ClientError> {
        self.index.get(id).copied().ok_or_else(|| ClientError::UnknownItem(id.to_owned()))
    }

    /// The prompt that asks about `target` after `history`.
    pub(crate) fn prompt(&self, history: &[LocalEvent], target: &str) -> Result<Prompt, ClientError> {
        let label = |id: &str| self.position(id).map(|i| self.items[i].label());
        let side =
            |want: bool| history.iter().filter(|e| e.liked == want).map(|e| label(&e.item)).collect::<Result<_, _>>();
        Ok(Prompt { liked: side(true)?, disliked: side(false)?, target: label(target)? })
    }
}
