//! An epoch: what it fixes, and how far its shards are. Public: it names nobody.

use std::collections::BTreeMap;

use lethe_learn::partition::SubShards;
use lethe_proto::ids::{Digest, ShardId, SubjectId};
use lethe_receipt::statement::Training;
use serde::{Deserialize, Serialize};

use super::person::Profile;
use crate::ids::{CatalogueVersion, EpochNo, RunKey, ShardKey, StageKey, Table, ValueRef};
use crate::terms::{Placement, Terms};

/// An epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Epoch {
    /// The numbers of the recipe that decide.
    pub terms: Terms,
    /// The recipe, JSON.
    pub recipe: String,
    /// Its digest.
    pub recipe_digest: Digest,
    /// The base model.
    pub model: Digest,
    /// Hash of the adapter that every shard starts from.
    pub initial: Digest,
    /// Version of the catalogue.
    pub catalogue: CatalogueVersion,
    /// Since the epoch has begun.
    pub partition: Option<Partition>,
    /// By shard number.
    pub shards: Vec<Shard>,
}

/// Side information of the partition, fixed when the epoch begins.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Partition {
    /// Shards of each anchor.
    pub sub_shards: SubShards,
    /// With tenure: whoever joined at or after the i-th time is in a slice after the i-th.
    pub tenure: Vec<u64>,
}

/// A shard of an epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Shard {
    /// What is served, or will be.
    pub run: Run,
    /// What the log is to say that the shard is trained on; entered, but not known to be.
    pub intended: Option<Intended>,
    /// What the log says.
    pub logged: Option<TrainingRecord>,
    /// The newest replay.
    pub replay: Option<Replay>,
}

/// A run of a shard's training, between two rounds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Grows with every rollback and replay.
    pub generation: u32,
    /// 1-based; one past the last stage when done.
    pub stage: u16,
    /// 0-based round of the stage.
    pub round: u16,
    /// What every closed round left, in order.
    pub rounds: Vec<RoundSum>,
    /// Where the state is; the initial one when nowhere.
    pub state: Option<ValueRef>,
    /// Hash of its adapter.
    pub hash: Digest,
    /// Stages that were begun.
    pub stages: BTreeMap<u16, StageSum>,
}

/// What a closed round left, besides names.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoundSum {
    /// Mean loss; none when nobody took part.
    pub loss: Option<f32>,
    /// Median length of the updates, likewise.
    pub norm: Option<f32>,
    /// Updates.
    pub clients: u32,
}

/// A stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageSum {
    /// Generation in which it was begun.
    pub generation: u32,
    /// Since it has ended.
    pub checkpoint: Option<Checkpoint>,
}

/// A run at the end of a stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Where it is.
    pub value: ValueRef,
    /// Hash of the adapter.
    pub hash: Digest,
    /// `lethe_plan::lineage::checkpoint_key`.
    pub lineage: Digest,
}

/// A training statement that was made, and is not known to be in the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Intended {
    /// The statement.
    pub training: Training,
    /// Its salt.
    pub salt: [u8; 32],
}

/// What the log says that a shard is trained on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainingRecord {
    /// The statement.
    pub training: Training,
    /// Its salt.
    pub salt: [u8; 32],
    /// The entry.
    pub index: u64,
}

/// A shard trained again from nothing, with the recorded rounds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Replay {
    /// How far it is.
    pub run: Run,
    /// When it was asked for, in milliseconds since 1970.
    pub started: u64,
    /// When it ended, likewise.
    pub ended: Option<u64>,
    /// `(replayed, live)` when finished.
    pub hashes: Option<(Digest, Digest)>,
    /// Why it was given up.
    pub failure: Option<String>,
}

impl Run {
    /// From nothing.
    pub fn initial(generation: u32, hash: Digest) -> Self {
        Self {
            generation,
            stage: 1,
            round: 0,
            rounds: vec![],
            state: None,
            hash,
            stages: BTreeMap::new(),
        }
    }

    /// All stages are trained.
    pub fn done(&self, terms: &Terms) -> bool {
        self.stage > terms.slices
    }

    /// The round that is next, or is being trained.
    pub fn key(&self, at: ShardKey) -> RunKey {
        RunKey {
            epoch: at.epoch,
            shard: at.shard,
            generation: self.generation,
            stage: self.stage,
            round: self.round,
        }
    }

