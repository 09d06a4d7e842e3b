//! Rounds whose updates are masked: only their sum is ever read (`docs/secure-sums.md`).

use lethe_learn::secure_sum::{Grid, GridError};
use lethe_ledger::Contributor;
use lethe_proto::ids::SubjectId;
use rayon::prelude::*;

use super::jobs::{Job, Sum, missing, stopped};
use super::{Kit, Shell};
use crate::CoordinatorError;
use crate::aggregate::{Contribution, Mean, apply_mean};
use crate::content::TrainState;
use crate::lists::Masks;
use crate::rounds::internal;

/// How many deadlines a round waits for people who were in the sum of before, and have not left.
/// Then it counts nobody.
const MOST_WAITS: u32 = 3;

impl Shell {
    /// Adds a round up with the tally's sum of the masks. Whoever the tally leaves out is not
    /// counted. The inner error says why the round has to wait for others, and a replay has failed.
    pub(super) fn sum_masked(
        &self,
        job: &Job,
        kit: &Kit,
        before: &TrainState,
        contributions: &[&Contribution],
        grid: &Grid,
    ) -> Result<Result<Sum, String>, CoordinatorError> {
        let masks = self.masks_of(job, kit)?;
        if let Some(why) = self.waits_for(job, &masks) {
            return Ok(Err(why));
        }
        let mean = self.mean(job, kit, contributions, grid, &masks)?;
        let mut state = before.clone();
        apply_mean(&kit.recipe, &mut state, mean.as_ref());
        let counts = |place: &usize| mean.is_some() && masks.counted.binary_search(place).is_ok();
        let all = job.counted.iter().enumerate();
        let (counted, left_out): (Vec<_>, Vec<_>) = all.partition(|(place, _)| counts(place));
        let whose = |part: Vec<(usize, &Contributor)>| -> Vec<Contributor> {
            part.into_iter().map(|(_, of)| of.clone()).collect()
        };
        Ok(Ok(Sum {
            counted: whose(counted),
            left_out: whose(left_out),
            norm: None,
            loss: mean.map(|m| m.loss),
            state,
            own: vec![],
        }))
    }

    /// Why a round is not closed with what the tally gives; none: it is.
    fn waits_for(&self, job: &Job, masks: &Masks) -> Option<String> {
        let (live, waited) = {
            let state = self.state();
            let open = state.open_round(job.run.generation);
            let waited = open.filter(|o| o.run == job.run).map_or(0, |o| o.starved);
            (state.is_live(&job.run), waited)
        };
        let left_out = masks.counted.len() < job.counted.len();
        match live {
            // Others would be other bytes.
            false => left_out.then(|| {
                "the tally does not sum the masks of everybody who counted: its log, and that of \
                 the coordinator, say why"
                    .into()
            }),
            true => (masks.missing > 0 && waited < MOST_WAITS).then(|| {
                let missing = masks.missing;
                tracing::warn!(missing, round = ?job.run, "a round waits for who was in it before");
                format!("{missing} people who were in the sum of before have not answered")
            }),
        }
    }

    fn masks_of<'a>(&self, job: &'a Job, kit: &Kit) -> Result<Masks, CoordinatorError> {
        if !job.counted.is_empty() {
            self.lists.as_ref().ok_or_else(missing)?.may_sum()?;
        }
        let seed = |of: &'a Contributor| {
            let update = self.update_of(job, of)?;
            Ok((&of.0, update.seed(&kit.whole)?))
        };
        let seeds: Result<Vec<(&SubjectId, Vec<u8>)>, CoordinatorError> =
            job.counted.par_iter().map(seed).collect();
        let seeds = seeds?;
        if seeds.is_empty() {
            return Ok(Masks {
                counted: vec![],
                missing: 0,
                sum: vec![],
            });
        }
        let lists = self.lists.as_ref().ok_or_else(missing)?;
        let values = kit.whole.edge_len() + 1;
        let quorum = kit.recipe.quorum;
        let masks = lists.masks(job.run.wire(), values, seeds, quorum, &job.cancelled)?;
        masks.ok_or_else(stopped)
    }

    /// None: nobody counts.
    fn mean(
        &self,
        job: &Job,
        kit: &Kit,
        contributions: &[&Contribution],
        grid: &Grid,
        masks: &Masks,
    ) -> Result<Option<Mean>, CoordinatorError> {
        if masks.counted.is_empty() {
            return Ok(None);
        }
        // Integers: the sum is the same in any order.
        let read = |mut sum: Vec<u32>, place: &usize| {
            let update = self.update_of(job, &job.counted[*place])?;
            add(&mut sum, &update.masked(&kit.whole)?.values);
            Ok::<_, CoordinatorError>(sum)
        };
        let zeros = || vec![0; masks.sum.len()];
        let parts = masks.counted.par_iter().try_fold(zeros, read);
        let joined = parts.try_reduce(zeros, |mut sum, part| {
            add(&mut sum, &part);
            Ok(sum)
        });
        let mut sum = joined?;
        for (to, mask) in sum.iter_mut().zip(&masks.sum) {
            *to = to.wrapping_sub(*mask);
        }
        let weigh = |place: &usize| {
            let samples = contributions[*place].samples;
            f64::from(kit.recipe.masked_weight(samples))
        };
        let weight = masks.counted.iter().map(weigh).sum();
        let clients = u32::try_from(masks.counted.len()).unwrap_or(u32::MAX);
        match mean_of(kit, grid, &sum, clients, weight) {
            Ok(mean) => Ok(Some(mean)),
            Err(why @ GridError::Overflow { .. }) => {
                // Asked again it would be the same: the shard goes on without this round.
                tracing::error!(round = ?job.run, "a round counts nobody: {why}");
                Ok(None)
            }
            Err(why) => Err(internal(&why)),
        }
    }
}

/// Adds modulo 2^32.
fn add(sum: &mut [u32], more: &[u32]) {
    for (to, more) in sum.iter_mut().zip(more) {
        *to = to.wrapping_add(*more);
    }
}

/// What the updates of `clients` come to: their sum on the grid, without masks, over the sum of
/// their weights.
pub(super) fn mean_of(
    kit: &Kit,
    grid: &Grid,
    sum: &[u32],
    clients: u32,
    weight: f64,
) -> Result<Mean, GridError> {
    let sum: Vec<u64> = sum.iter().copied().map(u64::from).collect();
    let mut values = grid.decode(&sum, clients)?;
    let loss = values.pop().unwrap_or(0.0);
    for value in &mut values {
        *value = (f64::from(*value) / weight) as f32;
    }
    Ok(Mean {
        values: kit.whole.of_device(&values),
        loss: kit.recipe.loss_off_grid(loss, clients),
    })
}
