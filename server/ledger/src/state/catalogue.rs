//! Versions of the catalogue. Nothing here is about a person.

use lethe_proto::ids::Digest;
use lethe_receipt::manifest::Manifest;
use serde::{Deserialize, Serialize};

use super::State;
use crate::ids::{CatalogueVersion, SliceId, ValueRef};

/// A version of the catalogue. Folders in which none was ever applied have no record: version 1 is
/// then what the configuration names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatalogueRecord {
    /// Names it.
    pub digest: Digest,
    /// Names the one before; zeros: there is none.
    pub before: Digest,
    /// Places of its items, those of removed ones among them.
    pub places: u64,
    /// When it was applied, in seconds since 1970.
    pub at: u64,
    /// What it changed.
    pub changes: ValueRef,
    /// The log's entry of its manifest; none: the log does not hold it yet, and nobody is given the
    /// version.
    pub index: Option<u64>,
}

impl CatalogueRecord {
    /// What the log holds of it.
    pub fn manifest(&self, version: CatalogueVersion) -> Manifest {
        Manifest {
            number: version.0,
            digest: self.digest.0,
            before: self.before.0,
            places: self.places,
            at: self.at,
        }
    }
}

impl State {
    /// All versions of the catalogue that were recorded.
    pub fn catalogues(
        &self,
    ) -> impl DoubleEndedIterator<Item = (CatalogueVersion, &CatalogueRecord)> {
        self.catalogues.iter().map(|(no, record)| (*no, record))
    }

    /// The newest version of the catalogue, if one was recorded.
    pub fn newest_catalogue(&self) -> Option<(CatalogueVersion, &CatalogueRecord)> {
        self.catalogues().next_back()
    }

    pub(crate) fn edit_catalogue(
        &mut self,
        no: CatalogueVersion,
        edit: impl FnOnce(&mut CatalogueRecord),
    ) {
        if let Some(record) = self.catalogues.get_mut(&no) {
            edit(record);
            self.touch(SliceId::Catalogue(no));
        }
    }
}
