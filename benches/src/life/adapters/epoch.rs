//! One epoch: who is in it, its shards' stages, and what a deletion does to them.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use lethe_benches::cpu_seconds;
use lethe_coordinator::rounds_alone::{Learned, Rounds, Trained, terms};
use lethe_learn::apa::{ErrorRow, omega};
use lethe_learn::partition::{SubShards, anchors, centre, nearest_anchor};
use lethe_learn::seed::Seed;
use lethe_ledger::{EpochNo, RunKey, Terms};
use lethe_model::frozen::InMemory;
use lethe_model::lora::Adapter;
use lethe_model::train::Sample;
use lethe_plan::{Inventory, Member, Rates, Request, ShardInventory, plan};
use lethe_proto::ids::{Digest, ShardId, SubjectId};
use lethe_recsys::data::Item;
use lethe_recsys::features::item_features;
use rayon::prelude::*;
use serde::Serialize;

use super::engine::{Engine, Mixes, Prompted};

/// What a device joins with.
#[derive(Clone, Debug)]
pub(crate) struct Joins {
    pub(crate) subject: SubjectId,
    /// Places in the catalogue of liked items among what trains.
    pub(crate) liked: Vec<u32>,
    pub(crate) train: Vec<Prompted>,
    pub(crate) validation: Option<Sample>,
}

/// Somebody in an epoch.
#[derive(Clone, Debug)]
struct Placed {
    joins: Joins,
    shard: u16,
    /// 0-based.
    slice: u16,
}

/// What training has cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Spent {
    /// Samples trained, each as often as it was.
    pub(crate) samples: usize,
    /// States below the trained layers that were computed for it.
    pub(crate) states: usize,
    /// Of the processor.
    pub(crate) cpu_s: f64,
}

impl Spent {
    /// Adds another cost.
    pub(crate) fn add(&mut self, other: Self) {
        self.samples += other.samples;
        self.states += other.states;
        self.cpu_s += other.cpu_s;
    }
}

/// An epoch that is served.
pub(crate) struct Epoch {
    terms: Terms,
    rounds: Rounds,
    /// Fixed when the epoch begins; a deletion never computes it again.
    sub_shards: SubShards,
    members: BTreeMap<SubjectId, Placed>,
    /// Checkpoints after each stage, `[shards][stages]`.
    stages: Vec<Vec<Trained>>,
    /// Of the newest checkpoints.
    served: Vec<Adapter>,
    /// Validation samples: where each lies, and the errors of all shards.
    table: Vec<ErrorRow>,
    /// States below the trained layers, as devices keep them.
    states: InMemory,
}

impl Mixes for Weighed<'_> {
    fn weights(&self, embedding: &[f32]) -> Vec<f32> {
        let apa = &self.engine.recipe.apa;
        let shards = self.epoch.served.len();
        apa.amplified(omega(apa, &self.epoch.table, embedding, shards), 1)
    }

    fn adapters(&self) -> &[Adapter] {
        &self.epoch.served
    }
}

/// An epoch's adapters, weighed as the recipe says.
pub(crate) struct Weighed<'a> {
    pub(crate) epoch: &'a Epoch,
    pub(crate) engine: &'a Engine,
}

impl Epoch {
    /// An epoch begins with these people, and trains. Its seed is the recipe's, as that of each
    /// epoch of one recipe is.
    pub(crate) fn begin(
        engine: &Engine,
        items: &[Item],
        joins: Vec<Joins>,
    ) -> anyhow::Result<(Self, Spent)> {
        let recipe = &engine.recipe;
        let mut features = item_features(items);
        centre(&mut features);
        let seed = Seed::from_u64(recipe.seed).derive("anchors", &[]);
        let anchors = anchors(&features, recipe.anchors, &seed)?;
        let terms = terms(recipe, anchors.len(), engine.hidden());
        let of_name = |s: &SubjectId| {
            let rank = terms.epoch_seed().rank("anchor", s.as_str().as_bytes());
            (rank % anchors.len().max(1) as u64) as usize
        };
        let mut placed = vec![];
        let mut counts = vec![0; anchors.len()];
        for one in joins {
            let liked: Vec<&[f32]> = one
                .liked
                .iter()
                .map(|i| &features[*i as usize][..])
                .collect();
            let anchor = nearest_anchor(&anchors, &liked).unwrap_or_else(|| of_name(&one.subject));
            counts[anchor] += 1;
            placed.push((anchor, one));
        }
        let sub_shards = SubShards::allot(&counts, recipe.shards)?;
        let mut members = BTreeMap::new();
        let key = terms.epoch_seed();
        for one in placed {
            let joins = one.1;
            let name = joins.subject.as_str().as_bytes();
            let shard = sub_shards.shard(one.0, name, &key) as u16;
            let slice = (key.rank("slice", name) % u64::from(terms.slices.max(1))) as u16;
            let subject = joins.subject.clone();
            members.insert(
                subject,
                Placed {
                    joins,
                    shard,
                    slice,
                },
            );
        }
        Self::of(engine, terms, sub_shards, members)
    }

