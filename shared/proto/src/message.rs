//! The messages between a client and the coordinator.

use lethe_receipt::merkle::Hash;
pub use lethe_receipt::order::EraseOrder;
pub use lethe_receipt::served::Proven;
use serde::{Deserialize, Serialize};

use crate::admin::{AdminReply, AdminRequest};
use crate::catalogue::CatalogueReply;
use crate::epochs::{Awaited, EpochInfo, JoinedEpoch, Lacks, ServedRelease};
use crate::ids::{Digest, EpochNo, RoundKey, ShardId, SubjectId};
use crate::lists::{Contributed, SnapshotReply, Watched};
use crate::packed::Packed;
use crate::payload::Payload;
use crate::tally::{SealedContribution, SealingTerms, TallyReply, TallyRequest};

/// How sequences lie in a packed batch: a shared prefix, then the own rows of each sequence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchShape {
    /// Rows shared by all sequences.
    pub prefix: u32,
    /// Own rows of each.
    pub lens: Vec<u32>,
}

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// Exchange a single-use token for a certificate (the only request allowed without one).
    Enrol {
        /// The token, as issued.
        token: String,
        /// Certificate signing request, DER.
        csr: Vec<u8>,
        /// Whose device it is, where that is known from an earlier enrolment: an invitation for
        /// somebody else is refused, and is not spent.
        subject: Option<SubjectId>,
    },
    /// First request of a session.
    Hello {
        /// Version and build of the client, for the operator.
        build: String,
        /// Digest of the base model the client has; zeros: it has none, and takes part in sums
        /// only.
        model: Digest,
        /// Minor version of the protocol that the client speaks.
        minor: u16,
    },
    /// Takes part in the epoch with what the client holds now.
    Join {
        /// Anchor nearest to the subject's liked items; `None` when they name no direction.
        anchor: Option<u16>,
        /// Training samples held.
        samples: u32,
        /// Salted commitment to the training data.
        commitment: Digest,
    },
    /// Asks for work; the coordinator may hold the answer for a bounded time.
    Poll,
    /// Hidden states before the middle layers.
    Forward {
        /// What the pass is for.
        purpose: Purpose,
        /// How the batch lies.
        shape: BatchShape,
        /// `[rows, hidden]`.
        hidden: Payload,
    },
    /// Gradient after the middle layers, for the last training forward of the round.
    Backward {
        /// The round.
        round: RoundKey,
        /// As in [`Purpose::Train`].
        pass: u32,
        /// `[rows, hidden]`.
        grad: Payload,
        /// This ends an optimiser step: the middle adapter is updated.
        step: bool,
    },
    /// The client's result of a round.
    Update {
        /// The round.
        round: RoundKey,
        /// Device part of the new adapter minus the old, in the recipe's format.
        delta: Packed,
        /// Mean training loss, nats.
        loss: f32,
        /// Samples trained on.
        samples: u32,
    },
    /// Asks for the device parts of a release's adapters.
    Release {
        /// The release the client has, if any.
        have: Option<u64>,
        /// Digests of the adapters it has: those that are still served are not sent again.
        adapters: Vec<Digest>,
    },
    /// Asks for the adapter weights of a query (APA).
    Weigh {
        /// Embedding of the query by the untuned device layers.
        embedding: Vec<f32>,
    },
    /// How wrong each shard's adapter is on the client's validation samples.
    Errors {
        /// The release that was scored.
        release: u64,
        /// One row per sample.
        rows: Vec<ErrorReport>,
    },
    /// What became of an order to erase.
    Erased {
        /// The task's number.
        task: u64,
        /// What the device did.
        outcome: Erased,
    },
    /// The client does not take part in a round that it was asked for; nobody needs to wait for it.
    /// From minor version 1 on.
    Decline {
        /// The round.
        round: RoundKey,
        /// Why.
        why: Declined,
    },
    /// A privacy team's request; needs a certificate with the admin role.
    Admin(AdminRequest),
    /// Exchanges the certificate of this connection for a new one. The old one is withdrawn when
    /// the new one is first used.
    Renew {
        /// Certificate signing request for a new key, DER.
        csr: Vec<u8>,
    },
    /// Asks for the orders behind a [`Task::Erase`].
    Orders {
        /// The task's number.
        task: u64,
        /// Entries of the newest head of the log that the client has seen; 0: none.
        seen: u64,
    },
    /// Takes part in the sums with these events. From minor version 2 on, as what follows.
    Contribute(Contributed),
    /// Takes part in the sums no longer: what the person contributed is destroyed at once.
    Uncontribute,
    /// Asks for the snapshot that is served.
    Snapshot {
        /// Number of the one that the device has; 0: none.
        have: u64,
        /// [`crate::lists::items_digest`] of the identifiers that it has; zeros: none.
        items: Digest,
    },
    /// As [`Request::Poll`], and answered at once when lists are not as the device knows them.
    Watch {
        /// As the coordinator said last.
        lists: crate::lists::ListState,
    },
    /// Asks how contributions go: in clear, or sealed to a tally of its own. From minor version 3
    /// on, as what follows.
    Terms,
    /// Takes part in the sums with a contribution that only the tally can read.
    ContributeSealed(SealedContribution),
    /// A coordinator's request to its tally; needs a certificate of the tally.
    Tally(TallyRequest),
    /// Asks for the epochs that are alive. From minor version 5 on, as what follows.
    Epochs,
    /// Takes part in an epoch with what the client holds now. [`Request::Join`] means the newest.
    JoinEpoch {
        /// The epoch.
        epoch: EpochNo,
        /// As in [`Request::Join`].
        anchor: Option<u16>,
        /// Likewise.
        samples: u32,
        /// Likewise.
        commitment: Digest,
    },
    /// As [`Request::Watch`], and answered at once when there is a newer epoch.
    Await {
        /// As the coordinator said last.
        lists: crate::lists::ListState,
        /// The newest epoch that the client knows.
        newest: EpochNo,
    },
    /// The client cannot take part in an epoch with what it has.
    Lacks {
        /// The epoch.
        epoch: EpochNo,
        /// What it lacks.
        lacks: Lacks,
    },
    /// As [`Request::Release`]; the answer names the release's epoch.
    Served {
        /// The release the client has, if any.
        have: Option<u64>,
        /// Digests of the adapters it has.
        adapters: Vec<Digest>,
    },
    /// Asks for versions of the catalogue that the device lacks, a page. From minor version 5 on.
    Catalogue {
        /// Digest of the newest version that the device has; zeros: none.
        have: Digest,
        /// Changes that came in earlier pages of the same answer.
        at: u64,
    },
    /// How the device's person stands. From minor version 5 on, as what follows.
    Standing,
    /// Asks for orders of deletions with larger numbers: this copy of the device's folder has not
    /// carried them out, whatever the device confirmed. A page, oldest first; empty after the last.
    OrdersSince {
        /// The newest deletion whose order it has carried out.
        deletion: u64,
        /// As in [`Request::Orders`].
        seen: u64,
    },
    /// Asks for the proof that the log holds something that is served. From minor version 6 on.
    Logged {
        /// What.
        of: ServedPart,
        /// As in [`Request::Orders`].
        seen: u64,
    },
    /// Asks which keys the log has had. From minor version 7 on.
    LogKeys,
}

