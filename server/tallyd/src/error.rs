//! Why the tally could not start, or could not do what was asked.

use std::path::PathBuf;

use lethe_receipt::note::NoteError;
use lethe_recsys::data::DataError;
use lethe_seal::SealError;
use lethe_store::StoreError;
use lethe_store::asking::AskError;
use lethe_tally::{OtherCatalogue, TallyError};
use lethe_transport::TransportError;
use thiserror::Error;

/// Why the tally could not start, or could not do what was asked.
#[derive(Debug, Error)]
pub enum TallydError {
    /// The tally itself.
    #[error(transparent)]
    Tally(#[from] TallyError),
    /// A folder cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No randomness, or no encryption.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// A name that cannot sign.
    #[error(transparent)]
    Note(#[from] NoteError),
    /// The catalogue cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A certificate, or the socket.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The catalogue is not the one that people contributed for.
    #[error(transparent)]
    OtherCatalogue(#[from] OtherCatalogue),
    /// The items of the folder are no catalogue.
    #[error(transparent)]
    Catalogue(#[from] lethe_proto::catalogue::CatalogueError),
    /// Destroying a key is not real where the keys lie.
    #[error(transparent)]
    Recoverable(#[from] lethe_seal::disk::Recoverable),
    /// Another process has the folder.
    #[error("another process uses {folder}: end it first, or name another folder")]
    InUse {
        /// The folder.
        folder: PathBuf,
    },
    /// The folder has another format.
    #[error("the folder has format {got}, expected {expected}: use the build that wrote it")]
    Format {
        /// Of the folder.
        got: u32,
        /// Of this build.
        expected: u32,
    },
    /// There is no tally in the folder.
    #[error("{folder} holds no tally: make one with `lethe-tally init`")]
    NotFounded {
        /// The folder.
        folder: PathBuf,
    },
    /// There is a tally in the folder.
    #[error("{folder} holds a tally already: `lethe-tally invite` makes another invitation")]
    Founded {
        /// The folder.
        folder: PathBuf,
    },
    /// The evidence folder is older than the data folder.
    #[error(
        "the log in {folder} has {has} entries, the data folder knows of {knows}: the evidence \
         folder was lost or put back; restore its newest copy"
    )]
    Evidence {
        /// The evidence folder.
        folder: PathBuf,
        /// Entries of its log.
        has: u64,
        /// Entries that the data folder knows of.
        knows: u64,
    },
    /// The evidence folder holds another log.
    #[error(
        "the first {knows} entries of the log in {folder} are not those that the data folder \
         knows: restore the newest copy of the evidence folder that belongs here"
    )]
    OtherLog {
        /// The evidence folder.
        folder: PathBuf,
        /// Entries that the data folder knows of.
        knows: u64,
    },
    /// Something that the folder should hold is not there.
    #[error("the folder lacks {what}: restore it from a backup")]
    Lacks {
        /// What.
        what: &'static str,
    },
    /// The invitation is used, or was never made.
    #[error("this invitation is not known or was used already: `lethe-tally invite` makes one")]
    NotInvited,
    /// The certificate is not known.
    #[error("this certificate is not known any more: `lethe-tally invite` makes an invitation")]
    NotKnown,
    /// Something that a file holds does not parse, or cannot be written as text.
    #[error("{what}: {why}")]
    Text {
        /// What.
        what: String,
        /// Why.
        why: String,
    },
    /// A file or a thread.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// There is no room for who was in one more sum.
    #[error(
        "who was in sums of masks is kept for {most} people and rounds at most: train fewer \
         rounds, or with a smaller cohort"
    )]
    TooManySums {
        /// The most.
        most: usize,
    },
    /// The process that has the folder does not answer, or has not done it.
    #[error(transparent)]
    Asking(#[from] AskError),
}

impl TallydError {
    /// The disk has no room.
    pub(crate) fn is_full(&self) -> bool {
        self.to_string().contains("No space left")
    }
}
