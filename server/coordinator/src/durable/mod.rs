//! What the coordinator writes: the slices and events of the ledger, and the values that they name.
//!
//! A write is one batch: shard databases first, the main one last, which counts the events
//! (`events-head`). Events are numbered; what a shard's database holds beyond the count was never
//! acknowledged and goes when the folder is opened. A snapshot writes the slices that have changed
//! and removes the events, which are in them from then on. Between databases it may be cut off: a
//! stage's slice that is ahead of the public ones already has what public events do to it, which is
//! only to remove it.
//!
//! Names of keys of stages, deletions, proposals and those who stay are never used twice. The first
//! event of an owner makes the key; all others, and all values, fail where it is missing.

use std::collections::BTreeSet;
use std::sync::Arc;

use lethe_ledger::{EpochNo, Event, Identity, Owner, ShardKey, State};
use lethe_proto::codec;
use lethe_proto::ids::{ShardId, SubjectId};
use lethe_store::StoreError;
use lethe_store::keys::{Folders, Keys};
use lethe_store::sealed::{Batch, Engine, KeyName, SealedStore};

use crate::CoordinatorError;

pub(crate) mod authorities;
mod format1;
mod migrate;
mod read;
mod tables;
mod values;

#[cfg(test)]
mod tests;

pub(crate) use migrate::{Base, migrate};
use tables::ListsMode;
use tables::{
    EventsHead, Format, Founded, Missing, database, key_of, put_event, put_slice, shard_of,
};
pub(crate) use tables::{Foundation, LOG, ListsFoundation};
#[cfg(test)]
use values::update_ref;
pub(crate) use values::{
    NewValue, Values, catalogue_ref, checkpoint_ref, error_rows_ref, personal_ref, receipt_ref,
    run_state_ref,
};

/// Format of the folders that this build writes.
const FORMAT: u32 = 2;

/// Which build it is, for those that cannot read what it has written.
const BUILD: &str = concat!("lethe ", env!("CARGO_PKG_VERSION"));

/// Events after which a snapshot is worth its bytes.
const SNAPSHOT: u64 = 512;

/// Longest note about somebody who stays, in bytes.
const MAX_NOTE: usize = 1 << 20;

/// The data folder, as who holds the writer's lock has it.
pub(crate) struct Durable {
    store: Arc<SealedStore>,
    values: Values,
    /// Number of the newest event.
    last: u64,
    /// Events since the last snapshot.
    since: u64,
    /// A write failed: the folder may hold it or not, and has to be read again.
    doubt: bool,
    /// Names that this process has destroyed and that never come back.
    gone: BTreeSet<Owner>,
}

/// An open folder, and what it holds.
pub(crate) struct Opened {
    /// Writes to it.
    pub(crate) durable: Durable,
    /// What its slices and events give.
    pub(crate) state: State,
    /// Who the coordinator is.
    pub(crate) foundation: Foundation,
    /// Shards whose databases were damaged, now or before [`Durable::lost_noted`].
    pub(crate) lost: Vec<ShardKey>,
}

/// What a folder is, by its records.
enum Found {
    Nothing,
    Founded,
}

impl Durable {
    /// Opens a folder. None: there is nothing in it yet. A folder of another format is an error
    /// ([`StoreError::Format`]); one of format 1 can be migrated. Keys that an earlier build has
    /// left in the folder are moved into the key source.
    pub(crate) fn open(
        engine: &Engine,
        folders: impl Into<Folders>,
    ) -> Result<Option<Opened>, CoordinatorError> {
        let folders = folders.into();
        if is_new(&folders)? {
            return Ok(None);
        }
        let databases = SealedStore::databases_in(&folders.records)?;
        let store = SealedStore::open(engine, folders.clone(), &databases)?;
        match found(&store)? {
            Found::Nothing => Ok(None),
            Found::Founded => {
                let foundation = moved_out(&store, &folders.keys)?;
                Self::read(engine, store, foundation).map(Some)
            }
        }
    }

