//! What shows devices that the log holds what they are given.

use lethe_ledger::LoggedPart;
use lethe_receipt::receipt::VerifyError;
use lethe_receipt::served::Proven;

use super::Evidence;
use crate::CoordinatorError;

impl Evidence {
    /// The proof of something that is served, for a device that has seen a head of `seen` entries.
    pub(crate) fn shown(&self, part: LoggedPart, seen: u64) -> Result<Proven, CoordinatorError> {
        let LoggedPart {
            statement, index, ..
        } = part;
        let proof = self.log.tree().inclusion(index);
        Ok(Proven {
            statement,
            index,
            proof: proof.ok_or(VerifyError::NotIncluded { index })?,
            checkpoint: self.checkpoint(),
            // Who has seen more than there is finds out that the log was put back.
            consistency: self.log.tree().consistency(seen).unwrap_or_default(),
        })
    }
}
