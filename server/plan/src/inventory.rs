//! What the planner knows.

use lethe_proto::ids::{ShardId, SubjectId};
use serde::{Deserialize, Serialize};

use crate::forecast::Rates;

/// A subject's place in a shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The subject.
    pub subject: SubjectId,
    /// 0-based slice: the subject's data enters at stage `slice + 1`.
    pub slice: u16,
    /// Training samples.
    pub samples: u32,
    /// Set aside: restricted, or left out until the next epoch. Never trained on again in this
    /// epoch.
    pub idle: bool,
}

/// A shard.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShardInventory {
    /// The shard.
    pub id: ShardId,
    /// Its subjects.
    pub members: Vec<Member>,
    /// Stage that training has entered (1-based; 0 before the first round).
    pub trained_stage: u16,
    /// Mean training loss at the end of every finished stage.
    pub losses: Vec<Option<f32>>,
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Inventory {
    /// All shards.
    pub shards: Vec<ShardInventory>,
    /// Subjects that were invited, enrolled or joined but are in no shard (yet).
    pub unplaced: Vec<SubjectId>,
    /// Stages per shard (R).
    pub stages: u16,
    /// Rounds per stage.
    pub rounds_per_stage: u32,
    /// Clients per round, at most.
    pub cohort: u32,
    /// Samples that a client trains on in a round, at most.
    pub samples_per_round: u32,
    /// What rounds have cost so far.
    pub rates: Rates,
}

impl Inventory {
    /// Whether anything is known of a subject.
    pub fn knows(&self, subject: &SubjectId) -> bool {
        self.unplaced.contains(subject)
            || self
                .shards
                .iter()
                .any(|s| s.members.iter().any(|m| m.subject == *subject))
    }
}

impl ShardInventory {
    /// First stage that saw data of a member for which `concerned` holds, if training has reached
    /// it. Who is idle is in no stage: came later, or was taken out by a rollback.
    pub fn first_stage(&self, concerned: impl Fn(&Member) -> bool) -> Option<u16> {
        let first = self
            .members
            .iter()
            .filter(|m| !m.idle && concerned(m))
            .map(|m| m.slice + 1)
            .min()?;
        (self.trained_stage >= first).then_some(first)
    }
}
