//! What the tally says of itself, as messages have it: to the coordinator around it, or to another
//! process.

use lethe_proto::ids::Digest;
use lethe_proto::tally::{HeldShown, SnapshotHead, TallyState, TallyStatus, WasShownIn};

use super::{Held, Published, Served, Tally};
use crate::error::TallyError;

impl Published {
    /// It without its tables.
    pub fn head(&self) -> SnapshotHead {
        SnapshotHead {
            number: self.statement.number,
            digest: Digest(self.statement.snapshot),
            bytes: self.bytes.len() as u64,
            people: self.statement.people,
        }
    }
}

impl Tally {
    /// What is served and recalled. It waits for nobody's write.
    pub fn told_state(&self) -> TallyState {
        let lists = self.lists();
        let served = match &lists.served {
            Served::Snapshot(snapshot) => Some(snapshot.head()),
            Served::Nothing | Served::Out { .. } => None,
        };
        TallyState {
            served,
            recalled: lists.recalled,
        }
    }

    /// How the tally is.
    ///
    /// # Errors
    /// As [`Self::status`].
    pub fn told_status(&self, now: u64) -> Result<TallyStatus, TallyError> {
        let status = self.status(now)?;
        Ok(TallyStatus {
            people: status.people as u64,
            counting: status.counting as u64,
            waiting: status.waiting as u64,
            cells: status.cells as u64,
            cells_out: status.out.map_or(0, |out| u64::from(out.cells)),
            out_s: status.out_s,
            n: status.n as u64,
            smallest: status.smallest.map(|n| n as u64),
            m: status.m as u64,
            k: self.options.solve.k,
            taken_down: status.taken_down as u64,
            gives_away: status.gives_away.unwrap_or_default().into(),
            noise: status.noise.map(|n| n.to_string()).unwrap_or_default(),
            state: self.told_state(),
        })
    }

    /// What there is of somebody, or of items, with what names the snapshot of before.
    ///
    /// # Errors
    /// As [`Self::statement`].
    pub fn told_held(&self, held: &Held) -> Result<HeldShown, TallyError> {
        let was_shown = match held.was_shown {
            None => None,
            Some(was) => {
                // Of one that is older than the newest 10,000 only the number is known.
                let statement = self.statement(was.number)?;
                let digest = statement.as_ref().map(|s| Digest(s.snapshot));
                Some(WasShownIn {
                    number: was.number,
                    digest: digest.unwrap_or_default(),
                    people: statement.map_or(0, |s| s.people),
                    at: was.at,
                })
            }
        };
        Ok(HeldShown {
            held: held.held,
            cell: held.cell as u64,
            shown: held.shown,
            was_shown,
        })
    }
}
