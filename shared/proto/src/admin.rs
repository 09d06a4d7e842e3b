//! The messages of the admin tool.

use serde::{Deserialize, Serialize};

use crate::catalogue::{CatalogueChange, CatalogueEntry};
use crate::deletion::{DeletionRequest, Proposal};
use crate::disks::KeyDisk;
use crate::epochs::{EpochPlan, EpochStates};
use crate::ids::{Digest, EpochNo, ShardId, SubjectId};
use crate::people::{HeldShard, ReplayProgress, RestrictionState};

/// What the admin tool asks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum AdminRequest {
    /// Carry out requests, all with one plan.
    Forget {
        /// What is asked; at most one about each subject.
        requests: Vec<DeletionRequest>,
        /// Only plan.
        dry_run: bool,
        /// When it was asked for, in Unix seconds, if earlier than now: the deadline counts from
        /// then. 0: now.
        asked: u64,
        /// What whoever asked calls it and where the answer goes; kept with the deletions as it is,
        /// at most [`crate::limits::MAX_REFERENCE`] bytes. Empty: nothing.
        reference: String,
        /// The operator means it: items that are not in the catalogue are taken all the same.
        confirmed: bool,
    },
    /// How many operators have to agree to a deletion, changed with `Some`.
    Policy {
        /// The new number; 1: nobody else.
        approvals: Option<u8>,
    },
    /// Proposals that wait for other operators: a page of those with larger numbers.
    Proposals {
        /// The number; 0 for the first page.
        after: u64,
    },
    /// Agree to a proposal of another operator; it is carried out when enough have.
    Approve {
        /// Its number.
        proposal: u64,
    },
    /// Withdraw a proposal.
    Cancel {
        /// Its number.
        proposal: u64,
    },
    /// What operators did, newest last.
    Actions,
    /// Deletions: a page of those with larger numbers, oldest first.
    Deletions {
        /// The number; 0 for the first page.
        after: u64,
    },
    /// What a subject's data is in.
    LineageOfSubject {
        /// The subject.
        subject: SubjectId,
    },
    /// Whose data a release was computed from.
    LineageOfRelease {
        /// Its number.
        release: u64,
    },
    /// Which devices still hold a release.
    Coverage {
        /// The release; `None`: the newest that was recalled.
        release: Option<u64>,
    },
    /// Search the coordinator's records, decrypted, and what it keeps in memory for identifiers or
    /// texts.
    Scan {
        /// What to search for.
        texts: Vec<String>,
    },
    /// Entries of the log and its signed head.
    Log {
        /// First entry wanted.
        from: u64,
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
    /// What an auditor needs to train a shard again on another machine.
    Audit {
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
    /// Operators, with what is known of their certificates.
    Operators,
    /// Withdraw an operator's certificate. Others have to agree, as to a deletion.
    RemoveOperator {
        /// Fingerprint of the certificate.
        fingerprint: Digest,
    },
    /// How lists are.
    Lists,
    /// What a deletion did to the lists.
    ListsOf {
        /// Its number.
        deletion: u64,
    },
    /// What the sums of the lists have of a subject.
    ListsLineage {
        /// The subject.
        subject: SubjectId,
    },
    /// Fold everybody who counts again, and compare bytes.
    ListsReplay,
    /// What requests would do to the lists.
    ListsForecast {
        /// The requests.
        requests: Vec<DeletionRequest>,
    },
    /// What an auditor needs to fold the sums of the lists again on another machine: a page.
    ListsAudit {
        /// Where it begins, as the page before says; `None`: the first page, of the snapshot that
        /// is served.
        at: Option<ListsAuditPlace>,
    },
    /// What the host of the middle layers can learn under the recipe in force.
    MiddleLearns,
    /// Found the next epoch, or show what that would change and cost.
    EpochStart {
        /// Its recipe, TOML, at most [`crate::limits::MAX_RECIPE`] bytes; none: that of the epoch
        /// which is served.
        recipe: Option<String>,
        /// File of its base model on the coordinator's machine; none: that of the epoch which is
        /// served.
        model: Option<String>,
        /// Only show.
        dry_run: bool,
    },
    /// Give up the epoch that follows the one which is served.
    EpochCancel {
        /// Its number.
        epoch: EpochNo,
    },
    /// All epochs.
    Epochs,
    /// The newest version of the catalogue: a page. From minor version 5 on, as what follows.
    Catalogue {
        /// The first place of the page.
        from: u64,
    },
    /// Changes of the next version of the catalogue: a page. With the last one it is applied.
    CatalogueChange {
        /// Digest of the version that they change.
        before: Digest,
        /// Changes that were sent before.
        at: u64,
        /// More of them.
        changes: Vec<CatalogueChange>,
        /// The digest of the version that these end; none: there are more.
        ends: Option<Digest>,
    },
    /// Versions of the catalogue, and which of them epochs have.
    CatalogueStatus,
    /// Use a person's data again that was restricted. Others have to agree, as to a deletion.
    LiftRestriction {
        /// Whose.
        subject: SubjectId,
    },
    /// Restrictions, lifted ones among them: a page of those with larger numbers, oldest first.
    Restrictions {
        /// Number of the deletion; 0 for the first page.
        after: u64,
    },
    /// As [`Self::Replay`], answered with who is missing.
    StartReplay {
        /// The shard.
        shard: ShardId,
        /// Stages that need somebody who is missing are left out.
        without_missing: bool,
    },
    /// How far the newest replay of a shard is, and who is missing.
    ReplayProgress {
        /// The shard.
        shard: ShardId,
    },
    /// Shards in which nothing is trained.
    HeldShards,
    /// Train nothing in a shard until it is released.
    HoldShard {
        /// The shard.
        shard: ShardId,
    },
    /// Train a shard again that was damaged, or held.
    ReleaseShard {
        /// The shard.
        shard: ShardId,
    },
    /// Where keys lie that deletions destroy.
    KeyDisks,
    /// Which keys the log has had. From minor version 7 on.
    LogKeys,
}

impl AdminRequest {
    /// Whether clients may have other work after it.
    pub fn changes(&self) -> bool {
        matches!(
            self,
            Self::Forget { dry_run: false, .. }
                | Self::Approve { .. }
                | Self::Cancel { .. }
                | Self::Replay { .. }
                | Self::Revoke { .. }
                | Self::RemoveOperator { .. }
                | Self::EpochStart { dry_run: false, .. }
                | Self::EpochCancel { .. }
                | Self::CatalogueChange { ends: Some(_), .. }
                | Self::LiftRestriction { .. }
                | Self::StartReplay { .. }
                | Self::HoldShard { .. }
                | Self::ReleaseShard { .. }
        )
    }
}

/// What the coordinator answers to the admin tool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum AdminReply {
    /// Requests were planned (`ids` is empty for a dry run) or accepted.
    Planned {
        /// The plan, for people.
        text: String,
        /// The plan, JSON.
        json: String,
        /// Numbers of the deletions, in the order of the requests.
        ids: Vec<u64>,
    },
    /// Other operators have to agree first.
    Proposed(ProposalState),
    /// How many operators have to agree to a deletion.
    Policy {
        /// The number.
        approvals: u8,
    },
    /// Proposals that wait, oldest first; empty after the last.
    Proposals(Vec<ProposalState>),
    /// What operators did.
    Actions(Vec<ActionState>),
    /// State of a deletion.
    Deletion(DeletionState),
    /// Deletions, oldest first; empty after the last.
    Deletions(Vec<DeletionSummary>),
    /// What a subject's data is in.
    Subject(SubjectLineage),
    /// Whose data a release was computed from.
    Release(ReleaseLineage),
    /// Which devices still hold a release.
    Coverage(Coverage),
    /// What a search found.
    Scanned(Scanned),
    /// A page of the log.
    Log {
        /// Entries, from the one asked for on; fewer than all when they do not fit into a message.
        entries: Vec<Vec<u8>>,
        /// The signed head.
        checkpoint: String,
    },
    /// Receipt, JSON.
    Receipt(String),
    /// For an auditor, JSON.
    Audit(String),
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
    /// Operators.
    Operators(Vec<OperatorState>),
    /// How lists are; none: this coordinator has none.
    Lists(Option<ListsStatus>),
    /// What a deletion did to them; none: there were none when it was executed.
    ListsOf(Option<DeletionLists>),
    /// What the sums have of a subject.
    ListsLineage(ListsLineage),
    /// What folding again gave.
    ListsReplayed(ListsReplayed),
    /// What requests would do, for people.
    ListsForecast(String),
    /// A page for an auditor of the lists.
    ListsAudit(ListsAuditPage),
    /// What the host of the middle layers can learn, for people.
    MiddleLearns(String),
    /// Answer to [`AdminRequest::EpochStart`].
    EpochPlanned(EpochPlan),
    /// Answer to [`AdminRequest::Epochs`].
    Epochs(EpochStates),
    /// A page of the newest version of the catalogue.
    Catalogue(CataloguePage),
    /// The next version of the catalogue is in force.
    CatalogueApplied {
        /// Its number.
        version: u32,
    },
    /// Versions of the catalogue.
    CatalogueStatus(CatalogueStatus),
    /// Restrictions, oldest first; empty after the last.
    Restrictions(Vec<RestrictionState>),
    /// A replay, as far as it got.
    ReplayProgress(ReplayProgress),
    /// Shards in which nothing is trained.
    HeldShards(Vec<HeldShard>),
    /// Where keys lie; two folders that are alike are told once.
    KeyDisks(Vec<KeyDisk>),
    /// The signed notes of exchanges of the log's key, the oldest first.
    LogKeys(Vec<String>),
}

