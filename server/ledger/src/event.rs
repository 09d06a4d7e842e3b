//! What happened. An event is about one owner, and its body on disk is sealed under that owner's
//! key: when the key is gone, so is the event.

use lethe_plan::Rates;
use lethe_proto::admin::DeletionPhase;
use lethe_proto::epochs::Lacks;
use lethe_proto::ids::{Digest, SubjectId};
use lethe_receipt::statement::{Statement, Training};
use serde::{Deserialize, Serialize};

use crate::ids::{
    CatalogueVersion, Contributor, EpochNo, Owner, PersonNo, RunKey, ShardKey, StageKey, ValueRef,
};
use crate::state::{
    Action, CatalogueRecord, Checkpoint, Deletion, Epoch, Execution, Kept, Life, ListsLeft,
    LogHead, LoggedPart, Moving, Numbers, Operator, Partition, PendingErase, Person, Place,
    ProposalRecord, Release, RemovedRecord, RolledShard, RoundSum, ShardHold, SnapshotRef, Step,
};

/// An update whose value is stored with this event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoredUpdate {
    /// Whose.
    pub subject: SubjectId,
    /// Round of the stage that it was begun in.
    pub begun: u16,
    /// Where it is; sealed under the stage's key and then under the person's.
    pub value: ValueRef,
}

