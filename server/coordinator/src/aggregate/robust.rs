//! What a round's updates come to: their weighted sum, or a rule that a minority cannot steer.
//! Memory does not grow with the number of updates or their bytes: a sum is streamed, and a robust
//! rule takes blocks of coordinates and reads an update once for each.

use std::ops::Range;

use lethe_learn::aggregate::{Accumulator, check_finite};
use lethe_learn::robust::{Distances, Robust, median, outliers, trimmed, trimmed_mean};
use lethe_recipe::Recipe;
use rayon::prelude::*;

use super::{Contribution, weights};
use crate::CoordinatorError;

/// Reads some updates, few enough to be in memory together.
pub(super) type Load<'a> = dyn FnMut(Range<usize>) -> Result<Vec<Vec<f32>>, CoordinatorError> + 'a;

/// Coordinates that one thread computes at a time.
const COLUMNS: usize = 2048;

/// By what an update is scaled.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scale {
    /// For coming late.
    pub(super) aged: f32,
    /// For its length.
    pub(super) clip: f32,
}

/// A round's updates: how they are read, and by what each is scaled.
pub(super) struct Updates<'a, 'b> {
    pub(super) recipe: &'a Recipe,
    pub(super) round: u32,
    pub(super) contributions: &'a [&'a Contribution],
    pub(super) scales: &'a [Scale],
    /// Values of each.
    pub(super) values: usize,
    /// Most values in memory at once, of those that are read and of a block.
    pub(super) at_once: usize,
    pub(super) load: &'a mut Load<'b>,
}

impl Updates<'_, '_> {
    /// What they come to, `[values]`.
    pub(super) fn combined(mut self) -> Result<Vec<f32>, CoordinatorError> {
        let n = self.contributions.len();
        match self.recipe.robust {
            Robust::None => {
                let weights = weights(self.recipe, self.round, self.contributions);
                self.summed(&weights)
            }
            Robust::Median => self.by_columns(median),
            Robust::TrimmedMean(f) => {
                let weights = weights(self.recipe, self.round, self.contributions);
                self.averaged(&weights, trimmed(f, n))
            }
            Robust::MultiKrum(f) => {
                let mut distances = Distances::new(n);
                self.blocks(|_, rows| distances.add(rows))?;
                let chosen = distances.chosen(outliers(f, n));
                let contributions: Vec<&Contribution> =
                    chosen.iter().map(|i| self.contributions[*i]).collect();
                // Who is left out has no part in the balance of the others either.
                let of_chosen = weights(self.recipe, self.round, &contributions);
                let mut all = vec![0.0; n];
                for (i, weight) in chosen.into_iter().zip(of_chosen) {
                    all[i] = weight;
                }
                self.averaged(&all, 0)
            }
        }
    }

    /// The weighted sum, one update after the other.
    fn summed(&mut self, weights: &[f32]) -> Result<Vec<f32>, CoordinatorError> {
        let mut sum = Accumulator::new(self.values);
        let together = (self.at_once / self.values.max(1)).max(1);
        for start in (0..weights.len()).step_by(together) {
            let range = start..(start + together).min(weights.len());
            for (i, delta) in range.clone().zip((self.load)(range)?) {
                let Scale { aged, clip } = self.scales[i];
                // In this order: a replay of rounds that earlier builds closed gives their bytes.
                sum.add(weights[i] * aged * clip, &delta)?;
            }
        }
        Ok(sum.finish())
    }

    fn averaged(&mut self, weights: &[f32], trim: usize) -> Result<Vec<f32>, CoordinatorError> {
        self.by_columns(|rows, out| trimmed_mean(rows, weights, trim, out))
    }

    /// Every coordinate by itself.
    fn by_columns(
        &mut self,
        rule: impl Fn(&[&[f32]], &mut [f32]) + Sync,
    ) -> Result<Vec<f32>, CoordinatorError> {
        let mut out = vec![0.0; self.values];
        self.blocks(|at, rows| {
            let parts = out[at].par_chunks_mut(COLUMNS).enumerate();
            parts.for_each(|(part, out)| {
                let from = part * COLUMNS;
                let rows: Vec<&[f32]> = rows.iter().map(|r| &r[from..from + out.len()]).collect();
                rule(&rows, out);
            });
        })?;
        Ok(out)
    }

