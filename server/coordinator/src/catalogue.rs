//! The catalogue, in versions. The ledger says which there are, and values what they change; here
//! is what they give together. All of it can be read again from the folder.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, RwLock};

use lethe_ledger::{CatalogueRecord, CatalogueVersion, State};
use lethe_parts::content::Content;
use lethe_proto::catalogue::{CatalogueChange, CatalogueError, MAX_BYTES, Versions, difference};
use lethe_proto::codec;
use lethe_proto::deletion::DeletionRequest;
use lethe_proto::ids::{Digest, hidden_character};
use lethe_recsys::data::{Item, text_vectors};
use lethe_recsys::versions::{entries, items_of, load_renamed};
use lethe_tally::{TextVectors, content_of_entries};

use crate::CoordinatorError;
use crate::durable::Values;
use crate::fatal;

/// Longest value with changes: bounds what is read.
const MAX_VALUE: usize = MAX_BYTES + (64 << 20);

/// All versions that may be given out, and changes of the next one that were sent.
pub(crate) struct Catalogues {
    now: RwLock<Arc<Versions>>,
    vectors: Option<TextVectors>,
    staged: Mutex<Option<Staged>>,
    /// One at a time takes versions over.
    pub(crate) following: Mutex<()>,
}

/// What an operator's tool has sent of the next version.
pub(crate) struct Staged {
    by: Digest,
    before: Digest,
    changes: Vec<CatalogueChange>,
}

/// Changes as a value of the folder.
pub(crate) fn to_value(changes: &[CatalogueChange]) -> Result<Vec<u8>, CoordinatorError> {
    codec::to_bytes(&changes).map_err(|e| CoordinatorError::invalid(e.to_string()))
}

/// What is wrong with a version that comes from a peer.
pub(crate) fn refused(why: CatalogueError) -> CoordinatorError {
    CoordinatorError::invalid(why.to_string())
}

impl Catalogues {
    /// What a folder has. Where no version was applied yet, `items` of the configured folder are
    /// version 1.
    pub(crate) fn open(
        values: &Values,
        state: &State,
        folder: &Path,
        items: &[Item],
    ) -> Result<Self, CoordinatorError> {
        let own = entries(items);
        let vectors = text_vectors(folder, items.len())?;
        let ids = items.iter().map(|i| i.id.as_str());
        let vectors = vectors.map(|v| TextVectors::new(ids, &v));
        let mut versions = Versions::default();
        take_over(&mut versions, values, state.catalogues())?;
        if versions.newest() == 0 {
            versions = Versions::founded(own).map_err(refused)?;
        } else {
            say_if_other(folder, &versions, &own);
        }
        Ok(Self {
            now: RwLock::new(Arc::new(versions)),
            vectors,
            staged: Mutex::default(),
            following: Mutex::new(()),
        })
    }

    /// All versions that may be given out.
    pub(crate) fn versions(&self) -> Arc<Versions> {
        fatal::read(&self.now).clone()
    }

    /// The number of the newest.
    pub(crate) fn newest(&self) -> CatalogueVersion {
        CatalogueVersion(self.versions().newest())
    }

    /// All names that items have or had: requests may name these.
    pub(crate) fn names(&self) -> Arc<BTreeSet<String>> {
        let versions = self.versions();
        Arc::new(versions.names().map(str::to_owned).collect())
    }

    /// The items of a version that were not removed: what an epoch's anchors are made from.
    pub(crate) fn items_at(&self, version: CatalogueVersion) -> Vec<Item> {
        items_of(&self.versions().at(version.0))
    }

    /// What is public about the items of a version, as tables are solved with it.
    pub(crate) fn content(&self, versions: &Versions) -> Arc<Content> {
        let entries = versions.entries();
        Arc::new(content_of_entries(entries, self.vectors.as_ref()))
    }

    /// With these records, those of them that the log holds: what was not taken over yet. None: the
    /// log holds none of them.
    pub(crate) fn behind(
        &self,
        values: &Values,
        records: &[(CatalogueVersion, CatalogueRecord)],
    ) -> Result<Option<Versions>, CoordinatorError> {
        if records.first().is_none_or(|(_, r)| r.index.is_none()) {
            return Ok(None);
        }
        let mut next = (*self.versions()).clone();
        take_over(&mut next, values, records.iter().map(|(no, r)| (*no, r)))?;
        Ok(Some(next))
    }