    /// Starts a folder in which there is nothing, with databases for so many shards of the first
    /// epoch.
    pub(crate) fn found(
        engine: &Engine,
        folders: impl Into<Folders>,
        foundation: Foundation,
        shards: usize,
    ) -> Result<Opened, CoordinatorError> {
        let folders = folders.into();
        let first = (0..shards).map(|k| {
            database(ShardKey {
                epoch: EpochNo::FIRST,
                shard: ShardId(k as u16),
            })
        });
        let store = SealedStore::open(engine, folders.clone(), &first.collect::<Vec<_>>())?;
        if let Found::Founded = found(&store)? {
            let message = "this data folder was started before";
            let code = lethe_proto::message::Refusal::Internal;
            return Err(CoordinatorError::refuse(code, message));
        }
        foundation.keep(&folders.keys)?;
        store.write(founding(Batch::new())?)?;
        Self::read(engine, store, foundation)
    }

    fn read(
        engine: &Engine,
        store: SealedStore,
        foundation: Foundation,
    ) -> Result<Opened, CoordinatorError> {
        let store = Arc::new(store);
        let mut durable = Self {
            values: Values::new(store.clone()),
            store,
            last: 0,
            since: 0,
            doubt: true,
            gone: BTreeSet::new(),
        };
        let state = durable.rebuild()?;
        // A folder that was lost without anything in it is not known to the keys either.
        for (key, _, _) in state.shards().filter(|(k, _, _)| !state.ended(k.epoch)) {
            durable.store.open_database(engine, &database(key))?;
        }
        let quarantined = durable.store.quarantined();
        for q in &quarantined {
            tracing::error!(
                database = q.database,
                why = q.why,
                "a database was set aside"
            );
        }
        let lost = quarantined.iter().filter_map(|q| shard_of(&q.database));
        // Of an epoch that has ended nothing was left to lose.
        let lost = lost.filter(|key| !state.ended(key.epoch));
        Ok(Opened {
            lost: lost.collect(),
            durable,
            state,
            foundation,
        })
    }

    /// Creates the databases of an epoch's shards: before the event that founds it is written.
    pub(crate) fn add_databases(
        &self,
        engine: &Engine,
        shards: impl IntoIterator<Item = ShardKey>,
    ) -> Result<(), CoordinatorError> {
        for key in shards {
            self.store.open_database(engine, &database(key))?;
        }
        Ok(())
    }

    /// Names of the databases of epochs that have ended, once all keys of what was in them are
    /// destroyed.
    pub(crate) fn databases_of_ended(&self, state: &State) -> Vec<String> {
        let spent = state.core().spent.iter();
        let waits: BTreeSet<EpochNo> = spent
            .filter_map(|owner| match owner {
                Owner::Stage(stage) => Some(stage.epoch),
                _ => None,
            })
            .collect();
        let over = |name: &String| {
            let key = shard_of(name);
            key.is_some_and(|k| state.ended(k.epoch) && !waits.contains(&k.epoch))
        };
        self.store.databases().into_iter().filter(over).collect()
    }

    /// Removes databases in which nothing is.
    pub(crate) fn remove_databases(&self, names: &[String]) -> Result<(), CoordinatorError> {
        for name in names {
            self.store.remove_database(name)?;
        }
        Ok(())
    }

    /// The events that say which shards were lost are durable: the next opening is silent about
    /// them.
    pub(crate) fn lost_noted(&self) -> Result<(), CoordinatorError> {
        Ok(self.store.quarantine_handled()?)
    }

    /// Writes events and values together; those that are volatile are left out. After an error the
    /// folder may hold them or not: see [`Self::rebuild`].
    pub(crate) fn write(
        &mut self,
        events: &[Event],
        values: Vec<NewValue>,
    ) -> Result<(), CoordinatorError> {
        if self.doubt {
            let why = "a write is in doubt: the state is to be rebuilt first";
            return Err(StoreError::Backend(why.into()).into());
        }
        let lasting: Vec<&Event> = events.iter().filter(|e| !e.is_volatile()).collect();
        if lasting.is_empty() && values.is_empty() {
            return Ok(());
        }
        let owners = lasting.iter().map(|e| e.owner());
        let owners = owners.chain(values.iter().map(|v| v.owner.clone()));
        self.refuse_gone(owners)?;
        let mut batch = Batch::new();
        let mut last = self.last;
        for event in lasting {
            last += 1;
            batch = put_event(batch, last, event)?;
        }
        batch = self.values.put_values(batch, values)?;
        batch = batch.put(&KeyName::public(), "", &EventsHead { last })?;
        self.doubt = true;
        self.store.write(batch)?;
        self.doubt = false;
        self.since += last - self.last;
        self.last = last;
        Ok(())
    }

