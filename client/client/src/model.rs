//! What clients of one process share: device layers, tokenizer, public catalogue.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use lethe_model::kernels::panels::Compute;
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

/// How the device's part is loaded; the default is that of the default recipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelOptions {
    /// Which layers the device holds.
    pub split: SplitSpec,
    /// Arithmetic of the products with frozen weights.
    pub compute: Compute,
}

impl Default for ModelOptions {
    fn default() -> Self {
        let recipe = Recipe::default();
        Self {
            split: recipe.split,
            compute: recipe.compute,
        }
    }
}

impl ClientModel {
    /// Loads the device's part of `model` (GGUF file or Hugging Face folder) and the item catalogue
    /// of a data folder. The options must be those of the coordinator's recipe.
    pub fn load(
        model: &Path,
        catalogue: &Path,
        options: ModelOptions,
    ) -> Result<Arc<Self>, ClientError> {
        let source = open(model)?;
        let device = DeviceModel::load(source.as_ref(), options.split, options.compute)?;
        let items = load_items(catalogue, &DataSpec::of_folder(catalogue)?)?;
        let mut features = item_features(&items);
        lethe_learn::partition::centre(&mut features);
        let digest = model_digest(model).map_err(|source| ClientError::Io {
            path: model.to_owned(),
            source,
        })?;
        let encoder = Encoder::new(source.tokenizer()?, Template::movie())?;
        let index = items
            .iter()
            .enumerate()
            .map(|(i, x)| (x.id.clone(), i))
            .collect();
        Ok(Arc::new(Self {
            device,
            encoder,
            digest,
            items,
            features,
            index,
        }))
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
        self.index
            .get(id)
            .copied()
            .ok_or_else(|| ClientError::UnknownItem(id.to_owned()))
    }

    /// The prompt that asks about `target` after `history`.
    pub(crate) fn prompt(
        &self,
        history: &[LocalEvent],
        target: &str,
    ) -> Result<Prompt, ClientError> {
        let label = |id: &str| self.position(id).map(|i| self.items[i].label());
        let side = |want: bool| {
            history
                .iter()
                .filter(|e| e.liked == want)
                .map(|e| label(&e.item))
                .collect::<Result<_, _>>()
        };
        Ok(Prompt {
            liked: side(true)?,
            disliked: side(false)?,
            target: label(target)?,
        })
    }
}