/// Something that devices are given to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServedPart {
    /// The release of this number.
    Release(u64),
    /// The snapshot of this number.
    Snapshot(u64),
    /// The version of the catalogue of this number; the statement is its manifest's text.
    Catalogue(u32),
}

/// What a device did with an order to erase.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Erased {
    /// It erased what the orders name.
    Done {
        /// Per order: number of the deletion, and how many events it named that are gone. An event
        /// that two orders name counts for both.
        removed: Vec<(u64, u32)>,
    },
    /// The orders would erase almost everything: the app or the person has to consent first.
    WaitsForConsent,
}

/// What a forward pass is for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Purpose {
    /// Training in a round; a [`Request::Backward`] follows.
    Train {
        /// The round.
        round: RoundKey,
        /// Number of this pass in the client's part of the round, from 1, forward and backward:
        /// sent again with the same number after a lost connection, it is answered as before and
        /// counts once.
        pass: u32,
    },
    /// Scoring with the release's adapters.
    Score {
        /// The release.
        release: u64,
        /// Weight of each shard's adapter; empty: the untuned model.
        omega: Vec<f32>,
    },
    /// The layers below the first trained one, for a sample of a round: computed once per sample,
    /// then sent back with [`Purpose::Train`], which runs the layers from there on.
    Frozen {
        /// The round.
        round: RoundKey,
    },
}

/// Why a client does not take part in a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Declined {
    /// It would need more memory than the app allows.
    Memory,
    /// The app says not now: battery, network, heat, or the person uses the phone.
    Conditions,
    /// What its last update left out is gone.
    FeedbackLost,
}

/// One validation sample of a client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ErrorReport {
    /// The client's number for the sample; a later report of the same sample replaces what it
    /// covers.
    pub sample: u32,
    /// Embedding by the untuned device layers.
    pub embedding: Vec<f32>,
    /// `(shard, 1 - P_shard(label))` for the shards that were asked for.
    pub errors: Vec<(ShardId, f32)>,
}