    /// Hands over all updates, block by block of coordinates: where a block lies, and `[n][block]`.
    fn blocks(
        &mut self,
        mut each: impl FnMut(Range<usize>, &[&[f32]]),
    ) -> Result<(), CoordinatorError> {
        let n = self.contributions.len();
        let together = (self.at_once / self.values.max(1)).max(1);
        let width = (self.at_once / n.max(1)).clamp(1, self.values.max(1));
        for from in (0..self.values).step_by(width) {
            let at = from..(from + width).min(self.values);
            let mut block: Vec<f32> = Vec::with_capacity(n * at.len());
            for start in (0..n).step_by(together) {
                let some = start..(start + together).min(n);
                for (i, delta) in some.clone().zip((self.load)(some)?) {
                    check_finite(&delta, self.values)?;
                    let Scale { aged, clip } = self.scales[i];
                    let scale = aged * clip;
                    block.extend(delta[at.clone()].iter().map(|v| scale * v));
                }
            }
            let rows: Vec<&[f32]> = block.chunks_exact(at.len()).collect();
            each(at, &rows);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use lethe_recipe::Aggregation;

    use super::*;

    const VALUES: usize = 1000;

    const WHOLE: Scale = Scale {
        aged: 1.0,
        clip: 1.0,
    };

    fn updates(n: usize) -> Vec<Vec<f32>> {
        let mut rng = lethe_learn::seed::Seed::from_u64(5).rng();
        (0..n)
            .map(|_| (0..VALUES).map(|_| rng.normal()).collect())
            .collect()
    }

    fn contributions(deltas: &[Vec<f32>]) -> Vec<Contribution> {
        let mut all = vec![];
        for (i, delta) in deltas.iter().enumerate() {
            all.push(Contribution {
                sketch: delta[..32].to_vec(),
                loss: 0.5 + i as f32 / 100.0,
                samples: 1 + i as u32 % 3,
                norm: lethe_learn::aggregate::norm(delta),
            });
        }
        all
    }

    /// What a round comes to, and the most updates that were read at once.
    fn combined(recipe: &Recipe, deltas: &[Vec<f32>], at_once: usize) -> (Vec<f32>, usize) {
        let all = contributions(deltas);
        let refs: Vec<&Contribution> = all.iter().collect();
        let mut most = 0;
        let mut load = |range: Range<usize>| {
            most = most.max(range.len());
            Ok(deltas[range].to_vec())
        };
        let updates = Updates {
            recipe,
            round: 1,
            contributions: &refs,
            scales: &vec![WHOLE; deltas.len()],
            values: VALUES,
            at_once,
            load: &mut load,
        };
        let out = updates.combined().expect("adds up");
        (out, most)
    }

    fn recipe(robust: Robust, aggregation: Aggregation) -> Recipe {
        Recipe {
            robust,
            aggregation,
            ..Recipe::default()
        }
    }

    #[test]
    fn blocks_change_no_bit_and_few_updates_are_in_memory() {
        let deltas = updates(12);
        for robust in [Robust::Median, Robust::TrimmedMean(3), Robust::MultiKrum(2)] {
            let recipe = recipe(robust, Aggregation::Fedavg);
            let (whole, _) = combined(&recipe, &deltas, 1 << 20);
            for at_once in [1, 100, 1500, 5000] {
                let (parts, most) = combined(&recipe, &deltas, at_once);
                assert_eq!(parts, whole, "{robust:?} by {at_once}");
                assert!(most <= (at_once / VALUES).max(1), "{most} at once");
            }
        }
    }

    #[test]
    fn a_fifth_of_attackers_turns_no_robust_rule() {
        let honest = updates(16);
        // Everybody agrees on a direction, and says it with noise.
        let learned: Vec<Vec<f32>> = honest
            .iter()
            .map(|d| d.iter().map(|v| 1.0 + v / 4.0).collect())
            .collect();
        let mut attacked = learned.clone();
        for delta in &mut attacked[..3] {
            delta.iter_mut().for_each(|v| *v *= -20.0);
        }
        for aggregation in [Aggregation::Fedavg, Aggregation::Shared] {
            let (turned, _) = combined(&recipe(Robust::None, aggregation), &attacked, 1 << 20);
            assert!(turned.iter().sum::<f32>() < 0.0, "what the rules are for");
            for robust in [Robust::TrimmedMean(3), Robust::MultiKrum(3), Robust::Median] {
                let (out, _) = combined(&recipe(robust, aggregation), &attacked, 1 << 20);
                let mean = out.iter().sum::<f32>() / VALUES as f32;
                assert!(
                    (0.8..1.2).contains(&mean),
                    "{robust:?} {aggregation:?}: {mean}"
                );
            }
        }
    }

    #[test]
    fn fewer_than_a_quorum_still_come_to_something() {
        let deltas = updates(2);
        for robust in [Robust::Median, Robust::TrimmedMean(3), Robust::MultiKrum(2)] {
            for n in [1, 2] {
                let (out, _) = combined(&recipe(robust, Aggregation::Fedavg), &deltas[..n], 5000);
                assert!(out.iter().any(|v| *v != 0.0), "{robust:?} of {n}");
            }
        }
    }
}