/// Rows of the error table that a person measured on one shard.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MeasuredShard {
    /// The shard.
    pub shard: ShardKey,
    /// Its adapter.
    pub adapter: Digest,
    /// Samples that were measured now.
    pub samples: Vec<u32>,
    /// All rows of the shard: these, and those of earlier reports that they do not replace.
    pub value: ValueRef,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum Event {
    // Public.
    /// Numbers were given out: none of them is given again.
    NumbersTaken { numbers: Numbers },
    /// An epoch was founded; people may join it.
    EpochFounded { no: EpochNo, epoch: Box<Epoch> },
    /// Enough people have joined. Who is placed where follows from the partition.
    EpochBegan { no: EpochNo, partition: Partition },
    /// An operator's invitation waits.
    OperatorInvited { secret: Digest },
    /// No operator's invitation waits any more.
    OperatorInvitationsWithdrawn,
    /// An operator's invitation was exchanged for a certificate.
    OperatorEnrolled {
        secret: Digest,
        certificate: Digest,
        operator: Operator,
    },
    /// An operator has another certificate, which replaces the first one when it is used.
    OperatorRenewed {
        certificate: Digest,
        operator: Operator,
    },
    /// A certificate was used for the first time: the one that it replaces is gone.
    OperatorReplaced { certificate: Digest },
    /// An operator's certificates, and all invitations of operators, are withdrawn.
    OperatorRemoved { root: Digest },
    /// So many operators have to agree.
    PolicySet { approvals: u8 },
    /// An operator did something, which the log is to hold.
    ActionNoted {
        no: u64,
        salt: [u8; 32],
        action: Action,
    },
    /// The log holds it.
    ActionLogged { no: u64, index: u64 },
    /// The log grew.
    LogGrew { head: LogHead },
    /// The log is to say what a shard is trained on.
    TrainingStated {
        shard: ShardKey,
        training: Training,
        salt: [u8; 32],
    },
    /// It says so.
    TrainingLogged { shard: ShardKey, index: u64 },
    /// A round has been added up.
    RoundClosed {
        run: RunKey,
        sum: RoundSum,
        state: ValueRef,
        hash: Digest,
        checkpoint: Option<Checkpoint>,
        rates: Rates,
    },
    /// A replay began.
    ReplayBegan {
        shard: ShardKey,
        generation: u32,
        at: u64,
    },
    /// A replay ended: with hashes, or with why it was given up.
    ReplayEnded {
        shard: ShardKey,
        at: u64,
        hashes: Option<(Digest, Digest)>,
        failure: Option<String>,
    },
    /// A release.
    Released { no: u64, release: Box<Release> },
    /// Releases up to this one are withdrawn.
    Recalled { up_to: u64 },
    /// Databases of shards were damaged when the coordinator started.
    ShardsLost { shards: Vec<ShardKey> },
    /// Keys are to be destroyed; until they are, nothing is served.
    ExecutionBegan { execution: Execution },
    /// They are.
    KeysDestroyed,
    /// A shard goes on from what is left.
    RolledBack {
        shard: ShardKey,
        from_stage: u16,
        generation: u32,
        to: Option<ValueRef>,
        hash: Digest,
    },
    /// Keys without use were destroyed.
    SpentDestroyed { keys: Vec<Owner> },

    // A person's.
    /// The first invitation.
    PersonKnown {
        subject: SubjectId,
        number: PersonNo,
    },
    /// An invitation waits.
    Invited { subject: SubjectId, secret: Digest },
    /// It was exchanged for a certificate.
    DeviceEnrolled {
        subject: SubjectId,
        secret: Digest,
        certificate: Digest,
    },
    /// A device has another certificate.
    DeviceRenewed {
        subject: SubjectId,
        device: Digest,
        certificate: Digest,
        replaces: Digest,
    },
    /// It was used for the first time.
    DeviceReplaced {
        subject: SubjectId,
        device: Digest,
        certificate: Digest,
    },
    /// All certificates and invitations of a person are withdrawn.
    Withdrawn { subject: SubjectId },
    /// A person joined, or joined again.
    Joined {
        subject: SubjectId,
        epoch: EpochNo,
        place: Place,
        salt: [u8; 32],
        since: u64,
        restricted: bool,
        erase: Option<PendingErase>,
    },
    /// What remains of a person is to go to another shard.
    MoveAsked { subject: SubjectId, moving: Moving },
    /// A device connected anew: it is told again what it has to erase.
    ConsentAskedAgain { subject: SubjectId, device: Digest },
    /// A device waits for the person's consent.
    ErasureWithheld {
        subject: SubjectId,
        device: Digest,
        task: u64,
    },
    /// A device has erased what a task names.
    DeviceErased {
        subject: SubjectId,
        device: Digest,
        task: u64,
    },
    /// A person is left out of training until the next epoch.
    Excluded { subject: SubjectId },
    /// A person's data is kept but not used.
    SetAside { subject: SubjectId },
    /// A person stays, under a fresh key.
    PersonKept {
        subject: SubjectId,
        person: Box<Person>,
    },
    /// A device fetched a release.
    ReleaseFetched {
        subject: SubjectId,
        device: Digest,
        release: u64,
    },
    /// A person measured adapters.
    ErrorsMeasured {
        subject: SubjectId,
        samples: Vec<u32>,
        shards: Vec<MeasuredShard>,
    },

    // A stage's.
    /// Updates that arrived together.
    UpdatesStored {
        stage: StageKey,
        updates: Vec<StoredUpdate>,
    },
    /// Whose updates counted in a round that was closed.
    RoundCounted {
        stage: StageKey,
        round: u16,
        counted: Vec<Contributor>,
        personal: Vec<(SubjectId, ValueRef)>,
    },

    // A deletion's.
    /// Accepted: it has to complete, whatever happens.
    DeletionAccepted { id: u64, deletion: Box<Deletion> },
    /// Those who stay when this deletion, and those with it, are executed.
    PeopleKept { id: u64, kept: Kept },
    /// What is served is free of the data.
    MadeExact {
        id: u64,
        exact_after_ms: u64,
        rolled: Vec<RolledShard>,
        keys_destroyed: u32,
        phase: DeletionPhase,
    },
    /// A partial erasure has moved its person to another shard, which was rolled back too.
    AlsoRolledBack {
        id: u64,
        rolled: RolledShard,
        keys_destroyed: u32,
    },
    /// The log holds the order.
    OrderLogged { id: u64, index: u64 },
    /// What devices removed so far.
    RemovedCounted { id: u64, removed: RemovedRecord },
    /// No device is waited for.
    DeletionRetraining { id: u64 },
    /// What the receipt says.
    StatementFixed {
        id: u64,
        retrained_after_ms: u64,
        statement: Stated,
    },
    /// The log holds it.
    StatementLogged { id: u64, index: u64 },
    /// The receipt is stored: the deletion is done.
    ReceiptIssued { id: u64, receipt: ValueRef },

    // A proposal's.
    /// A proposal waits for other operators.
    Proposed { id: u64, proposal: ProposalRecord },
    /// An operator agreed; this is who does now.
    Approved { id: u64, approved: Vec<Digest> },
    /// It was carried out or withdrawn.
    ProposalClosed { id: u64 },

    // Not written.
    /// The coordinator started.
    Started { at: u64 },
    /// An operator may enter less into the log for a while.
    PaceTaken { by: Digest, full: u64 },
    /// The log is known to hold who is trained on in this version.
    MembersLogged { shard: ShardKey, version: u64 },
    /// A round takes updates.
    RoundOpened {
        run: RunKey,
        cohort: Vec<SubjectId>,
        deadline: u64,
    },
    /// A device was given its task.
    TaskOffered {
        run: RunKey,
        subject: SubjectId,
        at: u64,
    },
    /// Updates of this round arrived.
    UpdatesArrived {
        run: RunKey,
        subjects: Vec<SubjectId>,
        at: u64,
    },
    /// A device does not take part.
    Declined { run: RunKey, subject: SubjectId },
    /// Too few answered: once more.
    RoundExtended { run: RunKey, deadline: u64 },
    /// Too few answered too often: the shard waits.
    RoundAbandoned { run: RunKey, until: u64 },
    /// What counts is fixed.
    RoundSealed {
        run: RunKey,
        counted: Vec<Contributor>,
        at: u64,
    },
    /// It could not be added up: it is open again.
    RoundUnsealed { run: RunKey },

    // Public again: new events come last, so that those of older folders keep their codes.
    /// What the lists had of a deletion's data when its execution began.
    ListsBegan { id: u64, left: ListsLeft },
    /// Lists are complete again without it.
    ListsWhole {
        id: u64,
        snapshot: SnapshotRef,
        after_ms: u64,
    },

    // Of a stage.
    /// These answered a round, and it does not count them: the sum of their masks would say too
    /// much of one of them.
    UpdatesLeftOut {
        stage: StageKey,
        updates: Vec<Contributor>,
    },

    // Public.
    /// Another epoch serves: what this one learned goes, with its keys. Its record stays, for
    /// receipts and audits of before.
    EpochRetired { no: EpochNo },
    /// When, and by whom, an epoch was founded.
    EpochAsked { no: EpochNo, life: Life },
    /// An epoch has come so far. One that is dropped leaves nothing but its record.
    EpochReached { no: EpochNo, step: Step, at: u64 },

    // Not written.
    /// A device cannot take part in an epoch with what it has.
    LackNoted {
        epoch: EpochNo,
        device: Digest,
        lacks: Lacks,
    },

    // Public.
    /// A version of the catalogue was applied.
    CatalogueApplied {
        version: CatalogueVersion,
        record: CatalogueRecord,
    },
    /// The log holds its manifest.
    CatalogueLogged {
        version: CatalogueVersion,
        index: u64,
    },
    /// Restrictions are lifted: the deletions of these numbers.
    RestrictionsLifted { ids: Vec<u64>, at: u64 },

    // A person's.
    /// A person's data, which was kept and not used, may be used again. In these epochs, which
    /// have not begun, they have the place that they joined with.
    Readmitted {
        subject: SubjectId,
        epochs: Vec<EpochNo>,
    },

    // Public.
    /// What a replay that has just begun does about people who are missing.
    ReplayScoped {
        shard: ShardKey,
        without_missing: bool,
    },
    /// A replay has trained a stage again.
    StageReplayed {
        shard: ShardKey,
        stage: u16,
        replayed: Digest,
        recorded: Digest,
    },
    /// A replay cannot train a stage again: these are missing. One that goes on without them begins
    /// the next stage with what was recorded.
    StageUnproven {
        shard: ShardKey,
        stage: u16,
        missing: Vec<PersonNo>,
    },
    /// Nothing is trained in a shard from now on.
    ShardHeld { shard: ShardKey, hold: ShardHold },
    /// It is trained again, and is not said to be damaged any more.
    ShardReleased { shard: ShardKey },

    // Not stored.
    /// A device that lacked something for an epoch has joined it.
    LackGone { epoch: EpochNo, device: Digest },
    /// A device has answered that it can measure nothing of a release.
    NothingMeasured { device: Digest, release: u64 },
    /// An operator has invited somebody of whom nothing was known; the log does not say so yet.
    InvitationCounted { by: Digest },
    /// The log is to hold how many, from an entry that was made at this uptime on.
    InvitationsNoted { by: Digest, at: u64 },

    // Public.
    /// The log holds a release: devices may be given it.
    ReleaseLogged { part: LoggedPart },
    /// The log holds a snapshot of the lists' tables: devices may be given it.
    SnapshotLogged { part: LoggedPart },
}

