//! What an epoch's recipe, model and catalogue make, computed once: the shape of its adapters, how
//! they are divided, the anchors of its partition.

use std::collections::BTreeMap;
use std::sync::Arc;

use lethe_learn::partition::{anchors, centre};
use lethe_learn::seed::Seed;
use lethe_ledger::EpochNo;
use lethe_model::config::ModelConfig;
use lethe_model::lora::AdapterShape;
use lethe_recipe::Recipe;
use lethe_recsys::data::Item;
use lethe_recsys::features::item_features;

use crate::CoordinatorError;
use crate::content::TrainState;
use crate::rounds::{Whole, initial};

/// Everything of one epoch that does not change.
pub(crate) struct Kit {
    pub(crate) recipe: Arc<Recipe>,
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
        model: &ModelConfig,
        items: &[Item],
    ) -> Result<Self, CoordinatorError> {
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
        })
    }
}