    fn of(
        engine: &Engine,
        terms: Terms,
        sub_shards: SubShards,
        members: BTreeMap<SubjectId, Placed>,
    ) -> anyhow::Result<(Self, Spent)> {
        let rounds = Rounds::new(&engine.recipe, &engine.shape, engine.layers())?;
        let shards = usize::from(terms.shards);
        let mut epoch = Self {
            stages: vec![vec![]; shards],
            served: vec![],
            table: vec![],
            states: InMemory::default(),
            terms,
            rounds,
            sub_shards,
            members,
        };
        let all: Vec<(ShardId, u16)> = (0..shards as u16).map(|k| (ShardId(k), 1)).collect();
        let spent = epoch.train(engine, &all)?;
        Ok((epoch, spent))
    }

    /// People in it.
    pub(crate) fn people(&self) -> usize {
        self.members.len()
    }

    /// Whether somebody is in it.
    pub(crate) fn has(&self, subject: &SubjectId) -> bool {
        self.members.contains_key(subject)
    }

    /// People of each shard.
    pub(crate) fn shards(&self) -> Vec<usize> {
        let of = |k: u16| self.members.values().filter(move |p| p.shard == k).count();
        (0..self.terms.shards).map(of).collect()
    }

    /// Somebody leaves: what the planner says is trained anew. None: they are not in it.
    pub(crate) fn leave(
        &mut self,
        engine: &Engine,
        subject: &SubjectId,
        deleted: bool,
    ) -> anyhow::Result<Option<Spent>> {
        if !self.has(subject) {
            return Ok(None);
        }
        let subject = subject.clone();
        let request = match deleted {
            true => Request::Erase {
                subject: subject.clone(),
            },
            false => Request::Restrict {
                subject: subject.clone(),
            },
        };
        let plan = plan(&self.inventory(), &[request])?;
        self.members.remove(&subject);
        Ok(Some(self.train(engine, &plan.affected())?))
    }

    /// What the planner knows.
    fn inventory(&self) -> Inventory {
        let terms = &self.terms;
        let shard = |k: u16| ShardInventory {
            id: ShardId(k),
            members: self
                .members
                .values()
                .filter(|p| p.shard == k)
                .map(|p| Member {
                    subject: p.joins.subject.clone(),
                    slice: p.slice,
                    samples: p.joins.train.len() as u32,
                    idle: false,
                })
                .collect(),
            trained_stage: terms.slices,
            losses: vec![None; usize::from(terms.slices)],
        };
        Inventory {
            shards: (0..terms.shards).map(shard).collect(),
            unplaced: vec![],
            stages: terms.slices,
            rounds_per_stage: u32::from(terms.rounds),
            cohort: terms.cohort,
            samples_per_round: terms.samples,
            rates: Rates::default(),
        }
    }

    /// Trains shards from a stage on, 1-based, each from the checkpoint before it; then everybody
    /// measures errors.
    fn train(&mut self, engine: &Engine, shards: &[(ShardId, u16)]) -> anyhow::Result<Spent> {
        let cpu = cpu_seconds();
        let mut spent = Spent::default();
        let members = self.members.values();
        let all: Vec<&Sample> = members
            .flat_map(|p| {
                let train = p.joins.train.iter().map(|s| &s.sample);
                train.chain(p.joins.validation.as_ref())
            })
            .collect();
        spent.states = engine.prepare(&self.states, &all)?;
        for (shard, from) in shards {
            spent.samples += self.train_shard(engine, *shard, *from)?;
        }
        let newest = self.stages.iter().map(|s| {
            let last = s.last().context("a shard has no checkpoint")?;
            engine.adapter(last.theta())
        });
        self.served = newest.collect::<anyhow::Result<_>>()?;
        self.measure(engine)?;
        spent.cpu_s = cpu_seconds() - cpu;
        Ok(spent)
    }

    fn train_shard(&mut self, engine: &Engine, shard: ShardId, from: u16) -> anyhow::Result<usize> {
        let at = usize::from(shard.0);
        let kept = self.stages.get_mut(at).context("no such shard")?;
        kept.truncate(usize::from(from.saturating_sub(1)));
        let mut trained = kept.last().cloned().unwrap_or_else(|| self.rounds.start());
        let mut samples = 0;
        for stage in from..=self.terms.slices {
            for round in 0..self.terms.rounds {
                let run = RunKey {
                    epoch: EpochNo::FIRST,
                    shard,
                    generation: 1,
                    stage,
                    round,
                };
                let learned = self.round(engine, &run, trained.theta())?;
                samples += learned.iter().map(|l| l.samples as usize).sum::<usize>();
                self.rounds.round(&mut trained, shard, &learned)?;
            }
            self.stages[at].push(trained.clone());
        }
        Ok(samples)
    }

