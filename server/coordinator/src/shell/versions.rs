//! Versions of the catalogue, while everything runs.

use std::sync::Arc;

use lethe_ledger::{
    CatalogueRecord, CatalogueVersion, Command, Effects, NewCatalogue, Owner, Wake,
};
use lethe_proto::admin::{CataloguePage, CatalogueStatus, CatalogueVersionState};
use lethe_proto::catalogue::{
    CatalogueChange, CatalogueError, CatalogueReply, Difference, Versions, page,
};
use lethe_proto::ids::Digest;
use lethe_proto::message::Refusal;
use lethe_receipt::manifest::Manifest;

use super::{Shell, fresh};
use crate::CoordinatorError;
use crate::catalogue::{refused, to_value};
use crate::durable::{NewValue, catalogue_ref};
use crate::fatal;

/// Epochs that a device is told of.
const EPOCHS: usize = 8;
/// Versions that an operator is shown.
const SHOWN: usize = 1_000;

/// What an operator asks to be applied.
pub(crate) struct NewVersion {
    /// Digest of the version that is changed.
    pub(crate) before: Digest,
    /// What is changed.
    pub(crate) changes: Vec<CatalogueChange>,
    /// The digest that it has to give.
    pub(crate) ends: Digest,
}

impl Shell {
    /// Takes versions over that the log holds: lists, rules and devices follow from then on. Kits
    /// of epochs stay as they are: an epoch goes on with the version that it was founded with.
    /// True: there was one.
    pub(crate) fn follow_catalogue(&self) -> Result<bool, CoordinatorError> {
        let _one = fatal::lock(&self.catalogue.following);
        let newest = self.catalogue.newest();
        let records: Vec<(CatalogueVersion, CatalogueRecord)> = {
            let state = self.state();
            let all = state.catalogues().filter(|(no, _)| *no > newest);
            all.map(|(no, record)| (no, record.clone())).collect()
        };
        let Some(next) = self.catalogue.behind(&self.values, &records)? else {
            return Ok(false);
        };
        let next = Arc::new(next);
        if let Some(lists) = &self.lists {
            lists.follow(next.clone(), self.catalogue.content(&next))?;
        }
        tracing::info!(
            version = next.newest(),
            "a version of the catalogue is in force"
        );
        self.catalogue.set(next);
        let rules = {
            let mut rules = fatal::lock(&self.rules);
            rules.items = self.catalogue.names();
            rules.clone()
        };
        self.state_alone().set_rules(rules);
        // Whoever waits for work looks again, and asks.
        self.carry_out(Effects {
            wake: Wake {
                everybody: true,
                ..Wake::default()
            },
            ..Effects::default()
        });
        Ok(true)
    }

    /// Applies the next version. When this returns, it is in force, and the log holds it.
    pub(crate) fn apply_catalogue(
        &self,
        by: Digest,
        asked: NewVersion,
    ) -> Result<u32, CoordinatorError> {
        let now = self.catalogue.versions();
        if now.digest() != asked.before {
            return Err(CoordinatorError::refuse(
                Refusal::Busy,
                "another version of the catalogue was applied meanwhile: compare the folder with \
                 it again",
            ));
        }
        let mut next = (*now).clone();
        next.apply(asked.changes).map_err(refused)?;
        if next.digest() != asked.ends {
            return Err(refused(CatalogueError::Digest {
                got: next.digest(),
                expected: asked.ends,
            }));
        }
        if let Some(lists) = &self.lists {
            lists.may_follow(&self.catalogue.content(&next))?;
        }
        let version = next.newest();
        let changes = next.changes_of(version);
        let what = Difference::of(now.entries(), changes).summary();
        let line = format!("catalogue version {version}: {what}");
        let (founded, first) = new(&next, 1)?;
        let (new, value) = new(&next, version)?;
        let mut values = vec![value];
        if self.state().newest_catalogue().is_none() {
            values.push(first);
        }
        let command = Command::ApplyCatalogue {
            founded,
            next: new,
            by,
            line,
            fresh: fresh()?,
        };
        self.execute(command, values)?;
        let failed = self.do_duties();
        if self.catalogue.newest().0 < version {
            let why = failed.first().map_or("the log fails", String::as_str);
            let message = format!(
                "accepted as version {version}, and not in force yet: {why}; it is tried again by \
                 itself"
            );
            return Err(CoordinatorError::refuse(Refusal::Internal, message));
        }
        Ok(version)
    }