    /// A name that was destroyed does not come back.
    fn refuse_gone(&self, mut owners: impl Iterator<Item = Owner>) -> Result<(), StoreError> {
        match owners.any(|owner| self.gone.contains(&owner)) {
            true => Err(StoreError::NoKey { table: "events" }),
            false => Ok(()),
        }
    }

    /// Whether there are enough events for a snapshot.
    pub(crate) fn wants_snapshot(&self) -> bool {
        self.since >= SNAPSHOT
    }

    /// The slices that have changed, as [`Self::write_snapshot`] writes them.
    pub(crate) fn snapshot_of(&self, state: &State) -> Result<Batch, CoordinatorError> {
        if self.doubt {
            let why = "a write is in doubt: the state is to be rebuilt first";
            return Err(StoreError::Backend(why.into()).into());
        }
        let mut batch = Batch::new();
        for id in &state.changed {
            // An owner whose key is just being destroyed is left out.
            batch = put_slice(batch, id, state.slice(id), Missing::Skip)?;
        }
        Ok(batch)
    }

    /// Writes slices and removes the events, which they have in them. Nothing may have been written
    /// since they were made; when this returns, none of them counts as changed. After an error it
    /// may be tried again at any time: what the folder holds gives the same state with it, without
    /// it and with parts of it.
    pub(crate) fn write_snapshot(&mut self, slices: Batch) -> Result<(), CoordinatorError> {
        // What a failed attempt has left in doubt is read first: it may have removed events.
        self.store.recover()?;
        let batch = read::delete_events(slices, &self.store, |_| true);
        if !batch.is_empty() {
            self.store.write(batch)?;
        }
        self.since = 0;
        Ok(())
    }

    /// Reads the state again: after a write that failed, and only then, it differs from the one in
    /// memory.
    pub(crate) fn rebuild(&mut self) -> Result<State, CoordinatorError> {
        self.doubt = true;
        self.store.recover()?;
        let found = read::state(&self.store)?;
        self.last = found.last;
        self.since = found.events;
        self.doubt = false;
        Ok(found.state)
    }

    /// Destroys keys: from then on nobody can read what they have sealed. Then removes the records.
    /// With the keys it is noted who of these people stays: see [`Self::stayed`]. After an error it
    /// may be repeated. Returns how many of the keys existed.
    pub(crate) fn destroy(
        &mut self,
        owners: &[Owner],
        stay: &[Identity],
    ) -> Result<usize, CoordinatorError> {
        let owners: Vec<&Owner> = owners.iter().filter(|o| **o != Owner::Public).collect();
        for owner in &owners {
            // People who stay come back under their names, with fresh keys.
            if !matches!(owner, Owner::Person(_)) {
                self.gone.insert((*owner).clone());
            }
            if let Owner::Stage(stage) = owner {
                self.values.secrets.forget(stage);
            }
        }
        let names: Vec<KeyName> = owners.into_iter().map(key_of).collect();
        let notes = stay.iter().map(|identity| {
            let note = codec::to_bytes(identity).map_err(|e| StoreError::Encode {
                table: "people who stay",
                why: e.to_string(),
            })?;
            let key = key_of(&Owner::Person(identity.subject.clone()));
            Ok((key, note))
        });
        let notes: Result<Vec<(KeyName, Vec<u8>)>, StoreError> = notes.collect();
        Ok(self.store.destroy_noting(&names, notes?)?)
    }

