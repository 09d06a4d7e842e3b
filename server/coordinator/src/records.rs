//! Everything that the coordinator stores, each type with its class.

use lethe_learn::partition::SubShards;
use lethe_plan::Plan;
use lethe_proto::admin::DeletionPhase;
use lethe_proto::ids::{Digest, ShardId, SubjectId};
use lethe_store::{Class, Persisted};
use lethe_transport::identity::AuthorityRecord;
use serde::{Deserialize, Serialize};

macro_rules! persisted {
    ($type:ty, $table:literal, $class:ident) => {
        impl Persisted for $type {
            const TABLE: &'static str = $table;
            const CLASS: Class = Class::$class;
        }
    };
}

/// A subject that joined. Key: the subject.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct SubjectRecord {
    pub(crate) anchor: u16,
    pub(crate) samples: u32,
    pub(crate) commitment: Digest,
    pub(crate) shard: Option<ShardId>,
    pub(crate) slice: u16,
    /// Came after the epoch started, or did not erase in time: not trained on. With `erase` still set, nothing that the
    /// device measures is taken either.
    pub(crate) idle: bool,
    pub(crate) erase: Option<PendingErase>,
}
persisted!(SubjectRecord, "subjects", Subject);

/// Items that a device was told to erase.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct PendingErase {
    pub(crate) task: u64,
    pub(crate) items: Vec<String>,
    /// The device has confirmed; it must join again with what remains.
    pub(crate) confirmed: bool,
}

/// A subject's certificate. Key: its fingerprint.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SubjectCert(pub(crate) SubjectId);
persisted!(SubjectCert, "certificates", Subject);

/// An operator's certificate. Key: its fingerprint.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct AdminCert;
persisted!(AdminCert, "admin-certificates", Public);

/// An invitation for a subject. Key: digest of its secret.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Invite(pub(crate) SubjectId);
persisted!(Invite, "invitations", Subject);

/// An invitation for an operator. Key: digest of its secret.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct AdminInvite;
persisted!(AdminInvite, "admin-invitations", Public);

/// What identifies the epoch and the log. Key: empty.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Foundation {
    pub(crate) authority: AuthorityRecord,
    pub(crate) log_seed: [u8; 32],
    pub(crate) recipe: String,
    pub(crate) model: Digest,
}
persisted!(Foundation, "foundation", Public);

/// Side information of the partition, fixed when the epoch starts. Key: empty.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Epoch {
    pub(crate) sub_shards: SubShards,
}
persisted!(Epoch, "epoch", Public);

/// Numbers that never go back. Key: empty.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Counters {
    pub(crate) release: u64,
    /// Adapter hash per shard in that release.
    pub(crate) served: Vec<Digest>,
    pub(crate) generation: u32,
    pub(crate) deletion: u64,
    pub(crate) task: u64,
}
persisted!(Counters, "counters", Public);

/// Training state of a shard. It is sealed under its stage's key, like everything that a stage learned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct TrainState {
    pub(crate) theta: Vec<f32>,
    pub(crate) first: Vec<f32>,
    pub(crate) second: Vec<f32>,
    pub(crate) step: u32,
    pub(crate) losses: Vec<f32>,
}

/// Generation of a shard's training; a rollback begins a new one, so that what belonged to the old is refused. Key: the
/// shard.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Generation(pub(crate) u32);
persisted!(Generation, "generations", Public);

/// A shard between rounds. Key: the shard.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RunRecord {
    pub(crate) stage: u16,
    pub(crate) round: u16,
    pub(crate) state: TrainState,
}
persisted!(RunRecord, "runs", Shard);

/// A shard at the end of a stage. Key: `shard/stage`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Checkpoint {
    /// `lethe_plan::lineage::checkpoint_key`.
    pub(crate) lineage: Digest,
    pub(crate) state: TrainState,
}
persisted!(Checkpoint, "checkpoints", Shard);

/// A client's own parameters in mode `personalized`, as a stage left them. Key: `shard/stage/subject`, in a replay with
/// the generation in front. They mix what all clients of the shard learned, so they are shard data.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PersonalRecord(pub(crate) Vec<f32>);
persisted!(PersonalRecord, "personal", Shard);

/// Who contributed to a round. Key: `shard/stage/round`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RoundRecord {
    pub(crate) contributors: Vec<SubjectId>,
}
persisted!(RoundRecord, "rounds", Shard);

/// An update, as a round aggregates it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Update {
    pub(crate) delta: Vec<f32>,
    pub(crate) sketch: Vec<f32>,
    pub(crate) loss: f32,
    pub(crate) samples: u32,
}

/// An acknowledged [`Update`] of an open round, sealed under the stage's [`UpdateKey`] and then under its subject's key:
/// destroying either makes it unreadable, wherever a copy of it may still lie. Key:
/// `shard/generation/stage/round/subject`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct UpdateRecord(pub(crate) Vec<u8>);
persisted!(UpdateRecord, "updates", Subject);

/// Key of the updates of a stage's rounds. Key: `shard/stage`.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct UpdateKey(pub(crate) [u8; 32]);
persisted!(UpdateKey, "update-keys", Shard);

/// A subject's rows of the error table. Key: the subject.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct ErrorRecord {
    pub(crate) rows: Vec<ErrorRowRecord>,
}
persisted!(ErrorRecord, "errors", Subject);

/// One validation sample: an error counts only while the adapter it was measured on is served.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ErrorRowRecord {
    pub(crate) sample: u32,
    pub(crate) embedding: Vec<f32>,
    pub(crate) errors: Vec<Option<(Digest, f32)>>,
}

/// A deletion in progress or done. Key: its number.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct DeletionRecord {
    pub(crate) plan: Plan,
    pub(crate) phase: DeletionPhase,
    /// Milliseconds since 1970.
    pub(crate) accepted_at: u64,
    pub(crate) exact_after_ms: Option<u64>,
    pub(crate) retrained_after_ms: Option<u64>,
    pub(crate) before: Vec<Digest>,
    /// Hash served at once, per rolled-back shard.
    pub(crate) rolled_back: Vec<(ShardId, u16, Digest)>,
    pub(crate) keys_destroyed: u32,
    pub(crate) salt: [u8; 32],
    /// Number of the erase task, for deletions of items.
    pub(crate) task: Option<u64>,
    /// For deletions of items: what is written anew under the person's fresh key, and the certificates that stay.
    pub(crate) keep: Option<(SubjectRecord, Vec<Digest>)>,
}
persisted!(DeletionRecord, "deletions", Evidence);

/// An issued receipt. Key: the deletion's number.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ReceiptRecord(pub(crate) Vec<u8>);
persisted!(ReceiptRecord, "receipts", Evidence);
