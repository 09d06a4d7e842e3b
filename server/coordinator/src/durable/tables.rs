//! Tables of format 2, and the names of keys and databases.
//!
//! Slices and events lie in one table for each class of key; values in one for each
//! [`lethe_ledger::Table`]. What a slice is about stands in the record, under the key of its owner.

use lethe_ledger::{EpochNo, Event, Owner, ShardKey, SliceId, StageKey};
use lethe_proto::codec;
use lethe_proto::ids::{Digest, ShardId};
use lethe_store::keys::{Keys, LONGEST};
use lethe_store::sealed::{Batch, KeyName};
use lethe_store::{Class, Persisted, StoreError};
use lethe_transport::identity::{Authority, AuthorityRecord};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use crate::CoordinatorError;

macro_rules! persisted {
    ($type:ty, $table:literal, $class:ident) => {
        impl Persisted for $type {
            const TABLE: &'static str = $table;
            const CLASS: Class = Class::$class;
        }
    };
}

/// Format of the folder. Key: empty. What later builds write here begins with the same two fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Format {
    pub(super) number: u32,
    /// Which build has written it first.
    pub(super) build: String,
}
persisted!(Format, "format", Public);

/// The folder is founded: who the coordinator is, the key source has. Key: empty.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Founded {
    /// Which build has founded it, or moved its keys out.
    pub(super) build: String,
}
persisted!(Founded, "founded", Public);

/// What identifies the coordinator and its log, whatever is trained. Earlier builds kept it in the
/// data folder. Key: empty.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Foundation {
    /// The authority that signs certificates.
    pub(crate) authority: AuthorityRecord,
    /// Seed of the key that signs the log.
    pub(crate) log_seed: [u8; 32],
}
persisted!(Foundation, "foundation-2", Public);

impl Foundation {
    /// A new coordinator, with keys of its own.
    pub(crate) fn create() -> Result<Self, CoordinatorError> {
        Ok(Self {
            authority: Authority::create()?.record(),
            log_seed: lethe_seal::random()?,
        })
    }

    /// What the key source has; none: nothing yet.
    pub(crate) fn of(keys: &Keys) -> Result<Option<Self>, CoordinatorError> {
        let newest = |name: &str| -> Result<Option<(String, Secret)>, CoordinatorError> {
            let Some(number) = keys.numbers(name)?.last().copied() else {
                return Ok(None);
            };
            let name = format!("{name}-{number}");
            let secret = keys.secret(&name)?;
            Ok(secret.map(|s| (name, s)))
        };
        let (Some((of_authority, authority)), Some((of_log, seed))) =
            (newest(AUTHORITY)?, newest(LOG)?)
        else {
            return Ok(None);
        };
        let wrong = |name: &str, why: String| StoreError::Keys {
            place: keys.place().into(),
            why: format!("{name}: {why}"),
        };
        let authority = codec::from_bytes(&authority, LONGEST);
        let authority = authority.map_err(|e| wrong(&of_authority, e.to_string()))?;
        let log_seed: Result<[u8; 32], _> = seed.as_slice().try_into();
        let log_seed = log_seed.map_err(|_| {
            let got = seed.len();
            wrong(&of_log, format!("{got} bytes, expected 32"))
        })?;
        Ok(Some(Self {
            authority,
            log_seed,
        }))
    }

    /// Keeps it in the key source, as far as that has none.
    pub(crate) fn keep(&self, keys: &Keys) -> Result<(), CoordinatorError> {
        if keys.numbers(AUTHORITY)?.is_empty() {
            let bytes = codec::to_bytes(&self.authority).map_err(|e| StoreError::Encode {
                table: "authority",
                why: e.to_string(),
            })?;
            keys.keep(&format!("{AUTHORITY}-1"), &Zeroizing::new(bytes))?;
        }
        if keys.numbers(LOG)?.is_empty() {
            keys.keep(&format!("{LOG}-1"), &self.log_seed)?;
        }
        Ok(())
    }
}

/// Secrets are `NAME-NUMBER` in the key source; the highest number counts.
pub(crate) const AUTHORITY: &str = "authority";
/// The same of the seed of the log's key.
pub(crate) const LOG: &str = "log";

type Secret = Zeroizing<Vec<u8>>;

/// What the coordinator knows beside the tally of its lists. Key: empty.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct ListsFoundation {
    /// Handles are drawn from it.
    pub(crate) handles: [u8; 32],
    /// Items that people contribute for.
    pub(crate) items: u64,
    /// Names them, in their order.
    pub(crate) catalogue: Digest,
}
persisted!(ListsFoundation, "lists-foundation", Public);

/// Whether the tally is a process of its own. Folders of before it could be have none. Key: empty.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(crate) struct ListsMode {
    pub(crate) apart: bool,
}
persisted!(ListsMode, "lists-mode", Public);

