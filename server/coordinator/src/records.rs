//! Everything that the coordinator stores, each type with its class.

use std::collections::BTreeSet;

use lethe_learn::partition::SubShards;
use lethe_plan::lineage::Census;
use lethe_plan::{Plan, Rates};
use lethe_proto::admin::DeletionPhase;
use lethe_proto::codec;
use lethe_proto::deletion::{DeletionRequest, Proposal};
use lethe_proto::ids::{Digest, ShardId, SubjectId};
use lethe_proto::packed::Packed;
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
pub(crate) struct SubjectRecord {
    pub(crate) anchor: u16,
    pub(crate) samples: u32,
    pub(crate) commitment: Digest,
    pub(crate) shard: Option<ShardId>,
    pub(crate) slice: u16,
    /// Came after the epoch started, or did not erase in time: not trained on. With `erase` still
    /// set, nothing that the device measures is taken either.
    pub(crate) idle: bool,
    /// The person's data is kept, but used for nothing (such subjects are idle too).
    pub(crate) restricted: bool,
    pub(crate) erase: Option<PendingErase>,
    /// Number in lineages; never given to anybody else.
    pub(crate) number: u32,
    /// Salt of the person's record in the shard's tree of records.
    pub(crate) salt: [u8; 32],
    /// When the subject first joined, in milliseconds since 1970.
    pub(crate) since: u64,
}
persisted!(SubjectRecord, "subjects", Subject);

impl SubjectRecord {
    /// Adds to what the device is to erase; it has confirmed none of the whole.
    pub(crate) fn merge_erase(&mut self, more: Option<PendingErase>) {
        if let Some(more) = more {
            self.erase = Some(more.with(self.erase.take()));
        }
    }
}

/// Items that a device was told to erase.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct PendingErase {
    pub(crate) task: u64,
    pub(crate) items: Vec<String>,
    /// And what happened at or after this time, in Unix seconds.
    pub(crate) from: Option<i64>,
    /// The device has confirmed; it must join again with what remains.
    pub(crate) confirmed: bool,
}

impl PendingErase {
    /// What a request asks of a device.
    pub(crate) fn of(task: u64, request: &DeletionRequest) -> Self {
        Self {
            task,
            items: request.items().to_vec(),
            from: request.from(),
            confirmed: false,
        }
    }

    /// Together with what was asked before, under this task.
    pub(crate) fn with(self, earlier: Option<Self>) -> Self {
        let (items, from) = earlier.map_or((vec![], None), |e| (e.items, e.from));
        let all: BTreeSet<String> = items.into_iter().chain(self.items).collect();
        let from = from.into_iter().chain(self.from).min();
        Self {
            task: self.task,
            items: all.into_iter().collect(),
            from,
            confirmed: false,
        }
    }
}

/// What earlier requests ask of a person who joins.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Inherited {
    pub(crate) restricted: bool,
    pub(crate) erase: Option<PendingErase>,
}

/// A subject's certificate. Key: its fingerprint.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SubjectCert(pub(crate) SubjectId);
persisted!(SubjectCert, "certificates", Subject);

/// An operator's certificate. Key: its fingerprint.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct AdminCert;
persisted!(AdminCert, "admin-certificates", Public);

/// What is known of an operator's certificate; absent for those that an older version issued. Key:
/// its fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OperatorRecord {
    /// Fingerprint of this operator's first certificate: who they are, whatever they renew.
    pub(crate) root: Digest,
    /// Unix seconds.
    pub(crate) since: u64,
    /// Unix seconds.
    pub(crate) expires: u64,
}
persisted!(OperatorRecord, "operators", Public);

/// A certificate that replaces another one, which is withdrawn when this one is first used. Key:
/// the new certificate's fingerprint. It names nobody.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Renewal {
    pub(crate) replaces: Digest,
}
persisted!(Renewal, "renewals", Public);

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
    /// With `placement = "tenure"`: whoever joined at or after the i-th time is in a slice after
    /// the i-th.
    pub(crate) tenure: Vec<u64>,
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
    pub(crate) subject: u32,
    pub(crate) proposal: u64,
}
persisted!(Counters, "counters", Public);

/// Training state of a shard. It is sealed under its stage's key, like everything that a stage
/// learned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct TrainState {
    #[serde(with = "codec::values")]
    pub(crate) theta: Vec<f32>,
    #[serde(with = "codec::values")]
    pub(crate) first: Vec<f32>,
    #[serde(with = "codec::values")]
    pub(crate) second: Vec<f32>,
    pub(crate) step: u32,
    pub(crate) losses: Vec<f32>,
}

/// Generation of a shard's training; a rollback begins a new one, so that what belonged to the old
/// is refused. Key: the shard.
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

/// A client's own parameters in mode `personalized`, as a stage left them. Key:
/// `shard/stage/subject`, in a replay with the generation in front. They mix what all clients of
/// the shard learned, so they are shard data.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PersonalRecord(#[serde(with = "codec::values")] pub(crate) Vec<f32>);
persisted!(PersonalRecord, "personal", Shard);

/// Who contributed to a round. Key: `shard/stage/round`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RoundRecord {
    pub(crate) contributors: Vec<SubjectId>,
}
persisted!(RoundRecord, "rounds", Shard);

/// The round of the same stage that each contributor of a round began in; only where somebody was
/// late. Key: as of the round.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct BegunRecord(pub(crate) Vec<u16>);
persisted!(BegunRecord, "rounds-begun", Shard);

