//! What devices are given.

use lethe_proto::ids::Digest;
use lethe_proto::lists::{ListState, ListTerms, ServedTables, SnapshotReply};
use lethe_tally::{Published, Served};

use super::Lists;
use crate::shell::Shell;

impl Lists {
    /// What is served and recalled now.
    pub(crate) fn state(&self, shell: &Shell) -> ListState {
        let lists = self.tally.lists();
        let served = match &lists.served {
            Served::Snapshot(snapshot) => Some(snapshot.statement.number),
            Served::Nothing | Served::Out { .. } => None,
        };
        // A deletion that was accepted is not executed yet.
        let serves = self.serves && shell.may_serve().is_ok();
        ListState {
            served: served.filter(|_| serves),
            recalled: lists.recalled,
        }
    }

    /// The snapshot that is served, for a device that has these.
    pub(crate) fn snapshot(&self, shell: &Shell, have: u64, items: &Digest) -> SnapshotReply {
        let lists = self.tally.lists();
        let state = self.state(shell);
        let tables = match (&lists.served, state.served) {
            (Served::Snapshot(snapshot), Some(number)) if snapshot.statement.number == number => {
                tables(snapshot, have)
            }
            _ => ServedTables::None,
        };
        let known = *items == self.catalogue.digest();
        SnapshotReply {
            terms: self.serves.then_some(ListTerms {
                clip: self.config.clip,
                refresh_s: self.config.refresh_s,
                valid_s: self.valid_s,
            }),
            state,
            key: self.key(),
            items: match known {
                true => vec![],
                false => self.catalogue.ids().to_vec(),
            },
            tables,
        }
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
