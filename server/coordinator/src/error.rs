use lethe_learn::aggregate::AggregateError;
use lethe_learn::partition::PartitionError;
use lethe_ledger::Refused;
use lethe_model::ModelError;
use lethe_plan::{LintError, PlanError};
use lethe_proto::message::{Refusal, Reply};
use lethe_proto::packed::PackedError;
use lethe_receipt::note::NoteError;
use lethe_receipt::receipt::VerifyError;
use lethe_recipe::RecipeError;
use lethe_recsys::data::DataError;
use lethe_store::StoreError;
use lethe_transport::TransportError;
use thiserror::Error;

/// Why the coordinator could not start, or could not do what was asked.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum CoordinatorError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Seal(#[from] lethe_seal::SealError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Partition(#[from] PartitionError),
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Lint(#[from] LintError),
    #[error(transparent)]
    Aggregate(#[from] AggregateError),
    #[error("an adapter cannot be sent: {0}")]
    Packed(#[from] PackedError),
    #[error("receipt: {0}")]
    Receipt(#[from] VerifyError),
    #[error("log key: {0}")]
    Note(#[from] NoteError),
    #[error("metrics on {addr}: {source}; choose another `metrics` address")]
    Metrics {
        addr: std::net::SocketAddr,
        source: std::io::Error,
    },
    #[error("the policy of witnesses, {}: {why}", path.display())]
    Policy {
        path: std::path::PathBuf,
        why: String,
    },
    #[error("a thread cannot be started: {source}; raise the limit on processes")]
    Threads { source: std::io::Error },
    #[error("cannot read the model to identify it: {0}")]
    ModelFile(std::io::Error),
    /// A request that does not fit the state.
    #[error("{message}")]
    Refused { code: Refusal, message: String },
    /// Destroying a key is not real where the keys lie.
    #[error(transparent)]
    Recoverable(#[from] lethe_seal::disk::Recoverable),
    /// Another coordinator has the folder.
    #[error(
        "another coordinator uses {folder}: end it first, or configure another folder; nothing was \
         changed"
    )]
    InUse { folder: std::path::PathBuf },
    /// An epoch of the folder is about another base model.
    #[error(
        "epoch {epoch} of the data folder uses base model {stored}, the configuration's is \
         {given}: configure the model of that epoch, or another data folder"
    )]
    OtherModel {
        epoch: u32,
        stored: String,
        given: String,
    },
    /// The tally of the lists failed.
    #[error(transparent)]
    Tally(lethe_tally::TallyError),
    /// The tally of its own cannot be reached, or does not answer in time.
    #[error("the tally at {place} is away: {why}; it is tried again by itself")]
    TallyAway { place: String, why: String },
    /// The first start with a tally of its own needs an invitation.
    #[error(
        "this coordinator has no identity at its tally: give `invitation` in `[tally]` the text \
         that `lethe-tally init` or `lethe-tally invite` prints"
    )]
    NoInvitation,
    /// `sums = "tally"` without the table `[tally]`, or with settings that are the tally's.
    #[error("{0}")]
    TallyConfig(&'static str),
    /// Masked updates without anybody who sums their masks.
    #[error(
        "the recipe of {epoch} has updates = \"masked\", and there is no tally of its own to sum \
         the masks: set `sums = \"tally\"` with a table `[tally]`, or other `updates` for a new \
         data folder"
    )]
    MasksNeedTally { epoch: lethe_ledger::EpochNo },
    /// Rounds could close that the tally does not sum.
    #[error(
        "no round is added up: the tally sums {least} people or more (`cell` in its `[lists]`), \
         and the recipe's `quorum` is {quorum}: lower `cell`, or set `cohort` and `quorum` of a \
         new data folder to {least} or more"
    )]
    MasksOfTooFew { quorum: usize, least: u32 },
    /// What the tally said of masks cannot be so.
    #[error("round {round:?} is not added up: the tally's sum of masks {why}; it is asked again")]
    WrongMasks {
        round: lethe_proto::ids::RoundKey,
        why: String,
    },
    /// The data folder belongs to another mode of the sums.
    #[error(
        "{folder} holds contributions of `sums = \"{had}\"`, the configuration says `sums = \
         \"{wants}\"`: devices contribute again in the new mode, and nothing moves what was \
         contributed in the old one; delete that first (`lethe-admin forget`), or use another data \
         folder"
    )]
    OtherSums {
        folder: std::path::PathBuf,
        had: &'static str,
        wants: &'static str,
    },
    /// The tally signs with another key than before.
    #[error(
        "the tally signs with the key {got}, expected {known}: devices would refuse it; connect to \
         the tally of before, or restore its keys"
    )]
    OtherTallyKey { known: String, got: String },
    /// The tally gave tables that it did not sign.
    #[error("snapshot {number} of the tally is not served: {why}; it is asked for again")]
    WrongTables { number: u64, why: String },
    /// The catalogue is not the one that people contributed for.
    #[error(transparent)]
    OtherCatalogue(#[from] lethe_tally::OtherCatalogue),
    /// The deletion journal cannot be read.
    #[error(
        "entry {entry} of the deletion journal does not open with its key: restore `journal` and \
         `journal-key` from the newest copy"
    )]
    Journal { entry: u64 },
    /// The evidence folder is older than the data folder.
    #[error(
        "the log in {folder} has {has} entries, the data folder knows of {knows}: the evidence \
         folder was lost or put back; restore its newest copy"
    )]
    Evidence {
        folder: std::path::PathBuf,
        has: u64,
        knows: u64,
    },
    /// The evidence folder holds another log.
    #[error(
        "the first {knows} entries of the log in {folder} are not those that the data folder \
         knows: it is another log, or one that went on from an old copy; restore the newest copy \
         of the folder that belongs here"
    )]
    OtherLog {
        folder: std::path::PathBuf,
        knows: u64,
    },
}

impl CoordinatorError {
    /// Whether what was asked is at fault, and not what it met here.
    pub(crate) fn is_request(&self) -> bool {
        matches!(self, Self::Refused { .. } | Self::Plan(_) | Self::Lint(_))
    }

    pub(crate) fn refuse(code: Refusal, message: impl Into<String>) -> Self {
        Self::Refused {
            code,
            message: message.into(),
        }
    }

    /// What was asked cannot be done as it was asked.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::refuse(Refusal::Invalid, message)
    }

    /// What the one who asked is told.
    pub(crate) fn code(&self) -> Refusal {
        match self {
            Self::Refused { code, .. } => *code,
            Self::Plan(PlanError::UnknownSubject(_)) => Refusal::NotFound,
            Self::Plan(_) | Self::Aggregate(_) => Refusal::Invalid,
            Self::Model(ModelError::Shape(_)) => Refusal::Invalid,
            Self::TallyAway { .. } | Self::WrongTables { .. } => Refusal::Busy,
            _ => Refusal::Internal,
        }
    }

    pub(crate) fn reply(self) -> Reply {
        let code = self.code();
        if code == Refusal::Internal && !self.is_request() {
            tracing::error!("{self}");
        }
        Reply::Refused {
            code,
            message: self.to_string(),
        }
    }
}

impl From<Refused> for CoordinatorError {
    fn from(why: Refused) -> Self {
        Self::refuse(why.code, why.message)
    }
}
