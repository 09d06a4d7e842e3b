//! Rounds with attackers among the people, added up by the coordinator's own code.

use std::collections::{BTreeSet, HashMap};

use anyhow::Context;
use lethe_benches::lab::Lab;
use lethe_coordinator::rounds_alone::{Learned, Rounds, Trained};
use lethe_learn::metrics::auc;
use lethe_learn::seed::Seed;
use lethe_model::lora::Adapter;
use lethe_model::split::descend;
use lethe_proto::ids::{Digest, ShardId};
use lethe_proto::limits::MAX_LOSS;
use lethe_recipe::Recipe;

use crate::attack::{Attack, TrainsOn};
use crate::world::{Looked, SHOWN, World};

/// What somebody trained, before anything was done to it.
#[derive(Clone)]
struct Change {
    values: Vec<f32>,
    loss: f32,
    samples: u32,
}

/// What a change is known by: from where, who, and on what.
type Known = (Digest, usize, TrainsOn);

/// A seed's people under one model; what somebody trained from the same start is computed once.
pub(crate) struct Federation<'a> {
    pub(crate) lab: &'a mut Lab,
    pub(crate) world: &'a World,
    pub(crate) rounds: usize,
    known: HashMap<Known, Change>,
}

/// Who attacks, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Against {
    pub(crate) attack: Attack,
    /// Of all people.
    pub(crate) share: f64,
}

impl<'a> Federation<'a> {
    pub(crate) fn new(lab: &'a mut Lab, world: &'a World, rounds: usize) -> Self {
        Self {
            lab,
            world,
            rounds,
            known: HashMap::new(),
        }
    }

    /// Forgets what was trained: the next rule goes other ways.
    pub(crate) fn forget(&mut self) {
        self.known.clear();
    }

    /// The adapter that these people train, and what it started from.
    pub(crate) fn train(
        &mut self,
        recipe: &Recipe,
        shard: ShardId,
        people: &[usize],
        against: Against,
    ) -> anyhow::Result<(Vec<f32>, Vec<f32>)> {
        let shape = self.lab.shape(recipe.lora.rank);
        let rounds = Rounds::new(recipe, &shape, self.lab.layers())?;
        let attackers = self.world.attackers(against);
        let mut trained: Trained = rounds.start();
        let start = trained.theta().to_vec();
        for round in 0..self.rounds {
            let seed = self.world.seed.derive("round", &[&round.to_le_bytes()]);
            let mut learned = vec![];
            for person in cohort(&seed, people, recipe.cohort) {
                let attack = match attackers.contains(&person) {
                    true => against.attack,
                    false => Attack::Nobody,
                };
                let change =
                    self.change(recipe, &seed, trained.theta(), person, attack.trains_on())?;
                learned.push(self.sent(recipe, person, attack, change));
            }
            rounds.round(&mut trained, shard, &learned)?;
        }
        Ok((trained.theta().to_vec(), start))
    }

    /// What a device sends of what it trained.
    fn sent(&self, recipe: &Recipe, person: usize, attack: Attack, change: Change) -> Learned {
        let mut values = change.values;
        values.iter_mut().for_each(|v| *v *= attack.scale());
        let most = recipe.local.samples as u32;
        let joined = self.world.people[person].train.len() as u32;
        match attack.inflates() {
            true => Learned {
                change: values,
                loss: MAX_LOSS,
                samples: most,
                joined: most,
            },
            false => Learned {
                change: values,
                loss: change.loss,
                samples: change.samples,
                joined,
            },
        }
    }

    fn change(
        &mut self,
        recipe: &Recipe,
        round: &Seed,
        theta: &[f32],
        person: usize,
        on: TrainsOn,
    ) -> anyhow::Result<Change> {
        let key = (Digest::of_values(theta), person, on);
        if let Some(known) = self.known.get(&key) {
            return Ok(known.clone());
        }
        let one = &self.world.people[person];
        let mut samples = match on {
            TrainsOn::Own => &one.train,
            TrainsOn::Promoted => &one.promotes,
            TrainsOn::Backdoor => &one.backdoor,
        }
        .clone();
        samples.sort_by_key(|s| (round.rank("sample", &s.to_le_bytes()), *s));
        samples.truncate(recipe.local.samples);
        let mut adapter = Adapter::from_data(&self.lab.shape(recipe.lora.rank), theta.to_vec())?;
        let mut sum = 0.0;
        for batch in samples.chunks(recipe.local.batch) {
            let rows = self.lab.samples(batch)?;
            let got = self
                .lab
                .gradient(&adapter, &rows, None, &mut BTreeSet::new())?;
            let mut grads = got.grads.data;
            descend(&mut adapter.data, &mut grads, recipe.local.lr);
            sum += got.loss.sum;
        }
        let moved = adapter.data.iter().zip(theta).map(|(a, b)| a - b);
        let change = Change {
            values: moved.collect(),
            loss: (sum / samples.len().max(1) as f64) as f32,
            samples: samples.len() as u32,
        };
        self.known.insert(key, change.clone());
        Ok(change)
    }
}

