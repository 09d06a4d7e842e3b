//! From the contributions of a round to the shard's next state. Pure, streamed, in the order of subjects.

use lethe_learn::aggregate::{Accumulator, ServerAdam, fedavg_weights};
use lethe_learn::balance::{learning_speeds, mixing_matrix, shared_weights, similarities};
use lethe_recipe::{Aggregation, Recipe};

use crate::CoordinatorError;
use crate::records::TrainState;

/// What is kept in memory of a contribution: a sketch of fixed size, not the update.
#[derive(Clone, Debug)]
pub(crate) struct Contribution {
    pub(crate) sketch: Vec<f32>,
    pub(crate) loss: f32,
    pub(crate) samples: u32,
}

/// One weight per contribution.
pub(crate) fn weights(recipe: &Recipe, round: u32, contributions: &[&Contribution]) -> Vec<f32> {
    match recipe.aggregation {
        Aggregation::Fedavg => fedavg_weights(&contributions.iter().map(|c| c.samples).collect::<Vec<_>>()),
        Aggregation::Shared => {
            let losses: Vec<f64> = contributions.iter().map(|c| f64::from(c.loss)).collect();
            let sketches: Vec<&[f32]> = contributions.iter().map(|c| &c.sketch[..]).collect();
            let speeds = learning_speeds(&recipe.balance, &losses, round);
            shared_weights(&mixing_matrix(&speeds, &similarities(&sketches)), contributions.len())
        }
    }
}

/// Applies a round: `load(i)` reads the i-th update, one at a time. A round without contributions changes nothing.
pub(crate) fn apply(
    recipe: &Recipe,
    state: &mut TrainState,
    contributions: &[&Contribution],
    mut load: impl FnMut(usize) -> Result<Vec<f32>, CoordinatorError>,
) -> Result<(), CoordinatorError> {
    let round = state.losses.len() as u32;
    if !contributions.is_empty() {
        let mut sum = Accumulator::new(state.theta.len());
        for (i, w) in weights(recipe, round, contributions).into_iter().enumerate() {
            sum.add(w, &load(i)?)?;
        }
        state.step += 1;
        let adam =
            ServerAdam { first: &mut state.first, second: &mut state.second, step: state.step, lr: recipe.server_lr };
        adam.apply(&mut state.theta, &sum.finish());
    }
    // Not a number for a round in which nobody could take part (an empty slice): it has no loss.
    let n = contributions.len() as f32;
    state.losses.push(contributions.iter().map(|c| c.loss).sum::<f32>() / n);
    Ok(())
}
