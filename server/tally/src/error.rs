//! Why the tally did not do what it was asked for.

use lethe_parts::noise::Unfit;
use lethe_parts::refold::NotMade;
use lethe_parts::snapshot::SnapshotError;
use lethe_proto::codec::CodecError;
use lethe_receipt::note::NoteError;
use lethe_seal::SealError;
use lethe_store::StoreError;
use thiserror::Error;

use crate::cells::{Fault, Refused, SettingsError};

/// Why the tally did not do what it was asked for.
#[derive(Debug, Error)]
pub enum TallyError {
    /// The cells do not take the contribution.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The contribution is outside its bounds.
    #[error(transparent)]
    Bounds(#[from] lethe_parts::Refused),
    /// The folder cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The folder has another format.
    #[error(
        "the tally's folder has format {got}, expected {expected}: use the build that wrote it"
    )]
    Format {
        /// Of the folder.
        got: u32,
        /// Of this build.
        expected: u32,
    },
    /// Something that the state names is not there.
    #[error("the tally's folder lacks {what}: restore it from a backup")]
    Lacks {
        /// What.
        what: &'static str,
    },
    /// Sums that no tables can be solved from, or tables that cannot be packed.
    #[error(transparent)]
    NotMade(#[from] NotMade),
    /// Noise that cannot be made.
    #[error(transparent)]
    Noise(#[from] Unfit),
    /// All snapshots have spent what they may. What is served stays.
    #[error(
        "not published: the next snapshot would take what all have spent (epsilon {}) above the \
         budget of {}: raise `budget`, or go on with what is served",
        millionths(.spent_millionths), millionths(.budget_millionths)
    )]
    Budget {
        /// Epsilon of all so far, in millionths.
        spent_millionths: u64,
        /// The budget, in millionths.
        budget_millionths: u64,
    },
    /// A snapshot that cannot be read.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// A name that cannot sign.
    #[error(transparent)]
    Note(#[from] NoteError),
    /// No randomness, or no encryption.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// A record that cannot be encoded or decoded.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// Settings that do not fit each other.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// Content that describes another catalogue.
    #[error("the content describes {got} items, the tally has {expected}: load one catalogue")]
    Content {
        /// Items that are described.
        got: usize,
        /// Items of the tally.
        expected: usize,
    },
    /// What was to be published would tell on somebody. A fault of this program: nothing was
    /// published.
    #[error("not published: {0}; this is a fault of lethe-tally, report it")]
    Lint(#[from] Fault),
}

fn millionths(number: &u64) -> String {
    format!("{}.{:06}", number / 1_000_000, number % 1_000_000)
}