    /// These may be given out from now on.
    pub(crate) fn set(&self, versions: Arc<Versions>) {
        *fatal::write(&self.now) = versions;
    }

    /// A page of the next version's changes came. Returns all of them when they are complete.
    pub(crate) fn stage(
        &self,
        by: Digest,
        before: Digest,
        at: u64,
        changes: Vec<CatalogueChange>,
        ends: bool,
    ) -> Result<Option<Vec<CatalogueChange>>, CoordinatorError> {
        let versions = self.versions();
        let new = |id: &&str| versions.place(id).is_none();
        let mut ids = changes.iter().map(|c| c.entry.id.as_str()).filter(new);
        if let Some(why) = ids.find_map(hidden_character) {
            return Err(CoordinatorError::invalid(why.to_string()));
        }
        let mut staged = fatal::lock(&self.staged);
        if at == 0 {
            // Who begins anew takes the place of whoever has not ended.
            *staged = Some(Staged {
                by,
                before,
                changes: vec![],
            });
        }
        let known = staged.as_mut();
        let known = known.filter(|s| (s.by, s.before) == (by, before));
        let Some(known) = known.filter(|s| s.changes.len() as u64 == at) else {
            return Err(CoordinatorError::invalid(format!(
                "changes from {at} on are not the next ones: begin again from 0 (another operator \
                 may apply a version, too)"
            )));
        };
        known.changes.extend(changes);
        let bytes: usize = known.changes.iter().map(CatalogueChange::size).sum();
        if bytes > MAX_BYTES {
            *staged = None;
            return Err(CoordinatorError::invalid(format!(
                "{bytes} bytes of changes, at most {MAX_BYTES}: apply less at once"
            )));
        }
        Ok(match ends {
            true => staged.take().map(|s| s.changes),
            false => None,
        })
    }

    /// A request about an item is about all names that it has or had: histories name items as they
    /// were named when something was recorded.
    pub(crate) fn with_all_names(&self, requests: &mut [DeletionRequest]) {
        let versions = self.versions();
        for request in requests {
            let items = match request {
                DeletionRequest::EraseItems { items, .. } | DeletionRequest::Takedown { items } => {
                    items
                }
                _ => continue,
            };
            let mut more: Vec<String> = vec![];
            for item in items.iter() {
                let place = versions.place(item);
                let entry = place.and_then(|p| versions.entries().get(p as usize));
                more.extend(entry.into_iter().flat_map(|e| e.names()).map(str::to_owned));
            }
            let known: BTreeSet<String> = items.iter().cloned().collect();
            more.retain(|name| !known.contains(name));
            more.sort_unstable();
            more.dedup();
            items.extend(more);
        }
    }
}

/// Adds the versions that the log holds, in their order.
fn take_over<'a>(
    versions: &mut Versions,
    values: &Values,
    records: impl Iterator<Item = (CatalogueVersion, &'a CatalogueRecord)>,
) -> Result<(), CoordinatorError> {
    for (no, record) in records {
        if no.0 <= versions.newest() {
            continue;
        }
        if record.index.is_none() {
            return Ok(());
        }
        let lost = |why: String| lethe_store::StoreError::Corrupt {
            name: format!("version {} of the catalogue", no.0),
            why,
        };
        let value = values.get(&record.changes)?;
        let value = value.ok_or_else(|| lost("its changes are not there".into()))?;
        let changes: Vec<CatalogueChange> =
            codec::from_bytes(&value, MAX_VALUE).map_err(|e| lost(e.to_string()))?;
        versions.apply(changes).map_err(|e| lost(e.to_string()))?;
        if versions.digest() != record.digest {
            return Err(lost("its changes give another digest than the ledger has".into()).into());
        }
    }
    Ok(())
}

/// Says once, at a start, that the configured folder is not what is in force.
fn say_if_other(
    folder: &Path,
    versions: &Versions,
    own: &[lethe_proto::catalogue::CatalogueEntry],
) {
    let renamed = load_renamed(folder).unwrap_or_default();
    let next = versions.newest() + 1;
    let same = difference(versions.entries(), next, own, &renamed).is_ok_and(|d| d.is_empty());
    if !same {
        tracing::warn!(
            folder = %folder.display(),
            version = versions.newest(),
            "the folder of the catalogue is not the version that is in force: `lethe-admin \
             catalogue apply FOLDER` applies it"
        );
    }
}
