//! From format 1 to format 2.
//!
//! First everything is written anew, under new names and beside the old, and a record says so
//! (`migrated`). Then the old goes, and `format` is written last. A crash before that record begins
//! again from the old records, which are all there; a crash after it goes on with removing. In
//! both formats a person's, a deletion's and a proposal's key is the same; stages get fresh keys
//! under names that have the generation in them, and the old ones are destroyed.

use std::collections::BTreeMap;
use std::sync::Arc;

use lethe_ledger::{EpochNo, ShardKey, SliceId};
use lethe_proto::codec;
use lethe_proto::ids::{Digest, ShardId, SubjectId};
use lethe_recipe::Recipe;
use lethe_store::keys::Folders;
use lethe_store::sealed::{Batch, Engine, KeyName, SealedStore};
use lethe_store::{Class, Persisted, StoreError};
use serde::{Deserialize, Serialize};

use super::format1 as old;
use super::tables::{Foundation, Missing, put_slice};
use super::values::{NewValue, Values};
use super::{Found, found, founding, is_new};
use crate::CoordinatorError;

mod evidence;
mod people;
mod public;
mod shards;

/// Records in a batch that removes.
const AT_ONCE: usize = 1000;

/// Everything is written anew; what is left is to remove the old. Key: empty.
#[derive(Serialize, Deserialize)]
struct Migrated;

impl Persisted for Migrated {
    const TABLE: &'static str = "migrated";
    const CLASS: Class = Class::Public;
}

/// What the old records do not say of the base model.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Base {
    /// Hash of the adapter that the recipe starts from.
    pub(crate) initial: Digest,
    /// Anchors that the catalogue gives.
    pub(crate) anchors: usize,
    /// Width of the model.
    pub(crate) hidden: usize,
}

/// Slices and values that are written together.
#[derive(Default)]
struct Part {
    slices: Vec<(SliceId, Vec<u8>)>,
    values: Vec<NewValue>,
}

impl Part {
    fn slice<T: Serialize>(&mut self, id: SliceId, content: &T) -> Result<(), CoordinatorError> {
        self.slices.push((id, bytes(content)?));
        Ok(())
    }
}

/// A record's bytes, as values and slices have them.
fn bytes<T: Serialize>(content: &T) -> Result<Vec<u8>, CoordinatorError> {
    let encode = |e: codec::CodecError| StoreError::Encode {
        table: "slices",
        why: e.to_string(),
    };
    Ok(codec::to_bytes(content).map_err(encode)?)
}

/// What all parts look at.
struct Source {
    store: Arc<SealedStore>,
    recipe: Recipe,
    foundation: old::Foundation,
    base: Base,
}

impl Source {
    /// A shard of the only epoch that there is in the old format.
    fn shard(&self, shard: ShardId) -> ShardKey {
        let epoch = EpochNo::FIRST;
        ShardKey { epoch, shard }
    }

    /// Writes a part in one batch.
    fn write(&self, values: &Values, part: Part, batch: Batch) -> Result<(), CoordinatorError> {
        let mut batch = batch;
        for (id, content) in part.slices {
            batch = put_slice(batch, &id, Some(content), Missing::Make)?;
        }
        batch = values.put_values(batch, part.values)?;
        if batch.is_empty() {
            return Ok(());
        }
        Ok(self.store.write(batch)?)
    }
}

/// Makes a folder of format 1 one of format 2; `base_of` says what the model of this digest is
/// like, or refuses: then nothing has changed. Returns
/// whether it was one. What is outside the folder (log, journal, floor) stays as it is, and so do
/// the marks of databases that were set aside: the next opening says that they are lost.
pub(crate) fn migrate(
    engine: &Engine,
    folders: impl Into<Folders>,
    base_of: impl FnOnce(&Recipe, Digest) -> Result<Base, CoordinatorError>,
) -> Result<bool, CoordinatorError> {
    let folders = folders.into();
    if is_new(&folders)? {
        return Ok(false);
    }
    let databases = SealedStore::databases_in(&folders.records)?;
    let store = SealedStore::open(engine, folders.clone(), &databases)?;
    let needed = match found(&store) {
        Err(CoordinatorError::Store(StoreError::Format { found: 1, .. })) => true,
        Err(e) => return Err(e),
        Ok(Found::Nothing | Found::Founded) => false,
    };
    let Some(foundation) = store.get::<old::Foundation>("")?.filter(|_| needed) else {
        return Ok(false);
    };
    let recipe = Recipe::from_json(&foundation.recipe)?;
    // One that was lost before it held anything is not known to the keys.
    for shard in 0..recipe.shards {
        store.open_database(engine, &shard.to_string())?;
    }
    let source_model = foundation.model;
    let source = Source {
        base: base_of(&recipe, source_model)?,
        store: Arc::new(store),
        recipe,
        foundation,
    };
    if source.store.get::<Migrated>("")?.is_none() {
        write_anew(&source)?;
    }
    remove_old(&source)?;
    let foundation = Foundation {
        authority: source.foundation.authority,
        log_seed: source.foundation.log_seed,
    };
    foundation.keep(&folders.keys)?;
    let last = Batch::new().delete::<Migrated>("");
    let last = last.delete::<old::Foundation>("");
    source.store.write(founding(last)?)?;
    tracing::info!("the data folder was migrated from format 1 to format 2");
    Ok(true)
}