    /// `(done, all)` rounds.
    pub fn progress(&self, terms: &Terms) -> (u32, u32) {
        let per_stage = u32::from(terms.rounds);
        let done = u32::from(self.stage.saturating_sub(1)) * per_stage + u32::from(self.round);
        (done, per_stage * u32::from(terms.slices))
    }

    /// Mean loss of each closed round.
    pub fn losses(&self) -> Vec<Option<f32>> {
        self.rounds.iter().map(|r| r.loss).collect()
    }

    /// The newest checkpoint, and its stage; 0 and none for the initial state.
    pub fn newest(&self) -> (u16, Option<&Checkpoint>) {
        let kept = self.stages.iter().rev();
        let mut kept = kept.filter_map(|(s, sum)| Some((*s, sum.checkpoint.as_ref()?)));
        kept.next().map_or((0, None), |(s, c)| (s, Some(c)))
    }

    /// Keys of the stages from `from` on.
    pub fn stage_keys(&self, at: ShardKey, from: u16) -> impl Iterator<Item = StageKey> + '_ {
        self.stages.range(from..).map(move |(stage, sum)| StageKey {
            epoch: at.epoch,
            shard: at.shard,
            generation: sum.generation,
            stage: *stage,
        })
    }

    /// The key of a stage that was begun.
    pub fn stage_key(&self, at: ShardKey, stage: u16) -> Option<StageKey> {
        self.stage_keys(at, stage)
            .next()
            .filter(|k| k.stage == stage)
    }

    /// Values of the stages from `from` on, with the keys that seal them.
    pub fn values(&self, at: ShardKey, from: u16) -> Vec<(&ValueRef, StageKey)> {
        let mut out = vec![];
        for key in self.stage_keys(at, from) {
            let checkpoint = self
                .stages
                .get(&key.stage)
                .and_then(|s| s.checkpoint.as_ref());
            out.extend(checkpoint.map(|c| (&c.value, key)));
        }
        // A state between rounds is sealed under the stage that it has learned from.
        let state = self.state.as_ref().filter(|v| v.table == Table::RunState);
        let last = self.stage_keys(at, from).last();
        out.extend(state.zip(last));
        out
    }
}

impl Shard {
    /// Untrained.
    pub fn new(generation: u32, initial: Digest) -> Self {
        Self {
            run: Run::initial(generation, initial),
            intended: None,
            logged: None,
            replay: None,
        }
    }
}

impl Replay {
    /// Not ended.
    pub fn runs(&self) -> bool {
        self.ended.is_none()
    }
}

impl Epoch {
    /// A shard.
    pub fn shard(&self, shard: ShardId) -> Option<&Shard> {
        self.shards.get(usize::from(shard.0))
    }

    /// All shards are trained.
    pub fn trained(&self) -> bool {
        self.partition.is_some() && self.shards.iter().all(|s| s.run.done(&self.terms))
    }

    /// The shard of a person at `anchor`.
    pub fn shard_of(&self, subject: &SubjectId, anchor: u16) -> Option<ShardId> {
        let partition = self.partition.as_ref()?;
        let name = subject.as_str().as_bytes();
        let seed = self.terms.epoch_seed();
        let shard = partition.sub_shards.shard(usize::from(anchor), name, &seed);
        Some(ShardId(shard as u16))
    }

    /// The slice of a person: by a keyed hash, or by how long they have been here. The bounds of
    /// the latter are fixed when the epoch begins; a deletion never computes them again.
    pub fn slice_of(&self, subject: &SubjectId, since: u64) -> u16 {
        match (self.terms.placement, &self.partition) {
            (Placement::Hash, _) => {
                let seed = self.terms.epoch_seed();
                let rank = seed.rank("slice", subject.as_str().as_bytes());
                (rank % u64::from(self.terms.slices.max(1))) as u16
            }
            (Placement::Tenure, Some(p)) => p.tenure.iter().filter(|t| since >= **t).count() as u16,
            (Placement::Tenure, None) => 0,
        }
    }

    /// Gives a person their place, now that the epoch has begun.
    pub(crate) fn place(&self, no: EpochNo, subject: &SubjectId, profile: &mut Profile) {
        let since = profile.since;
        if let Some(place) = profile.places.get_mut(&no) {
            place.shard = self.shard_of(subject, place.anchor);
            place.slice = self.slice_of(subject, since);
        }
    }
}
