//! What the tally has of somebody, for whoever plans a deletion, shows where data is, or searches.

use super::Tally;
use crate::Statement;
use crate::cells::WasShown;
use crate::error::TallyError;
use crate::ids::Handle;

/// What the tally has of a handle, or of items.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// It has something of it.
    pub held: bool,
    /// Members of its cell; 0: it waits, or these are items.
    pub cell: usize,
    /// The newest snapshot has it in it, recalled or not.
    pub shown: bool,
    /// If not: the one that had it in it last, and was recalled for somebody else.
    pub was_shown: Option<WasShown>,
}

impl Tally {
    /// What there is of a handle.
    ///
    /// # Errors
    /// [`TallyError`]: an earlier write is in doubt, and the folder cannot be read.
    pub fn held(&self, handle: &Handle, now: u64) -> Result<Held, TallyError> {
        let inner = &mut *self.lock();
        self.settle(inner, now)?;
        let state = &inner.state;
        let Some(person) = state.people().get(handle) else {
            return Ok(Held::default());
        };
        let member = state.members().get(&person.number);
        let cell = member.and_then(|m| state.cells().get(&m.cell?));
        Ok(Held {
            held: true,
            cell: cell.map_or(0, |c| c.members.len()),
            shown: cell.is_some_and(|c| c.shown),
            was_shown: member.and_then(|m| m.was_shown),
        })
    }

    /// What there is of items: whether one of them is not taken down yet.
    ///
    /// # Errors
    /// As [`Self::held`].
    pub fn held_items(&self, items: &[u32], now: u64) -> Result<Held, TallyError> {
        let inner = &mut *self.lock();
        self.settle(inner, now)?;
        let state = &inner.state;
        let held = items.iter().any(|i| !state.cleared().contains(i));
        Ok(Held {
            held,
            cell: 0,
            shown: held && state.core().snapshot > 0,
            was_shown: None,
        })
    }

    /// What was signed about the snapshot that was published last, served or not.
    ///
    /// # Errors
    /// [`TallyError::Store`]; [`TallyError::Note`] for a text that this tally did not sign.
    pub fn last_statement(&self) -> Result<Option<Statement>, TallyError> {
        let published = self.published()?;
        let last = published.last();
        Ok(last
            .map(|note| Statement::open(note, self.verifier()))
            .transpose()?)
    }

    /// What was signed about a snapshot; none: it was not published, or is older than the newest
    /// 10,000.
    ///
    /// # Errors
    /// As [`Self::last_statement`].
    pub fn statement(&self, number: u64) -> Result<Option<Statement>, TallyError> {
        let note = self.vault.note(number)?;
        Ok(note
            .map(|note| Statement::open(&note, self.verifier()))
            .transpose()?)
    }

    /// Shows every record, decrypted: its table, its key and its bytes.
    ///
    /// # Errors
    /// [`TallyError::Store`]: a record cannot be read.
    pub fn each(&self, visit: impl FnMut(&str, &str, &[u8])) -> Result<(), TallyError> {
        self.vault.each(visit)
    }
}
