//! What a folder of format 1 holds, as the last build of that format declared it. These types are
//! only read, by the migration; nothing writes them any more, and none of them may change.

use lethe_learn::partition::SubShards;
use lethe_plan::lineage::Census;
use lethe_plan::{Plan, Rates};
use lethe_proto::admin::DeletionPhase;
use lethe_proto::codec;
use lethe_proto::deletion::{DeletionRequest, Proposal};
use lethe_proto::ids::{Digest, ShardId, SubjectId};
use lethe_receipt::records::Leaf;
use lethe_receipt::statement::{Statement, Training};
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
pub(super) struct SubjectRecord {
    pub(super) anchor: u16,
    pub(super) samples: u32,
    pub(super) commitment: Digest,
    pub(super) shard: Option<ShardId>,
    pub(super) slice: u16,
    /// Came after the epoch started, or did not erase in time: not trained on. With `erase` still
    /// set, nothing that the device measures is taken either.
    pub(super) idle: bool,
    /// The person's data is kept, but used for nothing (such subjects are idle too).
    pub(super) restricted: bool,
    pub(super) erase: Option<PendingErase>,
    /// Number in lineages; never given to anybody else.
    pub(super) number: u32,
    /// Salt of the person's record in the shard's tree of records.
    pub(super) salt: [u8; 32],
    /// When the subject first joined, in milliseconds since 1970.
    pub(super) since: u64,
}
persisted!(SubjectRecord, "subjects", Subject);

/// Items that a device was told to erase.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct PendingErase {
    pub(super) task: u64,
    pub(super) items: Vec<String>,
    /// And what happened at or after this time, in Unix seconds.
    pub(super) from: Option<i64>,
    /// The device has confirmed; it must join again with what remains.
    pub(super) confirmed: bool,
}

/// A subject's certificate. Key: its fingerprint.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct SubjectCert(pub(super) SubjectId);
persisted!(SubjectCert, "certificates", Subject);

/// An operator's certificate. Key: its fingerprint.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct AdminCert;
persisted!(AdminCert, "admin-certificates", Public);

/// What is known of an operator's certificate; absent for those that an older version issued. Key:
/// its fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OperatorRecord {
    /// Fingerprint of this operator's first certificate: who they are, whatever they renew.
    pub(super) root: Digest,
    /// Unix seconds.
    pub(super) since: u64,
    /// Unix seconds.
    pub(super) expires: u64,
}
persisted!(OperatorRecord, "operators", Public);

/// A certificate that replaces another one, which is withdrawn when this one is first used. Key:
/// the new certificate's fingerprint. It names nobody.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Renewal {
    pub(super) replaces: Digest,
}
persisted!(Renewal, "renewals", Public);

/// An invitation for a subject. Key: digest of its secret.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Invite(pub(super) SubjectId);
persisted!(Invite, "invitations", Subject);

/// An invitation for an operator. Key: digest of its secret.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct AdminInvite;
persisted!(AdminInvite, "admin-invitations", Public);

/// What identifies the epoch and the log. Key: empty.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Foundation {
    pub(super) authority: AuthorityRecord,
    pub(super) log_seed: [u8; 32],
    pub(super) recipe: String,
    pub(super) model: Digest,
}
persisted!(Foundation, "foundation", Public);

/// Side information of the partition, fixed when the epoch starts. Key: empty.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Epoch {
    pub(super) sub_shards: SubShards,
    /// With `placement = "tenure"`: whoever joined at or after the i-th time is in a slice after
    /// the i-th.
    pub(super) tenure: Vec<u64>,
}
persisted!(Epoch, "epoch", Public);

/// Numbers that never go back. Key: empty.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Counters {
    pub(super) release: u64,
    /// Adapter hash per shard in that release.
    pub(super) served: Vec<Digest>,
    pub(super) generation: u32,
    pub(super) deletion: u64,
    pub(super) task: u64,
    pub(super) subject: u32,
    pub(super) proposal: u64,
}
persisted!(Counters, "counters", Public);

/// Training state of a shard. It is sealed under its stage's key, like everything that a stage
/// learned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct TrainState {
    #[serde(with = "codec::values")]
    pub(super) theta: Vec<f32>,
    #[serde(with = "codec::values")]
    pub(super) first: Vec<f32>,
    #[serde(with = "codec::values")]
    pub(super) second: Vec<f32>,
    pub(super) step: u32,
    pub(super) losses: Vec<f32>,
}