/// What the coordinator answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    /// Certificate of the enrolled identity, DER.
    Enrolled {
        /// The certificate.
        certificate: Vec<u8>,
        /// Whose device it is; `None` for an operator.
        subject: Option<SubjectId>,
    },
    /// What a client needs to take part.
    Welcome {
        /// The recipe, JSON.
        recipe: String,
        /// Anchors of the partition, `[anchors][features]`.
        anchors: Vec<Vec<f32>>,
        /// What computes the coordinator's layers: states that it computed are kept only while this
        /// stays the same.
        engine: String,
        /// Minor version of the protocol that the coordinator speaks.
        minor: u16,
        /// Public key of the transparency log (verifier key text).
        log_key: String,
        /// Releases up to this number are recalled: nothing that was made with them may be shown.
        recalled: u64,
    },
    /// Where the subject was placed.
    Joined {
        /// Its shard; `None` until the epoch starts, and for subjects that came after.
        shard: Option<ShardId>,
        /// The commitment that counts: the client trains on this data and no other. It is an
        /// earlier one when the epoch had started before this request.
        commitment: Digest,
    },
    /// What to do next.
    Task {
        /// The work.
        task: Task,
        /// As in [`Reply::Welcome`].
        recalled: u64,
    },
    /// Hidden states or gradients after a pass.
    Hidden(Payload),
    /// Done.
    Ack,
    /// Device parts of a release.
    Release(ReleaseInfo),
    /// Adapter weights, one per shard.
    Omega(Vec<f32>),
    /// Answer to [`Request::Admin`].
    Admin(AdminReply),
    /// The request was refused.
    Refused {
        /// A stable code.
        code: Refusal,
        /// Expected, got, and what to do.
        message: String,
    },
    /// The orders behind a task, as the log holds them.
    Orders(Orders),
    /// Answer to [`Request::Snapshot`].
    Snapshot(SnapshotReply),
    /// Answer to [`Request::Watch`].
    Watched(Watched),
    /// Answer to [`Request::Terms`]; none: this coordinator holds the sums itself.
    Terms(Option<SealingTerms>),
    /// Answer to [`Request::ContributeSealed`]: a sealed [`crate::tally::Confided`].
    Confided(#[serde(with = "serde_bytes")] Vec<u8>),
    /// Answer to [`Request::Tally`].
    Tally(TallyReply),
    /// Answer to [`Request::Epochs`]: those that are alive, oldest first.
    Epochs(Vec<EpochInfo>),
    /// Answer to [`Request::JoinEpoch`].
    JoinedEpoch(JoinedEpoch),
    /// Answer to [`Request::Await`].
    Awaited(Awaited),
    /// Answer to [`Request::Served`].
    Served(ServedRelease),
    /// Answer to [`Request::Catalogue`].
    Catalogue(CatalogueReply),
    /// Answer to [`Request::Standing`].
    Standing(crate::people::Standing),
    /// Answer to [`Request::Logged`].
    Logged(Proven),
    /// Answer to [`Request::LogKeys`]: the signed notes of exchanges of the log's key, the oldest
    /// first.
    LogKeys(Vec<String>),
}

/// What a client checks before it erases anything.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Orders {
    /// Every order that asks something of this person's devices.
    pub orders: Vec<EraseOrder>,
    /// Signed head of the log.
    pub checkpoint: String,
    /// Proof that this head extends the one that the client has seen.
    pub consistency: Vec<Hash>,
}

/// Work for a client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Task {
    /// Nothing now; ask again.
    Wait,
    /// Take part in a round.
    Train(RoundStart),
    /// Score validation samples with some shards' adapters of a release and report the errors.
    Validate {
        /// The release.
        release: u64,
        /// The shards whose adapters changed since the client's last report.
        shards: Vec<ShardId>,
    },
    /// Erase what the orders of this task name ([`Request::Orders`]) from the local history, then
    /// join again.
    Erase {
        /// Number to acknowledge.
        task: u64,
    },
}

/// The start of a round for one client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoundStart {
    /// The round.
    pub round: RoundKey,
    /// Device part of the shard's adapter: minus the initial one, unless the recipe's format is
    /// exact.
    pub adapter: Packed,
    /// The round of this stage in which an update of this client counted last: what was left out of
    /// that one is to be added to the next (error feedback).
    pub counted: Option<u16>,
    /// Seed from which the client derives its choices in this round.
    pub seed: [u8; 32],
    /// Milliseconds until the round closes.
    pub deadline_ms: u64,
}

/// The device parts of a release.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReleaseInfo {
    /// Number of the release; grows.
    pub release: u64,
    /// Deletions up to this number are not in it.
    pub lineage: u64,
    /// Seconds from now after which the device must not use it without asking again.
    pub valid_s: u64,
    /// Device part of each shard's adapter; empty when the client has this release already.
    pub adapters: Vec<ServedAdapter>,
}

/// The device part of a shard's adapter in a release.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ServedAdapter {
    /// It is the one that the client said it has under this digest.
    Same(Digest),
    /// As in [`RoundStart::adapter`].
    New(Packed),
}

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// The message does not make sense here.
    Invalid,
    /// The certificate has no right to this.
    Forbidden,
    /// The round is over, or never asked this client.
    RoundClosed,
    /// The training session is gone (the coordinator restarted): start the round again.
    SessionLost,
    /// The release was withdrawn: ask for the current one.
    StaleRelease,
    /// Try again later.
    Busy,
    /// The base model differs.
    WrongModel,
    /// The coordinator failed.
    Internal,
    /// Nobody of that name is known.
    NotFound,
}

/// Subject or operator, as the certificate says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// A client of this subject.
    Subject(SubjectId),
    /// The privacy team's tool.
    Admin,
}
