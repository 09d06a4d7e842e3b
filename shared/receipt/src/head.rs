//! Heads of the log as a device sees them: each extends the newest one that it has seen. So nobody
//! can show one device a log of its own, and another one later.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::merkle::{Hash, verify_consistency, verify_inclusion};
use crate::note::{NoteError, VerifierKey, open_checkpoint};

/// A head of the log that a device has seen: number of entries and root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenHead {
    /// Entries.
    pub size: u64,
    /// Root.
    pub root: Hash,
}

/// Why a head is not believed.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum HeadError {
    /// The log has not signed it.
    #[error(transparent)]
    Note(#[from] NoteError),
    /// The log was rewritten, or put back.
    #[error(
        "the log's head of {got} entries does not extend the one of {seen} that this device has \
         seen: the log was rewritten or put back"
    )]
    OtherLog {
        /// Entries of the new head.
        got: u64,
        /// Entries of the head that was seen.
        seen: u64,
    },
}

impl SeenHead {
    /// The head of this checkpoint, which extends what was seen by this proof (RFC 9162, section
    /// 2.1.4.2).
    ///
    /// # Errors
    /// [`HeadError`].
    pub fn next(
        seen: Option<Self>,
        checkpoint: &str,
        key: &VerifierKey,
        consistency: &[Hash],
    ) -> Result<Self, HeadError> {
        let (size, root) = open_checkpoint(checkpoint, key)?;
        let Some(seen) = seen else {
            return Ok(Self { size, root });
        };
        let old = (seen.size, &seen.root);
        if !verify_consistency(old, (size, &root), consistency) {
            return Err(HeadError::OtherLog {
                got: size,
                seen: seen.size,
            });
        }
        Ok(Self { size, root })
    }

    /// Whether the log holds this entry at this index.
    pub fn includes(&self, entry: &[u8], index: u64, proof: &[Hash]) -> bool {
        verify_inclusion(entry, index, self.size, proof, &self.root)
    }
}