/// A page of the newest version of the catalogue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CataloguePage {
    /// Number of the version.
    pub version: u32,
    /// Names it.
    pub digest: Digest,
    /// Entries from the place asked for on.
    pub entries: Vec<CatalogueEntry>,
    /// There are more.
    pub more: bool,
}

/// A version of the catalogue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatalogueVersionState {
    /// Its number.
    pub number: u32,
    /// Names it.
    pub digest: Digest,
    /// Names the one before.
    pub before: Digest,
    /// Places of its items.
    pub places: u64,
    /// When it was applied, in seconds since 1970; 0: with the data folder.
    pub at: u64,
    /// The log's entry of its manifest.
    pub index: Option<u64>,
}

/// Versions of the catalogue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatalogueStatus {
    /// The newest, at most 1,000, oldest first.
    pub versions: Vec<CatalogueVersionState>,
    /// Items of the newest.
    pub items: u64,
    /// Items that were removed.
    pub removed: u64,
    /// The version that each epoch has: its prompts have these titles.
    pub epochs: Vec<(EpochNo, u32)>,
}

/// Where a page for an auditor of the lists begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListsAuditPlace {
    /// Number of the snapshot. Once another is served, there are no more pages of it.
    pub snapshot: u64,
    /// Salt of people's digests.
    pub salt: Digest,
    /// Items that came before.
    pub items: u64,
    /// People who came before.
    pub people: u64,
}

