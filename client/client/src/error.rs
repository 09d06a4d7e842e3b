use std::path::PathBuf;

use lethe_model::ModelError;
use lethe_parts::event::TableError;
use lethe_proto::message::{Declined, Refusal};
use lethe_proto::packed::PackedFormat;
use lethe_receipt::note::NoteError;
use lethe_receipt::order::OrderError;
use lethe_receipt::served::ServedError;
use lethe_recipe::RecipeError;
use lethe_recsys::data::DataError;
use lethe_transport::TransportError;
use thiserror::Error;

use crate::conditions::Stopped;
use crate::key_store::KeyStoreError;

/// Why a client could not do what was asked. The local history is never lost by any of them.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The coordinator could not be reached, or refused.
    #[error(transparent)]
    Transport(TransportError),
    /// The coordinator does not know this device any more.
    #[error(
        "the coordinator does not know this device any more: its person was deleted, or its \
         certificate was withdrawn. If the person has left, call `Client::erase`; if not, give a \
         fresh invitation to `Options::invitation` (the history stays)"
    )]
    Deleted,
    /// The certificate is not valid at this time.
    #[error(
        "{0}. Local functions go on; give the fresh invitation to `Options::invitation` (the \
         history stays)"
    )]
    CertificateExpired(#[source] TransportError),
    /// The coordinator does not take the invitation: it was used, withdrawn, or is somebody else's.
    #[error(
        "the invitation is refused ({0}); ask the operator for a fresh one (`lethe-admin invite`)"
    )]
    NotInvited(#[source] TransportError),
    /// No coordinator was named.
    #[error("no coordinator is named: give its address to `Options::server`")]
    NoServer,
    /// What was asked for needs the language model.
    #[error(
        "this client was opened without a language model: give one to `Options::model`, or use \
         `Client::top`, which needs none"
    )]
    NoModel,
    /// The device has not joined: it trains on nothing, and has committed to nothing.
    #[error(
        "this device has not joined yet: nothing is trained on its history, and no log has a \
         commitment to it. Call `Client::join` first"
    )]
    NotJoined,
    /// The coordinator has trained nothing yet.
    #[error("the coordinator serves no release yet; use `Client::top` until it does")]
    NoRelease,
    /// The coordinator has no lists.
    #[error(
        "this coordinator serves no tables for lists: `Client::top` goes by the catalogue's \
         content alone; its operator may switch sums on"
    )]
    NoLists,
    /// Another client has the folder open.
    #[error(
        "{folder} is in use by another client or process: close that one, or share one \
         `Client`, which can be cloned"
    )]
    InUse {
        /// The folder.
        folder: PathBuf,
    },
    /// The client was closed.
    #[error("this client was closed: open the folder again")]
    Closed,
    /// A table of events makes no sense.
    #[error("{0}; mend `[events]` in dataset.toml")]
    Meaning(#[from] TableError),
    /// The text vectors do not fit the catalogue.
    #[error("{path}: {why}; encode the whole catalogue again, or remove the file")]
    TextVectors {
        /// The file.
        path: PathBuf,
        /// Expected and got.
        why: String,
    },
    /// An event that cannot be recorded.
    #[error("the event with item {item:?} has the value {value}: expected a finite number")]
    BadEvent {
        /// Its item.
        item: String,
        /// Its value.
        value: f32,
    },
    /// More events than one call takes.
    #[error("{got} events at once, expected at most {most}: record them in several calls")]
    TooMany {
        /// How many.
        got: usize,
        /// The most.
        most: usize,
    },
    /// The history's file is damaged before its end.
    #[error(
        "{path} is damaged at byte {at}: put a backup of the file in its place, or call \
         `Client::erase_folder` and import an export"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        at: u64,
    },
    /// The bytes are no export.
    #[error("not an export of a history: {0}; give what `Client::export` returned")]
    Export(String),
    /// A list whose next page was asked for is forgotten.
    #[error("the list is not kept any more: ask for its first page again")]
    ListGone,
    /// Tables, or terms of contributions, are signed with another key than this device knows.
    #[error(
        "the coordinator's tables and terms have the key {got}, this device knows {known}: no \
         table of it is used, and nothing is contributed to it; tell the operator"
    )]
    OtherListKey {
        /// The key that the app has pinned, or this device has kept.
        known: String,
        /// The key that was shown.
        got: String,
    },
    /// Tables that are older than ones that this device has had, or recalled.
    #[error(
        "the coordinator offers snapshot {got}; this device has had {known}, and {recalled} and \
         earlier ones are recalled: it is not used; tell the operator"
    )]
    OldSnapshot {
        /// Number that was offered.
        got: u64,
        /// Highest number seen.
        known: u64,
        /// Highest number recalled.
        recalled: u64,
    },
    /// Tables that are not what was signed.
    #[error("the tables that the coordinator sent are not used: {0}; tell the operator")]
    BadSnapshot(String),
    /// The app's pinned key is none.
    #[error(
        "{got:?} is no key of a tally: give `Options::tally_key` the text that `lethe-tally init` \
         prints, NAME+KEYID+BASE64"
    )]
    TallyKey {
        /// What the app gave.
        got: String,
    },
    /// The coordinator wants to read what this device seals.
    #[error(
        "expected to seal contributions for {}, got a coordinator that {got}: nothing is \
         contributed, lists go on. Tell the operator; to let the coordinator read what its people \
         contribute, an app calls `Client::accept_embedded`, and pins no key",
        expected.as_deref().unwrap_or("a tally, as before")
    )]
    WouldContributeInClear {
        /// Key of the tally; none: that of another coordinator was known.
        expected: Option<String>,
        /// What the coordinator says, or is.
        got: &'static str,
    },
    /// The app sends masked updates only, and the coordinator asks for others.
    #[error(
        "expected to send updates under masks (`Options::masked_updates_only`), got a coordinator \
         that asks for {got:?}: this device takes part in no round; tell the operator"
    )]
    WouldUpdateInClear {
        /// The form that the recipe asks for.
        got: PackedFormat,
    },
    /// The coordinator names this person otherwise than before.
    #[error(
        "the coordinator names this person {got} to the tally, before it was {known}: nothing is \
         contributed, because one person would count as two; tell the operator. \
         `Client::accept_embedded` forgets the name of before"
    )]
    OtherHandle {
        /// First digits of the hash of the handle that this device has kept.
        known: String,
        /// The same of the one that was shown.
        got: String,
    },
    /// The file that says to whom contributions are sealed is damaged.
    #[error(
        "{path} is damaged: it says to whom contributions are sealed, and without it nothing is \
         contributed. `Client::accept_embedded` begins anew, in clear if the coordinator says so; \
         `Client::erase` erases everything"
    )]
    SealingDamaged {
        /// The file.
        path: PathBuf,
    },
    /// The terms of a sealed contribution are not what the tally signs.
    #[error("nothing is sealed with the terms that the coordinator sent: {0}; tell the operator")]
    BadSealing(String),
    /// The answer to a sealed contribution is not the tally's.
    #[error(
        "the answer to a sealed contribution does not come from the tally that it was sealed for: \
         it does not count as accepted, and is sent again later; tell the operator"
    )]
    BadAnswer,
    /// The tally does not take a contribution.
    #[error(
        "the tally does not take the contribution: {0}; load the operator's catalogue, or tell the \
         tally's operator"
    )]
    ContributionRefused(String),
    /// The model could not be loaded or run.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The catalogue could not be loaded.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The coordinator's recipe is not understood.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// The sealed file cannot be read or written.
    #[error("{path}: {source}; check space and permissions")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The platform's key store gave no key.
    #[error("the key store: {0}; try again when it can be used")]
    KeyStore(#[from] KeyStoreError),
    /// The folder was sealed with a key that nobody brings (any more).
    #[error(
        "{folder} was sealed with a key that is not here: it was restored on another phone, the \
         key store was cleared, or the app brings no key this time. If the key does not come back, \
         call `Client::erase_folder`, enrol anew, and import an export"
    )]
    KeyLost {
        /// The folder.
        folder: PathBuf,
    },
    /// A folder that was begun without a key store is opened with one.
    #[error(
        "{folder} was begun without a key store: its key is the file device.key in it. Open it \
         without one; to move, export the history, erase the folder, and begin anew"
    )]
    KeyInFolder {
        /// The folder.
        folder: PathBuf,
    },
    /// The sealed file does not open with the device's key.
    #[error(
        "{path} does not open with this device's key: it is damaged, or was copied from another \
         device"
    )]
    Sealed {
        /// The file.
        path: PathBuf,
    },
    /// The person has withdrawn consent.
    #[error(
        "consent is withdrawn from {from} (seconds since 1970) on: nothing later is recorded; \
         `Client::consent` ends that"
    )]
    ConsentWithdrawn {
        /// Seconds since 1970.
        from: i64,
    },
    /// The coordinator counted an update of this stage whose left-out part is not here any more.
    #[error(
        "what the last update left out is lost (the file was removed or damaged): the client \
         takes part again from the next stage on"
    )]
    FeedbackLost,
    /// Training stopped before its end; the round goes on without this client.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// A round would need more memory than [`crate::Options::memory_cap`] allows.
    #[error(
        "a training pass needs about {needed} bytes beside the weights, the cap is {cap}: the \
         round goes on without this client"
    )]
    Memory {
        /// Bytes needed, as estimated before anything is allocated.
        needed: usize,
        /// The cap.
        cap: usize,
    },
    /// The coordinator ordered to erase something, and cannot show that its log holds the order.
    #[error("an order to erase is not obeyed: {0}; tell the operator")]
    Order(#[from] OrderError),
    /// The coordinator serves something that it cannot show to be in its log.
    #[error("{0}; tell the operator")]
    Served(#[from] ServedError),
    /// The app uses only what is in the log, and this coordinator enters nothing.
    #[error(
        "the coordinator speaks minor version {minor}, and enters into its log what it serves from \
         6 on: nothing of it is used (`Options::logged_only`); the operator has to update it"
    )]
    Unlogged {
        /// What it speaks.
        minor: u16,
    },
    /// A file is not what a device exports for an audit.
    #[error("not an export for an audit: {0}")]
    AuditExport(String),
    /// The log's key that this device knows does not parse.
    #[error("the log's key: {0}")]
    LogKey(#[from] NoteError),
    /// The client has no identity and no invitation.
    #[error(
        "not enrolled: give `Options::invitation` an invitation once (printed by `lethe-admin \
         invite`); lists and recording work without"
    )]
    NotEnrolled,
    /// An item is not in the catalogue.
    #[error("item {0:?} is not in the catalogue: load a newer one, or leave the item out")]
    UnknownItem(String),
    /// Versions of the catalogue that are not what their manifest says.
    #[error(
        "the catalogue that the coordinator sends is not taken: {0}; lists go on with the one that \
         is here: tell the operator"
    )]
    BadCatalogue(String),
    /// An older version of the catalogue than the one that is here.
    #[error(
        "the coordinator has version {got} of the catalogue, this device {known}: it goes on with \
         its own until a newer one is there (was the coordinator restored from a backup?)"
    )]
    OldCatalogue {
        /// The coordinator's newest.
        got: u32,
        /// The newest here.
        known: u32,
    },
    /// Nobody says which version of the catalogue an epoch has.
    #[error(
        "the coordinator does not say which version of the catalogue epoch {0} has: the round goes \
         on without this client, which asks again"
    )]
    UnknownEpoch(u32),
    /// The targets of all training samples have left the catalogue.
    #[error(
        "the catalogue has none of the items that this device would train on: the round goes on \
         without this client; load the coordinator's catalogue"
    )]
    NothingToTrain,
    /// Too little history for a prompt.
    #[error("{got} events are recorded, {needed} are needed before anything can be recommended")]
    ShortHistory {
        /// Events recorded.
        got: usize,
        /// Events needed.
        needed: usize,
    },
    /// The model was loaded for another recipe.
    #[error(
        "the coordinator's recipe has {wanted:?}, the model was loaded with {loaded:?}: load it \
         with the recipe's"
    )]
    OtherOptions {
        /// The recipe's.
        wanted: crate::ModelOptions,
        /// The loaded model's.
        loaded: crate::ModelOptions,
    },
    /// An epoch uses another base model than the one that is loaded.
    #[error(
        "the epoch uses base model {wanted}, loaded is {loaded}: load the model that the operator \
         names; lists go on without it"
    )]
    OtherModel {
        /// Digest of the epoch's, hexadecimal.
        wanted: String,
        /// Of the loaded one.
        loaded: String,
    },
    /// The recipe of an epoch has what this version does not know.
    #[error("the recipe of epoch {epoch} is of a newer version: update the app; lists go on")]
    NewerRecipe {
        /// The epoch's number.
        epoch: u32,
    },
    /// An epoch is not alive any more, or was never heard of.
    #[error("epoch {epoch} has ended: the round goes on without this client")]
    EpochOver {
        /// Its number.
        epoch: u32,
    },
    /// What this device holds is not what the coordinator counts for this person (an older copy of
    /// the state came back).
    #[error(
        "the coordinator counts other data for this person than this device holds: nothing is \
         trained until the \
             next epoch; recommendations go on"
    )]
    OtherData,
    /// The release has not seen deletions that an earlier one had: the coordinator has forgotten to
    /// forget.
    #[error(
        "the release offered stands before deletion {known}, which an earlier one was free of (it \
         says {got}): it is not \
         used; tell the operator"
    )]
    OldLineage {
        /// Lineage offered.
        got: u64,
        /// Newest lineage seen.
        known: u64,
    },
    /// The erased client was used again.
    #[error("this client's data was erased: open the folder again to begin anew")]
    Erased,
    /// A background task died.
    #[error("internal: {0}")]
    Internal(String),
}

