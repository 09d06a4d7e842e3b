//! Deletions: what the tally has of the data, and how it goes.

use lethe_ledger::{Accepted, ListsLeft, SnapshotRef};
use lethe_proto::deletion::DeletionRequest;
use lethe_proto::ids::Digest;
use lethe_tally::{Handle, Held, Leaver, Served};

use super::Lists;
use crate::CoordinatorError;
use crate::fatal;

impl Lists {
    /// Whoever begins to execute deletions holds this until that is written.
    pub(crate) fn alone(&self) -> std::sync::RwLockWriteGuard<'_, ()> {
        fatal::write(&self.gate)
    }

    /// What the tally has of each deletion that is about to be executed.
    pub(crate) fn left(
        &self,
        requests: &[(u64, DeletionRequest)],
        devices: u64,
        now: u64,
    ) -> Result<Vec<(u64, ListsLeft)>, CoordinatorError> {
        // Recalled already, for somebody else: devices may hold it all the same.
        let newest = match self.newest() {
            Some(newest) => Some(newest),
            None => self.last()?,
        };
        let mut out = vec![];
        for (id, request) in requests {
            let held = self.held(request, now)?;
            let recalled = newest.filter(|_| held.shown);
            out.push((
                *id,
                ListsLeft {
                    held: held.held,
                    recalled,
                    devices: recalled.map_or(0, |_| devices),
                    held_until: recalled.map_or(0, |_| now + self.valid_s),
                },
            ));
        }
        Ok(out)
    }

    /// The snapshot that is served.
    pub(crate) fn newest(&self) -> Option<SnapshotRef> {
        match self.tally.lists().served {
            Served::Snapshot(snapshot) => Some(SnapshotRef {
                number: snapshot.statement.number,
                digest: Digest(snapshot.statement.snapshot),
                bytes: snapshot.bytes.len() as u64,
                people: snapshot.statement.people,
            }),
            Served::Nothing | Served::Out { .. } => None,
        }
    }

    /// The snapshot that was published last, served or not.
    fn last(&self) -> Result<Option<SnapshotRef>, CoordinatorError> {
        let last = self.tally.last_statement()?;
        Ok(last.map(|statement| SnapshotRef {
            number: statement.number,
            digest: Digest(statement.snapshot),
            // It is recalled: nobody knows its length any more.
            bytes: 0,
            people: statement.people,
        }))
    }

    pub(super) fn held(
        &self,
        request: &DeletionRequest,
        now: u64,
    ) -> Result<Held, CoordinatorError> {
        match request.subject() {
            Some(subject) => Ok(self.tally.held(&self.handle(subject), now)?),
            None => Ok(self.tally.held_items(&self.places(request), now)?),
        }
    }

    /// Items of a request by place; those that the catalogue lacks are in no table.
    fn places(&self, request: &DeletionRequest) -> Vec<u32> {
        let items = request.items().iter();
        items.filter_map(|i| self.catalogue.place(i)).collect()
    }

    /// Before keys are destroyed: whom the deletions are about leave, and items are taken down.
    /// When this returns, nothing that the tally serves or can read has them in it.
    pub(crate) fn forget(
        &self,
        requests: &[(u64, DeletionRequest)],
        now: u64,
    ) -> Result<(), CoordinatorError> {
        let mut leave: Vec<Handle> = vec![];
        let mut items = vec![];
        for (_, request) in requests {
            match request.subject() {
                Some(subject) => leave.push(self.handle(subject)),
                None => items.extend(self.places(request)),
            }
        }
        if !leave.is_empty() {
            self.tally.leave(&leave, now)?;
        }
        if !items.is_empty() {
            self.tally.take_down(&items, now)?;
        }
        Ok(())
    }

    /// What the journal asks for is so, whatever backup was restored.
    pub(crate) fn catch_up(&self, journal: &[Accepted], now: u64) -> Result<(), CoordinatorError> {
        let mut leavers = vec![];
        let mut items = vec![];
        for accepted in journal {
            match accepted.request.subject() {
                Some(subject) => leavers.push(Leaver {
                    handle: self.handle(subject),
                    before: accepted.at / 1000,
                }),
                None => items.extend(self.places(&accepted.request)),
            }
        }
        if !leavers.is_empty() {
            self.tally.leave_older(&leavers, now)?;
        }
        if !items.is_empty() {
            self.tally.take_down(&items, now)?;
        }
        Ok(())
    }
}