/// Generation of a shard's training; a rollback begins a new one, so that what belonged to the old
/// is refused. Key: the shard.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Generation(pub(super) u32);
persisted!(Generation, "generations", Public);

/// A shard between rounds. Key: the shard.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct RunRecord {
    pub(super) stage: u16,
    pub(super) round: u16,
    pub(super) state: TrainState,
}
persisted!(RunRecord, "runs", Shard);

/// A shard at the end of a stage. Key: `shard/stage`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Checkpoint {
    /// `lethe_plan::lineage::checkpoint_key`.
    pub(super) lineage: Digest,
    pub(super) state: TrainState,
}
persisted!(Checkpoint, "checkpoints", Shard);

/// A client's own parameters in mode `personalized`, as a stage left them. Key:
/// `shard/stage/subject`, in a replay with the generation in front. They mix what all clients of
/// the shard learned, so they are shard data.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct PersonalRecord(#[serde(with = "codec::values")] pub(super) Vec<f32>);
persisted!(PersonalRecord, "personal", Shard);

/// Who contributed to a round. Key: `shard/stage/round`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct RoundRecord {
    pub(super) contributors: Vec<SubjectId>,
}
persisted!(RoundRecord, "rounds", Shard);

/// The round of the same stage that each contributor of a round began in; only where somebody was
/// late. Key: as of the round.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct BegunRecord(pub(super) Vec<u16>);
persisted!(BegunRecord, "rounds-begun", Shard);

/// Median length (L2 norm) of a round's updates. Key: as of the round.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct NormRecord(pub(super) f32);
persisted!(NormRecord, "round-norms", Shard);

/// What rounds have cost so far. Key: empty.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct RatesRecord(pub(super) Rates);
persisted!(RatesRecord, "rates", Public);

/// What the log was when the data folder last had a part in it: an evidence folder that does not
/// continue it is another. Key: empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LogHead {
    pub(super) entries: u64,
    pub(super) root: [u8; 32],
}
persisted!(LogHead, "log-head", Public);

/// What the log says that a shard is trained on. Key: the shard.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct TrainingRecord {
    pub(super) training: Training,
    pub(super) salt: [u8; 32],
    pub(super) index: u64,
}
persisted!(TrainingRecord, "trainings", Public);

/// Whose data a release was computed from. Key: the release. It holds numbers; whose they are goes
/// with the subject's key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct ReleaseRecord {
    /// Unix seconds.
    pub(super) at: u64,
    /// Per shard: adapter and subjects.
    pub(super) shards: Vec<(Digest, Census)>,
    /// Subjects with rows in the error table.
    pub(super) validation: Census,
    /// A deletion has withdrawn it.
    pub(super) recalled: bool,
}
persisted!(ReleaseRecord, "releases", Public);

/// The release that a subject's device fetched last. Key: the subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DeviceRecord {
    pub(super) release: u64,
}
persisted!(DeviceRecord, "devices", Subject);

/// An acknowledged update of an open round, sealed under the stage's [`UpdateKey`] and then
/// under its subject's key: destroying either makes it unreadable, wherever a copy of it may still
/// lie. Key: `shard/generation/stage/round/subject`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct UpdateRecord(#[serde(with = "serde_bytes")] pub(super) Vec<u8>);
persisted!(UpdateRecord, "updates", Subject);

/// Key of the updates of a stage's rounds. Key: `shard/stage`.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct UpdateKey(pub(super) [u8; 32]);
persisted!(UpdateKey, "update-keys", Shard);

/// A subject's rows of the error table. Key: the subject.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct ErrorRecord {
    pub(super) rows: Vec<ErrorRowRecord>,
}
persisted!(ErrorRecord, "errors", Subject);

/// One validation sample: an error counts only while the adapter it was measured on is served.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct ErrorRowRecord {
    pub(super) sample: u32,
    pub(super) embedding: Vec<f32>,
    pub(super) errors: Vec<Option<(Digest, f32)>>,
}

