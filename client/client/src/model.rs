//! What clients of one process share: device layers, tokenizer, public catalogue.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

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
    /// Items of histories that the catalogue lacks, as far as they were named.
    missing: Mutex<BTreeSet<String>>,
}

/// Items that are named in warnings at most.
const NAMED: usize = 1_000;

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
        let encoder = Encoder::new(source.tokenizer()?, Template::movie())?
            .within(source.config().max_positions);
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
            missing: Mutex::default(),
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

    /// Whether the catalogue has an item of a history. It may have left the catalogue since it was
    /// recorded: that is said once.
    pub(crate) fn knows(&self, id: &str) -> bool {
        if self.index.contains_key(id) {
            return true;
        }
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        if missing.len() < NAMED && missing.insert(id.to_owned()) {
            tracing::warn!(
                item = id,
                "an item of the history is not in the catalogue: it is left out of prompts"
            );
        }
        false
    }

    /// The prompt that asks about `target` after `history`, less items that left the catalogue.
    ///
    /// # Errors
    /// [`ClientError::UnknownItem`] for a target that the catalogue lacks.
    pub(crate) fn prompt(
        &self,
        history: &[LocalEvent],
        target: &str,
    ) -> Result<Prompt, ClientError> {
        let label = |id: &str| self.position(id).map(|i| self.items[i].label());
        let side = |want: bool| {
            history
                .iter()
                .filter(|e| e.liked == want && self.knows(&e.item))
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

#[cfg(test)]
mod tests {
    use lethe_model::config::ModelConfig;
    use lethe_model::source::RandomWeights;

    use super::*;

    fn model(items: &[&str]) -> ClientModel {
        let source = RandomWeights::new(ModelConfig::tiny(), 1);
        let split = SplitSpec { k_in: 1, k_out: 1 };
        let item = |id: &&str| Item {
            id: (*id).to_owned(),
            title: format!("Item {id}"),
            year: None,
            tags: vec![],
        };
        let items: Vec<Item> = items.iter().map(item).collect();
        let index = items.iter().enumerate().map(|(i, x)| (x.id.clone(), i));
        ClientModel {
            device: DeviceModel::load(&source, split, Compute::F32).expect("loads"),
            encoder: Encoder::of_bytes(Template::movie(), 256),
            digest: Digest::default(),
            features: vec![],
            index: index.collect(),
            items,
            missing: Mutex::default(),
        }
    }

    #[test]
    fn items_that_left_the_catalogue_are_left_out_of_prompts() {
        let model = model(&["1", "3"]);
        let event = |item: &str, liked: bool| LocalEvent {
            item: item.into(),
            liked,
            time: 0,
        };
        let history = [event("1", true), event("2", true), event("4", false)];
        let prompt = model.prompt(&history, "3").expect("the target is there");
        assert_eq!(prompt.liked, ["Item 1"]);
        assert!(prompt.disliked.is_empty());
        assert_eq!(prompt.target, "Item 3");
        let named: Vec<String> = model
            .missing
            .lock()
            .expect("free")
            .iter()
            .cloned()
            .collect();
        assert_eq!(named, ["2", "4"], "each is said once");
        let target = model.prompt(&history, "2");
        assert!(matches!(target, Err(ClientError::UnknownItem(id)) if id == "2"));
    }
}