/// A page for an auditor of the lists: items first, then people. It names nobody.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListsAuditPage {
    /// The signed note of the snapshot.
    pub note: String,
    /// Key that verifies it (verifier key text).
    pub key: String,
    /// Salt of people's digests.
    pub salt: Digest,
    /// Salt of the sums' digest in the note.
    pub sums_salt: Digest,
    /// Digest of what is public about items.
    pub content: Digest,
    /// How tables are solved and packed, JSON.
    pub method: String,
    /// Items in the order of the tables.
    pub items: Vec<AuditedItem>,
    /// For each of some who count: SHA-256 of the salt and the SHA-256 of what they contribute, as
    /// it is sealed.
    pub people: Vec<Digest>,
    /// Where the next page begins; `None`: that was the last.
    pub next: Option<ListsAuditPlace>,
}

/// An item of the tables.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditedItem {
    /// Its identifier.
    pub id: String,
    /// It was taken down.
    pub taken_down: bool,
}

/// How lists are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ListsStatus {
    /// Who holds what people contribute, in words.
    pub sums: String,
    /// People who contribute.
    pub people: u64,
    /// People who count.
    pub counting: u64,
    /// People who wait for a cell.
    pub waiting: u64,
    /// Cells that count.
    pub cells: u64,
    /// Cells that were published and have lost somebody since the last snapshot.
    pub cells_out: u64,
    /// For how many seconds no snapshot has been served; `None`: one is, or none ever was.
    pub out_s: Option<u64>,
    /// Members of the next cell, n.
    pub cell: u64,
    /// Members of the smallest cell that counts.
    pub smallest_cell: Option<u64>,
    /// Members of a cell whose newer events count together, m.
    pub changed: u64,
    /// People who must share a pair of items for it to count, k.
    pub k: u64,
    /// Number of the snapshot that is served.
    pub served: Option<u64>,
    /// People who count in it.
    pub snapshot_people: u64,
    /// Snapshots up to this number are recalled.
    pub recalled: u64,
    /// Bytes of the snapshot that is served.
    pub snapshot_bytes: u64,
    /// Devices that are enrolled: no more can hold a snapshot.
    pub devices: u64,
    /// Seconds for which a device may use a snapshot without asking again.
    pub valid_s: u64,
    /// Items that were taken down.
    pub taken_down: u64,
    /// What the settings give away; empty: nothing.
    pub gives_away: String,
    /// Key that verifies snapshots (verifier key text).
    pub key: String,
}