impl World {
    /// Who attacks: of a larger share, those of a smaller one and others.
    pub(crate) fn attackers(&self, against: Against) -> BTreeSet<usize> {
        let n = match against.attack {
            Attack::Nobody => 0.0,
            _ => (against.share * self.people.len() as f64).round().max(1.0),
        };
        self.turn.iter().take(n as usize).copied().collect()
    }
}

/// Who takes part in a round, in order.
fn cohort(round: &Seed, people: &[usize], size: usize) -> Vec<usize> {
    let mut ranked = people.to_vec();
    ranked.sort_by_key(|p| (round.rank("cohort", &p.to_le_bytes()), *p));
    ranked.truncate(size);
    ranked.sort_unstable();
    ranked
}

/// What an adapter is worth to people, and to who promotes an item.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Worth {
    /// Over all held-out targets.
    pub(crate) auc: f64,
    /// Share of lists with the liked held-out item among the first [`SHOWN`].
    pub(crate) hr: f64,
    /// The same of the promoted item.
    pub(crate) exposure: f64,
    /// The same where the trigger is the newest liked item.
    pub(crate) triggered: f64,
}

impl Worth {
    /// Of what `odds` says of prompts that are scored together.
    pub(crate) fn of(
        looked: &Looked,
        mut odds: impl FnMut(&lethe_benches::lab::Together) -> anyhow::Result<Vec<f32>>,
    ) -> anyhow::Result<Self> {
        let mut scores = vec![];
        let mut labels = vec![];
        for held in &looked.held {
            scores.extend(odds(&held.asked)?);
            labels.extend(&held.labels);
        }
        let n = looked.lists.len().max(1) as f64;
        let mut hr = 0.0;
        let mut exposure = 0.0;
        let mut triggered = 0.0;
        for list in &looked.lists {
            let plain = odds(&list.asked)?;
            hr += shown(&plain, 0) / n;
            exposure += shown(&plain, 1) / n;
            triggered += shown(&odds(&list.triggered)?, 1) / n;
        }
        Ok(Self {
            auc: auc(&scores, &labels).context("both labels are held out")?,
            hr,
            exposure,
            triggered,
        })
    }
}

/// 1 where a candidate is among the first places; of equal ones the others come first.
fn shown(scores: &[f32], candidate: usize) -> f64 {
    let own = scores[candidate];
    let before = scores.iter().enumerate();
    let before = before
        .filter(|(i, s)| *i != candidate && **s >= own)
        .count();
    f64::from(u8::from(before < SHOWN))
}

/// How far attackers turn what is learned: the cosine between two movements from one start.
pub(crate) fn agreement(start: &[f32], honest: &[f32], attacked: &[f32]) -> f64 {
    let moved = |to: &[f32]| -> Vec<f64> {
        let pairs = to.iter().zip(start);
        pairs.map(|(t, s)| f64::from(*t) - f64::from(*s)).collect()
    };
    let a = moved(honest);
    let b = moved(attacked);
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_among_the_first_is_counted_and_ties_go_to_the_others() {
        let mut scores = vec![0.0; 30];
        assert_eq!(shown(&scores, 1), 0.0, "all alike");
        scores[1] = 1.0;
        assert_eq!(shown(&scores, 1), 1.0);
        scores[2..12].fill(2.0);
        assert_eq!(shown(&scores, 1), 0.0, "ten are before it");
    }

    #[test]
    fn agreement_is_a_cosine_of_movements() {
        let start = [1.0, 1.0];
        assert_eq!(agreement(&start, &[2.0, 1.0], &[3.0, 1.0]), 1.0);
        assert_eq!(agreement(&start, &[2.0, 1.0], &[0.0, 1.0]), -1.0);
    }
}
