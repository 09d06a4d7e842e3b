//! Who holds the sums: a tally in this process, or one of its own.

use std::sync::Arc;

use lethe_ledger::SnapshotRef;
use lethe_parts::snapshot;
use lethe_proto::ids::Digest;
use lethe_proto::lists::ServedTables;
use lethe_proto::tally::{HeldOf, HeldShown, TallyStatus};
use lethe_receipt::note::VerifierKey;
use lethe_tally::{Handle, Leaver, Published, Served, Statement, Tally};

use super::party::{Left, Party};
use crate::CoordinatorError;

/// Where the sums are.
pub(crate) enum Keeper {
    /// Here: this process holds and computes with histories.
    Embedded(Arc<Tally>),
    /// In a process of its own, which is asked.
    Party(Arc<Party>),
}

/// What is served at this moment.
pub(super) enum Showing {
    /// Nothing was published yet.
    Nothing,
    /// What was published is recalled.
    Out,
    /// A snapshot.
    Snapshot(SnapshotRef),
}

/// What is served and recalled, as of one moment.
pub(super) struct Now {
    pub(super) showing: Showing,
    /// The highest number of a snapshot that was ever recalled.
    pub(super) recalled: u64,
}

impl Now {
    /// The snapshot that is served.
    pub(super) fn snapshot(&self) -> Option<SnapshotRef> {
        match self.showing {
            Showing::Snapshot(snapshot) => Some(snapshot),
            Showing::Nothing | Showing::Out => None,
        }
    }
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

fn named(snapshot: &Published) -> SnapshotRef {
    SnapshotRef {
        number: snapshot.statement.number,
        digest: Digest(snapshot.statement.snapshot),
        bytes: snapshot.bytes.len() as u64,
        people: snapshot.statement.people,
    }
}

fn tables(snapshot: &Published, have: u64) -> ServedTables {
    if have == snapshot.statement.number {
        return ServedTables::Same;
    }
    let note = snapshot.note.clone();
    match snapshot.deltas.get(&have) {
        Some(delta) if delta.len() < snapshot.bytes.len() => ServedTables::Delta {
            note,
            bytes: delta.clone(),
        },
        _ => ServedTables::Whole {
            note,
            bytes: snapshot.bytes.to_vec(),
        },
    }
}

impl Keeper {
    /// What is served and recalled. It waits for nobody.
    pub(super) fn now(&self) -> Now {
        match self {
            Self::Embedded(tally) => {
                let lists = tally.lists();
                let showing = match &lists.served {
                    Served::Nothing => Showing::Nothing,
                    Served::Out { .. } => Showing::Out,
                    Served::Snapshot(snapshot) => Showing::Snapshot(named(snapshot)),
                };
                Now {
                    showing,
                    recalled: lists.recalled,
                }
            }
            Self::Party(party) => party.now(),
        }
    }

    /// Key that verifies snapshots (verifier key text).
    pub(super) fn key(&self) -> String {
        match self {
            Self::Embedded(tally) => tally.verifier().text(),
            Self::Party(party) => party.key(),
        }
    }

    /// The signed note of what is served, if it says anything of noise.
    pub(super) fn note_about_noise(&self) -> Result<Option<String>, CoordinatorError> {
        let note = match self {
            Self::Embedded(tally) => match tally.served() {
                Served::Snapshot(snapshot) => Some(snapshot.note.clone()),
                Served::Nothing | Served::Out { .. } => None,
            },
            Self::Party(party) => party.note(),
        };
        let Some(note) = note else {
            return Ok(None);
        };
        let key = VerifierKey::parse(&self.key())?;
        let stated = Statement::open(&note, &key)?;
        Ok(stated.noise.map(|_| note))
    }

    /// The tables of the snapshot of this number, if it is served, for a device that has another.
    pub(super) fn tables(&self, number: u64, have: u64) -> ServedTables {
        match self {
            Self::Embedded(tally) => match tally.served() {
                Served::Snapshot(snapshot) if snapshot.statement.number == number => {
                    tables(&snapshot, have)
                }
                _ => ServedTables::None,
            },
            Self::Party(party) => party.tables(number, have),
        }
    }

