//! The messages of the admin tool.

use serde::{Deserialize, Serialize};

use crate::ids::{Digest, ShardId, SubjectId};

/// What the admin tool asks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum AdminRequest {
    /// Delete a subject, or some items of a subject.
    Forget {
        /// The subject.
        subject: SubjectId,
        /// Items to forget; empty: everything.
        items: Vec<String>,
        /// Only plan.
        dry_run: bool,
    },
    /// State of a deletion.
    Deletion {
        /// Its number.
        id: u64,
    },
    /// The receipt of a finished deletion.
    Receipt {
        /// Its number.
        id: u64,
    },
    /// Retrain a shard from scratch on what remains and compare.
    Replay {
        /// The shard.
        shard: ShardId,
    },
    /// State of a replay.
    ReplayStatus {
        /// The shard.
        shard: ShardId,
    },
    /// State of the coordinator.
    Status,
    /// Issue a single-use enrolment token.
    Invite {
        /// Who may enrol with it; `None` for another admin.
        subject: Option<SubjectId>,
    },
    /// Revoke all certificates of a subject.
    Revoke {
        /// The subject.
        subject: SubjectId,
    },
}

/// What the coordinator answers to the admin tool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum AdminReply {
    /// A deletion was planned (`id` is `None` for a dry run) or its state was asked.
    Deletion(DeletionState),
    /// Receipt, JSON.
    Receipt(String),
    /// State of a replay.
    Replay(ReplayState),
    /// State of the coordinator.
    Status(CoordinatorStatus),
    /// An enrolment token.
    Invited {
        /// The token; shown once.
        token: String,
    },
    /// Done.
    Done,
}

/// A deletion, as far as it got.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeletionState {
    /// Number; `None` when only planned.
    pub id: Option<u64>,
    /// The plan, for people.
    pub plan: String,
    /// Where it stands.
    pub phase: DeletionPhase,
    /// Seconds from acceptance until the served model was free of the data.
    pub seconds_until_exact: Option<f64>,
    /// Seconds from acceptance until the shards were retrained and released.
    pub seconds_until_retrained: Option<f64>,
    /// Hash of every shard's served adapter before.
    pub before: Vec<Digest>,
    /// Hash of every shard's served adapter now.
    pub now: Vec<Digest>,
    /// Shards the deletion touches.
    pub affected: Vec<ShardId>,
}

/// Where a deletion stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeletionPhase {
    /// Planned only.
    Planned,
    /// Served model exact; waiting for the subject's device to erase items.
    WaitingForDevice,
    /// Served model exact; later slices are being retrained.
    Retraining,
    /// Released, receipt written.
    Done,
}

/// A replay, as far as it got.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReplayState {
    /// The shard.
    pub shard: ShardId,
    /// Rounds done and in all.
    pub rounds: (u32, u32),
    /// `(replayed, live)` adapter hashes when finished.
    pub hashes: Option<(Digest, Digest)>,
    /// Seconds so far.
    pub seconds: f64,
}

/// The coordinator at a glance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CoordinatorStatus {
    /// Version and build.
    pub build: String,
    /// Subjects that joined.
    pub subjects: u32,
    /// The epoch has started.
    pub started: bool,
    /// Release being served, 0 before the first.
    pub release: u64,
    /// Validation reports are complete for this release.
    pub validated: bool,
    /// Every shard.
    pub shards: Vec<ShardStatus>,
    /// Live connections.
    pub connections: u32,
    /// Bytes received from and sent to clients: `(updates, activations)`.
    pub bytes: (u64, u64),
    /// Public key of the log (verifier key text).
    pub log_key: String,
}

/// One shard at a glance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShardStatus {
    /// Subjects in it.
    pub subjects: u32,
    /// Rounds done and in all.
    pub rounds: (u32, u32),
    /// Hash of the current adapter.
    pub adapter: Digest,
    /// Training is finished.
    pub done: bool,
    /// Mean loss of each finished round.
    pub losses: Vec<f32>,
}