/// Whose update, and the round of the stage that it was begun in.
pub(crate) type Contributor = (SubjectId, u16);

/// Median length (L2 norm) of a round's updates. Key: as of the round.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct NormRecord(pub(crate) f32);
persisted!(NormRecord, "round-norms", Shard);

/// What rounds have cost so far. Key: empty.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct RatesRecord(pub(crate) Rates);
persisted!(RatesRecord, "rates", Public);

/// What the log was when the data folder last had a part in it: an evidence folder that does not
/// continue it is another. Key: empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LogHead {
    pub(crate) entries: u64,
    pub(crate) root: [u8; 32],
}
persisted!(LogHead, "log-head", Public);

/// What the log says that a shard is trained on. Key: the shard.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct TrainingRecord {
    pub(crate) training: Training,
    pub(crate) salt: [u8; 32],
    pub(crate) index: u64,
}
persisted!(TrainingRecord, "trainings", Public);

/// Whose data a release was computed from. Key: the release. It holds numbers; whose they are goes
/// with the subject's key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ReleaseRecord {
    /// Unix seconds.
    pub(crate) at: u64,
    /// Per shard: adapter and subjects.
    pub(crate) shards: Vec<(Digest, Census)>,
    /// Subjects with rows in the error table.
    pub(crate) validation: Census,
    /// A deletion has withdrawn it.
    pub(crate) recalled: bool,
}
persisted!(ReleaseRecord, "releases", Public);

/// The release that a subject's device fetched last. Key: the subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DeviceRecord {
    pub(crate) release: u64,
}
persisted!(DeviceRecord, "devices", Subject);

/// An update, as it arrived.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Update {
    /// The device's part as it was sent.
    pub(crate) device: Packed,
    #[serde(with = "codec::values")]
    pub(crate) middle: Vec<f32>,
    #[serde(with = "codec::values")]
    pub(crate) sketch: Vec<f32>,
    pub(crate) loss: f32,
    pub(crate) samples: u32,
    /// Length of the whole change (L2 norm); computed anew where it was read from the store.
    #[serde(skip)]
    pub(crate) norm: Option<f32>,
}

/// An acknowledged [`Update`] of an open round, sealed under the stage's [`UpdateKey`] and then
/// under its subject's key: destroying either makes it unreadable, wherever a copy of it may still
/// lie. Key: `shard/generation/stage/round/subject`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct UpdateRecord(#[serde(with = "serde_bytes")] pub(crate) Vec<u8>);
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
    pub(crate) request: DeletionRequest,
    /// Requests that were accepted together with this one, itself included.
    pub(crate) batch: u32,
    /// For this request alone.
    pub(crate) plan: Plan,
    pub(crate) phase: DeletionPhase,
    /// When it was asked for, in milliseconds since 1970: earlier than accepted, if others had to
    /// agree.
    pub(crate) requested_at: u64,
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
    /// That the person's record was trained on.
    pub(crate) proof: Option<RecordBefore>,
    /// Bytes of training, both ways, when it was accepted.
    pub(crate) bytes_before: u64,
    /// What the log is to hold, once everything is done.
    #[serde(with = "as_json")]
    pub(crate) statement: Option<Statement>,
    /// What came with the request.
    pub(crate) reference: String,
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
pub(crate) struct KeptRecord(pub(crate) Vec<Kept>);
persisted!(KeptRecord, "kept", Evidence);

/// A person who stays, without some of their data.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Kept {
    pub(crate) subject: SubjectId,
    pub(crate) record: SubjectRecord,
    pub(crate) certificates: Vec<Digest>,
}

/// What devices removed for a deletion so far. Key: the deletion's number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RemovedRecord {
    /// Events.
    pub(crate) events: u64,
    /// Devices that answered.
    pub(crate) answered: u32,
}
persisted!(RemovedRecord, "removed", Evidence);

/// Where the log holds a deletion's order to devices. Key: the deletion's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OrderRecord {
    pub(crate) index: u64,
}
persisted!(OrderRecord, "orders", Evidence);

/// A person's record among those that a shard was trained on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RecordBefore {
    pub(crate) salt: [u8; 32],
    pub(crate) training: TrainingRecord,
    pub(crate) member: Leaf,
}

/// An issued receipt. Key: the deletion's number.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ReceiptRecord(pub(crate) Vec<u8>);
persisted!(ReceiptRecord, "receipts", Evidence);

/// How many operators have to agree to a deletion. Key: empty.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Policy {
    pub(crate) approvals: u8,
}
persisted!(Policy, "policy", Public);

/// A proposal that waits for other operators. Key: its number. It goes when it is carried out or
/// withdrawn.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ProposalRecord {
    pub(crate) what: Proposal,
    /// Milliseconds since 1970.
    pub(crate) at: u64,
    pub(crate) approved: Vec<Digest>,
}
persisted!(ProposalRecord, "proposals", Evidence);

/// Something that an operator did; it names nobody. Key: the log's entry.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ActionRecord {
    pub(crate) salt: [u8; 32],
    pub(crate) action: Action,
}
persisted!(ActionRecord, "actions", Public);

/// The statement of an action.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Action {
    /// Unix seconds.
    pub(crate) at: u64,
    /// Fingerprint of the operator's certificate.
    pub(crate) by: Digest,
    pub(crate) what: String,
}
