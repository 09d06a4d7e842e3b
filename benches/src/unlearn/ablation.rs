//! What the partition alone does: how often a deletion moves others, and what APA(ND) is worth on
//! it.

use std::collections::BTreeMap;

use lethe_benches::lab::eprint_line;
use lethe_unlearn::combine::{Combine, method_seed};
use lethe_unlearn::partition::{Partition, Placed};
use lethe_unlearn::sharded::Sharded;
use lethe_unlearn::whole::Retrain;
use lethe_unlearn::world::Mixing;
use lethe_unlearn::{SampleId, Strategy, World};
use serde_json::{Value, json};

use crate::experiment::Experiment;
use crate::methods::PARTITIONS;

const SHARDS: [usize; 3] = [2, 4, 8];

/// Deletions of one user each that are tried per partition.
const TRIED: usize = 20;

/// Those that APA(ND) is trained on.
const TRAINED: [Partition; 4] = [
    Partition::Apa,
    Partition::Ours,
    Partition::Random,
    Partition::ByUser,
];

/// What deletions do to those who stay.
#[derive(Default)]
struct Moved {
    deletions: usize,
    samples: usize,
    stayed: usize,
}

impl Experiment {
    /// A row per partition and number of shards.
    pub(crate) fn partitions(
        &mut self,
        dataset: &str,
        seed: u64,
        epochs: f64,
        ready: &mut dyn FnMut(Value) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let reference = self.tested(&mut Retrain::new(epochs))?;
        for shards in SHARDS {
            for p in PARTITIONS {
                let choices = method_seed(&self.seed, p.name());
                let before = p.place(&mut self.world, &self.train, shards, &choices, None)?;
                let moved = self.moved(p, shards, &before)?;
                let sizes = (0..shards).map(|k| before.shards.iter().filter(|s| **s == k).count());
                let largest = sizes.max().unwrap_or(0);
                let mut auc = None;
                if TRAINED.contains(&p) {
                    // One slice for all: the partition is compared, not what a deletion costs.
                    let combine = Combine::Apa(Mixing::Nd, self.apa);
                    auc = Some(self.tested(&mut Sharded::new(
                        p.name(),
                        p,
                        combine,
                        shards,
                        1,
                        epochs,
                        &self.seed,
                    ))?);
                }
                eprint_line(&format!(
                    "{dataset}, seed {seed}, K = {shards}, {}: {auc:?}",
                    p.name()
                ));
                ready(json!({
                    "dataset": dataset, "seed": seed, "partition": p.name(), "shards": shards,
                    "deletions_that_move_others": moved.deletions as f64 / TRIED as f64,
                    "others_moved": moved.samples as f64 / moved.stayed.max(1) as f64,
                    "largest_over_mean": largest as f64 * shards as f64 / self.train.len() as f64,
                    "auc": auc, "gap_to_retrain": auc.map(|a| a - reference),
                }))?;
            }
        }
        Ok(())
    }

    fn tested(&mut self, m: &mut dyn Strategy) -> anyhow::Result<f64> {
        m.fit(&mut self.world, &self.train, &self.validation)?;
        let logits = m.predict(&mut self.world, &self.test)?;
        Ok(self.auc(&logits).0)
    }

    /// How many samples that stay change their shard when the partition is computed anew without
    /// one user.
    fn moved(&mut self, p: Partition, shards: usize, before: &Placed) -> anyhow::Result<Moved> {
        let mut users: Vec<u32> = self.train.iter().map(|s| self.world.user(*s)).collect();
        users.sort_by_key(|u| (self.seed.rank("leaves", &u.to_le_bytes()), *u));
        users.dedup();
        let was: BTreeMap<SampleId, usize> = self
            .train
            .iter()
            .copied()
            .zip(before.shards.iter().copied())
            .collect();
        let mut out = Moved::default();
        for user in users.iter().take(TRIED) {
            let stays = |s: &&SampleId| self.world.user(**s) != *user;
            let remaining: Vec<SampleId> = self.train.iter().filter(stays).copied().collect();
            let after = p.place(
                &mut self.world,
                &remaining,
                shards,
                &method_seed(&self.seed, p.name()),
                Some(before),
            )?;
            let pairs: Vec<(usize, usize)> = remaining
                .iter()
                .zip(&after.shards)
                .map(|(s, k)| (was[s], *k))
                .collect();
            let others = pairs.len() - most_in_place(&pairs, shards);
            out.samples += others;
            out.stayed += remaining.len();
            out.deletions += usize::from(others > 0);
        }
        Ok(out)
    }
}

/// How many keep their shard when the shards' numbers are matched as well as they can be: clusters
/// have no order, and a partition whose numbers alone have changed moved nobody.
fn most_in_place(pairs: &[(usize, usize)], shards: usize) -> usize {
    let mut overlap = vec![vec![0; shards]; shards];
    pairs
        .iter()
        .for_each(|(before, after)| overlap[*before][*after] += 1);
    // Best assignment of the first `before` shards to each set of new ones.
    let mut best = vec![0; 1 << shards];
    for set in 1usize..1 << shards {
        let before = set.count_ones() as usize - 1;
        let with = |after: usize| best[set & !(1 << after)] + overlap[before][after];
        best[set] = (0..shards)
            .filter(|a| set & (1 << a) != 0)
            .map(with)
            .max()
            .unwrap_or(0);
    }
    best[(1 << shards) - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renumbered_shards_move_nobody() {
        let renumbered: Vec<(usize, usize)> = (0..30).map(|i| (i % 3, (i + 1) % 3)).collect();
        assert_eq!(most_in_place(&renumbered, 3), 30);
        let one_moved: Vec<(usize, usize)> = renumbered.iter().copied().chain([(0, 0)]).collect();
        assert_eq!(most_in_place(&one_moved, 3), 30);
        assert_eq!(most_in_place(&[(0, 0), (0, 1), (1, 0), (1, 0)], 2), 3);
    }
}
