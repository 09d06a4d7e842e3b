//! What the ledger knows of a recipe.

use lethe_ledger::{Aggregation, Placement, Terms};
use lethe_recipe::Recipe;

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

/// What tests found an epoch with: two shards of two slices, two rounds each.
#[cfg(test)]
pub(crate) fn small(seed: u64, aggregation: Aggregation) -> Terms {
    Terms {
        shards: 2,
        anchors: 1,
        slices: 2,
        placement: Placement::Hash,
        rounds: 2,
        cohort: 4,
        goal: None,
        staleness: None,
        quorum: 1,
        deadline_s: 5,
        validation: 1,
        samples: 8,
        hidden: 2,
        seed,
        aggregation,
        feeds_back: false,
    }
}
