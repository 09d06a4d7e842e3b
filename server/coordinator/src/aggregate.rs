//! From the contributions of a round to the shard's next state. Pure, streamed, in the order of
//! subjects.

use std::ops::Range;

use lethe_learn::aggregate::{Accumulator, ServerAdam, fedavg_weights};
use lethe_learn::balance::{
    learning_speeds, mixing_matrix, personalized, shared_weights_of, similarities,
};
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

/// PPLR's mixing matrix of a round, `[n, n]`.
fn mixing(recipe: &Recipe, round: u32, contributions: &[&Contribution]) -> Vec<f64> {
    let losses: Vec<f64> = contributions.iter().map(|c| f64::from(c.loss)).collect();
    let sketches: Vec<&[f32]> = contributions.iter().map(|c| &c.sketch[..]).collect();
    let speeds = learning_speeds(&recipe.balance, &losses, round);
    mixing_matrix(&speeds, &similarities(&sketches))
}

/// One weight per contribution.
fn weights(recipe: &Recipe, round: u32, contributions: &[&Contribution]) -> Vec<f32> {
    match recipe.aggregation {
        Aggregation::Fedavg => {
            fedavg_weights(&contributions.iter().map(|c| c.samples).collect::<Vec<_>>())
        }
        Aggregation::Shared | Aggregation::Personalized => {
            let losses: Vec<f64> = contributions.iter().map(|c| f64::from(c.loss)).collect();
            let sketches: Vec<&[f32]> = contributions.iter().map(|c| &c.sketch[..]).collect();
            shared_weights_of(&learning_speeds(&recipe.balance, &losses, round), &sketches)
        }
    }
}

/// Mode `personalized`: the contributors' next parameters from a snapshot of their present ones
/// (`thetas`); the shard's becomes their mean.
pub(crate) fn apply_personalized(
    recipe: &Recipe,
    state: &mut TrainState,
    contributions: &[&Contribution],
    thetas: &[Vec<f32>],
) -> Vec<Vec<f32>> {
    let round = state.losses.len() as u32;
    let next = personalized(&mixing(recipe, round, contributions), thetas);
    let n = next.len() as f32;
    if !next.is_empty() {
        state.theta.fill(0.0);
        for theta in &next {
            state
                .theta
                .iter_mut()
                .zip(theta)
                .for_each(|(s, t)| *s += t / n);
        }
        state.step += 1;
    }
    record_loss(state, contributions);
    next
}

/// Not a number for a round in which nobody could take part (an empty slice): it has no loss.
fn record_loss(state: &mut TrainState, contributions: &[&Contribution]) {
    let n = contributions.len() as f32;
    state
        .losses
        .push(contributions.iter().map(|c| c.loss).sum::<f32>() / n);
}

/// Most values of updates in memory at once while a round is added up.
const AT_ONCE: usize = 8 << 20;

/// Applies a round: `load(range)` reads some updates, few enough to be in memory together; they are
/// added in their order. A round without contributions changes nothing. An update that is so many
/// rounds late counts `1 / sqrt(1 + rounds)` of its weight (FedBuff; Nguyen et al., AISTATS 2022,
/// section 5).
pub(crate) fn apply(
    recipe: &Recipe,
    state: &mut TrainState,
    (contributions, late): (&[&Contribution], &[u16]),
    mut load: impl FnMut(Range<usize>) -> Result<Vec<Vec<f32>>, CoordinatorError>,
) -> Result<(), CoordinatorError> {
    let round = state.losses.len() as u32;
    if !contributions.is_empty() {
        let mut sum = Accumulator::new(state.theta.len());
        let (weights, together) = (
            weights(recipe, round, contributions),
            (AT_ONCE / state.theta.len().max(1)).max(1),
        );
        for start in (0..weights.len()).step_by(together) {
            let range = start..(start + together).min(weights.len());
            let factors = late[range.clone()]
                .iter()
                .map(|rounds| 1.0 / (1.0 + f32::from(*rounds)).sqrt());
            for ((w, factor), delta) in weights[range.clone()].iter().zip(factors).zip(load(range)?)
            {
                sum.add(w * factor, &delta)?;
            }
        }
        state.step += 1;
        let adam = ServerAdam {
            first: &mut state.first,
            second: &mut state.second,
            step: state.step,
            lr: recipe.server_lr,
        };
        adam.apply(&mut state.theta, &sum.finish());
    }
    record_loss(state, contributions);
    Ok(())
}
