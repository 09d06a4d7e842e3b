//! Deletions: what the tally has of the data, and how it goes.

use lethe_ledger::{Accepted, ListsLeft, SnapshotRef};
use lethe_proto::deletion::DeletionRequest;
use lethe_proto::ids::Digest;
use lethe_tally::cells::WasShown;
use lethe_tally::{Handle, Held, Leaver, Served, Statement};

use super::Lists;
use crate::CoordinatorError;
use crate::fatal;

/// A snapshot that has somebody's data in it.
#[derive(Clone, Copy)]
struct Recalled {
    snapshot: SnapshotRef,
    /// Until when a device may use it, in seconds since 1970.
    held_until: u64,
}

/// A snapshot that was recalled before: nobody knows its length any more.
fn long_recalled(statement: &Statement) -> SnapshotRef {
    SnapshotRef {
        number: statement.number,
        digest: Digest(statement.snapshot),
        bytes: 0,
        people: statement.people,
    }
}

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
            let recalled = match held.shown {
                true => newest.map(|snapshot| Recalled {
                    snapshot,
                    held_until: now + self.valid_s,
                }),
                false => self.recalled_before(&held, now)?,
            };
            out.push((
                *id,
                ListsLeft {
                    held: held.held,
                    recalled: recalled.map(|r| r.snapshot),
                    devices: recalled.map_or(0, |_| devices),
                    held_until: recalled.map_or(0, |r| r.held_until),
                },
            ));
        }
        Ok(out)
    }

    /// What had somebody in it who is in no newer one: somebody else of their cell left. None, too,
    /// where no device may use it any more.
    fn recalled_before(&self, held: &Held, now: u64) -> Result<Option<Recalled>, CoordinatorError> {
        let until = |was: &WasShown| was.at.saturating_add(self.valid_s);
        let Some(was) = held.was_shown.filter(|was| until(was) > now) else {
            return Ok(None);
        };
        let statement = self.tally.statement(was.number)?;
        Ok(statement.map(|statement| Recalled {
            snapshot: long_recalled(&statement),
            held_until: until(&was),
        }))
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
        Ok(last.as_ref().map(long_recalled))
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