/// A statement in an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stated(pub Box<Statement>);

impl Serialize for Stated {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        // It leaves fields out where its version has none, which only JSON can express.
        lethe_receipt::statement::canonical(self.0.as_ref()).serialize(s)
    }
}

impl<'de> Deserialize<'de> for Stated {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        let json = Vec::<u8>::deserialize(d)?;
        serde_json::from_slice(&json)
            .map(|statement| Self(Box::new(statement)))
            .map_err(D::Error::custom)
    }
}

/// What has to be durable outside the data folder before an event is written.
#[derive(Clone, Debug, PartialEq)]
pub enum Before {
    /// The journal holds this deletion.
    Journal(u64),
    /// No release ever has a lower number from now on.
    Floor(u64),
}

impl Event {
    /// The key that seals its body.
    pub fn owner(&self) -> Owner {
        match self {
            Self::PersonKnown { subject, .. }
            | Self::Invited { subject, .. }
            | Self::DeviceEnrolled { subject, .. }
            | Self::DeviceRenewed { subject, .. }
            | Self::DeviceReplaced { subject, .. }
            | Self::Withdrawn { subject }
            | Self::Joined { subject, .. }
            | Self::MoveAsked { subject, .. }
            | Self::ConsentAskedAgain { subject, .. }
            | Self::ErasureWithheld { subject, .. }
            | Self::DeviceErased { subject, .. }
            | Self::Excluded { subject }
            | Self::SetAside { subject }
            | Self::PersonKept { subject, .. }
            | Self::ReleaseFetched { subject, .. }
            | Self::ErrorsMeasured { subject, .. }
            | Self::Readmitted { subject, .. } => Owner::Person(subject.clone()),
            Self::UpdatesStored { stage, .. }
            | Self::RoundCounted { stage, .. }
            | Self::UpdatesLeftOut { stage, .. } => Owner::Stage(*stage),
            Self::DeletionAccepted { id, .. }
            | Self::MadeExact { id, .. }
            | Self::AlsoRolledBack { id, .. }
            | Self::OrderLogged { id, .. }
            | Self::RemovedCounted { id, .. }
            | Self::DeletionRetraining { id }
            | Self::StatementFixed { id, .. }
            | Self::StatementLogged { id, .. }
            | Self::ReceiptIssued { id, .. } => Owner::Deletion(*id),
            Self::PeopleKept { id, .. } => Owner::Kept(*id),
            Self::Proposed { id, .. } | Self::Approved { id, .. } => Owner::Proposal(*id),
            // That a proposal is closed is public: its key goes with it.
            _ => Owner::Public,
        }
    }

    /// It changes only what a restart forgets, and is not written.
    pub fn is_volatile(&self) -> bool {
        matches!(
            self,
            Self::Started { .. }
                | Self::PaceTaken { .. }
                | Self::MembersLogged { .. }
                | Self::RoundOpened { .. }
                | Self::TaskOffered { .. }
                | Self::UpdatesArrived { .. }
                | Self::Declined { .. }
                | Self::RoundExtended { .. }
                | Self::RoundAbandoned { .. }
                | Self::RoundSealed { .. }
                | Self::RoundUnsealed { .. }
                | Self::LackNoted { .. }
                | Self::LackGone { .. }
                | Self::NothingMeasured { .. }
                | Self::InvitationCounted { .. }
                | Self::InvitationsNoted { .. }
        )
    }

    /// What has to be durable outside the data folder first.
    pub fn before(&self) -> Option<Before> {
        match self {
            Self::DeletionAccepted { id, .. } => Some(Before::Journal(*id)),
            Self::Released { no, .. } => Some(Before::Floor(*no)),
            _ => None,
        }
    }
}