    /// What the devices of a round's cohort learn, in the order of subjects.
    fn round(&self, engine: &Engine, run: &RunKey, theta: &[f32]) -> anyhow::Result<Vec<Learned>> {
        let seed = self.terms.round_seed(run);
        let eligible = self.members.values();
        let eligible = eligible.filter(|p| p.shard == run.shard.0 && p.slice < run.stage);
        let mut ranked: Vec<(u64, &Placed)> = eligible
            .map(|p| {
                let name = p.joins.subject.as_str().as_bytes();
                (seed.rank("cohort", name), p)
            })
            .collect();
        ranked.sort_by(|a, b| {
            let names = a.1.joins.subject.cmp(&b.1.joins.subject);
            a.0.cmp(&b.0).then(names)
        });
        ranked.truncate(self.terms.cohort as usize);
        ranked.sort_by(|a, b| a.1.joins.subject.cmp(&b.1.joins.subject));
        let learn = |one: &(u64, &Placed)| -> anyhow::Result<Learned> {
            let train = &one.1.joins.train;
            let change = engine.learn(&self.states, theta, &seed, train)?;
            Ok(Learned {
                change: change.values,
                loss: change.loss,
                samples: change.samples,
                joined: train.len() as u32,
            })
        };
        ranked.par_iter().map(learn).collect()
    }

    /// Everybody's newest validation sample: where it lies, and how wrong each shard is.
    fn measure(&mut self, engine: &Engine) -> anyhow::Result<()> {
        let members: Vec<&Placed> = self.members.values().collect();
        let row = |p: &&Placed| -> anyhow::Result<Option<ErrorRow>> {
            let Some(sample) = &p.joins.validation else {
                return Ok(None);
            };
            let errors = self.served.iter();
            let errors = errors.map(|a| engine.error(&self.states, a, sample));
            Ok(Some(ErrorRow {
                embedding: engine.locate(&sample.ids)?,
                errors: errors.collect::<anyhow::Result<_>>()?,
            }))
        };
        let rows: anyhow::Result<Vec<Option<ErrorRow>>> = members.par_iter().map(row).collect();
        self.table = rows?.into_iter().flatten().collect();
        Ok(())
    }

    /// The checkpoints of all stages with their optimisers, and the error table, bit for bit.
    fn bytes(&self) -> Vec<u8> {
        let stages = self.stages.iter().flatten();
        let mut all: Vec<u8> = stages.flat_map(Trained::bytes).collect();
        for row in &self.table {
            let values = row.embedding.iter().chain(&row.errors);
            all.extend(values.flat_map(|v| v.to_le_bytes()));
        }
        all
    }

    /// Names them.
    pub(crate) fn digest(&self) -> Digest {
        Digest::of(&[&self.bytes()])
    }

    /// Mean training loss of the last round of each shard, nats.
    pub(crate) fn losses(&self) -> Vec<Option<f32>> {
        let last = |s: &Vec<Trained>| {
            let loss = s.last()?.losses().last().copied()?;
            loss.is_finite().then_some(loss)
        };
        self.stages.iter().map(last).collect()
    }

    /// A fresh system that never met those who left, trained on what remains, has the same bytes.
    /// With `anew` nothing is taken from this one; otherwise states below the trained layers are:
    /// they are of a sample's tokens alone.
    pub(crate) fn compare(&mut self, engine: &Engine, anew: bool) -> anyhow::Result<Spent> {
        let cpu = cpu_seconds();
        let mut spent = Spent::default();
        let kept = match anew {
            true => InMemory::default(),
            false => std::mem::take(&mut self.states),
        };
        let mut fresh = Self {
            terms: self.terms.clone(),
            rounds: Rounds::new(&engine.recipe, &engine.shape, engine.layers())?,
            sub_shards: self.sub_shards.clone(),
            members: self.members.clone(),
            stages: vec![vec![]; self.stages.len()],
            served: vec![],
            table: vec![],
            states: kept,
        };
        let shards = (0..self.terms.shards).map(|k| (ShardId(k), 1));
        spent.add(fresh.train(engine, &shards.collect::<Vec<_>>())?);
        ensure!(
            fresh.bytes() == self.bytes(),
            "adapters differ from those of a system that never met those who left"
        );
        spent.cpu_s = cpu_seconds() - cpu;
        Ok(spent)
    }
}
