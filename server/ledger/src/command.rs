//! What the shell asks the ledger to decide.

use lethe_plan::Plan;
use lethe_proto::deletion::{DeletionRequest, Proposal};
use lethe_proto::epochs::Lacks;
use lethe_proto::ids::{Digest, RoundKey, ShardId, SubjectId};
use lethe_proto::message::{Erased, ErrorReport};
use serde::{Deserialize, Serialize};

use crate::event::StoredUpdate;
use crate::ids::{
    CatalogueVersion, Contributor, EpochNo, Fresh, Owner, RunKey, ShardKey, StageKey, ValueRef,
};
use crate::state::{Deletion, Identity, ListsLeft, LogHead, LoggedPart, SnapshotRef};
use crate::terms::{Rules, Terms};

/// Plans of one request, one per epoch.
pub type OwnPlans = Vec<(EpochNo, Plan)>;

/// A request as the journal holds it, outside the data folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// Number of the deletion.
    pub id: u64,
    /// What was asked.
    pub request: DeletionRequest,
    /// Salt.
    pub salt: [u8; 32],
    /// Milliseconds since 1970.
    pub at: u64,
    /// Requests of its batch.
    pub batch: u32,
    /// Number of the devices' task.
    pub task: Option<u64>,
    /// What came with the request.
    pub reference: String,
}

impl Accepted {
    /// What the journal is to hold of a deletion.
    pub fn of(id: u64, d: &Deletion) -> Self {
        Self {
            id,
            request: d.request.clone(),
            salt: d.salt,
            at: d.accepted_at,
            batch: d.batch,
            task: d.task,
            reference: d.reference.clone(),
        }
    }
}

/// What an entry of the log is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogFor {
    /// What a shard is trained on.
    Training(ShardKey),
    /// The order of a deletion to devices.
    Order(u64),
    /// The statement of a deletion.
    Statement(u64),
    /// An action of an operator.
    Action(u64),
    /// The manifest of a version of the catalogue.
    Catalogue(CatalogueVersion),
}

/// A version of the catalogue, and where its changes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewCatalogue {
    /// Its number.
    pub version: CatalogueVersion,
    /// Names it.
    pub digest: Digest,
    /// Names the one before.
    pub before: Digest,
    /// Places of its items.
    pub places: u64,
    /// What it changes.
    pub changes: ValueRef,
}

/// Who asks for an epoch, or for its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AskedBy {
    /// The operator's certificate; zeros: the server, by its rule.
    pub by: Digest,
    /// For the salt of the log's entry.
    pub fresh: Fresh,
}

/// What training has cost since the shell said so last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// Bytes of passes and updates, both ways.
    pub bytes: u64,
    /// Milliseconds in which a round was open.
    pub busy_ms: u64,
}

