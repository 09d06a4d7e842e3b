//! What devices are given.

use lethe_proto::ids::Digest;
use lethe_proto::lists::{ListState, ListTerms, ServedTables, SnapshotReply, items_digest};

use super::Lists;
use super::keeper::Keeper;
use crate::fatal;
use crate::shell::Shell;

impl Lists {
    /// What is served and recalled now.
    pub(crate) fn state(&self, shell: &Shell) -> ListState {
        let now = self.keeper.now();
        // A deletion that was accepted is not executed yet.
        let serves = self.serves && shell.may_serve().is_ok();
        let served = now.snapshot().filter(|_| serves);
        ListState {
            served: served
                .filter(|s| shell.snapshot_is_logged(s))
                .map(|s| s.number),
            recalled: now.recalled,
        }
    }

    /// What is asked of contributions. A tally of its own says it, and may be away.
    fn terms(&self) -> Option<ListTerms> {
        let own = || {
            self.serves.then_some(ListTerms {
                clip: self.config.clip,
                refresh_s: self.config.refresh_s,
                valid_s: self.valid_s,
            })
        };
        match &self.keeper {
            Keeper::Embedded(_) => own(),
            Keeper::Party(party) => match party.terms() {
                Some(terms) => Some(ListTerms {
                    clip: terms.clip,
                    refresh_s: terms.refresh_s,
                    valid_s: self.valid_s,
                }),
                None => own(),
            },
        }
    }

    /// Items of the tables of a snapshot, if it is served.
    fn items_in_tables(&self, number: u64) -> Option<usize> {
        let mut known = fatal::lock(&self.in_tables);
        if let Some(known) = known.filter(|k| k.0 == number) {
            return Some(known.1);
        }
        let count = self.keeper.items_in_tables(number)?;
        *known = Some((number, count));
        Some(count)
    }

    /// The snapshot that is served, for a device that has these.
    pub(crate) fn snapshot(&self, shell: &Shell, have: u64, items: &Digest) -> SnapshotReply {
        let state = self.state(shell);
        let tables = match state.served {
            Some(number) => self.keeper.tables(number, have),
            None => ServedTables::None,
        };
        let catalogue = self.catalogue();
        let all = catalogue.ids();
        // Tables that were solved before items were added have fewer.
        let count = state.served.and_then(|n| self.items_in_tables(n));
        let ids = &all[..count.unwrap_or(all.len()).min(all.len())];
        let digest = match ids.len() == all.len() {
            true => catalogue.digest(),
            false => items_digest(ids.iter().map(String::as_str)),
        };
        let known = *items == digest;
        SnapshotReply {
            terms: self.terms(),
            state,
            key: self.key(),
            items: match known {
                true => vec![],
                false => ids.to_vec(),
            },
            tables,
        }
    }
}
