//! What is served, and how the tally is.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use lethe_parts::snapshot::{SnapshotError, delta};
use rayon::prelude::*;

use super::releasing::NoiseStatus;
use super::{Inner, Tally};
use crate::Statement;
use crate::cells::{Fold, Out, State};
use crate::error::TallyError;
use crate::vault::Kept;

/// What devices are given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Served {
    /// Nothing was published yet.
    Nothing,
    /// Somebody left, or an item was taken down: what was published is recalled until the next
    /// snapshot is there.
    Out {
        /// In seconds since 1970.
        since: u64,
    },
    /// The newest snapshot. It has nobody in it who has left.
    Snapshot(Arc<Published>),
}

/// What devices are given, and what they must not use any more: of one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lists {
    /// What they are given now.
    pub served: Served,
    /// The highest number of a snapshot that was ever recalled; 0: none was.
    pub recalled: u64,
}

/// A snapshot that is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// What the tally has signed.
    pub statement: Statement,
    /// The signed note.
    pub note: String,
    /// The snapshot (`lethe_parts::snapshot::decode`).
    pub bytes: Arc<Vec<u8>>,
    /// By number of an earlier snapshot: what leads from it to this one
    /// (`lethe_parts::snapshot::apply`). None leads from a snapshot that was recalled.
    pub deltas: BTreeMap<u64, Vec<u8>>,
}

/// How the tally is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// People who contribute.
    pub people: usize,
    /// People who count.
    pub counting: usize,
    /// People who wait for a cell.
    pub waiting: usize,
    /// Cells.
    pub cells: usize,
    /// What was published is out.
    pub out: Option<Out>,
    /// For how many seconds.
    pub out_s: Option<u64>,
    /// Members of the next cell, n.
    pub n: usize,
    /// Members of the smallest cell that counts.
    pub smallest: Option<usize>,
    /// Members of a cell who change together, m.
    pub m: usize,
    /// Number of the snapshot that is served.
    pub served: Option<u64>,
    /// The highest number of a snapshot that was ever recalled; 0: none was.
    pub recalled: u64,
    /// Items that were taken down.
    pub taken_down: usize,
    /// What the settings give away, if they do.
    pub gives_away: Option<&'static str>,
    /// How the budget of the noise stands; none: there is no noise.
    pub noise: Option<NoiseStatus>,
}

/// What leads from each of the earlier snapshots to a new one.
pub(super) fn deltas(
    earlier: &[Kept],
    bytes: &[u8],
) -> Result<BTreeMap<u64, Vec<u8>>, SnapshotError> {
    let of = |old: &Kept| Ok((old.number, delta(&old.bytes, bytes)?));
    earlier.par_iter().map(of).collect()
}

impl Tally {
    /// What devices are given now. It waits for nobody's write.
    pub fn served(&self) -> Served {
        self.lists().served
    }

    /// The highest number of a snapshot that was ever recalled; 0: none was. It waits for nobody's
    /// write.
    pub fn recalled(&self) -> u64 {
        self.lists().recalled
    }

    /// Both, as of one moment. It waits for nobody's write.
    pub fn lists(&self) -> Lists {
        let lists = self.lists.read().unwrap_or_else(PoisonError::into_inner);
        lists.clone()
    }

    pub(super) fn serve(&self, served: Served, state: &State) {
        let lists = Lists {
            served,
            recalled: state.core().recalled,
        };
        *self.lists.write().unwrap_or_else(PoisonError::into_inner) = lists;
    }

    /// Before anything is written about it: what is recalled is served to nobody any more. That it
    /// is recalled is said when it is written: a write that fails may be undone, and what devices
    /// have dropped would be served again.
    pub(super) fn stop_serving(&self, state: &State) {
        if let Some(out) = state.core().out {
            let mut lists = self.lists.write().unwrap_or_else(PoisonError::into_inner);
            lists.served = Served::Out { since: out.since };
        }
    }

    /// What is recalled, and written to be so, is said, also where nothing was served: devices may
    /// hold what a later state of this folder has published.
    pub(super) fn say_recalled(&self, state: &State) {
        let mut lists = self.lists.write().unwrap_or_else(PoisonError::into_inner);
        lists.recalled = state.core().recalled;
    }

    /// Serves what the folder says.
    pub(super) fn load_served(&self, inner: &mut Inner) -> Result<(), TallyError> {
        let core = inner.state.core();
        inner.kept.clear();
        let what = match (core.served, core.out) {
            (Some(number), _) => {
                inner.kept = self.vault.snapshots(number)?;
                let Some((newest, earlier)) = inner.kept.split_last() else {
                    return Err(TallyError::Lacks {
                        what: "the snapshot that it serves",
                    });
                };
                Served::Snapshot(Arc::new(Published {
                    statement: Statement::open(&newest.note, self.verifier())?,
                    note: newest.note.clone(),
                    bytes: newest.bytes.clone(),
                    deltas: deltas(earlier, &newest.bytes)?,
                }))
            }
            (None, Some(out)) => Served::Out { since: out.since },
            (None, None) => Served::Nothing,
        };
        self.serve(what, &inner.state);
        Ok(())
    }

    /// How the tally is.
    ///
    /// # Errors
    /// [`TallyError`]: an earlier write is in doubt, and the folder cannot be read.
    pub fn status(&self, now: u64) -> Result<Status, TallyError> {
        let inner = &mut *self.lock();
        self.settle(inner, now)?;
        let state = &inner.state;
        let settings = state.settings();
        let out = state.core().out;
        Ok(Status {
            people: state.members().len(),
            counting: state.counting(),
            waiting: state.waiting(),
            cells: state.cells().len(),
            out,
            out_s: out.map(|o| now.saturating_sub(o.since)),
            n: state.size(),
            smallest: state.cells().values().map(|c| c.members.len()).min(),
            m: settings.changed as usize,
            served: state.core().served,
            recalled: state.core().recalled,
            taken_down: state.cleared().len(),
            gives_away: settings.gives_away(),
            noise: self.noise().map(|n| n.status(&state.core().spent)),
        })
    }

    /// Who counts, as numbers and versions; for those who run the lint over what was published.
    ///
    /// # Errors
    /// As [`Self::status`].
    pub fn fold(&self, now: u64) -> Result<Fold, TallyError> {
        let inner = &mut *self.lock();
        self.settle(inner, now)?;
        Ok(inner.state.fold())
    }

    /// The signed texts of what was published, in order, the newest 10,000; for those who audit.
    ///
    /// # Errors
    /// [`TallyError::Store`].
    pub fn published(&self) -> Result<Vec<String>, TallyError> {
        self.vault.published()
    }
}
