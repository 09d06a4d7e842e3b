//! Versions of the catalogue, as the coordinator sends them. Each is checked as if it came from
//! anybody: places never move, and the digest names the version before.

use std::collections::BTreeMap;
use std::sync::Arc;

use lethe_parts::content::Content;
use lethe_proto::catalogue::{CatalogueChange, MAX_BYTES, TallyCatalogue, Versions};
use lethe_proto::ids::Digest;
use lethe_proto::tally::TallyReply;
use lethe_tally::{Catalogue, TextVectors, content_of_entries};

use super::{Answer, Opening, Service, alone, invalid, locked, shared};
use crate::TallydError;
use crate::office::Office;

/// All versions, and what was sent of the next one.
pub(super) struct Known {
    versions: Arc<Versions>,
    staged: Vec<CatalogueChange>,
    vectors: Option<TextVectors>,
}

impl Known {
    /// What the folder has; where no version was ever sent, the configured items are version 1.
    ///
    /// # Errors
    /// [`TallydError`]: the folder cannot be read, or the items are no catalogue.
    pub(super) fn open(opening: &Opening<'_>, office: &Office) -> Result<Self, TallydError> {
        let kept: BTreeMap<u32, Vec<CatalogueChange>> = office.versions()?;
        let versions = match kept.is_empty() {
            true => Versions::founded(opening.items.iter().cloned())?,
            false => Versions::of(kept.into_values().flatten().collect())?,
        };
        Ok(Self {
            versions: Arc::new(versions),
            staged: vec![],
            vectors: opening.vectors.clone(),
        })
    }

    pub(super) fn catalogue(&self) -> Catalogue {
        Catalogue::of_entries(self.versions.entries())
    }

    /// Whether another version than the configured one is in force.
    pub(super) fn is_taught(&self) -> bool {
        self.versions.newest() > 1
    }

    pub(super) fn content(&self, versions: &Versions) -> Arc<Content> {
        Arc::new(content_of_entries(
            versions.entries(),
            self.vectors.as_ref(),
        ))
    }

    pub(super) fn newest_content(&self) -> Arc<Content> {
        self.content(&self.versions)
    }

    fn state(&self) -> TallyReply {
        TallyReply::Catalogue(TallyCatalogue {
            version: self.versions.newest(),
            digest: self.versions.digest(),
            staged: self.staged.len() as u64,
        })
    }
}

impl Service {
    /// The newest version, as tables know it.
    pub(super) fn catalogue(&self) -> Arc<Catalogue> {
        shared(&self.catalogue).clone()
    }

    /// More of the next version came. With the last of it, it is applied, durable first.
    pub(super) fn learn_version(
        &self,
        at: u64,
        changes: Vec<CatalogueChange>,
        ends: Option<Digest>,
    ) -> Answer {
        let mut known = locked(&self.versions);
        if changes.is_empty() && ends.is_none() {
            return Ok(known.state());
        }
        if at == 0 {
            known.staged.clear();
        }
        let got = known.staged.len() as u64;
        if got != at {
            return Err(invalid(format!(
                "changes from {at} on, expected them from {got} on: begin again from 0"
            )));
        }
        known.staged.extend(changes);
        let bytes: usize = known.staged.iter().map(CatalogueChange::size).sum();
        if bytes > MAX_BYTES {
            known.staged.clear();
            return Err(invalid(format!(
                "{bytes} bytes of changes, at most {MAX_BYTES}"
            )));
        }
        let Some(ends) = ends else {
            return Ok(known.state());
        };
        let staged = std::mem::take(&mut known.staged);
        let mut next = (*known.versions).clone();
        next.apply(staged).map_err(|e| invalid(e.to_string()))?;
        if next.digest() != ends {
            return Err(invalid(format!(
                "the changes give digest {}, expected {ends}",
                next.digest()
            )));
        }
        let content = known.content(&next);
        self.tally.may_follow(&content)?;
        self.office.keep_version(&next)?;
        // Whoever brings contributions has read places of before: they are the same.
        self.tally.follow(content)?;
        *alone(&self.catalogue) = Arc::new(Catalogue::of_entries(next.entries()));
        tracing::info!(
            version = next.newest(),
            "a version of the catalogue is in force"
        );
        known.versions = Arc::new(next);
        // Titles and tags may have changed. Not with noise, where each snapshot costs.
        if self.tally.costly_day().is_none() && self.state().served.is_some() {
            locked(&self.publishing).changed = true;
        }
        Ok(known.state())
    }
}
