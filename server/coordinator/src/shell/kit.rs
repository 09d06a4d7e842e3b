//! What an epoch's recipe, model and catalogue make, computed once: the shape of its adapters, how
//! they are divided, the anchors of its partition.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lethe_learn::partition::{anchors, centre};
use lethe_learn::seed::Seed;
use lethe_ledger::{AskedBy, CatalogueVersion, Command, EpochNo};
use lethe_model::config::ModelConfig;
use lethe_model::lora::AdapterShape;
use lethe_proto::ids::Digest;
use lethe_recipe::{Recipe, model_digest};
use lethe_recsys::data::Item;
use lethe_recsys::features::item_features;

use crate::CoordinatorError;
use crate::content::TrainState;
use crate::middle::LayersKey;
use crate::rounds::{Whole, initial};
use crate::terms::terms;

/// A base model, as far as an epoch needs it before its layers are loaded.
#[derive(Clone, Debug)]
pub(crate) struct BaseModel {
    pub(crate) digest: Digest,
    pub(crate) config: ModelConfig,
    /// Its file or folder; none: the configured one.
    pub(crate) path: Option<PathBuf>,
}

impl BaseModel {
    /// What is in this file or folder.
    pub(crate) fn read(path: &Path) -> Result<Self, CoordinatorError> {
        let config = lethe_model::source::open(path)?.config().clone();
        let digest = model_digest(path).map_err(CoordinatorError::ModelFile)?;
        Ok(Self {
            digest,
            config,
            path: Some(path.to_owned()),
        })
    }
}

/// Everything of one epoch that does not change.
pub(crate) struct Kit {
    pub(crate) recipe: Arc<Recipe>,
    pub(crate) base: BaseModel,
    /// The version of the catalogue that the anchors are made from.
    pub(crate) catalogue: CatalogueVersion,
    pub(crate) whole: Whole,
    pub(crate) anchors: Vec<Vec<f32>>,
    /// What every shard starts from.
    pub(crate) initial: Arc<TrainState>,
}

/// The kits of all epochs.
pub(crate) type Kits = BTreeMap<EpochNo, Arc<Kit>>;

impl Kit {
    /// For a recipe, on the model and the catalogue of this coordinator.
    pub(crate) fn new(
        recipe: Recipe,
        base: BaseModel,
        items: &[Item],
        catalogue: CatalogueVersion,
    ) -> Result<Self, CoordinatorError> {
        let model = &base.config;
        recipe.split.check(model.layers)?;
        recipe.check_masked(model.layers)?;
        let mut features = item_features(items);
        centre(&mut features);
        let seed = Seed::from_u64(recipe.seed).derive("anchors", &[]);
        let anchors = anchors(&features, recipe.anchors, &seed)?;
        let shape = AdapterShape::new(model, &recipe.lora, |_| true);
        recipe.check_masked_work(shape.len())?;
        Ok(Self {
            whole: Whole::new(&recipe, &shape, model.layers),
            initial: Arc::new(initial(&recipe, &shape)),
            recipe: Arc::new(recipe),
            anchors,
            base,
            catalogue,
        })
    }

    /// The layers that the coordinator computes.
    pub(crate) fn layers_key(&self) -> LayersKey {
        let recipe = &self.recipe;
        LayersKey {
            model: self.base.digest,
            split: recipe.split,
            compute: recipe.compute,
            cut: recipe.lora.first_trained(self.base.config.layers),
        }
    }

    /// The command that founds an epoch with it.
    pub(crate) fn founds(&self, asked: Option<AskedBy>) -> Command {
        let recipe = &self.recipe;
        let base = self.base.path.as_ref();
        Command::FoundEpoch {
            terms: terms(recipe, self.anchors.len(), self.base.config.hidden),
            recipe: recipe.to_json(),
            recipe_digest: recipe.digest(),
            model: self.base.digest,
            initial: Digest::of_values(&self.initial.theta),
            catalogue: self.catalogue,
            base: base.map(|path| path.to_string_lossy().into_owned()),
            asked,
        }
    }
}