/// What the shell asks.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum Command {
    /// The first command after the state was rebuilt: what lies outside the data folder.
    Started {
        /// Highest number that a release ever had.
        floor: u64,
        /// What the journal holds.
        journal: Vec<Accepted>,
        /// Shards whose databases were damaged.
        lost: Vec<ShardKey>,
        /// Those who stayed when their keys were destroyed.
        stayed: Vec<Identity>,
        fresh: Fresh,
    },
    FoundEpoch {
        terms: Terms,
        recipe: String,
        recipe_digest: Digest,
        model: Digest,
        initial: Digest,
        catalogue: CatalogueVersion,
        /// File of the base model on the coordinator's machine, where it is not the configured one.
        base: Option<String>,
        /// Who asks; none: the first epoch of a folder, of which the log says nothing.
        asked: Option<AskedBy>,
    },
    /// Enough people have joined an epoch that follows another, or they had long enough.
    BeginEpoch {
        epoch: EpochNo,
    },
    /// An epoch that is not served is given up: what it learned goes, its record stays. Without
    /// `asked`: nobody has joined it in time.
    DropEpoch {
        epoch: EpochNo,
        asked: Option<AskedBy>,
    },
    /// A device cannot take part in an epoch with what it has.
    Lacks {
        device: Digest,
        epoch: EpochNo,
        lacks: Lacks,
    },

    // Identities and operators. `by` is the certificate of the operator who asks.
    Invite {
        subject: SubjectId,
        secret: Digest,
    },
    InviteFirstOperator {
        secret: Digest,
    },
    RecoverOperator {
        secret: Digest,
        fresh: Fresh,
    },
    Enrol {
        secret: Digest,
        certificate: Digest,
        expires: u64,
        device_of: Option<SubjectId>,
    },
    Renew {
        current: Digest,
        certificate: Digest,
        expires: u64,
    },
    CertificateUsed {
        certificate: Digest,
    },
    /// What an operator asks that more than one may have to agree to. `note`: the line that the log
    /// is to hold, where it is entered when it is proposed. `secret`: of the invitation, if it is
    /// one.
    Propose {
        what: Proposal,
        confirmed: bool,
        note: Option<String>,
        by: Digest,
        secret: Digest,
        plans: Vec<OwnPlans>,
        fresh: Fresh,
    },
    Approve {
        id: u64,
        by: Digest,
        secret: Digest,
        plans: Vec<OwnPlans>,
        fresh: Fresh,
    },
    /// An operator does something that changes nothing here, and that the log is to hold.
    Note {
        by: Digest,
        line: String,
        fresh: Fresh,
    },
    /// The log is to hold how many people operators have invited.
    NoteInvitations {
        fresh: Fresh,
    },
    /// Carries out requests whose proposal is settled.
    Forget {
        requests: Vec<DeletionRequest>,
        reference: String,
        /// When it was asked for, in milliseconds since 1970.
        asked: u64,
        confirmed: bool,
        plans: Vec<OwnPlans>,
        fresh: Fresh,
    },

    // Devices, by certificate.
    Hello {
        device: Digest,
    },
    Join {
        device: Digest,
        epoch: EpochNo,
        anchor: Option<u16>,
        samples: u32,
        commitment: Digest,
        fresh: Fresh,
    },
    Offer {
        device: Digest,
        run: RunKey,
    },
    StoreUpdates {
        stage: StageKey,
        updates: Vec<StoredUpdate>,
    },
    Decline {
        device: Digest,
        round: RoundKey,
    },
    Errors {
        device: Digest,
        release: u64,
        rows: Vec<ErrorReport>,
        /// Per shard that was measured: all its rows, these among them.
        values: Vec<(ShardId, ValueRef)>,
    },
    Erased {
        device: Digest,
        task: u64,
        outcome: Erased,
    },
    /// These devices hold a release from now on. Many fetch one at the same time.
    Fetched {
        devices: Vec<Digest>,
        release: u64,
    },

    // Jobs.
    OpenRound {
        run: RunKey,
    },
    Deadline {
        run: RunKey,
    },
    SealRound {
        run: RunKey,
    },
    RoundAggregated {
        run: RunKey,
        counted: Vec<Contributor>,
        /// These have answered, too, and cannot be counted (`docs/secure-sums.md`).
        left_out: Vec<Contributor>,
        state: ValueRef,
        hash: Digest,
        norm: Option<f32>,
        loss: Option<f32>,
        personal: Vec<(SubjectId, ValueRef)>,
        /// Where the stage's end is, if this round ends it: then `state` is the same.
        checkpoint: Option<ValueRef>,
        /// The checkpoint's lineage, computed on a snapshot of this version of the members.
        lineage: Option<(u64, Digest)>,
        spent: Spent,
    },
    AggregationFailed {
        run: RunKey,
        why: String,
    },
    /// It cannot be added up without people who have not answered: it waits for them once more. A
    /// replay has failed.
    RoundShort {
        run: RunKey,
        why: String,
    },
    MembersHashed {
        shard: ShardKey,
        version: u64,
        root: [u8; 32],
        count: u64,
        fresh: Fresh,
    },
    /// The log holds something.
    Logged {
        about: LogFor,
        index: u64,
        head: LogHead,
    },
    Publish {
        epoch: EpochNo,
    },
    /// What an epoch learned that another one has followed goes.
    Retire {
        epoch: EpochNo,
    },
    GiveUpWaiting,
    /// Where there are lists, with what they have of each deletion's data: only deletions with
    /// such a record begin, any other was accepted since and begins with the next execution.
    /// Nothing is contributed or published meanwhile. Without lists: none, and all begin.
    BeginExecution {
        lists: Option<Vec<(u64, ListsLeft)>>,
    },
    /// This snapshot is served.
    ListsPublished {
        snapshot: SnapshotRef,
    },
    /// All keys of [`crate::Effect::DestroyKeys`] are destroyed.
    KeysDestroyed,
    SpentDestroyed {
        keys: Vec<Owner>,
    },
    Finish {
        id: u64,
    },
    ReceiptIssued {
        id: u64,
        receipt: ValueRef,
    },
    Replay {
        shard: ShardKey,
        by: Digest,
        fresh: Fresh,
    },
    /// A replay that cannot go on.
    ReplayFailed {
        shard: ShardKey,
        why: String,
    },
    /// The next version of the catalogue. `founded`: version 1, for folders that have no record of
    /// it yet. `line`: what the log says that the operator did.
    ApplyCatalogue {
        founded: NewCatalogue,
        next: NewCatalogue,
        by: Digest,
        line: String,
        fresh: Fresh,
    },
    /// A replay that leaves out the stages which need somebody who is missing.
    ReplayWithoutMissing {
        shard: ShardKey,
        by: Digest,
        fresh: Fresh,
    },
    /// Nothing is trained in a shard until an operator releases it.
    HoldShard {
        shard: ShardKey,
        by: Digest,
        fresh: Fresh,
    },
    /// A shard that waits is trained.
    ReleaseShard {
        shard: ShardKey,
        by: Digest,
        fresh: Fresh,
    },
    /// The log holds this release.
    ReleaseLogged {
        part: LoggedPart,
        head: LogHead,
    },
    /// The log holds this snapshot of the lists' tables.
    SnapshotLogged {
        part: LoggedPart,
        head: LogHead,
    },
}

/// The configuration is not a command: it is no decision, and is not stored.
impl crate::state::State {
    /// Sets what the configuration decides. Call it before `Command::Started`.
    pub fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
    }
}
