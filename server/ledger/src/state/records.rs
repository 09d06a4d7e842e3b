//! Deletions, proposals, releases, actions, and what is neither: numbers, policy, operators.

use std::collections::{BTreeMap, BTreeSet};

use lethe_plan::lineage::Census;
use lethe_plan::{Plan, Rates};
use lethe_proto::admin::DeletionPhase;
use lethe_proto::deletion::{DeletionRequest, Proposal};
use lethe_proto::ids::{Digest, ShardId, SubjectId};
use lethe_receipt::order::Order;
use lethe_receipt::records::Leaf;
use lethe_receipt::statement::Statement;
use serde::{Deserialize, Serialize};

use super::epoch::TrainingRecord;
use super::person::{PendingErase, Person};
use crate::ids::{EpochNo, Owner, PartId, ShardKey, StageKey, ValueRef};

/// Numbers, policy, operators.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Core {
    /// Numbers that never go back.
    pub numbers: Numbers,
    /// How many operators have to agree to a deletion; 0 stands for the default, 1.
    pub approvals: u8,
    /// By certificate.
    pub operators: BTreeMap<Digest, Operator>,
    /// Digests of the secrets of operators' invitations that wait.
    pub operator_invitations: BTreeSet<Digest>,
    /// What rounds have cost so far.
    pub rates: Rates,
    /// How far the log was.
    pub log: LogHead,
    /// Which epoch is served.
    pub serving: Option<EpochNo>,
    /// Shards whose databases were damaged when the coordinator started last.
    pub quarantined: BTreeSet<ShardKey>,
    /// Those of them that are to be rolled back.
    pub lost: BTreeSet<ShardKey>,
    /// What is being executed.
    pub executing: Option<Execution>,
    /// Keys that have no use any more and are to be destroyed. They name nobody.
    pub spent: BTreeSet<Owner>,
}

/// Numbers that never go back: the last of each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Numbers {
    /// Epochs.
    pub epoch: u32,
    /// Releases.
    pub release: u64,
    /// Generations of runs, over all epochs and replays.
    pub generation: u32,
    /// Deletions.
    pub deletion: u64,
    /// Tasks of devices.
    pub task: u64,
    /// People.
    pub person: u32,
    /// Proposals.
    pub proposal: u64,
    /// Actions of operators.
    pub action: u64,
}

impl Numbers {
    /// The larger of each.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self {
            epoch: self.epoch.max(other.epoch),
            release: self.release.max(other.release),
            generation: self.generation.max(other.generation),
            deletion: self.deletion.max(other.deletion),
            task: self.task.max(other.task),
            person: self.person.max(other.person),
            proposal: self.proposal.max(other.proposal),
            action: self.action.max(other.action),
        }
    }
}

/// An operator's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operator {
    /// Fingerprint of the operator's first certificate: who they are.
    pub root: Digest,
    /// Unix seconds; none when an older version issued it.
    pub since: Option<u64>,
    /// Likewise.
    pub expires: Option<u64>,
    /// The certificate that goes when this one is first used.
    pub replaces: Option<Digest>,
}

/// How far the log was when the ledger heard of it last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogHead {
    /// Entries.
    pub entries: u64,
    /// Root.
    pub root: [u8; 32],
}

/// Keys are being destroyed: nothing is served, and nothing of these shards is trained.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Execution {
    /// Deletions.
    pub ids: Vec<u64>,
    /// Shards that are rolled back, and the first stage that goes.
    pub rolled: Vec<(ShardKey, u16)>,
    /// Keys of stages that go.
    pub stages: Vec<StageKey>,
    /// Where those who stay are kept.
    pub kept: Option<u64>,
}

/// Those who stay: what is written anew under each person's fresh key.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Kept(pub BTreeMap<SubjectId, Person>);

/// A release: a version of each part of an epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Release {
    /// Unix seconds.
    pub at: u64,
    /// The epoch.
    pub epoch: EpochNo,
    /// Which part this is a version of.
    pub part: PartId,
    /// By shard number.
    pub shards: Vec<ServedShard>,
    /// People with rows in the error table.
    pub validation: Census,
    /// A deletion has withdrawn it.
    pub recalled: bool,
}

/// A shard's adapter in a release.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServedShard {
    /// Hash of the adapter.
    pub digest: Digest,
    /// Where it is; the initial one when nowhere, and nowhere when recalled.
    pub value: Option<ValueRef>,
    /// Stage that it stands at.
    pub stage: u16,
    /// Whose data it was computed from.
    pub census: Census,
}

