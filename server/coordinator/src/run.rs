//! One run of a shard's training: live, or a replay that must reproduce it.

use std::collections::BTreeMap;
use std::sync::Arc;

use lethe_learn::seed::Seed;
use lethe_model::lora::{Adapter, AdapterShape};
use lethe_proto::ids::{Digest, RoundKey, ShardId, SubjectId};
use lethe_proto::packed::Packed;
use lethe_proto::round::Round;
use lethe_recipe::Recipe;

use crate::aggregate::Contribution;
use crate::records::{Contributor, TrainState};

/// A shard's training, between or inside rounds.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) shard: ShardId,
    /// The run that is served, not a replay.
    pub(crate) live: bool,
    pub(crate) generation: u32,
    /// 1-based; one past the last stage when done.
    pub(crate) stage: u16,
    pub(crate) round: u16,
    pub(crate) state: TrainState,
    /// Median length of the updates of each closed round, oldest first.
    pub(crate) norms: Vec<f32>,
    /// The round of this stage in which each subject's update counted last; only where updates feed
    /// back what they lose.
    pub(crate) counted: BTreeMap<SubjectId, u16>,
    pub(crate) open: Option<OpenRound>,
    /// Updates that are stored and have not counted yet: whose, and the round of this stage that
    /// they were begun in.
    pub(crate) buffer: BTreeMap<Contributor, Contribution>,
    /// Closed rounds of this stage whose late updates still count.
    pub(crate) past: BTreeMap<u16, Round>,
    /// Read from the store: what is stored of late updates is not in `buffer` yet.
    pub(crate) resumed: bool,
    /// A write of it failed: the store may hold it as it was, or as it became. It is read again
    /// before it goes on.
    pub(crate) stale: bool,
}

/// The round that is being trained.
#[derive(Debug)]
pub(crate) struct OpenRound {
    pub(crate) round: Round,
    /// When each client was given its task.
    pub(crate) began: BTreeMap<SubjectId, u64>,
    pub(crate) starved: u32,
    /// What its clients start from, once somebody asked: as it is sent, and the middle part.
    pub(crate) parts: Option<Arc<(Packed, Arc<Adapter>)>>,
}

/// Seed of a shard: its initialisation, cohorts and sample choices derive from it.
pub(crate) fn shard_seed(recipe: &Recipe, shard: ShardId) -> Seed {
    Seed::from_u64(recipe.seed).derive("shard", &[&shard.0.to_le_bytes()])
}

/// Seed of a round; it depends on stage and round but on no generation, so a replay draws the same.
pub(crate) fn round_seed(recipe: &Recipe, key: RoundKey) -> Seed {
    shard_seed(recipe, key.shard).derive(
        "round",
        &[&key.stage.to_le_bytes(), &key.round.to_le_bytes()],
    )
}

/// The state that a shard starts from: the one initialisation that all clients of the shard share.
pub(crate) fn initial(recipe: &Recipe, shape: &std::sync::Arc<AdapterShape>) -> TrainState {
    let theta = recipe.initial(shape).data;
    let zeros = vec![0.0; theta.len()];
    TrainState {
        first: zeros.clone(),
        second: zeros,
        theta,
        step: 0,
        losses: vec![],
    }
}

impl Run {
    /// A run between two rounds.
    pub(crate) fn at(key: RoundKey, live: bool, state: TrainState) -> Self {
        let RoundKey {
            shard,
            generation,
            stage,
            round,
        } = key;
        Self {
            shard,
            live,
            generation,
            stage,
            round,
            state,
            norms: vec![],
            counted: BTreeMap::new(),
            open: None,
            buffer: BTreeMap::new(),
            past: BTreeMap::new(),
            resumed: true,
            stale: false,
        }
    }

    /// What stands in a run's place while it is worked on: the same shard and round, nothing else,
    /// and to be read from the store before it goes on.
    pub(crate) fn doubtful(&self) -> Self {
        let nothing = TrainState {
            theta: vec![],
            first: vec![],
            second: vec![],
            step: 0,
            losses: vec![],
        };
        Self {
            stale: true,
            ..Self::at(self.key(), self.live, nothing)
        }
    }

    /// Mean loss of each closed round; `None` where nobody could take part.
    pub(crate) fn losses(&self) -> Vec<Option<f32>> {
        let losses = self.state.losses.iter();
        losses.map(|l| l.is_finite().then_some(*l)).collect()
    }

    /// A round of this stage that takes updates.
    pub(crate) fn round_mut(&mut self, round: u16) -> Option<&mut Round> {
        match self.open.as_mut().filter(|_| round == self.round) {
            Some(open) => Some(&mut open.round),
            None => self.past.get_mut(&round),
        }
    }

