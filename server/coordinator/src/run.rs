//! One run of a shard's training: live, or a replay that must reproduce it.

use std::collections::BTreeMap;
use std::sync::Arc;

use lethe_learn::seed::Seed;
use lethe_model::lora::AdapterShape;
use lethe_proto::ids::{Digest, EpochNo, RoundKey, ShardId, SubjectId};
use lethe_proto::round::Round;
use lethe_recipe::Recipe;

use crate::aggregate::Contribution;
use crate::core::Parts;
use crate::records::{Contributor, TrainState};

/// A shard's training, between or inside rounds.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) epoch: EpochNo,
    pub(crate) shard: ShardId,
    /// The run that is served, not a replay.
    pub(crate) live: bool,
    pub(crate) generation: u32,
    /// 1-based; one past the last stage when done.
    pub(crate) stage: u16,
    pub(crate) round: u16,
    pub(crate) state: Arc<TrainState>,
    /// Of its theta.
    pub(crate) hash: Digest,
    /// What its next round starts from, where that was computed with the last one.
    pub(crate) start: Option<Arc<Parts>>,
    /// What its open round counts is fixed, and is being added up.
    pub(crate) closing: bool,
    /// Median length of the updates of each closed round, oldest first.
    pub(crate) norms: Vec<f32>,
    /// The round of this stage in which each subject's update counted last; only where updates feed
    /// back what they lose.
    pub(crate) counted: BTreeMap<SubjectId, u16>,
    pub(crate) open: Option<OpenRound>,
    /// Updates that are stored and have not counted yet: whose, and the round of this stage that
    /// they were begun in.
    pub(crate) buffer: BTreeMap<Contributor, Arc<Contribution>>,
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
            epoch,
            shard,
            generation,
            stage,
            round,
        } = key;
        Self {
            epoch,
            shard,
            live,
            generation,
            stage,
            round,
            hash: Digest::of_values(&state.theta),
            state: Arc::new(state),
            start: None,
            closing: false,
            norms: vec![],
            counted: BTreeMap::new(),
            open: None,
            buffer: BTreeMap::new(),
            past: BTreeMap::new(),
            resumed: true,
            stale: false,
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
    pub(crate) fn stored(&mut self, of: Contributor, contribution: Arc<Contribution>) {
        if let Some(round) = self.round_mut(of.1) {
            round.stored(&of.0);
        }
        self.buffer.insert(of, contribution);
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
            epoch: self.epoch,
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
        self.hash
    }

    /// Whether an update that was begun in this round comes too late: what the open round counts is
    /// fixed. Where late updates count, it counts in the next, unless the stage ends with the open
    /// one, or it would be too old then.
    pub(crate) fn is_sealed(&self, recipe: &Recipe, begun: u16) -> bool {
        let next = usize::from(self.round) + 1;
        let age = next.saturating_sub(usize::from(begun));
        let young = recipe.staleness.is_some_and(|most| age <= most);
        self.closing && !(self.live && next < recipe.rounds && young)
    }

    /// The round that comes after the open one.
    pub(crate) fn after_round(&self, recipe: &Recipe) -> RoundKey {
        let next = RoundKey {
            round: self.round + 1,
            ..self.key()
        };
        if usize::from(next.round) < recipe.rounds {
            return next;
        }
        RoundKey {
            stage: self.stage + 1,
            round: 0,
            ..next
        }
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
        self.closing = false;
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
    fn what_a_closing_round_counts_is_fixed() {
        let key = RoundKey {
            epoch: EpochNo::FIRST,
            shard: ShardId(3),
            generation: 2,
            stage: 1,
            round: 0,
        };
        let state = TrainState {
            theta: vec![1.0],
            first: vec![0.0],
            second: vec![0.0],
            step: 1,
            losses: vec![0.5, f32::NAN],
        };
        let mut run = Run::at(key, true, state);
        assert_eq!(
            run.losses(),
            [Some(0.5), None],
            "no round's loss is not a number"
        );
        let waits = Recipe {
            rounds: 2,
            staleness: Some(1),
            ..Recipe::default()
        };
        let prompt = Recipe {
            staleness: None,
            ..waits.clone()
        };
        assert!(!run.is_sealed(&prompt, 0), "it takes updates");
        run.closing = true;
        assert!(run.is_sealed(&prompt, 0), "what comes now is refused");
        assert!(!run.is_sealed(&waits, 0), "or counts in the next round");
        let longer = Recipe {
            rounds: 3,
            ..waits.clone()
        };
        run.round = 1;
        assert!(!run.is_sealed(&longer, 1));
        assert!(run.is_sealed(&longer, 0), "it would be too old");
        run.round = 0;
        assert_eq!(run.after_round(&waits).round, 1);
        run.round = 1;
        assert!(
            run.is_sealed(&waits, 1),
            "there is no next round in this stage"
        );
        assert_eq!(run.after_round(&waits).stage, 2);
    }
}
