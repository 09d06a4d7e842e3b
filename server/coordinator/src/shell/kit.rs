//! What an epoch's recipe, model and catalogue make, computed once: the shape of its adapters, how
//! they are divided, the anchors of its partition.

use std::collections::BTreeMap;
use std::sync::Arc;

use lethe_learn::partition::{anchors, centre};
use lethe_learn::seed::Seed;
use lethe_ledger::{Aggregation, EpochNo, Placement, Terms};
use lethe_model::config::ModelConfig;
use lethe_model::lora::AdapterShape;
use lethe_recipe::Recipe;
use lethe_recsys::data::Item;
use lethe_recsys::features::item_features;

use crate::CoordinatorError;
use crate::records::TrainState;
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
        let mut features = item_features(items);
        centre(&mut features);
        let seed = Seed::from_u64(recipe.seed).derive("anchors", &[]);
        let anchors = anchors(&features, recipe.anchors, &seed)?;
        let shape = AdapterShape::new(model, &recipe.lora, |_| true);
        Ok(Self {
            whole: Whole::new(&recipe, &shape, model.layers),
            initial: Arc::new(initial(&recipe, &shape)),
            recipe: Arc::new(recipe),
            anchors,
        })
    }
}

/// The numbers of a recipe that decide; `anchors` are those that the catalogue has given.
pub(crate) fn terms(recipe: &Recipe, anchors: usize, hidden: usize) -> Terms {
    let small = |n: usize| u16::try_from(n).unwrap_or(u16::MAX);
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Terms {
        shards: small(recipe.shards),
        anchors: small(anchors),
        slices: small(recipe.slices),
        placement: match recipe.placement {
            lethe_recipe::Placement::Hash => Placement::Hash,
            lethe_recipe::Placement::Tenure => Placement::Tenure,
        },
        rounds: small(recipe.rounds),
        cohort: count(recipe.cohort),
        goal: recipe.goal.map(count),
        staleness: recipe.staleness.map(small),
        quorum: count(recipe.quorum),
        deadline_s: recipe.deadline_s,
        validation: count(recipe.validation),
        samples: count(recipe.local.samples),
        hidden: count(hidden),
        seed: recipe.seed,
        aggregation: match recipe.aggregation {
            lethe_recipe::Aggregation::Shared => Aggregation::Shared,
            lethe_recipe::Aggregation::Fedavg => Aggregation::Fedavg,
            lethe_recipe::Aggregation::Personalized => Aggregation::Personalized,
        },
        feeds_back: recipe.updates.feeds_back(),
    }
}