    /// An update is stored, and waits for the round that counts it.
    pub(crate) fn stored(&mut self, (subject, begun): Contributor, contribution: Contribution) {
        if let Some(round) = self.round_mut(begun) {
            round.stored(&subject);
        }
        self.buffer.insert((subject, begun), contribution);
        self.count_late();
    }

    /// Tells the open round how many updates of earlier ones count in it.
    pub(crate) fn count_late(&mut self) {
        let late = self
            .buffer
            .keys()
            .filter(|(_, begun)| *begun < self.round)
            .count();
        if let Some(open) = self.open.as_mut().filter(|_| self.live) {
            open.round.count_late(late);
        }
    }

    /// The round in which an update of a subject counted last, or will count.
    pub(crate) fn counted_of(&self, subject: &SubjectId) -> Option<u16> {
        let of = (subject.clone(), 0)..=(subject.clone(), u16::MAX);
        let waits = self
            .buffer
            .range(of)
            .map(|((_, begun), _)| *begun)
            .rfind(|b| *b < self.round);
        waits.max(self.counted.get(subject).copied())
    }

    /// Forgets what a subject has given, and waits for it no more.
    pub(crate) fn remove(&mut self, subject: &SubjectId) {
        self.buffer.retain(|(s, _), _| s != subject);
        self.past.values_mut().for_each(|r| r.remove(subject));
        if let Some(open) = self.open.as_mut() {
            open.round.remove(subject);
        }
        self.count_late();
    }

    pub(crate) fn key(&self) -> RoundKey {
        RoundKey {
            shard: self.shard,
            generation: self.generation,
            stage: self.stage,
            round: self.round,
        }
    }

    pub(crate) fn done(&self, recipe: &Recipe) -> bool {
        usize::from(self.stage) > recipe.slices
    }

    pub(crate) fn hash(&self) -> Digest {
        Digest::of_values(&self.state.theta)
    }

    /// The cohort of this round among `members` (`(subject, slice)`): the first by a seeded rank of
    /// the subject alone, so that who is chosen depends on the others only through who ranks
    /// before.
    pub(crate) fn cohort<'a>(
        &self,
        recipe: &Recipe,
        members: impl Iterator<Item = (&'a SubjectId, u16)>,
    ) -> Vec<SubjectId> {
        let seed = round_seed(recipe, self.key());
        let eligible = members.filter(|(_, slice)| *slice < self.stage);
        let mut ranked: Vec<(u64, &SubjectId)> = eligible
            .map(|(s, _)| (seed.rank("cohort", s.as_str().as_bytes()), s))
            .collect();
        ranked.sort();
        ranked
            .into_iter()
            .take(recipe.cohort)
            .map(|(_, s)| s.clone())
            .collect()
    }

    /// Moves past a closed round; true when that ended the stage.
    pub(crate) fn advance(&mut self, recipe: &Recipe) -> bool {
        let closed = self.open.take();
        self.round += 1;
        if usize::from(self.round) < recipe.rounds {
            if let (Some(closed), Some(most)) = (closed, recipe.staleness) {
                self.past.insert(self.round - 1, closed.round.linger());
                self.past
                    .retain(|begun, _| usize::from(self.round - begun) <= most);
            }
            return false;
        }
        // A stage ends with all that it learned from: what is late for its last round is lost.
        self.past.clear();
        self.round = 0;
        self.stage += 1;
        self.counted.clear();
        true
    }

    /// `(done, all)` rounds.
    pub(crate) fn progress(&self, recipe: &Recipe) -> (u32, u32) {
        let per_stage = recipe.rounds as u32;
        let done = (u32::from(self.stage) - 1) * per_stage + u32::from(self.round);
        (done, per_stage * recipe.slices as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_is_worked_on_leaves_a_doubtful_one_in_its_place() {
        let key = RoundKey {
            shard: ShardId(3),
            generation: 2,
            stage: 1,
            round: 4,
        };
        let state = TrainState {
            theta: vec![1.0],
            first: vec![0.0],
            second: vec![0.0],
            step: 1,
            losses: vec![0.5, f32::NAN],
        };
        let run = Run::at(key, true, state);
        let left = run.doubtful();
        assert!(
            left.stale && left.open.is_none(),
            "read again before it goes on"
        );
        assert_eq!((left.key(), left.live), (key, true));
        assert_eq!(
            run.losses(),
            [Some(0.5), None],
            "no round's loss is not a number"
        );
    }
}