    /// A page of what a device lacks that has the version of this digest.
    pub(crate) fn catalogue_for(
        &self,
        have: &Digest,
        at: u64,
    ) -> Result<CatalogueReply, CoordinatorError> {
        let versions = self.catalogue.versions();
        let record = {
            let state = self.state();
            let newest = CatalogueVersion(versions.newest());
            let mut records = state.catalogues().rev();
            records
                .find(|(no, _)| *no == newest)
                .map(|(no, r)| r.manifest(no))
        };
        let mut reply = CatalogueReply {
            version: versions.newest(),
            note: String::new(),
            whole: false,
            at,
            changes: vec![],
            more: false,
            epochs: self.epochs_of_devices(),
        };
        // What no operator has applied, devices have from their app.
        let Some(manifest) = record else {
            return Ok(reply);
        };
        let known = versions.version_of(have);
        reply.note = self.signed(&manifest)?;
        reply.whole = known.is_none();
        let all = versions.since(known.unwrap_or(0));
        reply.changes = page(all, at, CatalogueChange::size).to_vec();
        let sent = at.saturating_add(reply.changes.len() as u64);
        reply.more = sent < all.len() as u64;
        Ok(reply)
    }

    fn signed(&self, manifest: &Manifest) -> Result<String, CoordinatorError> {
        self.evidence().sign_manifest(manifest)
    }

    fn epochs_of_devices(&self) -> Vec<(lethe_proto::ids::EpochNo, u32)> {
        let state = self.state();
        let newest = state.epochs().iter().rev().take(EPOCHS);
        newest.map(|(no, epoch)| (*no, epoch.catalogue.0)).collect()
    }

    /// A page of the newest version, for an operator's tool.
    pub(crate) fn catalogue_page(&self, from: u64) -> CataloguePage {
        let versions = self.catalogue.versions();
        let all = versions.entries();
        let entries = page(all, from, |e| e.size()).to_vec();
        let sent = from.saturating_add(entries.len() as u64);
        CataloguePage {
            version: versions.newest(),
            digest: versions.digest(),
            more: sent < all.len() as u64,
            entries,
        }
    }

    /// Versions, and which of them epochs have.
    pub(crate) fn catalogue_status(&self) -> CatalogueStatus {
        let versions = self.catalogue.versions();
        let removed = versions
            .entries()
            .iter()
            .filter(|e| e.title.is_none())
            .count() as u64;
        let state = self.state();
        let shown = |no: CatalogueVersion, r: &CatalogueRecord| CatalogueVersionState {
            number: no.0,
            digest: r.digest,
            before: r.before,
            places: r.places,
            at: if no.0 == 1 { 0 } else { r.at },
            index: r.index,
        };
        let mut all: Vec<CatalogueVersionState> = state
            .catalogues()
            .rev()
            .take(SHOWN)
            .map(|(no, record)| shown(no, record))
            .collect();
        all.reverse();
        if all.is_empty() {
            all.push(CatalogueVersionState {
                number: 1,
                digest: versions.digest(),
                before: Digest::default(),
                places: versions.entries().len() as u64,
                at: 0,
                index: None,
            });
        }
        let epochs = state.epochs().iter();
        CatalogueStatus {
            versions: all,
            items: versions.entries().len() as u64 - removed,
            removed,
            epochs: epochs.map(|(no, epoch)| (*no, epoch.catalogue.0)).collect(),
        }
    }
}

/// A version for the ledger, and the value that it names.
fn new(versions: &Versions, version: u32) -> Result<(NewCatalogue, NewValue), CoordinatorError> {
    let content = to_value(versions.changes_of(version))?;
    let version = CatalogueVersion(version);
    let changes = catalogue_ref(version, &content);
    let value = NewValue::new(changes.clone(), Owner::Public, content);
    let of = |no: u32| versions.digest_of(no).unwrap_or_default();
    let new = NewCatalogue {
        version,
        digest: of(version.0),
        before: of(version.0 - 1),
        places: versions.at(version.0).len() as u64,
        changes,
    };
    Ok((new, value))
}
