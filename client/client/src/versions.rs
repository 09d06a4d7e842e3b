//! Versions of the catalogue. An app ships one; newer ones come from the coordinator, as
//! differences. The device checks them with the log's key, keeps them, and goes on offline with
//! what it has.

use std::collections::BTreeMap;
use std::sync::Arc;

use lethe_proto::catalogue::{CatalogueChange, CatalogueReply, Versions};
use lethe_proto::ids::{Digest, EpochNo};
use lethe_proto::message::{Reply, Request};
use lethe_receipt::manifest::Manifest;
use lethe_receipt::note::VerifierKey;
use lethe_transport::TransportError;
use serde::{Deserialize, Serialize};

use crate::lists::Lazy;
use crate::local::{Local, now_unix_s};
use crate::vault::{CATALOGUE, Vault};
use crate::worker::{VERSIONS, Worker};
use crate::{Catalogue, ClientError};

/// Seconds between two questions for newer versions.
const ASK_S: i64 = 60;
/// How often an answer is begun again that another version has cut short.
const ATTEMPTS: usize = 3;
/// Most bytes of all versions that a device keeps, as their changes count them.
const MAX_KEPT: usize = 64 << 20;

/// The sealed file `catalogue`.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Kept {
    /// Key of the log that has signed it (verifier key text).
    key: String,
    /// The manifest of the newest version.
    note: String,
    /// Of all versions, from the first on: what an app ships may change meanwhile.
    changes: Vec<CatalogueChange>,
    /// The version that each living epoch has.
    epochs: Vec<(EpochNo, u32)>,
}

/// What is known of versions beyond that of the app.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    key: String,
    note: String,
    pub(crate) versions: Arc<Versions>,
    epochs: BTreeMap<EpochNo, u32>,
    /// The newest.
    pub(crate) catalogue: Arc<Catalogue>,
}

impl Known {
    /// What the folder has; a file that is damaged costs a fetch and nothing else.
    pub(crate) fn open(
        vault: &Vault,
        shipped: &Arc<Catalogue>,
    ) -> Result<Option<Self>, ClientError> {
        let kept = match vault.read::<Kept>(CATALOGUE) {
            Err(ClientError::Sealed { path }) => {
                tracing::warn!("{} is damaged: it is fetched again", path.display());
                None
            }
            other => other?,
        };
        let Some(kept) = kept else {
            return Ok(None);
        };
        // It was checked when it came, and nobody else can seal it.
        let Ok(versions) = Versions::of(kept.changes) else {
            tracing::warn!("the catalogue that is kept does not read: it is fetched again");
            return Ok(None);
        };
        let catalogue = shipped.of_version(&versions, versions.newest())?;
        Ok(Some(Self {
            key: kept.key,
            note: kept.note,
            versions: Arc::new(versions),
            epochs: kept.epochs.into_iter().collect(),
            catalogue,
        }))
    }

    fn keep(&self, vault: &Vault) -> Result<(), ClientError> {
        let kept = Kept {
            key: self.key.clone(),
            note: self.note.clone(),
            changes: self.versions.since(0).to_vec(),
            epochs: self.epochs.iter().map(|(no, v)| (*no, *v)).collect(),
        };
        vault.write(CATALOGUE, &kept)
    }

    /// The version of an epoch, or of the newest that is known; none: nothing is known of it.
    fn of_epoch(&self, epoch: Option<EpochNo>) -> Option<u32> {
        match epoch {
            Some(epoch) => self.epochs.get(&epoch).copied(),
            None => self.epochs.values().next_back().copied(),
        }
    }
}

/// A whole answer: all its pages.
struct Answer {
    version: u32,
    note: String,
    whole: bool,
    changes: Vec<CatalogueChange>,
    epochs: Vec<(EpochNo, u32)>,
}

