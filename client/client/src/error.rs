use std::path::PathBuf;

use lethe_model::ModelError;
use lethe_receipt::note::NoteError;
use lethe_receipt::order::OrderError;
use lethe_recipe::RecipeError;
use lethe_recsys::data::DataError;
use lethe_transport::TransportError;
use thiserror::Error;

use crate::conditions::Stopped;

/// Why a client could not do what was asked. The local history is never lost by any of them.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The coordinator could not be reached, or refused.
    #[error(transparent)]
    Transport(#[from] TransportError),
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
    /// A round would need more memory than [`crate::ClientBuilder::memory_cap`] allows.
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
    /// The log's key that this device knows does not parse.
    #[error("the log's key: {0}")]
    LogKey(#[from] NoteError),
    /// The client has no identity and no invitation.
    #[error("not enrolled: give the builder an invitation once (printed by `lethe-admin invite`)")]
    NotEnrolled,
    /// An item is not in the catalogue.
    #[error("item {0:?} is not in the catalogue")]
    UnknownItem(String),
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
    /// The coordinator is away, and the list of the last time has expired.
    #[error(
        "the coordinator cannot be reached ({0}), and the last list has expired: connect to get a \
         new one"
    )]
    ListExpired(#[source] Box<ClientError>),
    /// The erased client was used again.
    #[error("this client's data was erased")]
    Erased,
    /// A background task died.
    #[error("internal: {0}")]
    Internal(String),
}
