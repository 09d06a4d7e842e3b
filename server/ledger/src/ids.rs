//! Names and numbers: epochs, people, rounds, keys, values, time.

pub use lethe_proto::ids::EpochNo;
use lethe_proto::ids::{Digest, RoundKey, ShardId, SubjectId};
use lethe_proto::message::Refusal;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A person's number in lineages, given at the first invitation and to nobody else ever. It names
/// nobody once the person's key is gone.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct PersonNo(pub u32);

/// A version of the public catalogue.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct CatalogueVersion(pub u32);

/// What is learned: a release is a version of each part of an epoch. Only adapters are used yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum PartId {
    /// The adapters of the shards.
    Adapters,
    /// The recommender's integer sums.
    Sums,
}

/// A shard of an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ShardKey {
    /// The epoch.
    pub epoch: EpochNo,
    /// The shard.
    pub shard: ShardId,
}

/// A stage of a run of a shard. A key's name is made of it: a generation is never used twice, so
/// that a name that was destroyed never comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StageKey {
    /// The epoch.
    pub epoch: EpochNo,
    /// The shard.
    pub shard: ShardId,
    /// Generation in which the stage was begun.
    pub generation: u32,
    /// 1-based.
    pub stage: u16,
}

/// A round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RunKey {
    /// The epoch.
    pub epoch: EpochNo,
    /// The shard.
    pub shard: ShardId,
    /// Run of the shard: grows with every rollback and replay.
    pub generation: u32,
    /// 1-based; one past the last when done.
    pub stage: u16,
    /// 0-based.
    pub round: u16,
}

impl RunKey {
    /// As devices know it.
    pub fn wire(&self) -> RoundKey {
        RoundKey {
            epoch: self.epoch,
            shard: self.shard,
            generation: self.generation,
            stage: self.stage,
            round: self.round,
        }
    }

    /// The stage that the round belongs to.
    pub fn stage_key(&self) -> StageKey {
        StageKey {
            epoch: self.epoch,
            shard: self.shard,
            generation: self.generation,
            stage: self.stage,
        }
    }

    /// The shard.
    pub fn shard_key(&self) -> ShardKey {
        ShardKey {
            epoch: self.epoch,
            shard: self.shard,
        }
    }
}

/// Whose update, and the round of the stage that it was begun in.
pub type Contributor = (SubjectId, u16);

/// Which key seals something.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Owner {
    /// A key that is never destroyed.
    Public,
    /// The person's. After an execution that keeps the person it is a fresh key of this name.
    Person(SubjectId),
    /// A stage's.
    Stage(StageKey),
    /// A deletion's: evidence.
    Deletion(u64),
    /// Those who stay, until a deletion has been executed.
    Kept(u64),
    /// A proposal's.
    Proposal(u64),
}

/// A slice of the state: the unit of sealing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum SliceId {
    /// Numbers, policy, operators.
    Core,
    /// An epoch.
    Epoch(EpochNo),
    /// A release.
    Release(u64),
    /// Something that an operator did.
    Action(u64),
    /// A person.
    Person(SubjectId),
    /// Who contributed to a stage.
    Stage(StageKey),
    /// A deletion.
    Deletion(u64),
    /// Those who stay.
    Kept(u64),
    /// A proposal.
    Proposal(u64),
    /// What a deletion did to the lists.
    Lists(u64),
    /// When an epoch was founded, began, was served and ended.
    Life(EpochNo),
    /// A version of the catalogue.
    Catalogue(CatalogueVersion),
    /// That a restriction was lifted.
    Lifted(u64),
    /// What the newest replay of a shard has found.
    Proof(ShardKey),
    /// That a shard waits for an operator.
    Hold(ShardKey),
    /// What the log holds of what is served.
    Logged,
}

impl SliceId {
    /// The key that seals it.
    pub fn owner(&self) -> Owner {
        match self {
            Self::Core
            | Self::Epoch(_)
            | Self::Release(_)
            | Self::Action(_)
            | Self::Lists(_)
            | Self::Life(_)
            | Self::Catalogue(_)
            | Self::Lifted(_)
            | Self::Proof(_)
            | Self::Hold(_)
            | Self::Logged => Owner::Public,
            Self::Person(s) => Owner::Person(s.clone()),
            Self::Stage(k) => Owner::Stage(*k),
            Self::Deletion(id) => Owner::Deletion(*id),
            Self::Kept(id) => Owner::Kept(*id),
            Self::Proposal(id) => Owner::Proposal(*id),
        }
    }

    /// The slice of an owner; the public key seals many.
    pub fn of(owner: &Owner) -> Option<Self> {
        Some(match owner {
            Owner::Public => return None,
            Owner::Person(s) => Self::Person(s.clone()),
            Owner::Stage(k) => Self::Stage(*k),
            Owner::Deletion(id) => Self::Deletion(*id),
            Owner::Kept(id) => Self::Kept(*id),
            Owner::Proposal(id) => Self::Proposal(*id),
        })
    }
}

/// Where a value lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Table {
    /// An acknowledged update.
    Update,
    /// A run between two rounds of a stage.
    RunState,
    /// A run at the end of a stage.
    Checkpoint,
    /// A client's own parameters in mode `personalized`.
    Personal,
    /// A person's rows of the error table.
    ErrorRows,
    /// A receipt.
    Receipt,
    /// What a version of the catalogue changed.
    Catalogue,
}

/// A value that is too large for an event, or nobody's business. An id is never used twice: it has
/// the epoch, generation, stage and round in it, or a sequence number.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ValueRef {
    /// Where.
    pub table: Table,
    /// Under which name.
    pub id: String,
    /// What it is.
    pub digest: Digest,
}

/// The time. Neither clock goes back: the shell sees to that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds since 1970, for what concerns people and operators.
    pub unix_ms: u64,
    /// Milliseconds since the process started, for rounds.
    pub uptime_ms: u64,
}

/// 32 random bytes that the shell has drawn for this command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fresh(pub [u8; 32]);

impl Fresh {
    /// The salt of the `index`-th thing that a command makes.
    pub fn salt(&self, index: u64) -> [u8; 32] {
        Digest::of(&[&self.0, &index.to_le_bytes()]).0
    }
}

/// A command that does not fit the state.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{message}")]
pub struct Refused {
    /// A stable code.
    pub code: Refusal,
    /// Expected, got, and what to do.
    pub message: String,
}

impl Refused {
    /// With this code and message.
    pub fn new(code: Refusal, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(Refusal::Invalid, message)
    }

    pub(crate) fn executing() -> Self {
        Self::new(
            Refusal::Busy,
            "a deletion is being executed: try again in a moment",
        )
    }
}

impl From<lethe_plan::PlanError> for Refused {
    fn from(e: lethe_plan::PlanError) -> Self {
        let code = match &e {
            lethe_plan::PlanError::UnknownSubject(_) => Refusal::NotFound,
            _ => Refusal::Invalid,
        };
        Self::new(code, e.to_string())
    }
}

impl From<lethe_plan::LintError> for Refused {
    fn from(e: lethe_plan::LintError) -> Self {
        Self::new(Refusal::Internal, e.to_string())
    }
}