/// A snapshot, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotShown {
    /// Its number.
    pub number: u64,
    /// SHA-256 of its bytes.
    pub digest: Digest,
    /// People who count in it.
    pub people: u64,
    /// Its length; 0: not known any more.
    pub bytes: u64,
}

/// What a deletion did to the lists.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeletionLists {
    /// The sums had something of the data.
    pub held: bool,
    /// The snapshot that was recalled.
    pub recalled: Option<SnapshotShown>,
    /// The first one without the data.
    pub replaced_by: Option<SnapshotShown>,
    /// Seconds from acceptance until that one was served.
    pub seconds_until_whole: Option<f64>,
    /// Devices that may have held the recalled one, at most.
    pub devices: u64,
    /// What these fetch again, in bytes, at most.
    pub bytes: u64,
    /// Until when a device that stays away may use the recalled one, in Unix seconds.
    pub held_until: u64,
}

/// What the sums of the lists have of a subject.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListsLineage {
    /// The person contributes.
    pub contributes: bool,
    /// The contribution is in the sums.
    pub counts: bool,
    /// Members of its cell; 0: it waits for one.
    pub cell: u64,
    /// The snapshot that is served and has it in it.
    pub snapshot: Option<u64>,
}

/// What folding everybody again gave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListsReplayed {
    /// People who count.
    pub people: u64,
    /// SHA-256 of the sums.
    pub digest: Digest,
    /// Whether the sums in memory have the same bytes; `None`: there are none.
    pub memory: Option<bool>,
    /// Whether the sums on disk have the same bytes; `None`: there are none.
    pub folder: Option<bool>,
    /// Whether they are those that the tally signed for the snapshot that is served; `None`: others
    /// count since.
    pub stated: Option<bool>,
    /// The snapshot that is served.
    pub snapshot: Option<u64>,
}

/// An operator, as the coordinator knows them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OperatorState {
    /// Fingerprint of the certificate.
    pub fingerprint: Digest,
    /// When it was issued, in Unix seconds; `None` when an older version issued it.
    pub since: Option<u64>,
    /// When it expires, likewise.
    pub expires: Option<u64>,
    /// The one who asks.
    pub you: bool,
}

/// What devices removed for a deletion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// Events that devices reported as removed.
    pub events: u64,
    /// People whose device has answered.
    pub answered: u32,
    /// People whose device has not, in the time that it had: they are left out of training.
    pub silent: u32,
    /// People whose device waits for their consent: they are left out of training, too.
    pub unconsented: u32,
}

/// A deletion, as far as it got.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeletionState {
    /// Number.
    pub id: u64,
    /// What was asked.
    pub request: DeletionRequest,
    /// Requests that were accepted together with this one, itself included.
    pub batch: u32,
    /// The plan, for people.
    pub plan: String,
    /// What retraining still waits for, in words; empty when it waits for nothing.
    pub waits_for: String,
    /// Where it stands.
    pub phase: DeletionPhase,
    /// Seconds from acceptance until the served model was free of the data.
    pub seconds_until_exact: Option<f64>,
    /// Seconds from acceptance until the shards were retrained and released.
    pub seconds_until_retrained: Option<f64>,
    /// What devices removed so far; `None` when the deletion asks nothing of devices.
    pub removed: Option<Removed>,
    /// Hash of every shard's served adapter before.
    pub before: Vec<Digest>,
    /// Hash of every shard's served adapter now.
    pub now: Vec<Digest>,
    /// Shards the deletion touches.
    pub affected: Vec<ShardId>,
}

