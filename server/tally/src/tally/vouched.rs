//! Signed statements of what the tally has of handles, for receipts.

use lethe_receipt::vouch::{SnapshotName, VouchStatement, Vouched, handle_hash};

use super::Tally;
use super::served::Served;
use crate::error::TallyError;
use crate::ids::Handle;

impl Tally {
    /// What there is of these handles, and what is served, as of one moment: a signed note
    /// ([`VouchStatement`]). Of whom it says "nothing", nothing can be read in the folder either.
    ///
    /// # Errors
    /// [`TallyError`]: an earlier write is in doubt, and the folder cannot be read.
    pub fn vouch(&self, handles: &[Handle], now: u64) -> Result<String, TallyError> {
        let inner = &mut *self.lock();
        // Keys that are to be destroyed are, before anything is said.
        self.settle(inner, now)?;
        let lists = self.lists();
        let serves = match &lists.served {
            Served::Snapshot(snapshot) => Some(SnapshotName {
                number: snapshot.statement.number,
                digest: snapshot.statement.snapshot,
            }),
            Served::Nothing | Served::Out { .. } => None,
        };
        let people = inner.state.people();
        let vouched = |handle: &Handle| Vouched {
            handle: handle_hash(&handle.0),
            since: people.get(handle).map(|p| p.since),
        };
        let statement = VouchStatement {
            at: now,
            recalled: lists.recalled,
            serves,
            handles: handles.iter().map(vouched).collect(),
        };
        Ok(statement.sign(&self.signer)?)
    }
}
