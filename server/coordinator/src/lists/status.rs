//! What operators are told of lists.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use lethe_ledger::State;
use lethe_proto::admin::{DeletionLists, ListsLineage, ListsReplayed, ListsStatus, SnapshotShown};
use lethe_proto::deletion::DeletionRequest;
use lethe_proto::ids::SubjectId;
use lethe_proto::message::Refusal;
use lethe_proto::tally::{HeldOf, TOGETHER, TallyReply, TallyRequest, TallyStatus};
use lethe_scan::Scanner;
use lethe_tally::Handle;

use super::Lists;
use super::keeper::Keeper;
use super::party::{Party, SLOW};
use crate::CoordinatorError;
use crate::shell::Shell;

impl Lists {
    /// How lists are. A tally of its own is asked.
    pub(crate) fn status(&self, shell: &Shell) -> Result<ListsStatus, CoordinatorError> {
        let now = shell.clock.now().unix_ms / 1000;
        let status = self.keeper.status(now)?;
        Ok(self.shown(shell, status))
    }

    /// How lists are, as far as that is known here.
    pub(crate) fn status_known(&self, shell: &Shell) -> Result<ListsStatus, CoordinatorError> {
        let now = shell.clock.now().unix_ms / 1000;
        let status = self.keeper.status_known(now)?;
        Ok(self.shown(shell, status))
    }

    /// Who holds the sums, for people.
    fn who_holds(&self) -> String {
        match &self.keeper {
            Keeper::Embedded(_) if self.serves => {
                "embedded: this server holds and computes with histories".into()
            }
            Keeper::Embedded(_) => {
                "off: what was contributed before is kept until it is deleted".into()
            }
            Keeper::Party(party) => match party.away() {
                None => format!(
                    "tally: a process of its own at {} holds them; this server reads no \
                     contribution",
                    party.place()
                ),
                Some(why) => format!(
                    "tally: a process of its own at {} holds them, and is AWAY ({why}); figures \
                     of people are those it gave last",
                    party.place()
                ),
            },
        }
    }

    fn shown(&self, shell: &Shell, status: TallyStatus) -> ListsStatus {
        let showing = self.keeper.now();
        let served = showing.snapshot();
        let devices = shell.state().devices() as u64;
        let noise = match status.noise.as_str() {
            "" => String::new(),
            noise => format!("; {noise}"),
        };
        ListsStatus {
            sums: self.who_holds() + &noise,
            people: status.people,
            counting: status.counting,
            waiting: status.waiting,
            cells: status.cells,
            cells_out: status.cells_out,
            out_s: status.out_s,
            cell: status.n,
            smallest_cell: status.smallest,
            changed: status.m,
            k: status.k,
            served: served.map(|s| s.number),
            recalled: showing.recalled,
            snapshot_people: served.map_or(0, |s| s.people),
            snapshot_bytes: served.map_or(0, |s| s.bytes),
            devices,
            valid_s: self.valid_s,
            taken_down: status.taken_down,
            gives_away: status.gives_away,
            key: self.key(),
        }
    }

    /// What a deletion would do to the lists, in words: one line for each part.
    pub(crate) fn forecast(
        &self,
        shell: &Shell,
        requests: &[DeletionRequest],
    ) -> Result<String, CoordinatorError> {
        let now = shell.clock.now().unix_ms / 1000;
        let devices = shell.state().devices() as u64;
        let all: Vec<&DeletionRequest> = requests.iter().collect();
        let held = self.held(&all, now)?;
        let known = held.iter().filter(|h| h.held).count();
        let shown = held.iter().any(|h| h.shown);
        let mut out = format!(
            "Lists: {known} of {} request(s) concern what the sums hold",
            requests.len()
        );
        let members: u64 = held.iter().map(|h| h.cell).sum();
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
        let changed = || {
            CoordinatorError::refuse(
                Refusal::Busy,
                "the sums changed while they were folded again: ask once more",
            )
        };
        let tally = match &self.keeper {
            Keeper::Embedded(tally) => tally,
            Keeper::Party(party) => return replay_apart(party)?.ok_or_else(changed),
        };
        let folded = tally.refold(now)?.ok_or_else(changed)?;
        let stated = self.newest().map(|s| s.number);
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
        let tally = match &self.keeper {
            Keeper::Embedded(tally) => tally,
            Keeper::Party(party) => return search_apart(party, &handles, records, tables),
        };
        let handle_in = |bytes: &[u8], handle: &Handle| {
            let hex = handle.hex();
            let raw = bytes.windows(16).filter(|w| *w == handle.0).count();
            raw + bytes.windows(32).filter(|w| *w == hex.as_bytes()).count()
        };
        tally.each(|table, key, value| {
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
        let of = [HeldOf::Handle(self.handle(subject).0)];
        let held = self.keeper.held(&of, now)?;
        let held = held.first().copied().unwrap_or_default();
        let newest = self.newest().map(|s| s.number);
        Ok(ListsLineage {
            contributes: held.held,
            counts: held.cell > 0,
            cell: held.cell,
            snapshot: newest.filter(|_| held.shown),
        })
    }
}

/// A tally of its own folds everybody again. None: its sums changed meanwhile.
fn replay_apart(party: &Party) -> Result<Option<ListsReplayed>, CoordinatorError> {
    let TallyReply::Refolded(folded) = party.ask(TallyRequest::Refold, SLOW)? else {
        return party.unexpected();
    };
    Ok(folded.map(|folded| ListsReplayed {
        people: folded.people,
        digest: folded.digest,
        memory: folded.memory,
        folder: folded.folder,
        stated: folded.stated,
        snapshot: folded.snapshot,
    }))
}

/// A tally of its own searches for handles. Names are not told to it.
fn search_apart(
    party: &Party,
    handles: &[Handle],
    records: &mut u64,
    tables: &mut BTreeMap<String, u64>,
) -> Result<(), CoordinatorError> {
    for chunk in handles.chunks(TOGETHER) {
        let handles = chunk.iter().map(|h| h.0).collect();
        let asked = party.ask(TallyRequest::Search { handles }, SLOW)?;
        let TallyReply::Searched {
            records: read,
            hits,
        } = asked
        else {
            return party.unexpected();
        };
        *records += read;
        for (table, n) in hits {
            *tables.entry(format!("tally: {table}")).or_default() += n;
        }
    }
    Ok(())
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
