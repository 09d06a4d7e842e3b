//! What is looked up often. Rebuilt from the slices at the start, kept by `apply`.

use std::collections::{BTreeMap, BTreeSet};

use lethe_proto::admin::DeletionPhase;
use lethe_proto::ids::{Digest, SubjectId};

use super::person::Person;
use super::records::Deletion;
use crate::ids::{EpochNo, Owner, PersonNo, ShardKey};

/// Whose a certificate is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The person.
    pub subject: SubjectId,
    /// The device, by the fingerprint of its first certificate.
    pub device: Digest,
}

/// A run, by its generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunRef {
    /// The shard.
    pub shard: ShardKey,
    /// What is served, not a replay.
    pub live: bool,
}

/// All indexes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    /// Devices' certificates.
    pub(crate) holders: BTreeMap<Digest, Holder>,
    /// Invitations of people.
    pub(crate) invitations: BTreeMap<Digest, SubjectId>,
    /// Names of numbers.
    pub(crate) names: BTreeMap<PersonNo, SubjectId>,
    /// Who joined an epoch.
    pub(crate) joined: BTreeMap<EpochNo, BTreeSet<SubjectId>>,
    /// Who has a place in a shard.
    pub(crate) placed: BTreeMap<ShardKey, BTreeSet<SubjectId>>,
    /// Who is trained on in a shard and has to erase something first.
    pub(crate) held: BTreeMap<ShardKey, BTreeSet<SubjectId>>,
    /// Who has to erase something, or to join again.
    pub(crate) erasing: BTreeSet<SubjectId>,
    /// Who goes to another shard.
    pub(crate) moving: BTreeSet<SubjectId>,
    /// Runs by generation.
    pub(crate) runs: BTreeMap<u32, RunRef>,
    /// Deletions that are accepted and not executed.
    pub(crate) planned: BTreeSet<u64>,
    /// Deletions that are executed and not done.
    pub(crate) waiting: BTreeSet<u64>,
    /// Actions that the log is not known to hold.
    pub(crate) unlogged: BTreeSet<u64>,
    /// Deletions that wait for a snapshot of the lists.
    pub(crate) unlisted: BTreeSet<u64>,
    /// Keys that are being destroyed.
    pub(crate) destroying: BTreeSet<Owner>,
    /// The newest release that is recalled; so are all before it.
    pub(crate) recalled: u64,
}

fn put<K: Ord, V: Ord>(map: &mut BTreeMap<K, BTreeSet<V>>, key: K, value: V) {
    map.entry(key).or_default().insert(value);
}

fn take<K: Ord, V: Ord>(map: &mut BTreeMap<K, BTreeSet<V>>, key: &K, value: &V) {
    if let Some(set) = map.get_mut(key) {
        set.remove(value);
        if set.is_empty() {
            map.remove(key);
        }
    }
}

impl Index {
    pub(crate) fn add_person(&mut self, subject: &SubjectId, person: &Person) {
        self.names.insert(person.number, subject.clone());
        for (device, d) in &person.devices {
            for certificate in d.certificates.keys() {
                let holder = Holder {
                    subject: subject.clone(),
                    device: *device,
                };
                self.holders.insert(*certificate, holder);
            }
        }
        for secret in &person.invitations {
            self.invitations.insert(*secret, subject.clone());
        }
        if person.moving.is_some() {
            self.moving.insert(subject.clone());
        }
        let Some(profile) = &person.profile else {
            return;
        };
        if profile.erase.is_some() {
            self.erasing.insert(subject.clone());
        }
        for (epoch, place) in &profile.places {
            put(&mut self.joined, *epoch, subject.clone());
            let Some(shard) = place.shard else {
                continue;
            };
            let key = ShardKey {
                epoch: *epoch,
                shard,
            };
            put(&mut self.placed, key, subject.clone());
            if profile.erase.is_some() && profile.trained(*epoch).is_some() {
                put(&mut self.held, key, subject.clone());
            }
        }
    }

    pub(crate) fn remove_person(&mut self, subject: &SubjectId, person: &Person) {
        self.names.remove(&person.number);
        for certificate in person.certificates() {
            self.holders.remove(certificate);
        }
        for secret in &person.invitations {
            self.invitations.remove(secret);
        }
        self.moving.remove(subject);
        self.erasing.remove(subject);
        let Some(profile) = &person.profile else {
            return;
        };
        for (epoch, place) in &profile.places {
            take(&mut self.joined, epoch, subject);
            if let Some(shard) = place.shard {
                let key = ShardKey {
                    epoch: *epoch,
                    shard,
                };
                take(&mut self.placed, &key, subject);
                take(&mut self.held, &key, subject);
            }
        }
    }

    pub(crate) fn put_deletion(&mut self, id: u64, deletion: Option<&Deletion>) {
        self.planned.remove(&id);
        self.waiting.remove(&id);
        match deletion.map(|d| d.phase) {
            Some(DeletionPhase::Planned) => self.planned.extend([id]),
            Some(DeletionPhase::WaitingForDevice | DeletionPhase::Retraining) => {
                self.waiting.insert(id);
            }
            Some(DeletionPhase::Done) | None => {}
        }
    }
}