/// Writes everything under its new name.
fn write_anew(source: &Source) -> Result<(), CoordinatorError> {
    let values = Values::new(source.store.clone());
    let people = people::people(source)?;
    for part in people::parts(source, &people)? {
        source.write(&values, part, Batch::new())?;
    }
    let mut shards = vec![];
    for k in 0..source.recipe.shards {
        let (shard, part) = shards::shard(source, ShardId(k as u16), &people)?;
        shards.push(shard);
        source.write(&values, part, Batch::new())?;
    }
    for part in evidence::parts(source)? {
        source.write(&values, part, Batch::new())?;
    }
    let part = public::part(source, shards, &people)?;
    let done = Batch::new().put(&KeyName::public(), "", &Migrated)?;
    source.write(&values, part, done)
}

/// Removes the old records, and destroys the keys that have no use any more.
fn remove_old(source: &Source) -> Result<(), CoordinatorError> {
    let store = &source.store;
    let stages = 1..=source.recipe.slices;
    let shards = 0..source.recipe.shards;
    let stage = |k: usize, s: usize| KeyName::stage(&k.to_string(), &s.to_string());
    let mut keys: Vec<KeyName> = shards
        .flat_map(|k| stages.clone().map(move |s| stage(k, s)))
        .collect();
    let kept = store.keys::<old::KeptRecord>();
    keys.extend(
        kept.iter()
            .map(|id| KeyName::evidence_of(&format!("kept/{id}"))),
    );
    store.destroy(&keys)?;
    macro_rules! remove {
        ($($type:ident)*) => {$(
            for keys in store.keys::<old::$type>().chunks(AT_ONCE) {
                let batch = keys.iter().fold(Batch::new(), |b, k| b.delete::<old::$type>(k));
                store.write(batch)?;
            }
        )*};
    }
    remove!(SubjectRecord SubjectCert AdminCert OperatorRecord Renewal Invite AdminInvite Epoch);
    remove!(Counters Generation RunRecord Checkpoint PersonalRecord RoundRecord BegunRecord);
    remove!(NormRecord RatesRecord LogHead TrainingRecord ReleaseRecord DeviceRecord UpdateRecord);
    remove!(UpdateKey ErrorRecord DeletionRecord RemovedRecord OrderRecord ReceiptRecord Policy);
    remove!(ProposalRecord ActionRecord KeptRecord);
    Ok(())
}

/// Records of a table whose keys are numbers.
fn numbered<T: Persisted>(store: &SealedStore) -> Result<Vec<(u64, T)>, StoreError> {
    let all = store.all::<T>()?.into_iter();
    let mut all: Vec<(u64, T)> = all
        .filter_map(|(k, v)| Some((k.parse().ok()?, v)))
        .collect();
    all.sort_by_key(|(number, _)| *number);
    Ok(all)
}

/// Records of a table whose keys are fingerprints or other digests.
fn digests<T: Persisted>(store: &SealedStore) -> Result<Vec<(Digest, T)>, StoreError> {
    let all = store.all::<T>()?.into_iter();
    Ok(all
        .filter_map(|(k, v)| Some((Digest::parse(&k)?, v)))
        .collect())
}

/// Records of a table whose keys are people.
fn subjects<T: Persisted>(store: &SealedStore) -> Result<BTreeMap<SubjectId, T>, StoreError> {
    let all = store.all::<T>()?.into_iter();
    Ok(all
        .filter_map(|(k, v)| Some((SubjectId::new(k).ok()?, v)))
        .collect())
}
