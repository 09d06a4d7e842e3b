//! What operators are told of lists.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use lethe_ledger::State;
use lethe_proto::admin::{DeletionLists, ListsLineage, ListsReplayed, ListsStatus, SnapshotShown};
use lethe_proto::deletion::DeletionRequest;
use lethe_proto::ids::SubjectId;
use lethe_scan::Scanner;
use lethe_tally::{Handle, NoiseStatus};

use super::Lists;
use crate::CoordinatorError;
use crate::shell::Shell;

impl Lists {
    /// How lists are.
    pub(crate) fn status(&self, shell: &Shell) -> Result<ListsStatus, CoordinatorError> {
        let now = shell.clock.now().unix_ms / 1000;
        let status = self.tally.status(now)?;
        let devices = shell.state().devices() as u64;
        Ok(ListsStatus {
            sums: {
                let sums = match self.serves {
                    true => "embedded: this server holds and computes with histories",
                    false => "off: what was contributed before is kept until it is deleted",
                };
                sums.to_owned() + &status.noise.as_ref().map(of_noise).unwrap_or_default()
            },
            people: status.people as u64,
            counting: status.counting as u64,
            waiting: status.waiting as u64,
            cells: status.cells as u64,
            cells_out: status.out.map_or(0, |out| u64::from(out.cells)),
            out_s: status.out_s,
            cell: status.n as u64,
            smallest_cell: status.smallest.map(|n| n as u64),
            changed: status.m as u64,
            k: self.config.k,
            served: status.served,
            recalled: self.tally.lists().recalled,
            snapshot_people: self.newest().map_or(0, |s| s.people),
            snapshot_bytes: self.newest().map_or(0, |s| s.bytes),
            devices,
            valid_s: self.valid_s,
            taken_down: status.taken_down as u64,
            gives_away: status.gives_away.unwrap_or_default().into(),
            key: self.key(),
        })
    }

    /// What a deletion would do to the lists, in words: one line for each part.
    pub(crate) fn forecast(
        &self,
        shell: &Shell,
        requests: &[DeletionRequest],
    ) -> Result<String, CoordinatorError> {
        let now = shell.clock.now().unix_ms / 1000;
        let devices = shell.state().devices() as u64;
        let held = requests.iter().map(|r| self.held(r, now));
        let held = held.collect::<Result<Vec<_>, _>>()?;
        let known = held.iter().filter(|h| h.held).count();
        let shown = held.iter().any(|h| h.shown);
        let mut out = format!(
            "Lists: {known} of {} request(s) concern what the sums hold",
            requests.len()
        );
        let members: usize = held.iter().map(|h| h.cell).sum();
        if members > 0 {
            let _ = write!(
                out,
                "; their cells, {members} people at most, leave the sums together"
            );
        }
        if requests.iter().any(|r| r.subject().is_none()) {
            out += "; rows and columns of items that are taken down are cleared for good";
        }
        out += ".\n";
        match self.newest().filter(|_| shown) {
            Some(snapshot) => {
                let megabytes = (devices * snapshot.bytes) as f64 / 1e6;
                let _ = writeln!(
                    out,
                    "  snapshot {} ({} bytes) is recalled; at most {devices} device(s) fetch the \
                     next: {megabytes:.1} MB\n  a device that stays away may use it until {} \
                     (seconds since 1970)",
                    snapshot.number,
                    snapshot.bytes,
                    now + self.valid_s
                );
            }
            None => out += "  No snapshot is recalled.\n",
        }
        let window_ms = shell.state().erase_window_ms();
        if window_ms > 0 {
            let _ = writeln!(
                out,
                "  It waits for other deletions for up to {} s; what is served stays as it is \
                 meanwhile.",
                window_ms / 1000
            );
        }
        Ok(out)
    }