/// A deletion in progress or done. Key: its number.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct DeletionRecord {
    pub(super) request: DeletionRequest,
    /// Requests that were accepted together with this one, itself included.
    pub(super) batch: u32,
    /// For this request alone.
    pub(super) plan: Plan,
    pub(super) phase: DeletionPhase,
    /// When it was asked for, in milliseconds since 1970: earlier than accepted, if others had to
    /// agree.
    pub(super) requested_at: u64,
    /// Milliseconds since 1970.
    pub(super) accepted_at: u64,
    pub(super) exact_after_ms: Option<u64>,
    pub(super) retrained_after_ms: Option<u64>,
    pub(super) before: Vec<Digest>,
    /// Hash served at once, per rolled-back shard.
    pub(super) rolled_back: Vec<(ShardId, u16, Digest)>,
    pub(super) keys_destroyed: u32,
    pub(super) salt: [u8; 32],
    /// Number of the erase task, for deletions of items.
    pub(super) task: Option<u64>,
    /// That the person's record was trained on.
    pub(super) proof: Option<RecordBefore>,
    /// Bytes of training, both ways, when it was accepted.
    pub(super) bytes_before: u64,
    /// What the log is to hold, once everything is done.
    #[serde(with = "as_json")]
    pub(super) statement: Option<Statement>,
    /// What came with the request.
    pub(super) reference: String,
}
persisted!(DeletionRecord, "deletions", Evidence);

/// A statement leaves fields out where its version has none, which only JSON can express.
mod as_json {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    use super::Statement;

    pub(super) fn serialize<S: Serializer>(
        statement: &Option<Statement>,
        s: S,
    ) -> Result<S::Ok, S::Error> {
        let json = statement.as_ref().map(lethe_receipt::statement::canonical);
        json.serialize(s)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        d: D,
    ) -> Result<Option<Statement>, D::Error> {
        let json = Option::<Vec<u8>>::deserialize(d)?;
        let parse = |json: Vec<u8>| serde_json::from_slice(&json).map_err(D::Error::custom);
        json.map(parse).transpose()
    }
}

/// Those who stay: what is written anew under each person's fresh key, and the certificates that
/// stay. Key: the deletion's number, under a key of its own, which goes when the deletion has been
/// executed.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct KeptRecord(pub(super) Vec<Kept>);
persisted!(KeptRecord, "kept", Evidence);

/// A person who stays, without some of their data.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Kept {
    pub(super) subject: SubjectId,
    pub(super) record: SubjectRecord,
    pub(super) certificates: Vec<Digest>,
}

/// What devices removed for a deletion so far. Key: the deletion's number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RemovedRecord {
    /// Events.
    pub(super) events: u64,
    /// Devices that answered.
    pub(super) answered: u32,
}
persisted!(RemovedRecord, "removed", Evidence);

/// Where the log holds a deletion's order to devices. Key: the deletion's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OrderRecord {
    pub(super) index: u64,
}
persisted!(OrderRecord, "orders", Evidence);

/// A person's record among those that a shard was trained on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct RecordBefore {
    pub(super) salt: [u8; 32],
    pub(super) training: TrainingRecord,
    pub(super) member: Leaf,
}

/// An issued receipt. Key: the deletion's number.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct ReceiptRecord(pub(super) Vec<u8>);
persisted!(ReceiptRecord, "receipts", Evidence);

/// How many operators have to agree to a deletion. Key: empty.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Policy {
    pub(super) approvals: u8,
}
persisted!(Policy, "policy", Public);

/// A proposal that waits for other operators. Key: its number. It goes when it is carried out or
/// withdrawn.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct ProposalRecord {
    pub(super) what: Proposal,
    /// Milliseconds since 1970.
    pub(super) at: u64,
    pub(super) approved: Vec<Digest>,
}
persisted!(ProposalRecord, "proposals", Evidence);

/// Something that an operator did; it names nobody. Key: the log's entry.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct ActionRecord {
    pub(super) salt: [u8; 32],
    pub(super) action: Action,
}
persisted!(ActionRecord, "actions", Public);

/// The statement of an action.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Action {
    /// Unix seconds.
    pub(super) at: u64,
    /// Fingerprint of the operator's certificate.
    pub(super) by: Digest,
    pub(super) what: String,
}
