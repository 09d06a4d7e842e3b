//! The catalogue has another version: tables go on over more items, with other titles and tags.

use std::sync::{Arc, PoisonError};

use lethe_parts::content::Content;

use super::releasing::Noise;
use super::{Basis, Tally};
use crate::error::TallyError;

impl Tally {
    /// What is public about the items now.
    pub(super) fn content(&self) -> Arc<Content> {
        let basis = self.basis.read().unwrap_or_else(PoisonError::into_inner);
        basis.content.clone()
    }

    pub(super) fn noise(&self) -> Option<Noise> {
        let basis = self.basis.read().unwrap_or_else(PoisonError::into_inner);
        basis.noise
    }

    /// Whether content of so many items could follow.
    ///
    /// # Errors
    /// As [`Self::follow`].
    pub fn may_follow(&self, content: &Arc<Content>) -> Result<(), TallyError> {
        self.followed_by(content.clone()).map(drop)
    }

    fn followed_by(&self, content: Arc<Content>) -> Result<Basis, TallyError> {
        let expected = self.items();
        let got = content.items();
        if got < expected {
            return Err(TallyError::Content { got, expected });
        }
        Basis::new(content, &self.options)
    }

    /// Goes on with the content of a later version of the catalogue. Items keep their places, and
    /// new ones come after them: what people contributed stays as it is, and the sums have room for
    /// more. Snapshots that are made from now on have all of it; one that is being made does not.
    ///
    /// # Errors
    /// [`TallyError::Content`] for fewer items than before; [`TallyError`]: the noise is not made
    /// for so many. Nothing was changed.
    pub fn follow(&self, content: Arc<Content>) -> Result<(), TallyError> {
        let inner = &mut *self.lock();
        let basis = self.followed_by(content)?;
        let items = basis.content.items();
        if items > self.items() {
            // What is owed was read for as many items as the sums have.
            inner.pay_or_drop(&[], &[]);
            if let Some(sums) = &mut inner.sums {
                Arc::make_mut(sums).grow(items);
            }
        }
        *self.basis.write().unwrap_or_else(PoisonError::into_inner) = basis;
        Ok(())
    }
}
