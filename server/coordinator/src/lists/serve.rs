//! What devices are given.

use lethe_proto::ids::Digest;
use lethe_proto::lists::{ListState, ListTerms, ServedTables, SnapshotReply};

use super::Lists;
use super::keeper::Keeper;
use crate::shell::Shell;

impl Lists {
    /// What is served and recalled now.
    pub(crate) fn state(&self, shell: &Shell) -> ListState {
        let now = self.keeper.now();
        let served = now.snapshot().map(|s| s.number);
        // A deletion that was accepted is not executed yet.
        let serves = self.serves && shell.may_serve().is_ok();
        ListState {
            served: served.filter(|_| serves),
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

    /// The snapshot that is served, for a device that has these.
    pub(crate) fn snapshot(&self, shell: &Shell, have: u64, items: &Digest) -> SnapshotReply {
        let state = self.state(shell);
        let tables = match state.served {
            Some(number) => self.keeper.tables(number, have),
            None => ServedTables::None,
        };
        let known = *items == self.catalogue.digest();
        SnapshotReply {
            terms: self.terms(),
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
