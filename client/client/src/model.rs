//! What clients of one process share of the language model: device layers and tokenizer.

use std::path::Path;
use std::sync::Arc;

use lethe_model::engine::Engine;
use lethe_model::kernels::panels::Compute;
use lethe_model::source::open;
use lethe_model::split::{DeviceModel, SplitSpec};
use lethe_proto::ids::Digest;
use lethe_recipe::{Recipe, model_digest};
use lethe_recsys::prompt::{Prompt, Template};

use crate::encode::Encoder;
use crate::history::TrainingEvent;
use crate::{Catalogue, ClientError};

/// Frozen weights of the device's layers, and the tokenizer.
#[derive(Debug)]
pub struct ClientModel {
    pub(crate) device: DeviceModel,
    pub(crate) encoder: Encoder,
    pub(crate) digest: Digest,
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
    /// Loads the device's part of `model` (GGUF file or Hugging Face folder), on the engine that
    /// the environment variable `LETHE_DEVICE` names, or on [`Engine::compact`]. The options must
    /// be those of the coordinator's recipe.
    ///
    /// # Errors
    /// As [`Self::load_on`]; [`ClientError::Model`] if there is no such engine.
    pub fn load(model: &Path, options: ModelOptions) -> Result<Arc<Self>, ClientError> {
        Self::load_on(&Engine::of_app()?, model, options)
    }

    /// Like [`Self::load`], on an engine that the app chooses.
    ///
    /// # Errors
    /// [`ClientError::Model`] if the model cannot be read, or not run so; [`ClientError::Io`].
    pub fn load_on(
        engine: &Engine,
        model: &Path,
        options: ModelOptions,
    ) -> Result<Arc<Self>, ClientError> {
        let source = open(model)?;
        let device = DeviceModel::load_on(engine, source.as_ref(), options.split, options.compute)?;
        let digest = model_digest(model).map_err(|source| ClientError::Io {
            path: model.to_owned(),
            source,
        })?;
        let encoder = Encoder::new(source.tokenizer()?, Template::movie())?
            .within(source.config().max_positions);
        Ok(Arc::new(Self {
            device,
            encoder,
            digest,
        }))
    }

    /// Memory of the weights, in bytes.
    pub fn weight_bytes(&self) -> usize {
        self.device.weight_bytes()
    }

    /// The prompt that asks about `target` after `history`, less items that left the catalogue.
    ///
    /// # Errors
    /// [`ClientError::UnknownItem`] for a target that the catalogue lacks.
    pub(crate) fn prompt(
        &self,
        catalogue: &Catalogue,
        history: &[TrainingEvent],
        target: &str,
    ) -> Result<Prompt, ClientError> {
        let label = |id: &str| catalogue.position(id).map(|i| catalogue.at(i).label());
        let side = |want: bool| {
            history
                .iter()
                .filter(|e| e.liked == want && catalogue.knows(&e.item))
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
    use lethe_parts::event::EventTable;
    use lethe_recsys::data::Item;

    use super::*;

    #[test]
    fn items_that_left_the_catalogue_are_left_out_of_prompts() {
        let source = RandomWeights::new(ModelConfig::tiny(), 1);
        let split = SplitSpec { k_in: 1, k_out: 1 };
        let model = ClientModel {
            device: DeviceModel::load(&source, split, Compute::F32).expect("loads"),
            encoder: Encoder::of_bytes(Template::movie(), 256),
            digest: Digest::default(),
        };
        let item = |id: &str| Item {
            id: id.to_owned(),
            title: format!("Item {id}"),
            year: None,
            tags: vec![],
        };
        let items = vec![item("1"), item("3")];
        let catalogue = Catalogue::new(items, &EventTable::default(), None).expect("a table");
        let event = |item: &str, liked: bool| TrainingEvent {
            item: item.into(),
            liked,
            time: 0,
        };
        let history = [event("1", true), event("2", true), event("4", false)];
        let prompt = model.prompt(&catalogue, &history, "3");
        let prompt = prompt.expect("the target is there");
        assert_eq!(prompt.liked, ["Item 1"]);
        assert!(prompt.disliked.is_empty());
        assert_eq!(prompt.target, "Item 3");
        assert_eq!(catalogue.missing(), ["2", "4"], "each is said once");
        let target = model.prompt(&catalogue, &history, "2");
        assert!(matches!(target, Err(ClientError::UnknownItem(id)) if id == "2"));
    }
}
