//! A person: profile, devices, what they measured.

use std::collections::{BTreeMap, BTreeSet};

use lethe_proto::deletion::DeletionRequest;
use lethe_proto::ids::{Digest, ShardId, SubjectId};
use serde::{Deserialize, Serialize};

use crate::ids::{EpochNo, PersonNo, ShardKey, ValueRef};

/// Everything about a person. It is sealed under the person's key.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Person {
    /// Number in lineages.
    pub number: PersonNo,
    /// Since the person has joined.
    pub profile: Option<Profile>,
    /// By the fingerprint of each device's first certificate.
    pub devices: BTreeMap<Digest, Device>,
    /// Digests of the secrets of invitations that wait.
    pub invitations: BTreeSet<Digest>,
    /// What was measured.
    pub errors: Option<Errors>,
    /// What remains of the person goes to another shard, which has to be rolled back first.
    pub moving: Option<Moving>,
}

/// Who somebody is: what is known outside the data folder of people whose key was destroyed and who
/// stay. A data folder that comes back from a backup knows them under that key only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The person.
    pub subject: SubjectId,
    /// Number in lineages.
    pub number: PersonNo,
    /// As [`Person::devices`]: each device's certificates.
    pub devices: BTreeMap<Digest, BTreeMap<Digest, Option<Digest>>>,
}

impl Identity {
    /// Somebody who enrolled, and is to join again.
    pub(crate) fn person(&self) -> Person {
        let device = |certificates: &BTreeMap<Digest, Option<Digest>>| Device {
            certificates: certificates.clone(),
            ..Device::default()
        };
        let devices = self.devices.iter();
        Person {
            number: self.number,
            devices: devices.map(|(first, all)| (*first, device(all))).collect(),
            ..Person::default()
        }
    }
}

/// Where a person who joined stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    /// Place in each epoch that the person joined.
    pub places: BTreeMap<EpochNo, Place>,
    /// The data is kept, but used for nothing.
    pub restricted: bool,
    /// What the devices have to erase.
    pub erase: Option<PendingErase>,
    /// Salt of the person's record in a shard's tree of records.
    pub salt: [u8; 32],
    /// When the person first joined, in milliseconds since 1970.
    pub since: u64,
}

/// A place in an epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Place {
    /// Anchor.
    pub anchor: u16,
    /// Training samples.
    pub samples: u32,
    /// Commitment to the data.
    pub commitment: Digest,
    /// The shard, once the epoch has started.
    pub shard: Option<ShardId>,
    /// 0-based: the data enters at stage `slice + 1`.
    pub slice: u16,
    /// Not trained on in this epoch: came after it started, did not erase in time, or restricted.
    pub excluded: bool,
}

/// A device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Device {
    /// Its certificates, and the one that each replaces when it is first used.
    pub certificates: BTreeMap<Digest, Option<Digest>>,
    /// Release that it fetched last; 0: none.
    pub release: u64,
    /// It waits for the person's consent to this task.
    pub withheld: Option<u64>,
    /// The newest task that it has confirmed.
    pub confirmed: Option<u64>,
}

/// What devices were told to erase.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PendingErase {
    /// Number of the task.
    pub task: u64,
    /// Items.
    pub items: Vec<String>,
    /// And what happened at or after this time, in Unix seconds.
    pub from: Option<i64>,
    /// All devices have confirmed; one has to join again with what remains.
    pub confirmed: bool,
}

/// A person who goes to another shard after a partial erasure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Moving {
    /// The epoch.
    pub epoch: EpochNo,
    /// The place there.
    pub place: Place,
}

/// Rows of the error table: which samples were measured on what.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Errors {
    /// All samples that were ever reported.
    pub samples: BTreeSet<u32>,
    /// By shard.
    pub shards: BTreeMap<ShardKey, Measured>,
}

/// What was measured on a shard's adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Per sample the adapter that it was measured on.
    pub samples: BTreeMap<u32, Digest>,
    /// The rows: embeddings and errors of these samples.
    pub value: ValueRef,
}

impl PendingErase {
    /// What a request asks of a device.
    pub fn of(task: u64, request: &DeletionRequest) -> Self {
        Self {
            task,
            items: request.items().to_vec(),
            from: request.from(),
            confirmed: false,
        }
    }

    /// Together with what was asked before, under this task.
    pub fn with(self, earlier: Option<Self>) -> Self {
        let (items, from) = earlier.map_or((vec![], None), |e| (e.items, e.from));
        let all: BTreeSet<String> = items.into_iter().chain(self.items).collect();
        Self {
            task: self.task,
            items: all.into_iter().collect(),
            from: from.into_iter().chain(self.from).min(),
            confirmed: false,
        }
    }
}

impl Place {
    /// Whether the data is trained on, as far as this epoch is concerned.
    pub fn trains(&self) -> bool {
        !self.excluded && self.samples > 0
    }
}

impl Profile {
    /// The place in an epoch, if the data of it is trained on there.
    pub fn trained(&self, epoch: EpochNo) -> Option<&Place> {
        let place = self.places.get(&epoch)?;
        (!self.restricted && place.trains()).then_some(place)
    }

    /// The data is trained on in no epoch.
    pub fn excluded(&self) -> bool {
        self.restricted || self.places.values().all(|p| p.excluded)
    }

    /// Adds to what the devices are to erase; they have confirmed none of the whole.
    pub fn merge_erase(&mut self, more: PendingErase) {
        self.erase = Some(more.with(self.erase.take()));
    }
}

impl Person {
    /// Certificates of all devices.
    pub fn certificates(&self) -> impl Iterator<Item = &Digest> {
        self.devices.values().flat_map(|d| d.certificates.keys())
    }

    /// All that is left to answer this task waits for the person's consent.
    pub fn withholds(&self, task: u64) -> bool {
        let mut open = self
            .devices
            .values()
            .filter(|d| d.confirmed != Some(task))
            .peekable();
        open.peek().is_some() && open.all(|d| d.withheld == Some(task))
    }

    /// Every device has erased what this task names.
    pub fn all_confirmed(&self, task: u64) -> bool {
        self.devices.values().all(|d| d.confirmed == Some(task))
    }

    /// Values that belong to the person.
    pub fn values(&self) -> impl Iterator<Item = &ValueRef> {
        self.errors
            .iter()
            .flat_map(|e| e.shards.values().map(|m| &m.value))
    }

    /// Who this is.
    pub(crate) fn identity(&self, subject: &SubjectId) -> Identity {
        let devices = self.devices.iter();
        Identity {
            subject: subject.clone(),
            number: self.number,
            devices: devices
                .map(|(first, d)| (*first, d.certificates.clone()))
                .collect(),
        }
    }

    /// What is sealed anew under a fresh key: nothing that was measured, and no release.
    pub fn stripped(&self) -> Self {
        let mut kept = self.clone();
        kept.errors = None;
        kept.moving = None;
        for device in kept.devices.values_mut() {
            device.release = 0;
            // A new order is told anew.
            device.withheld = None;
        }
        kept
    }
}
