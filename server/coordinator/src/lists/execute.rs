//! Deletions: what the tally has of the data, and how it goes.

use lethe_ledger::{Accepted, ListsLeft, SnapshotRef};
use lethe_proto::deletion::DeletionRequest;
use lethe_proto::tally::{HeldOf, HeldShown, TallyReply, TallyRequest};
use lethe_receipt::receipt::SignedByTally;

use super::Lists;
use super::keeper::Keeper;
use super::party::{Left, QUICK};
use crate::CoordinatorError;
use crate::fatal;

/// A snapshot that has somebody's data in it.
#[derive(Clone, Copy)]
struct Recalled {
    snapshot: SnapshotRef,
    /// Until when a device may use it, in seconds since 1970.
    held_until: u64,
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
            None => self.keeper.last()?,
        };
        let mut out = vec![];
        let mut highest = 0;
        let all: Vec<&DeletionRequest> = requests.iter().map(|(_, request)| request).collect();
        for (id, held) in requests.iter().map(|(id, _)| id).zip(self.held(&all, now)?) {
            let recalled = match held.shown {
                true => newest.map(|snapshot| Recalled {
                    snapshot,
                    held_until: now + self.valid_s,
                }),
                false => self.recalled_before(&held, now),
            };
            highest = highest.max(recalled.map_or(0, |r| r.snapshot.number));
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
        if let Keeper::Party(party) = &self.keeper {
            // Before anything says so: a tally that is back when it is told may never have had
            // them, and recalls nothing then.
            party.recall(highest);
            self.keep_recalled()?;
        }
        Ok(out)
    }

    /// What had somebody in it who is in no newer one: somebody else of their cell left. None, too,
    /// where no device may use it any more.
    fn recalled_before(&self, held: &HeldShown, now: u64) -> Option<Recalled> {
        let was = held.was_shown?;
        let held_until = was.at.saturating_add(self.valid_s);
        // Nobody knows its length any more.
        let snapshot = SnapshotRef {
            number: was.number,
            digest: was.digest,
            bytes: 0,
            people: was.people,
        };
        (held_until > now).then_some(Recalled {
            snapshot,
            held_until,
        })
    }

    /// The snapshot that is served.
    pub(crate) fn newest(&self) -> Option<SnapshotRef> {
        self.keeper.now().snapshot()
    }

    /// What the tally has of requests, in their order.
    pub(super) fn held(
        &self,
        requests: &[&DeletionRequest],
        now: u64,
    ) -> Result<Vec<HeldShown>, CoordinatorError> {
        let of = |request: &&DeletionRequest| match request.subject() {
            Some(subject) => HeldOf::Handle(self.handle(subject).0),
            None => HeldOf::Items(self.places(request)),
        };
        let all: Vec<HeldOf> = requests.iter().map(of).collect();
        self.keeper.held(&all, now)
    }

    /// Items of a request by place; those that the catalogue lacks are in no table.
    fn places(&self, request: &DeletionRequest) -> Vec<u32> {
        let catalogue = self.catalogue();
        let items = request.items().iter();
        let mut places: Vec<u32> = items.filter_map(|i| catalogue.place(i)).collect();
        // Several names of one item.
        places.sort_unstable();
        places.dedup();
        places
    }

    /// What whoever holds the sums has signed that belongs in the receipt of a deletion that is
    /// done.
    ///
    /// # Errors
    /// [`CoordinatorError::TallyAway`]: the receipt waits.
    pub(crate) fn signed_by_tally(
        &self,
        request: &DeletionRequest,
    ) -> Result<SignedByTally, CoordinatorError> {
        Ok(SignedByTally {
            vouch: self.vouch(request)?,
            noise: self.keeper.note_about_noise()?,
        })
    }

    /// A statement about handles; none: there is no tally of its own.
    fn vouch(&self, request: &DeletionRequest) -> Result<Option<String>, CoordinatorError> {
        let Keeper::Party(party) = &self.keeper else {
            return Ok(None);
        };
        let handles = request.subject().map(|s| self.handle(s).0);
        let handles = handles.into_iter().collect();
        match party.ask(TallyRequest::Vouch { handles }, QUICK)? {
            TallyReply::Vouched(note) => Ok(Some(note)),
            _ => party.unexpected(),
        }
    }

    /// Before keys are destroyed: whom the deletions are about leave, and items are taken down.
    /// When this returns, nothing that the tally serves or can read has them in it.
    pub(crate) fn forget(
        &self,
        requests: &[(u64, DeletionRequest)],
        now: u64,
    ) -> Result<(), CoordinatorError> {
        let mut leave: Vec<Left> = vec![];
        let mut items = vec![];
        for (id, request) in requests {
            match request.subject() {
                Some(subject) => leave.push(Left {
                    handle: self.handle(subject).0,
                    at: now,
                    by: *id,
                }),
                None => items.extend(self.places(request)),
            }
        }
        self.keeper.forget(&leave, &items, now)
    }

    /// What the journal asks for is so, whatever backup was restored.
    pub(crate) fn catch_up(&self, journal: &[Accepted], now: u64) -> Result<(), CoordinatorError> {
        let mut leavers = vec![];
        let mut items = vec![];
        for accepted in journal {
            match accepted.request.subject() {
                Some(subject) => leavers.push(Left {
                    handle: self.handle(subject).0,
                    at: accepted.at / 1000,
                    by: accepted.id,
                }),
                None => items.extend(self.places(&accepted.request)),
            }
        }
        self.keeper.catch_up(&leavers, &items, now)
    }
}
