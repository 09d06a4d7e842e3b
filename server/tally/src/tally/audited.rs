//! What an auditor is given of the snapshot that is served. It names nobody.

use lethe_parts::refold::{Method, salted};
use lethe_parts::snapshot;
use lethe_proto::ids::Digest;
use rayon::prelude::*;

use super::{Inner, Tally};
use crate::error::TallyError;
use crate::vault::VersionOf;

/// What somebody else needs, besides people's contributions, to fold and solve again.
#[derive(Clone, PartialEq, Eq)]
pub struct Audited {
    /// Number of the snapshot.
    pub number: u64,
    /// The signed note.
    pub note: String,
    /// Salt of the sums' digest in it ([`salted`]).
    pub salt: [u8; 32],
    /// How tables are solved and packed.
    pub method: Method,
    /// Digest of what is public about items (`Content::digest`).
    pub content: [u8; 32],
    /// Items that were taken down, ascending.
    pub taken_down: Vec<u32>,
    /// People who count in it.
    pub people: usize,
}

impl std::fmt::Debug for Audited {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Audited(snapshot {})", self.number)
    }
}

impl Inner {
    /// Who counts in the snapshot of this number, in the order of cells and numbers; none: it is
    /// not served.
    fn served_versions(&self, number: u64) -> Option<Vec<VersionOf>> {
        let core = self.state.core();
        let newest = self.kept.last().filter(|k| k.number == number)?;
        let last = self.last.as_ref().filter(|l| l.fold.number == number)?;
        if core.served != Some(newest.number) {
            return None;
        }
        let members = last.fold.cells.values().flatten();
        let of = |m: (&crate::Number, &crate::Version)| {
            Some(VersionOf {
                handle: self.state.handle(*m.0)?,
                version: *m.1,
            })
        };
        members.map(of).collect()
    }
}

impl Tally {
    /// What is given to an auditor of the snapshot that is served. None: none is served, or it was
    /// solved over another catalogue than this one, and the next is not there yet.
    ///
    /// # Errors
    /// [`TallyError`]: the folder or the snapshot cannot be read.
    pub fn audited(&self, now: u64) -> Result<Option<Audited>, TallyError> {
        let inner = &mut *self.lock();
        self.settle(inner, now)?;
        let Some(newest) = inner.kept.last().cloned() else {
            return Ok(None);
        };
        let Some(versions) = inner.served_versions(newest.number) else {
            return Ok(None);
        };
        if snapshot::decode(&newest.bytes)?.items() != self.items() {
            return Ok(None);
        }
        // Titles and tags may have changed since.
        let content = self.content().digest();
        let solved = inner.solved.filter(|s| s.0 == newest.number);
        if solved.is_some_and(|s| s.1 != content) {
            return Ok(None);
        }
        Ok(Some(Audited {
            number: newest.number,
            note: newest.note,
            salt: newest.salt.0,
            method: Method {
                clip: self.options.clip,
                solve: self.options.solve,
                packing: self.options.packing,
                noise: newest.drawn,
            },
            content,
            taken_down: inner.state.cleared().iter().copied().collect(),
            people: versions.len(),
        }))
    }

    /// For people who count in the snapshot of this number, from the `from`th on, at most `most`:
    /// SHA-256 of `salt` and of the SHA-256 of what they contribute, as it is sealed. None: another
    /// snapshot is served, or a version that counts in this one has been replaced since.
    ///
    /// # Errors
    /// [`TallyError`]: something that is there cannot be read.
    pub fn audited_people(
        &self,
        number: u64,
        salt: &[u8; 32],
        from: usize,
        most: usize,
        now: u64,
    ) -> Result<Option<Vec<Digest>>, TallyError> {
        let versions = {
            let inner = &mut *self.lock();
            self.settle(inner, now)?;
            inner.served_versions(number)
        };
        let Some(versions) = versions else {
            return Ok(None);
        };
        let from = from.min(versions.len());
        let to = from.saturating_add(most).min(versions.len());
        // Without the lock: who leaves meanwhile ends it, as their key is gone or the number is.
        let digest = |of: &VersionOf| {
            let sealed = self.vault.sealed(of)?;
            Ok(sealed.map(|s| Digest(salted(salt, &snapshot::digest(&s)))))
        };
        let read: Result<Option<Vec<Digest>>, TallyError> =
            versions[from..to].par_iter().map(digest).collect();
        let still = self.lock().served_versions(number).is_some();
        if !still {
            return Ok(None);
        }
        read
    }
}
