//! Measurements: cells that are drawn the same way in every run, and who counts.

use std::collections::BTreeMap;
use std::sync::Arc;

use lethe_learn::seed::Seed;
use lethe_parts::content::Content;
use lethe_store::keys::Folders;
use lethe_store::sealed::Engine;

use super::{Options, Tally};
use crate::error::TallyError;
use crate::ids::{Fresh, Handle, Version};

impl Tally {
    /// As [`Self::open`], for a measurement that gives the same figures twice: a new folder's
    /// secrets and the numbers of members follow from the seed. Never where people are: whoever
    /// knows the seed knows who will be in a cell with whom.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_seeded(
        engine: &Engine,
        folders: impl Into<Folders>,
        content: Arc<Content>,
        options: Options,
        seed: Seed,
        now: u64,
    ) -> Result<Self, TallyError> {
        Self::open_with(engine, folders.into(), content, options, Some(seed), now)
    }

    /// What a membership that begins `at` is numbered and salted from.
    pub(super) fn fresh(&self, handle: &Handle, at: u64) -> Result<Fresh, TallyError> {
        match &self.seed {
            None => Ok(Fresh(lethe_seal::random()?)),
            Some(seed) => {
                let membership = [&handle.0[..], &at.to_le_bytes()];
                Ok(Fresh(seed.derive("fresh", &membership).0))
            }
        }
    }

    /// Who counts, and which of their contributions does: 1 is the first since they came.
    ///
    /// # Errors
    /// As [`Self::status`].
    pub fn counting(&self, now: u64) -> Result<BTreeMap<Handle, Version>, TallyError> {
        let inner = &mut *self.lock();
        self.settle(inner, now)?;
        let people = inner.state.people().iter();
        let counts = people.filter_map(|(handle, person)| {
            let member = inner.state.members().get(&person.number)?;
            Some((*handle, member.counts.as_ref()?.0))
        });
        Ok(counts.collect())
    }
}