/// Number of the newest event that was acknowledged, written with every batch. What a shard's
/// database holds beyond it was never acknowledged: the crash came before the main database's turn.
/// Key: empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct EventsHead {
    pub(super) last: u64,
}
persisted!(EventsHead, "events-head", Public);

/// Key of the updates of a stage; made with its first update. Key: [`stage_id`].
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct StageUpdateKey(pub(super) [u8; 32]);

impl Drop for StageUpdateKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}
persisted!(StageUpdateKey, "stage-update-keys", Shard);

/// A slice of the state.
pub(super) trait SliceRow: Persisted {
    fn new(id: SliceId, content: Vec<u8>) -> Self;
    fn take(self) -> (SliceId, Vec<u8>);
}

/// An event. Key: [`event_id`].
pub(super) trait EventRow: Persisted {
    fn new(event: Event) -> Self;
    fn take(self) -> Event;
}

/// A value. Key: its id.
pub(super) trait ValueRow: Persisted {
    fn new(content: Vec<u8>) -> Self;
    fn take(self) -> Vec<u8>;
}

macro_rules! slices {
    ($($type:ident, $table:literal, $class:ident;)*) => {$(
        #[derive(Serialize, Deserialize)]
        pub(super) struct $type {
            id: SliceId,
            #[serde(with = "serde_bytes")]
            content: Vec<u8>,
        }
        persisted!($type, $table, $class);
        impl SliceRow for $type {
            fn new(id: SliceId, content: Vec<u8>) -> Self {
                Self { id, content }
            }
            fn take(self) -> (SliceId, Vec<u8>) {
                (self.id, self.content)
            }
        }
    )*};
}
slices! {
    PublicSlice, "slices-public", Public;
    PersonSlice, "slices-person", Subject;
    StageSlice, "slices-stage", Shard;
    EvidenceSlice, "slices-evidence", Evidence;
}

macro_rules! events {
    ($($type:ident, $table:literal, $class:ident;)*) => {$(
        #[derive(Serialize, Deserialize)]
        pub(super) struct $type(Event);
        persisted!($type, $table, $class);
        impl EventRow for $type {
            fn new(event: Event) -> Self {
                Self(event)
            }
            fn take(self) -> Event {
                self.0
            }
        }
    )*};
}
events! {
    PublicEvent, "events-public", Public;
    PersonEvent, "events-person", Subject;
    StageEvent, "events-stage", Shard;
    EvidenceEvent, "events-evidence", Evidence;
}

macro_rules! values {
    ($($type:ident, $table:literal, $class:ident;)*) => {$(
        #[derive(Serialize, Deserialize)]
        pub(super) struct $type(#[serde(with = "serde_bytes")] Vec<u8>);
        persisted!($type, $table, $class);
        impl ValueRow for $type {
            fn new(content: Vec<u8>) -> Self {
                Self(content)
            }
            fn take(self) -> Vec<u8> {
                self.0
            }
        }
    )*};
}
values! {
    // Sealed under the stage's update key before it is sealed under the person's.
    UpdateValue, "value-updates", Subject;
    RunStateValue, "value-run-states", Shard;
    CheckpointValue, "value-checkpoints", Shard;
    PersonalValue, "value-personal", Shard;
    ErrorRowsValue, "value-error-rows", Subject;
    ReceiptValue, "value-receipts", Evidence;
    CatalogueValue, "value-catalogue", Public;
}

/// Name of a shard's database: that of the first epoch is as it was before there were epochs.
pub(super) fn database(shard: ShardKey) -> String {
    match shard.epoch {
        EpochNo::FIRST => shard.shard.0.to_string(),
        EpochNo(epoch) => format!("{epoch}-{}", shard.shard.0),
    }
}

/// The shard whose database has this name.
pub(super) fn shard_of(database: &str) -> Option<ShardKey> {
    let (epoch, shard) = match database.split_once('-') {
        Some((epoch, shard)) => (EpochNo(epoch.parse().ok()?), shard),
        None => (EpochNo::FIRST, database),
    };
    let shard = ShardId(shard.parse().ok()?);
    Some(ShardKey { epoch, shard })
}

pub(super) fn shard_key(stage: &StageKey) -> ShardKey {
    ShardKey {
        epoch: stage.epoch,
        shard: stage.shard,
    }
}

/// The key that seals what an owner has.
pub(super) fn key_of(owner: &Owner) -> KeyName {
    match owner {
        Owner::Public => KeyName::public(),
        Owner::Person(subject) => KeyName::subject(subject.as_str()),
        Owner::Stage(k) => {
            let name = format!("{}/{}", k.generation, k.stage);
            KeyName::stage(&database(shard_key(k)), &name)
        }
        Owner::Deletion(id) => KeyName::evidence(*id),
        Owner::Kept(id) => KeyName::evidence_of(&format!("kept/{id}")),
        Owner::Proposal(id) => KeyName::evidence_of(&format!("proposal/{id}")),
    }
}

/// How records of a stage are named.
pub(super) fn stage_id(k: &StageKey) -> String {
    let StageKey {
        epoch,
        shard,
        generation,
        stage,
    } = k;
    format!("{}/{}/{generation}/{stage}", epoch.0, shard.0)
}

pub(super) fn event_id(number: u64) -> String {
    format!("{number:016}")
}

fn slice_key(id: &SliceId) -> String {
    match id {
        SliceId::Core => "core".into(),
        SliceId::Epoch(no) => format!("epoch/{}", no.0),
        SliceId::Release(no) => format!("release/{no}"),
        SliceId::Action(no) => format!("action/{no}"),
        SliceId::Person(subject) => subject.to_string(),
        SliceId::Stage(key) => stage_id(key),
        SliceId::Deletion(id) => format!("deletion/{id}"),
        SliceId::Kept(id) => format!("kept/{id}"),
        SliceId::Proposal(id) => format!("proposal/{id}"),
        SliceId::Lists(id) => format!("lists/{id}"),
        SliceId::Life(no) => format!("life/{}", no.0),
        SliceId::Catalogue(no) => format!("catalogue/{}", no.0),
        SliceId::Lifted(id) => format!("lifted/{id}"),
        SliceId::Hold(key) => format!("hold/{}/{}", key.epoch.0, key.shard.0),
        SliceId::Proof(key) => format!("proof/{}/{}", key.epoch.0, key.shard.0),
        SliceId::Logged => "logged".into(),
    }
}

/// What becomes of a record whose owner has no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    /// It is the first thing of its owner.
    Make,
    /// It is left out, as it would be when the state is read again.
    Skip,
    /// Nothing is written.
    Fail,
}