impl Release {
    /// Hash of every shard's adapter.
    pub fn digests(&self) -> Vec<Digest> {
        self.shards.iter().map(|s| s.digest).collect()
    }
}

/// Something that an operator did; it names nobody.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActionRecord {
    /// Salt of the log's entry.
    pub salt: [u8; 32],
    /// What.
    pub action: Action,
    /// The log's entry, once it is known to be there.
    pub index: Option<u64>,
}

/// The statement of an action.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Action {
    /// Unix seconds.
    pub at: u64,
    /// Fingerprint of the operator's certificate.
    pub by: Digest,
    /// What.
    pub what: String,
}

/// A proposal that waits for other operators.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProposalRecord {
    /// What is proposed.
    pub what: Proposal,
    /// Milliseconds since 1970.
    pub at: u64,
    /// Operators who agree.
    pub approved: Vec<Digest>,
}

/// A shard that a deletion has rolled back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolledShard {
    /// The shard.
    pub shard: ShardKey,
    /// First stage that went.
    pub stage: u16,
    /// Hash of the adapter that was served at once.
    pub hash: Digest,
}

/// What devices removed so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovedRecord {
    /// Events.
    pub events: u64,
    /// People whose devices have answered.
    pub answered: u32,
}

/// A person's record among those that a shard was trained on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RecordBefore {
    /// Which shard.
    pub shard: ShardKey,
    /// Salt of the record.
    pub salt: [u8; 32],
    /// What the log says.
    pub training: TrainingRecord,
    /// The record.
    pub member: Leaf,
}

/// A deletion in progress or done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Deletion {
    /// What was asked.
    pub request: DeletionRequest,
    /// Requests that were accepted together with this one, itself included.
    pub batch: u32,
    /// For this request alone, in every epoch.
    pub plans: Vec<(EpochNo, Plan)>,
    /// Where it stands.
    pub phase: DeletionPhase,
    /// When it was asked for, in milliseconds since 1970.
    pub requested_at: u64,
    /// Milliseconds since 1970.
    pub accepted_at: u64,
    /// Milliseconds from acceptance until what is served was free of the data.
    pub exact_after_ms: Option<u64>,
    /// Likewise, until the shards were trained and released again.
    pub retrained_after_ms: Option<u64>,
    /// What was served before, by shard number.
    pub before: Vec<Digest>,
    /// What was rolled back.
    pub rolled_back: Vec<RolledShard>,
    /// How many keys were destroyed.
    pub keys_destroyed: u32,
    /// Salt of commitments and of entries of the log.
    pub salt: [u8; 32],
    /// Number of the devices' task.
    pub task: Option<u64>,
    /// That the person's record was trained on.
    pub proof: Option<RecordBefore>,
    /// Bytes of training, both ways, when it was accepted.
    pub bytes_before: u64,
    /// What the log is to hold, or holds.
    #[serde(with = "as_json")]
    pub statement: Option<Statement>,
    /// Where the log holds the statement.
    pub statement_index: Option<u64>,
    /// Where the log holds the order to devices.
    pub order_index: Option<u64>,
    /// What devices removed.
    pub removed: RemovedRecord,
    /// The receipt.
    pub receipt: Option<ValueRef>,
    /// What came with the request.
    pub reference: String,
}

impl Deletion {
    /// The statement that the log's entry of the order commits to.
    pub fn order(&self, id: u64) -> Order {
        let r = &self.request;
        let subject = r.subject().map_or("", SubjectId::as_str);
        Order::new(id, r.kind(), &self.salt, subject, r.items(), r.from())
    }

    /// Whether it is part of what devices have yet to erase.
    pub fn is_part(&self, pending: &PendingErase) -> bool {
        let later = |from: i64| pending.from.is_some_and(|p| p <= from);
        let named = self
            .request
            .items()
            .iter()
            .all(|i| pending.items.contains(i));
        self.task.is_some() && named && self.request.from().is_none_or(later)
    }

    /// Neither accepted only nor done.
    pub fn waits(&self) -> bool {
        matches!(
            self.phase,
            DeletionPhase::Retraining | DeletionPhase::WaitingForDevice
        )
    }

    /// Shards that its plans roll back, with the first stage.
    pub fn affected(&self) -> Vec<(ShardKey, u16)> {
        let of = |(epoch, plan): &(EpochNo, Plan)| {
            let epoch = *epoch;
            let key = move |(shard, stage): (ShardId, u16)| (ShardKey { epoch, shard }, stage);
            plan.affected().into_iter().map(key).collect::<Vec<_>>()
        };
        self.plans.iter().flat_map(of).collect()
    }
}

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
