//! Versions of the catalogue on their way to a tally of its own.

use std::sync::Arc;

use lethe_proto::catalogue::{CatalogueChange, TallyCatalogue, Versions, page};
use lethe_proto::tally::{TallyReply, TallyRequest};

use super::Lists;
use super::party::{Party, QUICK, SLOW};
use crate::CoordinatorError;
use crate::fatal;

impl Party {
    /// The coordinator's catalogue.
    pub(super) fn versions(&self) -> Arc<Versions> {
        fatal::read(&self.versions).clone()
    }

    /// Sends the tally what it lacks of a later version, which is the coordinator's from then on.
    fn follow(&self, versions: Arc<Versions>) -> Result<(), CoordinatorError> {
        self.send_versions(&versions)?;
        *fatal::write(&self.versions) = versions;
        Ok(())
    }

    /// Sends the tally the versions that it lacks.
    pub(super) fn teach(&self) -> Result<(), CoordinatorError> {
        self.send_versions(&self.versions())
    }

    /// Where no version was ever applied, both have what they are configured with, and the tally's
    /// first answer says whether that is the same.
    fn send_versions(&self, versions: &Versions) -> Result<(), CoordinatorError> {
        if versions.newest() <= 1 {
            return Ok(());
        }
        let mut has = self.teach_page(0, &[], None)?;
        loop {
            if versions.digest_of(has.version) != Some(has.digest) {
                return Err(self.away_error(format!(
                    "its catalogue (version {}, {}) is none of the coordinator's: give both the \
                     folder that the coordinator was founded with",
                    has.version,
                    has.digest.short()
                )));
            }
            if has.version == versions.newest() {
                return Ok(());
            }
            has = self.teach_one(versions, has.version + 1)?;
        }
    }

    /// Sends the changes of one version.
    fn teach_one(
        &self,
        versions: &Versions,
        version: u32,
    ) -> Result<TallyCatalogue, CoordinatorError> {
        let all = versions.changes_of(version);
        let mut at = 0;
        loop {
            let changes = page(all, at, CatalogueChange::size);
            let next = at + changes.len() as u64;
            let ends = versions.digest_of(version);
            let ends = ends.filter(|_| next == all.len() as u64);
            let has = self.teach_page(at, changes, ends)?;
            if ends.is_none() && has.staged == next {
                at = next;
                continue;
            }
            return match has.version == version && ends.is_some() {
                true => Ok(has),
                false => Err(self.away_error("it has not taken a version of the catalogue")),
            };
        }
    }

    fn teach_page(
        &self,
        at: u64,
        changes: &[CatalogueChange],
        ends: Option<lethe_proto::ids::Digest>,
    ) -> Result<TallyCatalogue, CoordinatorError> {
        let within = if ends.is_some() { SLOW } else { QUICK };
        let request = TallyRequest::Catalogue {
            at,
            changes: changes.to_vec(),
            ends,
        };
        match self.raw(request, within)? {
            TallyReply::Catalogue(has) => Ok(has),
            _ => self.unexpected(),
        }
    }
}

impl Lists {
    /// Sends a tally of its own the version that it lacks. Only then places are named by it: nobody
    /// contributes what the tally could not place.
    pub(super) fn teach(&self, party: &Party) -> Result<(), CoordinatorError> {
        let untaught = fatal::lock(&self.untaught).clone();
        let Some(versions) = untaught else {
            return Ok(());
        };
        party.follow(versions.clone())?;
        self.name_items_by(&versions);
        let mut untaught = fatal::lock(&self.untaught);
        // A later one may have come meanwhile.
        untaught.take_if(|v| v.newest() <= versions.newest());
        Ok(())
    }
}
