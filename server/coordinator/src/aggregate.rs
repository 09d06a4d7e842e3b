//! From the contributions of a round to the shard's next state. Pure, streamed, in the order of
//! subjects.

use std::ops::Range;

use lethe_learn::aggregate::{ServerAdam, fedavg_weights};
use lethe_learn::balance::{
    learning_speeds, mixing_matrix, personalized, shared_weights_of, similarities,
};
use lethe_recipe::{Aggregation, Recipe};

use crate::CoordinatorError;
use crate::content::TrainState;

mod robust;

use robust::{Scale, Updates};

/// What is kept in memory of a contribution: a sketch of fixed size, not the update.
#[derive(Clone, Debug)]
pub(crate) struct Contribution {
    pub(crate) sketch: Vec<f32>,
    pub(crate) loss: f32,
    pub(crate) samples: u32,
    /// Length of the update (L2 norm), after the recipe's absolute bound.
    pub(crate) norm: f32,
}

/// Rounds before this one whose medians count in the running median.
const ROUNDS_BACK: usize = 8;

/// The bound on a round's updates: a factor of the running median of their lengths (norm bounding;
/// Sun et al., arXiv 1911.07963, with a bound that follows the updates). One long update would
/// otherwise outweigh all others, and the server's Adam would follow its sign everywhere.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Clip(f32);

impl Clip {
    /// From the medians of the rounds before, oldest first, and this round's updates.
    pub(crate) fn of(recipe: &Recipe, before: &[f32], contributions: &[&Contribution]) -> Self {
        let recent = &before[before.len().saturating_sub(ROUNDS_BACK)..];
        let now = contributions.iter().map(|c| c.norm);
        let running = median(recent.iter().copied().chain(now).collect());
        match (recipe.clip_factor, running) {
            (Some(factor), Some(median)) => Self(factor * median),
            _ => Self(f32::INFINITY),
        }
    }

    /// What an update is scaled by.
    pub(crate) fn factor(&self, c: &Contribution) -> f32 {
        if c.norm > self.0 {
            self.0 / c.norm
        } else {
            1.0
        }
    }
}

/// The lower median: of two, the smaller. Half of the updates cannot raise it beyond the others.
fn median(mut values: Vec<f32>) -> Option<f32> {
    values.sort_by(f32::total_cmp);
    values.get(values.len().checked_sub(1)? / 2).copied()
}