/// A deletion in a list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeletionSummary {
    /// Number.
    pub id: u64,
    /// What was asked.
    pub request: DeletionRequest,
    /// What came with the request.
    pub reference: String,
    /// Where it stands.
    pub phase: DeletionPhase,
    /// When it was accepted, in Unix seconds.
    pub accepted_at: u64,
    /// When it has to be done, in Unix seconds.
    pub due_at: u64,
    /// Seconds from acceptance until the served model was free of the data.
    pub seconds_until_exact: Option<f64>,
    /// Seconds from acceptance until the shards were retrained and released.
    pub seconds_until_retrained: Option<f64>,
}

/// What a subject's data is in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SubjectLineage {
    /// Number in lineages.
    pub number: u32,
    /// Shard, and slice (0-based), once placed.
    pub place: Option<(ShardId, u16)>,
    /// Not trained on, and why; empty when it is.
    pub idle: String,
    /// Training samples that the device reported.
    pub samples: u32,
    /// Stages of the shard whose kept checkpoints the data is in.
    pub checkpoints: Vec<u16>,
    /// The shard's adapter in use was trained on the data.
    pub served: bool,
    /// Rounds of the shard's training so far in which an update of the subject counted.
    pub rounds: u32,
    /// Rows in the error table (validation).
    pub error_rows: u32,
    /// Updates of open rounds.
    pub open_updates: u32,
    /// Releases that the data was in, with those recalled.
    pub releases: Vec<(u64, bool)>,
    /// Deletions about the subject.
    pub deletions: Vec<u64>,
}

/// Whose data a release was computed from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReleaseLineage {
    /// Number.
    pub release: u64,
    /// Published, in Unix seconds.
    pub at: u64,
    /// A later release withdrew it because of a deletion.
    pub recalled: bool,
    /// Adapter hash of every shard, and how many subjects it was trained on.
    pub shards: Vec<(Digest, u64)>,
    /// Those subjects who are still known: subject and shard.
    pub subjects: Vec<(SubjectId, ShardId)>,
    /// Those who were deleted since.
    pub deleted: u64,
    /// Subjects with rows in the error table when it was published.
    pub validation: u64,
}

/// A proposal that waits for other operators.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProposalState {
    /// Number.
    pub id: u64,
    /// What is proposed.
    pub what: Proposal,
    /// When, in Unix seconds.
    pub at: u64,
    /// Operators who agree, the proposer first, by the fingerprint of their certificates.
    pub approved: Vec<Digest>,
    /// Operators who still have to.
    pub missing: u8,
}

/// Something that an operator did. The log holds its salted hash.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ActionState {
    /// Entry of the log.
    pub entry: u64,
    /// When, in Unix seconds.
    pub at: u64,
    /// Fingerprint of the operator's certificate.
    pub by: Digest,
    /// What.
    pub what: String,
}

/// What a search of the records found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scanned {
    /// Records searched.
    pub records: u64,
    /// Tables with hits, and how many.
    pub hits: Vec<(String, u64)>,
    /// Hits in requests and receipts of deletions, which name the person because they are the
    /// evidence.
    pub evidence: u64,
}

/// Which devices still hold a release.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Coverage {
    /// The release asked about.
    pub release: u64,
    /// It is withdrawn; devices that hold it are refused until they update.
    pub recalled: bool,
    /// Subjects whose devices fetched a later one.
    pub dropped: u32,
    /// Subjects whose devices fetched this one, or an earlier one, last.
    pub holding: u32,
    /// Subjects whose devices never fetched any.
    pub never: u32,
}

/// Where a deletion stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeletionPhase {
    /// Accepted; the served model is not exact yet.
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
    /// Its database was damaged when the coordinator started and was set aside: it is trained again
    /// from the beginning.
    pub quarantined: bool,
    /// Mean loss of each finished round; `None` for a round in which nobody could take part.
    pub losses: Vec<Option<f32>>,
}