/// Checks an answer against what is here. Returns all versions; none: there is no newer one.
///
/// # Errors
/// [`ClientError::BadCatalogue`], [`ClientError::OldCatalogue`].
fn checked(
    here: &Versions,
    known: u32,
    answer: &Answer,
    key: &VerifierKey,
) -> Result<Option<Versions>, ClientError> {
    let bad = |why: String| ClientError::BadCatalogue(why);
    let manifest = Manifest::open(&answer.note, key).map_err(|e| bad(e.to_string()))?;
    if manifest.number != answer.version {
        let Answer { version, .. } = answer;
        let number = manifest.number;
        return Err(bad(format!(
            "the manifest is of version {number}, the answer of {version}"
        )));
    }
    if manifest.number < known {
        let got = manifest.number;
        return Err(ClientError::OldCatalogue { got, known });
    }
    let named = Digest(manifest.digest);
    if here.digest_of(manifest.number) == Some(named) {
        return Ok(None);
    }
    if manifest.number == known {
        return Err(bad(format!(
            "another version {known} than the one that is here: the log's operator has signed both"
        )));
    }
    let mut next = match answer.whole {
        true => Versions::default(),
        false => here.clone(),
    };
    next.apply_all(answer.changes.clone())
        .map_err(|e| bad(e.to_string()))?;
    if next.newest() != manifest.number || next.digest() != named {
        return Err(bad(format!(
            "the changes give version {} with digest {}, the manifest names {} with {named}",
            next.newest(),
            next.digest(),
            manifest.number
        )));
    }
    if next.digest_of(manifest.number - 1).unwrap_or_default() != Digest(manifest.before) {
        return Err(bad(
            "the version before is not the one of the manifest".into()
        ));
    }
    Ok(Some(next))
}

impl Local {
    /// Goes on with these versions.
    fn take_versions(&mut self, known: Known) -> Result<(), ClientError> {
        known.keep(&self.vault)?;
        let catalogue = known.catalogue.clone();
        self.read_by(&catalogue);
        self.known = Some(known);
        Ok(())
    }

    /// The tables have the same places, and other names.
    fn read_by(&mut self, catalogue: &Arc<Catalogue>) {
        if let Some(held) = &self.snapshot {
            let held = held.held.clone();
            self.snapshot = Some(Arc::new(Lazy::new(held, catalogue.clone())));
        }
        // Items that were refused may be known now.
        self.refused.clear();
    }
}

impl Worker {
    /// Asks for newer versions, if it was not asked a moment ago. Nothing of it keeps a device from
    /// other work.
    pub(crate) async fn tend_catalogue(&mut self) {
        let now = now_unix_s();
        if self.minor() < VERSIONS || now < self.catalogue_at {
            return;
        }
        self.catalogue_at = now.saturating_add(ASK_S);
        if let Err(e) = self.fetch_versions().await {
            tracing::warn!("the catalogue stays as it is: {e}");
        }
    }

    /// Asks for newer versions. Returns whether there are some.
    async fn fetch_versions(&mut self) -> Result<bool, ClientError> {
        let shipped = self.shared.options.catalogue.clone();
        self.leave_other_catalogue()?;
        let (known, key) = {
            let local = self.local()?;
            let key = local.person.log_key.clone();
            (local.known.clone(), key.unwrap_or_default())
        };
        let (here, newest) = match &known {
            Some(known) => (known.versions.clone(), known.versions.newest()),
            None => (shipped.as_version_one(), 0),
        };
        let Some(answer) = self.ask_for_versions(&here).await? else {
            return Ok(false);
        };
        let log = match answer.note.is_empty() {
            true => VerifierKey::parse(&key)?,
            false => self.log_key_of(&answer.note).await?,
        };
        let key = log.text();
        let epochs: BTreeMap<EpochNo, u32> = answer.epochs.iter().copied().collect();
        let own = here.clone();
        let check = move || {
            let Some(versions) = checked(&own, newest, &answer, &log)? else {
                return Ok(None);
            };
            let catalogue = shipped.of_version(&versions, versions.newest())?;
            Ok(Some(Known {
                key,
                note: answer.note,
                versions: Arc::new(versions),
                epochs: answer.epochs.into_iter().collect(),
                catalogue,
            }))
        };
        let Some(next) = self.blocking(check).await? else {
            return self.learn_versions_of(epochs);
        };
        let manifest = Manifest::open(&next.note, &VerifierKey::parse(&next.key)?);
        let manifest = manifest.map_err(|e| ClientError::BadCatalogue(e.to_string()))?;
        self.catalogue_is_logged(&manifest).await?;
        let catalogue = next.catalogue.clone();
        tracing::info!(version = next.versions.newest(), "a newer catalogue");
        let mut local = self.local()?;
        local.take_versions(next)?;
        self.shared.set_catalogue(catalogue);
        drop(local);
        self.named = None;
        Ok(true)
    }