    /// Nothing is known any more of these people but what the folder says: their certificates were
    /// withdrawn.
    pub(crate) fn drop_notes<'a>(
        &self,
        people: impl Iterator<Item = &'a SubjectId>,
    ) -> Result<(), CoordinatorError> {
        let names = people.map(|s| key_of(&Owner::Person(s.clone())));
        let names: Vec<KeyName> = names.collect();
        match names.is_empty() {
            true => Ok(()),
            false => Ok(self.store.drop_notes(&names)?),
        }
    }

    /// Those who stayed when their keys were destroyed. It is kept with the keys: a folder that
    /// came back from a backup may not know them any more.
    pub(crate) fn stayed(&self) -> Result<Vec<Identity>, CoordinatorError> {
        let read = |note: Vec<u8>| {
            codec::from_bytes(&note, MAX_NOTE).map_err(|e| StoreError::Corrupt {
                // Whose it is stays out of messages.
                name: "the keyring's notes".into(),
                why: e.to_string(),
            })
        };
        let all: Result<Vec<Identity>, StoreError> =
            self.store.notes().into_iter().map(read).collect();
        Ok(all?)
    }

    /// What is known beside the tally; none: there never were lists.
    pub(crate) fn lists(&self) -> Result<Option<ListsFoundation>, CoordinatorError> {
        Ok(self.store.get::<ListsFoundation>("")?)
    }

    /// Whether the tally is a process of its own.
    pub(crate) fn lists_apart(&self) -> Result<bool, CoordinatorError> {
        let mode = self.store.get::<ListsMode>("")?;
        Ok(mode.is_some_and(|m| m.apart))
    }

    /// Keeps what is known beside the tally, and whether that is a process of its own.
    pub(crate) fn keep_lists(
        &self,
        lists: &ListsFoundation,
        apart: bool,
    ) -> Result<(), CoordinatorError> {
        let public = KeyName::public();
        let batch = Batch::new().put(&public, "", lists)?;
        let batch = batch.put(&public, "", &ListsMode { apart })?;
        Ok(self.store.write(batch)?)
    }

    /// Reads values, also while others write.
    pub(crate) fn values(&self) -> Values {
        self.values.clone()
    }

    /// The store.
    pub(crate) fn store(&self) -> &Arc<SealedStore> {
        &self.store
    }
}

/// Whether nothing was ever kept there. A keyring without records is no such folder: they are lost.
fn is_new(folders: &Folders) -> Result<bool, CoordinatorError> {
    let records = &folders.records;
    let kept = records.join("db").exists() || records.join("keys").is_dir();
    Ok(!kept && !folders.keys.has_keyring()?)
}

/// Who the coordinator is, from the key source. What an earlier build has kept in the folder goes
/// there first, unless that is an older copy.
fn moved_out(store: &SealedStore, keys: &Keys) -> Result<Foundation, CoordinatorError> {
    if let Some(before) = store.get::<Foundation>("")? {
        before.keep(keys)?;
        let batch = founded(Batch::new().delete::<Foundation>(""))?;
        store.write(batch)?;
        tracing::info!(
            place = keys.place(),
            "the keys were moved out of the data folder"
        );
    }
    let lacks = || StoreError::Keys {
        place: keys.place().into(),
        why: "it has a keyring, and neither the authority nor the log's key (authority-NUMBER, \
              log-NUMBER): put the newest copy of the keys there"
            .into(),
    };
    Ok(Foundation::of(keys)?.ok_or_else(lacks)?)
}

fn founded(batch: Batch) -> Result<Batch, StoreError> {
    let founded = Founded {
        build: BUILD.into(),
    };
    batch.put(&KeyName::public(), "", &founded)
}

/// What begins a folder of this format.
fn founding(batch: Batch) -> Result<Batch, StoreError> {
    let public = KeyName::public();
    let format = Format {
        number: FORMAT,
        build: BUILD.into(),
    };
    let batch = batch.put(&public, "", &EventsHead::default())?;
    founded(batch)?.put(&public, "", &format)
}

fn found(store: &SealedStore) -> Result<Found, CoordinatorError> {
    let other = |found, build: &str| {
        let (known, build) = (FORMAT, build.to_owned());
        Err(StoreError::Format {
            found,
            known,
            build,
        })
    };
    let format = match store.get::<Format>("")? {
        Some(format) => format,
        None if store.keys::<format1::Foundation>().is_empty() => return Ok(Found::Nothing),
        None => return Ok(other(1, "lethe before the ledger")?),
    };
    if format.number != FORMAT {
        return Ok(other(format.number, &format.build)?);
    }
    let lacks = || StoreError::Corrupt {
        name: "the data folder".into(),
        why: "it has a format and no foundation".into(),
    };
    if store.get::<Founded>("")?.is_none() && store.keys::<Foundation>().is_empty() {
        return Err(lacks().into());
    }
    Ok(Found::Founded)
}