/// The median length of a round's updates; `None` when there are none.
pub(crate) fn median_norm(contributions: &[&Contribution]) -> Option<f32> {
    median(contributions.iter().map(|c| c.norm).collect())
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
/// added in their order, or combined by the recipe's robust rule. A round without contributions
/// changes nothing. An update that is so many rounds `late` counts `1 / sqrt(1 + rounds)` of its
/// weight (FedBuff; Nguyen et al., AISTATS 2022, section 5).
pub(crate) fn apply(
    recipe: &Recipe,
    state: &mut TrainState,
    contributions: &[&Contribution],
    late: &[u16],
    clip: &Clip,
    mut load: impl FnMut(Range<usize>) -> Result<Vec<Vec<f32>>, CoordinatorError>,
) -> Result<(), CoordinatorError> {
    let round = state.losses.len() as u32;
    if !contributions.is_empty() {
        let aged = |late: u16| 1.0 / (1.0 + f32::from(late)).sqrt();
        let scale = |i: usize| Scale {
            aged: aged(late[i]),
            clip: clip.factor(contributions[i]),
        };
        let scales: Vec<Scale> = (0..contributions.len()).map(scale).collect();
        let updates = Updates {
            recipe,
            round,
            contributions,
            scales: &scales,
            values: state.theta.len(),
            at_once: AT_ONCE,
            load: &mut load,
        };
        let mean = updates.combined()?;
        step(recipe, state, &mean);
    }
    record_loss(state, contributions);
    Ok(())
}

/// The server's step on what a round's updates come to.
fn step(recipe: &Recipe, state: &mut TrainState, mean: &[f32]) {
    state.step += 1;
    let adam = ServerAdam {
        first: &mut state.first,
        second: &mut state.second,
        step: state.step,
        lr: recipe.server_lr,
    };
    adam.apply(&mut state.theta, mean);
}

/// Applies a round of which only the sum is known: the weighted mean of its updates, and the mean
/// of their losses. Nobody counts: nothing changes.
pub(crate) fn apply_mean(recipe: &Recipe, state: &mut TrainState, mean: Option<&Mean>) {
    if let Some(mean) = mean {
        step(recipe, state, &mean.values);
    }
    state.losses.push(mean.map_or(f32::NAN, |m| m.loss));
}

/// What a round's updates come to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Mean {
    /// `[values]`.
    pub(crate) values: Vec<f32>,
    /// In nats.
    pub(crate) loss: f32,
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALUES: usize = 4096;

    fn update(norm: f32) -> Contribution {
        Contribution {
            sketch: vec![1.0],
            loss: 0.5,
            samples: 4,
            norm,
        }
    }

    fn state() -> TrainState {
        TrainState {
            theta: vec![0.0; VALUES],
            first: vec![0.0; VALUES],
            second: vec![0.0; VALUES],
            step: 0,
            losses: vec![],
        }
    }

    /// Share of coordinates whose sign one attacker among 16 sets, with a cohort of honest updates
    /// of length 1 and the attacker's of length `long`.
    fn turned(recipe: &Recipe, long: f32) -> f64 {
        let mut rng = lethe_learn::seed::Seed::from_u64(7).rng();
        let mut deltas: Vec<Vec<f32>> = (0..16)
            .map(|_| (0..VALUES).map(|_| rng.normal()).collect())
            .collect();
        for (i, d) in deltas.iter_mut().enumerate() {
            let length = lethe_learn::aggregate::norm(d);
            let wanted = if i == 0 { long } else { 1.0 };
            d.iter_mut().for_each(|v| *v *= wanted / length);
        }
        let run = |deltas: &[Vec<f32>]| {
            let norms = deltas.iter().map(|d| lethe_learn::aggregate::norm(d));
            let all: Vec<Contribution> = norms.map(update).collect();
            let refs: Vec<&Contribution> = all.iter().collect();
            let mut state = state();
            let clip = Clip::of(recipe, &[], &refs);
            let late = vec![0; refs.len()];
            apply(recipe, &mut state, &refs, &late, &clip, |r| {
                Ok(deltas[r].to_vec())
            })
            .expect("applies");
            state.theta
        };
        let with = run(&deltas);
        let without = run(&deltas[1..]);
        let other = with.iter().zip(&without).filter(|(a, b)| **a * **b < 0.0);
        other.count() as f64 / VALUES as f64
    }

    #[test]
    fn one_attacker_in_a_cohort_does_not_set_the_signs() {
        let recipe = Recipe {
            aggregation: Aggregation::Fedavg,
            ..Recipe::default()
        };
        let unclipped = Recipe {
            clip_factor: None,
            ..recipe.clone()
        };
        assert!(turned(&unclipped, 1000.0) > 0.4, "what the bound is for");
        let honest = turned(&recipe, 1.0);
        let attacked = turned(&recipe, 1000.0);
        assert!(
            attacked < 0.2,
            "{attacked} of the signs, {honest} by an honest one"
        );
    }

    #[test]
    fn the_bound_follows_the_running_median() {
        let recipe = Recipe {
            clip_factor: Some(2.0),
            ..Recipe::default()
        };
        let [short, usual, long] = [0.5, 1.0, 9.0].map(update);
        assert_eq!(Clip::of(&recipe, &[], &[&short, &usual, &long]), Clip(2.0));
        assert_eq!(
            Clip::of(&recipe, &[], &[&usual, &long]),
            Clip(2.0),
            "the smaller of two"
        );
        // Alone, or with accomplices: the rounds before hold it.
        let before = [1.0, 1.1, 0.9];
        let alone = Clip::of(&recipe, &before, &[&long]);
        assert_eq!(alone, Clip(2.0));
        assert_eq!(alone.factor(&long), 2.0 / 9.0);
        assert_eq!(alone.factor(&usual), 1.0);
        let many = [7.0; 20];
        let old: Vec<f32> = many.into_iter().chain([1.0; 8]).collect();
        assert_eq!(
            Clip::of(&recipe, &old, &[]),
            Clip(2.0),
            "only the last rounds count"
        );
        assert_eq!(Clip::of(&recipe, &[], &[]), Clip(f32::INFINITY));
    }
}