    /// What another coordinator has said of its catalogue says nothing about this one's.
    fn leave_other_catalogue(&mut self) -> Result<(), ClientError> {
        let mut local = self.local()?;
        let own = local.person.log_key.clone().unwrap_or_default();
        let former = local.former_log_keys()?;
        let ours = |key: &String| *key == own || former.contains(key);
        if local.known.as_ref().is_none_or(|k| ours(&k.key)) {
            return Ok(());
        }
        let shipped = self.shared.options.catalogue.clone();
        local.vault.remove(CATALOGUE)?;
        local.known = None;
        local.read_by(&shipped);
        self.shared.set_catalogue(shipped);
        drop(local);
        self.named = None;
        Ok(())
    }

    /// No newer version is there; there may be another epoch.
    fn learn_versions_of(&self, epochs: BTreeMap<EpochNo, u32>) -> Result<bool, ClientError> {
        let mut local = self.local()?;
        let Some(known) = local.known.clone().filter(|k| k.epochs != epochs) else {
            return Ok(false);
        };
        let known = Known { epochs, ..known };
        known.keep(&local.vault)?;
        local.known = Some(known);
        Ok(false)
    }

    /// All pages of what is lacking; none: the coordinator has applied no version, or has the one
    /// that the app ships.
    async fn ask_for_versions(&self, here: &Versions) -> Result<Option<Answer>, ClientError> {
        let have = here.digest();
        for _ in 0..ATTEMPTS {
            let first = self.ask_for_page(have, 0).await?;
            if first.version <= 1 {
                return Ok(None);
            }
            let mut more = first.more;
            let mut answer = Answer {
                version: first.version,
                note: first.note,
                whole: first.whole,
                changes: first.changes,
                epochs: first.epochs,
            };
            let mut goes_on = true;
            while more && goes_on {
                let bytes: usize = answer.changes.iter().map(CatalogueChange::size).sum();
                if bytes > MAX_KEPT {
                    return Err(ClientError::BadCatalogue(format!(
                        "more than {MAX_KEPT} bytes of changes"
                    )));
                }
                let at = answer.changes.len() as u64;
                let page = self.ask_for_page(have, at).await?;
                // Another version was applied between two pages.
                goes_on = page.note == answer.note && page.at == at && !page.changes.is_empty();
                more = page.more;
                answer.changes.extend(page.changes);
            }
            if goes_on {
                return Ok(Some(answer));
            }
        }
        Err(ClientError::BadCatalogue(
            "its pages do not fit each other".into(),
        ))
    }

    async fn ask_for_page(&self, have: Digest, at: u64) -> Result<CatalogueReply, ClientError> {
        match self.call(&Request::Catalogue { have, at }).await? {
            Reply::Catalogue(page) => Ok(page),
            _ => Err(TransportError::UnexpectedReply { asked: "catalogue" }.into()),
        }
    }

    /// The catalogue as it was when an epoch was founded, or the newest that is known of: whoever
    /// trains again has to render the same prompts.
    ///
    /// # Errors
    /// [`ClientError::UnknownEpoch`]: nobody says which version it has. It is asked for again.
    pub(crate) async fn catalogue_of(
        &mut self,
        epoch: Option<EpochNo>,
    ) -> Result<Arc<Catalogue>, ClientError> {
        for asks in [true, false] {
            let Some(known) = self.local()?.known.clone() else {
                return Ok(self.catalogue());
            };
            let Some(version) = known.of_epoch(epoch) else {
                if epoch.is_none() {
                    return Ok(self.catalogue());
                }
                if asks {
                    self.fetch_versions().await?;
                }
                continue;
            };
            let digest = known.versions.digest_of(version).unwrap_or_default();
            if let Some((_, catalogue)) = self.of_epoch.as_ref().filter(|o| o.0 == digest) {
                return Ok(catalogue.clone());
            }
            let shipped = &self.shared.options.catalogue;
            let catalogue = shipped.of_version(&known.versions, version)?;
            self.of_epoch = Some((digest, catalogue.clone()));
            return Ok(catalogue);
        }
        Err(ClientError::UnknownEpoch(epoch.map_or(0, |e| e.0)))
    }
}

#[cfg(test)]
mod tests;