/// Adds a record to a batch.
pub(super) fn put<T: Persisted>(
    batch: Batch,
    owner: &KeyName,
    key: &str,
    row: &T,
    missing: Missing,
) -> Result<Batch, StoreError> {
    match missing {
        Missing::Make => batch.put(owner, key, row),
        Missing::Skip => batch.put_existing(owner, key, row),
        Missing::Fail => batch.put_required(owner, key, row),
    }
}

/// Adds a slice to a batch; none: the stored one is removed.
pub(super) fn put_slice(
    batch: Batch,
    id: &SliceId,
    content: Option<Vec<u8>>,
    missing: Missing,
) -> Result<Batch, StoreError> {
    let owner = id.owner();
    let one = match &owner {
        Owner::Public => put_slice_as::<PublicSlice>,
        Owner::Person(_) => put_slice_as::<PersonSlice>,
        Owner::Stage(_) => put_slice_as::<StageSlice>,
        Owner::Deletion(_) | Owner::Kept(_) | Owner::Proposal(_) => put_slice_as::<EvidenceSlice>,
    };
    one(batch, id, &key_of(&owner), content, missing)
}

fn put_slice_as<T: SliceRow>(
    batch: Batch,
    id: &SliceId,
    owner: &KeyName,
    content: Option<Vec<u8>>,
    missing: Missing,
) -> Result<Batch, StoreError> {
    let key = slice_key(id);
    match content {
        Some(content) => put(batch, owner, &key, &T::new(id.clone(), content), missing),
        None => Ok(batch.delete::<T>(&key)),
    }
}

/// Adds an event to a batch.
pub(super) fn put_event(batch: Batch, number: u64, event: &Event) -> Result<Batch, StoreError> {
    let owner = event.owner();
    let one = match &owner {
        Owner::Public => put_event_as::<PublicEvent>,
        Owner::Person(_) => put_event_as::<PersonEvent>,
        Owner::Stage(_) => put_event_as::<StageEvent>,
        Owner::Deletion(_) | Owner::Kept(_) | Owner::Proposal(_) => put_event_as::<EvidenceEvent>,
    };
    one(batch, number, event, &key_of(&owner))
}

fn put_event_as<T: EventRow>(
    batch: Batch,
    number: u64,
    event: &Event,
    owner: &KeyName,
) -> Result<Batch, StoreError> {
    let missing = match makes_its_key(event) {
        true => Missing::Make,
        false => Missing::Fail,
    };
    let row = T::new(event.clone());
    put(batch, owner, &event_id(number), &row, missing)
}

/// Whether an event may be the first thing of its owner. All others find the owner's key, or were
/// decided about somebody who is gone.
fn makes_its_key(event: &Event) -> bool {
    match event {
        Event::PersonKnown { .. }
        | Event::PersonKept { .. }
        | Event::DeletionAccepted { .. }
        | Event::PeopleKept { .. }
        | Event::Proposed { .. } => true,
        // A stage begins with its first round.
        Event::UpdatesStored { updates, .. } => updates.iter().all(|u| u.begun == 0),
        Event::RoundCounted { round, .. } => *round == 0,
        other => other.owner() == Owner::Public,
    }
}