    /// Folds everybody who counts again, from what is sealed, and compares bytes.
    pub(crate) fn replay(&self, shell: &Shell) -> Result<ListsReplayed, CoordinatorError> {
        let now = shell.clock.now().unix_ms / 1000;
        let Some(folded) = self.tally.refold(now)? else {
            return Err(CoordinatorError::refuse(
                lethe_proto::message::Refusal::Busy,
                "the sums changed while they were folded again: ask once more",
            ));
        };
        let newest = self.tally.lists().served;
        let stated = match &newest {
            lethe_tally::Served::Snapshot(s) => Some(s.statement.number),
            _ => None,
        };
        Ok(ListsReplayed {
            people: u64::from(folded.people),
            digest: folded.digest,
            memory: folded.memory,
            folder: folded.folder,
            stated: folded.stated,
            snapshot: stated,
        })
    }

    /// Searches what the tally has, decrypted, for texts, and for the handles that belong to them
    /// as names of people.
    pub(crate) fn search(
        &self,
        texts: &[String],
        scanner: &Scanner,
        records: &mut u64,
        tables: &mut BTreeMap<String, u64>,
    ) -> Result<(), CoordinatorError> {
        let subjects = texts.iter().filter_map(|t| SubjectId::new(t).ok());
        let handles: Vec<Handle> = subjects.map(|s| self.handle(&s)).collect();
        let handle_in = |bytes: &[u8], handle: &Handle| {
            let hex = handle.hex();
            let raw = bytes.windows(16).filter(|w| *w == handle.0).count();
            raw + bytes.windows(32).filter(|w| *w == hex.as_bytes()).count()
        };
        self.tally.each(|table, key, value| {
            *records += 1;
            let mut n = scanner.count(key.as_bytes()) + scanner.count(value);
            for handle in &handles {
                n += (handle_in(key.as_bytes(), handle) + handle_in(value, handle)) as u64;
            }
            if n > 0 {
                *tables.entry(table.to_owned()).or_default() += n;
            }
        })?;
        Ok(())
    }

    /// What the sums have of a person.
    pub(crate) fn lineage(
        &self,
        shell: &Shell,
        subject: &SubjectId,
    ) -> Result<ListsLineage, CoordinatorError> {
        let now = shell.clock.now().unix_ms / 1000;
        let held = self.tally.held(&self.handle(subject), now)?;
        let newest = self.newest().map(|s| s.number);
        Ok(ListsLineage {
            contributes: held.held,
            counts: held.cell > 0,
            cell: held.cell as u64,
            snapshot: newest.filter(|_| held.shown),
        })
    }
}

/// How the budget of the noise stands, in words.
fn of_noise(noise: &NoiseStatus) -> String {
    let millionths = |n: u64| n as f64 / 1e6;
    let end = match noise.exhausted {
        true => "; SPENT: nothing newer is published, see docs/noise.md",
        false => "",
    };
    format!(
        "; noise: epsilon {} a snapshot, {} spent by {} of a budget of {}, delta {:e}{end}",
        millionths(noise.epsilon_millionths),
        millionths(noise.spent_millionths),
        noise.releases,
        millionths(noise.budget_millionths),
        noise.delta_trillionths as f64 / 1e12,
    )
}

/// What a deletion did to the lists.
pub(crate) fn of_deletion(state: &State, id: u64) -> Option<DeletionLists> {
    let record = state.lists_of(id)?;
    let shown = |s: &lethe_ledger::SnapshotRef| SnapshotShown {
        number: s.number,
        digest: s.digest,
        people: s.people,
        bytes: s.bytes,
    };
    Some(DeletionLists {
        held: record.left.held,
        recalled: record.left.recalled.as_ref().map(shown),
        replaced_by: record.whole.as_ref().map(|w| shown(&w.0)),
        seconds_until_whole: record.whole.map(|w| w.1 as f64 / 1000.0),
        devices: record.left.devices,
        bytes: record.left.devices * record.left.recalled.map_or(0, |s| s.bytes),
        held_until: record.left.held_until,
    })
}