    /// Items of the tables of the snapshot of this number, if it is served.
    pub(super) fn items_in_tables(&self, number: u64) -> Option<usize> {
        let items = |bytes: &[u8]| Some(snapshot::decode(bytes).ok()?.items());
        match self {
            Self::Embedded(tally) => match tally.served() {
                Served::Snapshot(s) if s.statement.number == number => items(&s.bytes),
                _ => None,
            },
            Self::Party(party) => party.items_in_tables(number),
        }
    }

    /// What there is of handles and items. A tally that is away may have all of it.
    pub(super) fn held(&self, of: &[HeldOf], now: u64) -> Result<Vec<HeldShown>, CoordinatorError> {
        let tally = match self {
            Self::Embedded(tally) => tally,
            Self::Party(party) => return Ok(party.held(of)),
        };
        let one = |of: &HeldOf| {
            let held = match of {
                HeldOf::Handle(handle) => tally.held(&Handle(*handle), now)?,
                HeldOf::Items(items) => tally.held_items(items, now)?,
            };
            Ok(tally.told_held(&held)?)
        };
        of.iter().map(one).collect()
    }

    /// The snapshot that was published last, served or not.
    pub(super) fn last(&self) -> Result<Option<SnapshotRef>, CoordinatorError> {
        match self {
            Self::Embedded(tally) => Ok(tally.last_statement()?.as_ref().map(long_recalled)),
            Self::Party(party) => Ok(party.last()),
        }
    }

    /// These leave by a deletion, and these items are taken down. When this returns, nothing that
    /// is served has them in it; nor is it in anything that can be read, unless the tally is away.
    pub(super) fn forget(
        &self,
        left: &[Left],
        items: &[u32],
        now: u64,
    ) -> Result<(), CoordinatorError> {
        let tally = match self {
            Self::Embedded(tally) => tally,
            Self::Party(party) => {
                party.forget(left, items);
                return Ok(());
            }
        };
        let handles: Vec<Handle> = left.iter().map(|l| Handle(l.handle)).collect();
        if !handles.is_empty() {
            tally.leave(&handles, now)?;
        }
        if !items.is_empty() {
            tally.take_down(items, now)?;
        }
        Ok(())
    }

    /// What the journal asks for is so, whatever backup was restored.
    pub(super) fn catch_up(
        &self,
        left: &[Left],
        items: &[u32],
        now: u64,
    ) -> Result<(), CoordinatorError> {
        let tally = match self {
            Self::Embedded(tally) => tally,
            Self::Party(party) => {
                party.catch_up(left.to_vec(), items.to_vec());
                return Ok(());
            }
        };
        let leaver = |l: &Left| Leaver {
            handle: Handle(l.handle),
            before: l.at,
        };
        let leavers: Vec<Leaver> = left.iter().map(leaver).collect();
        if !leavers.is_empty() {
            tally.leave_older(&leavers, now)?;
        }
        if !items.is_empty() {
            tally.take_down(items, now)?;
        }
        Ok(())
    }

    /// Somebody takes part no longer.
    pub(super) fn leave(&self, handle: Handle, now: u64) -> Result<(), CoordinatorError> {
        match self {
            Self::Embedded(tally) => Ok(tally.leave(&[handle], now)?),
            Self::Party(party) => party.leave(handle.0),
        }
    }

    /// How the tally is. One of its own is asked.
    pub(super) fn status(&self, now: u64) -> Result<TallyStatus, CoordinatorError> {
        match self {
            Self::Embedded(tally) => Ok(tally.told_status(now)?),
            Self::Party(party) => Ok(party.status()),
        }
    }

    /// How the tally is, without asking another process.
    pub(super) fn status_known(&self, now: u64) -> Result<TallyStatus, CoordinatorError> {
        match self {
            Self::Embedded(tally) => Ok(tally.told_status(now)?),
            Self::Party(party) => Ok(party.status_known()),
        }
    }
}
