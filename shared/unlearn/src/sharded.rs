//! Methods that train one adapter per shard and retrain only what a deletion touched.

use std::collections::{BTreeMap, BTreeSet};

use lethe_learn::seed::Seed;

use crate::combine::{Combine, Fitted, method_seed};
use crate::partition::{Partition, Placed};
use crate::world::{Cost, Exactness, ModelId, SampleId, Strategy, Training, UnlearnError, World};

/// SISA (arXiv 1912.03817), GraphEraser (CCS 2022), RecEraser (WWW 2022), APA (arXiv 2404.10327)
/// and ours, by partition, combination and number of slices.
///
/// The published methods keep the partition that they computed with the deleted samples: that is
/// what they promise exactness for. Ours computes it again from what remains. Inside a shard, stage
/// r trains on slices 1..r (SISA, section 5.2) for `2 e / (R + 1)` epochs, so that all stages
/// together pass over as many samples as `e` epochs would, or, with [`Self::slice_by_slice`], on
/// slice r alone for `e` epochs; optimiser state goes along. A deletion trains again from the first
/// slice that it touched. Slices are keyed ranks of the user: what leaves does not move who stays.
#[derive(Debug)]
pub struct Sharded {
    name: String,
    partition: Partition,
    combine: Combine,
    shards: usize,
    slices: usize,
    epochs: f64,
    /// Stages train on their own slice alone.
    alone: bool,
    seed: Seed,
    placed: Placed,
    samples: Vec<SampleId>,
    /// Checkpoint after every stage, per shard.
    stages: Vec<Vec<Option<ModelId>>>,
    fitted: Option<Fitted>,
}

impl Sharded {
    /// A method; `epochs` as for training everything at once.
    pub fn new(
        name: &str,
        partition: Partition,
        combine: Combine,
        shards: usize,
        slices: usize,
        epochs: f64,
        seed: &Seed,
    ) -> Self {
        Self {
            name: name.to_owned(),
            partition,
            combine,
            shards,
            slices,
            epochs,
            alone: false,
            seed: method_seed(seed, partition.name()),
            placed: Placed::default(),
            samples: vec![],
            stages: vec![],
            fitted: None,
        }
    }

    /// Stages that train on their own slice alone. All cost the same then: a deletion that touches
    /// slice r of R costs `(R - r + 1) / R` of its shard, where stages over all earlier slices cost
    /// up to all of it and `2 / (R + 1)` at least.
    pub fn slice_by_slice(self) -> Self {
        Self {
            alone: true,
            ..self
        }
    }

    fn slice(&self, w: &dyn World, s: SampleId) -> usize {
        (self.seed.rank("slice", &w.user(s).to_le_bytes()) % self.slices as u64) as usize
    }

    /// Samples of a shard, per slice.
    fn sliced(&self, w: &dyn World, shard: usize) -> Vec<Vec<SampleId>> {
        let mut out = vec![vec![]; self.slices];
        for (s, k) in self.samples.iter().zip(&self.placed.shards) {
            if *k == shard {
                out[self.slice(w, *s)].push(*s);
            }
        }
        out
    }

    /// Trains a shard's stages from `from` on.
    fn train(
        &mut self,
        w: &mut dyn World,
        shard: usize,
        from: usize,
    ) -> Result<Cost, UnlearnError> {
        let slices = self.sliced(w, shard);
        let epochs = if self.alone {
            self.epochs
        } else {
            2.0 * self.epochs / (self.slices as f64 + 1.0)
        };
        let mut cost = Cost::default();
        for stage in from..self.slices {
            let start = stage
                .checked_sub(1)
                .and_then(|s| self.stages[shard][s].clone());
            let mut samples = slices[if self.alone { stage } else { 0 }..=stage].concat();
            samples.sort_unstable();
            let (model, spent) = w.train(&Training {
                start,
                samples,
                epochs,
            })?;
            cost += spent;
            self.stages[shard][stage] = Some(model);
        }
        Ok(cost)
    }
}

impl Strategy for Sharded {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn exactness(&self) -> Exactness {
        if self.partition.independent() {
            Exactness::Exact
        } else {
            Exactness::GivenPartition
        }
    }

    fn fit(
        &mut self,
        w: &mut dyn World,
        train: &[SampleId],
        validation: &[SampleId],
    ) -> Result<Cost, UnlearnError> {
        self.placed = self
            .partition
            .place(w, train, self.shards, &self.seed, None)?;
        self.samples = train.to_vec();
        self.stages = vec![vec![None; self.slices]; self.shards];
        let mut cost = Cost::default();
        for shard in 0..self.shards {
            cost += self.train(w, shard, 0)?;
        }
        self.learn(w, validation)?;
        Ok(cost)
    }

    fn forget(
        &mut self,
        w: &mut dyn World,
        remaining: &[SampleId],
        _gone: &[SampleId],
        validation: &[SampleId],
    ) -> Result<Cost, UnlearnError> {
        if self.stages.is_empty() {
            return Err(UnlearnError::Untrained(self.name.clone()));
        }
        let old: BTreeMap<SampleId, usize> = self.placement().into_iter().collect();
        let next = match self.partition.independent() {
            true => {
                self.partition
                    .place(w, remaining, self.shards, &self.seed, Some(&self.placed))?
            }
            false => {
                let stored = |s: &SampleId| old.get(s).copied();
                let shards: Option<Vec<usize>> = remaining.iter().map(stored).collect();
                let missing = || UnlearnError::Data("a remaining sample was never placed".into());
                Placed {
                    shards: shards.ok_or_else(missing)?,
                    fixed: None,
                }
            }
        };
        let new: BTreeMap<SampleId, usize> = remaining
            .iter()
            .copied()
            .zip(next.shards.iter().copied())
            .collect();
        // The first slice of each shard that lost or gained somebody.
        let mut touched: BTreeMap<usize, usize> = BTreeMap::new();
        let all: BTreeSet<SampleId> = old.keys().chain(new.keys()).copied().collect();
        for s in all {
            let (before, after) = (old.get(&s), new.get(&s));
            if before != after {
                let slice = self.slice(w, s);
                for shard in before.into_iter().chain(after) {
                    touched
                        .entry(*shard)
                        .and_modify(|x| *x = slice.min(*x))
                        .or_insert(slice);
                }
            }
        }
        (self.placed, self.samples) = (next, remaining.to_vec());
        let mut cost = Cost::default();
        for (shard, from) in touched {
            cost += self.train(w, shard, from)?;
        }
        self.learn(w, validation)?;
        Ok(cost)
    }

    fn predict(
        &mut self,
        w: &mut dyn World,
        samples: &[SampleId],
    ) -> Result<Vec<[f32; 2]>, UnlearnError> {
        let fitted = self
            .fitted
            .as_ref()
            .ok_or_else(|| UnlearnError::Untrained(self.name.clone()))?;
        fitted.predict(w, &self.models(), samples)
    }

    fn learn(&mut self, w: &mut dyn World, validation: &[SampleId]) -> Result<(), UnlearnError> {
        self.fitted = Some(self.combine.fit(w, &self.models(), validation)?);
        Ok(())
    }

    fn models(&self) -> Vec<ModelId> {
        self.stages
            .iter()
            .filter_map(|s| s.last().cloned().flatten())
            .collect()
    }

    fn placement(&self) -> Vec<(SampleId, usize)> {
        self.samples
            .iter()
            .copied()
            .zip(self.placed.shards.iter().copied())
            .collect()
    }

    fn passes(&self) -> usize {
        self.combine.passes(self.shards)
    }
}