impl From<TransportError> for ClientError {
    fn from(e: TransportError) -> Self {
        match e {
            TransportError::Withdrawn => Self::Deleted,
            TransportError::Expired { .. } => Self::CertificateExpired(e),
            other => Self::Transport(other),
        }
    }
}

impl ClientError {
    /// The coordinator is away or busy: local functions still work, and trying again later may
    /// help.
    pub fn is_offline(&self) -> bool {
        self.transport().is_some_and(|e| {
            let expired = matches!(e, TransportError::Expired { .. });
            e.is_transient() && !expired
        })
    }

    /// Training was stopped, by the app or because its conditions do not hold.
    pub fn is_stopped(&self) -> bool {
        match self {
            Self::Stopped(_) => true,
            Self::Model(ModelError::Middle(e)) => e.is::<Stopped>(),
            _ => false,
        }
    }

    /// The last list of the language model may be shown in place of a new one.
    pub(crate) fn leaves_the_last_list(&self) -> bool {
        self.is_offline() || matches!(self, Self::CertificateExpired(_))
    }

    /// The reason that the coordinator is told when a client leaves a round by its own decision.
    pub(crate) fn declines(&self) -> Option<Declined> {
        match self {
            Self::FeedbackLost => Some(Declined::FeedbackLost),
            Self::Memory { .. } => Some(Declined::Memory),
            // The protocol has no reason of its own for the second.
            Self::Stopped(_)
            | Self::NothingToTrain
            | Self::UnknownEpoch(_)
            | Self::WouldUpdateInClear { .. }
            | Self::WouldContributeInClear { .. }
            | Self::OtherHandle { .. }
            | Self::OtherListKey { .. }
            | Self::SealingDamaged { .. } => Some(Declined::Conditions),
            // Without a model it is of no use in a round, and never will be. Nor is a phone that
            // was installed anew, or restored from a backup: what was joined with is gone.
            Self::NoModel
            | Self::OtherData
            | Self::OtherOptions { .. }
            | Self::OtherModel { .. }
            | Self::NewerRecipe { .. } => Some(Declined::Conditions),
            Self::Model(ModelError::Middle(e)) if e.is::<Stopped>() => Some(Declined::Conditions),
            _ => None,
        }
    }

    /// Whether asking again gives the same answer, until the app or the person does something: the
    /// device lacks what the work needs, or another device of the person has it.
    pub(crate) fn lasts(&self) -> bool {
        matches!(
            self,
            Self::NoModel
                | Self::OtherData
                | Self::OtherOptions { .. }
                | Self::OtherModel { .. }
                | Self::NewerRecipe { .. }
                | Self::UnknownEpoch(_)
        )
    }

    /// What the connection said, if that is the reason.
    pub fn transport(&self) -> Option<&TransportError> {
        match self {
            Self::Transport(e) => Some(e),
            Self::Model(ModelError::Middle(e)) => e.downcast_ref(),
            _ => None,
        }
    }

    pub(crate) fn refusal(&self) -> Option<Refusal> {
        match self.transport()? {
            TransportError::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }
}
