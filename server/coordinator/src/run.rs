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
use crate::records::TrainState;

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
    /// The round of this stage in which each subject's update counted last; only where updates feed back what they lose.
    pub(crate) counted: BTreeMap<SubjectId, u16>,
    pub(crate) open: Option<OpenRound>,
    /// A write of it failed: the store may hold it as it was, or as it became. It is read again before it goes on.
    pub(crate) stale: bool,
}

/// The round that is being trained.
#[derive(Debug)]
pub(crate) struct OpenRound {
    pub(crate) round: Round,
    pub(crate) stored: BTreeMap<SubjectId, Contribution>,
    /// When each client was given its task.
    pub(crate) began: BTreeMap<SubjectId, u64>,
    pub(crate) starved: u32,
    /// What its clients start from, once somebody asked: as it is sent, and the middle part.
    pub(crate) parts: Option<Arc<(Packed, Adapter)>>,
}

/// Seed of a shard: its initialisation, cohorts and sample choices derive from it.
pub(crate) fn shard_seed(recipe: &Recipe, shard: ShardId) -> Seed {
    Seed::from_u64(recipe.seed).derive("shard", &[&shard.0.to_le_bytes()])
}

/// Seed of a round; it depends on stage and round but on no generation, so a replay draws the same.
pub(crate) fn round_seed(recipe: &Recipe, key: RoundKey) -> Seed {
    shard_seed(recipe, key.shard).derive("round", &[&key.stage.to_le_bytes(), &key.round.to_le_bytes()])
}

/// The state that a shard starts from: the one initialisation that all clients of the shard share.
pub(crate) fn initial(recipe: &Recipe, shape: &std::sync::Arc<AdapterShape>) -> TrainState {
    let theta = recipe.initial(shape).data;
    let zeros = vec![0.0; theta.len()];
    TrainState { first: zeros.clone(), second: zeros, theta, step: 0, losses: vec![] }
}

impl Run {
    pub(crate) fn key(&self) -> RoundKey {
        RoundKey { shard: self.shard, generation: self.generation, stage: self.stage, round: self.round }
    }

    pub(crate) fn done(&self, recipe: &Recipe) -> bool {
        usize::from(self.stage) > recipe.slices
    }

    pub(crate) fn hash(&self) -> Digest {
        Digest::of_values(&self.state.theta)
    }

    /// The cohort of this round among `members` (`(subject, slice)`): the first by a seeded rank of the subject alone,
    /// so that who is chosen depends on the others only through who ranks before.
    pub(crate) fn cohort<'a>(
        &self,
        recipe: &Recipe,
        members: impl Iterator<Item = (&'a SubjectId, u16)>,
    ) -> Vec<SubjectId> {
        let seed = round_seed(recipe, self.key());
        let eligible = members.filter(|(_, slice)| *slice < self.stage);
        let mut ranked: Vec<(u64, &SubjectId)> =
            eligible.map(|(s, _)| (seed.rank("cohort", s.as_str().as_bytes()), s)).collect();
        ranked.sort();
        ranked.into_iter().take(recipe.cohort).map(|(_, s)| s.clone()).collect()
    }

    /// Moves past a closed round; true when that ended the stage.
    pub(crate) fn advance(&mut self, recipe: &Recipe) -> bool {
        self.open = None;
        self.round += 1;
        if usize::from(self.round) < recipe.rounds {
            return false;
        }
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
