//! What operators ask about people whose data is not used, about shards that wait, and about
//! replays that have to do without somebody; and what a device is told of its own person.

use serde::{Deserialize, Serialize};

use crate::ids::{Digest, EpochNo, ShardId, SubjectId};

/// How a device's person stands: answer to [`crate::message::Request::Standing`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// The person's data is restricted: it is kept and used for nothing, and nothing of it is
    /// taken.
    pub restricted: bool,
    /// Number of the newest deletion about this person that was executed; 0: none. What the person
    /// contributed before it does not count any more.
    pub left: u64,
    /// Number of the newest deletion whose order to erase this device has carried out, as far as is
    /// known; 0: none. A copy of its folder that has not is an older one.
    pub ordered: u64,
    /// Why nothing is trained on the person's data, in words; empty when it is.
    pub not_trained: String,
}

/// A restriction of a person's data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestrictionState {
    /// Number of the deletion that it is.
    pub deletion: u64,
    /// Whose data.
    pub subject: SubjectId,
    /// Since when, in Unix seconds.
    pub since: u64,
    /// It is done: its receipt is there.
    pub done: bool,
    /// When it was lifted, in Unix seconds.
    pub lifted: Option<u64>,
}

/// Most people who are named in a [`ReplayProgress`], of each list.
pub const SHOWN: usize = 100;

/// A replay as far as it got, with who is missing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReplayProgress {
    /// The shard.
    pub shard: ShardId,
    /// Stages that need somebody who is missing are left out.
    pub without_missing: bool,
    /// What came of it.
    pub verdict: ReplayVerdict,
    /// Rounds done, those that were left out among them, and in all.
    pub rounds: (u32, u32),
    /// Stages that were trained again, or left out.
    pub stages: Vec<StageProof>,
    /// Whom the present round waits for: the first [`SHOWN`].
    pub waiting: Vec<SubjectId>,
    /// How many these are.
    pub waiting_in_all: u32,
    /// Whom stages need that were left out: the first [`SHOWN`].
    pub missing: Vec<MissingPerson>,
    /// How many these are.
    pub missing_in_all: u32,
    /// `(replayed, live)` adapter hashes, when all of it was trained again.
    pub hashes: Option<(Digest, Digest)>,
    /// Why it ended otherwise, in words; empty: it did not.
    pub why: String,
    /// Seconds so far.
    pub seconds: f64,
}

/// What came of a replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReplayVerdict {
    /// It goes on.
    Running,
    /// All stages were trained again, and give what is served.
    Equal,
    /// What was trained again is not what was recorded.
    Different,
    /// Every stage that was trained again gives what was recorded. Others were left out: nothing
    /// is proven of these.
    Partial,
    /// It ended before its end.
    GivenUp,
}

/// What a replay found of a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageProof {
    /// 1-based.
    pub stage: u16,
    /// What.
    pub outcome: StageOutcome,
}

/// What a replay found of a stage, from what it began with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StageOutcome {
    /// It gives what was recorded.
    Equal,
    /// It does not.
    Different {
        /// Hash of the adapter that it gives.
        replayed: Digest,
        /// Hash that was recorded.
        recorded: Digest,
    },
    /// It was left out; the next stage begins with what was recorded.
    Unproven {
        /// People whom it needs and who are missing.
        missing: u32,
    },
}

/// Somebody whom a replay needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingPerson {
    /// Number in lineages.
    pub number: u32,
    /// Who; `None`: they were deleted since.
    pub subject: Option<SubjectId>,
    /// Why, as far as is known, in words.
    pub why: String,
}

/// A shard in which nothing is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldShard {
    /// Its epoch.
    pub epoch: EpochNo,
    /// The shard.
    pub shard: ShardId,
    /// Its database was damaged; otherwise an operator holds it.
    pub damaged: bool,
    /// Since when, in Unix seconds.
    pub since: u64,
    /// It is trained by itself from then on, likewise; none: when an operator releases it.
    pub until: Option<u64>,
}
