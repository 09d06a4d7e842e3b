//! Rounds as the product runs them: plain steps on the device, an update in the recipe's format,
//! clipping, FedAvg, Adam on the coordinator.

use std::collections::BTreeSet;

use lethe_benches::lab::Lab;
use lethe_learn::aggregate::{Accumulator, ServerAdam, clip, fedavg_weights};
use lethe_learn::seed::Seed;
use lethe_model::lora::Adapter;
use lethe_model::split::descend;
use lethe_model::train::AdamW;
use lethe_proto::packed::{Packed, PackedFormat};
use lethe_recipe::Recipe;

/// What a recipe says of rounds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rounds {
    pub(super) rounds: usize,
    pub(super) cohort: usize,
    /// Samples of a client in a round.
    pub(super) samples: usize,
    /// Samples of a local step.
    pub(super) batch: usize,
}

impl Rounds {
    /// The product's default.
    pub(super) fn default_recipe() -> Self {
        let recipe = Recipe::default();
        Self {
            rounds: recipe.rounds,
            cohort: recipe.cohort,
            samples: recipe.local.samples,
            batch: recipe.local.batch,
        }
    }
}

/// The change of the adapter that a client's steps give.
pub(super) fn local(
    lab: &mut Lab,
    start: &Adapter,
    samples: &[usize],
    batch: usize,
) -> anyhow::Result<Vec<f32>> {
    let mut own = start.clone();
    for part in samples.chunks(batch.max(1)) {
        let rows = lab.samples(part)?;
        let mut step = lab.gradient(&own, &rows, None, &mut BTreeSet::new())?;
        descend(
            &mut own.data,
            &mut step.grads.data,
            Recipe::default().local.lr,
        );
    }
    Ok(difference(&own.data, &start.data))
}

/// `a - b`.
pub(super) fn difference(a: &[f32], b: &[f32]) -> Vec<f32> {
    a.iter().zip(b).map(|(x, y)| x - y).collect()
}

/// One step with this gradient, as a change: with the rounding that a device's step has.
pub(super) fn one_step(start: &[f32], gradient: &[f32]) -> Vec<f32> {
    let mut own = start.to_vec();
    descend(&mut own, &mut gradient.to_vec(), Recipe::default().local.lr);
    difference(&own, start)
}

/// What the coordinator reads of an update in this format.
pub(super) fn sent(delta: &[f32], format: PackedFormat) -> anyhow::Result<Vec<f32>> {
    Ok(Packed::encode(delta, format)?.decode(delta.len())?)
}

/// The adapter after all rounds with the people who are present. Cohorts and samples are ranks of
/// person and round, so that who leaves changes nothing but the rounds that they were in.
pub(super) fn federated(
    lab: &mut Lab,
    start: &Adapter,
    people: &[Vec<usize>],
    present: &[usize],
    rounds: Rounds,
    seed: &Seed,
) -> anyhow::Result<Adapter> {
    let recipe = Recipe::default();
    let mut theta = start.clone();
    let mut first = vec![0.0; theta.data.len()];
    let mut second = vec![0.0; theta.data.len()];
    for round in 0..rounds.rounds {
        let seed = seed.derive("round", &[&(round as u64).to_le_bytes()]);
        let mut cohort = present.to_vec();
        cohort.sort_by_key(|p| (seed.rank("cohort", &(*p as u64).to_le_bytes()), *p));
        cohort.truncate(rounds.cohort);
        cohort.sort_unstable();
        let mut deltas = vec![];
        for person in &cohort {
            let mut own = people[*person].clone();
            own.sort_by_key(|s| (seed.rank("sample", &(*s as u64).to_le_bytes()), *s));
            own.truncate(rounds.samples);
            let mut delta = local(lab, &theta, &own, rounds.batch)?;
            clip(&mut delta, recipe.clip);
            deltas.push((delta, own.len() as u32));
        }
        let counts: Vec<u32> = deltas.iter().map(|d| d.1).collect();
        let mut sum = Accumulator::new(theta.data.len());
        for ((delta, _), weight) in deltas.iter().zip(fedavg_weights(&counts)) {
            sum.add(weight, delta)?;
        }
        ServerAdam {
            first: &mut first,
            second: &mut second,
            step: round as u32 + 1,
            lr: recipe.server_lr,
        }
        .apply(&mut theta.data, &sum.finish());
    }
    Ok(theta)
}

/// The adapter after `passes` over all samples of those present in one place, by AdamW: it has
/// learned its samples better than any recipe of the product makes it, and bounds what can leak.
pub(super) fn central(
    lab: &mut Lab,
    start: &Adapter,
    people: &[Vec<usize>],
    present: &[usize],
    passes: usize,
    seed: &Seed,
) -> anyhow::Result<Adapter> {
    let mut theta = start.clone();
    let mut optimiser = AdamW::new(theta.data.len(), 0.01);
    for pass in 0..passes {
        let seed = seed.derive("pass", &[&(pass as u64).to_le_bytes()]);
        let mut order: Vec<usize> = present
            .iter()
            .flat_map(|p| people[*p].iter().copied())
            .collect();
        order.sort_by_key(|s| (seed.rank("sample", &(*s as u64).to_le_bytes()), *s));
        for batch in order.chunks(8) {
            let rows = lab.samples(batch)?;
            let step = lab.gradient(&theta, &rows, None, &mut BTreeSet::new())?;
            optimiser.step(&mut theta.data, &step.grads.data, 2e-3);
        }
    }
    Ok(theta)
}
